//! Messages that wait to be written: small ones in front, streams a chunk at a time.

use crate::sync::atomic::{AtomicU64, Ordering};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use pydist_proto::body::Body;
use pydist_proto::frame::{self, CHUNK_MAX};
use rustix::io::Errno;

/// Whole messages joined into one system call.
const BATCH: usize = 64;

/// Room for so many messages is kept once all are written.
const ROOM_KEPT: usize = 4096;

/// Where more bytes wait than this, what is said about the connection itself goes ahead of them.
const OVERTAKE_FROM: usize = 1 << 20;

/// A message that is to be written.
pub(crate) enum Outgoing {
    /// A whole message, and the descriptor that goes with its first byte.
    Bytes(Vec<u8>, Option<Arc<OwnedFd>>),
    /// A whole message that need not keep its place behind those before it.
    Control(Vec<u8>),
    Stream(Stream),
}

impl Outgoing {
    pub(crate) fn bytes(bytes: Vec<u8>) -> Outgoing {
        Outgoing::Bytes(bytes, None)
    }

    pub(crate) fn with_file(bytes: Vec<u8>, file: Arc<OwnedFd>) -> Outgoing {
        Outgoing::Bytes(bytes, Some(file))
    }

    pub(crate) fn stream(head: Vec<u8>, stream: u16, body: Arc<Body>) -> Outgoing {
        Outgoing::Stream(Stream {
            head: Some(head),
            stream,
            body,
            segment: 0,
            offset: 0,
        })
    }

    /// The memory that it holds until it is written.
    pub(crate) fn owned_bytes(&self) -> usize {
        match self {
            Outgoing::Bytes(bytes, _) | Outgoing::Control(bytes) => bytes.len(),
            Outgoing::Stream(stream) => stream.owned_bytes(),
        }
    }
}

/// A message whose body is written in chunks.
pub(crate) struct Stream {
    head: Option<Vec<u8>>,
    stream: u16,
    body: Arc<Body>,
    segment: usize,
    offset: usize,
}

impl Stream {
    fn owned_bytes(&self) -> usize {
        self.head.as_ref().map_or(0, Vec::len)
    }

    /// Takes the next chunk, at most `CHUNK_MAX` bytes of one segment, as a range of that segment.
    fn next_chunk(&mut self) -> Option<Chunk> {
        let segments = &self.body.segments;
        while segments.get(self.segment).is_some_and(|s| s.len() == self.offset) {
            self.segment += 1;
            self.offset = 0;
        }
        let segment = segments.get(self.segment)?;
        let len = (segment.len() - self.offset).min(CHUNK_MAX);
        let mut prefix = self.head.take().unwrap_or_default();
        prefix.extend_from_slice(&frame::encode_chunk_prefix(self.stream, len));
        let chunk = Chunk {
            prefix,
            body: self.body.clone(),
            segment: self.segment,
            from: self.offset,
            len,
            written: 0,
        };
        self.offset += len;
        Some(chunk)
    }
}

/// What has been begun and must be written before anything else.
struct Chunk {
    prefix: Vec<u8>,
    body: Arc<Body>,
    segment: usize,
    from: usize,
    len: usize,
    written: usize,
}

impl Chunk {
    fn slices(&self) -> [&[u8]; 2] {
        let data = &self.body.segments[self.segment].as_slice()[self.from..self.from + self.len];
        if self.written < self.prefix.len() {
            [&self.prefix[self.written..], data]
        } else {
            [&[], &data[self.written - self.prefix.len()..]]
        }
    }

    fn is_written(&self) -> bool {
        self.written == self.prefix.len() + self.len
    }
}

/// The messages of one connection that wait to be written.
#[derive(Default)]
pub(crate) struct Queue {
    small: VecDeque<(Vec<u8>, Option<Arc<OwnedFd>>)>,
    /// Bytes of the first small message that are written already.
    written: usize,
    /// So many messages in front are to stay there: control messages, and those that they did not overtake.
    ahead: usize,
    chunk: Option<Chunk>,
    streams: VecDeque<Stream>,
    owned: usize,
}

