//! Turns the bytes of an authenticated peer into messages.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::body::{Body, Segment, View};
use crate::error::ProtocolError;
use crate::frame::{
    ABORTED, CHUNK_MAX, DELTA, FILE_NAME, FileName, HEAD_MAX, HEADER, Header, LISTENS, Layout, PREFIX,
    PUMPED, SHARED, STREAMED, STREAMS_MAX, TAKEN, UNMAPPED, decode_ref, kind, u16_at, u32_at, u64_at,
};
use crate::handshake::Authenticated;
use crate::ids::{ProcId, RefId};
use crate::message::{CallMode, Heartbeat, Member, Message, RefDelta, RefOp, Status, Unmapped, Withdrawal};

const STAGING: usize = 64 << 10;
/// A chunk with less than this left to come is read through the staging buffer, with what follows it.
const DIRECT_FROM: usize = 16 << 10;

/// Descriptors that may have come whose frames have not.
const FILES_MAX: usize = 8;

/// The descriptor of a memory file that came beside the bytes, or the news that one was lost.
pub trait Attachment: Send {
    /// Checks that `len` bytes of the memory file can be used, and maps them.
    fn open(self: Box<Self>, file: FileName, len: u64) -> Result<Arc<dyn View>, ProtocolError>;

    /// The descriptor itself; none where it was lost.
    fn descriptor(self: Box<Self>) -> Option<OwnedFd>;
}

/// A message whose segments are still coming.
struct Partial {
    header: Header,
    body: Body,
    lengths: Vec<u64>,
    /// Filled bytes of the last segment in `body`.
    filled: usize,
    /// Bytes of all segments still to come.
    missing: u64,
    /// There was no memory for so many bytes: the body is lost, and what still comes of it is passed over.
    lost: Option<u64>,
}

impl Partial {
    fn new(header: Header, refs: Vec<crate::ids::RemoteRef>, lengths: Vec<u64>) -> Partial {
        let missing = lengths.iter().sum();
        let body = Body {
            refs,
            segments: Vec::new(),
        };
        Partial {
            header,
            body,
            lengths,
            filled: 0,
            missing,
            lost: None,
        }
    }

    /// There is no memory for the body: lets go of what has come of it, where the message can do without.
    fn give_up_for(&mut self, error: ProtocolError) -> Result<(), ProtocolError> {
        match error {
            ProtocolError::NoMemory(len) if may_lose_body(self.header.kind) => {
                self.body.segments = Vec::new();
                self.lost = Some(len);
                Ok(())
            }
            error => Err(error),
        }
    }

    /// The part of the current segment that is still empty; the segment is allocated when it is reached.
    fn room(&mut self) -> Result<&mut [u8], ProtocolError> {
        let full = self.body.segments.last().is_none_or(|s| s.len() == self.filled);
        if full {
            while let Some(&len) = self.lengths.get(self.body.segments.len()) {
                let size = usize::try_from(len).map_err(|_| ProtocolError::NoMemory(len))?;
                self.body
                    .segments
                    .push(Segment::zeroed(size).map_err(|_| ProtocolError::NoMemory(len))?);
                self.filled = 0;
                if len > 0 {
                    break;
                }
            }
        }
        let filled = self.filled;
        Ok(self
            .body
            .segments
            .last_mut()
            .map(|s| &mut s.as_mut_slice()[filled..])
            .unwrap_or_default())
    }

    fn filled(&mut self, n: usize) {
        self.filled += n;
        self.missing -= n as u64;
    }

    fn finish(mut self) -> Result<(Header, Body), ProtocolError> {
        if let Some(len) = self.lost {
            return Ok((self.header, Body::lost(self.body.refs, len)));
        }
        while self.body.segments.len() < self.lengths.len() {
            self.body.segments.push(Segment::Heap(Vec::new()));
        }
        Ok((self.header, self.body))
    }
}

/// Decodes the byte stream of one authenticated connection.
///
/// The caller reads from the socket into [`Decoder::spare`], reports how much with [`Decoder::advance`] and takes
/// messages from [`Decoder::poll_message`] until there is none. Large segments are read straight to where they stay.
///
/// ```text
///            prefix of a head frame            whole frame there
///   Frames ──────────────────────────► Frames ──────────────────► message, or a stream is opened
///     │  ▲
///     │  └───────────── chunk complete ─────────────┐
///     └── prefix of a chunk ──► InChunk(left) ──────┘
/// ```
pub struct Decoder {
    authenticated: Authenticated,
    staging: Vec<u8>,
    start: usize,
    end: usize,
    streams: FxHashMap<u16, Partial>,
    /// The stream and the bytes left of the chunk that is being read.
    chunk: Option<(u16, usize)>,
    /// The last `spare` was the stream's own memory.
    direct: bool,
    message_max: u64,
    /// What came beside the bytes, in the order of the frames that it belongs to.
    files: VecDeque<Box<dyn Attachment>>,
}

