//! TLS 1.3 beneath the handshake of pydist: the key of this process, and which certificates it takes.
//!
//! Without files of the user each process makes a key in memory. Such a certificate proves nothing but that its
//! owner holds the key; who the other end is follows from the cookie, whose proof covers the exporter value of the
//! very session. With files, both ends must in addition have a certificate of the same authority.

mod files;
mod session;
mod verify;

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

pub use files::TlsFiles;
pub(crate) use session::{Failure, Session};

/// Why this process cannot use TLS as it was told to.
#[derive(thiserror::Error, Debug)]
pub enum TlsError {
    #[error("{0}: {1}")]
    Read(String, std::io::Error),
    #[error("{0}")]
    Content(String),
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
    #[error(
        "this process has {0} already, and there is one key for all of its connections; give the files before the \
         first connection"
    )]
    InUse(&'static str),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> TlsError {
        TlsError::Setup(error.to_string())
    }
}

/// A certificate with what leads to its authority, and its key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// What a process needs to begin sessions.
pub(crate) struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// Makes a key in memory; the certificates of others are not looked at.
    fn automatic() -> Result<Tls, TlsError> {
        let provider = provider();
        let own = self_signed()?;
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify::AnyServer::new(&provider)))
            .with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(own.chain, own.key)?;
        Ok(Tls::new(client, server))
    }

    /// Takes the key of the user, and just certificates of the user's authority.
    fn of_files(files: &TlsFiles) -> Result<Tls, TlsError> {
        let provider = provider();
        let roots = Arc::new(files.roots()?);
        let own = files.identity()?;
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify::ServerOf::new(roots.clone(), &provider)))
            .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
            .map_err(|error| files.rejected(&error))?;
        let verifier = client_verifier(roots, &provider)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(own.chain, own.key)
            .map_err(|error| files.rejected(&error))?;
        Ok(Tls::new(client, server))
    }

    fn new(mut client: ClientConfig, mut server: ServerConfig) -> Tls {
        // Each session is agreed on afresh, so that each has an exporter value of its own.
        client.resumption = Resumption::disabled();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Tls {
            client: Arc::new(client),
            server: Arc::new(server),
        }
    }

    /// Begins a session as the end that made the connection.
    pub(crate) fn connect(&self) -> Result<Session, TlsError> {
        // Nobody looks at names, and an address is not sent.
        let name = ServerName::from(std::net::Ipv4Addr::LOCALHOST);
        let connection = ClientConnection::new(self.client.clone(), name)?;
        Ok(Session::new(connection.into()))
    }

    /// Begins a session as the end that accepted the connection.
    pub(crate) fn accept(&self) -> Result<Session, TlsError> {
        let connection = ServerConnection::new(self.server.clone())?;
        Ok(Session::new(connection.into()))
    }
}

fn client_verifier(
    roots: Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|error| TlsError::Setup(error.to_string()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn self_signed() -> Result<Identity, TlsError> {
    let failed = |error: rcgen::Error| TlsError::Setup(error.to_string());
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let params = rcgen::CertificateParams::new(vec!["pydist.invalid".to_owned()]).map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Identity {
        chain: vec![certificate.der().clone()],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    })
}

/// The one key of a process: made or read when it is first needed.
#[derive(Default)]
pub(crate) enum Key {
    #[default]
    None,
    Automatic(Arc<Tls>),
    Files(TlsFiles, Arc<Tls>),
}

impl Key {
    /// What sessions are begun with.
    pub(crate) fn tls(&mut self) -> Result<Arc<Tls>, TlsError> {
        match self {
            Key::Automatic(tls) | Key::Files(_, tls) => Ok(tls.clone()),
            Key::None => {
                let tls = Arc::new(Tls::automatic()?);
                *self = Key::Automatic(tls.clone());
                Ok(tls)
            }
        }
    }

    /// Has sessions begin with the key and the authority of the user.
    pub(crate) fn use_files(&mut self, files: &TlsFiles) -> Result<(), TlsError> {
        match self {
            Key::Automatic(_) => Err(TlsError::InUse("a key that it has made")),
            Key::Files(known, _) if known == files => Ok(()),
            Key::Files(..) => Err(TlsError::InUse("other files")),
            Key::None => {
                *self = Key::Files(files.clone(), Arc::new(Tls::of_files(files)?));
                Ok(())
            }
        }
    }
}
