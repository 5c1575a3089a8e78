//! A fleet's certificates: one authority, and a certificate for each host, coordinator, operator and broker.
//!
//! ```text
//!   ca.pem, ca-key.pem ──signs──▶ host-alpha.pem         URI sterna://host/alpha            server and client
//!   (the key stays off            coordinator-main.pem   URI sterna://coordinator/main      client
//!    the hosts)                   operator-ann.pem       URI sterna://operator/ann          client
//!                                 server-nats.pem        DNS and IP names                   server
//! ```
//!
//! The role and the id are one URI in the subject's alternative names, because a common name was checked by nobody in
//! the systems that went wrong before (CVE-2025-64434, GHSA-38jw-g2qx-4286): a coordinator's or operator's certificate
//! is never mistaken for a host's, whatever its name. Keys are ECDSA P-256, written once, mode 0600, created
//! exclusively, so that neither a link nor an older file is written through.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use sterna_shared::id::HostId;
use sterna_shared::time::Timestamp;

/// How long an authority holds unless told otherwise, in days.
pub const AUTHORITY_DAYS_DEFAULT: u32 = 3650;
/// How long a certificate holds unless told otherwise, in days.
pub const CERTIFICATE_DAYS_DEFAULT: u32 = 365;
/// The longest any certificate may be asked to hold, in days.
pub const DAYS_MAX: u32 = 7300;
/// How far before now a certificate begins to hold, in seconds: clocks of a fleet differ a little.
pub const BACKDATE_SECONDS: u64 = 300;
/// The most names and addresses of one certificate.
pub const ADDRESSES_MAX: usize = 64;
/// The largest PEM file that is read.
const PEM_LENGTH_MAX: u64 = 64 << 10;

/// The authority's certificate within a directory.
pub const AUTHORITY_FILE: &str = "ca.pem";
/// The authority's key within a directory.
pub const AUTHORITY_KEY_FILE: &str = "ca-key.pem";

/// What a certificate says its holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An agent: serves lanes and dials them.
    Host,
    /// A coordinator.
    Coordinator,
    /// A person or program that asks for things.
    Operator,
    /// The broker.
    Server,
}

impl Role {
    /// The word in the URI and in file names.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Coordinator => "coordinator",
            Self::Operator => "operator",
            Self::Server => "server",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// From when until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first instant.
    pub not_before: Timestamp,
    /// The last instant.
    pub not_after: Timestamp,
}

impl Validity {
    /// That many days from `now`, begun [`BACKDATE_SECONDS`] ago.
    #[must_use]
    pub fn days(now: Timestamp, days: u32) -> Self {
        let now = now.unix_microseconds();
        Self {
            not_before: Timestamp::from_unix_microseconds(now.saturating_sub(BACKDATE_SECONDS as i64 * 1_000_000)),
            not_after: Timestamp::from_unix_microseconds(now.saturating_add(i64::from(days) * 86_400_000_000)),
        }
    }
}

/// What to certify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// As what.
    pub role: Role,
    /// Whom: a host id, a name, or a broker's DNS name.
    pub name: String,
    /// Further DNS names and IP addresses.
    pub addresses: Vec<String>,
    /// For how long.
    pub validity: Validity,
}

/// A certificate and its key, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The certificate, mode 0644.
    pub certificate: PathBuf,
    /// Its key, mode 0600.
    pub key: PathBuf,
}

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The operator's: a file is there already.
    #[error("{} exists; give --force to replace it, or another directory", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// The operator's: there is no authority in the directory.
    #[error("{} is not there; make the authority first: sterna pki init --dir {}", path.display(), path.parent().unwrap_or(Path::new(".")).display())]
    NoAuthority {
        /// Which file is missing.
        path: PathBuf,
    },
    /// The operator's: a name cannot be certified.
    #[error("{name:?} cannot be the name of a {role}: {reason}")]
    Name {
        /// As what.
        role: Role,
        /// The name.
        name: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// The operator's: something is neither an address nor a name.
    #[error("{text:?} is neither an IP address nor a DNS name; give one such as 192.0.2.7 or alpha.example")]
    Address {
        /// What.
        text: String,
    },
    /// The operator's: too many addresses.
    #[error("{count} addresses were given; at most {ADDRESSES_MAX} fit one certificate")]
    TooManyAddresses {
        /// How many.
        count: usize,
    },
    /// The operator's: the end is not after the beginning.
    #[error("a certificate from {not_before} to {not_after} never holds; give a later end")]
    Validity {
        /// The beginning.
        not_before: Timestamp,
        /// The end.
        not_after: Timestamp,
    },
    /// The system's: a file cannot be read or written.
    #[error("{} cannot be {what}; check the directory's owner, mode and free space", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The authority's files are damaged, or ours is a fault.
    #[error("the {what} cannot be made; if ca.pem or ca-key.pem were edited, restore them")]
    Crypto {
        /// What.
        what: &'static str,
        /// What the library says.
        #[source]
        source: rcgen::Error,
    },
}