impl Decoder {
    /// Makes the decoder of a peer that has proved itself; messages over `message_max` bytes are refused.
    pub fn new(authenticated: Authenticated, message_max: u64) -> Decoder {
        Decoder {
            authenticated,
            staging: vec![0; STAGING],
            start: 0,
            end: 0,
            streams: FxHashMap::default(),
            chunk: None,
            direct: false,
            message_max,
            files: VecDeque::new(),
        }
    }

    /// A descriptor came with the bytes that are reported next.
    pub fn attach(&mut self, file: Box<dyn Attachment>) -> Result<(), ProtocolError> {
        if self.files.len() == FILES_MAX {
            return Err(ProtocolError::TooManyFiles(FILES_MAX));
        }
        self.files.push_back(file);
        Ok(())
    }

    pub fn peer(&self) -> &Authenticated {
        &self.authenticated
    }

    /// Where the next bytes of the socket belong; never empty.
    pub fn spare(&mut self) -> Result<&mut [u8], ProtocolError> {
        self.direct = false;
        if let Some((stream, left)) = self.chunk
            && self.start == self.end
            && left >= DIRECT_FROM
        {
            let partial = self
                .streams
                .get_mut(&stream)
                .ok_or(ProtocolError::UnknownStream(stream))?;
            let room = match partial.lost {
                Some(_) => 0,
                None => match partial.room() {
                    Ok(room) => room.len(),
                    Err(error) => {
                        partial.give_up_for(error)?;
                        0
                    }
                },
            };
            if room >= DIRECT_FROM {
                self.direct = true;
                // Reborrowed: the borrow checker does not see that this branch returns.
                let partial = self
                    .streams
                    .get_mut(&stream)
                    .ok_or(ProtocolError::UnknownStream(stream))?;
                let n = room.min(left);
                return Ok(&mut partial.room()?[..n]);
            }
        }
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if self.staging.len() > 4 * STAGING {
                self.staging = vec![0; STAGING];
            }
        } else if self.start > 0 && self.staging.len() - self.end < STAGING / 2 {
            self.staging.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.staging.len() {
            let grown = (self.staging.len() * 2).min(HEAD_MAX + PREFIX + STAGING);
            self.staging.resize(grown, 0);
        }
        Ok(&mut self.staging[self.end..])
    }

    /// Tells that `n` bytes were read into the last `spare`.
    pub fn advance(&mut self, n: usize) {
        if !self.direct {
            self.end += n;
            return;
        }
        if let Some((stream, left)) = &mut self.chunk {
            *left -= n;
            if let Some(partial) = self.streams.get_mut(stream) {
                partial.filled(n);
            }
        }
    }

    /// Takes the next whole message.
    pub fn poll_message(&mut self) -> Result<Option<Message>, ProtocolError> {
        loop {
            if let Some((stream, left)) = self.chunk {
                if !self.fill_chunk(stream, left)? {
                    return Ok(None);
                }
                self.chunk = None;
                if self.streams.get(&stream).is_some_and(|p| p.missing == 0)
                    && let Some(partial) = self.streams.remove(&stream)
                {
                    let (header, body) = partial.finish()?;
                    return message(header, body).map(Some);
                }
                continue;
            }
            let have = self.end - self.start;
            if have < PREFIX {
                return Ok(None);
            }
            let at = self.start;
            let len = u32_at(&self.staging, at) as usize;
            let (kind, flags) = (self.staging[at + 4], self.staging[at + 5]);
            let stream = u16_at(&self.staging, at + 6);
            if kind == kind::CHUNK {
                self.start += PREFIX;
                self.open_chunk(stream, len, flags)?;
                continue;
            }
            if len > HEAD_MAX {
                return Err(ProtocolError::FrameTooLarge(len as u64, HEAD_MAX as u64));
            }
            if have < PREFIX + len {
                return Ok(None);
            }
            self.start += PREFIX + len;
            if let Some(message) = self.head_frame(at, len, kind, flags, stream)? {
                return Ok(Some(message));
            }
        }
    }

