//! The web page: a client of the API and of nothing else.
//!
//! Pages are made here, of what the API answers to the token of whoever is signed in; their forms post to [`actions`], which ask the API for
//! the change. What happens meanwhile comes over the API's event streams, through [`relay`], and the page is made again: a browser without
//! scripts sees the same, after a reload.

mod actions;
mod assets;
mod client;
mod forms;
mod model;
mod pages;
mod relay;
mod session;
mod shell;
#[cfg(test)]
mod tests;

use axum::Router;

use client::Client;

/// What pages work with. Clones share it.
#[derive(Clone)]
pub(crate) struct Console {
    client: Client,
    /// Whether browsers reach it by TLS, so that the cookie never goes in the clear.
    secure: bool,
}

/// The console beside the API, which answers what the console has no page for.
///
/// `url` is how browsers reach it.
pub fn beside(api: Router, url: &str) -> Router {
    let console = Console { client: Client::new(api.clone()), secure: url.starts_with("https://") };
    pages::routes()
        .merge(session::routes())
        .merge(actions::routes())
        .merge(relay::routes())
        .merge(assets::routes())
        .with_state(console)
        .fallback_service(api)
}
