//! The part of a handshake that both roles share.

use std::{fmt, mem};

use super::keys::{Keys, Role};
use super::{Assignment, Authenticated, Cookie, HandshakeError, Local, Secrets, wire};

/// What a state may look at while it handles a message.
pub(super) struct Context {
    pub(super) local: Local,
    pub(super) cookie: Cookie,
    pub(super) secrets: Secrets,
}

impl Context {
    /// Refuses a peer that has no id where this end gives none.
    pub(super) fn check_peer_id(&self, peer_id: u32) -> Result<(), HandshakeError> {
        if peer_id == 0 && self.local.assigner.is_none() {
            Err(HandshakeError::NoAssignment)
        } else {
            Ok(())
        }
    }

    /// Gives an id to a peer that has proved itself and has none.
    pub(super) fn assign(&self, peer_id: u32) -> Result<Option<Assignment>, HandshakeError> {
        match (&self.local.assigner, peer_id) {
            (Some(assigner), 0) => Ok(Some(assigner.assign())),
            (None, 0) => Err(HandshakeError::NoAssignment),
            _ => Ok(None),
        }
    }

    /// Encodes the INFO of this end.
    pub(super) fn info(
        &self,
        keys: &Keys,
        role: Role,
        assignment: Option<&Assignment>,
    ) -> Result<Vec<u8>, HandshakeError> {
        let mut message = wire::encode_info(&self.local.versions, assignment);
        let tag = keys.info_tag(role, &message)?;
        message.extend_from_slice(&tag);
        Ok(message)
    }

    /// Checks the INFO of the peer, the last message that either role receives.
    pub(super) fn handle_info(
        &self,
        keys: &Keys,
        peer_role: Role,
        peer: Peer,
        message: &[u8],
    ) -> Result<Authenticated, HandshakeError> {
        let (signed, tag) = wire::split_info(message)?;
        keys.check_info_tag(peer_role, signed, tag)?;
        let info = wire::decode_info(signed)?;
        let peer_versions = info.versions;
        let peer_id = peer.given.map_or(peer.id, |given| given.id);
        let ours = &self.local.versions;
        let same = (ours.python.0, ours.python.1) == (peer_versions.python.0, peer_versions.python.1);
        if !same && !self.local.allow_python_mismatch {
            return Err(HandshakeError::PythonMismatch {
                our_id: self.local.id,
                our_python: ours.python,
                our_package: ours.package.clone(),
                peer_id,
                peer_python: peer_versions.python,
                peer_package: peer_versions.package,
            });
        }
        if ours.package != peer_versions.package && !self.local.allow_python_mismatch {
            return Err(HandshakeError::PackageMismatch {
                our_id: self.local.id,
                our_package: ours.package.clone(),
                peer_id,
                peer_package: peer_versions.package,
            });
        }
        // An id is given exactly to the end that has none.
        if info.assignment.is_some() != (self.local.id == 0) {
            return Err(HandshakeError::Malformed("assignment in INFO"));
        }
        Ok(Authenticated {
            peer_id,
            session: keys.session(),
            peer_versions,
            assigned: info.assignment,
            assigned_peer: peer.given.is_some(),
        })
    }
}

/// What an end knows of its peer before the peer's INFO has come.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    /// The id that it claims.
    pub(super) id: u32,
    /// What this end has given it.
    pub(super) given: Option<Assignment>,
}

/// One state of a role.
pub(super) trait State: Sized {
    /// The name of the state, for `Debug`.
    fn name(&self) -> &'static str;

    /// Makes the first state and queues what this end says unasked.
    fn start(context: &Context, output: &mut Vec<u8>) -> Self;

    /// Tells how long the awaited message is, as far as `received`, its beginning, shows; `None` in the last
    /// state. A beginning that can lead to no valid message is an error at once.
    fn expected_len(&self, received: &[u8]) -> Result<Option<usize>, HandshakeError>;

