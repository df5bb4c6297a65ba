//! Frames: the bytes of a message on the wire.
//!
//! ```text
//! head frame   len u32 | kind u8 | flags u8 | stream u16 | id u64 | a u64 | b u32 | c u32 | nseg u32 | nrefs u32
//!              segment lengths u64 × nseg | references (owner u32, whence u32, id u64) × nrefs
//!              memory file (number u64, inode u64, descriptor u32), where SHARED is set
//!              segments, unless STREAMED is set or they lie in the memory file
//! chunk frame  len u32 | CHUNK | flags u8 | stream u16 | bytes
//! ```
//! All numbers are little-endian. `len` counts the bytes behind the first eight.

use crate::body::{Body, Segment};
use crate::ids::{ProcId, RefId, RemoteRef};
use crate::message::{Heartbeat, Member, Message, RefDelta, RefOp, Status, Unmapped};

/// The bytes that every frame starts with.
pub const PREFIX: usize = 8;
/// The bytes of a head frame in front of its tables.
pub const HEADER: usize = 40;
/// Larger bodies are streamed in chunks.
pub const INLINE_MAX: usize = 64 << 10;
/// The largest chunk.
pub const CHUNK_MAX: usize = 1 << 20;
/// The largest head frame: its tables grow with the number of buffers and references.
pub const HEAD_MAX: usize = 16 << 20;
/// The most that the tables of a message take; beside them a head frame holds short segments.
pub const TABLES_MAX: usize = 8 << 20;
/// Messages that may be under way on one link at once.
pub const STREAMS_MAX: usize = 16;

pub(crate) mod kind {
    pub(crate) const CALL: u8 = 1;
    pub(crate) const RESULT: u8 = 2;
    pub(crate) const DONE: u8 = 3;
    pub(crate) const REF_OP: u8 = 4;
    pub(crate) const WITHDRAW: u8 = 5;
    pub(crate) const REFS: u8 = 6;
    pub(crate) const INTERRUPT: u8 = 7;
    pub(crate) const EXIT: u8 = 8;
    pub(crate) const JOIN: u8 = 9;
    pub(crate) const LEAVE: u8 = 10;
    pub(crate) const READY: u8 = 11;
    pub(crate) const PING: u8 = 12;
    pub(crate) const PONG: u8 = 13;
    pub(crate) const CONFIRM: u8 = 14;
    pub(crate) const CHUNK: u8 = 15;
    pub(crate) const UNMAPPED: u8 = 16;
    pub(crate) const HEARTBEAT: u8 = 17;
    pub(crate) const STACKS: u8 = 18;
    pub(crate) const RECEIVED: u8 = 19;
    pub(crate) const OBSERVE: u8 = 20;
    pub(crate) const LOOK_UP: u8 = 21;
    pub(crate) const RING: u8 = 22;
}

/// In a heartbeat: the sender wants to hear something at each interval.
pub(crate) const LISTENS: u32 = 1;
/// In a heartbeat: what the sender says passes through Python.
pub(crate) const PUMPED: u32 = 2;

/// The bytes of one changed count.
pub(crate) const DELTA: usize = 24;

/// The bytes of one item that has come.
pub(crate) const TAKEN: usize = 20;

/// The bytes of one memory file that is not mapped any more.
pub(crate) const UNMAPPED: usize = 12;

/// The body follows in chunk frames.
pub(crate) const STREAMED: u8 = 1;
/// On a chunk: the sender gave up; what came of the message is dropped.
pub(crate) const ABORTED: u8 = 2;
/// Long segments lie in a memory file, whose descriptor comes with the first byte of the frame.
pub(crate) const SHARED: u8 = 4;

/// Shorter segments never lie in a memory file, nor does segment 0.
pub const SHARED_FROM: usize = 64 << 10;
/// Segments in a memory file begin at multiples of this.
pub const SHARED_ALIGN: u64 = 4096;

/// The memory file of a message, as its sender names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileName {
    /// Counts what the sender has sent.
    pub number: u64,
    /// What the system calls the file, and the descriptor that the sender has of it.
    pub inode: u64,
    pub descriptor: u32,
}

/// The bytes of a [`FileName`].
pub(crate) const FILE_NAME: usize = 20;

/// Where the segments of a message in shared memory lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// For each segment where it begins in the memory file; none for one that follows in the frame.
    pub offsets: Vec<Option<u64>>,
    /// The bytes of the memory file that are used.
    pub shared: u64,
    /// The bytes of the segments in the frame.
    pub inline: u64,
}

