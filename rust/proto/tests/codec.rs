//! The frame decoder: every message comes back as it was sent, however its bytes arrive, and malformed bytes give
//! the named error without a large allocation (F32).

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use pydist_proto::body::{Body, Segment};
use pydist_proto::codec::Decoder;
use pydist_proto::error::ProtocolError;
use pydist_proto::frame::{self, CHUNK_MAX, HEAD_MAX, HEADER, Header, PREFIX, STREAMS_MAX};
use pydist_proto::handshake::Authenticated;
use pydist_proto::ids::{RefId, RemoteRef};
use pydist_proto::message::{CallMode, Heartbeat, Member, Message, RefDelta, RefOp, Status, Withdrawal};

const MESSAGE_MAX: u64 = 64 << 20;

/// Counts what each thread has allocated.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(more: usize, less: usize) {
    let _ = HELD.try_with(|held| {
        held.set((held.get() + more).saturating_sub(less));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is handed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: `pointer` came from the system's allocator with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that was allocated at once during `act`.
fn peak_of<R>(act: impl FnOnce() -> R) -> (R, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = act();
    (result, PEAK.get().saturating_sub(before))
}

fn decoder() -> Decoder {
    Decoder::new(Authenticated::for_tests(7), MESSAGE_MAX)
}

/// What makes a message: its fields as text, its references, its segments.
type Key = (String, Vec<RemoteRef>, Vec<Vec<u8>>);

fn key(message: &Message) -> Key {
    let of = |text: String, body: &Body| {
        (
            text,
            body.refs.clone(),
            body.segments.iter().map(|s| s.as_slice().to_vec()).collect(),
        )
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
        other => (format!("{other:?}"), Vec::new(), Vec::new()),
    }
}

/// The pieces in which a message is written: one frame, or a stream's head and chunks of `chunk` bytes at most.
fn pieces(message: Message, stream: Option<u16>, chunk: usize) -> Vec<Vec<u8>> {
    let encoded = frame::encode(message);
    let body = encoded.body.get();
    let stream = stream.filter(|_| body.size() > 0);
    let lengths = body.segments.iter().map(Segment::len);
    let mut head = frame::encode_head(encoded.header, lengths, &body.refs, stream);
    let Some(stream) = stream else {
        body.segments
            .iter()
            .for_each(|s| head.extend_from_slice(s.as_slice()));
        return vec![head];
    };
    let bytes: Vec<u8> = body.segments.iter().flat_map(|s| s.as_slice().to_vec()).collect();
    let chunk_of = |c: &[u8]| [&frame::encode_chunk_prefix(stream, c.len())[..], c].concat();
    std::iter::once(head)
        .chain(bytes.chunks(chunk).map(chunk_of))
        .collect()
}

/// Feeds bytes in portions of the given sizes, over and over; returns the messages.
fn feed(decoder: &mut Decoder, mut bytes: &[u8], portions: &[usize]) -> Result<Vec<Message>, ProtocolError> {
    let mut messages = Vec::new();
    let mut portions = portions.iter().cycle();
    while !bytes.is_empty() {
        let spare = decoder.spare()?;
        assert!(!spare.is_empty(), "there is always room for more");
        let n = spare.len().min(bytes.len()).min(*portions.next().unwrap());
        spare[..n].copy_from_slice(&bytes[..n]);
        decoder.advance(n);
        bytes = &bytes[n..];
        while let Some(message) = decoder.poll_message()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

fn decode(bytes: &[u8]) -> Result<Vec<Message>, ProtocolError> {
    feed(&mut decoder(), bytes, &[usize::MAX])
}

fn ref_id() -> impl Strategy<Value = RefId> {
    (any::<u32>(), any::<u64>()).prop_map(|(whence, id)| RefId { whence, id })
}

fn body() -> impl Strategy<Value = Body> {
    let reference = (any::<u32>(), ref_id()).prop_map(|(owner, id)| RemoteRef { owner, id });
    let short = vec(any::<u8>(), 0..20);
    let long = (any::<u8>(), 0..70_000usize).prop_map(|(byte, n)| vec![byte; n]);
    let segment = prop_oneof![4 => short, 2 => Just(Vec::new()), 1 => long].prop_map(Segment::Heap);
    (
        vec(reference, 0..5),
        prop_oneof![4 => vec(segment, 0..6), 1 => many()],
    )
        .prop_map(|(refs, segments)| Body { refs, segments })
}

fn many() -> impl Strategy<Value = Vec<Segment>> {
    vec(vec(any::<u8>(), 0..3).prop_map(Segment::Heap), 0..300)
}

fn of<T: Clone + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = T> {
    proptest::sample::select(all)
}

fn message() -> impl Strategy<Value = Message> {
    use RefOp::{Cancel, Create, Fetch, IsReady, Put, Recall, Recount, Wait};
    use Status::{AlreadySet, Cancelled, Error, Exited, Lost, No, UnknownRef, Value, Yes};
    let mode = of(&[CallMode::Fetch, CallMode::Future, CallMode::Do]);
    let status = of(&[
        Value, Error, Cancelled, Yes, No, AlreadySet, UnknownRef, Exited, Lost,
    ]);
    let op = of(&[Fetch, Wait, IsReady, Put, Cancel, Create, Recount, Recall]);
    let delta =
        (ref_id(), any::<u32>(), any::<u32>(), any::<i32>()).prop_map(|(id, holder, giver, delta)| {
            RefDelta {
                id,
                holder,
                giver,
                delta,
            }
        });
    let member = (
        any::<u32>(),
        any::<u32>(),
        ".{0,30}",
        any::<[u8; 16]>(),
        ".{0,30}",
        vec(any::<u32>(), 0..9),
        vec(any::<u8>(), 0..30),
    )
        .prop_map(|(pid, ospid, address, inst, host, connected, config)| Member {
            pid,
            ospid,
            address,
            inst,
            host,
            connected,
            config,
        });
    prop_oneof![
        3 => (any::<u64>(), mode, any::<u64>(), body())
            .prop_map(|(id, mode, lane, body)| Message::Call { id, mode, lane, body }),
        3 => (any::<u64>(), status, body())
            .prop_map(|(id, status, body)| Message::Result { id, status, body: Arc::new(body) }),
        3 => (any::<u64>(), op, ref_id(), body())
            .prop_map(|(req, op, target, body)| Message::RefOp { req, op, target, body }),
        1 => any::<u64>().prop_map(|id| Message::Done { id }),
        1 => (any::<u64>(), ref_id(), any::<bool>()).prop_map(|(req, target, undo)| {
            let how = if undo { Withdrawal::Undo } else { Withdrawal::IfWaiting };
            Message::Withdraw { req, target, how }
        }),
        1 => vec(delta, 0..50).prop_map(|deltas| Message::Refs { deltas }),
        1 => Just(()).prop_map(|()| Message::Interrupt),
        1 => Just(()).prop_map(|()| Message::Exit),
        1 => member.clone().prop_map(|member| Message::Join { member }),
        1 => (any::<u32>(), ".{0,30}").prop_map(|(pid, reason)| Message::Leave { pid, reason }),
        1 => member.prop_map(|member| Message::Ready { member }),
        1 => any::<u64>().prop_map(|tick| Message::Ping { tick }),
        1 => any::<u64>().prop_map(|tick| Message::Pong { tick }),
        1 => any::<u64>().prop_map(|req| Message::Stacks { req }),
        1 => any::<u64>().prop_map(|req| Message::Observe { req }),
        1 => any::<(u64, u32)>().prop_map(|(req, pid)| Message::LookUp { req, pid }),
        1 => any::<(u64, u32, bool, bool)>().prop_map(|(interval_ms, timeout_ms, listens, pumped)| {
            Message::Heartbeat(Heartbeat { interval_ms, timeout_ms, listens, pumped })
        }),
    ]
}

/// The sizes of the portions in which bytes arrive: all at once, one by one, or any.
fn portions() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![usize::MAX]),
        Just(vec![1]),
        vec(1..200usize, 1..20),
        vec(1..100_000usize, 1..5)
    ]
}

/// `PROPTEST_CASES` where it is set.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// F32: every message comes back as it was sent, in one frame, whatever portions its bytes arrive in.
    #[test]
    fn a_message_in_one_frame_comes_back(messages in vec(message(), 1..5), portions in portions()) {
        let expected: Vec<Key> = messages.iter().map(key).collect();
        let bytes: Vec<u8> = messages.into_iter().flat_map(|m| pieces(m, None, 1)).flatten().collect();
        let got = feed(&mut decoder(), &bytes, &portions).unwrap();
        prop_assert_eq!(got.iter().map(key).collect::<Vec<_>>(), expected);
    }

    /// F32: streams interleave with one another and with small frames; each ends with its last chunk, and one
    /// that is aborted leaves no trace.
    #[test]
    fn streams_interleave(
        messages in vec((message(), any::<bool>(), 1..3000usize, any::<bool>()), 1..=STREAMS_MAX),
        order in vec(any::<prop::sample::Index>(), 1..40),
        portions in portions(),
    ) {
        let mut sources: Vec<(Key, std::collections::VecDeque<Vec<u8>>, bool)> = Vec::new();
        for (i, (message, streamed, chunk, abort)) in messages.into_iter().enumerate() {
            let key = key(&message);
            let mut pieces = pieces(message, streamed.then_some(i as u16 * 4001), chunk);
            let abort = abort && pieces.len() > 1;
            if abort {
                let last = pieces.len() - 1;
                pieces[last] = frame::encode_abort(i as u16 * 4001).to_vec();
            }
            sources.push((key, pieces.into(), abort));
        }
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for index in order.iter().cycle() {
            if sources.is_empty() {
                break;
            }
            let at = index.index(sources.len());
            bytes.extend(sources[at].1.pop_front().unwrap());
            if sources[at].1.is_empty() {
                let (key, _, aborted) = sources.remove(at);
                if !aborted {
                    expected.push(key);
                }
            }
        }
        let mut decoder = decoder();
        let got = feed(&mut decoder, &bytes, &portions).unwrap();
        prop_assert_eq!(got.iter().map(key).collect::<Vec<_>>(), expected);
        // Every stream is closed: all may be opened again.
        let again: Vec<u8> = (0..STREAMS_MAX as u16).flat_map(|s| stream_head(s * 4001, &[1])).collect();
        prop_assert_eq!(feed(&mut decoder, &again, &[usize::MAX]).unwrap().len(), 0);
    }

    /// F32: no bytes make the decoder panic.
    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..2000), portions in portions()) {
        let _ = feed(&mut decoder(), &bytes, &portions);
    }

    /// F32: no change of a good session's bytes makes the decoder panic or allocate much more than it received.
    #[test]
    fn damaged_frames_never_panic(
        messages in vec((message(), any::<bool>()), 1..4),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        portions in portions(),
    ) {
        let pieces = messages.into_iter().enumerate()
            .flat_map(|(i, (m, streamed))| pieces(m, streamed.then_some(i as u16), 1000));
        let mut bytes: Vec<u8> = pieces.flatten().collect();
        for (at, byte) in damage {
            let at = at.index(bytes.len().min(200));
            bytes[at] = byte;
        }
        let (_, peak) = peak_of(|| feed(&mut decoder(), &bytes, &portions));
        prop_assert!(peak < (4 << 20) + 8 * bytes.len(), "{} bytes took {peak}", bytes.len());
    }
}

