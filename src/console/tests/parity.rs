//! Every command of the matrix over SSH, the API and in the console: the same is refused, said and done.

use serde_json::Value;

use super::{
    Answer, Server,
    doors::{Door, comparable, names},
    in_page,
    table::{ELSEWHERE, Entry, TABLE, Way},
};
use crate::{
    commands::tests::{Said, matrix::MATRIX},
    console::actions::Action,
};

/// The HTTP status of what ends with an exit status.
fn is_the_same(exit: u8, http: u16) -> bool {
    match exit {
        0 | 42 => matches!(http, 200..=299 | 303),
        // What is broken on our side is a failure, too.
        1 => matches!(http, 422 | 500),
        2 => http == 400,
        3 => http == 403,
        4 => http == 404,
        5 => http == 409,
        75 => http == 503,
        _ => false,
    }
}

/// The same servers three times, one for each door.
struct Doors {
    ssh: Door,
    api: Door,
    console: Door,
}

impl Doors {
    async fn new(who: &'static str) -> Self {
        let (ssh, api, console) = tokio::join!(Door::new(who), Door::new(who), Door::new(who));
        Self { ssh, api, console }
    }

    /// In either tenant, so that everybody has events to see.
    async fn let_something_happen(&self) {
        for door in [&self.ssh, &self.api, &self.console] {
            door.server.world.run("olga", "apps create acme/new").await.ok();
            door.server.world.run("stan", "apps create other/new").await.ok();
        }
    }

    /// What differs between the doors, in words, and whether anything may have been changed.
    async fn compare(&self, entry: &Entry) -> (Vec<String>, bool) {
        let reads = entry.request.starts_with("GET ");
        let options = if reads && !has_no_json(entry.line) { " --json" } else { "" };
        let (said, api, console) = (
            self.ssh.over_ssh(entry.line, options).await,
            self.api.over_the_api(entry).await,
            self.console.in_the_console(entry).await,
        );
        let mut wrong = Vec::new();
        if !is_the_same(said.status, api.status) || !is_the_same(said.status, console.status) {
            wrong.push(format!(
                "{} over SSH, {} of the API, {} of the console",
                said.status, api.status, console.status
            ));
            wrong.push(format!("{} | {} | {}", said.stderr, api.text, main_of(&console.text)));
        } else if reads && said.status == 0 {
            wrong.extend(told_differently(entry, &said, &api, &console));
        } else if said.status == 42 {
            let same = api.text.contains("{\"exit_status\":42}") && console.text.contains("exit status 42");
            wrong.extend((!same).then(|| format!("another exit status: {api:?} {}", main_of(&console.text))));
        }
        let refused = matches!(said.status, 2..=4) && matches!(api.status, 400..=404) && console.status >= 400;
        if !reads && !refused {
            let (ssh, api, console) = (self.ssh.state().await, self.api.state().await, self.console.state().await);
            for ((ssh, api), console) in ssh.iter().zip(&api).zip(&console) {
                if ssh != api || ssh != console {
                    wrong.push(format!("left behind: {ssh:?}\n  API: {api:?}\n  console: {console:?}"));
                }
            }
        }
        (wrong, !reads && !refused)
    }
}

fn has_no_json(line: &str) -> bool {
    line.starts_with("logs") || line.starts_with("builds logs")
}

/// The page without its frame.
fn main_of(page: &str) -> &str {
    page.split_once("<main").map_or(page, |(_, main)| main.split("</main>").next().unwrap_or(main))
}

fn told_differently(entry: &Entry, said: &Said, api: &Answer, console: &Answer) -> Vec<String> {
    let mut wrong = Vec::new();
    if has_no_json(entry.line) {
        let (ssh, api) = (without_moments(&said.stdout), without_moments(&api.text));
        wrong.extend((ssh != api).then(|| format!("{ssh:?} over SSH, {api:?} of the API")));
    } else if entry.line.starts_with("events") {
        let (ssh, api) = (kinds_over_ssh(said), kinds_of_api(api));
        wrong.extend((ssh != api || ssh.is_empty()).then(|| format!("{ssh:?} over SSH, {api:?} of the API")));
        let unseen = ssh.iter().filter(|kind| !console.text.contains(kind.as_str()));
        wrong.extend(unseen.map(|kind| format!("the page does not show {kind}")));
    } else {
        let mut answer = api.json();
        if answer["items"].is_array() && !entry.line.starts_with("metrics") {
            answer = answer["items"].take();
        }
        let (ssh, api) = (comparable(said.json()), comparable(answer));
        wrong.extend((ssh != api).then(|| format!("over SSH: {ssh}\n  API: {api}")));
        let unseen = names(&ssh).into_iter().filter(|name| !console.text.contains(&in_page(name)));
        wrong.extend(unseen.map(|name| format!("the page does not show {name:?}: {}", main_of(&console.text))));
    }
    if let Way::Page(_, words) = entry.way {
        let unseen = words.iter().filter(|word| !console.text.contains(&in_page(word)));
        wrong.extend(unseen.map(|word| format!("the page does not show {word:?}: {}", main_of(&console.text))));
    }
    wrong
}

