//! Actions on what is around what runs: config, names, drains, jobs; and on the platform.

use axum::http::Method;

use super::*;

pub(super) fn actions() -> Vec<Action> {
    [variables(), names(), jobs()].into_iter().flatten().collect()
}

/// Config variables.
fn variables() -> Vec<Action> {
    vec![
        action(
            "config-set",
            (Method::PATCH, "/v1/envs/{tenant}/{app}/{env}/config"),
            Body::Pair,
            ("Set a variable", "Set", "Set; when something runs, a new release brings it."),
            vec![
                field("name", "Name", Kind::Text, true, "As in: LOG_LEVEL"),
                field("value", "Value", Kind::Secret, false, ""),
            ],
            Needs::Configure,
            CONFIG,
        ),
        action(
            "config-import",
            (Method::PATCH, "/v1/envs/{tenant}/{app}/{env}/config"),
            Body::Assignments,
            ("Set several variables at once", "Set all", "Set; when something runs, a new release brings them."),
            vec![field("lines", "Variables", Kind::Area, true, "NAME=value, one a line, as in a .env file")],
            Needs::Configure,
            CONFIG,
        ),
        warned(
            action(
                "config-unset",
                (Method::PATCH, "/v1/envs/{tenant}/{app}/{env}/config"),
                Body::Without,
                ("Remove a variable", "Remove", "Removed; when something runs, a new release is without it."),
                vec![],
                Needs::Configure,
                CONFIG,
            ),
            "A new release without it is deployed at once.",
        ),
    ]
}

/// Host names and drains.
fn names() -> Vec<Action> {
    vec![
        action(
            "domain-add",
            (Method::PUT, "/v1/envs/{tenant}/{app}/{env}/domains/{id}"),
            Body::None,
            ("Add a host name", "Add", "The host name is added."),
            vec![field(
                "id",
                "Host name",
                Kind::Text,
                true,
                "As in: shop.example.com; have its DNS lead to this server",
            )],
            Needs::Configure,
            DOMAINS,
        ),
        warned(
            action(
                "domain-remove",
                (Method::DELETE, "/v1/envs/{tenant}/{app}/{env}/domains/{id}"),
                Body::None,
                ("Remove a host name", "Remove", "The host name is removed."),
                vec![],
                Needs::Configure,
                DOMAINS,
            ),
            "Requests for it are not answered any more.",
        ),
        action(
            "drain-add",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/drains"),
            Body::Fields,
            ("Send the log on", "Add drain", "The log is sent there from now on."),
            vec![field(
                "url",
                "URL",
                Kind::Text,
                true,
                "https://HOST/PATH (NDJSON), syslog+tls://HOST:PORT or syslog://HOST:PORT (RFC 5424)",
            )],
            Needs::Configure,
            DRAINS,
        ),
        warned(
            action(
                "drain-remove",
                (Method::DELETE, "/v1/envs/{tenant}/{app}/{env}/drains/{id}"),
                Body::None,
                ("Remove a drain", "Remove", "Nothing is sent there any more."),
                vec![],
                Needs::Configure,
                DRAINS,
            ),
            "Lines that wait to be sent are dropped.",
        ),
    ]
}

/// Jobs, commands, and the platform.
fn jobs() -> Vec<Action> {
    vec![
        action(
            "job-run",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/cron/{id}/runs"),
            Body::None,
            ("Run a job now", "Run now", "The job is running."),
            vec![],
            Needs::Secrets,
            Then::To("/envs/{tenant}/{app}/{env}/jobs"),
        ),
        action(
            "run",
            (Method::POST, "/v1/envs/{tenant}/{app}/{env}/runs"),
            Body::Line,
            ("Run a one-off command", "Run", ""),
            vec![
                field(
                    "command",
                    "Command",
                    Kind::Text,
                    true,
                    "A line for the shell, in a new container of the current release",
                ),
                field("stdin", "Standard input", Kind::Area, false, ""),
            ],
            Needs::Secrets,
            Then::Output,
        ),
        action(
            "collect",
            (Method::POST, "/v1/collections"),
            Body::Fields,
            ("Take away what is not needed any more", "Collect", "Collected."),
            vec![field("dry_run", "Only say what would go", Kind::Check, false, "")],
            Needs::Operator,
            Then::Shown(&[
                ("What has gone", "sums"),
                ("Took, in ms", "millis"),
                ("Left for the next time", "failures"),
            ]),
        ),
    ]
}
