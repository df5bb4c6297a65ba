//! One connection: its handshake, what is read from it and what waits to be written.

use crate::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};
use pydist_proto::body::Body;
use pydist_proto::codec::Decoder;
use pydist_proto::frame::{self, CHUNK_MAX, FileName, Header, INLINE_MAX, SHARED_FROM};
use pydist_proto::handshake::Handshake;
use pydist_proto::ids::{ProcId, RemoteRef};
use pydist_proto::message::Message;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::cursor::Cursor;
use crate::dialing::Dial;
use crate::node::Node;
use crate::opening::Opening;
use crate::outgoing::{Outgoing, Queue};
use crate::poll::Poll;
use crate::rings::Ways;
use crate::shared::Shared;
use crate::tls::{Failure, Session};

/// Where more bytes wait for the peer to read them, the sender of a call, answer or request waits.
pub(crate) const QUEUE_MAX: usize = 64 << 20;
/// Where the socket is full, what is held back is tried again after so many bytes more.
const FULL_STEP: usize = 32 << 10;
/// A receiver of memory files tells their sender each time that it has read so many bytes of them.
const TELL_RECEIVED: usize = 16 << 20;

/// How far a connection has come.
pub(crate) enum Reading {
    Dialling {
        dial: Box<Dial>,
        opening: Box<Opening>,
    },
    /// TLS is being agreed on.
    Securing {
        opening: Box<Opening>,
        deadline: Instant,
    },
    Handshake {
        machine: Box<Handshake>,
        deadline: Instant,
    },
    Open(Box<Decoder>),
    Closed,
}

/// What came beside bytes.
pub(crate) enum Came {
    File(OwnedFd),
    /// A descriptor for which this process had no room.
    Lost,
}

impl Reading {
    /// When the connection has to be further than this.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Reading::Dialling { dial, .. } => Some(dial.deadline),
            Reading::Securing { deadline, .. } | Reading::Handshake { deadline, .. } => Some(*deadline),
            Reading::Open(_) | Reading::Closed => None,
        }
    }
}

/// Why a message could not be handed to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendError {
    Closed,
    /// A signal arrived while the sender waited for room; nothing or an aborted message was sent.
    Signal,
}

/// One connection.
pub(crate) struct Link {
    pub(crate) token: u64,
    fd: OwnedFd,
    /// Who is at the other end; 0 until it has said so.
    peer: AtomicU32,
    /// It is a Unix socket, which can carry descriptors.
    is_local: AtomicBool,
    /// What encrypts it, where it is encrypted. Its lock is the last one taken, and is never held while anybody waits.
    session: OnceLock<Mutex<Session>>,
    /// This side dialled.
    pub(crate) dialled: bool,
    /// The token of the listener that accepted it, or 0.
    pub(crate) listener: u64,
    /// The address from which it came, where it was accepted over TCP.
    pub(crate) origin: OnceLock<SocketAddr>,
    pub(crate) reading: Mutex<Reading>,
    /// An event came while another thread was reading.
    pub(crate) again: AtomicBool,
    /// The peer has closed its end: what is left is to be read up to the end.
    pub(crate) hung_up: AtomicBool,
    open: AtomicBool,
    closed: AtomicBool,
    writer: Mutex<Queue>,
    /// Small messages of those who found the writer busy.
    pending: Mutex<Vec<Outgoing>>,
    queued: AtomicUsize,
    /// The socket is full: the next write is worth while once so many bytes wait, or there is room.
    full_until: AtomicUsize,
    /// Bytes in memory files that were sent, and of which the peer has not told that it has read of them.
    unread: AtomicUsize,
    /// Bytes in memory files that were read here, and of which the peer has not been told.
    untold: AtomicUsize,
    /// It is not read: too many calls of its peer have not begun here.
    pub(crate) paused: AtomicBool,
    room: Condvar,
    room_lock: Mutex<()>,
    poll: OnceLock<Arc<Poll>>,
    /// It is watched for room in the socket too, as something waits to be written or it is not open yet. Otherwise
    /// it is not, since each message that the peer reads would wake whoever waits. Set with the writer held.
    wants_room: AtomicBool,
    /// Held by who tells the poll what is watched for.
    interest: Mutex<()>,
    next_stream: AtomicU16,
    /// Held by who streams borrowed memory: the peer allows few messages under way at once.
    bulk: Mutex<()>,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) messages_sent: AtomicU64,
    /// When something came last, in microseconds since the start of the process.
    pub(crate) heard: AtomicU64,
    /// The first error of writing, which the system tells once.
    write_error: Mutex<Option<Errno>>,
    /// By which ways its bytes go.
    pub(crate) ways: Ways,
}

