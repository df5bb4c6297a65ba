//! What can be wrong with the bytes of a peer.

/// A peer broke the protocol; its connection is closed, the process goes on.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    #[error("unknown message kind {0}")]
    UnknownKind(u8),
    #[error("unknown flags {0:#04x}")]
    UnknownFlags(u8),
    #[error("{0} has the unknown value {1}")]
    UnknownValue(&'static str, u32),
    #[error("a frame of {0} bytes is over the limit of {1}")]
    FrameTooLarge(u64, u64),
    #[error("a message of {0} bytes is over the limit of {1}")]
    MessageTooLarge(u64, u64),
    #[error("truncated {0}")]
    Truncated(&'static str),
    #[error("more than {0} messages are under way at once")]
    TooManyStreams(usize),
    #[error("a chunk for the unknown stream {0}")]
    UnknownStream(u16),
    #[error("stream {0} is opened twice")]
    StreamReused(u16),
    #[error("a chunk of {0} bytes where {1} are missing")]
    ChunkOverrun(usize, u64),
    #[error("{0} is not UTF-8")]
    NotText(&'static str),
    #[error("a message in shared memory came without its descriptor")]
    NoFile,
    #[error("more than {0} descriptors came without a message")]
    TooManyFiles(usize),
    #[error("shared memory cannot be used: {0}")]
    UnusableFile(String),
    #[error("no memory for a segment of {0} bytes")]
    NoMemory(u64),
}
