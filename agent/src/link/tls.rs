//! Who the two ends of a lane are. The only place that builds rustls configurations.
//!
//! TLS 1.3 only, ALPN `sterna/1`, certificates both ways. A host's certificate carries exactly one URI among its subject
//! alternative names, `sterna://host/<id>`; that, and no DNS name, says who it is. Both ends check the chain to the one
//! authority, the validity and the signature; then the end that dials checks that the host is the one it meant, and the
//! end that was dialled hands the host's id to admission. Sessions are never resumed: each connection is checked in full,
//! with what was loaded last.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, PeerIncompatible,
    RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sterna_shared::host::Certificate;
use sterna_shared::id::{HostId, InvalidId};
use sterna_shared::time::Timestamp;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::records::{Cork, Records};

/// The application protocol that both ends insist on.
pub const ALPN: &[u8] = b"sterna/1";
/// The most bytes of a certificate or key file.
const FILE_LENGTH_MAX: u64 = 1 << 20;
/// The mode bits of a key file that must not be set.
const MODE_OTHERS: u32 = 0o077;

/// An encrypted connection whose peer's chain has been verified, for what comes before the frames.
pub type Stream = TlsStream<Cork<TcpStream>>;

/// The same connection for frames. What was read of it before must end where a record does.
///
/// # Errors
/// The peer has sent more than it may at this point.
pub(super) fn into_records<S>(stream: TlsStream<Cork<S>>) -> Result<Records<S>, TlsError> {
    let of = |error| TlsError::Handshake(Arc::new(error));
    let early = || of(io::Error::new(io::ErrorKind::InvalidData, "the peer sent more than its attachment"));
    let (cork, mut connection) = match stream {
        TlsStream::Client(stream) => {
            let (cork, connection) = stream.into_inner();
            (cork, rustls::Connection::from(connection))
        }
        TlsStream::Server(stream) => {
            let (cork, connection) = stream.into_inner();
            (cork, rustls::Connection::from(connection))
        }
    };
    let state = connection.process_new_packets().map_err(TlsError::of)?;
    if state.plaintext_bytes_to_read() > 0 || state.tls_bytes_to_write() > 0 {
        return Err(early());
    }
    let secrets = connection.dangerous_extract_secrets().map_err(TlsError::of)?;
    Records::new(cork, secrets).map_err(of)
}

/// Where the certificates are, in PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificates of the authorities that hosts are trusted by.
    pub authorities: PathBuf,
    /// This host's certificate, and those between it and the authority.
    pub chain: PathBuf,
    /// This host's key; nobody but its owner may read it.
    pub key: PathBuf,
}

/// Why there is no trustworthy connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The key file can be read by others.
    #[error("the key {path} has mode {mode:04o}, so others can read it; run: chmod 600 {path}")]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no usable {what} in PEM")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
    },
    /// Our certificate is not from an authority that we trust.
    #[error(
        "the certificate {chain} is not issued by an authority in {authorities}; put its authority there, or renew it"
    )]
    OwnAuthority {
        /// The chain file.
        chain: PathBuf,
        /// The authorities file.
        authorities: PathBuf,
    },
    /// rustls takes the files for no configuration: most often key and certificate do not belong together.
    #[error("the certificate and key cannot be used together; check that they were made for each other")]
    Configuration(#[source] rustls::Error),
    /// A certificate's name is not exactly one URI of Sterna.
    #[error("a certificate has {count} URIs among its names; exactly one, sterna://host/<id>, is needed")]
    Names {
        /// How many it has.
        count: usize,
    },
    /// A certificate is for something else.
    #[error("a certificate is that of {uri:?}; only sterna://host/<id> may use the data plane")]
    Role {
        /// Its URI.
        uri: String,
    },
    /// A certificate's host id is none.
    #[error("a certificate names an invalid host")]
    HostId(#[source] InvalidId),
    /// The certificate cannot be parsed.
    #[error("a certificate is not a well-formed X.509 certificate")]
    Malformed,
    /// Another host answered than the one meant.
    #[error("the host {found} answered where {meant} was meant; check the address in the inventory of {meant}")]
    WrongHost {
        /// The host meant.
        meant: HostId,
        /// The host that answered.
        found: HostId,
    },
    /// The peer's certificate has expired.
    #[error("the peer's certificate has expired; renew it, and check the clocks")]
    Expired,
    /// The peer's certificate does not hold yet.
    #[error("the peer's certificate does not hold yet; check the clocks of both hosts")]
    NotYetValid,
    /// The peer's certificate is from an authority that we do not trust.
    #[error("the peer's certificate is from another authority; both hosts must trust the same one")]
    OtherAuthority,
    /// The peer has shown no certificate.
    #[error("the peer has shown no certificate")]
    NoCertificate,
    /// The peer does not take our certificate.
    #[error("the peer refuses our certificate ({alert:?}); its log says why")]
    RefusedByPeer {
        /// The alert that it sent.
        alert: AlertDescription,
    },
    /// The peer does not speak what we do.
    #[error("the peer does not speak TLS 1.3 with the protocol sterna/1")]
    Incompatible(#[source] rustls::Error),
    /// The handshake failed in another way.
    #[error("the TLS handshake failed")]
    Handshake(#[source] Arc<io::Error>),
}

impl TlsError {
    /// Whether trying again may help without anybody's doing: the connection broke, rather than being refused.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self, Self::Handshake(_))
    }

    fn of(error: rustls::Error) -> Self {
        use CertificateError as Bad;
        match error {
            rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => Self::Expired,
            rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => Self::NotYetValid,
            rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => Self::OtherAuthority,
            // Our own verifier says so, below.
            rustls::Error::InvalidCertificate(Bad::Other(OtherError(ref other))) => {
                other.downcast_ref::<Self>().cloned().unwrap_or(Self::Incompatible(error))
            }
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::AlertReceived(
                alert @ (AlertDescription::CertificateRequired
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRevoked
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError
                | AlertDescription::UnknownCA),
            ) => Self::RefusedByPeer { alert },
            rustls::Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                Self::NoCertificate
            }
            other => Self::Incompatible(other),
        }
    }
}

/// Tells a TLS failure apart from one of the connection beneath. The peer's verdict on our certificate arrives after our
/// side of the handshake is done, so reads need this as well.
#[must_use]
pub fn classify(error: io::Error) -> TlsError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => TlsError::of(inner.clone()),
        None => TlsError::Handshake(Arc::new(error)),
    }
}

