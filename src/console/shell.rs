//! What all pages have: the frame around them, what browsers are told with them, how moments are written.

use std::{collections::BTreeMap, sync::Arc};

use askama::Template;
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};

use super::{actions::Action, assets, client::Problem, forms::Form, session::Visitor};
use crate::domain::Timestamp;

/// Nothing from elsewhere, nothing inline, no frames; forms go nowhere else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// A page, or why there is none.
pub(super) type Rendered = Response;

/// What the frame shows.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) title: String,
    /// From the outermost to where we are: where it leads, and its name.
    pub(super) crumbs: Vec<(String, String)>,
    pub(super) visitor: Option<Visitor>,
    /// The path of an event stream at whose events the page is made again.
    pub(super) live: Option<String>,
    /// What was done before the page was shown.
    pub(super) done: Option<&'static str>,
    /// The environment whose tabs are shown, and the one that is open.
    pub(super) tabs: Option<(String, &'static str)>,
    /// Whether there are charts.
    pub(super) charts: bool,
    /// How commands are begun, as in `ssh -p 2222 berth@paas.example.com`.
    pub(super) ssh: Arc<str>,
}

impl Shell {
    pub(super) fn new(visitor: &Visitor, title: impl Into<String>) -> Self {
        Self { visitor: Some(visitor.clone()), ssh: visitor.ssh.clone(), ..Self::outside(title) }
    }

    /// For who is not signed in.
    fn outside(title: impl Into<String>) -> Self {
        let title = title.into();
        let (crumbs, ssh) = (Vec::new(), "ssh".into());
        Self { title, crumbs, visitor: None, live: None, done: None, tabs: None, charts: false, ssh }
    }

    /// Below these pages.
    pub(super) fn below(mut self, crumbs: &[(String, String)]) -> Self {
        self.crumbs = crumbs.to_vec();
        self
    }

    /// Made again at events that this query of `/v1/events` asks for.
    pub(super) fn live(mut self, query: &str) -> Self {
        self.live = Some(format!("/relay/v1/events?{query}"));
        self
    }

    /// The page of an environment.
    pub(super) fn env(visitor: &Visitor, env: &EnvPath, tab: &'static str) -> Self {
        let title = if tab == "Overview" { env.to_string() } else { format!("{tab} · {env}") };
        let shell = Self::new(visitor, title).below(&env.crumbs());
        Self { tabs: Some((env.to_string(), tab)), ..shell }
    }

    /// With what the query says was done.
    pub(super) fn done(mut self, query: &Query) -> Self {
        let said = |name: &&String| {
            let word = self.visitor.as_ref().map(|visitor| visitor.secret.word_for(name));
            word.is_some_and(|word| query.get("word") == Some(&word))
        };
        let action = query.get("did").filter(said).and_then(|name| Action::named(name));
        self.done = action.map(|action| action.done);
        self
    }

    /// A form for what the visitor may do; none otherwise.
    pub(super) fn form(&self, action: &str, values: &[(&str, &str)]) -> Option<Form> {
        Form::offered(self.visitor.as_ref()?, action, values)
    }

    pub(super) fn ssh(&self) -> &str {
        &self.ssh
    }

    pub(super) fn user(&self) -> &str {
        self.visitor.as_ref().map_or("", |visitor| &visitor.whoami.user)
    }

    pub(super) fn operator(&self) -> bool {
        self.visitor.as_ref().is_some_and(|visitor| visitor.whoami.operator)
    }

    pub(super) fn form_word(&self) -> String {
        self.visitor.as_ref().map(|visitor| visitor.secret.form_word()).unwrap_or_default()
    }

    pub(super) fn asset(&self, name: &str) -> String {
        assets::path(name)
    }

    /// Name, and what its path ends in.
    pub(super) fn tab_list(&self) -> &'static [(&'static str, &'static str)] {
        TABS
    }
}

const TABS: &[(&str, &str)] = &[
    ("Overview", ""),
    ("Logs", "/logs"),
    ("Metrics", "/metrics"),
    ("Builds", "/builds"),
    ("Releases", "/releases"),
    ("Config", "/config"),
    ("Domains", "/domains"),
    ("Jobs", "/jobs"),
    ("Drains", "/drains"),
    ("Run", "/run"),
    ("Events", "/events"),
    ("Settings", "/settings"),
];

/// A query, the last of each name.
pub(super) type Query = BTreeMap<String, String>;

/// Where a list goes on, for the query of the API.
pub(super) fn cursor(query: &Query) -> String {
    query.get("cursor").map(|cursor| format!("&cursor={}", encode(cursor))).unwrap_or_default()
}

/// An environment, as its pages' paths have it.
#[derive(Debug, Clone, serde::Deserialize)]
pub(super) struct EnvPath {
    pub(super) tenant: String,
    pub(super) app: String,
    pub(super) env: String,
}

impl std::fmt::Display for EnvPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.app, self.env)
    }
}

impl EnvPath {
    /// `/v1/envs/T/A/E` and what comes behind it.
    pub(super) fn api(&self, rest: &str) -> String {
        format!("/v1/envs/{}/{}/{}{rest}", encode(&self.tenant), encode(&self.app), encode(&self.env))
    }

    /// For forms.
    pub(super) fn values(&self) -> [(&str, &str); 3] {
        [("tenant", &self.tenant), ("app", &self.app), ("env", &self.env)]
    }

    /// With more.
    pub(super) fn with<'v>(&'v self, more: &[(&'v str, &'v str)]) -> Vec<(&'v str, &'v str)> {
        self.values().into_iter().chain(more.iter().copied()).collect()
    }

    fn crumbs(&self) -> Vec<(String, String)> {
        crumbs(&self.values().map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }

    /// What its events are asked for by.
    pub(super) fn event_query(&self) -> String {
        format!("env={}", encode(&self.to_string()))
    }
}

