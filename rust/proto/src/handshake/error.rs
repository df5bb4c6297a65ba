//! The ways in which a handshake fails.

/// The reason why a connection is refused; it holds nothing secret.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
pub enum HandshakeError {
    /// The peer does not speak this protocol at all.
    #[error("the peer is not a pydist process: it does not begin with the pydist magic")]
    BadMagic,
    /// The peer sent a message that breaks the layout.
    #[error("malformed handshake: {0}")]
    Malformed(&'static str),
    /// The peer sent or announced more bytes than a handshake may have.
    #[error("the peer sends more bytes than a handshake may have")]
    TooManyBytes,
    /// No protocol version is spoken by both ends.
    #[error(
        "protocol version mismatch: this process speaks pydist protocol {} to {}, the peer speaks {} to {}; \
         install the same pydist on both",
        .ours.0, .ours.1, .theirs.0, .theirs.1
    )]
    ProtocolMismatch {
        /// The oldest and the newest version of this end.
        ours: (u16, u16),
        /// The oldest and the newest version of the peer.
        theirs: (u16, u16),
    },
    /// The ends run different CPython X.Y, which cannot read each other's code objects.
    #[error(
        "Python version mismatch: worker {our_id} (this process) runs CPython {}.{}.{} with pydist {our_package}, \
         worker {peer_id} (the peer) runs CPython {}.{}.{} with pydist {peer_package}; \
         functions cannot be sent between different CPython X.Y",
        .our_python.0, .our_python.1, .our_python.2, .peer_python.0, .peer_python.1, .peer_python.2
    )]
    PythonMismatch {
        /// The worker id of this end.
        our_id: u32,
        /// The CPython version of this end.
        our_python: (u8, u8, u8),
        /// The pydist version of this end.
        our_package: String,
        /// The worker id of the peer.
        peer_id: u32,
        /// The CPython version of the peer.
        peer_python: (u8, u8, u8),
        /// The pydist version of the peer.
        peer_package: String,
    },
    /// The ends run different versions of pydist.
    #[error(
        "pydist version mismatch: worker {our_id} (this process) has pydist {our_package}, \
         worker {peer_id} (the peer) has pydist {peer_package}; install the same version on both"
    )]
    PackageMismatch {
        /// The worker id of this end.
        our_id: u32,
        /// The pydist version of this end.
        our_package: String,
        /// The worker id of the peer.
        peer_id: u32,
        /// The pydist version of the peer.
        peer_package: String,
    },
    /// One end has no id, and the other gives none.
    #[error("a process without an id came where ids are not given")]
    NoAssignment,
    /// The peer did not prove that it knows the cookie on this very connection.
    #[error(
        "authentication failed: the peer does not know the cookie, or is not the process that it should be"
    )]
    AuthenticationFailed,
    /// The peer belongs to another cluster.
    #[error("the peer belongs to another cluster")]
    WrongCluster,
    /// The cookie is too short to resist guessing.
    #[error("the cookie has {0} bytes; it needs at least 16")]
    CookieTooShort(usize),
    /// The handshake was asked for its result before it had one.
    #[error("the handshake has not finished")]
    NotFinished,
    /// The handshake was asked for its result while the peer still waits for bytes of it.
    #[error("the last bytes of the handshake have not been taken to be sent")]
    OutputPending,
}

impl HandshakeError {
    /// Tells whether the peer is owed the bytes that were queued before the failure.
    pub(super) fn keeps_output(&self) -> bool {
        matches!(
            self,
            HandshakeError::ProtocolMismatch { .. }
                | HandshakeError::PythonMismatch { .. }
                | HandshakeError::PackageMismatch { .. }
        )
    }
}
