//! Connections with TLS: what they carry, who is let in, and what strangers may do.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pydist_node::{CallFailed, Node, Payload, TlsFiles};
use pydist_proto::message::Member;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use support::{PATIENCE, bytes, call, echo, events, eventually, folder, node, payload};

const COOKIE: [u8; 32] = [9; 32];
const TAG: [u8; 16] = [4; 16];

/// The head, and the address at which it gives ids.
fn head() -> (Arc<Node>, String) {
    let head = node(1, String::new(), &COOKIE);
    let address = admit(&head);
    (head, address)
}

fn admit(head: &Node) -> String {
    let (address, token) = head.bind_listener("tls:127.0.0.1:0", TAG, true).unwrap();
    head.open_listener(token).unwrap();
    assert!(address.starts_with("tls:127.0.0.1:"));
    address
}

/// A worker that has joined, and listens with TLS.
fn join(address: &str) -> Arc<Node> {
    let worker = node(0, String::new(), &COOKIE);
    dial(&worker, address).unwrap();
    worker
}

fn dial(worker: &Node, address: &str) -> Result<(), String> {
    worker.dial_head(address, TAG).unwrap();
    worker.wait_open(PATIENCE)?;
    let at = worker.listen("tls:127.0.0.1:0").unwrap();
    worker.announce_ready(at);
    Ok(())
}

fn refused(address: &str, setup: impl FnOnce(&Node)) -> String {
    let worker = node(0, String::new(), &COOKIE);
    setup(&worker);
    worker.dial_head(address, TAG).unwrap();
    let error = worker.wait_open(PATIENCE).unwrap_err();
    worker.close();
    error
}

fn connect(address: &str) -> TcpStream {
    let socket = TcpStream::connect(address.split_once(':').unwrap().1).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Reads until the other end closes.
fn read_all(mut socket: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    match socket.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    all
}

fn pattern(n: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(n)
    .collect()
}

#[test]
fn messages_of_all_sizes_go_both_ways_and_between_workers() {
    let (head, address) = head();
    let workers = [join(&address), join(&address)];
    let echoes: Vec<_> = workers.iter().map(|w| echo(w, true)).collect();
    eventually("all know all", || {
        workers.iter().all(|w| w.member_ids() == [1, 2, 3])
    });
    for n in [0, 1, 16_383, 16_385, 65_536, 300_000, 5_000_003] {
        let data = pattern(n, 3);
        for (from, to) in [(&head, 2), (&workers[0], 3), (&workers[1], 2)] {
            let outcome = call(from, to, &[b"head", &data]);
            assert_eq!(bytes(&outcome), [b"head".to_vec(), data.clone()], "{n}");
        }
    }
    for node in [&workers[0], &workers[1], &head] {
        node.close();
    }
    echoes.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn large_messages_cross_each_other_and_small_ones_pass_between() {
    let (head, address) = head();
    let worker = join(&address);
    let echo = [echo(&worker, true), echo(&worker, false)];
    eventually("the worker is a member", || head.member_ids() == [1, 2]);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let head = &head;
            scope.spawn(move || {
                let data = pattern(20_000_000, seed);
                assert!(bytes(&call(head, 2, &[&data])) == [data]);
            });
        }
        for i in 0..200_u32 {
            let data = i.to_le_bytes();
            assert_eq!(bytes(&call(&head, 2, &[&data])), [data.to_vec()]);
        }
    });
    eventually("nothing is queued", || head.stats().queued_bytes == 0);
    worker.close();
    echo.into_iter().for_each(|thread| thread.join().unwrap());
    eventually("its end is seen", || head.member_ids() == [1]);
    head.close();
}

