//! Large buffers between the processes of one machine: copied once into a memory file, whose descriptor is passed on.
//!
//! ```text
//!   pool ── take, fill ──► SharedFile ── sent: an entry in `lent` for each receiver ──► all have unmapped it ──► pool
//! ```
//! A receiver maps a file privately: it may write, and nobody else sees that. Pages that it has not written to are those
//! of the file, so the sender does not touch the file before every receiver has told that its map is gone. Whoever
//! received a file may pass it on in the same way; it tells its sender once its own map and those of its receivers are gone.

mod memory;
mod node;
mod pool;

use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Once, Weak};

use crate::sync::Mutex;
use crossbeam_queue::SegQueue;
use memmap2::MmapMut;
use pydist_proto::body::View;
use pydist_proto::codec::Attachment;
use pydist_proto::error::ProtocolError;
use pydist_proto::frame::FileName;
use rustc_hash::FxHashMap;

use self::memory::MemoryFile;
pub(crate) use self::memory::open_of;
pub(crate) use self::node::Shared;
use self::pool::Pool;
use crate::link::Link;
use crate::node::Node;

/// Messages with at least so many bytes in long buffers go through shared memory.
pub(crate) const SHARED_LEAST: u64 = 512 << 10;
/// Messages whose pickle and short buffers have more bytes than this do not.
pub(crate) const INLINE_MOST: u64 = 4 << 20;
/// Files that may be in use at once, each with a descriptor; further messages are streamed.
const FILES_MAX: usize = 256;
/// Received files whose descriptors are kept so that they can be passed on; the bytes of further ones are copied for that.
const RECEIVED_MAX: usize = 64;

/// What a process knows of shared memory.
pub(crate) struct Sharing {
    /// The most bytes of idle files that are kept; 0: memory is not shared.
    idle_max: usize,
    files_max: usize,
    pool: Mutex<Pool>,
    /// What receivers have not unmapped yet, by the token of the connection and the number of the message's file.
    lent: Mutex<FxHashMap<(u64, u64), Arc<SharedFile>>>,
    next_number: AtomicU64,
    /// What finalizers have let go of.
    returned: SegQueue<Returned>,
    signalled: AtomicBool,
    /// Bytes of files in use here, and how many of them are this process's own.
    bytes: AtomicUsize,
    own: AtomicUsize,
    /// Received files whose descriptors are open.
    received: AtomicUsize,
    /// A descriptor that gives way where there is none left for a received file, until that is mapped.
    reserve: Mutex<Option<OwnedFd>>,
    /// Messages that were to be shared and were streamed, since there was no memory or no descriptor.
    pub(crate) fallbacks: AtomicU64,
    /// This process is a forked child, which gives nothing back.
    forked: AtomicBool,
}

impl Sharing {
    pub(crate) fn new(idle_max: usize) -> Sharing {
        count_forks();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        Sharing {
            idle_max,
            files_max: FILES_MAX.min(limit / 4),
            pool: Mutex::default(),
            lent: Mutex::default(),
            next_number: AtomicU64::new(1),
            returned: SegQueue::new(),
            signalled: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
            own: AtomicUsize::new(0),
            received: AtomicUsize::new(0),
            reserve: Mutex::new(reserve()),
            fallbacks: AtomicU64::new(0),
            forked: AtomicBool::new(false),
        }
    }

    /// The bytes of files that are in use: lent, kept here, or received and mapped.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// This is a forked child now: the descriptors that it is to close.
    pub(crate) fn after_fork(&self) -> Vec<RawFd> {
        self.forked.store(true, Ordering::SeqCst);
        let mut raw = Vec::new();
        if let Some(pool) = self.pool.try_lock() {
            raw.extend(pool.files().map(|file| file.descriptor().as_raw_fd()));
        }
        if let Some(lent) = self.lent.try_lock() {
            let files = lent.values().filter_map(|file| file.descriptor());
            raw.extend(files.map(|fd| fd.as_raw_fd()));
        }
        if let Some(reserve) = self.reserve.try_lock() {
            raw.extend(reserve.iter().map(AsRawFd::as_raw_fd));
        }
        raw.sort_unstable();
        raw.dedup();
        raw
    }
}

