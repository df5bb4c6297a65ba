//! The handshake proves to both ends of a connection that the other knows the cookie of the cluster.
//!
//! ```text
//!   initiator                              acceptor
//!       │ ── HELLO ──────────────────────────▶ │
//!       │ ◀────────────────────── CHALLENGE ── │   or VERSION_MISMATCH, and the end
//!       │ ── PROOF (initiator) ──────────────▶ │   the connector proves first
//!       │ ◀──────── PROOF (acceptor) + INFO ── │
//!       │ ── INFO ───────────────────────────▶ │
//!       │            messages follow           │
//! ```
//!
//! The layout of every message is in `docs/wire-handshake.md`. The state machines here own no socket, clock or
//! randomness: the caller feeds received bytes to [`Handshake::handle_bytes`], sends what
//! [`Handshake::poll_output`] returns, supplies a fresh nonce, and closes the connection after an error or
//! after [`HANDSHAKE_DEADLINE_MS`], one absolute deadline for the whole exchange.
//!
//! The only way to an [`Authenticated`] is a finished handshake, and the message decoder is built from nothing
//! else: so no byte of an unproved peer reaches pickle.

mod acceptor;
mod cookie;
mod driver;
mod error;
mod initiator;
mod keys;
mod wire;

use std::fmt;
use std::sync::Arc;

pub use cookie::Cookie;
pub use error::HandshakeError;

use driver::Driver;

/// The oldest protocol version that this build speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest protocol version that this build speaks.
pub const PROTOCOL_MAX: u16 = 1;
/// The most bytes that are consumed from a peer before its proof is verified.
pub const PRE_AUTH_LIMIT: usize = 512;
/// The longest INFO message, with its length and its tag.
pub const INFO_LIMIT: usize = 512;
/// The time that a caller gives a whole handshake, in milliseconds from the connection's first moment.
pub const HANDSHAKE_DEADLINE_MS: u64 = 5000;

// Every message before INFO has a fixed length, so the limit holds by construction.
const _: () = assert!(wire::HELLO_LEN + wire::PROOF_LEN <= PRE_AUTH_LIMIT);
const _: () = assert!(wire::CHALLENGE_LEN + wire::PROOF_LEN <= PRE_AUTH_LIMIT);

/// The versions that an end tells its peer in INFO.
///
/// `package` is sent as at most 64 printable ASCII characters; others are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The CPython version: major, minor, micro.
    pub python: (u8, u8, u8),
    /// The pydist version.
    pub package: String,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, micro) = self.python;
        write!(f, "CPython {major}.{minor}.{micro} and pydist {}", self.package)
    }
}

/// What the head gives a process that knows the cookie alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The worker id, which is not 0.
    pub id: u32,
    /// The topology of the cluster, as one byte that the handshake does not look into.
    pub topology: u8,
    /// The id of the cluster, which is not all zeros.
    pub cluster: [u8; 16],
}

/// Makes the assignment of a peer, called once the peer has proved that it knows the cookie.
#[derive(Clone)]
pub struct Assigner(Arc<dyn Fn() -> Assignment + Send + Sync>);

impl Assigner {
    /// Wraps what makes an assignment.
    pub fn new(make: impl Fn() -> Assignment + Send + Sync + 'static) -> Assigner {
        Assigner(Arc::new(make))
    }

    fn assign(&self) -> Assignment {
        (self.0)()
    }
}

impl fmt::Debug for Assigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Assigner(..)")
    }
}

/// What one end says about itself, and how strict it is.
#[derive(Clone, Debug)]
pub struct Local {
    /// The worker id that this end claims; 0 where it is to be given one.
    pub id: u32,
    /// The public random id of the cluster, zeros where it is not known; an acceptor refuses a HELLO of another one.
    pub cluster: [u8; 16],
    /// Gives ids to peers that have none; without it they are refused.
    pub assigner: Option<Assigner>,
    /// The versions that this end reports.
    pub versions: Versions,
    /// Whether a peer with another CPython X.Y, or another pydist, is accepted.
    pub allow_python_mismatch: bool,
}