/// Lines without their first word, where that is a moment.
fn without_moments(text: &str) -> Vec<String> {
    let line = |line: &str| match line.split_once(' ') {
        Some((moment, rest)) if moment.parse::<crate::domain::Timestamp>().is_ok() => rest.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect()
}

fn kinds_over_ssh(said: &Said) -> Vec<String> {
    let kind = |line: &str| serde_json::from_str::<Value>(line).unwrap()["kind"].as_str().unwrap().to_owned();
    said.stdout.lines().map(kind).collect()
}

fn kinds_of_api(answer: &Answer) -> Vec<String> {
    let kind = |event: &Value| event["type"].as_str().unwrap().trim_start_matches("dev.berth.").to_owned();
    answer.json()["items"].as_array().unwrap().iter().map(kind).collect()
}

/// Compares all commands for one user.
async fn all_doors_are_alike(who: &'static str) {
    let mut wrong = Vec::new();
    let mut doors = Doors::new(who).await;
    for entry in TABLE {
        // Of what was refused before events may still be on their way.
        if entry.line.starts_with("events") {
            doors = Doors::new(who).await;
            doors.let_something_happen().await;
        }
        let (differences, changed) = doors.compare(entry).await;
        wrong.extend(differences.into_iter().map(|difference| format!("{who}: {}: {difference}", entry.line)));
        if changed {
            doors = Doors::new(who).await;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_viewer_meets_the_same_at_every_door() {
    all_doors_are_alike("vera").await;
}

#[tokio::test]
async fn a_developer_meets_the_same_at_every_door() {
    all_doors_are_alike("dan").await;
}

#[tokio::test]
async fn an_owner_meets_the_same_at_every_door() {
    all_doors_are_alike("olga").await;
}

#[tokio::test]
async fn an_operator_meets_the_same_at_every_door() {
    all_doors_are_alike("opal").await;
}

#[tokio::test]
async fn a_member_of_another_tenant_meets_the_same_at_every_door() {
    all_doors_are_alike("stan").await;
}

#[test]
fn every_command_is_at_every_door() {
    let lines: Vec<&str> = TABLE.iter().map(|entry| entry.line).collect();
    for (line, ..) in MATRIX {
        let elsewhere = ELSEWHERE.iter().any(|(known, why)| known == line && !why.is_empty());
        assert!(lines.contains(line) != elsewhere, "{line} has no way over the API and in the console");
    }
    for line in lines.iter().chain(ELSEWHERE.iter().map(|(line, _)| line)) {
        assert!(MATRIX.iter().any(|(known, ..)| known == line), "{line} is not in the matrix");
    }
}

/// Actions that do what another does too, with another form.
const VARIANTS: [&str; 2] = ["config-import", "leave"];

#[test]
fn forms_say_what_their_actions_offer() {
    for entry in TABLE {
        let Way::Do(name, form) = entry.way else { continue };
        let action = Action::named(name).unwrap_or_else(|| panic!("there is no action {name}"));
        for (field, value) in form.split('&').filter_map(|pair| pair.split_once('=')) {
            let known = action.fields.iter().find(|known| known.name == field);
            let options = known.map(|field| field.options()).unwrap_or_default();
            assert!(options.is_empty() || options.contains(&value), "{name} does not offer {field}={value}");
        }
    }
    for action in Action::all() {
        let used = TABLE.iter().any(|entry| match entry.way {
            Way::Do(name, _) => name == action.name,
            Way::Upload => action.name == "build-upload",
            Way::Page(..) => false,
        });
        assert!(used != VARIANTS.contains(&action.name), "{} is not tested", action.name);
    }
}

/// Changes of the API that no action makes, since the console has pages of its own for signing in and out.
const SIGNING_IN: [&str; 4] = [
    "POST /v1/sign-in-links/owner",
    "POST /v1/sign-in-links/sessions",
    "POST /v1/sessions",
    "DELETE /v1/sessions/current",
];

/// A request, whatever its parts are called.
fn shape(method: &str, path: &str) -> String {
    let part = |part: &str| if part.starts_with('{') { "{}".to_owned() } else { part.to_owned() };
    format!("{} {}", method.to_uppercase(), path.split('/').map(part).collect::<Vec<_>>().join("/"))
}

#[tokio::test]
async fn actions_are_the_changes_of_the_document() {
    let server = Server::new().await;
    let request = axum::http::Request::get("/openapi.json").body(axum::body::Body::empty()).unwrap();
    let document = server.send(request).await.is(200).json();
    let mut changes = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys().filter(|key| *key != "get" && *key != "parameters") {
            changes.push(shape(method, path));
        }
    }
    let actions: Vec<String> = Action::all().iter().map(|action| shape(action.method.as_str(), action.path)).collect();
    for change in &changes {
        assert!(actions.contains(change) != SIGNING_IN.contains(&change.as_str()), "no action does {change}");
    }
    for action in actions.iter().map(String::as_str).chain(SIGNING_IN) {
        assert!(changes.iter().any(|change| change == action), "the API has no {action}");
    }
}
