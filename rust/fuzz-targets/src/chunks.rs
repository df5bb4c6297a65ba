//! Messages that come in chunks, against a model of what must come out.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use pydist_proto::error::ProtocolError;
use pydist_proto::frame::{self, CHUNK_MAX, Header, STREAMS_MAX};
use pydist_proto::message::{CallMode, Message};
use pydist_proto::{body::Body, body::Segment};

use crate::frames::{Content, MESSAGE_MAX, decode};
use crate::input::Input;

/// So many bytes are sent in one run.
const ENOUGH: usize = 2 << 20;

/// A message that is under way.
struct Open {
    id: u64,
    lengths: Vec<usize>,
    sent: usize,
}

impl Open {
    fn missing(&self) -> usize {
        self.lengths.iter().sum::<usize>() - self.sent
    }
}

/// What is sent, and what is to come of it.
#[derive(Default)]
struct Model {
    wire: Vec<u8>,
    open: BTreeMap<u16, Open>,
    expected: Vec<Message>,
    error: Option<ProtocolError>,
    next_id: u64,
}

/// The byte of a message's content at an offset.
fn content(id: u64, at: usize) -> u8 {
    (id.wrapping_add(at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8
}

fn call(id: u64, lengths: &[usize]) -> Message {
    let mut at = 0;
    let segments = lengths.iter().map(|&len| {
        at += len;
        Segment::Heap((at - len..at).map(|at| content(id, at)).collect())
    });
    let body = Body {
        refs: Vec::new(),
        segments: segments.collect(),
    };
    Message::Call {
        id,
        mode: CallMode::Do,
        lane: 0,
        body,
    }
}

impl Model {
    fn open(&mut self, stream: u16, lengths: Vec<usize>) {
        self.next_id += 1;
        let id = self.next_id;
        let header = Header::call(id, CallMode::Do);
        self.wire.extend(frame::encode_head(
            header,
            lengths.iter().copied(),
            &[],
            Some(stream),
        ));
        let total = lengths.iter().sum::<usize>() as u64;
        self.error = if total > MESSAGE_MAX {
            Some(ProtocolError::MessageTooLarge(total, MESSAGE_MAX))
        } else if total == 0 {
            Some(ProtocolError::Truncated("stream head"))
        } else if self.open.len() == STREAMS_MAX {
            Some(ProtocolError::TooManyStreams(STREAMS_MAX))
        } else if let Entry::Vacant(place) = self.open.entry(stream) {
            let sent = 0;
            place.insert(Open { id, lengths, sent });
            None
        } else {
            Some(ProtocolError::StreamReused(stream))
        };
    }

    /// Sends a chunk; without a length, all that is missing.
    fn chunk(&mut self, stream: u16, len: Option<usize>) {
        let missing = self.open.get(&stream).map(Open::missing);
        let len = len.or(missing).unwrap_or(1).min(CHUNK_MAX + 1);
        self.wire.extend(frame::encode_chunk_prefix(stream, len));
        let (Some(open), Some(missing)) = (self.open.get_mut(&stream), missing) else {
            self.error = Some(ProtocolError::UnknownStream(stream));
            return;
        };
        if len > CHUNK_MAX {
            self.error = Some(ProtocolError::FrameTooLarge(len as u64, CHUNK_MAX as u64));
        } else if len == 0 || len > missing {
            self.error = Some(ProtocolError::ChunkOverrun(len, missing as u64));
        } else {
            let (id, sent) = (open.id, open.sent);
            self.wire.extend((sent..sent + len).map(|at| content(id, at)));
            open.sent += len;
            if len == missing {
                let Open { id, lengths, .. } = self.open.remove(&stream).unwrap();
                self.expected.push(call(id, &lengths));
            }
        }
    }

    fn abort(&mut self, stream: u16) {
        self.wire.extend(frame::encode_abort(stream));
        if self.open.remove(&stream).is_none() {
            self.error = Some(ProtocolError::UnknownStream(stream));
        }
    }

    fn ping(&mut self, tick: u64) {
        self.wire.extend(crate::frames::written(Message::Ping { tick }));
        self.expected.push(Message::Ping { tick });
    }
}

/// Messages in chunks come out whole, in the order of their last bytes; a broken rule is named.
pub(crate) fn chunks(input: &[u8]) {
    let mut input = Input(input);
    let size = 1 + usize::from(input.u16());
    let mut model = Model::default();
    while !input.is_empty() && model.error.is_none() && model.wire.len() < ENOUGH {
        let op = input.u8();
        let stream = u16::from(op >> 3);
        match op % 8 {
            0 | 1 => {
                let lengths = (0..1 + input.u8() % 4).map(|_| {
                    let unit = if op % 8 == 0 { 1 } else { 64 };
                    usize::from(input.u16()) * unit
                });
                let lengths = lengths.collect();
                model.open(stream, lengths);
            }
            2 => model.chunk(stream, Some(usize::from(input.u8()))),
            3 => model.chunk(stream, Some(usize::from(input.u16()) * 32)),
            4 | 5 => model.chunk(stream, None),
            6 => model.abort(stream),
            _ => model.ping(u64::from(stream)),
        }
    }
    let (messages, end) = decode(&model.wire, 0, size);
    assert_eq!(end.err(), model.error);
    assert!(
        messages
            .iter()
            .map(Content::of)
            .eq(model.expected.iter().map(Content::of))
    );
}