fn reserve() -> Option<OwnedFd> {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).ok()
}

/// What has been let go of.
enum Returned {
    /// A file of this process; it may be filled again unless somebody unknown may still map it.
    Own { file: MemoryFile, reusable: bool },
    /// A received file, whose map is gone.
    Received { token: u64, number: u64, copied: bool },
}

enum Origin {
    Own(MemoryFile),
    Received {
        token: u64,
        number: u64,
        inode: u64,
        /// There while the file may be passed on.
        fd: Mutex<Option<Arc<OwnedFd>>>,
    },
}

/// A memory file in use: the last one who lets go of it gives it back.
pub(crate) struct SharedFile {
    node: Weak<Node>,
    len: usize,
    /// Taken out at the end alone.
    origin: Option<Origin>,
    /// A process that nobody hears of may map it: a forked child, or one whose connection was lost.
    unsure: AtomicBool,
}

impl std::fmt::Debug for SharedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedFile")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl SharedFile {
    fn new(node: &Arc<Node>, len: usize, origin: Origin) -> Arc<SharedFile> {
        node.sharing.bytes.fetch_add(len, Ordering::Relaxed);
        if matches!(origin, Origin::Own(_)) {
            node.sharing.own.fetch_add(1, Ordering::Relaxed);
        }
        Arc::new(SharedFile {
            node: Arc::downgrade(node),
            len,
            origin: Some(origin),
            unsure: AtomicBool::new(false),
        })
    }

    /// The bytes of the message that lie in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The descriptor, where the file can be passed on.
    pub(crate) fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        match self.origin.as_ref()? {
            Origin::Own(file) => Some(file.descriptor().clone()),
            Origin::Received { fd, .. } => fd.lock().clone(),
        }
    }

    fn inode(&self) -> u64 {
        match &self.origin {
            Some(Origin::Own(file)) => file.inode(),
            Some(Origin::Received { inode, .. }) => *inode,
            None => 0,
        }
    }

    /// A received file is not passed on any more.
    fn forget_descriptor(&self) {
        if let Some(Origin::Received { fd, .. }) = &self.origin
            && let Some(fd) = fd.lock().take()
            && let Some(node) = self.node.upgrade()
        {
            node.sharing.received.fetch_sub(1, Ordering::Relaxed);
            drop(fd);
        }
    }

    /// A private view of it.
    fn view(self: &Arc<Self>) -> std::io::Result<Mapping> {
        let fd = self.descriptor().ok_or(std::io::ErrorKind::Unsupported)?;
        Ok(Mapping {
            forks: FORKS.load(Ordering::SeqCst),
            map: std::mem::ManuallyDrop::new(memory::map_private(&fd, self.len)?),
            file: self.clone(),
        })
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        self.forget_descriptor();
        let Some(origin) = self.origin.take() else { return };
        let unsure = self.unsure.load(Ordering::SeqCst);
        let Some(node) = self.node.upgrade() else { return };
        let returned = match origin {
            Origin::Own(file) => {
                node.sharing.own.fetch_sub(1, Ordering::Relaxed);
                let reusable = !unsure;
                Returned::Own { file, reusable }
            }
            Origin::Received { token, number, .. } => Returned::Received {
                token,
                number,
                copied: unsure,
            },
        };
        node.take_back(returned);
        node.sharing.bytes.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// A private view of a memory file.
struct Mapping {
    map: std::mem::ManuallyDrop<MmapMut>,
    /// How often this process had forked when it was made.
    forks: usize,
    file: Arc<SharedFile>,
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if FORKS.load(Ordering::SeqCst) != self.forks {
            self.file.unsure.store(true, Ordering::SeqCst);
        }
        // SAFETY: the map is not used again (tests/shared_buffers.rs).
        let map = unsafe { std::mem::ManuallyDrop::take(&mut self.map) };
        // It goes before the file, whose end tells the sender that it is gone.
        crate::freeing::unmap(map, self.file.clone());
    }
}

