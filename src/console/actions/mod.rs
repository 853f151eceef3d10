//! What can be changed: a table of actions, each one request to the API, and the one door through which forms come.

mod body;
mod table;
mod upload;

use axum::{
    Router,
    extract::{Form as FormData, Path, Query as UrlQuery, State},
    http::{HeaderMap, Method, Request as HttpRequest, StatusCode, header},
    middleware,
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use serde_json::Value;

use self::body::Body;
use super::{
    Console,
    client::Problem,
    forms::Form,
    pages,
    session::{Visitor, from_elsewhere, is_from_elsewhere, whole_form},
    shell::{Query, encode, problem_page, problem_with},
};

/// One thing that can be done.
#[derive(Debug)]
pub(super) struct Action {
    /// In the path of its forms.
    pub(super) name: &'static str,
    /// The request: method, and path with what the form says in place of `{…}`.
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) body: Body,
    /// Heading of a form on a page of its own, and what the button says.
    pub(super) title: &'static str,
    pub(super) verb: &'static str,
    pub(super) fields: Vec<Field>,
    pub(super) needs: Needs,
    /// What one should know before one does it.
    pub(super) warning: Option<&'static str>,
    /// Values that have to be typed once more, with slashes between them.
    pub(super) confirm: Option<&'static [&'static str]>,
    pub(super) then: Then,
    /// What is said when it has been done.
    pub(super) done: &'static str,
}

/// What is to be filled in.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    pub(super) kind: Kind,
    pub(super) required: bool,
    pub(super) hint: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// Not shown while it is typed.
    Secret,
    Number,
    Check,
    Choice(&'static [&'static str]),
    /// Several lines.
    Area,
    /// A file, which is sent as it is.
    File,
}

impl Field {
    pub(super) fn options(&self) -> &'static [&'static str] {
        if let Kind::Choice(options) = self.kind { options } else { &[] }
    }

    pub(super) fn is(&self, kind: &str) -> bool {
        let own = match self.kind {
            Kind::Text => "text",
            Kind::Secret => "secret",
            Kind::Number => "number",
            Kind::Check => "check",
            Kind::Choice(_) => "choice",
            Kind::Area => "area",
            Kind::File => "file",
        };
        own == kind
    }
}

/// Who is offered it. The API decides; nothing is offered that it would refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Whoever is signed in for all that they may.
    Account,
    /// Developers of the tenant.
    Push,
    /// They, and operators.
    Operate,
    /// Developers, for all that they may.
    Secrets,
    /// They, and operators.
    Configure,
    /// Owners, and operators.
    Own,
    Operator,
}

impl Needs {
    pub(super) fn are_met(self, visitor: &Visitor, tenant: Option<&str>) -> bool {
        let (whoami, token) = (&visitor.whoami, visitor.whoami.token.as_ref());
        let scope = token.map_or("full", |token| token.scope.as_str());
        let everywhere = token.is_none_or(|token| token.tenant.is_none());
        let reaches =
            tenant.is_some_and(|tenant| everywhere || token.is_some_and(|t| t.tenant.as_deref() == Some(tenant)));
        let role = tenant.filter(|_| reaches).and_then(|tenant| whoami.tenants.get(tenant)).map(String::as_str);
        let develops = matches!(role, Some("developer" | "owner"));
        let (deploy, full) = (matches!(scope, "deploy" | "full"), scope == "full");
        let operates = whoami.operator && full && everywhere;
        match self {
            Self::Account => full && everywhere,
            Self::Push => develops && deploy,
            Self::Operate => develops && deploy || operates,
            Self::Secrets => develops && full,
            Self::Configure => develops && full || operates,
            Self::Own => role == Some("owner") && full || operates,
            Self::Operator => operates,
        }
    }
}

/// What is shown when it has been done.
#[derive(Debug)]
pub(super) enum Then {
    /// A page, with what the form or the answer says in place of `{…}`.
    To(&'static str),
    /// Parts of the answer, which nobody sees again: what each is called, and which it is.
    Shown(&'static [(&'static str, &'static str)]),
    /// What was put out, as it comes.
    Output,
}

impl Action {
    /// The one of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        table::ACTIONS.iter().find(|action| action.name == name)
    }

    /// All of them.
    #[cfg(test)]
    pub(super) fn all() -> &'static [Self] {
        &table::ACTIONS
    }
}

pub(super) fn routes() -> Router<Console> {
    let forms = Router::new().route("/do/{action}", get(form_page).post(act)).layer(middleware::from_fn(whole_form));
    forms.merge(upload::routes())
}

