//! A good handshake with fixed nonces, and the peer in it who knows the cookie and says in its INFO what it likes.

use std::sync::OnceLock;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use pydist_proto::handshake::{Acceptor, Cookie, Handshake, Initiator, Local, Secrets, Versions};
use sha2::{Digest, Sha256};

pub(crate) const HELLO_LEN: usize = 68;
pub(crate) const CHALLENGE_LEN: usize = 48;
pub(crate) const PROOF_LEN: usize = 32;

const COOKIE: &[u8] = b"the cookie of this very cluster!";
const INST: [u8; 16] = [9; 16];
const BINDING: [u8; 32] = [5; 32];

pub(crate) const INITIATOR: u32 = 1;
pub(crate) const ACCEPTOR: u32 = 2;

pub(crate) fn local(id: u32) -> Local {
    Local {
        id,
        cluster: [7; 16],
        assigner: None,
        versions: Versions {
            python: (3, 12, 4),
            package: String::from("0.1.0"),
        },
        allow_python_mismatch: false,
    }
}

fn secrets(nonce: u8) -> Secrets {
    Secrets {
        nonce: [nonce; 32],
        inst: INST,
        channel_binding: BINDING,
    }
}

pub(crate) fn initiator(local: Local) -> Handshake {
    Initiator::new(local, &Cookie::new(COOKIE).unwrap(), secrets(0x11)).into()
}

pub(crate) fn acceptor(local: Local) -> Handshake {
    Acceptor::new(local, &Cookie::new(COOKIE).unwrap(), secrets(0x22)).into()
}

/// What the two ends send.
#[derive(Default)]
pub(crate) struct Session {
    pub(crate) initiator: Vec<u8>,
    pub(crate) acceptor: Vec<u8>,
}

impl Session {
    /// Joins two ends until neither has more to say.
    fn of(mut initiator: Handshake, mut acceptor: Handshake) -> Session {
        let mut session = Session::default();
        loop {
            let to_acceptor = initiator.poll_output().unwrap_or_default();
            acceptor.handle_bytes(&to_acceptor).unwrap();
            let to_initiator = acceptor.poll_output().unwrap_or_default();
            initiator.handle_bytes(&to_initiator).unwrap();
            if to_acceptor.is_empty() && to_initiator.is_empty() {
                break;
            }
            session.initiator.extend(to_acceptor);
            session.acceptor.extend(to_initiator);
        }
        assert!(initiator.is_finished() && acceptor.is_finished());
        session
    }

    /// The session of two ends that have ids.
    pub(crate) fn good() -> &'static Session {
        static GOOD: OnceLock<Session> = OnceLock::new();
        GOOD.get_or_init(|| Session::of(initiator(local(INITIATOR)), acceptor(local(ACCEPTOR))))
    }
}

/// Who sends an INFO.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Initiator,
    Acceptor,
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// The peer of an end under test, by `docs/wire-handshake.md` alone.
pub(crate) struct Peer {
    transcript: [u8; 32],
    keys: Hkdf<Sha256>,
}

impl Peer {
    pub(crate) fn new(hello: &[u8], challenge: &[u8]) -> Peer {
        let mut transcript = Sha256::new();
        for field in [hello, challenge, &BINDING, &INST] {
            transcript.update((field.len() as u32).to_le_bytes());
            transcript.update(field);
        }
        let salt = [&hello[36..68], &challenge[16..48]].concat();
        Peer {
            transcript: transcript.finalize().into(),
            keys: Hkdf::new(Some(&salt), COOKIE),
        }
    }

    fn key(&self, label: &str) -> [u8; 32] {
        let mut key = [0; 32];
        self.keys.expand(label.as_bytes(), &mut key).unwrap();
        key
    }

    pub(crate) fn initiator_proof(&self) -> [u8; 32] {
        let key = self.key("pydist 1 initiator proof");
        hmac(&key, &[b"initiator", &self.transcript])
    }

    pub(crate) fn acceptor_proof(&self, initiator_proof: &[u8]) -> [u8; 32] {
        let key = self.key("pydist 1 acceptor proof");
        hmac(&key, &[b"acceptor", &self.transcript, initiator_proof])
    }

    /// An INFO with its tag, whatever it says.
    pub(crate) fn info(&self, sender: Role, signed: &[u8]) -> Vec<u8> {
        let label = match sender {
            Role::Initiator => "pydist 1 initiator info",
            Role::Acceptor => "pydist 1 acceptor info",
        };
        let tag = hmac(&self.key(label), &[b"info", &self.transcript, signed]);
        [signed, &tag].concat()
    }
}
