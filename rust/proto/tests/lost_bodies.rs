//! F23: messages for whose bodies there is no memory: who waits for them is told, and the connection goes on.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pydist_proto::body::View;
use pydist_proto::codec::{Attachment, Decoder};
use pydist_proto::error::ProtocolError;
use pydist_proto::frame::{self, FileName, Header};
use pydist_proto::handshake::Authenticated;
use pydist_proto::ids::RefId;
use pydist_proto::message::{CallMode, Message, RefOp, Status};

/// More than any system maps.
const HUGE: usize = 1 << 50;

fn decoder() -> Decoder {
    Decoder::new(Authenticated::for_tests(7), u64::MAX)
}

fn feed(decoder: &mut Decoder, mut bytes: &[u8]) -> Result<(), ProtocolError> {
    while !bytes.is_empty() {
        let spare = decoder.spare()?;
        let n = spare.len().min(bytes.len());
        spare[..n].copy_from_slice(&bytes[..n]);
        decoder.advance(n);
        bytes = &bytes[n..];
    }
    Ok(())
}

fn chunk(stream: u16, len: usize) -> Vec<u8> {
    let mut bytes = frame::encode_chunk_prefix(stream, len).to_vec();
    bytes.resize(bytes.len() + len, 1);
    bytes
}

fn small_call(id: u64) -> Vec<u8> {
    frame::encode_head(Header::call(id, CallMode::Do), std::iter::empty(), &[], None)
}

fn put() -> Header {
    Header::ref_op(1, RefOp::Put, RefId { whence: 7, id: 2 })
}

#[test]
fn what_comes_of_a_stream_without_memory_is_passed_over() {
    for header in [Header::call(1, CallMode::Fetch), Header::result(1, Status::Value)] {
        let mut decoder = decoder();
        let mut bytes = frame::encode_head(header, [10, HUGE].into_iter(), &[], Some(3));
        for len in [10, 1 << 20, 1000] {
            bytes.extend(chunk(3, len));
        }
        bytes.extend(small_call(2));
        feed(&mut decoder, &bytes[..90]).unwrap();
        assert!(decoder.poll_message().unwrap().is_none());
        let mut seen = Vec::new();
        for part in bytes[90..].chunks(50_000) {
            feed(&mut decoder, part).unwrap();
            while let Some(message) = decoder.poll_message().unwrap() {
                seen.push(message);
            }
        }
        assert!(matches!(seen.as_slice(), [Message::Call { id: 2, .. }]));
        feed(&mut decoder, &frame::encode_abort(3)).unwrap();
        assert!(decoder.poll_message().unwrap().is_none());
    }
}

#[test]
fn a_message_that_cannot_do_without_its_body_ends_the_connection() {
    let mut decoder = decoder();
    let mut bytes = frame::encode_head(put(), [HUGE].into_iter(), &[], Some(3));
    bytes.extend(chunk(3, 1000));
    feed(&mut decoder, &bytes).unwrap();
    let error = decoder.poll_message().unwrap_err();
    assert_eq!(error, ProtocolError::NoMemory(HUGE as u64));
}

/// A memory file that cannot be mapped.
struct Unmappable;

impl Attachment for Unmappable {
    fn open(self: Box<Self>, _: FileName, len: u64) -> Result<Arc<dyn View>, ProtocolError> {
        Err(ProtocolError::NoMemory(len))
    }

    fn descriptor(self: Box<Self>) -> Option<OwnedFd> {
        None
    }
}

#[test]
fn a_message_in_a_file_that_cannot_be_mapped() {
    let name = FileName {
        number: 1,
        inode: 2,
        descriptor: 3,
    };
    let in_file = |header| frame::encode_shared_head(header, [0, 1 << 20].into_iter(), &[], name, 0);
    let mut decoder = decoder();
    decoder.attach(Box::new(Unmappable)).unwrap();
    feed(&mut decoder, &in_file(Header::call(1, CallMode::Future))).unwrap();
    feed(&mut decoder, &small_call(2)).unwrap();
    let Some(Message::Call { id: 1, body, .. }) = decoder.poll_message().unwrap() else {
        unreachable!()
    };
    assert_eq!((body.lost_bytes(), body.size()), (Some(1 << 20), 0));
    assert!(matches!(
        decoder.poll_message().unwrap(),
        Some(Message::Call { id: 2, .. })
    ));
    decoder.attach(Box::new(Unmappable)).unwrap();
    feed(&mut decoder, &in_file(put())).unwrap();
    let error = decoder.poll_message().unwrap_err();
    assert_eq!(error, ProtocolError::NoMemory(1 << 20));
}