#[test]
fn an_id_that_is_meant_for_one_that_is_dialled() {
    let (head, _) = head();
    let worker = node(0, String::new(), &COOKIE);
    let address = worker.listen("tls:127.0.0.1:0").unwrap();
    head.expect_worker(Member {
        pid: 30,
        ..Member::default()
    });
    head.attach_worker(connect(&address).into(), 30, [0; 16], true)
        .unwrap();
    worker.wait_open(PATIENCE).unwrap();
    worker.announce_ready(address);
    assert_eq!(head.worker_arrived(30, PATIENCE), Some(Ok(())));
    worker.close();
    head.close();
}

/// Passes bytes on between two ends, unless it is to stand still.
struct Relay {
    address: String,
    stands: Arc<AtomicBool>,
}

impl Relay {
    fn to(target: &str) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tls:{}", listener.local_addr().unwrap());
        let stands = Arc::new(AtomicBool::new(false));
        let (target, gate) = (target.to_owned(), stands.clone());
        std::thread::spawn(move || {
            let (near, _) = listener.accept().unwrap();
            let far = connect(&target);
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let gate = gate.clone();
                std::thread::spawn(move || pass_on(from, to, &gate));
            }
        });
        Relay { address, stands }
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, stands: &AtomicBool) {
    let mut buffer = vec![0; 60_000];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        while stands.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn f20_a_peer_that_does_not_read_holds_up_its_senders_until_it_does() {
    let (head, address) = head();
    let relay = Relay::to(&address);
    let worker = join(&relay.address);
    let thread = echo(&worker, true);
    eventually("the worker is a member", || head.member_ids() == [1, 2]);
    assert_eq!(bytes(&call(&head, 2, &[b"x"])), [b"x"]);
    relay.stands.store(true, Ordering::SeqCst);

    // Small messages are queued up to the limit, then the sender is asked whether to give up.
    let small = pattern(60_000, 1);
    let asked = |segments: &[&[u8]]| {
        head.call_do(
            2,
            Payload {
                signalled: Some(&|| true),
                ..payload(segments)
            },
        )
    };
    while asked(&[&small]).is_ok() {
        assert!(head.stats().queued_bytes < 80 << 20, "the queue has no limit");
    }
    assert!(head.stats().queued_bytes > 60 << 20);
    // A large one waits for the connection, not in the queue.
    assert_eq!(asked(&[&pattern(3_000_000, 2)]), Err(CallFailed::Signal));

    relay.stands.store(false, Ordering::SeqCst);
    let data = pattern(3_000_000, 3);
    assert!(bytes(&call(&head, 2, &[&data])) == [data]);
    eventually("nothing is queued", || head.stats().queued_bytes == 0);
    worker.close();
    thread.join().unwrap();
    head.close();
}

/// Sends up to `most` messages to a worker behind a relay that stands; returns how many it took until one was queued, and
/// whether all of them came once the relay passes bytes on again.
fn send_while_it_stands(most: u64) -> (u64, bool) {
    let (head, address) = head();
    let relay = Relay::to(&address);
    let worker = join(&relay.address);
    let thread = echo(&worker, true);
    eventually("the worker is a member", || head.member_ids() == [1, 2]);
    assert_eq!(bytes(&call(&head, 2, &[b"x"])), [b"x"]);
    relay.stands.store(true, Ordering::SeqCst);
    let before = worker.stats().messages_received;
    let message = pattern(60_000, 1);
    let mut sent = 0;
    while sent < most && head.stats().queued_bytes == 0 {
        head.call_do(2, payload(&[&message])).unwrap();
        sent += 1;
    }
    relay.stands.store(false, Ordering::SeqCst);
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    let all_came = || worker.stats().messages_received >= before + sent;
    while !all_came() && std::time::Instant::now() < deadline {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let came = all_came();
    worker.close();
    thread.join().unwrap();
    head.close();
    (sent, came)
}

#[test]
fn what_is_encrypted_and_not_yet_sent_waits_for_no_other_message() {
    let (full, came) = send_while_it_stands(10_000);
    assert!(came);
    // With fewer messages nothing is queued, but the session holds what the socket does not take.
    for fewer in 1..=3 {
        assert!(send_while_it_stands(full - fewer).1, "{fewer} fewer than {full}");
    }
}

#[test]
fn s6_an_end_without_tls_is_refused_and_told_so() {
    let (head, address) = head();
    let plain = address.replace("tls:", "tcp:");
    let error = refused(&plain, |_| {});
    assert!(error.contains("the other side speaks TLS"), "{error}");
    let (open, token) = head.bind_listener("tcp:127.0.0.1:0", TAG, true).unwrap();
    head.open_listener(token).unwrap();
    let error = refused(&open.replace("tcp:", "tls:"), |_| {});
    assert!(error.contains("may speak no TLS"), "{error}");
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("tls:{}", web.local_addr().unwrap());
    let answer = std::thread::spawn(move || {
        let (mut socket, _) = web.accept().unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        read_all(socket);
    });
    let error = refused(&at, |_| {});
    assert!(error.contains("the other side speaks no TLS"), "{error}");
    answer.join().unwrap();
    assert_eq!((head.next_id(), head.member_ids()), (2, vec![1]));
    head.close();
}

#[test]
fn s3_the_cookie_is_needed_on_an_encrypted_connection_too() {
    let (head, address) = head();
    let stranger = node(0, String::new(), &[8; 32]);
    stranger.dial_head(&address, TAG).unwrap();
    let error = stranger.wait_open(PATIENCE).unwrap_err();
    assert!(error.contains("ended in its handshake"), "{error}");
    assert_eq!(head.next_id(), 2);
    stranger.close();
    head.close();
}

#[test]
fn f56_what_is_no_tls_is_closed_and_a_genuine_worker_joins() {
    let (head, address) = head();
    let oversized = [
        [0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff].to_vec(),
        vec![7; 70_000],
    ]
    .concat();
    let openers: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x89PYDIST\x01",
        b"\x16\x03\x01\xff\xff\x00",
        &[0x16; 600],
        &pattern(4000, 9),
        &oversized,
    ];
    for opener in openers {
        let mut socket = connect(&address);
        // The other end may have closed before it has taken everything.
        let _ = socket.write_all(opener);
        let said = read_all(socket);
        assert!(said.is_empty() || said[0] == 0x15, "{said:?}");
        assert!(said.len() < 20, "{said:?}");
    }
    for _ in 0..100 {
        drop(connect(&address));
    }
    join(&address).close();
    head.close();
}

#[test]
fn f56_bytes_before_tls_is_agreed_on_are_few() {
    events::keep();
    let (head, address) = head();
    let mut socket = connect(&address);
    // A hello of 60,000 bytes that comes in records of one byte each.
    let begun = [
        [0x16, 3, 1, 0, 4, 1, 0, 0xea, 0x60].as_slice(),
        &[0x16, 3, 1, 0, 1, 7].repeat(60_000),
    ]
    .concat();
    let _ = socket.write_all(&begun);
    let said = format!("refused a connection from {}: ", socket.local_addr().unwrap());
    assert!(read_all(socket).is_empty());
    eventually("a line in the log", || !events::told(&said).is_empty());
    assert!(events::told(&said)[0].contains("more than 32768 bytes before TLS"));
    head.close();
}

#[test]
fn s5_a_slow_handshake_ends_at_one_deadline() {
    let (head, address) = head();
    let begin = std::time::Instant::now();
    let mut slow = connect(&address);
    let silent = connect(&address);
    let thread = std::thread::spawn(move || {
        // A hello of 200 bytes, of which a byte comes now and then.
        let _ = slow.write_all(&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]);
        slow.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        loop {
            match slow.read(&mut [0; 100]) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _ = slow.write_all(&[7]);
                }
                Err(_) => return,
            }
        }
    });
    assert!(read_all(silent).is_empty());
    thread.join().unwrap();
    let took = begin.elapsed();
    assert!((4..15).contains(&took.as_secs()), "{took:?}");
    join(&address).close();
    head.close();
}

