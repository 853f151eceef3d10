//! All actions.

mod account;
mod config;
mod envs;
mod tenants;

use std::sync::LazyLock;

use axum::http::Method;

use super::{Action, Body, Field, Kind, Needs, Then};

const fn field(name: &'static str, label: &'static str, kind: Kind, required: bool, hint: &'static str) -> Field {
    Field { name, label, kind, required, hint }
}

/// An action with nothing unusual; what is, is said by the others.
fn action(
    name: &'static str,
    (method, path): (Method, &'static str),
    body: Body,
    (title, verb, done): (&'static str, &'static str, &'static str),
    fields: Vec<Field>,
    needs: Needs,
    then: Then,
) -> Action {
    Action { name, method, path, body, title, verb, fields, needs, warning: None, confirm: None, then, done }
}

/// One that should be thought about.
fn warned(action: Action, warning: &'static str) -> Action {
    Action { warning: Some(warning), ..action }
}

/// One that cannot be undone: what is named has to be typed.
fn confirmed(action: Action, warning: &'static str, names: &'static [&'static str]) -> Action {
    Action { warning: Some(warning), confirm: Some(names), ..action }
}

const ENV: Then = Then::To("/envs/{tenant}/{app}/{env}");
const CONFIG: Then = Then::To("/envs/{tenant}/{app}/{env}/config");
const DOMAINS: Then = Then::To("/envs/{tenant}/{app}/{env}/domains");
const DRAINS: Then = Then::To("/envs/{tenant}/{app}/{env}/drains");
const TENANT: Then = Then::To("/tenants/{tenant}");
const BUILD: Then = Then::To("/envs/{tenant}/{app}/{env}/builds/{build}");
const ROLES: Kind = Kind::Choice(&["viewer", "developer", "owner"]);

pub(super) static ACTIONS: LazyLock<Vec<Action>> = LazyLock::new(|| {
    [account::actions(), tenants::actions(), envs::actions(), config::actions()].into_iter().flatten().collect()
});