    /// Handles one whole message, queues the answer, and becomes the next state.
    fn handle_message(
        self,
        context: &Context,
        message: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<Self, HandshakeError>;

    /// Yields the result; `None` in every state but the last.
    fn into_authenticated(self) -> Option<Authenticated>;
}

/// A handshake that runs, or the reason why it does not any more.
enum Life<S> {
    Running(S),
    Failed(HandshakeError),
}

/// The machine that cuts received bytes into messages and hands them to the state of its role.
pub(super) struct Driver<S> {
    context: Context,
    life: Life<S>,
    /// The beginning of the awaited message: never longer than `INFO_LIMIT`.
    received: Vec<u8>,
    output: Vec<u8>,
}

impl<S: State> Driver<S> {
    pub(super) fn new(mut local: Local, cookie: &Cookie, secrets: Secrets) -> Driver<S> {
        local.versions.package = wire::printable_package(&local.versions.package);
        let context = Context {
            local,
            cookie: cookie.clone(),
            secrets,
        };
        let mut output = Vec::new();
        let state = S::start(&context, &mut output);
        Driver {
            context,
            life: Life::Running(state),
            received: Vec::new(),
            output,
        }
    }

    pub(super) fn handle_bytes(&mut self, input: &[u8]) -> Result<usize, HandshakeError> {
        let mut rest = input;
        // Each round consumes a byte or completes a message, of which there are at most three.
        while self.step(&mut rest)? {}
        Ok(input.len() - rest.len())
    }

    /// Moves bytes into the awaited message and handles it when it is whole; false when no more can be done.
    fn step(&mut self, rest: &mut &[u8]) -> Result<bool, HandshakeError> {
        let state = match &self.life {
            Life::Running(state) => state,
            Life::Failed(error) => return Err(error.clone()),
        };
        let expected = match state.expected_len(&self.received) {
            Ok(Some(expected)) => expected,
            Ok(None) => return Ok(false),
            Err(error) => return Err(self.fail(error)),
        };
        let missing = expected.saturating_sub(self.received.len());
        if missing > 0 {
            let (taken, left) = rest.split_at(missing.min(rest.len()));
            self.received.extend_from_slice(taken);
            *rest = left;
            return Ok(!taken.is_empty());
        }
        self.handle_message()?;
        Ok(true)
    }

    fn handle_message(&mut self) -> Result<(), HandshakeError> {
        let message = mem::take(&mut self.received);
        match mem::replace(&mut self.life, Life::Failed(HandshakeError::NotFinished)) {
            Life::Running(state) => match state.handle_message(&self.context, &message, &mut self.output) {
                Ok(next) => {
                    self.life = Life::Running(next);
                    Ok(())
                }
                Err(error) => Err(self.fail(error)),
            },
            Life::Failed(error) => Err(self.fail(error)),
        }
    }

    /// Makes an error final: the keys go, and so does what was queued unless the peer is owed it.
    fn fail(&mut self, error: HandshakeError) -> HandshakeError {
        if !error.keeps_output() {
            self.output.clear();
        }
        self.received = Vec::new();
        self.life = Life::Failed(error.clone());
        error
    }

    pub(super) fn poll_output(&mut self) -> Option<Vec<u8>> {
        (!self.output.is_empty()).then(|| mem::take(&mut self.output))
    }

    pub(super) fn is_finished(&self) -> bool {
        match &self.life {
            Life::Running(state) => matches!(state.expected_len(&[]), Ok(None)),
            Life::Failed(_) => false,
        }
    }

    pub(super) fn finish(self) -> Result<Authenticated, HandshakeError> {
        match self.life {
            Life::Failed(error) => Err(error),
            Life::Running(state) => {
                let authenticated = state.into_authenticated().ok_or(HandshakeError::NotFinished)?;
                if !self.output.is_empty() {
                    return Err(HandshakeError::OutputPending);
                }
                Ok(authenticated)
            }
        }
    }
}

impl<S: State> fmt::Debug for Driver<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.life {
            Life::Running(state) => f.write_str(state.name()),
            Life::Failed(error) => write!(f, "Failed({error:?})"),
        }
    }
}
