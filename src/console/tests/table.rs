//! How each command of the matrix is asked for over the API and in the console.

/// A command line, and the same through the other doors.
pub(super) struct Entry {
    pub(super) line: &'static str,
    /// Method and path, and a body of JSON, or none.
    pub(super) request: &'static str,
    pub(super) body: &'static str,
    pub(super) way: Way,
}

/// `ENV` stands for `acme/shop/dev`, in the form that the place needs.
pub(super) enum Way {
    /// A page, and words that are on it.
    Page(&'static str, &'static [&'static str]),
    /// An action, and what its form says.
    Do(&'static str, &'static str),
    /// The form that sends a source.
    Upload,
}
use Way::{Do, Page, Upload};

/// Lines that not every door has, and why.
pub(super) const ELSEWHERE: &[(&str, &str)] = &[
    ("help", "it tells of the words of commands; the API has /docs, and pages their hints"),
    ("metrics acme/shop/dev --since 25h", "a length of time in words; pages offer those that there are"),
];

/// Where the other doors say which, and the line of the matrix leaves it open.
pub(super) const NUMBERED: &[(&str, &str)] = &[("builds cancel acme/shop/dev", "builds cancel acme/shop/dev 2")];

const fn see(line: &'static str, request: &'static str, page: &'static str, words: &'static [&'static str]) -> Entry {
    Entry { line, request, body: "", way: Page(page, words) }
}

const fn change(
    line: &'static str,
    (request, body): (&'static str, &'static str),
    action: &'static str,
    form: &'static str,
) -> Entry {
    Entry { line, request, body, way: Do(action, form) }
}

pub(super) const TABLE: &[Entry] = &[
    see("whoami", "GET /v1/whoami", "/account", &[]),
    see("keys list", "GET /v1/keys", "/account", &[]),
    see("keys list --all", "GET /v1/keys?all=true", "/account?all=true", &[]),
    see("keys list --user dan", "GET /v1/keys?user=dan", "/account?user=dan", &[]),
    change("keys remove SHA256:nobodys", ("DELETE /v1/keys/SHA256:nobodys", ""), "key-remove", "id=SHA256:nobodys"),
    change(
        "tokens create ci",
        ("POST /v1/tokens", r#"{"name": "ci", "scope": "read"}"#),
        "token-create",
        "name=ci&scope=read",
    ),
    change(
        "tokens create ci --tenant acme --scope full",
        ("POST /v1/tokens", r#"{"name": "ci", "scope": "full", "tenant": "acme"}"#),
        "token-create",
        "name=ci&scope=full&tenant=acme",
    ),
    change(
        "tokens create prometheus --scope metrics",
        ("POST /v1/tokens", r#"{"name": "prometheus", "scope": "metrics"}"#),
        "token-create",
        "name=prometheus&scope=metrics",
    ),
    see("tokens list", "GET /v1/tokens", "/account", &["test"]),
    see("tokens list --all", "GET /v1/tokens?all=true", "/account?all=true", &["test"]),
    change("tokens revoke nobodys", ("DELETE /v1/tokens/nobodys", ""), "token-revoke", "id=nobodys"),
    change("console", ("POST /v1/sign-in-links", ""), "link-make", ""),
    // Over SSH the input is empty; forms that are not filled in are not sent.
    change("upload-key eve", ("POST /v1/keys", r#"{"user": "eve", "keys": ""}"#), "key-add", "user=eve&keys=none"),
    change(
        "tenants create new --owner dan",
        ("POST /v1/tenants", r#"{"name": "new", "owner": "dan"}"#),
        "tenant-create",
        "name=new&owner=dan",
    ),
    see("tenants list", "GET /v1/tenants", "/", &[]),
    see("tenants info acme", "GET /v1/tenants/acme", "/tenants/acme", &[]),
    see("tenants members acme", "GET /v1/tenants/acme/members", "/tenants/acme", &["viewer", "developer", "owner"]),
    change(
        "tenants members acme --set vera=developer",
        ("PUT /v1/tenants/acme/members/vera", r#"{"role": "developer"}"#),
        "member-set",
        "tenant=acme&user=vera&role=developer",
    ),
    change(
        "tenants members acme --remove dan",
        ("DELETE /v1/tenants/acme/members/dan", ""),
        "member-remove",
        "tenant=acme&user=dan",
    ),
    change(
        "tenants require-manifest acme on",
        ("PATCH /v1/tenants/acme", r#"{"require_manifest": true}"#),
        "manifest-require",
        "tenant=acme&require_manifest=on",
    ),
    change(
        "tenants invite acme",
        ("POST /v1/tenants/acme/invitations", r#"{"role": "developer"}"#),
        "invite",
        "tenant=acme&role=developer",
    ),
    change(
        "tenants join nonsense",
        ("POST /v1/memberships", r#"{"code": "nonsense"}"#),
        "tenant-join",
        "code=nonsense",
    ),
    change("apps create acme/new", ("POST /v1/apps", r#"{"name": "acme/new"}"#), "app-create", "tenant=acme&name=new"),
    see("apps list", "GET /v1/apps", "/", &[]),
    see("apps list acme", "GET /v1/apps?tenant=acme", "/tenants/acme", &[]),
    see("apps info acme/shop", "GET /v1/apps/acme/shop", "/apps/acme/shop", &[]),
    change(
        "apps destroy acme/shop --confirm acme/shop",
        ("DELETE /v1/apps/acme/shop", ""),
        "app-destroy",
        "tenant=acme&app=shop&confirm=acme/shop",
    ),
    change(
        "envs create acme/shop/new",
        ("POST /v1/envs", r#"{"name": "acme/shop/new"}"#),
        "env-create",
        "tenant=acme&app=shop&name=new",
    ),
    see("envs list", "GET /v1/envs", "/", &[]),
    see("envs list acme/shop", "GET /v1/envs?app=acme/shop", "/apps/acme/shop", &[]),
    change(
        "envs destroy acme/shop/dev --confirm acme/shop/dev",
        ("DELETE ENV", ""),
        "env-destroy",
        "ENV&confirm=acme/shop/dev",
    ),
    see("ps", "GET /v1/running", "/", &[]),
    see("ps acme/shop/dev", "GET ENV", "ENV", &["web", "worker", "http://dev.shop.acme.localhost:8080"]),
    see("ps --why", "GET /v1/running?why=true", "/", &[]),
    see("ps acme/shop/dev --why", "GET ENV", "ENV", &["web", "worker"]),
    see("scale acme/shop/dev", "GET ENV/scale", "ENV", &["web", "worker"]),
    change("scale acme/shop/dev web=3", ("PATCH ENV/scale", r#"{"web": 3}"#), "scale", "ENV&count.web=3"),
    change("scale acme/shop/dev --reset", ("DELETE ENV/scale", ""), "scale-reset", "ENV"),
    change("restart acme/shop/dev", ("POST ENV/restart", ""), "restart", "ENV"),
    see("logs acme/shop/dev", "GET ENV/logs", "ENV/logs", &["hello ^[[2J"]),
    see("logs acme/shop/dev --build 2", "GET ENV/builds/2/logs", "ENV/builds/2", &["Building"]),
    see("metrics acme/shop/dev", "GET ENV/metrics", "ENV/metrics", &[]),
    see("builds list acme/shop/dev", "GET ENV/builds", "ENV/builds", &["succeeded", "builds/1", "builds/2"]),
    see("builds info acme/shop/dev", "GET ENV/builds/2", "ENV/builds/2", &["succeeded", "1a1a1a1a1a"]),
    see("builds logs acme/shop/dev -f", "GET ENV/builds/2/logs", "ENV/builds/2", &["Building"]),
    Entry { line: "builds create acme/shop/dev", request: "POST ENV/builds", body: "", way: Upload },
    change(
        "deploy acme/shop/dev berth/acme/shop@sha256:7777777777777777777777777777777777777777777777777777777777777777",
        (
            "POST ENV/deployments",
            r#"{"image": "berth/acme/shop@sha256:7777777777777777777777777777777777777777777777777777777777777777"}"#,
        ),
        "deploy-image",
        "ENV&image=berth/acme/shop@sha256:7777777777777777777777777777777777777777777777777777777777777777",
    ),
    change("builds cancel acme/shop/dev", ("POST ENV/builds/2/cancel", ""), "build-cancel", "ENV&id=2"),
    change(
        "builds purge-cache acme/shop",
        ("DELETE /v1/apps/acme/shop/cache", ""),
        "cache-purge",
        "tenant=acme&app=shop",
    ),
    see("releases list acme/shop/dev", "GET ENV/releases", "ENV/releases", &["v1", "v2"]),
    see("releases info acme/shop/dev v1", "GET ENV/releases/1", "ENV/releases/1", &["node server.js", "SECRET"]),
    see("deployments list acme/shop/dev", "GET ENV/deployments", "ENV/releases", &["succeeded"]),
    see("deployments info acme/shop/dev", "GET ENV/deployments/2", "ENV/releases/2", &["succeeded"]),
    change("deployments cancel acme/shop/dev", ("POST ENV/deployments/2/cancel", ""), "deployment-cancel", "ENV&id=2"),
    change("rollback acme/shop/dev", ("POST ENV/rollback", "{}"), "rollback", "ENV"),
    change("redeploy acme/shop/dev", ("POST ENV/redeploy", "{}"), "redeploy", "ENV"),
    change(
        "promote acme/shop/dev acme/shop/prod",
        ("POST /v1/envs/acme/shop/prod/promote", r#"{"from": "acme/shop/dev"}"#),
        "promote",
        "tenant=acme&app=shop&env=prod&from=acme/shop/dev",
    ),
    see("config list acme/shop/dev", "GET ENV/config", "ENV/config?reveal=*", &["SECRET", "hunter2"]),
    see("config get acme/shop/dev SECRET", "GET ENV/config/SECRET", "ENV/config?reveal=SECRET", &["hunter2"]),
    change("config set acme/shop/dev A=b", ("PATCH ENV/config", r#"{"A": "b"}"#), "config-set", "ENV&name=A&value=b"),
    change(
        "config unset acme/shop/dev SECRET",
        ("PATCH ENV/config", r#"{"SECRET": null}"#),
        "config-unset",
        "ENV&id=SECRET",
    ),
    see("domains list acme/shop/dev", "GET ENV/domains", "ENV/domains", &["manifest.example.com"]),
    change(
        "domains add acme/shop/dev a.example.com",
        ("PUT ENV/domains/a.example.com", ""),
        "domain-add",
        "ENV&id=a.example.com",
    ),
    change(
        "domains remove acme/shop/dev a.example.com",
        ("DELETE ENV/domains/a.example.com", ""),
        "domain-remove",
        "ENV&id=a.example.com",
    ),
    see("drains list acme/shop/dev", "GET ENV/drains", "ENV/drains", &[]),
    change(
        "drains add acme/shop/dev https://logs.example.com/?hunter2",
        ("POST ENV/drains", r#"{"url": "https://logs.example.com/?hunter2"}"#),
        "drain-add",
        "ENV&url=https://logs.example.com/?hunter2",
    ),
    change("drains remove acme/shop/dev 1", ("DELETE ENV/drains/1", ""), "drain-remove", "ENV&id=1"),
    change("run acme/shop/dev -- true", ("POST ENV/runs", r#"{"command": ["true"]}"#), "run", "ENV&command=true"),
    see("cron list acme/shop/dev", "GET ENV/cron", "ENV/jobs", &["node cleanup.js"]),
    see("cron history acme/shop/dev", "GET ENV/cron-runs", "ENV/jobs", &[]),
    see("cron history acme/shop/dev nightly", "GET ENV/cron-runs?job=nightly", "ENV/jobs", &[]),
    change("cron run acme/shop/dev nightly", ("POST ENV/cron/nightly/runs", ""), "job-run", "ENV&id=nightly"),
    see("status", "GET /v1/platform", "/platform", &["Fake 1", "start it"]),
    change("gc", ("POST /v1/collections", "{}"), "collect", ""),
    change("gc --dry-run", ("POST /v1/collections", r#"{"dry_run": true}"#), "collect", "dry_run=on"),
    see("webhooks list acme", "GET /v1/tenants/acme/webhooks", "/tenants/acme", &["https://192.0.2.1/"]),
    change(
        "webhooks add acme https://hooks.example.com/ --type build.",
        ("POST /v1/tenants/acme/webhooks", r#"{"url": "https://hooks.example.com/", "types": ["build."]}"#),
        "webhook-add",
        "tenant=acme&url=https://hooks.example.com/&types=build.",
    ),
    see(
        "webhooks info acme 1a2b3c4d",
        "GET /v1/tenants/acme/webhooks/1a2b3c4d",
        "/tenants/acme/webhooks/1a2b3c4d",
        &["1a2b3c4d"],
    ),
    see(
        "webhooks deliveries acme 1a2b3c4d",
        "GET /v1/tenants/acme/webhooks/1a2b3c4d/deliveries",
        "/tenants/acme/webhooks/1a2b3c4d",
        &[],
    ),
    change(
        "webhooks test acme 1a2b3c4d",
        ("POST /v1/tenants/acme/webhooks/1a2b3c4d/test", ""),
        "webhook-test",
        "tenant=acme&id=1a2b3c4d",
    ),
    change(
        "webhooks enable acme 1a2b3c4d",
        ("PATCH /v1/tenants/acme/webhooks/1a2b3c4d", r#"{"enabled": true}"#),
        "webhook-enable",
        "tenant=acme&id=1a2b3c4d",
    ),
    change(
        "webhooks disable acme 1a2b3c4d",
        ("PATCH /v1/tenants/acme/webhooks/1a2b3c4d", r#"{"enabled": false}"#),
        "webhook-disable",
        "tenant=acme&id=1a2b3c4d",
    ),
    change(
        "webhooks remove acme 1a2b3c4d",
        ("DELETE /v1/tenants/acme/webhooks/1a2b3c4d", ""),
        "webhook-remove",
        "tenant=acme&id=1a2b3c4d",
    ),
    see("events", "GET /v1/events", "/events", &[]),
    see("events --tenant acme", "GET /v1/events?tenant=acme", "/events?tenant=acme", &[]),
];
