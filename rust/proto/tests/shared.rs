//! Frames whose long segments lie in a memory file: what is in the frame, and what comes beside it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use pydist_proto::body::{Body, Segment, View};
use pydist_proto::codec::{Attachment, Decoder};
use pydist_proto::error::ProtocolError;
use pydist_proto::frame::{self, FileName, Header, Layout, SHARED_FROM};
use pydist_proto::handshake::Authenticated;
use pydist_proto::ids::{RefId, RemoteRef};
use pydist_proto::message::{CallMode, Message, Unmapped};

/// A memory file in the memory of the test.
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

struct File {
    number: u64,
    bytes: Vec<u8>,
}

impl Attachment for File {
    fn open(self: Box<Self>, file: FileName, len: u64) -> Result<Arc<dyn View>, ProtocolError> {
        assert_eq!(file, name(self.number));
        if (self.bytes.len() as u64) < len {
            return Err(ProtocolError::UnusableFile("too short".to_owned()));
        }
        Ok(Arc::new(Memory(self.bytes)))
    }

    fn descriptor(self: Box<Self>) -> Option<OwnedFd> {
        None
    }
}

fn name(number: u64) -> FileName {
    FileName {
        number,
        inode: number << 40,
        descriptor: 17,
    }
}

fn decoder() -> Decoder {
    Decoder::new(Authenticated::for_tests(7), 64 << 20)
}

fn feed(decoder: &mut Decoder, bytes: &[u8]) {
    let mut left = bytes;
    while !left.is_empty() {
        let spare = decoder.spare().unwrap();
        let n = spare.len().min(left.len()).min(1000);
        spare[..n].copy_from_slice(&left[..n]);
        decoder.advance(n);
        left = &left[n..];
    }
}

/// The frame of a call and its memory file.
fn shared_call(id: u64, number: u64, segments: &[Vec<u8>], refs: &[RemoteRef]) -> (Vec<u8>, File) {
    let layout = Layout::of(segments.iter().map(|s| s.len() as u64)).unwrap();
    let lengths = segments.iter().map(Vec::len);
    let inline = usize::try_from(layout.inline).unwrap();
    let header = Header::call(id, CallMode::Fetch);
    let mut bytes = frame::encode_shared_head(header, lengths, refs, name(number), inline);
    let mut file = vec![0; usize::try_from(layout.shared).unwrap()];
    for (segment, offset) in segments.iter().zip(&layout.offsets) {
        match offset {
            Some(at) => file[*at as usize..][..segment.len()].copy_from_slice(segment),
            None => bytes.extend_from_slice(segment),
        }
    }
    (bytes, File { number, bytes: file })
}

fn call_of(message: Message) -> (u64, Body) {
    match message {
        Message::Call { id, body, .. } => (id, body),
        other => unreachable!("{other:?}"),
    }
}

fn contents(body: &Body) -> Vec<Vec<u8>> {
    body.segments.iter().map(|s| s.as_slice().to_vec()).collect()
}

fn a_ref(id: u64) -> RemoteRef {
    let id = RefId { whence: 3, id };
    RemoteRef { owner: 2, id }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_segment_comes_back_from_where_it_lies(
        lengths in vec(prop_oneof![0..100usize, SHARED_FROM - 2..SHARED_FROM + 5000], 0..6),
        count in 0..3u64,
    ) {
        let fill = |(i, len): (usize, &usize)| (0..*len).map(|n| (n * 7 + i) as u8).collect::<Vec<u8>>();
        let mut segments = vec![b"pickle".to_vec(), vec![9; SHARED_FROM]];
        segments.extend(lengths.iter().enumerate().map(fill));
        let refs: Vec<RemoteRef> = (0..count).map(a_ref).collect();
        let (bytes, file) = shared_call(5, 77, &segments, &refs);
        let mut decoder = decoder();
        decoder.attach(Box::new(file)).unwrap();
        feed(&mut decoder, &bytes);
        let (id, body) = call_of(decoder.poll_message().unwrap().unwrap());
        prop_assert_eq!((id, &body.refs), (5, &refs));
        prop_assert_eq!(contents(&body), &segments[..]);
        let shared = |s: &&Segment| matches!(s, Segment::Shared(..));
        let long = segments.iter().skip(1).filter(|s| s.len() >= SHARED_FROM).count();
        prop_assert_eq!(body.segments.iter().filter(shared).count(), long);
        prop_assert_eq!(contents(&body.try_clone().unwrap()), &segments[..]);
        prop_assert!(decoder.poll_message().unwrap().is_none());
    }
}

