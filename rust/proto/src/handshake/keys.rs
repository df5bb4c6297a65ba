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

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;

    const EXPECTED: [u8; 32] = [0x5a; 32];
    const SAMPLES: usize = 3_000;
    const COMPARES: usize = 64;
    /// So much the two kinds of wrong proofs may differ, of the time of the faster one.
    const TOLERANCE: f64 = 0.1;

    fn wrong_at(byte: usize) -> [u8; 32] {
        let mut proof = EXPECTED;
        proof[byte] ^= 1;
        proof
    }

    /// The time of some compares with proofs that are wrong in the first byte and in the last one: the tenth
    /// percentile of many samples that alternate, which other processes do not change.
    fn times(compare: impl Fn(&[u8; 32], &[u8]) -> bool) -> [f64; 2] {
        let proofs = [wrong_at(0), wrong_at(31)];
        let mut samples = [const { Vec::new() }; 2];
        for round in 0..2 * SAMPLES {
            let kind = round % 2;
            let begin = Instant::now();
            for _ in 0..COMPARES {
                assert!(!compare(black_box(&EXPECTED), black_box(&proofs[kind])));
            }
            samples[kind].push(begin.elapsed().as_nanos());
        }
        samples.map(|mut times| {
            times.sort_unstable();
            times[SAMPLES / 10] as f64
        })
    }

    fn is_even(times: [f64; 2]) -> bool {
        (times[0] - times[1]).abs() <= TOLERANCE * times[0].min(times[1])
    }

    /// S8: a proof that is wrong in its first byte takes as long as one that is wrong in its last.
    ///
    /// What leaks does so each time, as the compare that stops at the first difference shows; noise does not.
    #[test]
    fn s8_the_time_of_a_compare_does_not_tell_where_the_proofs_differ() {
        let stops_early = |a: &[u8; 32], b: &[u8]| a.iter().zip(b).all(|(a, b)| black_box(a) == black_box(b));
        let mut seen = Vec::new();
        let even = (0..10).any(|_| {
            seen.push(times(|a, b| check(a, b).is_ok()));
            seen.last().is_some_and(|times| is_even(*times))
        });
        assert!(even, "ns for {COMPARES} compares: {seen:?}");
        let leaks = times(stops_early);
        assert!(!is_even(leaks), "the test would see no leak: {leaks:?}");
    }

    /// S8: no byte is left out.
    #[test]
    fn s8_every_byte_counts() {
        for byte in 0..32 {
            assert!(check(&EXPECTED, &wrong_at(byte)).is_err());
        }
        assert!(check(&EXPECTED, &EXPECTED).is_ok());
        assert!(check(&EXPECTED, &EXPECTED[..31]).is_err());
    }
}
