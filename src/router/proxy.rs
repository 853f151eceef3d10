//! One request through the router: find the route, choose a replica, pass it on, record it.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, Version, header};
use pingora::{
    Error, ErrorSource,
    ErrorType::{self, ConnectionClosed, HTTPStatus, ReadError, WriteError},
    http::{RequestHeader, ResponseHeader},
    protocols::Digest,
    proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session},
    upstreams::peer::HttpPeer,
};

use super::{
    RouterSettings,
    access::{AccessLog, Line},
    admit::{Refusal, admit, client},
    backend::Lease,
    connect,
    headers::{self, Forwarded},
    live::{LiveRoute, Routes},
    meter::UnderWay,
    pages::{Trouble, wants_html},
    watchdog::Watchdog,
};

/// How long a write to a client, or the next read of a request body, may take.
pub(super) const CLIENT_PAUSE: Duration = Duration::from_secs(60);
/// How long the rest of a request body is read after the answer has been sent.
const DISCARD_LIMIT: Duration = Duration::from_secs(5);
/// How many replicas a request is tried on.
pub(super) const MAX_TRIES: usize = 4;

/// Passes requests on by the routes in force.
pub(super) struct Proxy {
    routes: Arc<Routes>,
    access: AccessLog,
    settings: Arc<RouterSettings>,
}

/// What is known of one request.
pub(super) struct Request {
    started: Instant,
    watchdog: Option<Arc<Watchdog>>,
    request_id: String,
    route: Option<Arc<LiveRoute>>,
    /// Counts it as under way.
    under_way: Option<UnderWay>,
    lease: Option<Lease>,
    /// Keys of backends not to be asked again.
    tried: Vec<u64>,
    tries: u64,
    connect_started: Instant,
    connect: Duration,
    /// Why it failed, for the access log.
    error: Option<&'static str>,
}

impl Request {
    /// Nothing is awaited from the client or a replica any more.
    fn rest(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.rest();
        }
    }

    /// Gives the replica up and remembers not to ask it again.
    fn give_up_replica(&mut self) -> Option<Lease> {
        let lease = self.lease.take()?;
        self.tried.push(lease.backend().key);
        Some(lease)
    }
}

impl Proxy {
    pub(super) fn new(routes: Arc<Routes>, access: AccessLog, settings: Arc<RouterSettings>) -> Self {
        Self { routes, access, settings }
    }

    /// What the failure means to the client, if it can still be told, and in a word for the log.
    fn explain<'a>(&'a self, error: &Error, request: &'a Request) -> (Option<Trouble<'a>>, &'static str) {
        let Some(route) = &request.route else {
            return (Some(Trouble::Internal), "internal");
        };
        let env = &route.env;
        if let Some(word) = request.error {
            let trouble = match word {
                "no-healthy-replica" => Trouble::NoReplica { env },
                "refused" | "connect-timeout" => Trouble::Unreachable { env },
                "timeout" => Trouble::TooLate { env, seconds: self.settings.first_byte_limit.as_secs() },
                _ => Trouble::BadAnswer { env },
            };
            // A client that went away while a second replica was asked is the client's failure, not the first replica's.
            if *error.esource() != ErrorSource::Downstream {
                return (Some(trouble), word);
            }
        }
        match (error.esource(), error.etype()) {
            (ErrorSource::Downstream, ErrorType::InvalidHTTPHeader) => {
                (Some(Trouble::BadRequest("its headers or its body are malformed")), "bad-request")
            }
            (ErrorSource::Downstream, _) => (None, "client-closed"),
            (ErrorSource::Upstream, _) => (Some(Trouble::BadAnswer { env }), "closed"),
            _ => (Some(Trouble::Internal), "internal"),
        }
    }
}

