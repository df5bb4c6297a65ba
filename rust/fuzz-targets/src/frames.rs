//! The decoder: any bytes in any portions, and any header in a well-formed frame.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pydist_proto::body::{Body, Segment, View};
use pydist_proto::codec::{Attachment, Decoder};
use pydist_proto::error::ProtocolError;
use pydist_proto::frame::{self, FileName, Header};
use pydist_proto::handshake::Authenticated;
use pydist_proto::ids::{RefId, RemoteRef};
use pydist_proto::message::Message;

use crate::input::Input;

/// Beyond the size from which segments are mapped, and small enough for many of them.
pub(crate) const MESSAGE_MAX: u64 = 4 << 20;

/// A memory file that holds whatever is asked of it.
struct File;

#[derive(Debug)]
struct Memory(Vec<u8>);

impl View for Memory {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn address(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut()
    }

    fn again(&self) -> std::io::Result<Arc<dyn View>> {
        Ok(Arc::new(Memory(self.0.clone())))
    }

    fn hand_out(&self) {}
}

impl Attachment for File {
    fn open(self: Box<Self>, _: FileName, len: u64) -> Result<Arc<dyn View>, ProtocolError> {
        let len = usize::try_from(len).map_err(|_| ProtocolError::NoMemory(len))?;
        Ok(Arc::new(Memory(vec![0; len])))
    }

    fn descriptor(self: Box<Self>) -> Option<OwnedFd> {
        None
    }
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    fields: String,
    refs: Vec<RemoteRef>,
    segments: Vec<Vec<u8>>,
}

impl Content {
    pub(crate) fn of(message: &Message) -> Content {
        let of = |fields: String, body: &Body| Content {
            fields,
            refs: body.refs.clone(),
            segments: body.segments.iter().map(bytes_of).collect(),
        };
        match message {
            Message::Call { id, mode, lane, body } => of(format!("call {id} {mode:?} {lane}"), body),
            Message::Result { id, status, body } => of(format!("result {id} {status:?}"), body),
            Message::RefOp {
                req,
                op,
                target,
                body,
            } => of(format!("op {req} {op:?} {target:?}"), body),
            other => of(format!("{other:?}"), &Body::default()),
        }
    }
}

/// The bytes of a segment; of shared memory, which is all zeros here, where they lie.
fn bytes_of(segment: &Segment) -> Vec<u8> {
    match segment {
        Segment::Shared(view, range) => {
            assert!(range.end <= view.bytes().len());
            format!("{range:?}").into_bytes()
        }
        own => own.as_slice().to_vec(),
    }
}

/// Decodes bytes that come in portions of at most `size`; tells what came before the first error, and that.
pub(crate) fn decode(
    mut bytes: &[u8],
    files: usize,
    size: usize,
) -> (Vec<Message>, Result<(), ProtocolError>) {
    let mut decoder = Decoder::new(Authenticated::for_tests(7), MESSAGE_MAX);
    let mut messages = Vec::new();
    for _ in 0..files {
        if let Err(error) = decoder.attach(Box::new(File)) {
            return (messages, Err(error));
        }
    }
    while !bytes.is_empty() {
        let spare = match decoder.spare() {
            Ok(spare) => spare,
            Err(error) => return (messages, Err(error)),
        };
        assert!(!spare.is_empty(), "there is always room for more");
        let n = spare.len().min(bytes.len()).min(size);
        spare[..n].copy_from_slice(&bytes[..n]);
        decoder.advance(n);
        bytes = &bytes[n..];
        loop {
            match decoder.poll_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Err(error)),
            }
        }
    }
    (messages, Ok(()))
}

/// The frame of a message.
pub(crate) fn written(message: Message) -> Vec<u8> {
    let encoded = frame::encode(message);
    let body = encoded.body.get();
    let lengths = body.segments.iter().map(Segment::len);
    let mut frame = frame::encode_head(encoded.header, lengths, &body.refs, None);
    for segment in &body.segments {
        frame.extend_from_slice(segment.as_slice());
    }
    frame
}

/// What was decoded is the same message after it has been sent on.
fn check_round_trip(message: Message) {
    let has_file = match &message {
        Message::Call { body, .. } | Message::RefOp { body, .. } => body.view().is_some(),
        Message::Result { body, .. } => body.view().is_some(),
        Message::Ring { .. } => true,
        _ => false,
    };
    if has_file {
        return;
    }
    let content = Content::of(&message);
    let frame = written(message);
    let (mut again, end) = decode(&frame, 0, usize::MAX);
    assert_eq!(end, Ok(()));
    assert_eq!(again.len(), 1);
    let again = again.remove(0);
    assert_eq!(Content::of(&again), content);
    assert_eq!(written(again), frame, "there is one way to write a message");
}

/// Any bytes give the same messages and the same error however they are cut.
pub(crate) fn frames(input: &[u8]) {
    let mut input = Input(input);
    let files = usize::from(input.u8() % 10);
    let size = 1 + usize::from(input.u8());
    let bytes = input.rest();
    let (messages, end) = decode(bytes, files, usize::MAX);
    let (in_portions, same_end) = decode(bytes, files, size);
    assert_eq!(end, same_end);
    assert!(
        messages
            .iter()
            .map(Content::of)
            .eq(in_portions.iter().map(Content::of))
    );
    messages.into_iter().for_each(check_round_trip);
}

/// Any header with any body gives an error, or a message that says the same after it has been sent on.
pub(crate) fn messages(input: &[u8]) {
    let mut input = Input(input);
    while !input.is_empty() {
        let frame = any_frame(&mut input);
        let (messages, end) = decode(&frame, 0, usize::MAX);
        assert_eq!(messages.len(), usize::from(end.is_ok()));
        messages.into_iter().for_each(check_round_trip);
    }
}

/// A frame whose lengths are right.
pub(crate) fn any_frame(input: &mut Input) -> Vec<u8> {
    let header = Header {
        kind: input.u8() % 24,
        id: input.number(),
        a: input.number(),
        b: input.number32(),
        c: input.number32(),
    };
    let shape = input.u8();
    let refs: Vec<RemoteRef> = (0..shape >> 5)
        .map(|_| RemoteRef {
            owner: input.number32(),
            id: RefId {
                whence: input.number32(),
                id: input.number(),
            },
        })
        .collect();
    let segments: Vec<&[u8]> = (0..shape & 7)
        .map(|_| {
            let len = usize::from(input.u8());
            input.bytes(len)
        })
        .collect();
    let mut frame = frame::encode_head(header, segments.iter().map(|s| s.len()), &refs, None);
    frame.extend(segments.concat());
    frame
}