impl View for Mapping {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn address(&self) -> *mut u8 {
        self.map.as_ptr().cast_mut()
    }

    fn again(&self) -> std::io::Result<Arc<dyn View>> {
        Ok(Arc::new(self.file.view()?))
    }

    fn hand_out(&self) {
        self.file.forget_descriptor();
    }
}

/// The file in which the long segments of a body lie, where it can be passed on.
pub(crate) fn file_of(body: &pydist_proto::body::Body) -> Option<(Arc<SharedFile>, Arc<OwnedFd>)> {
    let view: &dyn std::any::Any = &**body.view()?;
    let file = view.downcast_ref::<Mapping>()?.file.clone();
    let fd = file.descriptor()?;
    Some((file, fd))
}

/// A descriptor that came on a connection; none where this process had no room for it.
pub(crate) struct Received {
    pub(crate) node: Arc<Node>,
    pub(crate) link: Weak<Link>,
    pub(crate) fd: Option<OwnedFd>,
}

impl Attachment for Received {
    fn open(self: Box<Self>, name: FileName, len: u64) -> Result<Arc<dyn View>, ProtocolError> {
        let link = self.link.upgrade().ok_or(ProtocolError::NoFile)?;
        link.has_read(usize::try_from(len).unwrap_or(usize::MAX));
        if let Some(fd) = self.fd {
            return map_received(&self.node, &link, fd, name, len).map(|(view, _)| view);
        }
        let mut reserve_slot = self.node.sharing.reserve.lock();
        reserve_slot.take();
        let mapped = link
            .open_of_peer(name.descriptor)
            .map_err(|error| ProtocolError::UnusableFile(error.to_string()))
            .and_then(|fd| map_received(&self.node, &link, fd, name, len))
            .inspect(|(_, file)| file.forget_descriptor());
        *reserve_slot = reserve();
        mapped.map(|(view, _)| view)
    }

    fn descriptor(self: Box<Self>) -> Option<OwnedFd> {
        self.fd
    }
}

fn map_received(
    node: &Arc<Node>,
    link: &Link,
    fd: OwnedFd,
    name: FileName,
    len: u64,
) -> Result<(Arc<dyn View>, Arc<SharedFile>), ProtocolError> {
    memory::check(&fd, name.inode, len).map_err(ProtocolError::UnusableFile)?;
    let size = usize::try_from(len).map_err(|_| ProtocolError::NoMemory(len))?;
    let sharing = &node.sharing;
    sharing.received.fetch_add(1, Ordering::Relaxed);
    let origin = Origin::Received {
        token: link.token,
        number: name.number,
        inode: name.inode,
        fd: Mutex::new(Some(Arc::new(fd))),
    };
    let file = SharedFile::new(node, size, origin);
    let view = file.view().map_err(|_| ProtocolError::NoMemory(len))?;
    node.bytes_received.fetch_add(len, Ordering::Relaxed);
    if sharing.received.load(Ordering::Relaxed) > RECEIVED_MAX {
        file.forget_descriptor();
    }
    Ok((Arc::new(view), file))
}

/// How often this process has forked: a child has the maps that its parent had.
static FORKS: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    fn pthread_atfork(
        prepare: Option<unsafe extern "C" fn()>,
        parent: Option<unsafe extern "C" fn()>,
        child: Option<unsafe extern "C" fn()>,
    ) -> libc::c_int;
}

unsafe extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::SeqCst);
}

/// Has forks counted from now on.
fn count_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler touches an atomic number alone, and the extension module that holds it is never unloaded
        // (tests/cluster/test_shared_buffers.py).
        unsafe { pthread_atfork(Some(count_fork), None, None) };
    });
}
