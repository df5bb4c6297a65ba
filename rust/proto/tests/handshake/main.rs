//! Two handshakes joined in memory, with an attacker between them. S-numbers are the rows of the threat model.

// The helpers of a test unwrap as tests do; clippy exempts only functions marked as tests.
#![allow(clippy::unwrap_used)]

mod assignment;
mod attacks;
mod joined;
mod limits;
mod random;
mod versions;

use pydist_proto::handshake::{
    Acceptor, Assigner, Assignment, Authenticated, Cookie, Handshake, HandshakeError, Initiator, Local,
    PRE_AUTH_LIMIT, Secrets, Versions,
};

const HELLO_LEN: usize = 68;
const CHALLENGE_LEN: usize = 48;
const PROOF_LEN: usize = 32;
const INFO_LEN: usize = 2 + 5 + 2 + 5 + 32;

/// A pickle that would touch a file, were it ever loaded.
const PICKLE: &[u8] = b"\x80\x05cos\nsystem\n(X\x0d\x00\x00\x00touch /pwned\ntR.";

fn cookie() -> Cookie {
    Cookie::new(b"the cookie of this very cluster!").unwrap()
}

fn local(id: u32) -> Local {
    let versions = Versions {
        python: (3, 12, 4),
        package: String::from("0.1.0"),
    };
    Local {
        id,
        cluster: [7; 16],
        assigner: None,
        versions,
        allow_python_mismatch: false,
    }
}

fn secrets(nonce: u8) -> Secrets {
    Secrets {
        nonce: [nonce; 32],
        inst: [9; 16],
        channel_binding: [5; 32],
    }
}

fn initiator() -> Handshake {
    Handshake::Initiator(Initiator::new(local(1), &cookie(), secrets(0x11)))
}

fn acceptor() -> Handshake {
    Handshake::Acceptor(Acceptor::new(local(2), &cookie(), secrets(0x22)))
}

/// One end of a joined pair, with all that it sent and the error that it ended with.
struct End {
    handshake: Handshake,
    sent: Vec<u8>,
    error: Option<HandshakeError>,
}

impl End {
    fn new(handshake: Handshake) -> End {
        End {
            handshake,
            sent: Vec::new(),
            error: None,
        }
    }

    fn finished(&self) -> bool {
        self.handshake.is_finished()
    }

    fn take_output(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        while let Some(bytes) = self.handshake.poll_output() {
            assert!(!bytes.is_empty());
            output.extend_from_slice(&bytes);
        }
        self.sent.extend_from_slice(&output);
        output
    }

    fn feed(&mut self, bytes: &[u8]) -> usize {
        match self.handshake.handle_bytes(bytes) {
            Ok(consumed) => consumed,
            Err(error) => {
                self.error = Some(error);
                0
            }
        }
    }
}

/// Joins two ends until neither has more to say. `tamper` sees each flight with its offset in its direction.
fn join_with(
    initiator: Handshake,
    acceptor: Handshake,
    mut tamper: impl FnMut(bool, usize, &mut Vec<u8>),
) -> (End, End) {
    let (mut i, mut a) = (End::new(initiator), End::new(acceptor));
    loop {
        let offset = i.sent.len();
        let mut flight = i.take_output();
        tamper(true, offset, &mut flight);
        let quiet = flight.is_empty();
        a.feed(&flight);
        let offset = a.sent.len();
        let mut flight = a.take_output();
        tamper(false, offset, &mut flight);
        if quiet && flight.is_empty() {
            return (i, a);
        }
        i.feed(&flight);
    }
}

fn join(initiator: Handshake, acceptor: Handshake) -> (End, End) {
    join_with(initiator, acceptor, |_, _, _| ())
}

fn finish(i: End, a: End) -> (Authenticated, Authenticated) {
    assert_eq!((&i.error, &a.error), (&None, &None));
    (i.handshake.finish().unwrap(), a.handshake.finish().unwrap())
}

/// Everything that the two ends of a good session send: (initiator, acceptor).
fn recorded() -> (Vec<u8>, Vec<u8>) {
    let (i, a) = join(initiator(), acceptor());
    assert!(i.finished() && a.finished());
    (i.sent, a.sent)
}
