//! Request headers: which host is asked, what a client may not claim, and what the replica is told about the client.

use std::{borrow::Cow, net::IpAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::{
    ErrorType, OrErr,
    http::{RequestHeader, ResponseHeader},
    protocols::http::authority::{RawTargetAuthority, raw_target_authority},
};

/// Longest host name in DNS.
const MAX_HOST: usize = 253;

/// The key of a host in the routes table: without port and trailing dot, lower case. `None` when it is not a host at all.
/// Allocates only for upper case.
pub(super) fn host_key(authority: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(authority).ok()?;
    let host = match text.strip_prefix('[') {
        Some(rest) => &text[..rest.find(']')? + 2],
        None => text.split_once(':').map_or(text, |(host, _port)| host),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']');
    if host.is_empty() || host.len() > MAX_HOST || !host.bytes().all(allowed) {
        return None;
    }
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Some(Cow::Owned(host.to_ascii_lowercase())),
        false => Some(Cow::Borrowed(host)),
    }
}

/// Who is asked: the target's authority (HTTP/2, absolute form) or else `Host`. The two have been found equal where both are present.
pub(super) fn authority(request: &RequestHeader) -> Option<&[u8]> {
    if let Some(authority) = request.uri.authority() {
        return Some(authority.as_str().as_bytes());
    }
    match request.headers.get(header::HOST) {
        Some(host) => Some(host.as_bytes()),
        None => raw_target_authority(request.raw_path()).authority(),
    }
}

/// Whether a client's request id is kept, by Heroku's rule: 20 to 200 ASCII letters, digits, `+`, `/`, `=` and `-`.
pub(super) fn is_request_id(id: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-');
    (20..=200).contains(&id.len()) && id.iter().all(allowed)
}

/// The client's request id if it is valid, or a new one (a random UUID).
pub(super) fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").map(HeaderValue::as_bytes).filter(|id| is_request_id(id));
    match given.and_then(|id| std::str::from_utf8(id).ok()) {
        Some(id) => id.to_owned(),
        None => new_request_id(),
    }
}

fn new_request_id() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex::encode(bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// What the replica is told about the client.
#[derive(Debug)]
pub(super) struct Forwarded<'a> {
    pub(super) client: IpAddr,
    /// How the client came: the operator's word, never the client's.
    pub(super) scheme: &'static str,
    /// The port that the client connected to.
    pub(super) port: u16,
    pub(super) request_id: &'a str,
}

/// Makes the headers what the replica may believe: whatever only a proxy may say is removed and said anew.
///
/// # Errors
/// When a value is not valid in a header, which values from a parsed request are.
pub(super) fn prepare_request(request: &mut RequestHeader, told: &Forwarded<'_>) -> pingora::Result<()> {
    for name in claims(&request.headers) {
        request.remove_header(&name);
    }
    keep_session_cookies(request)?;
    to_origin_form(request)?;
    let host = request.headers.get(header::HOST).cloned();
    if let Some(host) = host {
        request.insert_header("X-Forwarded-Host", host)?;
    }
    request.insert_header("X-Forwarded-For", told.client.to_canonical().to_string())?;
    request.insert_header("X-Forwarded-Proto", told.scheme)?;
    request.insert_header("X-Forwarded-Port", told.port.to_string())?;
    request.insert_header("X-Request-Id", told.request_id)
}

/// In the name of every cookie of the console's.
const SESSION_COOKIE: &[u8] = b"berth_session";

/// Whether a cookie `name=value` is the console's.
fn is_session(cookie: &[u8]) -> bool {
    let name = cookie.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
    name == SESSION_COOKIE || name.strip_prefix(b"__Host-") == Some(SESSION_COOKIE)
}

/// Takes the console's cookies out: browsers send them to every port of a host, and no app is to have them.
fn keep_session_cookies(request: &mut RequestHeader) -> pingora::Result<()> {
    let has = |value: &HeaderValue| value.as_bytes().split(|byte| *byte == b';').any(is_session);
    if !request.headers.get_all(header::COOKIE).iter().any(has) {
        return Ok(());
    }
    let all: Vec<HeaderValue> = request.headers.get_all(header::COOKIE).iter().cloned().collect();
    request.remove_header(&header::COOKIE);
    for value in all {
        let others: Vec<&[u8]> = value.as_bytes().split(|byte| *byte == b';').filter(|one| !is_session(one)).collect();
        if !others.is_empty() {
            let kept = HeaderValue::from_bytes(others.join(&b';').trim_ascii());
            request.append_header(header::COOKIE, kept.or_err(ErrorType::InvalidHTTPHeader, "cookies")?)?;
        }
    }
    Ok(())
}

