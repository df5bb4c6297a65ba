//! Names of processes and references.

/// The id of a process, unique in the cluster and never reused; the process that starts the cluster is 1.
pub type ProcId = u32;

/// The process that starts the cluster, and alone adds and removes processes.
pub const HEAD: ProcId = 1;

/// The identity of a future or channel: the process that made it and a number unique there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefId {
    pub whence: ProcId,
    pub id: u64,
}

/// A reference as it travels: its identity and the process that keeps its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemoteRef {
    pub owner: ProcId,
    pub id: RefId,
}
