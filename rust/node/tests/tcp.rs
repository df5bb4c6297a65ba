//! Processes without an id that dial in, or are dialled, over TCP.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use pydist_node::Node;
use pydist_node::inbox::Item;
use pydist_proto::ids::ProcId;
use pydist_proto::message::Member;
use support::{PATIENCE, node};

const COOKIE: [u8; 32] = [9; 32];
const TAG: [u8; 16] = [4; 16];

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// The head, with the address at which it gives ids, and the listener's token.
fn head() -> (Arc<Node>, String, u64) {
    let head = node(1, String::new(), &COOKIE);
    let (address, token) = head.bind_listener("tcp:127.0.0.1:0", TAG, true).unwrap();
    head.open_listener(token).unwrap();
    (head, address, token)
}

fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("tcp:{}", listener.local_addr().unwrap())
}

/// The id and the listener of the worker that has joined.
fn joined(head: &Arc<Node>) -> (ProcId, u64) {
    let executor = head.register_executor(true);
    loop {
        if let Item::Joined(pid, listener) = head.next_item(&executor, true).unwrap().item {
            head.unregister_executor(&executor);
            return (pid, listener);
        }
    }
}

#[test]
fn one_that_dials_in_tries_each_address_and_is_given_an_id() {
    let (head, address, token) = head();
    head.take_ids(5);
    let worker = node(0, String::new(), &COOKIE);
    let addresses = [closed_port(), closed_port(), address].join("\n");
    worker.dial_head(&addresses, TAG).unwrap();
    worker.wait_open(PATIENCE).unwrap();
    assert_eq!(worker.me(), 7);
    worker.announce_ready("tcp:127.0.0.1:9".to_owned());
    assert_eq!(joined(&head), (7, token));
    let told = head.members().into_iter().find(|m| m.pid == 7).unwrap();
    assert_eq!(told.address, "tcp:127.0.0.1:9");
    eventually("the head is known", || worker.member_ids() == [1, 7]);
    worker.close();
    eventually("it has left", || head.member_ids() == [1]);
    head.close();
}

#[test]
fn one_that_is_dialled_is_given_the_id_that_is_meant_for_it() {
    let (head, ..) = head();
    let worker = node(0, String::new(), &COOKIE);
    let inst = [0; 16];
    let address = worker.listen("tcp:127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(address.trim_start_matches("tcp:")).unwrap();
    head.expect_worker(Member {
        pid: 30,
        ..Member::default()
    });
    head.attach_worker(socket.into(), 30, inst, false).unwrap();
    worker.wait_open(PATIENCE).unwrap();
    assert_eq!(worker.me(), 30);
    worker.announce_ready(address);
    assert_eq!(head.worker_arrived(30, PATIENCE), Some(Ok(())));
    worker.close();
    head.close();
}

#[test]
fn a_failure_names_each_address() {
    let worker = node(0, String::new(), &COOKIE);
    let addresses = [closed_port(), closed_port()];
    worker.dial_head(&addresses.join("\n"), TAG).unwrap();
    let error = worker.wait_open(PATIENCE).unwrap_err();
    for address in addresses {
        assert!(error.contains(&format!("{address}: ")), "{error}");
    }
    for text in ["", "udp:127.0.0.1:1", "tcp:localhost:1", "tcp:127.0.0.1"] {
        assert!(worker.dial_head(text, TAG).is_err(), "{text}");
    }
    worker.close();
}

#[test]
fn a_silent_address_holds_up_no_thread() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (head, address, _) = head();
    let waiting = node(0, String::new(), &COOKIE);
    let at = format!("tcp:{}", silent.local_addr().unwrap());
    let begin = Instant::now();
    waiting.dial_head(&at, TAG).unwrap();
    let worker = node(0, String::new(), &COOKIE);
    worker.dial_head(&address, TAG).unwrap();
    worker.wait_open(PATIENCE).unwrap();
    let error = waiting.wait_open(PATIENCE).unwrap_err();
    assert!(error.contains("took too long"), "{error}");
    assert!(begin.elapsed().as_secs() < 15);
    for node in [waiting, worker, head] {
        node.close();
    }
}

#[test]
fn ids_are_given_just_where_they_are_to_be() {
    let (head, ..) = head();
    let members_only = head.listen("tcp:127.0.0.1:0").unwrap();
    for tag in [TAG, [1; 16]] {
        let worker = node(0, String::new(), &COOKIE);
        worker.dial_head(&members_only, tag).unwrap();
        assert!(worker.wait_open(PATIENCE).is_err());
        assert_eq!(worker.me(), 0);
        worker.close();
    }
    assert_eq!((head.next_id(), head.member_ids()), (2, vec![1]));
    head.close();
}

#[test]
fn one_with_another_cookie_takes_no_id() {
    let (head, address, _) = head();
    let stranger = node(0, String::new(), &[8; 32]);
    stranger.dial_head(&address, TAG).unwrap();
    assert!(stranger.wait_open(PATIENCE).is_err());
    assert_eq!(head.next_id(), 2);
    stranger.close();
    head.close();
}

#[test]
fn a_listener_that_is_closed_or_not_open_yet_lets_nobody_in() {
    let head = node(1, String::new(), &COOKIE);
    let (address, token) = head.bind_listener("tcp:127.0.0.1:0", TAG, true).unwrap();
    let early = node(0, String::new(), &COOKIE);
    early.dial_head(&address, TAG).unwrap();
    assert!(head.member_ids() == [1] && early.me() == 0);
    head.open_listener(token).unwrap();
    early.wait_open(PATIENCE).unwrap();
    head.close_listener(token);
    let late = node(0, String::new(), &COOKIE);
    late.dial_head(&address, TAG).unwrap();
    assert!(late.wait_open(PATIENCE).unwrap_err().contains("refused"));
    for node in [early, late, head] {
        node.close();
    }
}