    fn open_chunk(&mut self, stream: u16, len: usize, flags: u8) -> Result<(), ProtocolError> {
        if flags & !ABORTED != 0 {
            return Err(ProtocolError::UnknownFlags(flags));
        }
        let Some(partial) = self.streams.get(&stream) else {
            return Err(ProtocolError::UnknownStream(stream));
        };
        if flags & ABORTED != 0 {
            self.streams.remove(&stream);
            return if len == 0 {
                Ok(())
            } else {
                Err(ProtocolError::ChunkOverrun(len, 0))
            };
        }
        if len > CHUNK_MAX {
            return Err(ProtocolError::FrameTooLarge(len as u64, CHUNK_MAX as u64));
        }
        if len as u64 > partial.missing || len == 0 {
            return Err(ProtocolError::ChunkOverrun(len, partial.missing));
        }
        self.chunk = Some((stream, len));
        Ok(())
    }

    /// Moves staged bytes into the stream; true once the chunk is whole.
    fn fill_chunk(&mut self, stream: u16, mut left: usize) -> Result<bool, ProtocolError> {
        let partial = self
            .streams
            .get_mut(&stream)
            .ok_or(ProtocolError::UnknownStream(stream))?;
        while left > 0 && self.start < self.end {
            let most = left.min(self.end - self.start);
            let n = if partial.lost.is_some() {
                most
            } else {
                match partial.room() {
                    Ok(room) => {
                        let n = room.len().min(most);
                        room[..n].copy_from_slice(&self.staging[self.start..self.start + n]);
                        n
                    }
                    Err(error) => {
                        partial.give_up_for(error)?;
                        continue;
                    }
                }
            };
            partial.filled(n);
            self.start += n;
            left -= n;
        }
        self.chunk = Some((stream, left));
        Ok(left == 0)
    }

    fn head_frame(
        &mut self,
        at: usize,
        len: usize,
        kind: u8,
        flags: u8,
        stream: u16,
    ) -> Result<Option<Message>, ProtocolError> {
        if !matches!(flags, 0 | STREAMED | SHARED) {
            return Err(ProtocolError::UnknownFlags(flags));
        }
        if !(kind::CALL..=kind::RING).contains(&kind) || kind == kind::CHUNK {
            return Err(ProtocolError::UnknownKind(kind));
        }
        let frame = &self.staging[at..at + PREFIX + len];
        if frame.len() < HEADER {
            return Err(ProtocolError::Truncated("header"));
        }
        let header = Header {
            kind,
            id: u64_at(frame, 8),
            a: u64_at(frame, 16),
            b: u32_at(frame, 24),
            c: u32_at(frame, 28),
        };
        let (nseg, nrefs) = (u32_at(frame, 32) as usize, u32_at(frame, 36) as usize);
        let tables = nseg
            .checked_mul(8)
            .and_then(|n| nrefs.checked_mul(16).and_then(|m| n.checked_add(m)))
            .ok_or(ProtocolError::Truncated("tables"))?;
        if frame.len() - HEADER < tables {
            return Err(ProtocolError::Truncated("tables"));
        }
        let lengths: Vec<u64> = (0..nseg).map(|i| u64_at(frame, HEADER + 8 * i)).collect();
        let total = lengths
            .iter()
            .try_fold(0u64, |sum, &len| sum.checked_add(len))
            .unwrap_or(u64::MAX);
        if total > self.message_max {
            return Err(ProtocolError::MessageTooLarge(total, self.message_max));
        }
        let refs = (0..nrefs)
            .map(|i| decode_ref(frame, HEADER + 8 * nseg + 16 * i))
            .collect();
        if flags & STREAMED != 0 {
            if frame.len() != HEADER + tables || total == 0 {
                return Err(ProtocolError::Truncated("stream head"));
            }
            if self.streams.len() == STREAMS_MAX {
                return Err(ProtocolError::TooManyStreams(STREAMS_MAX));
            }
            if self.streams.contains_key(&stream) {
                return Err(ProtocolError::StreamReused(stream));
            }
            self.streams.insert(stream, Partial::new(header, refs, lengths));
            return Ok(None);
        }
        if flags & SHARED != 0 {
            let file = self.files.pop_front().ok_or(ProtocolError::NoFile)?;
            let rest = &frame[HEADER + tables..];
            let body = shared_body(rest, &lengths, refs, file, may_lose_body(kind))?;
            return message(header, body).map(Some);
        }
        if (frame.len() - HEADER - tables) as u64 != total {
            return Err(ProtocolError::Truncated("segments"));
        }
        if kind == kind::RING {
            let file = self.files.pop_front().ok_or(ProtocolError::NoFile)?;
            return Ok(Some(Message::Ring {
                file: file.descriptor(),
            }));
        }
        let mut segments = Vec::with_capacity(nseg);
        let mut from = HEADER + tables;
        for &len in &lengths {
            let bytes = &frame[from..from + len as usize];
            segments.push(Segment::copy_of(bytes).map_err(|_| ProtocolError::NoMemory(len))?);
            from += len as usize;
        }
        message(header, Body { refs, segments }).map(Some)
    }
}

