//! Styles and scripts, served by ourselves, under names that change with what is in them.

use std::sync::LazyLock;

use axum::{
    Router,
    extract::Path,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest, Sha256};

use super::Console;

/// Name, media type, content.
const FILES: [(&str, &str, &[u8]); 7] = [
    ("console.css", CSS, include_bytes!("assets/console.css")),
    ("console.js", JAVASCRIPT, include_bytes!("assets/console.js")),
    ("icon.svg", "image/svg+xml", include_bytes!("assets/icon.svg")),
    // Kept libraries, as they are published; see assets/vendor/README.md.
    ("pico.css", CSS, include_bytes!("assets/vendor/pico.css")),
    ("idiomorph.js", JAVASCRIPT, include_bytes!("assets/vendor/idiomorph.js")),
    ("uplot.css", CSS, include_bytes!("assets/vendor/uplot.css")),
    ("uplot.js", JAVASCRIPT, include_bytes!("assets/vendor/uplot.js")),
];
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Short hash of all of them.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    FILES.iter().for_each(|(_, _, bytes)| hash.update(bytes));
    hex::encode(&hash.finalize()[..6])
});

/// Where a file is.
pub(super) fn path(name: &str) -> String {
    format!("/assets/{}/{name}", *VERSION)
}

pub(super) fn routes() -> Router<Console> {
    Router::new()
        .route("/assets/{version}/{name}", get(|Path((_, name)): Path<(String, String)>| async move { file(&name) }))
}

fn file(name: &str) -> Response {
    let Some((_, kind, bytes)) = FILES.iter().find(|(known, ..)| *known == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable")),
        // An image that is opened by itself does nothing.
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'")),
    ];
    (headers, *bytes).into_response()
}
