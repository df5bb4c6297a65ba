//! Rings beside the sockets of connections: docs/wire.md, "Rings".

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use pydist_proto::frame;
use pydist_proto::message::{Member, Message};
use rustix::fs::SealFlags;
use support::strangers::{Stranger, descriptors, memory, send, stranger};
use support::{bytes, call, echo, eventually, pair};

const FILE: u64 = 4096 + (16 << 10);
const PUT: usize = 0;
const TAKEN: usize = 64;
const FROM_SOCKET: usize = 128;
const SPINS: usize = 192;
const DATA: usize = 4096;
/// The bytes of a ping, and of its answer.
const FRAME: usize = 40;

/// A ring that the test has made, as another implementation would.
struct Ring {
    map: MmapRaw,
    fd: OwnedFd,
}

impl Ring {
    fn new() -> Ring {
        let fd = memory(FILE, SealFlags::SHRINK);
        let map = MmapOptions::new().len(FILE as usize).map_raw(&fd).unwrap();
        Ring { map, fd }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the map has that word, which is aligned, and lives as long as `self`.
        unsafe { &*self.map.as_ptr().add(at).cast() }
    }

    fn set_spins(&self, spins: u32) {
        // SAFETY: as above.
        let word: &AtomicU32 = unsafe { &*self.map.as_ptr().add(SPINS).cast() };
        word.store(spins, Ordering::SeqCst);
    }

    fn put(&self) -> u64 {
        self.word(PUT).load(Ordering::SeqCst)
    }

    fn frame(&self, number: usize) -> Vec<u8> {
        let mut bytes = vec![0; FRAME];
        let from = self.map.as_ptr().wrapping_add(DATA + number * FRAME);
        // SAFETY: the tests write few frames, so that they lie in the map, and have been told of them.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), FRAME) };
        bytes
    }
}

fn whole(message: Message) -> Vec<u8> {
    let encoded = frame::encode(message);
    let body = encoded.body.into_body();
    let lengths = body.segments.iter().map(|s| s.len());
    let mut bytes = frame::encode_head(encoded.header, lengths, &[], None);
    body.segments
        .iter()
        .for_each(|s| bytes.extend_from_slice(s.as_slice()));
    bytes
}

fn ping(stranger: &Stranger, tick: u64) {
    send(&stranger.socket, &whole(Message::Ping { tick }), &[]);
}

fn pong(tick: u64) -> Vec<u8> {
    whole(Message::Pong { tick })
}

/// A peer that has joined and has read all that the socket had, and how many bytes that were.
fn joined() -> (Stranger, u64) {
    let stranger = stranger();
    let member = Member {
        host: "here".to_owned(),
        ..Member::default()
    };
    send(&stranger.socket, &whole(Message::Ready { member }), &[]);
    eventually("it is a member", || stranger.head.member_ids() == [1, 2]);
    ping(&stranger, 0);
    let mut got = Vec::new();
    while !got.ends_with(&pong(0)) {
        let mut buffer = [0; 4096];
        let n = (&stranger.socket).read(&mut buffer).unwrap();
        got.extend_from_slice(&buffer[..n]);
    }
    let read = stranger.received + got.len() as u64;
    (stranger, read)
}

fn from_socket(stranger: &Stranger) -> Vec<u8> {
    let mut bytes = vec![0; FRAME];
    (&stranger.socket).read_exact(&mut bytes).unwrap();
    bytes
}

fn offer(stranger: &Stranger, ring: &Ring) {
    send(&stranger.socket, &frame::encode_ring(), &[ring.fd.as_fd()]);
}

