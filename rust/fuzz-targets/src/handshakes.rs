//! A handshake with a peer that does not know the cookie, but has recorded a session.

use pydist_proto::handshake::{Handshake, HandshakeError, PRE_AUTH_LIMIT};

use crate::input::Input;
use crate::session::{
    self, ACCEPTOR, CHALLENGE_LEN, HELLO_LEN, INITIATOR, PROOF_LEN, Session, acceptor as acceptor_of,
    initiator as initiator_of,
};

/// How an end took what it was fed.
struct Taken {
    sent: Vec<u8>,
    consumed: usize,
    error: Option<HandshakeError>,
    finished: bool,
}

fn feed(mut end: Handshake, bytes: &[u8], size: usize) -> Taken {
    let mut taken = Taken {
        sent: Vec::new(),
        consumed: 0,
        error: None,
        finished: false,
    };
    for portion in bytes.chunks(size) {
        match end.handle_bytes(portion) {
            Ok(n) => taken.consumed += n,
            Err(error) => {
                assert_eq!(end.handle_bytes(b"more"), Err(error.clone()), "an error is final");
                taken.error = Some(error);
                break;
            }
        }
        taken.sent.extend(end.poll_output().unwrap_or_default());
        if end.is_finished() {
            break;
        }
    }
    taken.sent.extend(end.poll_output().unwrap_or_default());
    taken.finished = end.is_finished();
    assert_eq!(end.finish().is_ok(), taken.finished);
    taken
}

/// Feeds an end a beginning of what it was sent in the recorded session, changed, and what the input says.
fn attack(make: fn() -> Handshake, recorded: &[u8], proved: usize, sent_unproved: usize, input: &[u8]) {
    let mut input = Input(input);
    let size = 1 + usize::from(input.u8());
    let kept = usize::from(input.u8()) % (recorded.len() + 1);
    let mut bytes = recorded[..kept].to_vec();
    for _ in 0..input.u8() % 4 {
        let at = usize::from(input.u8());
        let change = input.u8();
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= change;
        }
    }
    bytes.extend_from_slice(input.rest());

    let whole = feed(make(), &bytes, usize::MAX);
    let in_portions = feed(make(), &bytes, size);
    assert_eq!(whole.error, in_portions.error);
    assert_eq!(whole.finished, in_portions.finished);
    for taken in [whole, in_portions] {
        if taken.error.is_none() {
            assert!(taken.finished || taken.consumed == bytes.len());
        }
        if taken.finished {
            assert_eq!(taken.consumed, recorded.len());
            assert!(bytes.starts_with(recorded), "a forged session");
        }
        if !bytes.starts_with(&recorded[..proved]) {
            assert!(taken.sent.len() <= sent_unproved, "a proof to who proved nothing");
            assert!(taken.consumed <= PRE_AUTH_LIMIT);
        }
    }
}

/// An acceptor takes nothing but the recorded session whole, and gives no proof for less.
pub(crate) fn acceptor(input: &[u8]) {
    let make = || acceptor_of(session::local(ACCEPTOR));
    let recorded = &Session::good().initiator;
    attack(make, recorded, HELLO_LEN + PROOF_LEN, CHALLENGE_LEN, input);
}

/// An initiator takes nothing but the recorded session whole, and tells its versions to nobody unproved.
pub(crate) fn initiator(input: &[u8]) {
    let make = || initiator_of(session::local(INITIATOR));
    let recorded = &Session::good().acceptor;
    attack(
        make,
        recorded,
        CHALLENGE_LEN + PROOF_LEN,
        HELLO_LEN + PROOF_LEN,
        input,
    );
}
