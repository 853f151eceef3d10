//! TLS to receivers: certificates are always verified, against the host's roots and the operator's own.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::window::Counted;

pub(super) struct Tls(TlsConnector);

impl Tls {
    /// Trusts the host's roots, and the certificates in `ca_file`.
    pub(super) fn new(ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "some of the host's certificates cannot be read");
        }
        // Hosts have certificates that cannot be used; the others count.
        roots.add_parsable_certificates(native.certs);
        if let Some(path) = ca_file {
            let unreadable = || format!("drains.ca_file: {} cannot be read", path.display());
            let certificates = CertificateDer::pem_file_iter(path).with_context(unreadable)?;
            for certificate in certificates {
                roots.add(certificate.with_context(unreadable)?).with_context(unreadable)?;
            }
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .context("TLS cannot be set up")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// The handshake; the certificate must be `host`'s.
    pub(super) async fn connect(
        &self,
        host: &str,
        stream: Counted<TcpStream>,
    ) -> Result<TlsStream<Counted<TcpStream>>, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is no name for TLS"))?;
        self.0.connect(name, stream).await.map_err(|error| format!("no TLS with {host}: {error}"))
    }
}
