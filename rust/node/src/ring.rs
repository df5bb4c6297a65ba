//! Bytes of a connection that pass through memory which both ends map, while their reader spins.
//!
//! The stream of bytes in one direction of a connection is one, whichever way they take: some go through the socket, some
//! through a ring. The reader makes the ring and gives it to the writer.
//!
//! ```text
//!   writer ── reader spins, has read all of the socket, and there is room ──► ring
//!     └────── otherwise ──────────────────────────────────────────────────► socket
//!   reader:   ring first; what it then reads from the socket waits if the ring has got something meanwhile
//! ```
//! *Order.* Bytes enter the ring only once all that went into the socket before have been read, so they never overtake.
//! The reader looks into the ring again after it has read from the socket, so they are never overtaken.
//!
//! *Waking.* The writer puts bytes in, then looks whether the reader still spins; the reader tells that it stops, then
//! looks whether bytes are there. One of them sees what the other has done: the reader reads them, or the writer sends a
//! frame without effect through the socket.
//!
//! *Trust.* Either end may be anything. Each keeps its own place to itself, checks the other's, and copies bytes out
//! before it looks at them; the seals of the file keep its pages there. A lying end spoils its own stream alone. A
//! writer that dies while it writes has not told of its bytes.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use memmap2::{Advice, MmapOptions};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The bytes that a ring holds; a power of two.
pub(crate) const SIZE: usize = 16 << 10;
/// Longer writes go through the socket.
const WRITE_MAX: usize = 4 << 10;
const PAGE: usize = 4096;
const FILE_LEN: usize = PAGE + SIZE;

#[repr(align(64))]
struct Line<T>(T);

/// What both ends see of each other, at the front of the memory.
#[repr(C)]
struct Words {
    /// How many bytes the writer has put in.
    put: Line<AtomicU64>,
    /// How many of them the reader has taken out.
    taken: Line<AtomicU64>,
    /// How many bytes the reader has read from the socket of the connection.
    from_socket: Line<AtomicU64>,
    /// 1 while the reader spins.
    spins: Line<AtomicU32>,
}

/// The memory that both ends share.
struct Memory {
    words: NonNull<Words>,
    data: NonNull<u8>,
    /// What keeps it there: a map, or in tests memory of this process.
    _owner: Box<dyn Send + Sync>,
}

// SAFETY: the words are atomic. The bytes are written by the writer's end alone, in places that the reader's end has told
// to be free, and that has read them before it told so; `put` and `taken` order these (tests below). An end in another
// process that breaks this changes what is copied, and no more: no reference to the bytes is ever made.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn map(fd: &OwnedFd) -> std::io::Result<Memory> {
        let map = MmapOptions::new().len(FILE_LEN).map_raw(fd)?;
        // A forked child has no use for it.
        #[cfg(target_os = "linux")]
        map.advise(Advice::DontFork)?;
        let front = NonNull::new(map.as_mut_ptr()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Memory {
            words: front.cast(),
            // SAFETY: the map has `FILE_LEN` bytes.
            data: unsafe { front.add(PAGE) },
            _owner: Box::new(map),
        })
    }

    fn words(&self) -> &Words {
        // SAFETY: it points to the front of a page that is there as long as the owner, is aligned, and was zero when it
        // was made; all fields are atomic.
        unsafe { self.words.as_ref() }
    }

    /// Where the byte of a number lies, and how many follow it without a break.
    fn at(&self, number: u64) -> (*mut u8, usize) {
        let offset = number as usize % SIZE;
        // SAFETY: `data` has `SIZE` bytes.
        (unsafe { self.data.as_ptr().add(offset) }, SIZE - offset)
    }

    fn copy_in(&self, number: u64, bytes: &[u8]) {
        let (to, unbroken) = self.at(number);
        let n = bytes.len().min(unbroken);
        // SAFETY: the callers copy at most `SIZE` bytes: `n` follow `to`, and the others fit in front of it.
        unsafe {
            to.copy_from_nonoverlapping(bytes.as_ptr(), n);
            self.data
                .as_ptr()
                .copy_from_nonoverlapping(bytes.as_ptr().add(n), bytes.len() - n);
        }
    }

    fn copy_out(&self, number: u64, bytes: &mut [u8]) {
        let (from, unbroken) = self.at(number);
        let n = bytes.len().min(unbroken);
        // SAFETY: as above.
        unsafe {
            from.copy_to_nonoverlapping(bytes.as_mut_ptr(), n);
            self.data
                .as_ptr()
                .copy_to_nonoverlapping(bytes.as_mut_ptr().add(n), bytes.len() - n);
        }
    }
}

/// The other end has said what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lied;

/// The end that reads, of who has made the ring. One thread reads at a time; any may look.
pub(crate) struct Reader {
    memory: Memory,
    taken: AtomicU64,
}

