//! The keys of one handshake and what is computed with them.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Cookie, HandshakeError, Secrets};

/// The side of a connection that computes a proof or a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Initiator,
    Acceptor,
}

type Key = Zeroizing<[u8; 32]>;

/// The keys that the cookie and both nonces yield, and the transcript that they are used on.
pub(super) struct Keys {
    transcript: [u8; 32],
    initiator: Key,
    acceptor: Key,
    initiator_info: Key,
    acceptor_info: Key,
    session: [u8; 32],
}

impl Keys {
    /// Derives the keys from what both ends sent and what both ends know.
    pub(super) fn derive(
        cookie: &Cookie,
        secrets: &Secrets,
        hello: &[u8],
        challenge: &[u8],
        (nonce_i, nonce_a): (&[u8; 32], &[u8; 32]),
    ) -> Result<Keys, HandshakeError> {
        let transcript = transcript(&[hello, challenge, &secrets.channel_binding, &secrets.inst])?;
        let mut salt = [0; 64];
        salt[..32].copy_from_slice(nonce_i);
        salt[32..].copy_from_slice(nonce_a);
        let hkdf = Hkdf::<Sha256>::new(Some(&salt), cookie.as_bytes());
        let expand = |label: &[u8]| {
            let mut key = Zeroizing::new([0; 32]);
            match hkdf.expand(label, key.as_mut_slice()) {
                Ok(()) => Ok(key),
                // Cannot be: 32 bytes are far below the limit of HKDF. Without a key nobody is authenticated.
                Err(_) => Err(HandshakeError::AuthenticationFailed),
            }
        };
        Ok(Keys {
            transcript,
            initiator: expand(b"pydist 1 initiator proof")?,
            acceptor: expand(b"pydist 1 acceptor proof")?,
            initiator_info: expand(b"pydist 1 initiator info")?,
            acceptor_info: expand(b"pydist 1 acceptor info")?,
            session: *expand(b"pydist 1 session id")?,
        })
    }

    /// The session id, which is not secret.
    pub(super) fn session(&self) -> [u8; 32] {
        self.session
    }

    /// The proof that the initiator sends.
    pub(super) fn initiator_proof(&self) -> Result<[u8; 32], HandshakeError> {
        hmac(&self.initiator, &[b"initiator", &self.transcript])
    }

    /// The proof that the acceptor sends, which answers the one of the initiator.
    pub(super) fn acceptor_proof(&self, initiator_proof: &[u8]) -> Result<[u8; 32], HandshakeError> {
        hmac(&self.acceptor, &[b"acceptor", &self.transcript, initiator_proof])
    }

    /// The tag over an INFO of `role`, its length included.
    pub(super) fn info_tag(&self, role: Role, signed: &[u8]) -> Result<[u8; 32], HandshakeError> {
        let key = match role {
            Role::Initiator => &self.initiator_info,
            Role::Acceptor => &self.acceptor_info,
        };
        hmac(key, &[b"info", &self.transcript, signed])
    }

    /// Checks the proof of the initiator.
    pub(super) fn check_initiator_proof(&self, proof: &[u8]) -> Result<(), HandshakeError> {
        check(&self.initiator_proof()?, proof)
    }

    /// Checks the proof of the acceptor against the one that this end sent.
    pub(super) fn check_acceptor_proof(
        &self,
        initiator_proof: &[u8; 32],
        proof: &[u8],
    ) -> Result<(), HandshakeError> {
        check(&self.acceptor_proof(initiator_proof)?, proof)
    }

    /// Checks the tag over an INFO of `role`.
    pub(super) fn check_info_tag(&self, role: Role, signed: &[u8], tag: &[u8]) -> Result<(), HandshakeError> {
        check(&self.info_tag(role, signed)?, tag)
    }
}

/// Hashes fields, each after its length, so that no two lists of fields give the same input.
fn transcript(fields: &[&[u8]]) -> Result<[u8; 32], HandshakeError> {
    let mut hash = Sha256::new();
    for field in fields {
        let len = u32::try_from(field.len()).map_err(|_| HandshakeError::TooManyBytes)?;
        hash.update(len.to_le_bytes());
        hash.update(field);
    }
    Ok(hash.finalize().into())
}

fn hmac(key: &Key, parts: &[&[u8]]) -> Result<[u8; 32], HandshakeError> {
    // HMAC takes keys of any length, so this cannot fail; if it did, nobody would be authenticated.
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.as_slice()).map_err(|_| HandshakeError::AuthenticationFailed)?;
    for part in parts {
        mac.update(part);
    }
    Ok(mac.finalize().into_bytes().into())
}

/// Compares in a time that does not depend on where the two differ.
fn check(expected: &[u8; 32], received: &[u8]) -> Result<(), HandshakeError> {
    if bool::from(expected.as_slice().ct_eq(received)) {
        Ok(())
    } else {
        Err(HandshakeError::AuthenticationFailed)
    }
}