/// Headers by which a client could pretend to be a proxy. Python and Ruby servers read `_` as `-`, so those spellings count as well.
fn claims(headers: &HeaderMap) -> Vec<HeaderName> {
    headers.keys().filter(|name| is_claim(name.as_str())).cloned().collect()
}

fn is_claim(name: &str) -> bool {
    // The cheap look first: of the usual headers none begins so.
    match name.as_bytes().first() {
        Some(b'x' | b'f' | b't' | b'p' | b'c' | b'h') => {}
        _ => return false,
    }
    let known = |name: &str| {
        name.starts_with("x-forwarded-")
            || matches!(
                name,
                "forwarded"
                    | "x-real-ip"
                    | "x-client-ip"
                    | "x-cluster-client-ip"
                    | "true-client-ip"
                    | "cf-connecting-ip"
                    | "x-request-id"
                    // httpoxy: CGI programs take it for the proxy to use.
                    | "proxy"
            )
    };
    match name.contains('_') {
        // Also those that the router itself uses for routing and framing.
        true => {
            let name = name.replace('_', "-");
            known(&name) || matches!(name.as_str(), "content-length" | "transfer-encoding" | "host")
        }
        false => known(name),
    }
}

/// `GET http://host/path` becomes `GET /path` with `Host: host`; what is in origin form already stays as it is.
fn to_origin_form(request: &mut RequestHeader) -> pingora::Result<()> {
    let RawTargetAuthority::Absolute { authority, path_and_query, .. } = raw_target_authority(request.raw_path())
    else {
        return Ok(());
    };
    let host = HeaderValue::from_bytes(authority).or_err(ErrorType::InvalidHTTPHeader, "the target's authority")?;
    let slash: &[u8] = if path_and_query.starts_with(b"/") { b"" } else { b"/" };
    let target = [slash, path_and_query].concat();
    request.insert_header(header::HOST, host)?;
    request.set_raw_path(&target)
}

/// Removes what concerns only the connection to the replica; the proxy library writes what concerns the client's.
///
/// Apps answer below `base`, next to those of other tenants.
pub(super) fn prepare_response(response: &mut ResponseHeader, request: &RequestHeader, base: &str) {
    keep_cookies_home(response, request, base);
    if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let Some(connection) = response.headers.get(header::CONNECTION) else {
        response.remove_header("keep-alive");
        return;
    };
    let named: Vec<HeaderName> = connection
        .as_bytes()
        .split(|byte| *byte == b',')
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !matches!(name.as_str(), "close" | "content-length" | "transfer-encoding" | "content-type"))
        .collect();
    for name in named {
        response.remove_header(&name);
    }
    response.remove_header("keep-alive");
    response.remove_header("proxy-connection");
}

/// Takes the domain off cookies that would be sent to other tenants' apps too: they then belong to the host that set them.
fn keep_cookies_home(response: &mut ResponseHeader, request: &RequestHeader, base: &str) {
    if !response.headers.contains_key(header::SET_COOKIE) {
        return;
    }
    let sets_session = |value: &HeaderValue| is_session(value.as_bytes());
    if response.headers.get_all(header::SET_COOKIE).iter().any(sets_session) {
        let others = response.headers.get_all(header::SET_COOKIE).iter().filter(|value| !sets_session(value));
        let others: Vec<HeaderValue> = others.cloned().collect();
        response.remove_header(&header::SET_COOKIE);
        for cookie in others {
            // It was a header before, so it is one now.
            let _ = response.append_header(header::SET_COOKIE, cookie);
        }
    }
    let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let authority = authority.or_else(|| request.headers.get(header::HOST).map(HeaderValue::as_bytes));
    if !authority.and_then(host_key).is_some_and(|host| is_below(&host, base)) {
        return;
    }
    let cookies: Vec<HeaderValue> = response.headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    response.remove_header(&header::SET_COOKIE);
    for cookie in cookies {
        let kept = without_wide_domain(cookie.as_bytes(), base).and_then(|kept| HeaderValue::from_bytes(&kept).ok());
        // It was a header before, so it is one now.
        let _ = response.append_header(header::SET_COOKIE, kept.unwrap_or(cookie));
    }
}

