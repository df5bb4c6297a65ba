//! The inputs that fuzzing begins with: good sessions and one message of each kind.

use pydist_proto::body::{Body, Segment};
use pydist_proto::frame::{self, Header};
use pydist_proto::ids::{RefId, RemoteRef};
use pydist_proto::message::{
    CallMode, Heartbeat, Member, Message, RefDelta, RefOp, Status, Unmapped, Withdrawal,
};

use crate::frames::written;
use crate::session::Session;

const REFERENCE: RefId = RefId { whence: 2, id: 1 };

fn body() -> Body {
    Body {
        refs: vec![RemoteRef {
            owner: 2,
            id: REFERENCE,
        }],
        segments: vec![Segment::Heap(b"a pickle".to_vec()), Segment::Heap(vec![7; 40])],
    }
}

fn every_message() -> Vec<Message> {
    let member = || Member {
        pid: 4,
        ospid: 4321,
        address: "unix:/tmp/x\ntcp:127.0.0.1:9000".to_owned(),
        inst: [9; 16],
        host: "host".to_owned(),
        connected: vec![2, 3],
        config: b"rack 1".to_vec(),
    };
    let mut all = vec![
        Message::Done { id: 1 },
        Message::Withdraw {
            req: 1,
            target: REFERENCE,
            how: Withdrawal::Undo,
        },
        Message::Confirm {
            taken: vec![(REFERENCE, 5)],
        },
        Message::Refs {
            deltas: vec![RefDelta {
                id: REFERENCE,
                holder: 2,
                giver: 3,
                delta: -1,
            }],
        },
        Message::Unmapped {
            files: vec![Unmapped {
                file: 1,
                copied: true,
            }],
        },
        Message::Interrupt,
        Message::Exit,
        Message::Join { member: member() },
        Message::Leave {
            pid: 3,
            reason: "signal 9".to_owned(),
        },
        Message::Ready { member: member() },
        Message::Ping { tick: 1 },
        Message::Pong { tick: 1 },
        Message::Stacks { req: 1 },
        Message::Observe { req: 1 },
        Message::Heartbeat(Heartbeat {
            interval_ms: 5000,
            timeout_ms: 30_000,
            listens: true,
            pumped: false,
        }),
    ];
    for mode in [CallMode::Fetch, CallMode::Future, CallMode::Do] {
        let (id, lane, body) = (1, 0, body());
        all.push(Message::Call { id, mode, lane, body });
    }
    for status in [Status::Value, Status::Yes, Status::Exited] {
        let (id, body) = (1, body().into());
        all.push(Message::Result { id, status, body });
    }
    for op in [RefOp::Fetch, RefOp::Put, RefOp::ChannelCreate, RefOp::ChannelTake] {
        all.push(Message::RefOp {
            req: 1,
            op,
            target: REFERENCE,
            body: body(),
        });
    }
    all.push(Message::LookUp { req: 1, pid: 3 });
    all
}

/// A message in a stream of two chunks.
fn stream() -> Vec<u8> {
    let header = Header::call(1, CallMode::Fetch);
    let mut bytes = frame::encode_head(header, [5, 0, 3].into_iter(), &[], Some(7));
    for chunk in [b"hello".as_slice(), b"you"] {
        bytes.extend(frame::encode_chunk_prefix(7, chunk.len()));
        bytes.extend(chunk);
    }
    bytes
}

/// A message with a segment in a memory file.
fn shared() -> Vec<u8> {
    let file = frame::FileName {
        number: 1,
        inode: 2,
        descriptor: 3,
    };
    let header = Header::call(1, CallMode::Fetch);
    let mut bytes = frame::encode_shared_head(header, [4, 70_000].into_iter(), &[], file, 4);
    bytes.extend(b"abcd");
    bytes
}

pub(crate) fn frames() -> Vec<Vec<u8>> {
    let frames: Vec<Vec<u8>> = every_message().into_iter().map(written).collect();
    let abort = [&stream()[..64], &frame::encode_abort(7)].concat();
    let mut seeds: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| [b"\0\x03", &frame[..]].concat())
        .collect();
    seeds.push([b"\0\x40", &frames.concat()[..]].concat());
    seeds.push([b"\0\0", &stream()[..], &abort].concat());
    seeds.push([b"\x02\x10", &shared()[..], &shared()].concat());
    seeds.push([b"\x01\x10", &frame::encode_ring()[..]].concat());
    seeds
}