impl Layout {
    /// Lays segments out; nothing where the lengths are too large.
    pub fn of(lengths: impl IntoIterator<Item = u64>) -> Option<Layout> {
        let mut layout = Layout {
            offsets: Vec::new(),
            shared: 0,
            inline: 0,
        };
        for (index, len) in lengths.into_iter().enumerate() {
            if index > 0 && len >= SHARED_FROM as u64 {
                let offset = layout.shared.checked_next_multiple_of(SHARED_ALIGN)?;
                layout.offsets.push(Some(offset));
                layout.shared = offset.checked_add(len)?;
            } else {
                layout.offsets.push(None);
                layout.inline = layout.inline.checked_add(len)?;
            }
        }
        Some(layout)
    }
}

/// The bytes of the tables of a message with so many segments and references.
pub fn tables_size(segments: usize, refs: usize) -> usize {
    segments.saturating_mul(8).saturating_add(refs.saturating_mul(16))
}

/// The fixed part of a head frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub id: u64,
    pub a: u64,
    pub b: u32,
    pub c: u32,
}

impl Header {
    /// Whether the message may go ahead of calls, answers and operations that were sent before it: it concerns none of
    /// them, or says something of references that may be heard before or after those.
    pub fn is_control(&self) -> bool {
        matches!(
            self.kind,
            kind::REFS
                | kind::INTERRUPT
                | kind::EXIT
                | kind::PING
                | kind::PONG
                | kind::CONFIRM
                | kind::UNMAPPED
                | kind::HEARTBEAT
                | kind::STACKS
                | kind::RECEIVED
        )
    }

    /// The header of a call.
    pub fn call(id: u64, mode: crate::message::CallMode) -> Header {
        Header {
            kind: kind::CALL,
            id,
            b: mode as u32,
            ..Header::default()
        }
    }

    /// The header of a call that runs after those before it in its lane.
    pub fn in_lane(self, lane: u64) -> Header {
        Header { a: lane, ..self }
    }

    /// The header of a call's or an operation's answer.
    pub fn result(id: u64, status: Status) -> Header {
        Header {
            kind: kind::RESULT,
            id,
            b: status as u32,
            ..Header::default()
        }
    }

    /// The header of an operation on a reference.
    pub fn ref_op(req: u64, op: RefOp, target: RefId) -> Header {
        Header {
            kind: kind::REF_OP,
            id: req,
            a: target.id,
            b: target.whence,
            c: op as u32,
        }
    }
}

/// Encodes everything of a head frame but its segments.
///
/// With `stream` the segments are to follow as chunks of that stream, without it directly.
pub fn encode_head(
    header: Header,
    lengths: impl ExactSizeIterator<Item = usize>,
    refs: &[RemoteRef],
    stream: Option<u16>,
) -> Vec<u8> {
    let flags = if stream.is_some() { STREAMED } else { 0 };
    let (mut out, data) = head(header, flags, stream.unwrap_or(0), lengths, refs);
    let mut len = out.len() - PREFIX;
    if stream.is_none() {
        len += data;
    }
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    out
}

/// Encodes everything of the head frame of a message in shared memory but the segments that follow in the frame,
/// which have `inline` bytes.
pub fn encode_shared_head(
    header: Header,
    lengths: impl ExactSizeIterator<Item = usize>,
    refs: &[RemoteRef],
    file: FileName,
    inline: usize,
) -> Vec<u8> {
    let (mut out, _) = head(header, SHARED, 0, lengths, refs);
    out.extend_from_slice(&file.number.to_le_bytes());
    out.extend_from_slice(&file.inode.to_le_bytes());
    out.extend_from_slice(&file.descriptor.to_le_bytes());
    let len = out.len() - PREFIX + inline;
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    out
}

