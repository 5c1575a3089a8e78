//! Certificates of hosts that exist for one test.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use sterna_agent::link::{Files, Tls, TlsError};
use tempfile::TempDir;

/// An authority, and the directory that what it issues is in.
pub(crate) struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { directory: TempDir::new().expect("a directory"), issuer: Issuer::new(params, key), pem }
    }

    /// Writes a certificate for these URIs, and what `trusted` is to be trusted.
    pub(crate) fn issue(&self, file: &str, uris: &[&str], years: (i32, i32), trusted: &Self) -> Files {
        let mut params = CertificateParams::default();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().expect("ASCII")));
        }
        params.distinguished_name.push(DnType::CommonName, file);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |suffix: &str| self.directory.path().join(format!("{file}.{suffix}"));
        let files = Files { authorities: path("authorities"), chain: path("pem"), key: path("key") };
        write(&files.authorities, &[&self.pem, &trusted.pem].map(String::as_str).concat());
        write(&files.chain, &certificate.pem());
        write(&files.key, &key.serialize_pem());
        files
    }

    pub(crate) fn host(&self, name: &str) -> Arc<Tls> {
        self.uris(name, &[&format!("sterna://host/{name}")]).expect("it loads")
    }

    pub(crate) fn uris(&self, file: &str, uris: &[&str]) -> Result<Arc<Tls>, TlsError> {
        Tls::load(self.issue(file, uris, (2020, 2090), self)).map(Arc::new)
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("it is written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("its mode is set");
}