/// The pages of the tenant, app and environment that a query names.
pub(super) fn crumbs(query: &Query) -> Vec<(String, String)> {
    let part = |name: &str| query.get(name).filter(|part| !part.is_empty());
    let mut crumbs = Vec::new();
    let Some(tenant) = part("tenant") else { return crumbs };
    crumbs.push((format!("/tenants/{}", encode(tenant)), tenant.clone()));
    let Some(app) = part("app") else { return crumbs };
    crumbs.push((format!("/apps/{}/{}", encode(tenant), encode(app)), app.clone()));
    if let Some(env) = part("env") {
        crumbs.push((format!("/envs/{}/{}/{}", encode(tenant), encode(app), encode(env)), env.clone()));
    }
    crumbs
}

/// A part of a path or query, whatever is in it.
pub(super) fn encode(text: &str) -> String {
    // `-`, `.`, `_` and `~` mean nothing anywhere (RFC 3986, section 2.3).
    const PART: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    percent_encoding::utf8_percent_encode(text, PART).to_string()
}

/// The page's answer.
pub(super) fn page(template: &impl Template) -> Rendered {
    answer(StatusCode::OK, template)
}

/// A page with another status.
pub(super) fn answer(status: StatusCode, template: &impl Template) -> Rendered {
    match template.render() {
        Ok(html) => (status, headers(), Html(html)).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page of the console could not be written");
            (StatusCode::INTERNAL_SERVER_ERROR, headers(), "the server is at fault; its log says why").into_response()
        }
    }
}

/// What browsers are told with every page.
fn headers() -> [(header::HeaderName, HeaderValue); 5] {
    [
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    ]
}

#[derive(Template)]
#[template(path = "sign_in.html", config = "src/console/askama.toml")]
struct SignInPage<'p> {
    shell: Shell,
    next: &'p str,
    error: Option<&'p str>,
}

/// Where one signs in.
pub(super) fn sign_in(ssh: &Arc<str>, next: &str, error: Option<&str>) -> Rendered {
    page(&SignInPage { shell: Shell { ssh: ssh.clone(), ..Shell::outside("Sign in") }, next, error })
}

#[derive(Template)]
#[template(path = "link.html", config = "src/console/askama.toml")]
struct LinkPage<'p> {
    shell: Shell,
    user: &'p str,
}

/// Whether to sign in as this user.
pub(super) fn link(user: &str) -> Rendered {
    page(&LinkPage { shell: Shell::outside("Sign in"), user })
}

#[derive(Template)]
#[template(path = "problem.html", config = "src/console/askama.toml")]
struct ProblemPage<'p> {
    shell: Shell,
    problem: &'p Problem,
    /// To try it again with what was filled in.
    again: Option<Form>,
}

/// What went wrong.
pub(super) fn problem_page(visitor: Option<&Visitor>, problem: &Problem) -> Rendered {
    problem_with(visitor, problem, None, &Query::new())
}

/// The same, with the form that led to it.
pub(super) fn problem_with(
    visitor: Option<&Visitor>,
    problem: &Problem,
    again: Option<Form>,
    about: &Query,
) -> Rendered {
    let title = problem.title.clone();
    let shell = visitor.map_or_else(|| Shell::outside(title.clone()), |visitor| Shell::new(visitor, title.clone()));
    let shell = shell.below(&crumbs(about));
    answer(problem.status(), &ProblemPage { shell, problem, again })
}

/// `good`, `bad`, `busy` or `idle`, for a state of a build, release, deployment or replica.
pub(super) fn look(state: &str) -> &'static str {
    match state {
        "ready" | "current" | "succeeded" | "running" | "delivering" => "good",
        "failed" | "unhealthy" | "crashed" | "dead" => "bad",
        "queued" | "building" | "deploying" | "starting" | "draining" | "stopping" | "probing" | "waiting" => "busy",
        _ => "idle",
    }
}

/// The same for what is running only until it has ended: a deployment, a job.
pub(super) fn job_look(state: &str) -> &'static str {
    if state == "running" { "busy" } else { look(state) }
}

/// A moment, for `{{ … |safe }}`: exact for who reads it, and told in words by the script.
pub(super) struct When(Timestamp);

impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let exact = self.0.strftime("%Y-%m-%dT%H:%M:%SZ");
        write!(f, "<time datetime=\"{exact}\">{}</time>", self.0.strftime("%Y-%m-%d %H:%M:%S UTC"))
    }
}

impl askama::filters::HtmlSafe for When {}

/// A moment, for templates.
pub(super) fn when(at: &Timestamp) -> When {
    When(*at)
}

/// The page of a fault of ours.
pub(super) fn broken() -> Rendered {
    problem_page(None, &Problem::broken("a page has panicked"))
}

/// Milliseconds, for people.
pub(super) fn duration(millis: &u64) -> String {
    match *millis {
        millis @ 0..1000 => format!("{millis} ms"),
        millis @ 1000..120_000 => format!("{:.1} s", millis as f64 / 1000.0),
        millis => format!("{} min {} s", millis / 60_000, millis / 1000 % 60),
    }
}

/// From one moment to another, or until now.
pub(super) fn between(from: &Timestamp, to: &Option<Timestamp>) -> String {
    let to = to.unwrap_or_else(Timestamp::now);
    duration(&u64::try_from(to.duration_since(*from).as_millis()).unwrap_or(0))
}

/// What a terminal would do something with is left out; other control characters show.
pub(super) fn harmless(text: &str) -> String {
    crate::logs::plain_text(text)
}
