//! The certificates and the key that the user gives, in PEM files.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Identity, TlsError};

/// The paths of PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of the authorities that the other end's certificate must be of.
    pub ca: PathBuf,
    /// The certificate of this process, then those between it and its authority.
    pub cert: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
}

impl TlsFiles {
    pub(super) fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|error| {
                TlsError::Content(format!(
                    "{}: not a certificate of an authority: {error}",
                    self.ca.display()
                ))
            })?;
        }
        Ok(roots)
    }

    pub(super) fn identity(&self) -> Result<Identity, TlsError> {
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?).map_err(|error| {
            TlsError::Content(format!(
                "{}: no private key in PEM form that is not encrypted: {error}",
                self.key.display()
            ))
        })?;
        Ok(Identity { chain, key })
    }

    /// The error for a certificate and a key that cannot be used together.
    pub(super) fn rejected(&self, error: &rustls::Error) -> TlsError {
        TlsError::Content(format!(
            "the certificate {} and the key {} cannot be used: {error}",
            self.cert.display(),
            self.key.display()
        ))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read(path.display().to_string(), error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(TlsError::Content(format!(
            "{}: no certificate in PEM form",
            path.display()
        ))),
        Err(error) => Err(TlsError::Content(format!("{}: {error}", path.display()))),
    }
}