/// The values that bind one handshake to one connection.
pub struct Secrets {
    /// The nonce of this end: fresh from the operating system for each handshake, never used twice.
    pub nonce: [u8; 32],
    /// The instance tag of the acceptor's listener, learnt out of band and never sent in a handshake.
    pub inst: [u8; 16],
    /// The exporter value of the TLS session, or zeros without TLS.
    pub channel_binding: [u8; 32],
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// The handshake of the end that made the connection.
#[derive(Debug)]
pub struct Initiator(Driver<initiator::State>);

impl Initiator {
    /// Starts a handshake whose HELLO is at once in the output.
    pub fn new(local: Local, cookie: &Cookie, secrets: Secrets) -> Initiator {
        Initiator(Driver::new(local, cookie, secrets))
    }
}

/// The handshake of the end that accepted the connection.
#[derive(Debug)]
pub struct Acceptor(Driver<acceptor::State>);

impl Acceptor {
    /// Starts a handshake that says nothing before a HELLO has come.
    pub fn new(local: Local, cookie: &Cookie, secrets: Secrets) -> Acceptor {
        Acceptor(Driver::new(local, cookie, secrets))
    }
}

/// A handshake in either role.
#[derive(Debug)]
pub enum Handshake {
    /// This end made the connection.
    Initiator(Initiator),
    /// This end accepted the connection.
    Acceptor(Acceptor),
}

impl Handshake {
    /// Feeds received bytes and returns how many were consumed.
    ///
    /// Fewer than given are consumed only once the handshake has finished: the rest belongs to the message
    /// decoder. An error is final, and every later call returns it again. After an error the caller sends what
    /// [`poll_output`](Self::poll_output) still holds, then closes.
    pub fn handle_bytes(&mut self, input: &[u8]) -> Result<usize, HandshakeError> {
        match self {
            Handshake::Initiator(Initiator(driver)) => driver.handle_bytes(input),
            Handshake::Acceptor(Acceptor(driver)) => driver.handle_bytes(input),
        }
    }

    /// Takes the bytes to send now, if there are any.
    ///
    /// After an error there are some only where the peer must learn of a version mismatch; there is never a
    /// proof after a failed check.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        match self {
            Handshake::Initiator(Initiator(driver)) => driver.poll_output(),
            Handshake::Acceptor(Acceptor(driver)) => driver.poll_output(),
        }
    }

    /// The name of the state, or the error, for logs.
    pub fn state(&self) -> &dyn fmt::Debug {
        match self {
            Handshake::Initiator(Initiator(driver)) => driver,
            Handshake::Acceptor(Acceptor(driver)) => driver,
        }
    }

    /// Tells whether the peer is proved and its INFO accepted.
    pub fn is_finished(&self) -> bool {
        match self {
            Handshake::Initiator(Initiator(driver)) => driver.is_finished(),
            Handshake::Acceptor(Acceptor(driver)) => driver.is_finished(),
        }
    }

    /// Turns a finished handshake, whose output was taken, into the proof that it finished.
    pub fn finish(self) -> Result<Authenticated, HandshakeError> {
        match self {
            Handshake::Initiator(Initiator(driver)) => driver.finish(),
            Handshake::Acceptor(Acceptor(driver)) => driver.finish(),
        }
    }
}

impl From<Initiator> for Handshake {
    fn from(initiator: Initiator) -> Handshake {
        Handshake::Initiator(initiator)
    }
}

impl From<Acceptor> for Handshake {
    fn from(acceptor: Acceptor) -> Handshake {
        Handshake::Acceptor(acceptor)
    }
}

/// The evidence that a peer knows the cookie; only a finished handshake makes one.
///
/// The id is what the peer claimed: whoever owns the table of workers refuses an id that it did not expect on
/// this connection or that has a live session.
#[derive(Debug)]
pub struct Authenticated {
    peer_id: u32,
    session: [u8; 32],
    peer_versions: Versions,
    assigned: Option<Assignment>,
    assigned_peer: bool,
}

impl Authenticated {
    /// What the peer has given this end, which had no id.
    pub fn assigned(&self) -> Option<&Assignment> {
        self.assigned.as_ref()
    }

    /// Whether this end has given the peer its id.
    pub fn assigned_peer(&self) -> bool {
        self.assigned_peer
    }

    /// The worker id that the peer claims, or that this end has given it.
    pub fn peer_id(&self) -> u32 {
        self.peer_id
    }

    /// The session id, equal at both ends and new in every session: the epoch of its frames.
    pub fn session(&self) -> &[u8; 32] {
        &self.session
    }

    /// The versions that the peer reports.
    pub fn peer_versions(&self) -> &Versions {
        &self.peer_versions
    }

    /// Makes evidence out of nothing, for tests of what comes after a handshake.
    #[cfg(any(test, feature = "test-util"))]
    pub fn for_tests(peer_id: u32) -> Authenticated {
        let peer_versions = Versions {
            python: (3, 11, 0),
            package: String::from("0.0.0"),
        };
        Authenticated {
            peer_id,
            session: [0; 32],
            peer_versions,
            assigned: None,
            assigned_peer: false,
        }
    }
}
