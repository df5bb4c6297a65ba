//! Which connections have a ring, and what a thread that spins does with them.

use std::io::IoSlice;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use crate::link::{Came, Link};
use crate::node::Node;
use crate::outgoing::{Outgoing, Queue};
use crate::ring::{Put, Reader, Writer};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::tls::Failure;

/// So many connections have a ring that this process reads, at most: each costs a look while a thread spins.
const RINGS_MAX: usize = 16;
/// A connection gets one once so many messages have come over it to a thread that spun.
const MESSAGES: u32 = 16;

/// So often a thread that spins looks into its rings before it looks at the sockets: a look there is a system call.
const LOOKS: u32 = 40;

/// What was read from the socket before the ring was found to have bytes that come first.
type Aside = (Vec<u8>, Option<Came>);

/// The rings of one connection.
#[derive(Default)]
pub(crate) struct Ways {
    /// Bytes that have come through the socket and been taken up; those that have gone.
    from_socket: AtomicU64,
    through_socket: AtomicU64,
    reader: OnceLock<Reader>,
    writer: OnceLock<Writer>,
    /// Bytes are in the ring whose reader is to be woken. Set and looked at with the writer of the connection held.
    to_wake: AtomicBool,
    /// Touched by who reads the connection alone.
    aside: Mutex<Option<Aside>>,
    /// Messages that came to a thread that spun.
    spun: AtomicU32,
}

impl Ways {
    pub(crate) fn reader(&self) -> Option<&Reader> {
        self.reader.get()
    }

    /// Bytes that are not in the socket any more wait to be taken up.
    pub(crate) fn has_aside(&self) -> bool {
        self.reader.get().is_some() && self.aside.lock().is_some()
    }

    /// So many bytes have been taken up from the socket.
    pub(crate) fn came_from_socket(&self, bytes: usize) {
        let all = self.from_socket.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if let Some(reader) = self.reader.get() {
            reader.has_read_from_socket(all);
        }
    }

    pub(crate) fn went_through_socket(&self, bytes: usize) {
        self.through_socket.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Takes up what was put aside.
    fn take_aside(&self, buffer: &mut [u8]) -> Option<(usize, Option<Came>)> {
        let mut aside = self.aside.lock();
        let (bytes, came) = aside.as_mut()?;
        let n = bytes.len().min(buffer.len());
        buffer[..n].copy_from_slice(&bytes[..n]);
        bytes.drain(..n);
        let came = came.take();
        if bytes.is_empty() {
            *aside = None;
        }
        drop(aside);
        self.came_from_socket(n);
        Some((n, came))
    }
}

#[cfg(all(test, feature = "shuttle"))]
impl Link {
    /// Has this connection read by a ring, and another one, which is its other end, write to it.
    pub(crate) fn join_by_ring(&self, other: &Link) {
        let (reader, writer) = crate::ring::tests::ends();
        assert!(self.ways.reader.set(reader).is_ok() && other.ways.writer.set(writer).is_ok());
    }
}

impl Link {
    /// Whether nothing waits in the ring that is read here, if there is one.
    pub(crate) fn has_empty_ring(&self) -> bool {
        self.ways.reader().is_none_or(Reader::is_empty)
    }

    /// Reads bytes in the order in which the peer has sent them, and the descriptor that came with them; from the ring
    /// alone where the socket is not known to have any. True where the socket may have more, whatever their number is.
    pub(crate) fn receive_in_order(
        &self,
        buffer: &mut [u8],
        ring_alone: bool,
    ) -> Result<(usize, Option<Came>, bool), Failure> {
        let Some(ring) = self.ways.reader() else {
            return match ring_alone {
                true => Err(Failure::Again),
                false => self.receive(buffer).map(|(n, came)| (n, came, false)),
            };
        };
        let from_ring = |buffer: &mut [u8]| {
            ring.read(buffer)
                .map_err(|_| Failure::Broken("the ring of the peer is out of order".to_owned()))
        };
        let n = from_ring(buffer)?;
        if n > 0 {
            return Ok((n, None, true));
        }
        if let Some((n, came)) = self.ways.take_aside(buffer) {
            return Ok((n, came, true));
        }
        if ring_alone {
            return Err(Failure::Again);
        }
        let received = self.receive_uncounted(buffer);
        if ring.is_empty() {
            let (n, came) = received?;
            self.ways.came_from_socket(n);
            return Ok((n, came, false));
        }
        if let Ok((n @ 1.., came)) = received {
            *self.ways.aside.lock() = Some((buffer[..n].to_vec(), came));
        }
        Ok((from_ring(buffer)?, None, true))
    }

