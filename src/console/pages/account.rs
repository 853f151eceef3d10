//! Who is signed in: keys, tokens, browsers.

use askama::Template;
use axum::{
    Router,
    extract::{Query as UrlQuery, State},
    routing::get,
};
use serde::Deserialize;

use super::{Failed, told};
use crate::{
    console::{
        Console,
        client::{Page, Problem},
        forms::Form,
        session::Visitor,
        shell::{self, Query, Rendered, Shell},
    },
    domain::Timestamp,
};

pub(super) fn routes() -> Router<Console> {
    Router::new().route("/account", get(account))
}

#[derive(Debug, Deserialize)]
struct Key {
    fingerprint: String,
    comment: String,
    algorithm: String,
    added_at: Timestamp,
}

#[derive(Debug, Deserialize)]
struct Token {
    id: String,
    name: String,
    scope: String,
    tenant: Option<String>,
    expires_at: Timestamp,
    last_used_at: Option<Timestamp>,
    expired: bool,
    session: bool,
}

#[derive(Template)]
#[template(path = "account.html", config = "src/console/askama.toml")]
struct Account {
    shell: Shell,
    keys: Vec<(Key, Option<Form>)>,
    tokens: Vec<(Token, Option<Form>)>,
    sessions: Vec<(Token, Option<Form>)>,
    /// Which of them this is.
    own: String,
    make: Option<Form>,
    link: Option<Form>,
    add_key: Option<Form>,
    /// Why keys and tokens are not shown.
    refused: Option<Problem>,
    roles: Vec<(String, String)>,
}

async fn account(
    State(console): State<Console>,
    visitor: Visitor,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let found = tokio::try_join!(
        console.client.get::<Page<Key>>(&visitor.secret, "/v1/keys?limit=1000"),
        console.client.get::<Page<Token>>(&visitor.secret, "/v1/tokens?limit=1000"),
    );
    let (keys, tokens, refused) = match found {
        Ok((keys, tokens)) => (keys.items, tokens.items, None),
        // Whoever came with a token for less sees none of the others.
        Err(problem) if problem.status == 403 => (Vec::new(), Vec::new(), Some(problem)),
        Err(problem) => return Err(told(&visitor)(problem)),
    };
    let shell = Shell::new(&visitor, "Account").below(&[("/account".into(), "account".into())]).done(&query);
    let revoke = |token: Token| {
        let form = shell.form("token-revoke", &[("id", &token.id)]).map(Form::button);
        (token, form)
    };
    let (sessions, tokens): (Vec<Token>, Vec<Token>) = tokens.into_iter().partition(|token| token.session);
    let keys = keys.into_iter().map(|key| {
        let form = shell.form("key-remove", &[("id", &key.fingerprint)]).map(Form::button);
        (key, form)
    });
    Ok(shell::page(&Account {
        keys: keys.collect(),
        tokens: tokens.into_iter().map(revoke).collect(),
        sessions: sessions.into_iter().filter(|session| !session.expired).map(revoke).collect(),
        own: visitor.whoami.token.as_ref().map(|token| token.id.clone()).unwrap_or_default(),
        make: shell.form("token-create", &[]),
        link: shell.form("link-make", &[]).map(Form::button),
        add_key: shell.form("key-add", &[]),
        roles: visitor.whoami.tenants.clone().into_iter().collect(),
        refused,
        shell,
    }))
}