/// Whether a message can do without its body: who waits for its end is told that there was no memory for it.
fn may_lose_body(kind: u8) -> bool {
    matches!(kind, kind::CALL | kind::RESULT)
}

/// Puts a body together from what follows the tables of its frame and from its memory file.
fn shared_body(
    rest: &[u8],
    lengths: &[u64],
    refs: Vec<crate::ids::RemoteRef>,
    file: Box<dyn Attachment>,
    may_lose: bool,
) -> Result<Body, ProtocolError> {
    let layout = Layout::of(lengths.iter().copied()).ok_or(ProtocolError::Truncated("segments"))?;
    if rest.len() < FILE_NAME || (rest.len() - FILE_NAME) as u64 != layout.inline || layout.shared == 0 {
        return Err(ProtocolError::Truncated("segments"));
    }
    let name = FileName {
        number: u64_at(rest, 0),
        inode: u64_at(rest, 8),
        descriptor: u32_at(rest, 16),
    };
    let view = match file.open(name, layout.shared) {
        Err(ProtocolError::NoMemory(len)) if may_lose => return Ok(Body::lost(refs, len)),
        opened => opened?,
    };
    let mut inline = &rest[FILE_NAME..];
    let mut segments = Vec::with_capacity(lengths.len());
    for (&len, offset) in lengths.iter().zip(&layout.offsets) {
        let size = usize::try_from(len).map_err(|_| ProtocolError::NoMemory(len))?;
        segments.push(match offset {
            Some(from) => {
                let from = usize::try_from(*from).map_err(|_| ProtocolError::NoMemory(len))?;
                Segment::Shared(view.clone(), from..from + size)
            }
            None => {
                let (bytes, rest) = inline.split_at(size);
                inline = rest;
                Segment::copy_of(bytes).map_err(|_| ProtocolError::NoMemory(len))?
            }
        });
    }
    Ok(Body { refs, segments })
}

fn message(header: Header, body: Body) -> Result<Message, ProtocolError> {
    let Header { id, a, b, c, .. } = header;
    Ok(match header.kind {
        kind::CALL => Message::Call {
            id,
            mode: call_mode(b)?,
            lane: a,
            body,
        },
        kind::RESULT => Message::Result {
            id,
            status: status(b)?,
            body: Arc::new(body),
        },
        kind::DONE => Message::Done { id },
        kind::REF_OP => Message::RefOp {
            req: id,
            op: ref_op(c)?,
            target: RefId { whence: b, id: a },
            body,
        },
        kind::WITHDRAW => Message::Withdraw {
            req: id,
            target: RefId { whence: b, id: a },
            how: withdrawal(c)?,
        },
        kind::UNMAPPED => Message::Unmapped {
            files: unmapped(&body)?,
        },
        kind::CONFIRM => Message::Confirm { taken: taken(&body)? },
        kind::REFS => Message::Refs {
            deltas: deltas(&body)?,
        },
        kind::INTERRUPT => Message::Interrupt,
        kind::EXIT => Message::Exit,
        kind::JOIN => Message::Join {
            member: member(process(id)?, b, &body)?,
        },
        kind::LEAVE => Message::Leave {
            pid: process(id)?,
            reason: body.text(),
        },
        kind::READY => Message::Ready {
            member: member(process(id)?, b, &body)?,
        },
        kind::PING => Message::Ping { tick: id },
        kind::PONG => Message::Pong { tick: id },
        kind::STACKS => Message::Stacks { req: id },
        kind::RECEIVED => Message::Received { bytes: id },
        kind::OBSERVE => Message::Observe { req: id },
        kind::LOOK_UP => Message::LookUp { req: id, pid: b },
        kind::HEARTBEAT => Message::Heartbeat(Heartbeat {
            interval_ms: a,
            timeout_ms: b,
            listens: c & LISTENS != 0,
            pumped: c & PUMPED != 0,
        }),
        other => return Err(ProtocolError::UnknownKind(other)),
    })
}

fn process(raw: u64) -> Result<ProcId, ProtocolError> {
    ProcId::try_from(raw).map_err(|_| ProtocolError::UnknownValue("process", u32::MAX))
}