    /// Writes through the ring where that is possible, otherwise through the socket.
    pub(crate) fn write_either(
        &self,
        slices: &[IoSlice<'_>],
        file: Option<BorrowedFd<'_>>,
    ) -> Result<usize, Errno> {
        if file.is_none()
            && let Some(ring) = self.ways.writer.get()
        {
            match ring.write(slices, self.ways.through_socket.load(Ordering::Relaxed)) {
                Put::Not => {}
                put => {
                    if put == Put::ToWake {
                        self.ways.to_wake.store(true, Ordering::Relaxed);
                    }
                    return Ok(slices.iter().map(|slice| slice.len()).sum());
                }
            }
        }
        self.write(slices, file)
    }

    /// Queues what wakes the reader of the ring, where it is to be woken, and tells how many bytes that are.
    pub(crate) fn queue_wake(&self, writer: &mut Queue) -> Option<usize> {
        self.ways.to_wake.swap(false, Ordering::Relaxed).then(|| {
            let frame = pydist_proto::frame::encode_nothing();
            let bytes = frame.len();
            self.queue_up(writer, Outgoing::bytes(frame));
            bytes
        })
    }

    /// The peer offers a ring.
    pub(crate) fn use_ring(&self, file: Option<OwnedFd>) -> Result<(), String> {
        let Some(file) = file else { return Ok(()) };
        let writer = Writer::open(&file).map_err(|reason| format!("a ring cannot be used: {reason}"))?;
        self.ways
            .writer
            .set(writer)
            .map_err(|_| "it offers a second ring".to_owned())
    }
}

/// The connections that have a ring which this process reads.
#[derive(Default)]
pub(crate) struct Rings(Mutex<Vec<Arc<Link>>>);

impl Rings {
    pub(crate) fn remove(&self, link: &Link) {
        self.0.lock().retain(|other| other.token != link.token);
    }
}

impl Node {
    /// A message has come over a connection while a thread spun.
    pub(crate) fn note_spun(&self, token: u64) {
        let link = self.connections.read().get(&token).cloned();
        if let Some(link) = link
            && link.is_local()
            && link.is_open()
            && link.ways.spun.fetch_add(1, Ordering::Relaxed) + 1 == MESSAGES
        {
            self.offer_ring(&link);
        }
    }

    /// Gives the peer a ring, unless this process has enough of them, or no memory or descriptor for one.
    fn offer_ring(&self, link: &Arc<Link>) {
        let mut links = self.rings.0.lock();
        if links.len() == RINGS_MAX {
            return;
        }
        let Ok((reader, file)) = Reader::create() else {
            return;
        };
        if link.ways.reader.set(reader).is_err() {
            return;
        }
        links.push(link.clone());
        drop(links);
        if link.is_closed() {
            return self.rings.remove(link);
        }
        link.send_ring(file);
    }
}

/// The rings that a thread looks into while it spins.
pub(crate) struct Watched<'n> {
    node: &'n Node,
    links: Vec<Arc<Link>>,
}

impl<'n> Watched<'n> {
    /// Has the writers use the rings, where the thread `spins`.
    pub(crate) fn begin(node: &'n Node, spins: bool) -> Watched<'n> {
        let links = if spins {
            node.rings.0.lock().clone()
        } else {
            Vec::new()
        };
        let watched = Watched { node, links };
        watched.set_spins(true);
        watched
    }

    fn set_spins(&self, spins: bool) {
        for reader in self.links.iter().filter_map(|link| link.ways.reader()) {
            reader.set_spins(spins);
        }
    }

    /// Does what `begin` does, for a thread that `spins` again, or still.
    pub(crate) fn go_on(&mut self, spins: bool) {
        if spins && self.links.is_empty() {
            *self = Watched::begin(self.node, true);
        }
    }

    /// Reads what has come; true where something has.
    pub(crate) fn read(&self, enough: &dyn Fn() -> bool) -> bool {
        let mut any = false;
        for link in &self.links {
            if let Some(reader) = link.ways.reader()
                && !reader.is_empty()
            {
                let before = reader.taken();
                self.node.read_ring(link, enough);
                // Nothing is taken out while the connection is paused, or another thread reads it.
                any |= reader.taken() != before;
            }
        }
        any
    }

    /// Reads what comes while the rings are looked at for about a microsecond; true where something has.
    pub(crate) fn look(&self, enough: &dyn Fn() -> bool) -> bool {
        for _ in 0..LOOKS {
            if self.links.is_empty() {
                return false;
            }
            if self.read(enough) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// The thread spins no longer: the writers use the sockets again, and what they have written before is read.
    pub(crate) fn end(&mut self) {
        if !self.links.is_empty() {
            self.set_spins(false);
            self.read(&|| false);
            self.links.clear();
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