/// Makes an authority in `directory`, which is made (0700) where it is missing.
///
/// # Errors
/// [`PkiError::Exists`] where there is one already and `force` is not given: replacing an authority makes every
/// certificate of the fleet worthless.
pub fn init(directory: &Path, fleet: &str, validity: Validity, force: bool) -> Result<Written, PkiError> {
    check_validity(validity)?;
    let crypto = |source| PkiError::Crypto { what: "authority", source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|source| PkiError::File {
        path: directory.to_owned(),
        what: "made",
        source,
    })?;
    let key = KeyPair::generate().map_err(crypto)?;
    let mut params = params_of(fleet, validity);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(crypto)?;
    let written = Written { certificate: directory.join(AUTHORITY_FILE), key: directory.join(AUTHORITY_KEY_FILE) };
    write_both(&written, &certificate.pem(), &key.serialize_pem(), force)?;
    Ok(written)
}

/// Issues a certificate by the authority in `directory`, and writes it and its key there.
///
/// # Errors
/// See [`PkiError`]; nothing is left behind where the certificate could not be made.
pub fn issue(directory: &Path, wish: &Wish, force: bool) -> Result<Written, PkiError> {
    check_validity(wish.validity)?;
    let crypto = |source| PkiError::Crypto { what: "certificate", source };
    let alternative_names = alternative_names(wish)?;
    let authority_key = KeyPair::from_pem(&read(&directory.join(AUTHORITY_KEY_FILE))?).map_err(crypto)?;
    let issuer = Issuer::from_ca_cert_pem(&read(&directory.join(AUTHORITY_FILE))?, authority_key).map_err(crypto)?;

    let key = KeyPair::generate().map_err(crypto)?;
    let mut params = params_of(&wish.name, wish.validity);
    params.subject_alt_names = alternative_names;
    params.use_authority_key_identifier_extension = true;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match wish.role {
        Role::Host => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Role::Coordinator | Role::Operator => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Role::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
    };
    let certificate = params.signed_by(&key, &issuer).map_err(crypto)?;
    let stem = format!("{}-{}", wish.role, wish.name);
    let written =
        Written { certificate: directory.join(format!("{stem}.pem")), key: directory.join(format!("{stem}-key.pem")) };
    write_both(&written, &certificate.pem(), &key.serialize_pem(), force)?;
    Ok(written)
}

/// Writes a secret: mode 0600 from its first instant, never through a link. With `force` an older file is replaced in
/// one step; without, its existence is an error.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] where it is there and `force` is not given.
pub fn write_secret(path: &Path, text: &str, force: bool) -> io::Result<()> {
    write_file(path, text, 0o600, force)
}