fn is_below(host: &str, base: &str) -> bool {
    let rest = host.len().checked_sub(base.len() + 1);
    rest.is_some_and(|at| {
        host.as_bytes()[at] == b'.' && host.as_bytes()[at + 1..].eq_ignore_ascii_case(base.as_bytes())
    })
}

/// The cookie without `Domain=BASE`, `Domain=TENANT.BASE` or anything wider; `None` when it names none of these (RFC 6265, 5.2.3).
fn without_wide_domain(cookie: &[u8], base: &str) -> Option<Vec<u8>> {
    let is_wide = |attribute: &&[u8]| {
        let (name, value) = match attribute.iter().position(|byte| *byte == b'=') {
            Some(at) => (&attribute[..at], &attribute[at + 1..]),
            None => return false,
        };
        let domain = String::from_utf8_lossy(value.trim_ascii()).trim_start_matches('.').to_ascii_lowercase();
        name.trim_ascii().eq_ignore_ascii_case(b"domain")
            && (is_below(base, &domain)
                || domain.eq_ignore_ascii_case(base)
                || is_below(&domain, base) && domain.split('.').count() == base.split('.').count() + 1)
    };
    let attributes: Vec<&[u8]> = cookie.split(|byte| *byte == b';').collect();
    // The first is the cookie itself, whatever it is called.
    let kept: Vec<&[u8]> = attributes
        .iter()
        .enumerate()
        .filter(|(at, attribute)| *at == 0 || !is_wide(attribute))
        .map(|(_, one)| *one)
        .collect();
    (kept.len() < attributes.len()).then(|| kept.join(&b';'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_keys() {
        for (authority, want) in [
            ("shop.acme.localhost", Some("shop.acme.localhost")),
            ("Shop.ACME.localhost:8080", Some("shop.acme.localhost")),
            ("shop.acme.localhost.:80", Some("shop.acme.localhost")),
            ("[::1]:8080", Some("[::1]")),
            ("127.0.0.1:1", Some("127.0.0.1")),
            ("", None),
            (":80", None),
            (".", None),
            ("[::1", None),
            ("a b", None),
            ("a/b", None),
            ("a@b", None),
            ("a\tb", None),
        ] {
            assert_eq!(host_key(authority.as_bytes()).as_deref(), want, "{authority:?}");
        }
        assert_eq!(host_key(&[0xff]), None);
        assert_eq!(host_key("a".repeat(254).as_bytes()), None);
        assert!(matches!(host_key(b"shop.acme.localhost:80"), Some(Cow::Borrowed(_))));
    }

    #[test]
    fn the_consoles_cookies_are_not_the_apps() {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.append_header("Cookie", "a=1; berth_session=secret; b=2").unwrap();
        request.append_header("Cookie", "__Host-berth_session=secret").unwrap();
        prepare_request(&mut request, &told()).unwrap();
        let left: Vec<&[u8]> = request.headers.get_all("cookie").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(left, [b"a=1; b=2"]);

        let mut response = ResponseHeader::build(200, None).unwrap();
        response.append_header("Set-Cookie", "berth_session=planted; Path=/envs").unwrap();
        response.append_header("Set-Cookie", "own=1").unwrap();
        prepare_response(&mut response, &request, "localhost");
        let left: Vec<&[u8]> = response.headers.get_all("set-cookie").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(left, [b"own=1"]);
    }

    #[test]
    fn request_ids() {
        for (id, kept) in [
            ("0123456789abcdef0123", true),
            ("01234567-89ab-cdef+/=X", true),
            ("short", false),
            ("has space in the middle of it", false),
            ("newline0123456789\n01234", false),
        ] {
            assert_eq!(is_request_id(id.as_bytes()), kept, "{id:?}");
        }
        assert!(!is_request_id("a".repeat(201).as_bytes()));
        let (one, other) = (new_request_id(), new_request_id());
        assert!(one != other && one.len() == 36 && is_request_id(one.as_bytes()), "{one}");
    }

    fn request(path: &str, headers: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", path.as_bytes(), None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    fn told() -> Forwarded<'static> {
        let client = "::ffff:192.0.2.7".parse().unwrap();
        Forwarded { client, scheme: "https", port: 443, request_id: "the-router-s-own-id-1" }
    }

    #[test]
    fn a_client_cannot_pretend_to_be_a_proxy() {
        let mut request = request(
            "/",
            &[
                ("Host", "shop"),
                ("X-Forwarded-For", "1.1.1.1"),
                ("X-Forwarded-For", "2.2.2.2"),
                ("X_Forwarded_For", "3.3.3.3"),
                ("X-Forwarded-Proto", "ftp"),
                ("X-Forwarded-Host", "evil"),
                ("X-Forwarded-Port", "21"),
                ("X-Forwarded-Prefix", "/x"),
                ("X-Forwarded-Ssl", "on"),
                ("Forwarded", "for=1.1.1.1"),
                ("X-Real-IP", "1.1.1.1"),
                ("X-Real_IP", "1.1.1.1"),
                ("Proxy", "http://evil"),
                ("Content_Length", "5"),
                ("Cookie", "a=b"),
                ("Cookie", "c=d"),
                ("X_Own", "kept"),
            ],
        );
        prepare_request(&mut request, &told()).unwrap();
        let mut left: Vec<String> =
            request.headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(
            left,
            [
                "cookie=a=b",
                "cookie=c=d",
                "host=shop",
                "x-forwarded-for=192.0.2.7",
                "x-forwarded-host=shop",
                "x-forwarded-port=443",
                "x-forwarded-proto=https",
                "x-request-id=the-router-s-own-id-1",
                "x_own=kept",
            ]
        );
    }

    #[test]
    fn absolute_form_becomes_origin_form() {
        for (target, want) in [
            ("http://shop/a?b=c", "/a?b=c"),
            ("http://shop", "/"),
            ("http://shop?x=1", "/?x=1"),
            ("/plain?x", "/plain?x"),
            ("*", "*"),
        ] {
            let mut request = request(target, &[]);
            prepare_request(&mut request, &told()).unwrap();
            assert_eq!(String::from_utf8_lossy(request.raw_path()), want, "{target}");
            if target.starts_with("http") {
                assert_eq!(request.headers[header::HOST], "shop");
            }
        }
    }

    #[test]
    fn hop_by_hop_headers_of_a_response_end_here() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("Connection", "close, X-Internal, Content-Length"),
            ("Keep-Alive", "timeout=5"),
            ("X-Internal", "1"),
            ("Content-Length", "2"),
        ] {
            response.append_header(name, value).unwrap();
        }
        prepare_response(&mut response, &request("/", &[("Host", "shop.acme.localhost")]), "localhost");
        assert!(!response.headers.contains_key("x-internal") && !response.headers.contains_key("keep-alive"));
        assert!(response.headers.contains_key("content-length"));
    }

    #[test]
    fn cookies_do_not_reach_other_tenants() {
        for (host, cookie, kept) in [
            ("dev.shop.acme.apps.example.com", "a=b; Domain=apps.example.com; Path=/", "a=b; Path=/"),
            ("dev.shop.acme.apps.example.com", "a=b;domain=.Example.COM", "a=b"),
            ("dev.shop.acme.apps.example.com", "a=b; DOMAIN = .acme.apps.example.com ;Secure", "a=b;Secure"),
            ("dev.shop.acme.apps.example.com", "a=b; Domain=com", "a=b"),
            (
                "dev.shop.acme.apps.example.com",
                "a=b; Domain=shop.acme.apps.example.com",
                "a=b; Domain=shop.acme.apps.example.com",
            ),
            (
                "dev.shop.acme.apps.example.com",
                "domain=apps.example.com; HttpOnly",
                "domain=apps.example.com; HttpOnly",
            ),
            ("dev.shop.acme.apps.example.com", "a=b; Path=/domain; Domain=", "a=b; Path=/domain; Domain="),
            ("www.shop.test", "a=b; Domain=shop.test", "a=b; Domain=shop.test"),
        ] {
            let mut response = ResponseHeader::build(200, None).unwrap();
            response.append_header("Set-Cookie", "first=1").unwrap();
            response.append_header("Set-Cookie", cookie).unwrap();
            prepare_response(&mut response, &request("/", &[("Host", host)]), "apps.example.com");
            let cookies: Vec<&str> =
                response.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(cookies, ["first=1", kept], "{host}: {cookie}");
        }
    }
}
