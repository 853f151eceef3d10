//! The adapter for any registry that speaks the OCI distribution spec, over the `oci-distribution` client.

use std::{future::Future, io, net::IpAddr, path::Path, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use oci_distribution::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    manifest::OciDescriptor,
    secrets::RegistryAuth,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

use super::{
    MANIFEST_TYPE, Registry, RegistryError,
    patience::{Patience, STALLED, unless_stalled},
};
use crate::domain::{Digest, FailPoint, fail_point::reached};

/// How long connecting, and waiting for the next bytes of an answer, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// For how long a request that failed for a passing reason is tried again: a registry that is being restarted is no reason to fail.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one operation may take, all tries together.
const OPERATION_DEADLINE: Duration = Duration::from_secs(90);
/// What an upload gets beyond that for each MiB: 16 KiB/s is the slowest that is put up with.
const PER_MEBIBYTE: Duration = Duration::from_secs(64);
/// Read at once from a file that is uploaded.
const UPLOAD_CHUNK: usize = 256 * 1024;
/// What `manifest` takes as an answer: OCI images, and Docker's which are alike.
const ACCEPTED: [&str; 2] = [MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"];

/// A name and password for the registry.
#[derive(Clone)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// An OCI registry at an address. Clones share connections.
#[derive(Clone)]
pub struct OciRegistry {
    address: String,
    scheme: &'static str,
    auth: RegistryAuth,
    client: Client,
    /// The read timeout counts from the beginning of a request, so that it would end every upload that takes longer; this one has none, and
    /// an upload is given up when nothing moves.
    uploader: Client,
    /// The client notes "anonymous" at the first read and then asks `/v2/` before every request; a client of its own keeps writing free
    /// of that.
    reader: Client,
    /// For what the client cannot do: deleting.
    http: reqwest::Client,
    patience: Duration,
}

impl OciRegistry {
    /// A registry at `HOST[:PORT]`: over plain HTTP when that is a loopback address, over HTTPS else. Connects at the first use.
    pub fn new(address: &str, credentials: Option<Credentials>) -> Result<Self, RegistryError> {
        let loopback = is_loopback(address);
        let invalid = |reason: String| RegistryError::Refused {
            registry: address.to_owned(),
            what: "its address".to_owned(),
            reason,
        };
        let client = |read_timeout| {
            let config = ClientConfig { read_timeout, ..config(loopback) };
            Client::try_from(config).map_err(|error| invalid(error.to_string()))
        };
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
        if loopback {
            http = http.no_proxy();
        }
        Ok(Self {
            address: address.to_owned(),
            scheme: if loopback { "http" } else { "https" },
            auth: credentials.map_or(RegistryAuth::Anonymous, |given| RegistryAuth::Basic(given.user, given.password)),
            client: client(Some(READ_TIMEOUT))?,
            uploader: client(None)?,
            reader: client(Some(READ_TIMEOUT))?,
            http: http.build().map_err(|error| invalid(error.to_string()))?,
            patience: PATIENCE,
        })
    }

    /// The same registry, whose passing failures are put up with for so long (a minute unless said).
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    fn reference(&self, repository: &str, reference: &str) -> Reference {
        let (registry, repository) = (self.address.clone(), repository.to_owned());
        if reference.starts_with("sha256:") {
            Reference::with_digest(registry, repository, reference.to_owned())
        } else {
            Reference::with_tag(registry, repository, reference.to_owned())
        }
    }

    /// The client for requests that write, knowing the credentials if there are any.
    async fn writer(&self) -> &Client {
        self.with_credentials(&self.client).await
    }

    async fn with_credentials<'c>(&self, client: &'c Client) -> &'c Client {
        if !matches!(self.auth, RegistryAuth::Anonymous) {
            client.store_auth_if_needed(&self.address, &self.auth).await;
        }
        client
    }

    /// Runs a request until it succeeds, is refused, or has had its tries and time.
    async fn attempt<T, F>(
        &self,
        what: &str,
        deadline: Duration,
        mut request: impl FnMut() -> F + Send,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, OciDistributionError>> + Send,
    {
        let tries = async {
            let mut patience = Patience::new(self.patience);
            loop {
                let error = match request().await {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                };
                let Some(pause) = patience.pause().filter(|_| is_passing(&error)) else {
                    return Err(self.error(what, &error));
                };
                tracing::debug!(registry = %self.address, what, %error, "trying again");
                tokio::time::sleep(pause).await;
            }
        };
        let too_slow = |_| self.unavailable(format!("{what} took longer than {} s", deadline.as_secs()));
        tokio::time::timeout(deadline, tries).await.map_err(too_slow)?
    }

    fn unavailable(&self, reason: String) -> RegistryError {
        RegistryError::Unavailable { registry: self.address.clone(), reason }
    }

    fn error(&self, what: &str, error: &OciDistributionError) -> RegistryError {
        let reason = explain(error);
        if is_passing(error) {
            return self.unavailable(format!("{what}: {reason}"));
        }
        if let OciDistributionError::IoError(error) = error {
            return RegistryError::Local(io::Error::new(error.kind(), format!("{what}: {error}")));
        }
        RegistryError::Refused { registry: self.address.clone(), what: what.to_owned(), reason }
    }

    async fn push_file(&self, image: &Reference, digest: &Digest, file: &Path) -> Result<(), OciDistributionError> {
        let file = tokio::fs::File::open(file).await?;
        let size = file.metadata().await?.len();
        let chunks = ReaderStream::with_capacity(file, UPLOAD_CHUNK).map_err(OciDistributionError::from);
        self.upload(image, digest, chunks, size).await
    }

    /// Uploads a blob; fails when nothing moves any more.
    async fn upload(
        &self,
        image: &Reference,
        digest: &Digest,
        chunks: impl Stream<Item = Result<Bytes, OciDistributionError>> + Send + 'static,
        size: u64,
    ) -> Result<(), OciDistributionError> {
        let (moved, moves) = watch::channel(());
        // Whoever watches is gone only together with the upload.
        let chunks = chunks.inspect(move |_| {
            moved.send(()).unwrap_or_default();
            reached(FailPoint::Push);
        });
        let client = self.with_credentials(&self.uploader).await;
        let upload = client.push_blob_stream(image, chunks, digest.as_str(), Some(size));
        let stalled = || io::Error::new(io::ErrorKind::TimedOut, format!("nothing moved for {} s", STALLED.as_secs()));
        unless_stalled(upload, moves).await.unwrap_or_else(|| Err(stalled().into())).map(drop)
    }

    async fn delete_once(&self, repository: &str, digest: &Digest) -> Result<(), OciDistributionError> {
        let url = format!("{}://{}/v2/{repository}/manifests/{digest}", self.scheme, self.address);
        let mut request = self.http.delete(&url);
        if let RegistryAuth::Basic(user, password) = &self.auth {
            let image = self.reference(repository, digest.as_str());
            request = match self.client.auth(&image, &self.auth, RegistryOperation::Push).await? {
                Some(token) => request.bearer_auth(token),
                None => request.basic_auth(user, Some(password)),
            };
        }
        let answer = request.send().await?;
        let code = answer.status();
        if code.is_success() || code == reqwest::StatusCode::NOT_FOUND {
            return Ok(());
        }
        Err(OciDistributionError::ServerError { code: code.as_u16(), url, message: answer.text().await? })
    }
}

/// Whether `HOST[:PORT]` names this very machine.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn config(loopback: bool) -> ClientConfig {
    // Naming a proxy keeps the client from taking one out of the environment; the list then keeps it from being used.
    let unproxied = loopback.then(|| ("http://127.0.0.1:9".to_owned(), "localhost,127.0.0.0/8,::1".to_owned()));
    let (http_proxy, no_proxy) = unproxied.unzip();
    ClientConfig {
        protocol: if loopback { ClientProtocol::Http } else { ClientProtocol::Https },
        use_monolithic_push: true,
        connect_timeout: Some(CONNECT_TIMEOUT),
        user_agent: concat!("berth/", env!("CARGO_PKG_VERSION")),
        http_proxy,
        no_proxy,
        ..ClientConfig::default()
    }
}