impl Reader {
    /// Makes a ring, and the descriptor for its writer.
    pub(crate) fn create() -> std::io::Result<(Reader, OwnedFd)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("pydist-ring", flags)?;
        rustix::fs::ftruncate(&fd, FILE_LEN as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Reader::new(Memory::map(&fd)?), fd))
    }

    fn new(memory: Memory) -> Reader {
        Reader {
            memory,
            taken: AtomicU64::new(0),
        }
    }

    /// The bytes that have been put in since the beginning.
    pub(crate) fn put(&self) -> u64 {
        self.memory.words().put.0.load(Ordering::SeqCst)
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.put() == self.taken()
    }

    /// Takes bytes out, as many as are there and fit; 0 where there are none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Lied> {
        let taken = self.taken();
        let there = self.put().wrapping_sub(taken);
        if there > SIZE as u64 {
            return Err(Lied);
        }
        let n = buffer.len().min(there as usize);
        if n > 0 {
            self.memory.copy_out(taken, &mut buffer[..n]);
            let taken = taken.wrapping_add(n as u64);
            self.taken.store(taken, Ordering::Relaxed);
            self.memory.words().taken.0.store(taken, Ordering::Release);
        }
        Ok(n)
    }

    /// So many bytes have been read from the socket.
    pub(crate) fn has_read_from_socket(&self, bytes: u64) {
        self.memory.words().from_socket.0.store(bytes, Ordering::Release);
    }

    /// Begins to spin, or stops: then it is to be looked once more whether it is empty.
    pub(crate) fn set_spins(&self, spins: bool) {
        self.memory
            .words()
            .spins
            .0
            .store(u32::from(spins), Ordering::SeqCst);
    }
}

/// What became of bytes that were to go through the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// They are in it, and the reader sees them.
    Seen,
    /// They are in it, and the reader is to be woken.
    ToWake,
    /// They are to go through the socket.
    Not,
}

/// The end that writes. One thread uses it at a time.
pub(crate) struct Writer {
    memory: Memory,
    put: AtomicU64,
}

