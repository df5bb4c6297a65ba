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

const MESSAGES: u64 = 4;
/// The bytes of a head frame without a body, of which the id is at 8.
const FRAME: usize = 40;
/// The kind of what only wakes.
const NOTHING: u8 = 19;

/// Reads as `Node::read_ways` does; true where the way that was asked has nothing more.
fn read(link: &Link, ring_alone: bool, got: &mut Vec<u8>) {
    // Short, so that what was put aside is taken up in parts.
    let mut buffer = [0; 56];
    loop {
        match link.receive_in_order(&mut buffer, ring_alone) {
            Ok((n, ..)) => got.extend_from_slice(&buffer[..n]),
            Err(Failure::Again) => return,
            Err(_) => unreachable!("the connection is whole"),
        }
    }
}

fn ids(bytes: &[u8]) -> Vec<u64> {
    let frames = bytes.chunks_exact(FRAME).filter(|frame| frame[4] != NOTHING);
    frames
        .map(|frame| u64::from_le_bytes(frame[8..16].try_into().unwrap()))
        .collect()
}

/// A thread writes while another spins, stops, sleeps in the socket and spins again.
#[test]
fn who_sleeps_is_woken_and_all_comes_in_order() {
    check(20_000, || {
        let flags = SocketFlags::CLOEXEC;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let (writing, reading) = (Arc::new(link(near)), link(far));
        reading.join_by_ring(&writing);
        writing.opened(2);
        reading.opened(1);
        let done = Arc::new(AtomicBool::new(false));
        let (ended, sender) = (done.clone(), writing.clone());
        let thread = shuttle::thread::spawn(move || {
            for n in 0..MESSAGES {
                sender.send_owned(Header::call(n, CallMode::Do), Arc::new(Body::default()), false);
            }
            ended.store(true, Ordering::SeqCst);
        });
        let ring = reading.ways.reader().unwrap();
        let mut got = Vec::new();
        while ids(&got).len() < MESSAGES as usize {
            ring.set_spins(true);
            for _ in 0..2 {
                read(&reading, true, &mut got);
                shuttle::thread::yield_now();
            }
            ring.set_spins(false);
            read(&reading, true, &mut got);
            if ids(&got).len() == MESSAGES as usize {
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
        assert_eq!(ids(&got), (0..MESSAGES).collect::<Vec<u64>>());
        thread.join().unwrap();
        // Whatever is left wakes, and says nothing.
        read(&reading, false, &mut got);
        assert_eq!(ids(&got).len(), MESSAGES as usize);
    });
}
