//! What each route has declared in the OpenAPI document to take in its query; nothing else is taken.
//!
//! Looked at in one place for all routes: some read their query in two parts, each of which knows but its own names.

use std::{
    collections::{BTreeSet, HashMap},
    sync::LazyLock,
};

use axum::{
    extract::MatchedPath,
    http::{Method, request::Parts},
};
use url::form_urlencoded;
use utoipa::openapi::{
    OpenApi, RefOr,
    path::{Operation, ParameterIn, PathItem},
};

use super::{problem::Problem, routes};
use crate::commands::did_you_mean;

/// Unknown names that are named, and how much of each.
const NAMED: usize = 5;
const SHOWN: usize = 40;

/// The names in the queries, by the path's template and the method.
struct Declared(HashMap<(String, Method), BTreeSet<String>>);

static DECLARED: LazyLock<Declared> = LazyLock::new(|| Declared::of(&routes::document()));

impl Declared {
    fn of(document: &OpenApi) -> Self {
        let operations = document.paths.paths.iter().flat_map(|(path, item)| {
            operations(item).map(move |(method, operation)| ((path.clone(), method), names(operation)))
        });
        Self(operations.collect())
    }

    fn names(&self, path: &str, method: &Method) -> Option<&BTreeSet<String>> {
        // What answers GET answers HEAD.
        let method = if method == Method::HEAD { Method::GET } else { method.clone() };
        self.0.get(&(path.to_owned(), method))
    }
}

fn operations(item: &PathItem) -> impl Iterator<Item = (Method, &Operation)> {
    let all = [
        (Method::GET, &item.get),
        (Method::PUT, &item.put),
        (Method::POST, &item.post),
        (Method::DELETE, &item.delete),
        (Method::PATCH, &item.patch),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}

fn names(operation: &Operation) -> BTreeSet<String> {
    let parameters = operation.parameters.iter().flatten().filter_map(|one| match one {
        RefOr::T(parameter) => Some(parameter),
        // None of ours stands elsewhere.
        RefOr::Ref(_) => None,
    });
    parameters.filter(|one| one.parameter_in == ParameterIn::Query).map(|one| one.name.clone()).collect()
}

/// Refuses a query with names that the route has not declared.
pub(super) fn check_query(parts: &Parts) -> Result<(), Problem> {
    let Some(query) = parts.uri.query() else { return Ok(()) };
    let path = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str).unwrap_or_default();
    let none = BTreeSet::new();
    let known = DECLARED.names(path, &parts.method).unwrap_or(&none);
    let mut unknown: Vec<String> = Vec::new();
    for (name, _) in form_urlencoded::parse(query.as_bytes()) {
        if !known.contains(name.as_ref()) && unknown.len() < NAMED && !unknown.iter().any(|other| *other == name) {
            unknown.push(name.into_owned());
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let shown = |name: &String| format!("{:?}", name.chars().take(SHOWN).collect::<String>());
    let named = unknown.iter().map(shown).collect::<Vec<_>>().join(", ");
    let takes = match known.is_empty() {
        true => "none".to_owned(),
        false => known.iter().cloned().collect::<Vec<_>>().join(", "),
    };
    let problem =
        Problem::bad_request(format!("the query has names that are not known here: {named}; it takes {takes}"));
    let near = unknown.iter().map(|name| did_you_mean(name, known.iter().cloned())).find(|near| !near.is_empty());
    Err(match near {
        Some(near) => problem.with_hint(near.trim_start_matches("; ")),
        None => problem,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_what_is_taken() {
        let names = |path, method| DECLARED.names(path, &method).map(|names| names.iter().cloned().collect::<Vec<_>>());
        assert_eq!(names("/v1/envs", Method::GET), Some(["app", "cursor", "limit"].map(str::to_owned).into()));
        assert_eq!(names("/v1/envs", Method::HEAD), names("/v1/envs", Method::GET));
        assert_eq!(names("/v1/envs", Method::POST), Some(Vec::new()));
        assert_eq!(names("/metrics", Method::GET), Some(Vec::new()));
        assert_eq!(names("/v1/nothing", Method::GET), None);
    }
}