/// An authority, which writes the files of a process.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn files(&self, folder: &Path, name: &str) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["any.name".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let write = |what: &str, text: &str| {
            let path = folder.join(format!("{name}.{what}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsFiles {
            ca: write("ca", &self.pem),
            cert: write("cert", &cert.pem()),
            key: write("key", &key.serialize_pem()),
        }
    }
}

#[test]
fn s6_with_files_just_certificates_of_the_authority_are_taken() {
    let folder = folder();
    let ours = Authority::new("ours");
    let theirs = Authority::new("theirs");
    let head = node(1, String::new(), &COOKIE);
    let files = ours.files(&folder, "head");
    head.use_tls_files(&files).unwrap();
    head.use_tls_files(&files).unwrap();
    let address = admit(&head);

    let worker = node(0, String::new(), &COOKIE);
    worker.use_tls_files(&ours.files(&folder, "worker")).unwrap();
    dial(&worker, &address).unwrap();
    let thread = echo(&worker, true);
    eventually("the worker is a member", || head.member_ids() == [1, 2]);
    assert_eq!(bytes(&call(&head, 2, &[b"x"])), [b"x"]);

    let error = refused(&address, |_| {});
    assert!(
        error.contains("refused the TLS session: CertificateRequired"),
        "{error}"
    );
    let strange = theirs.files(&folder, "strange");
    let error = refused(&address, |node| node.use_tls_files(&strange).unwrap());
    assert!(
        error.contains("the certificate of the other side is not accepted"),
        "{error}"
    );
    // One that takes our certificate, and whose own is of another authority.
    let mixed = TlsFiles {
        ca: files.ca.clone(),
        ..strange
    };
    let error = refused(&address, |node| node.use_tls_files(&mixed).unwrap());
    assert!(error.contains("refused the TLS session: UnknownCA"), "{error}");
    assert_eq!(head.next_id(), 3);
    worker.close();
    thread.join().unwrap();
    head.close();
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn one_with_files_takes_no_key_that_a_process_has_made() {
    let folder = folder();
    let files = Authority::new("ours").files(&folder, "worker");
    let (head, address) = head();
    let error = refused(&address, |node| node.use_tls_files(&files).unwrap());
    assert!(
        error.contains("the certificate of the other side is not accepted"),
        "{error}"
    );
    let error = head.use_tls_files(&files).unwrap_err().to_string();
    assert!(error.contains("a key that it has made"), "{error}");
    head.close();
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = folder();
    let authority = Authority::new("ours");
    let good = authority.files(&folder, "good");
    let other = authority.files(&folder, "other");
    let empty = folder.join("empty");
    std::fs::write(&empty, "nothing").unwrap();
    let missing = folder.join("missing");
    let node = node(0, String::new(), &COOKIE);
    for bad in [&empty, &missing] {
        for files in [
            TlsFiles {
                ca: bad.clone(),
                ..good.clone()
            },
            TlsFiles {
                cert: bad.clone(),
                ..good.clone()
            },
            TlsFiles {
                key: bad.clone(),
                ..good.clone()
            },
        ] {
            let error = node.use_tls_files(&files).unwrap_err().to_string();
            assert!(error.contains(&bad.display().to_string()), "{error}");
        }
    }
    let mixed = TlsFiles {
        key: other.key.clone(),
        ..good.clone()
    };
    let error = node.use_tls_files(&mixed).unwrap_err().to_string();
    assert!(error.contains("cannot be used"), "{error}");
    node.use_tls_files(&good).unwrap();
    let error = node.use_tls_files(&other).unwrap_err().to_string();
    assert!(error.contains("other files"), "{error}");
    node.close();
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_addresses_of_this_machine_are_none_of_loopback() {
    for ip in pydist_node::interface_addresses().unwrap() {
        assert!(!ip.is_loopback() && !ip.is_unspecified(), "{ip}");
        TcpListener::bind((ip, 0)).unwrap();
    }
}