/// Whether it may go better in a moment.
fn is_passing(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(error) => match error.status() {
            Some(status) => status.is_server_error() || status == reqwest::StatusCode::TOO_MANY_REQUESTS,
            None => !error.is_builder(),
        },
        OciDistributionError::ServerError { code, .. } => *code >= 500 || *code == 429,
        // A registry that was restarted does not know of the upload; the next try begins a new one.
        OciDistributionError::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .any(|error| matches!(error.code, OciErrorCode::BlobUploadUnknown | OciErrorCode::BlobUploadInvalid)),
        // Of an upload; local files do not time out.
        OciDistributionError::IoError(error) => error.kind() == io::ErrorKind::TimedOut,
        _ => false,
    }
}

fn is_missing(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) | OciDistributionError::ServerError { code: 404, .. } => {
            true
        }
        OciDistributionError::RegistryError { envelope, .. } => envelope.errors.iter().any(|error| {
            matches!(
                error.code,
                OciErrorCode::BlobUnknown
                    | OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound
            )
        }),
        _ => false,
    }
}

/// The error with its causes, since reqwest's own text names only the URL.
fn explain(error: &OciDistributionError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[async_trait]
impl Registry for OciRegistry {
    fn address(&self) -> &str {
        &self.address
    }

    async fn has(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        let image = &self.reference(repository, digest.as_str());
        let what = format!("looking for the blob {digest}");
        let request = || async move { self.writer().await.blob_exists(image, digest.as_str()).await };
        self.attempt(&what, OPERATION_DEADLINE, request).await
    }

    async fn small_blob(
        &self,
        repository: &str,
        digest: &Digest,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let image = &self.reference(repository, digest.as_str());
        let what = format!("the blob {digest}");
        let layer = &OciDescriptor { digest: digest.to_string(), ..OciDescriptor::default() };
        let request = || async move {
            let mut chunks = match self.with_credentials(&self.reader).await.pull_blob_stream(image, layer).await {
                Ok(blob) => blob.stream,
                Err(error) if is_missing(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            let mut bytes = Vec::new();
            while let Some(chunk) = chunks.try_next().await? {
                if bytes.len() + chunk.len() > limit {
                    let text = format!("it has more than {limit} bytes");
                    return Err(OciDistributionError::SpecViolationError(text));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(Some(bytes))
        };
        self.attempt(&what, OPERATION_DEADLINE, request).await
    }

    async fn push_blob(&self, repository: &str, digest: &Digest, file: &Path) -> Result<(), RegistryError> {
        let image = &self.reference(repository, digest.as_str());
        let size = tokio::fs::metadata(file).await?.len();
        let mebibytes = u32::try_from(size >> 20).unwrap_or(u32::MAX);
        let deadline = OPERATION_DEADLINE + PER_MEBIBYTE.saturating_mul(mebibytes);
        let what = format!("the blob {digest}");
        self.attempt(&what, deadline, || self.push_file(image, digest, file)).await
    }

    async fn push_bytes(&self, repository: &str, digest: &Digest, bytes: Vec<u8>) -> Result<(), RegistryError> {
        let image = &self.reference(repository, digest.as_str());
        let bytes = &Bytes::from(bytes);
        let what = format!("the blob {digest}");
        let request = || async move {
            let whole = futures::stream::once(std::future::ready(Ok(bytes.clone()))).boxed();
            self.upload(image, digest, whole, bytes.len() as u64).await
        };
        self.attempt(&what, OPERATION_DEADLINE, request).await
    }

    async fn mount(&self, repository: &str, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        let image = &self.reference(repository, digest.as_str());
        let source = &self.reference(from, digest.as_str());
        let what = format!("mounting the blob {digest} from {from}");
        let request = || async move {
            match self.writer().await.mount_blob(image, source, digest.as_str()).await {
                Ok(()) => Ok(true),
                // "202 Accepted" instead of "201 Created": it began an upload, since it could not mount.
                Err(OciDistributionError::SpecViolationError(_)) => Ok(false),
                Err(error) if is_missing(&error) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.attempt(&what, OPERATION_DEADLINE, request).await
    }

    async fn push_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: Vec<u8>,
    ) -> Result<Digest, RegistryError> {
        let image = &self.reference(repository, reference);
        let digest = Digest::from_sha256(Sha256::digest(&manifest));
        let manifest = &Bytes::from(manifest);
        let what = format!("the manifest {repository}:{reference}");
        let request = || async move {
            let media_type = reqwest::header::HeaderValue::from_static(MANIFEST_TYPE);
            self.writer().await.push_manifest_raw(image, manifest.clone(), media_type).await
        };
        self.attempt(&what, OPERATION_DEADLINE, request).await?;
        Ok(digest)
    }

    async fn manifest(&self, repository: &str, reference: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        let image = &self.reference(repository, reference);
        let what = format!("the manifest {repository}:{reference}");
        let request = || async move {
            match self.reader.pull_manifest_raw(image, &self.auth, &ACCEPTED).await {
                Ok((bytes, _)) => Ok(Some(bytes.to_vec())),
                Err(error) if is_missing(&error) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.attempt(&what, OPERATION_DEADLINE, request).await
    }

    async fn resolve(&self, repository: &str, reference: &str) -> Result<Option<Digest>, RegistryError> {
        let image = &self.reference(repository, reference);
        let what = format!("the digest of {repository}:{reference}");
        let request = || async move {
            match self.reader.fetch_manifest_digest(image, &self.auth).await {
                Ok(digest) => digest
                    .parse()
                    .map(Some)
                    .map_err(|error| OciDistributionError::SpecViolationError(format!("{error}"))),
                Err(error) if is_missing(&error) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.attempt(&what, OPERATION_DEADLINE, request).await
    }

    async fn delete(&self, repository: &str, digest: &Digest) -> Result<(), RegistryError> {
        let what = format!("deleting {repository}@{digest}");
        self.attempt(&what, OPERATION_DEADLINE, || self.delete_once(repository, digest)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_for_this_machine_only() {
        for address in ["127.0.0.1:5000", "localhost:5000", "localhost", "127.8.8.8", "[::1]:5000"] {
            assert!(is_loopback(address), "{address}");
        }
        for address in ["registry.example.com", "10.0.0.1:5000", "127.0.0.1.example.com:5000", "[fe80::1]:5000"] {
            assert!(!is_loopback(address), "{address}");
        }
    }

    #[tokio::test]
    async fn a_registry_that_is_not_there_is_unavailable() {
        // A port that was free a moment ago.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let registry = OciRegistry::new(&address, None).unwrap().with_patience(Duration::from_millis(300));
        let digest = Digest::from_sha256(Sha256::digest(b"x"));
        let error = registry.has("a/b", &digest).await.unwrap_err();
        assert!(matches!(&error, RegistryError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