fn call_mode(raw: u32) -> Result<CallMode, ProtocolError> {
    [CallMode::Fetch, CallMode::Future, CallMode::Do]
        .into_iter()
        .find(|m| *m as u32 == raw)
        .ok_or(ProtocolError::UnknownValue("call mode", raw))
}

fn status(raw: u32) -> Result<Status, ProtocolError> {
    use Status::*;
    [
        Value, Error, Cancelled, Yes, No, AlreadySet, UnknownRef, Exited, Closed, Lost,
    ]
    .into_iter()
    .find(|s| *s as u32 == raw)
    .ok_or(ProtocolError::UnknownValue("status", raw))
}

fn ref_op(raw: u32) -> Result<RefOp, ProtocolError> {
    use RefOp::*;
    [Fetch, Wait, IsReady, Put, Cancel, Create, Recount]
        .into_iter()
        .chain([ChannelCreate, ChannelPut, ChannelTake, ChannelFetch, ChannelWait])
        .chain([ChannelIsReady, ChannelIsOpen, ChannelClose, Recall])
        .chain([ChannelPutOfMany, ChannelPutOnCredit, ChannelCredit])
        .chain([ChannelRecallCredit, ChannelReturnCredit])
        .find(|o| *o as u32 == raw)
        .ok_or(ProtocolError::UnknownValue("operation", raw))
}

fn withdrawal(raw: u32) -> Result<Withdrawal, ProtocolError> {
    [Withdrawal::IfWaiting, Withdrawal::Undo]
        .into_iter()
        .find(|how| *how as u32 == raw)
        .ok_or(ProtocolError::UnknownValue("withdrawal", raw))
}

fn taken(body: &Body) -> Result<Vec<(RefId, u64)>, ProtocolError> {
    let bytes = body.segments.first().map(Segment::as_slice).unwrap_or_default();
    if !bytes.len().is_multiple_of(TAKEN) {
        return Err(ProtocolError::Truncated("confirmed items"));
    }
    let entry = |d: &[u8]| {
        let (whence, id) = (u32_at(d, 0), u64_at(d, 4));
        (RefId { whence, id }, u64_at(d, 12))
    };
    Ok(bytes.chunks_exact(TAKEN).map(entry).collect())
}

fn unmapped(body: &Body) -> Result<Vec<Unmapped>, ProtocolError> {
    let bytes = body.segments.first().map(Segment::as_slice).unwrap_or_default();
    if !bytes.len().is_multiple_of(UNMAPPED) {
        return Err(ProtocolError::Truncated("unmapped files"));
    }
    let entry = |d: &[u8]| {
        let copied = match u32_at(d, 8) {
            0 => false,
            1 => true,
            other => return Err(ProtocolError::UnknownValue("state of a memory file", other)),
        };
        Ok(Unmapped {
            file: u64_at(d, 0),
            copied,
        })
    };
    bytes.chunks_exact(UNMAPPED).map(entry).collect()
}

fn deltas(body: &Body) -> Result<Vec<RefDelta>, ProtocolError> {
    let bytes = body.segments.first().map(Segment::as_slice).unwrap_or_default();
    if !bytes.len().is_multiple_of(DELTA) {
        return Err(ProtocolError::Truncated("reference counts"));
    }
    Ok(bytes
        .chunks_exact(DELTA)
        .map(|d| RefDelta {
            id: RefId {
                whence: u32_at(d, 0),
                id: u64_at(d, 4),
            },
            holder: u32_at(d, 12),
            giver: u32_at(d, 16),
            delta: u32_at(d, 20).cast_signed(),
        })
        .collect())
}

fn processes(bytes: &[u8]) -> Result<Vec<ProcId>, ProtocolError> {
    if !bytes.len().is_multiple_of(4) {
        return Err(ProtocolError::Truncated("processes"));
    }
    Ok((0..bytes.len()).step_by(4).map(|at| u32_at(bytes, at)).collect())
}

fn member(pid: u32, ospid: u32, body: &Body) -> Result<Member, ProtocolError> {
    let [address, inst, host, connected, config] = body.segments.as_slice() else {
        return Err(ProtocolError::Truncated("member"));
    };
    let text = |segment: &Segment| {
        String::from_utf8(segment.as_slice().to_vec()).map_err(|_| ProtocolError::NotText("member"))
    };
    Ok(Member {
        pid,
        ospid,
        address: text(address)?,
        inst: inst
            .as_slice()
            .try_into()
            .map_err(|_| ProtocolError::Truncated("instance tag"))?,
        host: text(host)?,
        connected: processes(connected.as_slice())?,
        config: config.as_slice().to_vec(),
    })
}