/// This host's identity and trust. [`Tls::reload`] changes them for connections made from then on.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    loaded: RwLock<Arc<Loaded>>,
}

#[derive(Debug)]
struct Loaded {
    host: HostId,
    certificate: Certificate,
    authorities: Vec<CertificateDer<'static>>,
    server: Arc<ServerConfig>,
    client: ClientParts,
}

/// What a client configuration is made of; each is bound to the host that is meant.
#[derive(Debug)]
struct ClientParts {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Tls {
    /// Loads the files.
    ///
    /// # Errors
    /// Where one cannot be read or used, or where others can read the key.
    pub fn load(files: Files) -> Result<Self, TlsError> {
        let loaded = RwLock::new(Arc::new(Loaded::load(&files)?));
        Ok(Self { files, loaded })
    }

    /// Loads the files again. Where that fails, what was loaded before stays in use.
    ///
    /// # Errors
    /// As [`Tls::load`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let loaded = Arc::new(Loaded::load(&self.files)?);
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// The host that our certificate names.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.loaded().host.clone()
    }

    /// Our certificate, as the inventory tells it.
    #[must_use]
    pub fn certificate(&self) -> Certificate {
        self.loaded().certificate.clone()
    }

    /// The certificate that the other end of a connection has shown, as its inventory would tell it; none where it does not
    /// come from an authority that we trust now.
    #[must_use]
    pub fn certificate_of(&self, stream: &Stream) -> Option<Certificate> {
        let chain = stream.get_ref().1.peer_certificates()?;
        facts(chain, &self.loaded().authorities).ok().flatten()
    }

    /// Makes a connection that was dialled trustworthy: at its other end is the host `peer`.
    ///
    /// # Errors
    /// Where the other end is not that host, or the connection breaks.
    pub async fn connect(&self, peer: &HostId, tcp: TcpStream) -> Result<Stream, TlsError> {
        let connector = TlsConnector::from(Arc::new(self.loaded().client.configure(peer)?));
        let address = tcp.peer_addr().map_err(|source| TlsError::Handshake(Arc::new(source)))?;
        // The name is only sent where it is a DNS name, and is not what the peer is known by.
        let name = ServerName::IpAddress(address.ip().into());
        let stream = connector.connect(name, Cork::new(tcp)).await.map_err(classify)?;
        check_alpn(stream.get_ref().1.alpn_protocol())?;
        Ok(TlsStream::Client(stream))
    }

    /// Makes a connection that was accepted trustworthy: its other end has a certificate of our authority. Who it is, is
    /// told apart from the connection, so that a peer with a certificate of another role can be told so.
    ///
    /// # Errors
    /// Where it has no such certificate, or the connection breaks.
    pub async fn accept(&self, tcp: TcpStream) -> Result<(Stream, Result<HostId, TlsError>), TlsError> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.loaded().server));
        let stream = acceptor.accept(Cork::new(tcp)).await.map_err(classify)?;
        check_alpn(stream.get_ref().1.alpn_protocol())?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).ok_or(TlsError::NoCertificate)?;
        let host = host_of(leaf);
        Ok((TlsStream::Server(stream), host))
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn check_alpn(chosen: Option<&[u8]>) -> Result<(), TlsError> {
    // Where one end offers no protocol at all, rustls goes on without.
    if chosen == Some(ALPN) { Ok(()) } else { Err(TlsError::Incompatible(rustls::Error::NoApplicationProtocol)) }
}