/// A frame as `any_frame` reads it.
fn as_fields(message: Message) -> Vec<u8> {
    let encoded = frame::encode(message);
    let Header { kind, id, a, b, c } = encoded.header;
    let body = encoded.body.get();
    let mut out = vec![kind];
    let wide = |out: &mut Vec<u8>, number: u64| match u8::try_from(number) {
        Ok(small @ ..254) => out.push(small),
        _ => {
            out.push(255);
            out.extend(number.to_le_bytes());
        }
    };
    for number in [id, a, b.into(), c.into()] {
        wide(&mut out, number);
    }
    out.push((body.refs.len() as u8) << 5 | body.segments.len() as u8);
    for reference in &body.refs {
        for number in [
            reference.owner.into(),
            reference.id.whence.into(),
            reference.id.id,
        ] {
            wide(&mut out, number);
        }
    }
    for segment in &body.segments {
        out.push(segment.len() as u8);
        out.extend(segment.as_slice());
    }
    out
}

pub(crate) fn messages() -> Vec<Vec<u8>> {
    every_message().into_iter().map(as_fields).collect()
}

pub(crate) fn chunks() -> Vec<Vec<u8>> {
    vec![
        // Two streams whose chunks alternate, with a small message between.
        b"\xff\0\x00\x01\x05\0\x03\0\x08\x00\x09\0\x02\x02\x0a\x04\x07\x04\x0c".to_vec(),
        // A long one in pieces that go straight to where they stay.
        b"\xff\xff\x01\x02\xff\x7f\0\0\xff\x7f\x03\0\x04\x03\0\x08\x04".to_vec(),
        // One that is given up, and its number used again.
        b"\x10\0\x00\x00\x09\0\x02\x03\x06\x00\x00\x09\0\x04".to_vec(),
        // Too many, reused, unknown, too long, empty.
        (0..20u8).flat_map(|n| [n << 3, 0, 9, 0]).collect(),
        b"\x10\0\x00\x00\x09\0\x00\x00\x09\0".to_vec(),
        b"\x10\0\x02\x05".to_vec(),
        b"\x10\0\x00\x00\x09\0\x02\x0a".to_vec(),
        b"\x10\0\x00\x00\x09\0\x02\0".to_vec(),
    ]
}

/// The whole session; the first half of it with a pickle behind; what another protocol says.
fn handshake(recorded: &[u8]) -> Vec<Vec<u8>> {
    let whole = recorded.len() as u8;
    let pickle = b"\x80\x05cos\nsystem\n(X\x0d\x00\x00\x00touch /pwned\ntR.";
    let mut seeds = vec![
        vec![0, whole, 0],
        vec![255, whole, 0],
        vec![255, whole, 1, 40, 1],
        [b"\x10\0\0", recorded].concat(),
        [b"\x10\0\0".as_slice(), b"GET / HTTP/1.1\r\n\r\n"].concat(),
    ];
    for kept in [8, 48, 68, 80, 100] {
        seeds.push([&[7, kept, 0], pickle.as_slice()].concat());
    }
    seeds
}

pub(crate) fn acceptor() -> Vec<Vec<u8>> {
    handshake(&Session::good().initiator)
}

pub(crate) fn initiator() -> Vec<Vec<u8>> {
    handshake(&Session::good().acceptor)
}

pub(crate) fn info() -> Vec<Vec<u8>> {
    let good = b"\x01\x03\x03\x0c\x04\x02\x050.1.0";
    let other = b"\x01\x03\x03\x0e\x00\x02\x050.2.0";
    let assignment = [b"\x03\x15\x07\0\0\0\x03".as_slice(), &[9; 16]].concat();
    let mut seeds = Vec::new();
    for choices in [0xf0, 0xf1] {
        seeds.push([&[choices][..], good].concat());
        seeds.push([&[choices][..], other].concat());
        seeds.push([&[choices | 2][..], other].concat());
        seeds.push([&[choices | 4][..], good, &assignment].concat());
        seeds.push([&[choices][..], good, b"\x80\x02ab"].concat());
        seeds.push([&[choices | 8, 12, 0][..], good].concat());
    }
    seeds
}

pub(crate) fn connection() -> Vec<Vec<u8>> {
    let messages = messages();
    let mut seeds = Vec::new();
    for role in [0, 1] {
        let mut all = vec![role, 255];
        for message in &messages {
            all.push(0);
            all.extend(message);
            // A call, a future, a channel and a wait of the user's own.
            all.extend(b"\x05\x00\x05\x01\x05\x03\x05\x04\x00\x00\x05\x09\x00\x05\x09\x01");
            seeds.push([&[role, 0, 0][..], message].concat());
        }
        seeds.push(all);
        seeds.push([&[role, 9, 4, 1, 200, 0, 1, 1, 3, 8][..], b"12345678"].concat());
    }
    let good = Session::good();
    for (choices, session) in [(2, &good.acceptor), (3, &good.initiator)] {
        let len = session.len() as u8;
        seeds.push([&[choices, 20, 3, len][..], session, b"\x00", &messages[0]].concat());
    }
    seeds
}
