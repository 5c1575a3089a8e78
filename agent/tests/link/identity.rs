//! Nobody gets in who should not, and nothing that is sent harms more than its own connection.

use std::os::unix::fs::PermissionsExt;

use rustls::RootCertStore;
use sterna_shared::peer::attach::{self, Answer, Attach};
use sterna_shared::peer::frame::{FrameKind, Header};
use sterna_shared::peer::hello;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

async fn refused(dial: Dial, tls: &Arc<Tls>) -> LinkError {
    open(dial, tls).await.map(|_| ()).expect_err("it is refused")
}

fn code(error: &LinkError) -> Option<RefusalCode> {
    match error {
        LinkError::Refused(refusal) => Some(refusal.code),
        _ => None,
    }
}

/// After whatever was done to it, the target still takes an honest session, and none of what came before reached it.
async fn still_serves(authority: &Authority, target: &mut Target) {
    assert!(target.sessions.try_recv().is_err(), "nobody else got a session");
    let (source, session) = pair(authority, target, None).await;
    soon(source.close(PATIENCE)).await.expect("closed");
    soon(session.ended()).await;
}

#[tokio::test]
async fn who_is_not_this_jobs_source_is_refused_before_the_owner_sees_a_session() {
    let authority = Authority::new("fleet");
    let foreign = Authority::new("elsewhere");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let here = dial(target.address);
    let alpha = authority.host("alpha");

    let other = foreign.issue("alpha", &["sterna://host/alpha"], (2020, 2090), &authority);
    let other = Arc::new(Tls::load(other).expect("it loads"));
    assert!(matches!(refused(here.clone(), &other).await, LinkError::Tls(TlsError::RefusedByPeer { .. })));
    let untrusting = foreign.host("alpha");
    assert!(matches!(refused(here.clone(), &untrusting).await, LinkError::Tls(TlsError::OtherAuthority)));
    let expired = authority.issue("expired", &["sterna://host/alpha"], (2020, 2021), &authority);
    let expired = Arc::new(Tls::load(expired).expect("it loads"));
    assert!(matches!(refused(here.clone(), &expired).await, LinkError::Tls(TlsError::RefusedByPeer { .. })));
    let meant = Dial { peer: "gamma".parse().expect("a host"), ..here.clone() };
    assert!(matches!(
        refused(meant, &alpha).await,
        LinkError::Tls(TlsError::WrongHost { found, .. }) if found.as_str() == "beta"
    ));
    assert_eq!(*target.asked.lock().expect("no panic"), 0, "none of these reached admission");

    let wrong_host = refused(here.clone(), &authority.host("gamma")).await;
    assert_eq!(code(&wrong_host), Some(RefusalCode::WrongHost));
    let wrong_token = Dial { token: Token::from_bytes([8; 32]), ..here.clone() };
    assert_eq!(code(&refused(wrong_token, &alpha).await), Some(RefusalCode::WrongToken));
    let wrong_job = Dial { job: JobId::from_uuid(Uuid::from_u128(2)), ..here.clone() };
    assert_eq!(code(&refused(wrong_job, &alpha).await), Some(RefusalCode::UnknownJob));
    still_serves(&authority, &mut target).await;
    let replayed = Dial { session: SessionId(Uuid::from_u128(6)), ..here };
    assert_eq!(code(&refused(replayed, &alpha).await), Some(RefusalCode::Replayed));
}

#[tokio::test]
async fn an_expired_or_future_target_is_named_as_such() {
    let authority = Authority::new("fleet");
    for (years, expired) in [((2020, 2021), true), ((2080, 2090), false)] {
        let files = authority.issue("beta", &["sterna://host/beta"], years, &authority);
        let target = Target::new(Arc::new(Tls::load(files).expect("it loads")), quick()).await;
        let error = refused(dial(target.address), &authority.host("alpha")).await;
        assert!(
            matches!(error, LinkError::Tls(TlsError::Expired)) == expired
                && matches!(error, LinkError::Tls(TlsError::NotYetValid)) != expired,
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn only_a_hosts_own_certificate_can_be_loaded() {
    let authority = Authority::new("fleet");
    for role in ["sterna://operator/alpha", "sterna://coordinator/alpha", "https://alpha"] {
        assert!(matches!(authority.uris("role", &[role]), Err(TlsError::Role { uri }) if uri == role));
    }
    let two = authority.uris("two", &["sterna://host/alpha", "sterna://host/beta"]);
    assert!(matches!(two, Err(TlsError::Names { count: 2 })));
    assert!(matches!(authority.uris("none", &[]), Err(TlsError::Names { count: 0 })));
    assert!(matches!(authority.uris("bad", &["sterna://host/a/b"]), Err(TlsError::HostId(_))));
    let files = authority.issue("open", &["sterna://host/alpha"], (2020, 2090), &authority);
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o640)).expect("set");
    assert!(matches!(Tls::load(files), Err(TlsError::KeyMode { mode: 0o640, .. })));

    let tls = authority.host("alpha");
    let (certificate, other) = (tls.certificate(), authority.host("beta").certificate());
    assert_eq!(certificate.authority.len(), 64);
    assert_eq!(certificate.authority, other.authority);
    assert_ne!(certificate.authority, Authority::new("elsewhere").host("alpha").certificate().authority);
    assert!(certificate.not_before.to_string().starts_with("2020-01-01T00:00:00"));
    assert!(certificate.not_after.to_string().starts_with("2090-01-01T00:00:00"));
    authority.issue("alpha", &["sterna://host/alpha"], (2021, 2091), &authority);
    tls.reload().expect("it loads again");
    assert!(tls.certificate().not_after.to_string().starts_with("2091"));
}

/// A client that is not an agent: `certificate` is what it shows.
async fn stranger(target: &Target, authority: &Authority, uri: Option<&str>) -> std::io::Result<Vec<u8>> {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let files = authority.issue("stranger", &[uri.unwrap_or("sterna://host/x")], (2020, 2090), authority);
    let read = |path| CertificateDer::pem_file_iter(path).expect("PEM").map(|der| der.expect("PEM"));
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read(&files.authorities));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.expect("TLS 1.3").dangerous().with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match uri {
        None => builder.with_no_client_auth(),
        Some(_) => {
            let key = PrivateKeyDer::from_pem_file(&files.key).expect("PEM");
            builder.with_client_auth_cert(read(&files.chain).collect(), key).expect("a pair")
        }
    };
    config.alpn_protocols = vec![b"sterna/1".to_vec()];
    let tcp = TcpStream::connect(target.address).await?;
    let name = "127.0.0.1".try_into().expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    stream.write_all(&hello::encode_offer(hello::SUPPORTED)).await?;
    stream.write_all(&attach::encode(&request()).expect("it encodes")).await?;
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await?;
    Ok(answer)
}

