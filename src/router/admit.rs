//! Whether a request can be served at all, and which app it asks for.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use http::header;
use pingora::proxy::Session;

use super::{
    headers,
    live::{LiveRoute, Routes},
    pages::Trouble,
};

/// Largest request head, in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// Why a request has no route.
pub(super) enum Refusal {
    Malformed(Trouble<'static>),
    UnknownHost(String),
}

/// Finds the route, or what is wrong with the request.
pub(super) fn admit(session: &Session, routes: &Routes) -> Result<Arc<LiveRoute>, Refusal> {
    check_head(session)?;
    let malformed = |why| Refusal::Malformed(Trouble::BadRequest(why));
    let authority = headers::authority(session.req_header());
    let authority = authority.ok_or_else(|| malformed("it has no Host header, which says which app is asked"))?;
    let host = headers::host_key(authority).ok_or_else(|| malformed("its Host header is not a host name"))?;
    routes.find(&host).ok_or_else(|| Refusal::UnknownHost(host.into_owned()))
}

/// Refuses heads that are too large, and framing that two servers could understand differently.
fn check_head(session: &Session) -> Result<(), Refusal> {
    let Some(http1) = session.as_downstream().as_http1() else { return Ok(()) };
    let raw = http1.get_headers_raw_bytes();
    if raw.len() > MAX_HEAD {
        return Err(Refusal::Malformed(Trouble::HeadTooLarge));
    }
    let headers = &session.req_header().headers;
    // The proxy library drops Content-Length when both are there; RFC 9112 (6.1) lets a server refuse, which is safer.
    if headers.contains_key(header::TRANSFER_ENCODING) && has_header_line(&raw, b"content-length") {
        return Err(Refusal::Malformed(Trouble::BadRequest("it has both Content-Length and Transfer-Encoding")));
    }
    Ok(())
}

/// Whether a raw head has a line for the header `name` (lower case).
fn has_header_line(raw: &[u8], name: &[u8]) -> bool {
    raw.split(|byte| *byte == b'\n').any(|line| {
        let is_name = line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        is_name && line[name.len()..].trim_ascii_start().starts_with(b":")
    })
}

/// The client's address and the port that it connected to.
pub(super) fn client(session: &Session) -> (IpAddr, u16) {
    let inet =
        |address: Option<&pingora::protocols::l4::socket::SocketAddr>| address.and_then(|a| a.as_inet()).copied();
    let client =
        inet(session.client_addr()).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip().to_canonical());
    (client, inet(session.server_addr()).map_or(80, |address| address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_lines_in_a_raw_head() {
        for (raw, found) in [
            ("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", true),
            ("GET / HTTP/1.1\r\ncontent-LENGTH :5\r\n\r\n", true),
            ("GET / HTTP/1.1\nContent-Length:5\n\n", true),
            ("GET / HTTP/1.1\r\nX: Content-Length: 5\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nContent-Length-X: 5\r\n\r\n", false),
            ("GET /content-length: HTTP/1.1\r\n\r\n", false),
        ] {
            assert_eq!(has_header_line(raw.as_bytes(), b"content-length"), found, "{raw:?}");
        }
    }
}
