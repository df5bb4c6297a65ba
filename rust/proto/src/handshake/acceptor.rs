//! The handshake as the end that accepted the connection sees it.

use super::driver::{self, Context, Peer};
use super::keys::{Keys, Role};
use super::{Authenticated, HandshakeError, wire};

/// The state of an acceptor.
///
/// ```text
///               HELLO               initiator's proof         initiator's INFO
/// AwaitHello ───────────▶ AwaitProof ────────────────▶ AwaitInfo ──────────▶ Done
///      │      / CHALLENGE     │       / proof + INFO       │
///      │                      │ wrong                      │ wrong tag, other CPython
///      ▼                      ▼                            ▼
///   failed                 failed                       failed
///  (/ VERSION_MISMATCH where no protocol is common, else silent)
/// ```
///
/// What follows a slash is queued to be sent. No proof leaves before the initiator's has been verified.
pub(super) enum State {
    AwaitHello,
    AwaitProof { keys: Keys, peer_id: u32 },
    AwaitInfo { keys: Keys, peer: Peer },
    Done(Authenticated),
}

impl driver::State for State {
    fn name(&self) -> &'static str {
        match self {
            State::AwaitHello => "AwaitHello",
            State::AwaitProof { .. } => "AwaitProof",
            State::AwaitInfo { .. } => "AwaitInfo",
            State::Done(_) => "Done",
        }
    }

    fn start(_context: &Context, _output: &mut Vec<u8>) -> State {
        State::AwaitHello
    }

    fn expected_len(&self, received: &[u8]) -> Result<Option<usize>, HandshakeError> {
        match self {
            State::AwaitHello => wire::hello_len(received).map(Some),
            State::AwaitProof { .. } => Ok(Some(wire::PROOF_LEN)),
            State::AwaitInfo { .. } => wire::info_len(received).map(Some),
            State::Done(_) => Ok(None),
        }
    }

    fn handle_message(
        self,
        context: &Context,
        message: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<State, HandshakeError> {
        match self {
            State::AwaitHello => handle_hello(context, message, output),
            State::AwaitProof { keys, peer_id } => {
                keys.check_initiator_proof(message)?;
                let given = context.assign(peer_id)?;
                output.extend_from_slice(&keys.acceptor_proof(message)?);
                output.extend_from_slice(&context.info(&keys, Role::Acceptor, given.as_ref())?);
                let peer = Peer { id: peer_id, given };
                Ok(State::AwaitInfo { keys, peer })
            }
            State::AwaitInfo { keys, peer } => context
                .handle_info(&keys, Role::Initiator, peer, message)
                .map(State::Done),
            State::Done(authenticated) => Ok(State::Done(authenticated)),
        }
    }

    fn into_authenticated(self) -> Option<Authenticated> {
        match self {
            State::Done(authenticated) => Some(authenticated),
            _ => None,
        }
    }
}

fn handle_hello(context: &Context, message: &[u8], output: &mut Vec<u8>) -> Result<State, HandshakeError> {
    let hello = match wire::decode_hello(message) {
        Ok(hello) => hello,
        Err(error) => {
            if matches!(error, HandshakeError::ProtocolMismatch { .. }) {
                output.extend_from_slice(&wire::encode_version_mismatch());
            }
            return Err(error);
        }
    };
    // Only who has no id, and is about to be given one, need not know the cluster.
    let unknown_there = hello.id == 0 && hello.cluster == [0; 16];
    let unknown_here = context.local.id == 0 && context.local.cluster == [0; 16];
    if hello.cluster != context.local.cluster && unknown_there == unknown_here {
        return Err(HandshakeError::WrongCluster);
    }
    context.check_peer_id(hello.id)?;
    let challenge = wire::encode_challenge(&context.local, &context.secrets.nonce);
    let nonces = (&hello.nonce, &context.secrets.nonce);
    let keys = Keys::derive(&context.cookie, &context.secrets, message, &challenge, nonces)?;
    output.extend_from_slice(&challenge);
    Ok(State::AwaitProof {
        keys,
        peer_id: hello.id,
    })
}
