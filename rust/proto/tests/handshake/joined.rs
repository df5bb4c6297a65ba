//! The two ends of a good session.

use std::collections::HashSet;

use super::*;

#[test]
fn two_ends_of_one_cluster_authenticate_each_other() {
    let (i, a) = join(initiator(), acceptor());
    assert_eq!(i.sent.len(), HELLO_LEN + PROOF_LEN + INFO_LEN);
    assert_eq!(a.sent.len(), CHALLENGE_LEN + PROOF_LEN + INFO_LEN);
    let (i, a) = finish(i, a);
    assert_eq!((i.peer_id(), a.peer_id()), (2, 1));
    assert_eq!(i.session(), a.session());
    assert_eq!(i.peer_versions(), &local(2).versions);
    assert_eq!(a.peer_versions(), &local(1).versions);
}

/// The bytes of a session with fixed nonces equal those that Python's hmac and hashlib give
/// (`docs/wire-handshake.md` holds the same example), so the layout cannot change unnoticed.
#[test]
fn a_session_has_the_documented_bytes() {
    let (i, a) = join(initiator(), acceptor());
    assert_eq!(hex(&i.sent), EXAMPLE_INITIATOR);
    assert_eq!(hex(&a.sent), EXAMPLE_ACCEPTOR);
    assert_eq!(hex(finish(i, a).0.session()), EXAMPLE_SESSION);
}

const EXAMPLE_INITIATOR: &str = "89505944495354010100010000000100070707070707070707070707070707070100000011111111111111111111111111111111111111111111111111111111111111119c50e6c8e1a690d4af1fa9272d0f0cd27ca3edbe7ceb54450d0ca05c6f471f340c000103030c040205302e312e30794a644cd36f9b4218f0e1bc7c6820337cfe59c36f798afa1ae0bba27d555a75";
const EXAMPLE_ACCEPTOR: &str = "895059444953540201000000020000002222222222222222222222222222222222222222222222222222222222222222560500843c2b3727613096bdf81d9a2c66d9a3142e6f8ecdb4c871b0755a8baa0c000103030c040205302e312e3025327a224a2bafcb5b1b765689e42ac6b2683afbaf1fcafc312fc96dd93d8b4c";
const EXAMPLE_SESSION: &str = "345b379dd3d822c5aceefc3b4f3da2a7cf5fc3991ad7eb56f86b0f3565968785";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_session_id_is_new_whichever_nonce_is_new() {
    let mut seen = HashSet::new();
    for (nonce_i, nonce_a) in [(1, 2), (1, 3), (4, 2), (2, 1)] {
        let i = Initiator::new(local(1), &cookie(), secrets(nonce_i));
        let a = Acceptor::new(local(2), &cookie(), secrets(nonce_a));
        let (i, a) = join(i.into(), a.into());
        assert!(seen.insert(*finish(i, a).0.session()));
    }
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let (sent_i, sent_a) = recorded();
    for (mut end, input) in [(End::new(initiator()), &sent_a), (End::new(acceptor()), &sent_i)] {
        for byte in input {
            assert!(!end.finished());
            assert_eq!(end.feed(&[*byte]), 1);
            end.take_output();
        }
        assert!(end.finished());
    }
}

#[test]
fn bytes_after_the_handshake_are_left_to_the_message_decoder() {
    let (sent_i, sent_a) = recorded();
    for (mut end, input) in [(End::new(initiator()), sent_a), (End::new(acceptor()), sent_i)] {
        assert_eq!(end.feed(&[&input, PICKLE].concat()), input.len());
        assert_eq!(end.feed(PICKLE), 0);
        assert!(end.finished());
        end.take_output();
        end.handshake.finish().unwrap();
    }
}

#[test]
fn a_result_needs_the_end_of_the_handshake_and_of_its_output() {
    let mut end = initiator();
    assert_eq!(end.handle_bytes(&[]), Ok(0));
    assert!(!end.is_finished());
    assert_eq!(end.finish().unwrap_err(), HandshakeError::NotFinished);
    assert_eq!(acceptor().finish().unwrap_err(), HandshakeError::NotFinished);
    let (_, sent_a) = recorded();
    let mut end = initiator();
    end.handle_bytes(&sent_a).unwrap();
    assert!(end.is_finished());
    assert_eq!(end.finish().unwrap_err(), HandshakeError::OutputPending);
}

#[test]
fn an_error_is_final() {
    let mut end = acceptor();
    for _ in 0..3 {
        assert_eq!(end.handle_bytes(b"GET"), Err(HandshakeError::BadMagic));
    }
    assert_eq!(end.handle_bytes(&recorded().0), Err(HandshakeError::BadMagic));
    assert_eq!(end.handle_bytes(&[]), Err(HandshakeError::BadMagic));
    assert!(!end.is_finished());
    assert_eq!(end.finish().unwrap_err(), HandshakeError::BadMagic);
}

#[test]
fn a_cookie_has_at_least_16_bytes() {
    assert_eq!(
        Cookie::new(&[1; 15]).unwrap_err(),
        HandshakeError::CookieTooShort(15)
    );
    assert_eq!(Cookie::new(&[1; 16]).unwrap().as_bytes(), [1; 16]);
}