/// Encodes a head and its tables, without its length; returns the bytes of all segments too.
fn head(
    header: Header,
    flags: u8,
    stream: u16,
    lengths: impl ExactSizeIterator<Item = usize>,
    refs: &[RemoteRef],
) -> (Vec<u8>, usize) {
    let nseg = lengths.len();
    let tables = tables_size(nseg, refs.len());
    let mut out = Vec::with_capacity(HEADER + tables + 256);
    out.extend_from_slice(&[0; 4]);
    out.push(header.kind);
    out.push(flags);
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&header.id.to_le_bytes());
    out.extend_from_slice(&header.a.to_le_bytes());
    out.extend_from_slice(&header.b.to_le_bytes());
    out.extend_from_slice(&header.c.to_le_bytes());
    out.extend_from_slice(&(nseg as u32).to_le_bytes());
    out.extend_from_slice(&(refs.len() as u32).to_le_bytes());
    let mut data = 0;
    for len in lengths {
        out.extend_from_slice(&(len as u64).to_le_bytes());
        data += len;
    }
    for r in refs {
        encode_ref(&mut out, r);
    }
    (out, data)
}

/// Encodes the prefix of a chunk of `len` bytes.
pub fn encode_chunk_prefix(stream: u16, len: usize) -> [u8; PREFIX] {
    chunk_prefix(stream, len, 0)
}

/// Encodes the chunk that ends a stream whose sender gave up.
pub fn encode_abort(stream: u16) -> [u8; PREFIX] {
    chunk_prefix(stream, 0, ABORTED)
}

fn chunk_prefix(stream: u16, len: usize, flags: u8) -> [u8; PREFIX] {
    let mut out = [0; PREFIX];
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    out[4] = kind::CHUNK;
    out[5] = flags;
    out[6..].copy_from_slice(&stream.to_le_bytes());
    out
}

fn encode_ref(out: &mut Vec<u8>, r: &RemoteRef) {
    out.extend_from_slice(&r.owner.to_le_bytes());
    out.extend_from_slice(&r.id.whence.to_le_bytes());
    out.extend_from_slice(&r.id.id.to_le_bytes());
}

/// A message ready to be written: its head, and the body that follows where there is one.
pub struct Encoded {
    pub header: Header,
    pub body: EncodedBody,
}

/// Where the segments of an encoded message come from.
pub enum EncodedBody {
    Own(Body),
    Shared(std::sync::Arc<Body>),
}

impl EncodedBody {
    pub fn into_body(self) -> std::sync::Arc<Body> {
        match self {
            EncodedBody::Own(body) => std::sync::Arc::new(body),
            EncodedBody::Shared(body) => body,
        }
    }

    pub fn get(&self) -> &Body {
        match self {
            EncodedBody::Own(body) => body,
            EncodedBody::Shared(body) => body,
        }
    }
}

/// Splits a message into its header and body.
pub fn encode(message: Message) -> Encoded {
    let bare = |kind, id| {
        (
            Header {
                kind,
                id,
                ..Header::default()
            },
            Body::default(),
        )
    };
    let (header, body) = match message {
        Message::Call { id, mode, lane, body } => (Header::call(id, mode).in_lane(lane), body),
        Message::Result { id, status, body } => {
            return Encoded {
                header: Header::result(id, status),
                body: EncodedBody::Shared(body),
            };
        }
        Message::RefOp {
            req,
            op,
            target,
            body,
        } => (Header::ref_op(req, op, target), body),
        Message::Done { id } => bare(kind::DONE, id),
        Message::Withdraw { req, target, how } => (
            Header {
                kind: kind::WITHDRAW,
                id: req,
                a: target.id,
                b: target.whence,
                c: how as u32,
            },
            Body::default(),
        ),
        Message::Confirm { taken } => (
            Header {
                kind: kind::CONFIRM,
                id: taken.len() as u64,
                ..Header::default()
            },
            Body::of_bytes(encode_taken(&taken)),
        ),
        Message::Unmapped { files } => (
            Header {
                kind: kind::UNMAPPED,
                id: files.len() as u64,
                ..Header::default()
            },
            Body::of_bytes(encode_unmapped(&files)),
        ),
        Message::Refs { deltas } => (
            Header {
                kind: kind::REFS,
                id: deltas.len() as u64,
                ..Header::default()
            },
            Body::of_bytes(encode_deltas(&deltas)),
        ),
        Message::Interrupt => bare(kind::INTERRUPT, 0),
        Message::Exit => bare(kind::EXIT, 0),
        Message::Join { member } => (
            Header {
                kind: kind::JOIN,
                id: u64::from(member.pid),
                b: member.ospid,
                ..Header::default()
            },
            Body {
                refs: Vec::new(),
                segments: encode_member(member),
            },
        ),
        Message::Leave { pid, reason } => (
            Header {
                kind: kind::LEAVE,
                id: u64::from(pid),
                ..Header::default()
            },
            Body::of_bytes(reason.into_bytes()),
        ),
        Message::Ready { member } => (
            Header {
                kind: kind::READY,
                id: u64::from(member.pid),
                b: member.ospid,
                ..Header::default()
            },
            Body {
                refs: Vec::new(),
                segments: encode_member(member),
            },
        ),
        Message::Ping { tick } => bare(kind::PING, tick),
        Message::Pong { tick } => bare(kind::PONG, tick),
        Message::Stacks { req } => bare(kind::STACKS, req),
        Message::Received { bytes } => bare(kind::RECEIVED, bytes),
        Message::Observe { req } => bare(kind::OBSERVE, req),
        Message::LookUp { req, pid } => (
            Header {
                kind: kind::LOOK_UP,
                id: req,
                b: pid,
                ..Header::default()
            },
            Body::default(),
        ),
        Message::Ring { .. } => bare(kind::RING, 0),
        Message::Heartbeat(beat) => (heartbeat_header(beat), Body::default()),
    };
    Encoded {
        header,
        body: EncodedBody::Own(body),
    }
}