impl Link {
    pub(crate) fn new(
        token: u64,
        fd: OwnedFd,
        peer: ProcId,
        listener: u64,
        dialled: bool,
        direct: bool,
        reading: Reading,
    ) -> Link {
        let is_local = direct && is_unix(fd.as_fd());
        Link {
            token,
            fd,
            peer: AtomicU32::new(peer),
            is_local: AtomicBool::new(is_local),
            session: OnceLock::new(),
            dialled,
            listener,
            origin: OnceLock::new(),
            reading: Mutex::new(reading),
            again: AtomicBool::new(false),
            hung_up: AtomicBool::new(false),
            open: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            writer: Mutex::default(),
            pending: Mutex::default(),
            queued: AtomicUsize::new(0),
            full_until: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
            untold: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
            room: Condvar::new(),
            room_lock: Mutex::new(()),
            poll: OnceLock::new(),
            wants_room: AtomicBool::new(true),
            interest: Mutex::new(()),
            next_stream: AtomicU16::new(1),
            bulk: Mutex::new(()),
            bytes_sent: AtomicU64::new(0),
            messages_sent: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            write_error: Mutex::default(),
            ways: Ways::default(),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Puts another socket in the place of one that could not be connected.
    pub(crate) fn replace_fd(&self, fd: &OwnedFd) -> std::io::Result<()> {
        // SAFETY: both descriptors are open and belong to `self` and to the caller; the number of `self.fd` stays
        // valid throughout, as `dup3` replaces what it stands for in one step. Only the reader uses it before the
        // handshake has ended (rust/node/tests/tcp.rs).
        let result = unsafe { libc::dup3(fd.as_raw_fd(), self.fd.as_raw_fd(), libc::O_CLOEXEC) };
        if result < 0 {
            return Err(std::io::Error::last_os_error());
        }
        self.is_local.store(is_unix(self.fd()), Ordering::SeqCst);
        Ok(())
    }

    /// Tells which poll watches the connection, for reading and for room to write at first.
    pub(crate) fn watched_by(&self, poll: Arc<Poll>) {
        let _ = self.poll.set(poll);
    }

    /// Has the connection reported again if there is something to read.
    pub(crate) fn rearm(&self) {
        if let Some(poll) = self.poll.get() {
            let _interest = self.interest.lock();
            poll.rearm(self.fd(), self.token, self.wants_room.load(Ordering::SeqCst));
        }
    }

    /// Has the connection watched for room as long as something waits for it; the caller holds the writer.
    fn watch_for_room(&self, wanted: bool) {
        if self.wants_room.load(Ordering::Relaxed) != wanted
            && let Some(poll) = self.poll.get()
        {
            let _interest = self.interest.lock();
            self.wants_room.store(wanted, Ordering::SeqCst);
            poll.rearm(self.fd(), self.token, wanted);
        }
    }

    /// The peer is at the other end of a Unix socket itself, so that descriptors can be passed to it.
    pub(crate) fn is_local(&self) -> bool {
        self.is_local.load(Ordering::SeqCst)
    }

    /// Everything goes through a session of TLS from now on.
    pub(crate) fn secure(&self, session: Session) {
        let _ = self.session.set(Mutex::new(session));
    }

    pub(crate) fn is_secured(&self) -> bool {
        self.session.get().is_some()
    }

    /// Goes on agreeing on TLS; returns the exporter value of the session once that is done.
    pub(crate) fn agree(&self) -> Result<[u8; 32], Failure> {
        match self.session.get() {
            Some(session) => session.lock().agree(self.fd()),
            None => Ok([0; 32]),
        }
    }

    pub(crate) fn peer(&self) -> ProcId {
        self.peer.load(Ordering::Relaxed)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Whether a message that may be held back is not worth a write, as no more than `most` bytes wait, or the socket is full.
    pub(crate) fn may_hold(&self, most: usize) -> bool {
        self.queued_bytes() <= most.max(self.full_until.load(Ordering::Relaxed))
    }

    /// Whether the sender of a small message need not wait.
    pub(crate) fn has_room(&self) -> bool {
        self.queued_bytes() + self.unread.load(Ordering::Relaxed) <= QUEUE_MAX
    }

    /// The peer has read so many bytes of memory files.
    pub(crate) fn peer_has_read(&self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let left = |unread: usize| Some(unread.saturating_sub(bytes));
        let _ = self
            .unread
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        self.room.notify_all();
    }

    /// A memory file of so many bytes has come.
    pub(crate) fn has_read(&self, bytes: usize) {
        self.untold.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Tells the peer how many bytes of its memory files have been read, where these are many.
    pub(crate) fn tell_received(&self) {
        if self.untold.load(Ordering::Relaxed) >= TELL_RECEIVED {
            let bytes = self.untold.swap(0, Ordering::Relaxed) as u64;
            let encoded = frame::encode(Message::Received { bytes });
            self.send_owned(encoded.header, encoded.body.into_body(), false);
        }
    }

    /// The handshake has ended well: what has been queued is sent.
    pub(crate) fn opened(&self, peer: ProcId) {
        self.peer.store(peer, Ordering::Relaxed);
        if let Some(session) = self.session.get() {
            session.lock().trust();
        }
        self.open.store(true, Ordering::Release);
        self.flush();
    }

    /// Marks the connection as closed and shuts the socket down; true the first time.
    pub(crate) fn close(&self) -> bool {
        let first = !self.closed.swap(true, Ordering::SeqCst);
        if first && let Some(session) = self.session.get() {
            session.lock().close(self.fd());
        }
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
        self.room.notify_all();
        first
    }

    /// Sends bytes of the handshake, which always fit into the socket's buffer.
    pub(crate) fn send_raw(&self, bytes: &[u8]) -> bool {
        matches!(self.write(&[IoSlice::new(bytes)], None), Ok(n) if n == bytes.len())
    }

    /// Sends a message whose memory the core owns; never waits. A small one that is to be held back is queued.
    pub(crate) fn send_owned(&self, header: Header, body: Arc<Body>, hold: bool) {
        let total = body.size();
        let lengths = body.segments.iter().map(|s| s.len());
        if total <= INLINE_MAX {
            let mut bytes = frame::encode_head(header, lengths, &body.refs, None);
            body.segments
                .iter()
                .for_each(|s| bytes.extend_from_slice(s.as_slice()));
            let message = if header.is_control() {
                Outgoing::Control(bytes)
            } else {
                Outgoing::bytes(bytes)
            };
            self.enqueue(message, hold);
        } else {
            let stream = self.stream_id();
            let head = frame::encode_head(header, lengths, &body.refs, Some(stream));
            self.enqueue(Outgoing::stream(head, stream, body), false);
        }
    }

    /// Sends a message whose segments lie in memory of the caller; returns once they are not needed any more.
    ///
    /// A small one that is to be held back is queued. Waits for room where the peer reads too slowly; `signalled` is asked
    /// now and then whether to give up; without it, a small message does not wait.
    pub(crate) fn send_borrowed(
        &self,
        header: Header,
        segments: &[&[u8]],
        refs: &[RemoteRef],
        signalled: Option<&dyn Fn() -> bool>,
        hold: bool,
    ) -> Result<(), SendError> {
        let total: usize = segments.iter().map(|s| s.len()).sum();
        let lengths = segments.iter().map(|s| s.len());
        if total <= INLINE_MAX {
            if let Some(signalled) = signalled {
                self.await_room(signalled)?;
            }
            let mut bytes = frame::encode_head(header, lengths, refs, None);
            segments.iter().for_each(|s| bytes.extend_from_slice(s));
            self.enqueue(Outgoing::bytes(bytes), hold);
            return if self.is_closed() {
                Err(SendError::Closed)
            } else {
                Ok(())
            };
        }
        let signalled = signalled.unwrap_or(&|| false);
        let _bulk = loop {
            match self.bulk.try_lock_for(Duration::from_millis(20)) {
                Some(guard) => break guard,
                None if self.is_closed() => return Err(SendError::Closed),
                None if signalled() => return Err(SendError::Signal),
                None => {}
            }
        };
        let stream = self.stream_id();
        let head = frame::encode_head(header, lengths, refs, Some(stream));
        self.send_chunks(&head, stream, segments, signalled)
    }

    /// Sends a message whose long segments lie in a memory file; never waits.
    pub(crate) fn send_file(&self, shared: &Shared<'_>, name: FileName, fd: Arc<OwnedFd>) {
        let lengths = shared.segments.iter().map(|s| s.len());
        let is_inline = |(index, bytes): &(usize, &&[u8])| *index == 0 || bytes.len() < SHARED_FROM;
        let inline: Vec<&[u8]> = shared
            .segments
            .iter()
            .enumerate()
            .filter(is_inline)
            .map(|(_, bytes)| *bytes)
            .collect();
        let size = inline.iter().map(|s| s.len()).sum();
        let mut bytes = frame::encode_shared_head(shared.header, lengths, shared.refs, name, size);
        inline.iter().for_each(|s| bytes.extend_from_slice(s));
        self.bytes_sent
            .fetch_add(shared.file.len() as u64, Ordering::Relaxed);
        self.unread.fetch_add(shared.file.len(), Ordering::Relaxed);
        self.enqueue(Outgoing::with_file(bytes, fd), false);
    }

    /// Opens a memory file by the descriptor that the other end has of it.
    pub(crate) fn open_of_peer(&self, descriptor: u32) -> std::io::Result<OwnedFd> {
        crate::shared::open_of(&self.fd, descriptor)
    }

    /// Hands the peer the descriptor of a ring.
    pub(crate) fn send_ring(&self, file: OwnedFd) {
        self.enqueue(Outgoing::with_file(frame::encode_ring(), Arc::new(file)), false);
    }

    /// Reads bytes from the socket, and the descriptor that came with them.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Result<(usize, Option<Came>), Failure> {
        let received = self.receive_uncounted(buffer)?;
        self.ways.came_from_socket(received.0);
        Ok(received)
    }

    /// Does what `receive` does, for who may put the bytes aside.
    pub(crate) fn receive_uncounted(&self, buffer: &mut [u8]) -> Result<(usize, Option<Came>), Failure> {
        if let Some(session) = self.session.get() {
            return Ok((session.lock().receive(self.fd(), buffer)?, None));
        }
        if !self.is_local() {
            let (n, _) = rustix::net::recv(&self.fd, buffer, RecvFlags::DONTWAIT)?;
            return Ok((n, None));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.fd, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
        let file = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let lost = received.flags.contains(ReturnFlags::CTRUNC);
        let came = match file {
            Some(file) => Some(Came::File(file)),
            None => lost.then_some(Came::Lost),
        };
        Ok((received.bytes, came))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn stream_id(&self) -> u16 {
        self.next_stream.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits while too much waits for the peer to read it; `signalled` is asked now and then whether to give up.
    pub(crate) fn await_room(&self, signalled: &dyn Fn() -> bool) -> Result<(), SendError> {
        while !self.has_room() {
            if self.is_closed() {
                return Err(SendError::Closed);
            }
            if signalled() {
                return Err(SendError::Signal);
            }
            let mut guard = self.room_lock.lock();
            self.room.wait_for(&mut guard, Duration::from_millis(20));
        }
        Ok(())
    }

    fn enqueue(&self, message: Outgoing, hold: bool) {
        if self.is_closed() {
            return;
        }
        self.messages_sent.fetch_add(1, Ordering::Relaxed);
        if !hold
            && self.is_open()
            && let Some(mut writer) = self.writer.try_lock()
        {
            self.take_pending(&mut writer);
            self.queue_up(&mut writer, message);
            self.write_queue(&mut writer);
            drop(writer);
            self.flush_if_pending();
            return;
        }
        self.queued.fetch_add(message.owned_bytes(), Ordering::Relaxed);
        self.pending.lock().push(message);
        if !hold {
            self.flush();
        }
    }

    /// Queues a message, for who holds the writer.
    pub(crate) fn queue_up(&self, writer: &mut Queue, message: Outgoing) {
        self.queued.fetch_add(message.owned_bytes(), Ordering::Relaxed);
        writer.push(message);
    }

    fn take_pending(&self, writer: &mut Queue) {
        for message in self.pending.lock().drain(..) {
            writer.push(message);
        }
    }

    /// Writes what is queued, as far as the socket takes it.
    pub(crate) fn flush(&self) {
        if !self.is_open() {
            return;
        }
        while let Some(mut writer) = self.writer.try_lock() {
            self.take_pending(&mut writer);
            self.write_queue(&mut writer);
            drop(writer);
            if self.pending.lock().is_empty() {
                return;
            }
        }
    }

    fn flush_if_pending(&self) {
        if !self.pending.lock().is_empty() {
            self.flush();
        }
    }

    fn write_queue(&self, writer: &mut Queue) {
        let mut before = writer.owned_bytes();
        let write = |slices: &[IoSlice<'_>], file: Option<BorrowedFd<'_>>| self.write_either(slices, file);
        let mut result = writer.write(write, &self.bytes_sent);
        // What wakes may itself go through the ring, if the reader spins again, which may stop again.
        while let Some(queued) = self.queue_wake(writer) {
            before += queued;
            result = result.and_then(|()| writer.write(write, &self.bytes_sent));
        }
        let result = result.and_then(|()| self.send_encrypted());
        let written = before - writer.owned_bytes();
        if written > 0 {
            self.queued.fetch_sub(written, Ordering::Relaxed);
            self.room.notify_all();
        }
        let waits = result.unwrap_or_else(|error| {
            self.write_error.lock().get_or_insert(error);
            // The reader sees the end of the connection and reports it.
            let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
            false
        });
        let full_until = if writer.is_idle() {
            0
        } else {
            self.queued_bytes() + FULL_STEP
        };
        self.full_until.store(full_until, Ordering::Relaxed);
        self.watch_for_room(waits || !writer.is_idle());
    }

    /// Writes a frame, unless others are under way.
    pub(crate) fn write_if_idle(&self, frame: &[u8]) {
        if !self.is_open() || self.is_closed() {
            return;
        }
        let Some(mut writer) = self.writer.try_lock() else {
            return;
        };
        self.take_pending(&mut writer);
        self.write_queue(&mut writer);
        if writer.is_idle() {
            self.queue_up(&mut writer, Outgoing::bytes(frame.to_vec()));
            self.write_queue(&mut writer);
        }
        drop(writer);
        self.flush_if_pending();
    }

    /// Hands slices to the socket, through the session where there is one.
    pub(crate) fn write(&self, slices: &[IoSlice<'_>], file: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
        match self.session.get() {
            Some(session) => session.lock().send(self.fd(), slices),
            None => send_vectored(self.fd(), slices, file).inspect(|n| self.ways.went_through_socket(*n)),
        }
    }

    /// Writes what the session has encrypted already, as far as the socket takes it; true where some of it waits.
    fn send_encrypted(&self) -> Result<bool, Errno> {
        let Some(session) = self.session.get() else {
            return Ok(false);
        };
        match session.lock().send_waiting(self.fd()) {
            Ok(()) => Ok(false),
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Streams borrowed segments chunk by chunk; between chunks others may write.
    fn send_chunks(
        &self,
        head: &[u8],
        stream: u16,
        segments: &[&[u8]],
        signalled: &dyn Fn() -> bool,
    ) -> Result<(), SendError> {
        let mut cursor = Cursor::new(segments);
        let mut left: usize = segments.iter().map(|s| s.len()).sum();
        let mut begun = false;
        while left > 0 {
            let len = left.min(CHUNK_MAX);
            let mut writer = match self.lock_idle_writer(signalled) {
                Ok(writer) => writer,
                Err(error) => {
                    if begun && error == SendError::Signal {
                        self.enqueue(Outgoing::bytes(frame::encode_abort(stream).to_vec()), false);
                    }
                    return Err(error);
                }
            };
            let prefix = frame::encode_chunk_prefix(stream, len);
            let mut parts: Vec<&[u8]> = Vec::with_capacity(8);
            if !begun {
                parts.push(head);
                self.messages_sent.fetch_add(1, Ordering::Relaxed);
            }
            parts.push(&prefix);
            cursor.take(len, &mut parts);
            let sent = self.write_or_queue(&parts, &mut writer);
            self.take_pending(&mut writer);
            self.write_queue(&mut writer);
            drop(writer);
            self.flush_if_pending();
            sent?;
            begun = true;
            left -= len;
        }
        Ok(())
    }

    /// Locks the writer once nothing is queued in front.
    fn lock_idle_writer(
        &self,
        signalled: &dyn Fn() -> bool,
    ) -> Result<crate::sync::MutexGuard<'_, Queue>, SendError> {
        loop {
            if self.is_closed() {
                return Err(SendError::Closed);
            }
            if signalled() {
                return Err(SendError::Signal);
            }
            if self.is_open() {
                let mut writer = self.writer.lock();
                self.take_pending(&mut writer);
                self.write_queue(&mut writer);
                if writer.is_idle() {
                    return Ok(writer);
                }
                drop(writer);
                self.await_writable();
            } else {
                let mut guard = self.room_lock.lock();
                self.room.wait_for(&mut guard, Duration::from_millis(5));
            }
        }
    }

    /// Waits a while until the socket takes something; false where it does not.
    fn await_writable(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            &self.fd,
            rustix::event::PollFlags::OUT,
        )];
        let timeout = crate::poll::timespec(Duration::from_millis(50));
        matches!(
            rustix::event::poll(&mut fds, Some(&timeout)),
            Ok(1..) | Err(Errno::INTR)
        )
    }

    /// Writes all parts. Where the socket stays full, what is left is copied into the queue: the writer is not held
    /// for as long as the peer does not read, and who waits for it can give up.
    fn write_or_queue(&self, parts: &[&[u8]], writer: &mut Queue) -> Result<(), SendError> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            match self.write(rest, None) {
                Ok(n) => {
                    self.bytes_sent.fetch_add(n as u64, Ordering::Relaxed);
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(Errno::AGAIN) => {
                    if self.is_closed() {
                        return Err(SendError::Closed);
                    }
                    if !self.await_writable() {
                        let left = rest.iter().flat_map(|part| part.iter().copied()).collect();
                        self.queue_up(writer, Outgoing::bytes(left));
                        return Ok(());
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.write_error.lock().get_or_insert(error);
                    return Err(SendError::Closed);
                }
            }
        }
        Ok(())
    }

    /// Why the connection has ended, as far as writing to it has told.
    pub(crate) fn end_reason(&self) -> String {
        self.write_error
            .lock()
            .filter(|error| *error != Errno::PIPE)
            .map_or_else(|| "the connection ended".to_owned(), Node::broken)
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

pub(crate) fn is_unix(fd: BorrowedFd<'_>) -> bool {
    rustix::net::getsockname(fd).is_ok_and(|name| name.address_family() == rustix::net::AddressFamily::UNIX)
}

/// The most slices that one system call takes.
pub(crate) const SLICES_MAX: usize = 512;

/// Writes slices; a descriptor goes with the first byte, unless nothing is written at all.
pub(crate) fn send_vectored(
    fd: BorrowedFd<'_>,
    slices: &[IoSlice<'_>],
    file: Option<BorrowedFd<'_>>,
) -> Result<usize, Errno> {
    let slices = &slices[..slices.len().min(SLICES_MAX)];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let Some(file) = file else {
        return sendmsg(fd, slices, &mut SendAncillaryBuffer::default(), flags);
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(fd, slices, &mut control, flags)
}
