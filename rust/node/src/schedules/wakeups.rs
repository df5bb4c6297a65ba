//! Wake-ups: who reads the sockets, the queue of dropped references, the writer of a connection, and calls.

use std::sync::Arc;

use pydist_proto::body::Body;
use pydist_proto::frame::Header;
use pydist_proto::machine::Incoming;
use pydist_proto::message::{CallMode, Status};
use pydist_proto::record::Outcome;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use super::{assert_rests, body, check, link, node, spawn};
use crate::inbox::Item;
use crate::node::Node;
use crate::waiter::{Cell, Queue, Wake};

fn reactor(node: &Arc<Node>) -> shuttle::thread::JoinHandle<()> {
    spawn(node, crate::reactor::run)
}

fn done(n: u64) -> Outcome {
    Outcome {
        body: Arc::new(body(n)),
        ..Outcome::bare(Status::Value, 1)
    }
}

/// F44: finalizers on several threads drop references; the reactor or a waiting thread that reads in its place
/// releases every one, without being told again.
#[test]
fn dropped_references_are_released() {
    check(1_000, || {
        let node = node();
        let reading = reactor(&node);
        let cell = Cell::new();
        let waiting = cell.clone();
        let leader = spawn(&node, move |node| waiting.wait(node, None, true).unwrap());
        let droppers = [(); 2].map(|()| {
            let ids = [(); 3].map(|()| node.create_channel(1));
            spawn(&node, move |node| {
                ids.into_iter().for_each(|id| node.drop_handle(id))
            })
        });
        droppers.into_iter().for_each(|dropper| dropper.join().unwrap());
        while node.machine.lock().counts().refs_owned > 0 {
            shuttle::thread::yield_now();
        }
        Wake::Cell(cell).complete(done(1), &node.driver);
        leader.join().unwrap();
        node.close();
        reading.join().unwrap();
        assert_rests(&node);
    });
}

/// Threads that wait, of which one reads the sockets, are all woken by others, with the reactor beside them.
#[test]
fn every_waiting_thread_is_woken() {
    check(3_000, || {
        let node = node();
        let reading = reactor(&node);
        let cells = [(); 3].map(|()| Cell::new());
        let waiting = cells
            .clone()
            .map(|cell| spawn(&node, move |node| cell.wait(node, None, true).unwrap()));
        for cell in cells {
            spawn(&node, move |node| {
                Wake::Cell(cell).complete(done(1), &node.driver)
            });
        }
        waiting
            .into_iter()
            .for_each(|thread| drop(thread.join().unwrap()));
        node.close();
        reading.join().unwrap();
    });
}

/// Threads that wait are woken by others, and the reactor ends, though another one reads in passing and sees what wakes them.
#[test]
fn who_reads_in_passing_takes_no_wake_up_from_others() {
    check(3_000, || {
        let node = node();
        let reading = reactor(&node);
        let cells = [(); 2].map(|()| Cell::new());
        let waiting = cells
            .clone()
            .map(|cell| spawn(&node, move |node| cell.wait(node, None, true).unwrap()));
        let passing = spawn(&node, |node| (0..3).for_each(|_| node.read_in_passing()));
        for cell in cells {
            spawn(&node, move |node| {
                Wake::Cell(cell).complete(done(1), &node.driver)
            });
        }
        waiting
            .into_iter()
            .for_each(|thread| drop(thread.join().unwrap()));
        node.close();
        passing.join().unwrap();
        reading.join().unwrap();
    });
}

/// Outcomes of several threads come through a queue: each once, those of one thread in their order.
#[test]
fn a_queue_brings_every_outcome_once() {
    check(3_000, || {
        let node = node();
        let queue = Queue::new(false).unwrap();
        for thread in 0..2u64 {
            let queue = queue.clone();
            spawn(&node, move |node| {
                (0..2).for_each(|n| queue.push(10 * thread + n, done(n), node));
            });
        }
        let mut keys = Vec::new();
        while keys.len() < 4 {
            keys.extend(queue.wait(&node, None).unwrap().iter().map(|(key, _)| *key));
        }
        for thread in 0..2 {
            let own: Vec<u64> = keys.iter().copied().filter(|key| key / 10 == thread).collect();
            assert_eq!(own, [10 * thread, 10 * thread + 1]);
        }
        assert!(queue.drain().is_empty());
    });
}

/// Messages of several threads are written, whoever holds the writer and while the connection opens: each whole,
/// those of one thread in their order, and none stays behind.
#[test]
fn no_message_stays_behind_in_a_connection() {
    check(9_000, || {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let link = Arc::new(link(ours));
        let senders = [0u64, 1].map(|thread| {
            let link = link.clone();
            shuttle::thread::spawn(move || {
                for n in 0..2 {
                    link.send_owned(
                        Header::call(10 * thread + n, CallMode::Do),
                        Arc::new(Body::default()),
                        false,
                    );
                }
            })
        });
        link.opened(2);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert_eq!(link.queued_bytes(), 0, "nothing waits");
        let mut bytes = [0u8; 512];
        let (n, _) = recv(&theirs, &mut bytes, RecvFlags::DONTWAIT).unwrap();
        let frames = bytes[..n].chunks_exact(40);
        assert!(frames.remainder().is_empty());
        let ids: Vec<u64> = frames
            .map(|frame| u64::from_le_bytes(frame[8..16].try_into().unwrap()))
            .collect();
        assert_eq!(ids.len(), 4);
        for thread in 0..2 {
            let own: Vec<u64> = ids.iter().copied().filter(|id| id / 10 == thread).collect();
            assert_eq!(own, [10 * thread, 10 * thread + 1]);
        }
    });
}

/// F35: calls that come while executors fall asleep are all run, by one executor or the other.
#[test]
fn every_call_finds_an_executor() {
    check(1_200, || {
        let node = node();
        let reading = reactor(&node);
        let executors = [true, false].map(|leads| {
            spawn(&node, move |node| {
                let executor = node.register_executor(true);
                let mut ran = Vec::new();
                loop {
                    match node.next_item(&executor, leads).map(|taken| taken.item) {
                        Ok(Item::Call(call)) => {
                            node.call_started(&executor);
                            ran.push(call.id);
                        }
                        Ok(Item::Stop) => break,
                        _ => {}
                    }
                }
                node.unregister_executor(&executor);
                ran
            })
        });
        let left = Arc::new(crate::sync::Mutex::new(0));
        for id in [1, 2] {
            let left = left.clone();
            spawn(&node, move |node| {
                let (mode, body) = (CallMode::Do, Body::default());
                node.push_item(Item::Call(Incoming {
                    src: 2,
                    id,
                    mode,
                    lane: 0,
                    body,
                }));
                *left.lock() += 1;
            });
        }
        while *left.lock() < 2 || node.inbox.has_calls() {
            shuttle::thread::yield_now();
        }
        node.close();
        let mut ran: Vec<u64> = executors
            .into_iter()
            .flat_map(|executor| executor.join().unwrap())
            .collect();
        ran.sort_unstable();
        assert_eq!(ran, [1, 2]);
        reading.join().unwrap();
    });
}
