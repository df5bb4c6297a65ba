//! The secret of a cluster.

use std::fmt;

use zeroize::Zeroizing;

use super::HandshakeError;

/// The fewest bytes of a cookie: a recorded transcript lets anyone guess shorter ones offline.
const MIN_LEN: usize = 16;

/// The secret that every process of a cluster knows; it is wiped when dropped and never printed.
#[derive(Clone)]
pub struct Cookie(Zeroizing<Vec<u8>>);

impl Cookie {
    /// Copies a cookie of at least 16 bytes.
    pub fn new(bytes: &[u8]) -> Result<Cookie, HandshakeError> {
        if bytes.len() < MIN_LEN {
            return Err(HandshakeError::CookieTooShort(bytes.len()));
        }
        Ok(Cookie(Zeroizing::new(bytes.to_vec())))
    }

    /// The secret bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie(..)")
    }
}
