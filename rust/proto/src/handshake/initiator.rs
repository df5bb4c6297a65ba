//! The handshake as the end that made the connection sees it.

use super::driver::{self, Context, Peer};
use super::keys::{Keys, Role};
use super::{Authenticated, HandshakeError, wire};

/// The state of an initiator.
///
/// ```text
///              CHALLENGE              acceptor's proof          acceptor's INFO
/// AwaitAnswer ───────────▶ AwaitProof ────────────────▶ AwaitInfo ──────────▶ Done
///  (HELLO)      / proof        │          / INFO            │
///      │ VERSION_MISMATCH      │ wrong                      │ wrong tag, other CPython
///      ▼                       ▼                            ▼
///   failed                  failed                       failed
/// ```
///
/// What follows a slash is queued to be sent.
pub(super) enum State {
    AwaitAnswer {
        hello: Vec<u8>,
    },
    AwaitProof {
        keys: Keys,
        peer_id: u32,
        our_proof: [u8; 32],
    },
    AwaitInfo {
        keys: Keys,
        peer: Peer,
    },
    Done(Authenticated),
}

impl driver::State for State {
    fn name(&self) -> &'static str {
        match self {
            State::AwaitAnswer { .. } => "AwaitAnswer",
            State::AwaitProof { .. } => "AwaitProof",
            State::AwaitInfo { .. } => "AwaitInfo",
            State::Done(_) => "Done",
        }
    }

    fn start(context: &Context, output: &mut Vec<u8>) -> State {
        let hello = wire::encode_hello(&context.local, &context.secrets.nonce);
        output.extend_from_slice(&hello);
        State::AwaitAnswer { hello }
    }

    fn expected_len(&self, received: &[u8]) -> Result<Option<usize>, HandshakeError> {
        match self {
            State::AwaitAnswer { .. } => wire::answer_len(received).map(Some),
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
            State::AwaitAnswer { hello } => {
                let challenge = wire::decode_answer(message)?;
                context.check_peer_id(challenge.id)?;
                let nonces = (&context.secrets.nonce, &challenge.nonce);
                let keys = Keys::derive(&context.cookie, &context.secrets, &hello, message, nonces)?;
                let our_proof = keys.initiator_proof()?;
                output.extend_from_slice(&our_proof);
                Ok(State::AwaitProof {
                    keys,
                    peer_id: challenge.id,
                    our_proof,
                })
            }
            State::AwaitProof {
                keys,
                peer_id,
                our_proof,
            } => {
                keys.check_acceptor_proof(&our_proof, message)?;
                let given = context.assign(peer_id)?;
                output.extend_from_slice(&context.info(&keys, Role::Initiator, given.as_ref())?);
                let peer = Peer { id: peer_id, given };
                Ok(State::AwaitInfo { keys, peer })
            }
            State::AwaitInfo { keys, peer } => context
                .handle_info(&keys, Role::Acceptor, peer, message)
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