/// F32: segments on both sides of every threshold arrive whole through chunks of every size.
#[test]
fn large_segments_arrive_through_chunks_of_any_size() {
    let sizes = [
        0,
        1,
        (16 << 10) - 1,
        16 << 10,
        0,
        64 << 10,
        (1 << 20) - 1,
        1 << 20,
        3 << 20,
        0,
    ];
    for chunk in [1000, 16 << 10, (64 << 10) + 1, CHUNK_MAX] {
        for portion in [1000, 64 << 10, usize::MAX] {
            let segments: Vec<Segment> = sizes
                .iter()
                .enumerate()
                .map(|(i, n)| Segment::Heap(pattern(i, *n)))
                .collect();
            let message = Message::Call {
                id: 1,
                mode: CallMode::Do,
                lane: 0,
                body: Body {
                    refs: Vec::new(),
                    segments,
                },
            };
            let expected = key(&message);
            let bytes = pieces(message, Some(3), chunk).concat();
            let got = feed(&mut decoder(), &bytes, &[portion]).unwrap();
            assert!(
                got.len() == 1 && key(&got[0]) == expected,
                "chunks of {chunk}, portions of {portion}"
            );
        }
    }
}

fn pattern(seed: usize, n: usize) -> Vec<u8> {
    (0..n).map(|i| (i / 7 + seed) as u8).collect()
}