#[test]
fn files_belong_to_frames_in_their_order() {
    let mut decoder = decoder();
    for (id, byte) in [(1, 10), (2, 20)] {
        let (bytes, file) = shared_call(id, id, &[vec![byte], vec![byte; SHARED_FROM]], &[]);
        decoder.attach(Box::new(file)).unwrap();
        feed(&mut decoder, &bytes);
    }
    for (id, byte) in [(1, 10), (2, 20)] {
        let (got, body) = call_of(decoder.poll_message().unwrap().unwrap());
        assert_eq!(
            (got, contents(&body)),
            (id, vec![vec![byte], vec![byte; SHARED_FROM]])
        );
    }
}

#[test]
fn a_frame_without_its_file_is_an_error() {
    let (bytes, _) = shared_call(1, 1, &[vec![], vec![1; SHARED_FROM]], &[]);
    let mut decoder = decoder();
    feed(&mut decoder, &bytes);
    assert_eq!(decoder.poll_message().unwrap_err(), ProtocolError::NoFile);
}

#[test]
fn a_file_that_is_too_short_is_an_error() {
    let (bytes, mut file) = shared_call(1, 1, &[vec![], vec![1; SHARED_FROM]], &[]);
    file.bytes.pop();
    let mut decoder = decoder();
    decoder.attach(Box::new(file)).unwrap();
    feed(&mut decoder, &bytes);
    assert!(matches!(
        decoder.poll_message().unwrap_err(),
        ProtocolError::UnusableFile(_)
    ));
}

#[test]
fn a_frame_that_uses_nothing_of_its_file_or_has_another_length_is_an_error() {
    for (segments, more) in [
        (vec![vec![1; SHARED_FROM], vec![2; SHARED_FROM - 1]], 0),
        (vec![vec![], vec![1; SHARED_FROM]], 1),
    ] {
        let (mut bytes, file) = shared_call(1, 1, &segments, &[]);
        let len = u32::from_le_bytes(bytes[..4].try_into().unwrap()) + more;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes.resize(bytes.len() + more as usize, 0);
        let mut decoder = decoder();
        decoder.attach(Box::new(file)).unwrap();
        feed(&mut decoder, &bytes);
        assert_eq!(
            decoder.poll_message().unwrap_err(),
            ProtocolError::Truncated("segments")
        );
    }
}

#[test]
fn the_bytes_of_a_file_count_for_the_limit() {
    let header = Header::call(1, CallMode::Fetch);
    let lengths = [0, 65 << 20].into_iter();
    let bytes = frame::encode_shared_head(header, lengths, &[], name(1), 0);
    let mut decoder = decoder();
    feed(&mut decoder, &bytes);
    assert_eq!(
        decoder.poll_message().unwrap_err(),
        ProtocolError::MessageTooLarge(65 << 20, 64 << 20)
    );
}

#[test]
fn descriptors_that_belong_to_no_frame_are_limited() {
    let mut decoder = decoder();
    let mut attach = || {
        let (number, bytes) = (0, Vec::new());
        decoder.attach(Box::new(File { number, bytes }))
    };
    let refused = (0..9).map(|_| attach()).find_map(Result::err);
    assert_eq!(refused, Some(ProtocolError::TooManyFiles(8)));
}

#[test]
fn what_is_not_mapped_any_more_is_told() {
    let entry = |(file, copied)| Unmapped { file, copied };
    let files: Vec<Unmapped> = [(1, false), (u64::MAX, true)].map(entry).to_vec();
    let encoded = frame::encode(Message::Unmapped { files: files.clone() });
    let body = encoded.body.into_body();
    let mut bytes = frame::encode_head(encoded.header, body.segments.iter().map(Segment::len), &[], None);
    bytes.extend_from_slice(body.segments[0].as_slice());
    let mut decoder = decoder();
    feed(&mut decoder, &bytes);
    let Some(Message::Unmapped { files: got }) = decoder.poll_message().unwrap() else {
        unreachable!()
    };
    assert_eq!(got, files);
    let last = bytes.len() - 4;
    bytes[last] = 2;
    feed(&mut decoder, &bytes);
    assert_eq!(
        decoder.poll_message().unwrap_err(),
        ProtocolError::UnknownValue("state of a memory file", 2)
    );
}