#[test]
fn bytes_go_through_a_ring_while_its_reader_spins_and_has_read_the_socket() {
    let (stranger, mut read) = joined();
    let ring = Ring::new();
    ring.set_spins(1);
    ring.word(FROM_SOCKET).store(read, Ordering::SeqCst);
    offer(&stranger, &ring);
    ping(&stranger, 1);
    eventually("the answer is in the ring", || ring.put() == FRAME as u64);
    assert_eq!(ring.frame(0), pong(1));
    ring.set_spins(0);
    ping(&stranger, 2);
    assert_eq!(from_socket(&stranger), pong(2));
    // It spins, but has not told that it has read what came through the socket.
    ring.set_spins(1);
    ping(&stranger, 3);
    assert_eq!(from_socket(&stranger), pong(3));
    read += 2 * FRAME as u64;
    ring.word(FROM_SOCKET).store(read, Ordering::SeqCst);
    ping(&stranger, 4);
    eventually("the answer is in the ring", || ring.put() == 2 * FRAME as u64);
    assert_eq!(ring.frame(1), pong(4));
}

#[test]
fn what_a_full_ring_does_not_take_goes_through_the_socket() {
    let (stranger, read) = joined();
    let ring = Ring::new();
    ring.set_spins(1);
    ring.word(FROM_SOCKET).store(read, Ordering::SeqCst);
    offer(&stranger, &ring);
    let fit = (FILE as usize - DATA) / FRAME;
    for tick in 0..=fit as u64 {
        ping(&stranger, tick);
        if tick < fit as u64 {
            // One at a time: answers that are ready together are written together.
            eventually("the answer is in the ring", || {
                ring.put() == (tick + 1) * FRAME as u64
            });
        }
    }
    assert_eq!(from_socket(&stranger), pong(fit as u64));
    assert_eq!(ring.put(), (fit * FRAME) as u64);
}

#[test]
fn a_reader_that_lies_about_its_place_gets_all_through_the_socket() {
    let (stranger, read) = joined();
    let ring = Ring::new();
    ring.set_spins(1);
    ring.word(FROM_SOCKET).store(read, Ordering::SeqCst);
    ring.word(TAKEN).store(u64::MAX / 2, Ordering::SeqCst);
    offer(&stranger, &ring);
    ping(&stranger, 1);
    assert_eq!(from_socket(&stranger), pong(1));
    assert_eq!(ring.put(), 0);
}

#[test]
fn a_ring_that_cannot_be_trusted_ends_its_connection_alone() {
    let (pipe, _other) = std::io::pipe().unwrap();
    let bad: [Option<OwnedFd>; 5] = [
        None,
        Some(pipe.into()),
        Some(memory(FILE, SealFlags::GROW)),
        Some(memory(FILE - 1, SealFlags::SHRINK)),
        Some(memory(FILE, SealFlags::SHRINK | SealFlags::WRITE)),
    ];
    for fd in bad {
        let stranger = stranger();
        let files: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
        send(&stranger.socket, &frame::encode_ring(), &files);
        eventually("the connection is closed", || {
            stranger.head.stats().connections == 0
        });
    }
    eventually("the descriptors are closed", || descriptors() == 0);
}

#[test]
fn a_second_ring_ends_the_connection() {
    let (stranger, _) = joined();
    offer(&stranger, &Ring::new());
    ping(&stranger, 1);
    assert_eq!(from_socket(&stranger), pong(1));
    offer(&stranger, &Ring::new());
    eventually("the connection is closed", || {
        stranger.head.stats().connections == 0
    });
}

#[test]
fn messages_of_all_sizes_come_whole_whatever_way_they_take() {
    let pair = pair();
    let serving = echo(&pair.worker, true);
    std::thread::scope(|scope| {
        for thread in 0..3u32 {
            let head = &pair.head;
            scope.spawn(move || {
                for i in 0..1500u32 {
                    let len = match i % 50 {
                        49 => 100_000,
                        n if n > 40 => 3000 + 200 * n as usize,
                        n => n as usize,
                    };
                    let sent: Vec<u8> = (0..len).map(|at| (at as u32 ^ i ^ thread) as u8).collect();
                    assert!(bytes(&call(head, 2, &[&sent])) == [sent]);
                }
            });
        }
    });
    pair.worker.close();
    serving.join().unwrap();
}