fn call() -> Header {
    Header::call(1, CallMode::Do)
}

/// The head of a call whose segments of these lengths are to follow on a stream.
fn stream_head(stream: u16, lengths: &[u64]) -> Vec<u8> {
    let mut head = frame::encode_head(call(), lengths.iter().map(|_| 0), &[], Some(stream));
    for (length, place) in lengths.iter().zip(head[HEADER..].chunks_mut(8)) {
        place.copy_from_slice(&length.to_le_bytes());
    }
    head
}

fn chunk(stream: u16, len: usize) -> Vec<u8> {
    [&frame::encode_chunk_prefix(stream, len)[..], &vec![0; len]].concat()
}

/// A good frame with the byte or number at an offset replaced.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame::encode_head(call(), [].into_iter(), &[], None);
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

fn raw(kind: u8, header: Header, segments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = frame::encode_head(
        Header { kind, ..header },
        segments.iter().map(|s| s.len()),
        &[],
        None,
    );
    segments.iter().for_each(|s| bytes.extend_from_slice(s));
    bytes
}

/// Decodes malformed bytes, whole and byte by byte; the error is the same and little is allocated.
#[track_caller]
fn assert_refused(bytes: &[u8], expected: ProtocolError) {
    for portion in [usize::MAX, 1] {
        let (error, peak) = peak_of(|| feed(&mut decoder(), bytes, &[portion]).map(|m| m.len()));
        assert_eq!(error, Err(expected.clone()));
        assert!(
            peak < (1 << 20) + 8 * bytes.len(),
            "{} bytes took {peak}",
            bytes.len()
        );
    }
}