/// Writes a file exclusively, or with `force` in place of an older one, and makes it last.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] where it is there and `force` is not given.
pub fn write_file(path: &Path, text: &str, mode: u32, force: bool) -> io::Result<()> {
    let create = |path: &Path| -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
            // A half-written key is worth nothing; that it cannot be removed either adds nothing to the error.
            let _ = fs::remove_file(path);
        })
    };
    if !force {
        return create(path);
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
    let temporary = PathBuf::from(temporary);
    create(&temporary)?;
    fs::rename(&temporary, path).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

fn write_both(written: &Written, certificate: &str, key: &str, force: bool) -> Result<(), PkiError> {
    let failed = |path: &Path, source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists { path: path.to_owned() },
        _ => PkiError::File { path: path.to_owned(), what: "written", source },
    };
    if !force && let Some(path) = [&written.certificate, &written.key].into_iter().find(|path| path.exists()) {
        return Err(PkiError::Exists { path: path.clone() });
    }
    write_secret(&written.key, key, force).map_err(|source| failed(&written.key, source))?;
    write_file(&written.certificate, certificate, 0o644, force).map_err(|source| failed(&written.certificate, source))
}

fn read(path: &Path) -> Result<String, PkiError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => PkiError::NoAuthority { path: path.to_owned() },
        _ => PkiError::File { path: path.to_owned(), what: "read", source },
    };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > PEM_LENGTH_MAX {
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes are no PEM file of ours"));
        return Err(failed(source));
    }
    fs::read_to_string(path).map_err(failed)
}

