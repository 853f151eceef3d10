//! Actions on a tenant and its apps.

use axum::http::Method;

use super::*;

pub(super) fn actions() -> Vec<Action> {
    [members(), webhooks(), apps()].into_iter().flatten().collect()
}

/// Who is in a tenant, and how it takes pushes.
fn members() -> Vec<Action> {
    vec![
        action(
            "manifest-require",
            (Method::PATCH, "/v1/tenants/{tenant}"),
            Body::Fields,
            ("Pushes without berth.yaml", "Save", "Saved."),
            vec![field("require_manifest", "Refuse pushes without berth.yaml", Kind::Check, false, "")],
            Needs::Own,
            TENANT,
        ),
        action(
            "member-set",
            (Method::PUT, "/v1/tenants/{tenant}/members/{user}"),
            Body::Fields,
            ("Change a role", "Change role", "The role is changed."),
            vec![field("user", "User", Kind::Text, true, ""), field("role", "Role", ROLES, true, "")],
            Needs::Own,
            TENANT,
        ),
        warned(
            action(
                "member-remove",
                (Method::DELETE, "/v1/tenants/{tenant}/members/{user}"),
                Body::None,
                ("Remove a member", "Remove", "The member is removed."),
                vec![],
                Needs::Own,
                TENANT,
            ),
            "They lose access at once; what they have deployed goes on.",
        ),
        warned(
            action(
                "leave",
                (Method::DELETE, "/v1/tenants/{tenant}/members/{user}"),
                Body::None,
                ("Leave the tenant", "Leave", "You are no member any more."),
                vec![],
                Needs::Account,
                Then::To("/"),
            ),
            "You lose access at once; an owner can invite you again.",
        ),
        action(
            "invite",
            (Method::POST, "/v1/tenants/{tenant}/invitations"),
            Body::Fields,
            (
                "Invite somebody",
                "Make invitation",
                "The invitation is made: who has the code joins with it on their first page here, or with tenants join CODE.",
            ),
            vec![field(
                "role",
                "Role",
                ROLES,
                true,
                "viewers look on, developers deploy and see config, owners manage",
            )],
            Needs::Own,
            Then::Shown(&[("Code, to be handed over", "code"), ("Role", "role"), ("Good until", "expires_at")]),
        ),
    ]
}

/// Where its events are sent.
fn webhooks() -> Vec<Action> {
    vec![
        action(
            "webhook-add",
            (Method::POST, "/v1/tenants/{tenant}/webhooks"),
            Body::WithLists(&["types"]),
            ("Add a webhook", "Add webhook", "The webhook is added."),
            vec![
                field("url", "URL", Kind::Text, true, "Where events are sent to, as https://…"),
                field(
                    "types",
                    "Only events whose type begins so",
                    Kind::Text,
                    false,
                    "As in: build. deployment.finished; all, if empty",
                ),
            ],
            Needs::Own,
            Then::Shown(&[("Secret that deliveries are signed with", "secret"), ("Id", "id")]),
        ),
        action(
            "webhook-enable",
            (Method::PATCH, "/v1/tenants/{tenant}/webhooks/{id}"),
            Body::Fixed(&[("enabled", true)]),
            ("Enable a webhook", "Enable", "Events are sent from now on."),
            vec![],
            Needs::Own,
            TENANT,
        ),
        action(
            "webhook-disable",
            (Method::PATCH, "/v1/tenants/{tenant}/webhooks/{id}"),
            Body::Fixed(&[("enabled", false)]),
            ("Disable a webhook", "Disable", "No events are sent."),
            vec![],
            Needs::Own,
            TENANT,
        ),
        action(
            "webhook-test",
            (Method::POST, "/v1/tenants/{tenant}/webhooks/{id}/test"),
            Body::None,
            ("Test a webhook", "Test", "A ping was sent."),
            vec![],
            Needs::Own,
            Then::To("/tenants/{tenant}/webhooks/{id}"),
        ),
        warned(
            action(
                "webhook-remove",
                (Method::DELETE, "/v1/tenants/{tenant}/webhooks/{id}"),
                Body::None,
                ("Remove a webhook", "Remove", "The webhook is removed."),
                vec![],
                Needs::Own,
                TENANT,
            ),
            "Its delivery log goes too.",
        ),
    ]
}

/// Its apps.
fn apps() -> Vec<Action> {
    vec![
        action(
            "app-create",
            (Method::POST, "/v1/apps"),
            Body::Named(&["tenant"]),
            ("Make an app", "Make app", "The app is made, with environments dev and prod."),
            vec![field("name", "Name", Kind::Text, true, "Small letters, digits and hyphens, as in: shop")],
            Needs::Own,
            Then::To("/apps/{tenant}/{name}"),
        ),
        action(
            "env-create",
            (Method::POST, "/v1/envs"),
            Body::Named(&["tenant", "app"]),
            ("Make an environment", "Make environment", "The environment is made."),
            vec![field("name", "Name", Kind::Text, true, "As in: staging")],
            Needs::Own,
            Then::To("/apps/{tenant}/{app}"),
        ),
        warned(
            action(
                "cache-purge",
                (Method::DELETE, "/v1/apps/{tenant}/{app}/cache"),
                Body::None,
                ("Throw the build cache away", "Empty the build cache", "The cache is empty."),
                vec![],
                Needs::Push,
                Then::To("/apps/{tenant}/{app}"),
            ),
            "The next build begins from nothing, and takes longer.",
        ),
        confirmed(
            action(
                "app-destroy",
                (Method::DELETE, "/v1/apps/{tenant}/{app}"),
                Body::None,
                ("Destroy the app", "Destroy", "The app is being destroyed."),
                vec![],
                Needs::Own,
                TENANT,
            ),
            "All of its environments stop at once; repositories, releases, config and logs go. This cannot be undone.",
            &["tenant", "app"],
        ),
    ]
}