/// F32: kinds, flags and values that the protocol does not name are errors.
#[test]
fn what_the_protocol_does_not_name_is_refused() {
    for kind in [0, 23, 255] {
        assert_refused(&patched(4, &[kind]), ProtocolError::UnknownKind(kind));
    }
    for flags in [2, 3, 5, 6, 8, 0x80, 0xff] {
        assert_refused(&patched(5, &[flags]), ProtocolError::UnknownFlags(flags));
    }
    let opened = stream_head(1, &[9]);
    for flags in [1, 3, 4] {
        let mut chunk = chunk(1, 9);
        chunk[5] = flags;
        assert_refused(
            &[&opened[..], &chunk].concat(),
            ProtocolError::UnknownFlags(flags),
        );
    }
    let unknown = |what, value| ProtocolError::UnknownValue(what, value);
    assert_refused(&raw(1, Header { b: 3, ..call() }, &[]), unknown("call mode", 3));
    assert_refused(&raw(2, Header { b: 10, ..call() }, &[]), unknown("status", 10));
    assert_refused(&raw(4, Header { c: 21, ..call() }, &[]), unknown("operation", 21));
    for kind in [9, 10] {
        assert_refused(
            &raw(
                kind,
                Header {
                    id: 1 << 32,
                    ..call()
                },
                &[],
            ),
            unknown("process", u32::MAX),
        );
    }
}

