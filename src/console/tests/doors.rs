//! One request through each of the three doors, and what can be compared of the answers.

use axum::{
    body::Body,
    http::{Request, header},
};
use serde_json::{Map, Value};

use super::{
    Answer, DEV, OF_DEV, Secret, Server,
    table::{Entry, NUMBERED, Way},
};
use crate::{commands::tests::Said, domain::Timestamp};

/// A server where a user has a token and is signed in, whichever door they come through.
pub(super) struct Door {
    pub(super) server: Server,
    who: &'static str,
    session: Secret,
}

impl Door {
    pub(super) async fn new(who: &'static str) -> Self {
        let server = Server::new().await;
        let session = server.session(who).await;
        Self { server, who, session }
    }

    pub(super) async fn over_ssh(&self, line: &str, options: &str) -> Said {
        let line = NUMBERED.iter().find(|(plain, _)| *plain == line).map_or(line, |(_, numbered)| numbered);
        let (command, rest) = line.split_once(" -- ").map_or((line, ""), |(command, rest)| (command, rest));
        let rest = if rest.is_empty() { String::new() } else { format!(" -- {rest}") };
        self.server.world.run(self.who, &format!("{command}{options}{rest}")).await
    }

    pub(super) async fn over_the_api(&self, entry: &Entry) -> Answer {
        let (method, path) = entry.request.split_once(' ').unwrap();
        let path = path.replace("ENV", &format!("/v1{DEV}"));
        let request = Request::builder().method(method).uri(path).header(header::AUTHORIZATION, self.session.bearer());
        let kind = match entry.way {
            Way::Upload => "application/gzip",
            _ => "application/json",
        };
        let empty = entry.body.is_empty() && !matches!(entry.way, Way::Upload);
        let request = if empty { request } else { request.header(header::CONTENT_TYPE, kind) };
        self.server.send(request.body(Body::from(entry.body)).unwrap()).await
    }

    pub(super) async fn in_the_console(&self, entry: &Entry) -> Answer {
        match entry.way {
            Way::Page(path, _) => self.server.page(&self.session, &path.replace("ENV", DEV)).await,
            Way::Do(action, form) => self.server.act(&self.session, action, &form.replace("ENV", OF_DEV)).await,
            Way::Upload => self.upload().await,
        }
    }

    async fn upload(&self) -> Answer {
        self.server.upload(&self.session, "", "").await
    }

    /// What there is, as the commands tell it to those who see everything.
    pub(super) async fn state(&self) -> Vec<(String, Value)> {
        self.server.state().await
    }
}

impl Server {
    /// A form with a source, as a browser sends it.
    pub(super) async fn upload(&self, session: &Secret, key: &str, source: &str) -> Answer {
        let word = session.form_word();
        let fields = [("form", word.as_str()), ("key", key), ("tenant", "acme"), ("app", "shop"), ("env", "dev")];
        let mut body = String::new();
        for (name, value) in fields.into_iter().chain([("source", source)]) {
            let file = if name == "source" { "; filename=\"source.tar\"" } else { "" };
            body += &format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{value}\r\n");
        }
        let body = body + "--edge--\r\n";
        let request = Request::post("/upload")
            .header(header::COOKIE, super::cookie(session))
            .header(header::CONTENT_TYPE, "multipart/form-data; boundary=edge")
            .header(header::CONTENT_LENGTH, body.len());
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    /// The same, of a server alone.
    pub(super) async fn state(&self) -> Vec<(String, Value)> {
        let mut state = Vec::new();
        for line in STATE {
            let who = if line.starts_with("config") { "olga" } else { "host" };
            let said = self.world.run(who, &format!("{line} --json")).await;
            let value = serde_json::from_str(&said.stdout).unwrap_or(Value::String(said.stderr));
            state.push((format!("{line} ({})", said.status), comparable(value)));
        }
        state
    }
}

const STATE: [&str; 20] = [
    "tenants list",
    "tenants info acme",
    "tenants members acme",
    "apps list",
    "envs list",
    "ps",
    "scale acme/shop/dev",
    "config list acme/shop/dev",
    "config list acme/shop/prod",
    "domains list acme/shop/dev",
    "drains list acme/shop/dev",
    "webhooks list acme",
    "webhooks deliveries acme 1a2b3c4d",
    "releases list acme/shop/dev",
    "releases list acme/shop/prod",
    "builds list acme/shop/dev",
    "deployments list acme/shop/dev",
    "keys list --all",
    "tokens list --all",
    "cron list acme/shop/dev",
];

/// Without what is another each time: moments, how long something took, random ids, secrets, what one came with.
pub(super) fn comparable(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(object.into_iter().filter_map(comparable_part).collect::<Map<_, _>>()),
        Value::Array(list) => {
            let mut list: Vec<Value> = list.into_iter().map(comparable).collect();
            // Tokens and webhooks are listed by their ids, which are random.
            if list.iter().all(|one| one["scope"].is_string() || one["types"].is_array()) {
                list.sort_by_key(Value::to_string);
            }
            Value::Array(list)
        }
        Value::String(text) if text.parse::<Timestamp>().is_ok() => Value::String("a moment".into()),
        other => other,
    }
}

fn comparable_part((name, value): (String, Value)) -> Option<(String, Value)> {
    let time = name.ends_with("_at") || ["at", "since", "duration_ms", "millis"].contains(&name.as_str());
    let secret = ["token", "secret", "code", "manifest", "delivery"].contains(&name.as_str());
    let random = name == "id" && value.is_string();
    // Over SSH nobody comes with a token.
    let random = random || name == "made_with";
    let link = name == "url" && value.as_str().is_some_and(|url| url.contains("/sign-in/"));
    let kept = !(time || secret || random || link);
    kept.then(|| (name, comparable(value)))
}

/// What things are called in an answer: what a page of the same has to show.
pub(super) fn names(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().flat_map(names).collect(),
        // A browser's session has no name.
        Value::Object(object) if object.get("session") == Some(&Value::Bool(true)) => Vec::new(),
        Value::Object(object) => {
            let named = |(name, value): (&String, &Value)| match value {
                Value::String(text) if NAMING.contains(&name.as_str()) => vec![text.clone()],
                other => names(other),
            };
            object.iter().flat_map(named).collect()
        }
        _ => Vec::new(),
    }
}

const NAMING: [&str; 7] = ["name", "user", "domain", "env", "job", "reason", "fingerprint"];
