//! TLS 1.3 and nothing older, one provider (ring), no resumption, no early data.

use std::{io, path::Path, sync::Arc};

use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{net::TcpStream, time};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_tungstenite::tungstenite::{
    handshake::server::{ErrorResponse, Request, Response},
    http::StatusCode,
};

use super::{ACCEPT_TIMEOUT, PATH, Stream, StreamError, Tap, websocket_config};
use crate::{ExitClass, Why};

/// The certificate that a hub shows, and its key.
#[derive(Debug)]
pub struct TlsIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl TlsIdentity {
    /// A new one that nobody vouches for: the hub's roster key does.
    ///
    /// # Errors
    /// Where a name is no DNS name and no address.
    pub fn self_signed(names: Vec<String>) -> Result<Self, IdentityError> {
        let made = rcgen::generate_simple_self_signed(names).map_err(IdentityError::SelfSigned)?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(|_| IdentityError::NoKey)?;
        Ok(Self { chain: vec![made.cert.der().clone()], key })
    }

    /// One from PEM: the certificate, then those that lead to its root; and the private key.
    ///
    /// # Errors
    /// Where either is missing or damaged.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(IdentityError::NoCertificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| IdentityError::NoKey)?;
        Ok(Self { chain, key })
    }

    /// One from two PEM files.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem), and where a file cannot be read.
    pub fn from_pem_files(chain: &Path, key: &Path) -> Result<Self, IdentityError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|e| IdentityError::Read { path: path.display().to_string(), why: e.into() })
        };
        Self::from_pem(&read(chain)?, &zeroize::Zeroizing::new(read(key)?))
    }
}

/// Turns accepted TCP connections into streams. Clones share everything.
#[derive(Clone)]
pub struct Acceptor(pub(super) TlsAcceptor);

impl Acceptor {
    /// One that shows `identity`.
    ///
    /// # Errors
    /// Where the key is not the certificate's.
    pub fn new(identity: TlsIdentity) -> Result<Self, IdentityError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::Mismatch)?
            .with_no_client_auth()
            .with_single_cert(identity.chain, identity.key)
            .map_err(IdentityError::Mismatch)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Handshakes with whoever connected, within [`ACCEPT_TIMEOUT`].
    ///
    /// # Errors
    /// Where the other end speaks something else, or is too slow.
    pub async fn accept(&self, tcp: TcpStream) -> Result<Stream, StreamError> {
        // thousands may be on their way at a time
        let accepted = time::timeout(ACCEPT_TIMEOUT, Box::pin(self.accept_patiently(tcp))).await;
        accepted.map_err(|_| StreamError::Closed { why: Why(io::ErrorKind::TimedOut.into()) })?
    }

    async fn accept_patiently(&self, tcp: TcpStream) -> Result<Stream, StreamError> {
        let closed = |e: io::Error| StreamError::Closed { why: e.into() };
        super::prepare(&(&tcp).into()).map_err(closed)?;
        let from = tcp.peer_addr().map_err(closed)?;
        let tls = self.0.accept(tcp).await;
        let tls = tls.map_err(|e| StreamError::Tls { with: from.to_string(), why: e.into() })?;
        let upgraded = tokio_tungstenite::accept_hdr_async_with_config(
            Tap::new(Box::new(TlsStream::Server(tls))),
            only_our_path,
            Some(websocket_config()),
        );
        Stream::new(upgraded.await.map_err(super::closed)?)
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

#[expect(clippy::result_large_err, reason = "the shape that tungstenite wants")]
fn only_our_path(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    if request.uri().path() == PATH {
        return Ok(response);
    }
    let mut refusal = ErrorResponse::new(None);
    *refusal.status_mut() = StatusCode::NOT_FOUND;
    Err(refusal)
}

pub(super) async fn connect(tcp: TcpStream, name: &str) -> io::Result<Box<TlsStream<TcpStream>>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    let name = ServerName::try_from(name.to_owned()).or_else(|_| ServerName::try_from(NO_NAME));
    let name = name.map_err(io::Error::other)?;
    Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?.into()))
}

/// Accepts any certificate, and only with a valid signature by its key over this handshake: the exporter
/// is then that key holder's and ours alone.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

/// ring, with AES-128 before the others: what goes through has been sealed already, and it costs a quarter
/// less than AES-256.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

const ALPN: &[u8] = b"http/1.1";
/// Shown where the hub's own name cannot stand in a TLS handshake.
const NO_NAME: &str = "hub.invalid";

/// Why a hub has no TLS identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The two do not belong together.
    #[error("the TLS certificate cannot be used: {0}: give the certificate and the private key that belongs to it")]
    Mismatch(rustls::Error),
    /// No certificate in the PEM.
    #[error("the TLS certificate file holds no PEM certificate")]
    NoCertificate,
    /// No key in the PEM.
    #[error("the TLS key file holds no PEM private key")]
    NoKey,
    /// A file cannot be read.
    #[error("cannot read {path}: {why}")]
    Read {
        /// The file.
        path: String,
        /// The kernel's reason.
        why: Why,
    },
    /// No self-signed one.
    #[error("cannot make a TLS certificate: {0}")]
    SelfSigned(rcgen::Error),
}

impl IdentityError {
    /// Which exit code it asks for.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Mismatch(_) | Self::NoCertificate | Self::NoKey => ExitClass::Wrong,
            Self::Read { why, .. } => ExitClass::of(why),
            Self::SelfSigned(_) => ExitClass::Failed,
        }
    }
}
