//! Large buffers between two cores: through shared memory, private to each side, and given back.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use pydist_node::waiter::{Cell, Wake};
use pydist_node::{Node, Payload};
use pydist_proto::body::{Body, Segment};
use pydist_proto::frame::{self, FileName, Header};
use pydist_proto::ids::RemoteRef;
use pydist_proto::machine::Watch;
use pydist_proto::message::{CallMode, Member, Message, RefOp, Status, Unmapped};
use pydist_proto::record::{Outcome, Want};
use rustix::fs::SealFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use support::strangers::{descriptors, join, memory, send, stranger};
use support::{call, deadline, echo, eventually, folder, pair, payload};

const MIB: usize = 1 << 20;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31) ^ (i >> 11) ^ seed) as u8).collect()
}

fn shared(outcome: &Outcome, index: usize) -> bool {
    matches!(outcome.body.segments[index], Segment::Shared(..))
}

fn at_rest(nodes: &[&Node]) {
    eventually("shared memory is given back", || {
        nodes.iter().all(|node| node.stats().shared_bytes == 0)
    });
}

#[test]
fn long_segments_are_shared_and_short_ones_are_not() {
    let pair = pair();
    echo(&pair.worker, true);
    let (long, short) = (pattern(3 * MIB, 1), pattern(1000, 2));
    let before = pair.head.stats().bytes_sent;
    let outcome = call(&pair.head, 2, &[b"pickle", &long, &short, b"", &long[..MIB]]);
    let expected: [&[u8]; 5] = [b"pickle", &long, &short, b"", &long[..MIB]];
    for (segment, expected) in outcome.body.segments.iter().zip(expected) {
        assert!(segment.as_slice() == expected);
    }
    assert_eq!(
        [0, 1, 2, 3, 4].map(|i| shared(&outcome, i)),
        [false, true, false, false, true]
    );
    assert!(pair.head.stats().shared_bytes >= 4 * MIB);
    assert!(pair.head.stats().bytes_sent - before >= 4 * MIB as u64);
    drop(outcome);
    at_rest(&[&pair.head, &pair.worker]);
    assert_eq!(pair.head.stats().share_fallbacks, 0);
}

#[test]
fn what_is_still_held_is_not_overwritten_by_later_messages() {
    let pair = pair();
    echo(&pair.worker, true);
    let mut held: VecDeque<(usize, usize, Outcome)> = VecDeque::new();
    let check = |(len, seed, outcome): (usize, usize, Outcome)| {
        assert!(shared(&outcome, 1));
        assert!(
            outcome.body.segments[1].as_slice() == pattern(len, seed),
            "{len} {seed}"
        );
    };
    for round in 0..60usize {
        let len = MIB + (round * 7919 % 5) * 300_000;
        let outcome = call(&pair.head, 2, &[b"", &pattern(len, round)]);
        held.push_back((len, round, outcome));
        // Every third one is held to the end, the others for a while.
        if round % 3 != 0 && held.len() > 8 {
            let at = (round * 13) % held.len();
            check(held.remove(at).unwrap());
        }
    }
    held.into_iter().for_each(check);
    at_rest(&[&pair.head, &pair.worker]);
}

#[test]
fn a_value_is_passed_on_in_the_memory_in_which_it_came() {
    let pair = pair();
    let value = pattern(2 * MIB, 3);
    let id = pair.head.create_future(2).unwrap();
    let target = RemoteRef { owner: 2, id };
    let put = Cell::new();
    pair.head
        .ref_op(
            target,
            RefOp::Put,
            payload(&[b"v", &value]),
            Wake::Cell(put.clone()),
        )
        .unwrap();
    assert_eq!(
        put.wait(&pair.head, deadline(), true).unwrap().status,
        Status::Yes
    );
    let (head, worker) = (pair.head.stats().shared_bytes, pair.worker.stats().shared_bytes);
    assert_eq!((head, worker), (2 * MIB, 2 * MIB));
    let cell = Cell::new();
    let outcome = match pair.head.watch(id, Want::Value, Wake::Cell(cell.clone())) {
        Watch::Now(outcome) => outcome,
        Watch::Later(_) => cell.wait(&pair.head, deadline(), true).unwrap(),
    };
    assert!(shared(&outcome, 1) && outcome.body.segments[1].as_slice() == value);
    // The worker has made no memory of its own for that: only maps of the head's.
    assert_eq!(pair.worker.stats().shared_bytes, 2 * MIB);
    pair.head.drop_handle(id);
    eventually("the owner frees the value", || {
        pair.worker.stats().counts.refs_owned == 0
    });
    assert!(outcome.body.segments[1].as_slice() == value);
    drop(outcome);
    at_rest(&[&pair.head, &pair.worker]);
}