impl Writer {
    /// Uses the ring that a peer has made.
    pub(crate) fn open(fd: &OwnedFd) -> Result<Writer, String> {
        let seals =
            rustix::fs::fcntl_get_seals(fd).map_err(|error| format!("it is no memory file: {error}"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err("it may become shorter".to_owned());
        }
        let stat = rustix::fs::fstat(fd).map_err(|error| error.to_string())?;
        if stat.st_size != FILE_LEN as i64 {
            return Err(format!("it has {} bytes, not {FILE_LEN}", stat.st_size));
        }
        Ok(Writer::new(Memory::map(fd).map_err(|error| error.to_string())?))
    }

    fn new(memory: Memory) -> Writer {
        Writer {
            memory,
            put: AtomicU64::new(0),
        }
    }

    /// Puts all of some bytes in, where the reader spins and has read the `through_socket` bytes that went the other way.
    pub(crate) fn write(&self, slices: &[IoSlice<'_>], through_socket: u64) -> Put {
        let words = self.memory.words();
        if words.spins.0.load(Ordering::SeqCst) == 0
            || words.from_socket.0.load(Ordering::Acquire) != through_socket
        {
            return Put::Not;
        }
        let len: usize = slices.iter().map(|slice| slice.len()).sum();
        let put = self.put.load(Ordering::Relaxed);
        // Where the reader lies about its place, this is more than there is, and nothing goes in any more.
        let used = put.wrapping_sub(words.taken.0.load(Ordering::Acquire));
        if len == 0 || len > WRITE_MAX || used > (SIZE - len) as u64 {
            return Put::Not;
        }
        let mut at = put;
        for slice in slices {
            self.memory.copy_in(at, slice);
            at = at.wrapping_add(slice.len() as u64);
        }
        self.put.store(at, Ordering::Relaxed);
        words.put.0.store(at, Ordering::SeqCst);
        if words.spins.0.load(Ordering::SeqCst) == 0 {
            Put::ToWake
        } else {
            Put::Seen
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::*;

    /// Both ends of a ring in memory of this process, for the model of the feature `shuttle` too.
    pub(crate) fn ends() -> (Reader, Writer) {
        let words = Arc::new(Words {
            put: Line(AtomicU64::new(0)),
            taken: Line(AtomicU64::new(0)),
            from_socket: Line(AtomicU64::new(0)),
            spins: Line(AtomicU32::new(0)),
        });
        let data = NonNull::from(Box::leak(Box::new([0u8; SIZE])));
        struct Data(NonNull<[u8; SIZE]>);
        // SAFETY: as `Memory`.
        unsafe impl Send for Data {}
        // SAFETY: as `Memory`.
        unsafe impl Sync for Data {}
        impl Drop for Data {
            fn drop(&mut self) {
                // SAFETY: it was leaked from a box above, and both ends are gone.
                drop(unsafe { Box::from_raw(self.0.as_ptr()) });
            }
        }
        let data = Arc::new(Data(data));
        let memory = || Memory {
            words: NonNull::from(&*words),
            data: data.0.cast(),
            _owner: Box::new((words.clone(), data.clone())),
        };
        (Reader::new(memory()), Writer::new(memory()))
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod checks {
    #![allow(clippy::unwrap_used)]

    use std::collections::VecDeque;

    use proptest::prelude::*;
    use rustix::fs::MemfdFlags;

    use super::tests::ends;
    use super::*;

    fn put(writer: &Writer, bytes: &[u8]) -> Put {
        writer.write(&[IoSlice::new(bytes)], 0)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(Vec<usize>),
        Take(usize),
        Spin(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => prop::collection::vec(0..2500usize, 0..4).prop_map(Step::Put),
            4 => (0..6000usize).prop_map(Step::Take),
            1 => any::<bool>().prop_map(Step::Spin),
        ]
    }

    proptest! {
        /// Against a queue: what goes in comes out, in order; what does not fit, or is not looked for, does not go in.
        #[test]
        fn it_is_a_queue(mapped in any::<bool>(), steps in prop::collection::vec(step(), 0..200)) {
            let (reader, writer) = if mapped {
                let (reader, file) = Reader::create().unwrap();
                (reader, Writer::open(&file).unwrap())
            } else {
                ends()
            };
            let (mut model, mut next, mut spins) = (VecDeque::new(), 0u8, false);
            for step in steps {
                match step {
                    Step::Put(lengths) => {
                        let parts: Vec<Vec<u8>> = lengths
                            .iter()
                            .map(|len| {
                                (0..*len)
                                    .map(|_| {
                                        next = next.wrapping_add(1);
                                        next
                                    })
                                    .collect()
                            })
                            .collect();
                        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
                        let len: usize = lengths.iter().sum();
                        let goes = spins && (1..=WRITE_MAX).contains(&len) && model.len() + len <= SIZE;
                        prop_assert_eq!(writer.write(&slices, 0), if goes { Put::Seen } else { Put::Not });
                        if goes {
                            model.extend(parts.concat());
                        }
                    }
                    Step::Take(most) => {
                        let mut buffer = vec![0; most];
                        let n = reader.read(&mut buffer).unwrap();
                        prop_assert_eq!(n, most.min(model.len()));
                        prop_assert_eq!(&buffer[..n], &model.drain(..n).collect::<Vec<u8>>()[..]);
                    }
                    Step::Spin(now) => {
                        spins = now;
                        reader.set_spins(now);
                    }
                }
                prop_assert_eq!(reader.is_empty(), model.is_empty());
            }
        }

        /// Whatever the other end writes into the memory: no byte is read or written beside it, and the reader says so.
        #[test]
        fn lies_are_found_out(word in any::<u64>(), own in 0..SIZE as u64) {
            let (reader, writer) = ends();
            reader.set_spins(true);
            reader.memory.words().put.0.store(word, Ordering::SeqCst);
            let mut buffer = vec![0; 2 * SIZE];
            match reader.read(&mut buffer) {
                Ok(n) => prop_assert!(word <= SIZE as u64 && n as u64 == word),
                Err(Lied) => prop_assert!(word > SIZE as u64),
            }
            writer.put.store(own, Ordering::Relaxed);
            writer.memory.words().taken.0.store(word, Ordering::SeqCst);
            let fits = own.wrapping_sub(word) <= (SIZE - 1) as u64;
            prop_assert_eq!(put(&writer, b"x") != Put::Not, fits);
        }
    }

    #[test]
    fn bytes_that_follow_those_in_the_socket_do_not_overtake_them() {
        let (reader, writer) = ends();
        reader.set_spins(true);
        let write = |through| writer.write(&[IoSlice::new(b"x")], through);
        assert_eq!(write(10), Put::Not);
        reader.has_read_from_socket(10);
        assert_eq!(write(10), Put::Seen);
        assert_eq!(write(11), Put::Not);
    }

    #[test]
    fn a_ring_that_may_shrink_or_is_of_another_size_or_none_at_all_is_refused() {
        let open = |len: u64, seals: SealFlags| {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let fd = rustix::fs::memfd_create("test", flags).unwrap();
            rustix::fs::ftruncate(&fd, len).unwrap();
            rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
            Writer::open(&fd).map(drop)
        };
        assert_eq!(open(FILE_LEN as u64, SealFlags::SHRINK), Ok(()));
        assert!(
            open(FILE_LEN as u64, SealFlags::GROW)
                .unwrap_err()
                .contains("shorter")
        );
        assert!(open(100, SealFlags::SHRINK).unwrap_err().contains("100 bytes"));
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        assert!(
            Writer::open(&pipe)
                .map(drop)
                .unwrap_err()
                .contains("no memory file")
        );
        // One whose pages may not be written.
        let sealed = open(FILE_LEN as u64, SealFlags::SHRINK | SealFlags::WRITE);
        assert!(sealed.is_err());
    }

    #[test]
    fn threads_pass_bytes() {
        let (reader, file) = Reader::create().unwrap();
        let writer = Writer::open(&file).unwrap();
        reader.set_spins(true);
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for part in sent.chunks(777) {
                    while put(&writer, part) == Put::Not {
                        std::thread::yield_now();
                    }
                }
            });
            let (mut got, mut buffer) = (Vec::new(), [0; 1000]);
            while got.len() < sent.len() {
                let n = reader.read(&mut buffer).unwrap();
                got.extend_from_slice(&buffer[..n]);
                if n == 0 {
                    std::thread::yield_now();
                }
            }
            assert!(got == sent);
        });
    }
}
