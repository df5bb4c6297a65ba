//! Peers that speak something else or too much.

use super::*;

/// Other protocols are refused at their first byte, with no answer, in both roles.
#[test]
fn foreign_protocols_are_refused_without_a_word() {
    let openers: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /api HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\x00\x00\x00",
    ];
    for opener in openers {
        for input in [opener, &opener[..1]] {
            let mut end = acceptor();
            assert_eq!(end.handle_bytes(input), Err(HandshakeError::BadMagic));
            assert_eq!(end.poll_output(), None);
            let mut end = initiator();
            end.poll_output().unwrap();
            assert_eq!(end.handle_bytes(input), Err(HandshakeError::BadMagic));
            assert_eq!(end.poll_output(), None);
        }
    }
}

/// The first wrong byte of the magic closes, wherever it stands.
#[test]
fn each_byte_of_the_magic_is_checked_when_it_comes() {
    let (sent_i, sent_a) = recorded();
    for at in 0..7 {
        for (mut end, good) in [(acceptor(), &sent_i), (initiator(), &sent_a)] {
            assert_eq!(end.handle_bytes(&good[..at]), Ok(at));
            assert_eq!(end.handle_bytes(&[good[at] ^ 1]), Err(HandshakeError::BadMagic));
        }
    }
}

#[test]
fn unknown_flags_roles_and_kinds_are_refused() {
    let (sent_i, sent_a) = recorded();
    let cases: [(Handshake, &[u8], usize, u8, &str); 7] = [
        (acceptor(), &sent_i, 7, 4, "this is not a HELLO"),
        (acceptor(), &sent_i, 12, 1, "unknown flags in HELLO"),
        (acceptor(), &sent_i, 13, 0x80, "unknown flags in HELLO"),
        (acceptor(), &sent_i, 14, 2, "unknown role in HELLO"),
        (initiator(), &sent_a, 7, 4, "this is not an answer to HELLO"),
        (
            initiator(),
            &sent_a,
            8,
            2,
            "CHALLENGE chooses a protocol that was not offered",
        ),
        (initiator(), &sent_a, 10, 1, "unknown flags in CHALLENGE"),
    ];
    for (handshake, good, at, value, text) in cases {
        let mut end = End::new(handshake);
        end.take_output();
        let mut input = good.to_vec();
        input[at] = value;
        end.feed(&input);
        assert!(
            matches!(&end.error, Some(HandshakeError::Malformed(found)) if *found == text),
            "{:?}",
            end.error
        );
        assert!(end.take_output().is_empty());
    }
}

/// A trickle consumes no more than the limit, whatever it consists of, before the end refuses it.
#[test]
fn a_slow_trickle_meets_the_byte_limit() {
    let (sent_i, sent_a) = recorded();
    for (make, good) in [(acceptor as fn() -> Handshake, &sent_i), (initiator, &sent_a)] {
        for cut in 0..good.len().min(HELLO_LEN) {
            let mut end = End::new(make());
            let mut consumed = end.feed(&good[..cut]);
            while end.error.is_none() {
                consumed += end.feed(&[0xff]);
                assert!(consumed <= PRE_AUTH_LIMIT);
            }
        }
    }
}

/// An authenticated peer that announces a long INFO is refused before the INFO comes.
#[test]
fn a_long_info_is_refused_on_its_length() {
    let (sent_i, sent_a) = recorded();
    for (mut end, good) in [
        (acceptor(), &sent_i[..HELLO_LEN + PROOF_LEN]),
        (initiator(), &sent_a[..CHALLENGE_LEN + PROOF_LEN]),
    ] {
        assert_eq!(end.handle_bytes(good), Ok(good.len()));
        assert_eq!(end.handle_bytes(&[0xdf]), Ok(1));
        assert_eq!(end.handle_bytes(&[0x01]), Err(HandshakeError::TooManyBytes));
        assert_eq!(end.poll_output(), None);
    }
}