fn heartbeat_header(beat: Heartbeat) -> Header {
    let flag = |set, flag| if set { flag } else { 0 };
    Header {
        kind: kind::HEARTBEAT,
        id: 0,
        a: beat.interval_ms,
        b: beat.timeout_ms,
        c: flag(beat.listens, LISTENS) | flag(beat.pumped, PUMPED),
    }
}

/// The whole frame that goes with the descriptor of a ring.
pub fn encode_ring() -> Vec<u8> {
    let header = Header {
        kind: kind::RING,
        ..Header::default()
    };
    encode_head(header, std::iter::empty(), &[], None)
}

/// A whole frame that has no effect: it wakes its reader.
pub fn encode_nothing() -> Vec<u8> {
    let header = Header {
        kind: kind::RECEIVED,
        ..Header::default()
    };
    encode_head(header, std::iter::empty(), &[], None)
}

/// The whole frame of a heartbeat.
pub fn encode_heartbeat(beat: Heartbeat) -> Vec<u8> {
    encode_head(heartbeat_header(beat), std::iter::empty(), &[], None)
}

fn encode_deltas(deltas: &[RefDelta]) -> Vec<u8> {
    let mut out = Vec::with_capacity(deltas.len() * DELTA);
    for d in deltas {
        out.extend_from_slice(&d.id.whence.to_le_bytes());
        out.extend_from_slice(&d.id.id.to_le_bytes());
        out.extend_from_slice(&d.holder.to_le_bytes());
        out.extend_from_slice(&d.giver.to_le_bytes());
        out.extend_from_slice(&d.delta.to_le_bytes());
    }
    out
}

fn encode_taken(taken: &[(RefId, u64)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(taken.len() * TAKEN);
    for (id, req) in taken {
        out.extend_from_slice(&id.whence.to_le_bytes());
        out.extend_from_slice(&id.id.to_le_bytes());
        out.extend_from_slice(&req.to_le_bytes());
    }
    out
}

fn encode_unmapped(files: &[Unmapped]) -> Vec<u8> {
    let mut out = Vec::with_capacity(files.len() * UNMAPPED);
    for unmapped in files {
        out.extend_from_slice(&unmapped.file.to_le_bytes());
        out.extend_from_slice(&u32::from(unmapped.copied).to_le_bytes());
    }
    out
}

fn encode_member(member: Member) -> Vec<Segment> {
    vec![
        Segment::Heap(member.address.into_bytes()),
        Segment::Heap(member.inst.to_vec()),
        Segment::Heap(member.host.into_bytes()),
        Segment::Heap(
            member
                .connected
                .iter()
                .flat_map(|pid| pid.to_le_bytes())
                .collect(),
        ),
        Segment::Heap(member.config),
    ]
}

/// Reads a little-endian number at an offset; the caller has checked the length.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

/// Reads a little-endian number at an offset; the caller has checked the length.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

/// Reads a little-endian number at an offset; the caller has checked the length.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn decode_ref(bytes: &[u8], at: usize) -> RemoteRef {
    RemoteRef {
        owner: u32_at(bytes, at) as ProcId,
        id: RefId {
            whence: u32_at(bytes, at + 4),
            id: u64_at(bytes, at + 8),
        },
    }
}