/// `{name}` in a template, by what is said of it.
fn filled(template: &str, said: impl Fn(&str) -> Option<String>) -> Result<String, Problem> {
    let (mut text, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once('{') {
        let (name, behind) = after.split_once('}').unwrap_or((after, ""));
        let value = said(name).filter(|value| !value.is_empty() && !matches!(value.as_str(), "." | ".."));
        let value = value.ok_or_else(|| missing(name))?;
        text.push_str(before);
        text.push_str(&encode(&value));
        rest = behind;
    }
    Ok(text + rest)
}

fn missing(name: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "Something is missing", format!("{name} is not filled in"))
}

/// The form on a page of its own.
async fn form_page(visitor: Visitor, Path(name): Path<String>, UrlQuery(values): UrlQuery<Query>) -> Response {
    let Some(action) = Action::named(&name) else { return nothing(&visitor) };
    let about = values.clone();
    // What a field hides while it is typed is not taken from a link, where nobody sees it.
    let shown = values.iter().filter(|(name, _)| !is_secret(action, name));
    let values: Vec<(&str, &str)> = shown.map(|(name, value)| (name.as_str(), value.as_str())).collect();
    match Form::offered(&visitor, &name, &values) {
        Some(form) => pages::form(&visitor, action, form, &about),
        None => {
            let text = "your role, or the token that you signed in with, does not allow it";
            let problem = Problem::new(StatusCode::FORBIDDEN, "You may not do that", text);
            problem_page(Some(&visitor), &problem)
        }
    }
}

fn nothing(visitor: &Visitor) -> Response {
    problem_page(Some(visitor), &Problem::new(StatusCode::NOT_FOUND, "There is nothing here", "no such form"))
}

async fn act(
    State(console): State<Console>,
    visitor: Visitor,
    Path(name): Path<String>,
    headers: HeaderMap,
    FormData(pairs): FormData<Vec<(String, String)>>,
) -> Response {
    let mut said: Query = pairs.into_iter().collect();
    let word = said.remove("form").unwrap_or_default();
    if is_from_elsewhere(&headers) || !visitor.secret.is_form_word(&word) {
        return from_elsewhere();
    }
    let Some(action) = Action::named(&name) else { return nothing(&visitor) };
    match done(&console, &visitor, action, &said).await {
        Ok(response) => response,
        Err(problem) => {
            let values: Vec<(&str, &str)> = said
                .iter()
                .filter(|(name, _)| !["key", "confirm"].contains(&name.as_str()) && !is_secret(action, name))
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            let again = Form::offered(&visitor, action.name, &values);
            problem_with(Some(&visitor), &problem, again, &said)
        }
    }
}

fn is_secret(action: &Action, name: &str) -> bool {
    action.fields.iter().any(|field| field.name == name && field.kind == Kind::Secret)
}

async fn done(
    console: &Console,
    visitor: &Visitor,
    action: &'static Action,
    said: &Query,
) -> Result<Response, Problem> {
    if let Some(names) = action.confirm {
        let wanted: Vec<&str> = names.iter().filter_map(|name| said.get(*name)).map(String::as_str).collect();
        if said.get("confirm").map(|typed| typed.trim()) != Some(&wanted.join("/")) {
            let text = format!("to be sure, type {} into the field; nothing was done", wanted.join("/"));
            return Err(Problem::new(StatusCode::BAD_REQUEST, "Not confirmed", text));
        }
    }
    let path = filled(action.path, |name| said.get(name).cloned())?;
    let body = action.body.made(action, said)?;
    if let Then::Output = action.then {
        return pages::output(console, visitor, action, &path, &body, said).await;
    }
    let mut request = HttpRequest::builder().method(action.method.clone()).uri(path);
    request = request.header(header::AUTHORIZATION, visitor.secret.bearer());
    if let Some(key) = key_of(said).filter(|_| action.method == Method::POST) {
        request = request.header(KEY, key);
    }
    let answer = console.client.take(request, body.as_ref()).await?;
    Ok(shown(visitor, action, said, &answer))
}

/// The header with which a form that is sent twice does its work once.
const KEY: &str = "idempotency-key";

/// What the form says for it.
fn key_of(said: &Query) -> Option<&str> {
    let key = said.get("key").map(String::as_str);
    key.filter(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A page on which is told that it has been done.
fn done_at(to: &str, visitor: &Visitor, action: &str) -> String {
    format!("{to}?did={action}&word={}", visitor.secret.word_for(action))
}

/// The page after that.
fn shown(visitor: &Visitor, action: &'static Action, said: &Query, answer: &Value) -> Response {
    match &action.then {
        Then::To(page) => {
            let of_answer = |name: &str| match &answer[name] {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            let to = filled(page, |name| said.get(name).cloned().or_else(|| of_answer(name)));
            let to = to.unwrap_or_else(|_| "/".to_owned());
            Redirect::to(&done_at(&to, visitor, action.name)).into_response()
        }
        Then::Shown(parts) => pages::result(visitor, action, parts, answer, said),
        Then::Output => Redirect::to("/").into_response(),
    }
}