fn params_of(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Sterna");
    params.distinguished_name.push(DnType::CommonName, common_name);
    // 16 random bytes, the first bit clear, so that the number is positive.
    let mut serial = uuid::Uuid::new_v4().into_bytes();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let instant = |at: Timestamp| {
        let seconds = u64::try_from(at.unix_microseconds() / 1_000_000).unwrap_or(0);
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    params.not_before = instant(validity.not_before);
    params.not_after = instant(validity.not_after);
    params
}

fn check_validity(validity: Validity) -> Result<(), PkiError> {
    let Validity { not_before, not_after } = validity;
    if not_after <= not_before { Err(PkiError::Validity { not_before, not_after }) } else { Ok(()) }
}

fn alternative_names(wish: &Wish) -> Result<Vec<SanType>, PkiError> {
    let invalid =
        |reason: String| PkiError::Name { role: wish.role, name: wish.name.chars().take(80).collect(), reason };
    if wish.addresses.len() > ADDRESSES_MAX {
        return Err(PkiError::TooManyAddresses { count: wish.addresses.len() });
    }
    let mut names = Vec::new();
    if wish.role == Role::Server {
        names.push(address(&wish.name).map_err(|error| invalid(error.to_string()))?);
    } else {
        // Coordinators and operators are held to the form of a host id: all three become tokens of subjects.
        let _: HostId = wish.name.parse().map_err(|error: sterna_shared::id::InvalidId| invalid(error.to_string()))?;
        // The coordinators report events in the place of a host, under a name that begins so.
        if wish.role == Role::Host && wish.name.starts_with('_') {
            return Err(invalid("names that begin with _ are kept for the coordinators".to_owned()));
        }
        let uri = format!("sterna://{}/{}", wish.role, wish.name);
        names.push(SanType::URI(uri.try_into().map_err(|source| PkiError::Crypto { what: "name", source })?));
    }
    for text in &wish.addresses {
        let name = address(text)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn address(text: &str) -> Result<SanType, PkiError> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let invalid = || PkiError::Address { text: text.chars().take(80).collect() };
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label) {
        return Err(invalid());
    }
    text.to_owned().try_into().map(SanType::DnsName).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use x509_parser::extensions::GeneralName;
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().expect("a time")
    }

    fn authority() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        init(directory.path(), "test fleet", Validity::days(now(), 30), false).expect("an authority");
        directory
    }

    fn wish(role: Role, name: &str, addresses: &[&str]) -> Wish {
        Wish {
            role,
            name: name.to_owned(),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            validity: Validity::days(now(), 10),
        }
    }

    fn with_certificate<T>(path: &Path, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
        let pem = fs::read(path).expect("a file");
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
        let (_, certificate) = X509Certificate::from_der(&pem.contents).expect("a certificate");
        look(&certificate)
    }

    fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
        let names = certificate.subject_alternative_name().expect("parsed").expect("present");
        names
            .value
            .general_names
            .iter()
            .map(|name| match name {
                GeneralName::URI(uri) => (*uri).to_owned(),
                GeneralName::DNSName(name) => (*name).to_owned(),
                GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
                other => format!("unexpected {other:?}"),
            })
            .collect()
    }

    #[test]
    fn each_role_is_named_and_used_as_it_should_be() {
        let directory = authority();
        let authority_pem = fs::read(directory.path().join(AUTHORITY_FILE)).expect("a file");
        let (_, authority_pem) = x509_parser::pem::parse_x509_pem(&authority_pem).expect("PEM");
        let (_, authority) = X509Certificate::from_der(&authority_pem.contents).expect("a certificate");
        assert!(authority.is_ca());
        let cases = [
            (Role::Host, "alpha", "sterna://host/alpha", (true, true)),
            (Role::Coordinator, "main", "sterna://coordinator/main", (false, true)),
            (Role::Operator, "ann", "sterna://operator/ann", (false, true)),
            (Role::Server, "nats.example", "nats.example", (true, false)),
        ];
        for (role, name, expected, (server, client)) in cases {
            let written =
                issue(directory.path(), &wish(role, name, &["192.0.2.7", "x.example"]), false).expect("issued");
            with_certificate(&written.certificate, |certificate| {
                assert_eq!(names_of(certificate), [expected, "[192, 0, 2, 7]", "x.example"], "{role}");
                let usage = certificate.extended_key_usage().expect("parsed").expect("present").value;
                assert_eq!((usage.server_auth, usage.client_auth), (server, client), "{role}");
                assert!(!certificate.is_ca());
                certificate.verify_signature(Some(authority.public_key())).expect("signed by the authority");
                let validity = certificate.validity();
                assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 10 * 86_400 + 300);
                assert_eq!(validity.not_after.timestamp(), now().unix_microseconds() / 1_000_000 + 10 * 86_400);
            });
        }
    }

    #[test]
    fn keys_are_private_and_nothing_is_overwritten_unasked() {
        let directory = authority();
        let written = issue(directory.path(), &wish(Role::Host, "alpha", &[]), false).expect("issued");
        for key in [&written.key, &directory.path().join(AUTHORITY_KEY_FILE)] {
            let mode = fs::metadata(key).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", key.display());
        }
        let before = fs::read(&written.key).expect("a key");
        let again = issue(directory.path(), &wish(Role::Host, "alpha", &[]), false);
        assert!(matches!(again, Err(PkiError::Exists { .. })), "{again:?}");
        assert_eq!(fs::read(&written.key).expect("a key"), before);
        issue(directory.path(), &wish(Role::Host, "alpha", &[]), true).expect("forced");
        assert_ne!(fs::read(&written.key).expect("a key"), before);
        let mode = fs::metadata(&written.key).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "a replaced key is as private");
        assert!(matches!(
            init(directory.path(), "other", Validity::days(now(), 1), false),
            Err(PkiError::Exists { .. })
        ));
    }

    #[test]
    fn a_key_is_not_written_through_a_link() {
        let directory = authority();
        let elsewhere = directory.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, directory.path().join("host-beta-key.pem")).expect("a link");
        assert!(issue(directory.path(), &wish(Role::Host, "beta", &[]), false).is_err());
        assert!(!elsewhere.exists());
    }

    #[test]
    fn names_that_would_mislead_are_refused() {
        let directory = authority();
        for (role, name) in [
            (Role::Host, "a/b"),
            (Role::Host, ""),
            (Role::Host, "_coordinator"),
            (Role::Operator, "../ca"),
            (Role::Server, "-x.example"),
            (Role::Server, "a/b"),
        ] {
            let refused = issue(directory.path(), &wish(role, name, &[]), false);
            assert!(matches!(refused, Err(PkiError::Name { .. })), "{role} {name}: {refused:?}");
        }
        let refused = issue(directory.path(), &wish(Role::Host, "alpha", &["not an address"]), false);
        assert!(matches!(refused, Err(PkiError::Address { .. })), "{refused:?}");
        let empty = tempfile::tempdir().expect("a directory");
        let refused = issue(empty.path(), &wish(Role::Host, "alpha", &[]), false);
        assert!(matches!(refused, Err(PkiError::NoAuthority { .. })), "{refused:?}");
    }
}