impl Loaded {
    fn load(files: &Files) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let authorities = certificates(&files.authorities)?;
        let chain = certificates(&files.chain)?;
        let key = key(&files.key)?;
        let leaf = chain.first().ok_or_else(|| content(&files.chain, "certificate"))?;
        let host = host_of(leaf)?;
        let foreign = || TlsError::OwnAuthority { chain: files.chain.clone(), authorities: files.authorities.clone() };
        let certificate = facts(&chain, &authorities)?.ok_or_else(foreign)?;

        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add(authority.clone()).map_err(|_| content(&files.authorities, "authority certificate"))?;
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|_| content(&files.authorities, "authority certificate"))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Configuration)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(TlsError::Configuration)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.enable_secret_extraction = true;
        let client = ClientParts { provider, roots, chain, key };
        Ok(Self { host, certificate, authorities, server: Arc::new(server), client })
    }
}

impl ClientParts {
    fn configure(&self, peer: &HostId) -> Result<ClientConfig, TlsError> {
        let verifier =
            HostVerifier { meant: peer.clone(), roots: Arc::clone(&self.roots), provider: Arc::clone(&self.provider) };
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Configuration)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(TlsError::Configuration)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        client.enable_secret_extraction = true;
        Ok(client)
    }
}

/// Verifies as rustls does, but for the name: the host that is meant, in place of a DNS name.
#[derive(Debug)]
struct HostVerifier {
    meant: HostId,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for HostVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let refuse = |error: TlsError| CertificateError::Other(OtherError(Arc::new(error)));
        let found = host_of(leaf).map_err(refuse)?;
        if found == self.meant {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refuse(TlsError::WrongHost { meant: self.meant.clone(), found }).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is never offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The host that a certificate, whose chain is verified elsewhere, names.
fn host_of(certificate: &CertificateDer<'_>) -> Result<HostId, TlsError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| TlsError::Malformed)?;
    let names = parsed.subject_alternative_name().map_err(|_| TlsError::Malformed)?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else { return Err(TlsError::Names { count: uris.len() }) };
    let Some(id) = uri.strip_prefix("sterna://host/") else {
        return Err(TlsError::Role { uri: uri.chars().take(128).collect() });
    };
    id.parse().map_err(TlsError::HostId)
}

/// What a chain says, and which of the authorities it comes from; none where it comes from none of them.
fn facts(chain: &[CertificateDer<'_>], authorities: &[CertificateDer<'_>]) -> Result<Option<Certificate>, TlsError> {
    let parse = |der| X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|_| TlsError::Malformed);
    let (Some(leaf), Some(last)) = (chain.first(), chain.last()) else { return Ok(None) };
    let (leaf, last) = (parse(leaf)?, parse(last)?);
    for authority in authorities {
        let authority = parse(authority)?;
        if authority.subject() == last.issuer() {
            let digest = sha256_hex(authority.public_key().raw);
            let at = |time: &x509_parser::time::ASN1Time| {
                Timestamp::from_unix_microseconds(time.timestamp().saturating_mul(1_000_000))
            };
            let validity = leaf.validity();
            return Ok(Some(Certificate {
                authority: digest,
                not_before: at(&validity.not_before),
                not_after: at(&validity.not_after),
            }));
        }
    }
    Ok(None)
}

fn sha256_hex(bytes: &[u8]) -> String {
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn content(path: &Path, what: &'static str) -> TlsError {
    TlsError::Content { path: path.to_owned(), what }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path, |_| Ok(()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| content(path, "certificate"))
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    use std::os::unix::fs::PermissionsExt;
    let pem = read(path, |metadata| {
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & MODE_OTHERS == 0 { Ok(()) } else { Err(TlsError::KeyMode { path: path.to_owned(), mode }) }
    })?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| content(path, "private key"))
}

/// Reads a file whose metadata, of the very file that is read, pass `check`.
fn read(path: &Path, check: impl Fn(&std::fs::Metadata) -> Result<(), TlsError>) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let failed = |source| TlsError::Read { path: path.to_owned(), source: Arc::new(source) };
    let file = std::fs::File::open(path).map_err(failed)?;
    check(&file.metadata().map_err(failed)?)?;
    let mut bytes = Vec::new();
    file.take(FILE_LENGTH_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
