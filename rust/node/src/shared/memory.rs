//! Anonymous memory files: made, filled by their sender, viewed privately by whoever receives one.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use memmap2::{Advice, MmapMut, MmapOptions};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// So much is copied before it is asked again whether to go on.
const PIECE: usize = 32 << 20;

/// A memory file of this process, which is written to only while nobody else maps it.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    fd: Arc<OwnedFd>,
    inode: u64,
    capacity: usize,
    /// The bytes from the front whose pages are there.
    warm: usize,
    /// The pages that are there, mapped: made for the second use, as the first one writes pages faster than it maps them.
    map: Option<MmapMut>,
}

/// Why a memory file was not filled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FillError<E> {
    /// The system has no memory or no descriptor for it.
    NotPossible,
    /// The sender was told to give up.
    GivenUp(E),
}

impl<E> From<std::io::Error> for FillError<E> {
    fn from(_: std::io::Error) -> FillError<E> {
        FillError::NotPossible
    }
}

impl MemoryFile {
    /// Makes one that holds `len` bytes or a little more, so that it serves for similar lengths too.
    pub(crate) fn create(len: usize) -> std::io::Result<MemoryFile> {
        let step = (len.next_power_of_two() / 8).max(4096);
        let capacity = len
            .checked_next_multiple_of(step)
            .ok_or(std::io::ErrorKind::OutOfMemory)?;
        let fd = rustix::fs::memfd_create("pydist", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, capacity as u64)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals)?;
        Ok(MemoryFile {
            inode: rustix::fs::fstat(&fd)?.st_ino,
            fd: Arc::new(fd),
            capacity,
            warm: 0,
            map: None,
        })
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The memory that it takes.
    pub(crate) fn warm_bytes(&self) -> usize {
        self.warm
    }

    /// Copies parts to where they belong; `go_on` is asked now and then.
    pub(crate) fn fill<E>(
        &mut self,
        parts: &[(usize, &[u8])],
        go_on: &dyn Fn() -> Result<(), E>,
    ) -> Result<(), FillError<E>> {
        self.map_warm()?;
        let mapped = self.map.as_ref().map_or(0, |map| map.len());
        let mut copied = 0;
        for &(offset, bytes) in parts {
            let mut done = 0;
            while done < bytes.len() {
                let (at, left) = (offset + done, bytes.len() - done);
                let n = match &mut self.map {
                    Some(map) if at < mapped => {
                        let n = left.min(mapped - at).min(PIECE);
                        map[at..at + n].copy_from_slice(&bytes[done..done + n]);
                        n
                    }
                    _ => self.write(&bytes[done..done + left.min(PIECE)], at)?,
                };
                done += n;
                self.warm = self.warm.max(at + n);
                copied += n;
                if copied >= PIECE {
                    copied = 0;
                    go_on().map_err(FillError::GivenUp)?;
                }
            }
        }
        Ok(())
    }

    /// Gives its pages back to the system.
    pub(crate) fn close(self) {
        match self.map {
            Some(map) => crate::freeing::unmap(map, self.fd),
            None => crate::freeing::free(self.fd, self.warm),
        }
    }

    fn write(&self, bytes: &[u8], at: usize) -> std::io::Result<usize> {
        loop {
            match rustix::io::pwrite(&self.fd, bytes, at as u64) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(n) => return Ok(n),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Maps the pages that are there, all at once.
    fn map_warm(&mut self) -> std::io::Result<()> {
        if self.warm == 0 || self.map.as_ref().is_some_and(|map| map.len() == self.warm) {
            return Ok(());
        }
        // SAFETY: the seals keep the file from becoming shorter than the map, and a file is filled only by who
        // took it from the pool, while no process maps it to read (tests/shared_buffers.rs).
        let map = unsafe { MmapOptions::new().len(self.warm).map_mut(&*self.fd)? };
        // An older kernel does not know the advice, and maps page after page.
        let _ = map.advise(Advice::PopulateRead);
        self.map = Some(map);
        Ok(())
    }
}

/// Maps `len` bytes of a memory file privately, for reading and writing.
pub(crate) fn map_private(fd: &OwnedFd, len: usize) -> std::io::Result<MmapMut> {
    // SAFETY: the seals keep the file from becoming shorter than the map, and its sender does not write to it before
    // it has heard that the map is gone (tests/shared_buffers.rs).
    unsafe { MmapOptions::new().len(len).no_reserve_swap().map_copy(fd) }
}

/// Opens a memory file by a descriptor that another process has of it.
pub(crate) fn open_of(socket: &OwnedFd, descriptor: u32) -> std::io::Result<OwnedFd> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?.pid;
    let path = format!("/proc/{}/fd/{descriptor}", peer.as_raw_nonzero());
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

/// Checks that a descriptor is one of a certain memory file that holds at least `len` bytes and always will.
pub(crate) fn check(fd: impl AsFd, inode: u64, len: u64) -> Result<(), String> {
    let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|error| format!("it is no memory file: {error}"))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err("it may become shorter".to_owned());
    }
    let stat = rustix::fs::fstat(&fd).map_err(|error| error.to_string())?;
    if stat.st_ino != inode {
        return Err("it is another one than its message names".to_owned());
    }
    match u64::try_from(stat.st_size) {
        Ok(size) if size >= len => Ok(()),
        _ => Err(format!("it has {} bytes, not {len}", stat.st_size)),
    }
}
