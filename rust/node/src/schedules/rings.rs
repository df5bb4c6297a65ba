//! A ring beside the socket of a connection: nothing is lost, nothing overtakes, and who sleeps is woken.

use std::os::fd::AsFd;
use std::sync::Arc;

use pydist_proto::body::Body;
use pydist_proto::frame::Header;
use pydist_proto::message::CallMode;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use super::{check, link};
use crate::link::Link;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::tls::Failure;

/// The bytes of a message that does not fit into a ring.
const LONG: usize = 5000;
const LENGTHS: [usize; 4] = [0, LONG, 0, 0];
/// The kind of what only wakes.
const NOTHING: u8 = 19;

/// Reads as `Node::read_ways` does; true where the way that was asked has nothing more.
fn read(link: &Link, ring_alone: bool, got: &mut Vec<u8>) {
    // Short, so that what was put aside is taken up in parts.
    let mut buffer = [0; 3000];
    loop {
        match link.receive_in_order(&mut buffer, ring_alone) {
            Ok((n, ..)) => got.extend_from_slice(&buffer[..n]),
            Err(Failure::Again) => return,
            Err(_) => unreachable!("the connection is whole"),
        }
    }
}

/// The ids of the whole frames among some bytes.
fn ids(mut bytes: &[u8]) -> Vec<u64> {
    let mut ids = Vec::new();
    while let Some((len, _)) = bytes.split_first_chunk() {
        let Some((frame, rest)) = bytes.split_at_checked(8 + u32::from_le_bytes(*len) as usize) else {
            break;
        };
        if frame[4] != NOTHING {
            ids.push(u64::from_le_bytes(frame[8..16].try_into().unwrap()));
        }
        bytes = rest;
    }
    ids
}

/// A connection from one end, which writes, to the other, which has a ring; both are open.
fn ends() -> (Arc<Link>, Link) {
    let flags = SocketFlags::CLOEXEC;
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let (writing, reading) = (Arc::new(link(near)), link(far));
    reading.join_by_ring(&writing);
    writing.opened(2);
    reading.opened(1);
    (writing, reading)
}

/// Writes messages with bodies of some lengths; the number of each is its id.
fn write(link: &Link, lengths: &[usize]) {
    for (n, len) in lengths.iter().enumerate() {
        let body = Arc::new(Body::of_bytes(vec![0; *len]));
        link.send_owned(Header::call(n as u64, CallMode::Do), body, false);
    }
}

/// Short messages, more than are read at once, and a long one are written while another thread is about to read the socket: what comes out of that
/// is behind what is in the ring.
#[test]
fn the_socket_does_not_overtake_the_ring() {
    check(8_000, || {
        let (writing, reading) = ends();
        reading.ways.reader().unwrap().set_spins(true);
        let sender = writing.clone();
        let thread = shuttle::thread::spawn(move || write(&sender, &[2000, 2000, LONG, 0]));
        let mut got = Vec::new();
        read(&reading, false, &mut got);
        thread.join().unwrap();
        read(&reading, false, &mut got);
        assert_eq!(ids(&got), [0, 1, 2, 3]);
    });
}

/// A thread writes while another spins, stops, sleeps in the socket and spins again.
#[test]
fn who_sleeps_is_woken_and_all_comes_in_order() {
    check(20_000, || {
        let (writing, reading) = ends();
        let done = Arc::new(AtomicBool::new(false));
        let (ended, sender) = (done.clone(), writing.clone());
        let thread = shuttle::thread::spawn(move || {
            write(&sender, &LENGTHS);
            ended.store(true, Ordering::SeqCst);
        });
        let ring = reading.ways.reader().unwrap();
        let mut got = Vec::new();
        while ids(&got).len() < LENGTHS.len() {
            ring.set_spins(true);
            for _ in 0..2 {
                read(&reading, true, &mut got);
                shuttle::thread::yield_now();
                // As if the socket had been reported.
                read(&reading, false, &mut got);
            }
            ring.set_spins(false);
            read(&reading, true, &mut got);
            if ids(&got).len() == LENGTHS.len() {
                break;
            }
            // It sleeps until the socket has something.
            loop {
                let over = done.load(Ordering::SeqCst);
                let peeked = recv(
                    reading.fd().as_fd(),
                    &mut [0u8; 1],
                    RecvFlags::PEEK | RecvFlags::DONTWAIT,
                );
                if peeked.is_ok() {
                    break;
                }
                assert!(!over, "the reader sleeps, and nothing is to wake it");
                shuttle::thread::yield_now();
            }
            read(&reading, false, &mut got);
        }
        assert_eq!(ids(&got), [0, 1, 2, 3]);
        thread.join().unwrap();
        // Whatever is left wakes, and says nothing.
        read(&reading, false, &mut got);
        assert_eq!(ids(&got).len(), LENGTHS.len());
        assert_eq!(writing.queued_bytes(), 0);
    });
}
