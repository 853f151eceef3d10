//! Actions of who is signed in.

use axum::http::Method;

use super::*;

pub(super) fn actions() -> Vec<Action> {
    [keys(), joining()].into_iter().flatten().collect()
}

/// Keys and tokens of who is signed in.
fn keys() -> Vec<Action> {
    vec![
        action(
            "key-add",
            (Method::POST, "/v1/keys"),
            Body::Fields,
            ("Register keys", "Register", "The keys are registered."),
            vec![
                field("user", "User", Kind::Text, true, "Made if there is none of that name"),
                field("keys", "Public keys", Kind::Area, true, "As in a .pub file, one a line"),
            ],
            Needs::Operator,
            Then::To("/account"),
        ),
        warned(
            action(
                "key-remove",
                (Method::DELETE, "/v1/keys/{id}"),
                Body::None,
                ("Remove a key", "Remove", "The key is removed."),
                vec![],
                Needs::Account,
                Then::To("/account"),
            ),
            "Who has only this key does not get in any more. Tokens, and browsers that were signed in with it, stay: revoke them too.",
        ),
        action(
            "token-create",
            (Method::POST, "/v1/tokens"),
            Body::Fields,
            ("Make a token", "Make token", "The token is made."),
            vec![
                field("name", "What it is for", Kind::Text, true, "As in: ci"),
                field(
                    "scope",
                    "What it may",
                    Kind::Choice(&["read", "deploy", "full", "metrics"]),
                    true,
                    "read: look on; deploy: also push, scale, roll back; full: all that you may; metrics: /metrics alone (operators)",
                ),
                field("tenant", "Only in this tenant", Kind::Text, false, "Everywhere, if empty"),
                field(
                    "expires",
                    "For how long",
                    Kind::Text,
                    false,
                    "As in 2h; at most as long as you are signed in here, and gone when you sign out. For one that lasts: ssh … tokens create",
                ),
            ],
            Needs::Account,
            Then::Shown(&[("Token", "token"), ("Id", "id"), ("Good until", "expires_at")]),
        ),
        action(
            "token-revoke",
            (Method::DELETE, "/v1/tokens/{id}"),
            Body::None,
            ("Revoke a token", "Revoke", "The token is worth nothing any more."),
            vec![],
            Needs::Account,
            Then::To("/account"),
        ),
        action(
            "link-make",
            (Method::POST, "/v1/sign-in-links"),
            Body::None,
            ("Sign in on another device", "Make a link", "The link is made."),
            vec![],
            Needs::Account,
            Then::Shown(&[("Link", "url"), ("Good until", "expires_at")]),
        ),
    ]
}

/// Tenants to be in.
fn joining() -> Vec<Action> {
    vec![
        action(
            "tenant-create",
            (Method::POST, "/v1/tenants"),
            Body::Fields,
            ("Make a tenant", "Make tenant", "The tenant is made."),
            vec![
                field("name", "Name", Kind::Text, true, "Small letters, digits and hyphens, as in: acme"),
                field("owner", "Owner", Kind::Text, false, "You, if empty"),
            ],
            Needs::Operator,
            Then::To("/tenants/{name}"),
        ),
        action(
            "tenant-join",
            (Method::POST, "/v1/memberships"),
            Body::Fields,
            ("Join a tenant", "Join", "You are a member now."),
            vec![field("code", "Invitation code", Kind::Text, true, "From an owner of the tenant")],
            Needs::Account,
            TENANT,
        ),
    ]
}