impl Queue {
    pub(crate) fn push(&mut self, message: Outgoing) {
        self.owned += message.owned_bytes();
        match message {
            Outgoing::Bytes(bytes, file) => self.small.push_back((bytes, file)),
            Outgoing::Control(bytes) if self.owned > OVERTAKE_FROM => {
                let begun = usize::from(self.written > 0);
                let at = self.ahead.max(begun).min(self.small.len());
                self.small.insert(at, (bytes, None));
                self.ahead = at + 1;
            }
            Outgoing::Control(bytes) => {
                self.small.push_back((bytes, None));
                self.ahead = self.small.len();
            }
            Outgoing::Stream(stream) => self.streams.push_back(stream),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.small.is_empty() && self.chunk.is_none() && self.streams.is_empty()
    }

    /// The memory of messages that are not written yet, without the bodies of streams.
    pub(crate) fn owned_bytes(&self) -> usize {
        self.owned
    }

    /// Writes as much as the socket takes; an error means that the connection is broken.
    pub(crate) fn write(
        &mut self,
        mut send: impl FnMut(&[IoSlice<'_>], Option<BorrowedFd<'_>>) -> Result<usize, Errno>,
        sent: &AtomicU64,
    ) -> Result<(), Errno> {
        loop {
            let result = if let Some(chunk) = &mut self.chunk {
                let [first, second] = chunk.slices();
                let result = send(&[IoSlice::new(first), IoSlice::new(second)], None);
                if let Ok(n) = result {
                    chunk.written += n;
                    if chunk.is_written() {
                        self.chunk = None;
                    }
                }
                result
            } else if !self.small.is_empty() {
                self.write_small(&mut send)
            } else if let Some(mut stream) = self.streams.pop_front() {
                self.owned -= stream.owned_bytes();
                if let Some(chunk) = stream.next_chunk() {
                    self.chunk = Some(chunk);
                    self.streams.push_front(stream);
                }
                continue;
            } else {
                self.small.shrink_to(ROOM_KEPT);
                return Ok(());
            };
            match result {
                Ok(n) => {
                    sent.fetch_add(n as u64, Ordering::Relaxed);
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn write_small(
        &mut self,
        send: &mut impl FnMut(&[IoSlice<'_>], Option<BorrowedFd<'_>>) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        // A descriptor goes with the first byte of its message, which is the first of what is written together.
        let file = self.small[0].1.as_ref().filter(|_| self.written == 0);
        let file = file.map(|file| file.as_fd());
        let n = if self.small.len() == 1 {
            send(&[IoSlice::new(&self.small[0].0[self.written..])], file)?
        } else {
            let mut slices = Vec::with_capacity(self.small.len().min(BATCH));
            slices.push(IoSlice::new(&self.small[0].0[self.written..]));
            let rest = self.small.iter().skip(1).take(BATCH - 1);
            let rest = rest.take_while(|(_, file)| file.is_none());
            slices.extend(rest.map(|(bytes, _)| IoSlice::new(bytes)));
            send(&slices, file)?
        };
        self.written += n;
        while let Some((first, _)) = self.small.front() {
            if self.written < first.len() {
                break;
            }
            self.written -= first.len();
            self.owned -= first.len();
            self.small.pop_front();
            self.ahead = self.ahead.saturating_sub(1);
        }
        Ok(n)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn message(name: u8, len: usize) -> Outgoing {
        Outgoing::bytes(vec![name; len])
    }

    /// Writes what is queued to a socket that takes so many bytes; returns the names of the bytes, each once in a row.
    fn written(queue: &mut Queue, mut room: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let sent = AtomicU64::new(0);
        let socket = |slices: &[IoSlice<'_>], _: Option<BorrowedFd<'_>>| {
            if room == 0 {
                return Err(Errno::AGAIN);
            }
            let before = room;
            for slice in slices {
                let n = slice.len().min(room);
                out.extend_from_slice(&slice[..n]);
                room -= n;
            }
            Ok(before - room)
        };
        queue.write(socket, &sent).unwrap();
        out.dedup();
        out
    }

    /// F20: what is said of the connection itself is not stuck behind what waits, but cuts nothing in two.
    #[test]
    fn control_messages_go_ahead_of_what_waits() {
        let mut queue = Queue::default();
        for name in [1, 2, 3] {
            queue.push(message(name, OVERTAKE_FROM));
        }
        assert_eq!(written(&mut queue, 100), [1]);
        queue.push(Outgoing::Control(vec![11; 40]));
        queue.push(message(4, 40));
        queue.push(Outgoing::Control(vec![12; 40]));
        // The first message ends first; then they keep their own order.
        assert_eq!(written(&mut queue, OVERTAKE_FROM - 100 + 60), [1, 11, 12]);
        queue.push(Outgoing::Control(vec![13; 40]));
        assert_eq!(written(&mut queue, usize::MAX), [12, 13, 2, 3, 4]);
        assert!(queue.is_idle());
        assert_eq!((queue.owned, queue.ahead), (0, 0));
    }

    #[test]
    fn control_messages_never_overtake_each_other() {
        let mut queue = Queue::default();
        queue.push(message(1, 1000));
        queue.push(Outgoing::Control(vec![11; 40]));
        queue.push(message(2, OVERTAKE_FROM));
        queue.push(Outgoing::Control(vec![12; 40]));
        queue.push(message(3, 40));
        queue.push(Outgoing::Control(vec![13; 40]));
        assert_eq!(written(&mut queue, usize::MAX), [1, 11, 12, 13, 2, 3]);
    }

    #[test]
    fn where_little_waits_control_messages_keep_their_place() {
        let mut queue = Queue::default();
        queue.push(message(1, 1000));
        queue.push(Outgoing::Control(vec![11; 40]));
        queue.push(message(2, 40));
        assert_eq!(written(&mut queue, usize::MAX), [1, 11, 2]);
    }
}