/// F32: lengths over the limits are refused before anything of that size is allocated.
#[test]
fn lengths_over_the_limits_are_refused_before_allocation() {
    let large = HEAD_MAX as u32 + 1;
    assert_refused(
        &patched(0, &large.to_le_bytes()),
        ProtocolError::FrameTooLarge(large.into(), HEAD_MAX as u64),
    );
    let most = patched(0, &u32::MAX.to_le_bytes());
    assert_refused(
        &most,
        ProtocolError::FrameTooLarge(u32::MAX.into(), HEAD_MAX as u64),
    );
    let total = |total| ProtocolError::MessageTooLarge(total, MESSAGE_MAX);
    assert_refused(&stream_head(0, &[1 << 63]), total(1 << 63));
    assert_refused(&stream_head(0, &[1 << 63, 1 << 63]), total(u64::MAX));
    assert_refused(&stream_head(0, &[MESSAGE_MAX, 1]), total(MESSAGE_MAX + 1));
    let mut inline = stream_head(0, &[1 << 63]);
    inline[5] = 0;
    assert_refused(&inline, total(1 << 63));
    let mut chunk = stream_head(0, &[8 << 20]);
    chunk.extend(frame::encode_chunk_prefix(0, CHUNK_MAX + 1));
    assert_refused(
        &chunk,
        ProtocolError::FrameTooLarge(CHUNK_MAX as u64 + 1, CHUNK_MAX as u64),
    );
}

/// F32: a message that is allowed but of which nothing has come takes no memory, nor does one that cannot be held.
#[test]
fn memory_follows_the_bytes_that_came() {
    let head = stream_head(0, &[MESSAGE_MAX / 2, MESSAGE_MAX / 2]);
    let bytes = [head, chunk(0, 100)].concat();
    let (messages, peak) = peak_of(|| decode(&bytes).map(|m| m.len()));
    assert_eq!(messages, Ok(0));
    assert!(peak < 1 << 20, "{peak} bytes");
    let mut unlimited = Decoder::new(Authenticated::for_tests(7), u64::MAX);
    let bytes = [stream_head(0, &[1 << 62]), chunk(0, 1)].concat();
    // What comes of a call is passed over then; what cannot do without its body is refused (lost_bodies.rs).
    let (messages, peak) = peak_of(|| feed(&mut unlimited, &bytes, &[usize::MAX]).map(|m| m.len()));
    assert_eq!(messages, Ok(0));
    assert!(peak < 1 << 20, "{peak} bytes");
}

/// F32: a frame that ends before what it announces is refused.
#[test]
fn truncated_frames_are_refused() {
    let truncated = ProtocolError::Truncated;
    for len in [0u32, 1, 31] {
        assert_refused(&patched(0, &len.to_le_bytes()), truncated("header"));
    }
    assert_refused(&patched(32, &1u32.to_le_bytes()), truncated("tables"));
    assert_refused(&patched(32, &u32::MAX.to_le_bytes()), truncated("tables"));
    assert_refused(&patched(36, &u32::MAX.to_le_bytes()), truncated("tables"));
    assert_refused(&patched(5, &[1]), truncated("stream head"));
    let mut long = stream_head(0, &[5]);
    long.push(0);
    let len = (long.len() - PREFIX) as u32;
    long[..4].copy_from_slice(&len.to_le_bytes());
    assert_refused(&long, truncated("stream head"));
    let mut short = raw(1, call(), &[b"12345"]);
    short[40] = 6;
    assert_refused(&short, truncated("segments"));
    short[40] = 4;
    assert_refused(&short, truncated("segments"));
    assert_refused(&raw(6, call(), &[&[0; 23]]), truncated("reference counts"));
    assert_refused(
        &raw(9, Header { id: 1, ..call() }, &[b"unix:x", &[0; 16]]),
        truncated("member"),
    );
    assert_refused(
        &raw(
            9,
            Header { id: 1, ..call() },
            &[b"unix:x", &[0; 15], b"host", b"", b""],
        ),
        truncated("instance tag"),
    );
    assert_refused(
        &raw(
            9,
            Header { id: 1, ..call() },
            &[b"unix:x", &[0; 16], b"host", &[0; 5], b""],
        ),
        truncated("processes"),
    );
}