fn request() -> Attach {
    Attach {
        job: job(),
        token: token(),
        session: SessionId(Uuid::from_u128(5)),
        incarnation: 1,
        lane: 0,
        lanes: 4,
        received: 0,
        instance: None,
    }
}

#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn other_roles_and_no_certificate_are_refused() {
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let error = stranger(&target, &authority, None).await.expect_err("no certificate");
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    for role in ["sterna://operator/alpha", "sterna://coordinator/alpha"] {
        let answer = stranger(&target, &authority, Some(role)).await.expect("it is told");
        let answer: Answer = attach::decode(&answer[hello::HELLO_LENGTH + 4..]).expect("an answer");
        let Answer::Refused(refusal) = answer else { panic!("{role} was attached") };
        assert_eq!(refusal.code, RefusalCode::WrongRole);
        assert!(refusal.text.contains(role), "{}", refusal.text);
    }
    assert_eq!(*target.asked.lock().expect("no panic"), 0);
    still_serves(&authority, &mut target).await;
}

#[tokio::test]
async fn garbage_costs_its_own_connection_only() {
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    // Before TLS: garbage, half a record, and nothing at all until the time is up.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[]] {
        let mut tcp = TcpStream::connect(target.address).await.expect("connected");
        tcp.write_all(bytes).await.expect("written");
        let mut rest = Vec::new();
        // A reset says the same as an end.
        let _ = soon(tcp.read_to_end(&mut rest)).await;
    }
    // Within TLS: no hello, no common version, and attach messages that are none.
    let alpha = authority.host("alpha");
    let beta = "beta".parse().expect("a host");
    let offer = hello::encode_offer(hello::SUPPORTED);
    let future = hello::encode_offer(hello::Versions::new(100, 200).expect("a range"));
    let huge = [&offer[..], &u32::MAX.to_be_bytes()].concat();
    let nonsense = [&offer[..], &8_u32.to_be_bytes(), &[0xdd; 8]].concat();
    for bytes in [&[7; 64][..], &future, &huge, &nonsense] {
        let tcp = TcpStream::connect(target.address).await.expect("connected");
        let mut stream = alpha.connect(&beta, tcp).await.expect("TLS");
        stream.write_all(bytes).await.expect("written");
        stream.flush().await.expect("written");
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
    assert_eq!(*target.asked.lock().expect("no panic"), 0);
    still_serves(&authority, &mut target).await;
}

#[tokio::test]
async fn frames_that_break_the_rules_cost_the_connection_and_in_the_end_the_session() {
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let alpha = authority.host("alpha");
    let header = |kind, channel, length, sequence, acknowledged| {
        Header { kind, flags: 0, channel, length, sequence, acknowledged }.encode().to_vec()
    };
    let breaches = [
        vec![0; 24],
        header(FrameKind::Memory, 0, u32::MAX, 1, 0),
        header(FrameKind::Heartbeat, 0, 0, 0, 99),
        [header(FrameKind::Control, 0, 1, 2, 0), vec![1]].concat(),
        [header(FrameKind::Data, 0, 9, 1, 0), vec![1; 9]].concat(),
        [header(FrameKind::Memory, 999, 1, 1, 0), vec![1]].concat(),
        [header(FrameKind::Credit, 0, 8, 1, 0), vec![0xff; 8]].concat(),
        vec![0xff; 24],
    ];
    let mut instance = None;
    for bytes in breaches {
        let tcp = TcpStream::connect(target.address).await.expect("connected");
        let mut stream = alpha.connect(&"beta".parse().expect("a host"), tcp).await.expect("TLS");
        stream.write_all(&hello::encode_offer(hello::SUPPORTED)).await.expect("written");
        let attach = attach::encode(&Attach { instance, ..request() }).expect("it encodes");
        stream.write_all(&attach).await.expect("written");
        let mut reply = [0; hello::HELLO_LENGTH];
        soon(stream.read_exact(&mut reply)).await.expect("a hello");
        let length = soon(stream.read_u32()).await.expect("a length");
        let mut answer = vec![0; length as usize];
        soon(stream.read_exact(&mut answer)).await.expect("an answer");
        match attach::decode(&answer).expect("an answer") {
            Answer::Attached { received: 0, instance: met } => instance = Some(met),
            answer => panic!("{answer:?}"),
        }
        stream.write_all(&bytes).await.expect("written");
        stream.flush().await.expect("written");
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
    let session = target.session().await;
    assert!(matches!(soon(session.ended()).await, LinkError::Frame(_)));
    drop(session);
    let source = open(Dial { incarnation: 2, ..dial(target.address) }, &alpha).await.expect("the listener lives");
    soon(source.close(PATIENCE)).await.expect("closed");
}
