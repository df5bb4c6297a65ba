//! The INFO of a peer that knows the cookie: a list of types, lengths and values.

use pydist_proto::handshake::{Handshake, INFO_LIMIT};

use crate::input::Input;
use crate::session::{self, ACCEPTOR, INITIATOR, Peer, Role, Session};

/// The end under test and its peer, just before the peer's INFO.
fn proved(receiver: Role, id: u32, lenient: bool) -> (Handshake, Peer) {
    let mut local = session::local(id);
    local.allow_python_mismatch = lenient;
    if receiver == Role::Acceptor {
        let hello = &Session::good().initiator[..session::HELLO_LEN];
        let mut end = session::acceptor(local);
        end.handle_bytes(hello).unwrap();
        let peer = Peer::new(hello, &end.poll_output().unwrap());
        end.handle_bytes(&peer.initiator_proof()).unwrap();
        (end, peer)
    } else {
        let challenge = &Session::good().acceptor[..session::CHALLENGE_LEN];
        let mut end = session::initiator(local);
        let hello = end.poll_output().unwrap();
        end.handle_bytes(challenge).unwrap();
        let peer = Peer::new(&hello, challenge);
        let proof = end.poll_output().unwrap();
        assert_eq!(proof, peer.initiator_proof());
        end.handle_bytes(&peer.acceptor_proof(&proof)).unwrap();
        (end, peer)
    }
}

/// The fields of an INFO, or nothing where they do not fill it.
fn fields(mut rest: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut fields = Vec::new();
    while let [kind, len, tail @ ..] = rest {
        let (value, tail) = tail.split_at_checked(usize::from(*len))?;
        fields.push((*kind, value));
        rest = tail;
    }
    rest.is_empty().then_some(fields)
}

/// Whether an end with this id takes an INFO, by `docs/wire-handshake.md`.
fn is_good(signed: &[u8], id: u32, lenient: bool) -> bool {
    let [low, high, rest @ ..] = signed else {
        return false;
    };
    let len = usize::from(u16::from_le_bytes([*low, *high]));
    let Some(fields) = fields(rest).filter(|_| len == rest.len() && len <= 478) else {
        return false;
    };
    let one = |wanted: u8| {
        let mut found = fields.iter().filter(|(kind, _)| *kind == wanted);
        let value = found.next().map(|(_, value)| *value);
        value.filter(|_| found.next().is_none())
    };
    let count = |wanted: u8| fields.iter().filter(|(kind, _)| *kind == wanted).count();
    let (Some(python), Some(package)) = (one(1), one(2)) else {
        return false;
    };
    let printable = package.len() <= 64 && package.iter().all(|byte| matches!(byte, b' '..=b'~'));
    let equal = python.starts_with(&[3, 12]) && package == b"0.1.0";
    let assigned = match one(3) {
        Some(value) => value.len() == 21 && value[..4] != [0; 4] && value[5..] != [0; 16] && id == 0,
        None => count(3) == 0 && id != 0,
    };
    let known = fields.iter().all(|(kind, _)| matches!(kind, 1..=3 | 0x80..));
    python.len() == 3 && printable && (equal || lenient) && assigned && known
}

/// An end takes an INFO exactly where the page on the handshake says so.
pub(crate) fn info(input: &[u8]) {
    let mut input = Input(input);
    let choices = input.u8();
    let receiver = [Role::Initiator, Role::Acceptor][usize::from(choices & 1)];
    let lenient = choices & 2 != 0;
    let own = [INITIATOR, ACCEPTOR][usize::from(choices & 1)];
    let id = if choices & 4 != 0 { 0 } else { own };
    let size = 1 + usize::from(choices >> 4);
    let mut signed = Vec::new();
    if choices & 8 == 0 {
        signed.extend((input.0.len() as u16).to_le_bytes());
    }
    signed.extend(input.rest());

    let (mut end, peer) = proved(receiver, id, lenient);
    end.poll_output();
    let sender = if receiver == Role::Acceptor {
        Role::Initiator
    } else {
        Role::Acceptor
    };
    let message = peer.info(sender, &signed);
    let fed: Result<Vec<usize>, _> = message.chunks(size).map(|part| end.handle_bytes(part)).collect();
    assert_eq!(end.poll_output(), None, "an end has nothing more to say");
    let good = is_good(&signed, id, lenient);
    assert_eq!(end.is_finished(), good, "{signed:?}: {fed:?}");
    if good {
        assert!(message.len() <= INFO_LIMIT);
        let authenticated = end.finish().unwrap();
        assert_eq!(authenticated.assigned().is_some(), id == 0);
        assert!(authenticated.peer_versions().package.len() <= 64);
    }
}