#[test]
fn one_copy_serves_several_messages() {
    let pair = pair();
    echo(&pair.worker, true);
    let value = pattern(4 * MIB, 4);
    let kept = pair.head.keep(&[b"", &value], &[]).unwrap();
    let mut answers = Vec::new();
    for name in [b"a", b"b", b"c"] {
        let cell = Cell::new();
        let sent = Payload {
            segments: &[name, kept.segments[1].as_slice()],
            refs: &[],
            kept: Some(&kept),
            signalled: Some(&|| false),
        };
        pair.head.call_fetch(2, sent, Wake::Cell(cell.clone())).unwrap();
        answers.push((name, cell.wait(&pair.head, deadline(), true).unwrap()));
    }
    for (name, answer) in &answers {
        assert_eq!(answer.body.segments[0].as_slice(), &name[..]);
        assert!(answer.body.segments[1].as_slice() == value);
    }
    // What the head has made itself, and what came back in three files of the worker.
    eventually("the worker gives the arguments back", || {
        pair.head.stats().shared_bytes == 4 * 4 * MIB
    });
    drop((answers, kept));
    at_rest(&[&pair.head, &pair.worker]);
}

#[test]
fn without_shared_memory_messages_are_streamed() {
    let folder = folder();
    let pair = support::pair_in(folder, 0);
    echo(&pair.worker, true);
    let value = pattern(3 * MIB, 7);
    let outcome = call(&pair.head, 2, &[b"", &value]);
    assert!(!shared(&outcome, 1) && outcome.body.segments[1].as_slice() == value);
    assert_eq!(pair.head.stats().shared_bytes, 0);
}

fn call_frame(len: usize, fd: Option<&OwnedFd>) -> Vec<u8> {
    let header = Header::call(1, CallMode::Do);
    let file = FileName {
        number: 1,
        inode: fd.map_or(0, |fd| rustix::fs::fstat(fd).unwrap().st_ino),
        descriptor: fd.map_or(0, |fd| fd.as_raw_fd() as u32),
    };
    frame::encode_shared_head(header, [0, len].into_iter(), &[], file, 0)
}

#[test]
fn a_descriptor_that_cannot_be_trusted_ends_its_connection_alone() {
    let (pipe, _other) = std::io::pipe().unwrap();
    let long = MIB as u64;
    let bad: [Option<OwnedFd>; 4] = [
        None,
        Some(pipe.into()),
        Some(memory(long, SealFlags::GROW)),
        Some(memory(long - 1, SealFlags::SHRINK)),
    ];
    for fd in bad {
        let stranger = stranger();
        let files: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
        send(&stranger.socket, &call_frame(MIB, fd.as_ref()), &files);
        eventually("the connection is closed", || {
            stranger.head.stats().connections == 0
        });
        assert_eq!(stranger.head.stats().shared_bytes, 0);
    }
    eventually("the descriptors are closed", || descriptors() == 0);
}