/// F32: text that is not UTF-8 is refused where it is parsed, and shown as well as can be where it is only shown.
#[test]
fn text_that_is_not_utf8_is_refused() {
    let header = Header { id: 1, ..call() };
    for member in [
        [&[0xff][..], &[0; 16], b"host", b"", b""],
        [b"unix:x", &[0; 16], &[0xff], b"", b""],
    ] {
        assert_refused(&raw(9, header, &member), ProtocolError::NotText("member"));
    }
    let messages = decode(&raw(10, header, &[&[0xff]])).unwrap();
    assert!(matches!(&messages[0], Message::Leave { pid: 1, reason } if reason == "\u{fffd}"));
}

/// F32: chunks belong to streams that were opened, and fit.
#[test]
fn chunks_that_belong_to_no_stream_or_do_not_fit_are_refused() {
    let opened = stream_head(5, &[3, 4]);
    let then = |more: Vec<u8>| [&opened[..], &more].concat();
    assert_refused(&chunk(5, 1), ProtocolError::UnknownStream(5));
    assert_refused(&frame::encode_abort(5), ProtocolError::UnknownStream(5));
    assert_refused(&then(chunk(6, 1)), ProtocolError::UnknownStream(6));
    assert_refused(&then(opened.clone()), ProtocolError::StreamReused(5));
    assert_refused(&then(chunk(5, 8)), ProtocolError::ChunkOverrun(8, 7));
    assert_refused(
        &then([chunk(5, 5), chunk(5, 3)].concat()),
        ProtocolError::ChunkOverrun(3, 2),
    );
    assert_refused(&then(chunk(5, 0)), ProtocolError::ChunkOverrun(0, 7));
    assert_refused(
        &then([chunk(5, 7), chunk(5, 1)].concat()),
        ProtocolError::UnknownStream(5),
    );
    let mut abort = frame::encode_abort(5);
    abort[0] = 1;
    assert_refused(&then(abort.to_vec()), ProtocolError::ChunkOverrun(1, 0));
    let many: Vec<u8> = (0..=STREAMS_MAX as u16)
        .flat_map(|s| stream_head(s, &[1]))
        .collect();
    assert_refused(&many, ProtocolError::TooManyStreams(STREAMS_MAX));
}

/// F32: a head frame of many buffers and references is as good as any, up to the limit of its size.
#[test]
fn a_head_frame_may_be_as_large_as_its_limit() {
    let refs = vec![
        RemoteRef {
            owner: 1,
            id: RefId { whence: 2, id: 3 }
        };
        1000
    ];
    let used = HEADER - PREFIX + 16 * refs.len() + 8;
    let segments = vec![Segment::Heap(vec![7; HEAD_MAX - used])];
    let message = Message::Call {
        id: 1,
        mode: CallMode::Fetch,
        lane: 0,
        body: Body { refs, segments },
    };
    let expected = key(&message);
    let bytes = pieces(message, None, 1).concat();
    assert_eq!(bytes.len(), PREFIX + HEAD_MAX);
    let got = feed(&mut decoder(), &[&bytes[..], &bytes].concat(), &[100_000]).unwrap();
    assert!(got.iter().map(key).eq([expected.clone(), expected]));
}