/// Answers with a page of the router's own.
async fn answer(session: &mut Session, trouble: &Trouble<'_>, request_id: &str) -> pingora::Result<u16> {
    let request = session.req_header();
    let html = wants_html(request.headers.get(header::ACCEPT).map(|accept| accept.as_bytes()));
    let head_only = request.method == http::Method::HEAD;
    let page = trouble.page(html, request_id);
    let mut response = ResponseHeader::build(page.status, Some(6))?;
    response.insert_header(header::CONTENT_TYPE, page.content_type)?;
    response.insert_header(header::CONTENT_LENGTH, page.body.len())?;
    response.insert_header(header::CACHE_CONTROL, "no-store")?;
    response.insert_header("X-Request-Id", request_id)?;
    if let Some(seconds) = page.retry_after {
        response.insert_header(header::RETRY_AFTER, seconds)?;
    }
    session.write_response_header(Box::new(response), head_only).await?;
    if !head_only {
        session.write_response_body(Some(Bytes::from(page.body)), true).await?;
    }
    Ok(page.status)
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        let now = Instant::now();
        Request {
            started: now,
            watchdog: Watchdog::current(),
            request_id: String::new(),
            route: None,
            under_way: None,
            lease: None,
            tried: Vec::new(),
            tries: 0,
            connect_started: now,
            connect: Duration::ZERO,
            error: None,
        }
    }

    /// No response compression and the like: bytes pass as they are.
    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {}

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> pingora::Result<bool> {
        request.rest();
        session.set_write_timeout(Some(CLIENT_PAUSE));
        session.set_total_drain_timeout(Some(DISCARD_LIMIT));
        session.set_pipelining_enabled(true);
        request.request_id = headers::request_id(&session.req_header().headers);
        let host;
        let trouble = match admit(session, &self.routes) {
            Ok(route) => {
                request.under_way = Some(UnderWay::begin(&route.meter));
                let route = request.route.insert(route);
                if route.has_replicas() {
                    return Ok(false);
                }
                if let Some(current) = self.routes.with_replica(route, self.settings.connect_timeout).await {
                    *route = current;
                    return Ok(false);
                }
                let env = &route.env;
                request.error = Some(if route.released { "no-healthy-replica" } else { "no-release" });
                match route.released {
                    true => Trouble::NoReplica { env },
                    false => Trouble::NoRelease { env, push_base: &self.settings.push_base },
                }
            }
            Err(Refusal::Malformed(trouble)) => {
                // What follows on this connection may not be a request either.
                session.set_keepalive(None);
                trouble
            }
            Err(Refusal::UnknownHost(unknown)) => {
                host = unknown;
                Trouble::UnknownHost { host: &host, base_domain: &self.settings.base_domain }
            }
        };
        answer(session, &trouble, &request.request_id).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _session: &mut Session, request: &mut Request) -> pingora::Result<Box<HttpPeer>> {
        request.lease = None;
        let mut route = request.route.clone().ok_or_else(|| Error::new_in(ErrorType::InternalError))?;
        let limit = self.settings.connect_timeout;
        let mut found = self.routes.lease(&route, &request.tried);
        if found.is_none()
            && let Some(current) = self.routes.with_replica(&route, limit).await
        {
            found = self.routes.lease(&current, &request.tried);
            route = current;
        }
        let Some(lease) = found else {
            // Whatever made the replicas before fail is the better explanation.
            request.error.get_or_insert("no-healthy-replica");
            return Err(Error::new_up(HTTPStatus(503)));
        };
        request.tries += 1;
        request.connect_started = Instant::now();
        let another = request.tries < MAX_TRIES as u64 && route.has_others(&request.tried, lease.backend().key);
        let peer = connect::peer(&lease, request.tries, another, limit);
        request.lease = Some(lease);
        Ok(Box::new(peer))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        request: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let lease = request.give_up_replica();
        request.error = Some(match error.etype() {
            _ if lease.as_ref().is_some_and(|lease| lease.backend().is_retired()) => "no-healthy-replica",
            ErrorType::ConnectTimedout => "connect-timeout",
            _ => "refused",
        });
        if let Some(lease) = lease {
            lease.backend().suspect();
        }
        // Nothing was sent, so any request can go to another replica.
        error.set_retry(true);
        error
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        socket: std::os::fd::RawFd,
        _digest: Option<&Digest>,
        request: &mut Request,
    ) -> pingora::Result<()> {
        request.connect = request.connect_started.elapsed();
        request.error = None;
        if let Some(watchdog) = &request.watchdog {
            watchdog.await_first_byte(socket, session.is_body_empty());
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        request: &mut Request,
    ) -> pingora::Result<()> {
        let (client, port) = client(session);
        let (scheme, port) = (self.settings.public_scheme, self.settings.public_port.unwrap_or(port));
        let told = Forwarded { client, scheme, port, request_id: &request.request_id };
        headers::prepare_request(upstream_request, &told)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        end_of_stream: bool,
        request: &mut Request,
    ) -> pingora::Result<()> {
        if let Some(watchdog) = &request.watchdog {
            watchdog.progress(end_of_stream);
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        request: &mut Request,
    ) -> pingora::Result<()> {
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        request.rest();
        headers::prepare_response(response, session.req_header(), &self.settings.base_domain);
        if session.is_process_shutting_down() {
            // The answer says so (Connection: close), and the client opens its next connection elsewhere.
            session.set_keepalive(None);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _request: &mut Request,
    ) -> pingora::Result<()> {
        if session.req_header().version == Version::HTTP_10 && response.headers.contains_key(header::TRANSFER_ENCODING)
        {
            // Chunks came with HTTP/1.1. Without them the end of the connection is the end of the answer.
            response.remove_header(&header::TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        request: &mut Request,
        reused: bool,
    ) -> Box<Error> {
        request.rest();
        error.set_retry(false);
        if request.watchdog.as_ref().is_some_and(|watchdog| watchdog.fired()) {
            request.error = Some("timeout");
            error.as_up();
            return error;
        }
        if *error.esource() != ErrorSource::Upstream {
            return error;
        }
        request.error = Some("closed");
        let closed = matches!(error.etype(), ConnectionClosed | ReadError | WriteError);
        let repeatable =
            session.req_header().method.is_idempotent() && !session.as_downstream().retry_buffer_truncated();
        if closed && repeatable && session.response_written().is_none() {
            // The replica died, or had closed the idle connection: the same request may be made again (RFC 9110, 9.2.2). In the latter
            // case the replica itself is well.
            if !reused {
                request.give_up_replica();
            }
            error.set_retry(true);
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, request: &mut Request) -> FailToProxy {
        request.rest();
        let (trouble, word) = self.explain(error, request);
        let mut error_code = session.response_written().map_or(499, |response| response.status.as_u16());
        if let (Some(trouble), None) = (&trouble, session.response_written()) {
            session.set_keepalive(None);
            match answer(session, trouble, &request.request_id).await {
                Ok(status) => error_code = status,
                Err(error) => tracing::debug!(%error, "the client could not be told"),
            }
        }
        request.error = Some(word);
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, request: &mut Request) {
        request.rest();
        let lease = request.lease.take();
        request.under_way = None;
        let Some(route) = &request.route else {
            self.routes.unrouted.fetch_add(1, Relaxed);
            return;
        };
        let header = session.req_header();
        // 499, as nginx has it: the client went away before there was an answer.
        let status = session.response_written().map_or(499, |response| response.status.as_u16());
        let (total, bytes) = (request.started.elapsed(), session.body_bytes_sent() as u64);
        route.meter.count(status, total, bytes);
        self.access.record(&Line {
            env: &route.env,
            request_id: &request.request_id,
            method: header.method.as_str(),
            host: headers::authority(header).unwrap_or_default(),
            path: header.raw_path(),
            status,
            replica: lease.as_ref().map_or("", |lease| lease.backend().upstream.replica.as_str()),
            client: client(session).0,
            connect: request.connect,
            total,
            bytes,
            error: request.error,
        });
    }

    /// Failures are in the access log, which belongs to the app; the router's own log is for the router.
    fn suppress_error_log(&self, _session: &Session, _request: &Request, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _request: &Request,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}