#[test]
fn descriptors_that_nobody_announced_are_closed() {
    let stranger = stranger();
    let fd = memory(MIB as u64, SealFlags::SHRINK);
    let ping = frame::encode_head(
        Header {
            kind: 12,
            ..Header::default()
        },
        [].into_iter(),
        &[],
        None,
    );
    for _ in 0..9 {
        send(&stranger.socket, &ping, &[fd.as_fd(), fd.as_fd(), fd.as_fd()]);
    }
    eventually("the connection is closed", || {
        stranger.head.stats().connections == 0
    });
    drop(fd);
    eventually("the descriptors are closed", || descriptors() == 0);
}

#[test]
fn files_that_were_never_sent_can_be_given_back() {
    let stranger = stranger();
    let bytes = unmapped(99, true);
    let received = stranger.head.stats().messages_received;
    send(&stranger.socket, &bytes, &[]);
    eventually("it is read", || {
        stranger.head.stats().messages_received > received
    });
    assert_eq!(stranger.head.stats().connections, 1);
}

/// Receives the descriptor that comes with a call, and reads on to the end of its frame.
fn receive(socket: &UnixStream) -> OwnedFd {
    loop {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 4096];
        let buffers = &mut [IoSliceMut::new(&mut buffer)];
        let got = rustix::net::recvmsg(socket, buffers, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        assert!(got.bytes > 0);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                return fds.next().unwrap();
            }
        }
    }
}

fn content(fd: &OwnedFd, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert_eq!(rustix::io::pread(fd, &mut bytes[..], 0).unwrap(), len);
    bytes
}

fn unmapped(file: u64, copied: bool) -> Vec<u8> {
    let files = vec![Unmapped { file, copied }];
    let encoded = frame::encode(Message::Unmapped { files });
    let body = encoded.body.into_body();
    let mut bytes = frame::encode_head(encoded.header, [12].into_iter(), &[], None);
    bytes.extend_from_slice(body.segments[0].as_slice());
    bytes
}

/// A file that process 3 got is used again exactly where it told that nobody maps it any more.
fn used_again(give_back: impl FnOnce(UnixStream)) -> bool {
    let pair = pair();
    let (socket, _) = join(&pair.head, &pair.folder, 3);
    let member = Member {
        host: "here".to_owned(),
        ..Member::default()
    };
    let ready = frame::encode(Message::Ready { member });
    let body = ready.body.into_body();
    let lengths = body.segments.iter().map(|s| s.len());
    let mut bytes = frame::encode_head(ready.header, lengths, &[], None);
    body.segments
        .iter()
        .for_each(|s| bytes.extend_from_slice(s.as_slice()));
    send(&socket, &bytes, &[]);
    eventually("it is a member", || pair.head.member_ids() == [1, 2, 3]);
    let (first, second) = (pattern(2 * MIB, 1), pattern(2 * MIB, 2));
    pair.head.call_do(3, payload(&[b"", &first])).unwrap();
    let fd = receive(&socket);
    assert!(content(&fd, first.len()) == first);
    assert_eq!(pair.head.stats().shared_bytes, 2 * MIB);
    give_back(socket);
    at_rest(&[&pair.head]);
    // One of a few that are held together takes the file, if it is there at all.
    let keep = |_| pair.head.keep(&[b"", &second], &[]).unwrap();
    let kept: Vec<Body> = (0..10).map(keep).collect();
    assert!(kept.iter().all(|body| body.segments[1].as_slice() == second));
    content(&fd, first.len()) == second
}

#[test]
fn memory_is_used_again_once_its_receiver_has_unmapped_it() {
    let number = 1;
    let mut kept_open = None;
    assert!(used_again(|socket| {
        send(&socket, &unmapped(number, false), &[]);
        kept_open = Some(socket);
    }));
}

#[test]
fn memory_that_a_forked_child_may_still_map_is_not_used_again() {
    let number = 1;
    let mut kept_open = None;
    assert!(!used_again(|socket| {
        send(&socket, &unmapped(number, true), &[]);
        kept_open = Some(socket);
    }));
}

#[test]
fn memory_that_a_process_may_map_whose_connection_was_lost_is_not_used_again() {
    assert!(!used_again(drop));
}
