//! The beginning of a connection's handshake, which waits until it is known what it is bound to.

use pydist_proto::handshake::{Acceptor, Cookie, Handshake, Initiator, Local, Secrets};

/// What the handshake of a connection is begun with.
pub(crate) struct Opening {
    pub(crate) local: Local,
    pub(crate) cookie: Cookie,
    pub(crate) secrets: Secrets,
    /// This end made the connection.
    pub(crate) initiates: bool,
}

impl Opening {
    /// Begins, bound to the exporter value of a TLS session; zeros without TLS.
    pub(crate) fn begin(mut self, channel_binding: [u8; 32]) -> Handshake {
        self.secrets.channel_binding = channel_binding;
        if self.initiates {
            Initiator::new(self.local, &self.cookie, self.secrets).into()
        } else {
            Acceptor::new(self.local, &self.cookie, self.secrets).into()
        }
    }
}
