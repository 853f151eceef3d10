//! Every command × every kind of caller.

use super::*;

/// Who asks, in the order of the columns.
pub(crate) const CALLERS: [&str; 6] = ["vera", "dan", "olga", "opal", "stan", "host"];

/// The least that a token must be for, so that its user may with it what they may without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Any: one sees what is in its reach.
    Nothing,
    /// Scope `read`, `deploy` or `full`, for all tenants or for `acme`.
    Read,
    Deploy,
    Full,
    /// Scope `full`, for all tenants: it is about the account or the platform.
    Account,
}
use Needs::*;

/// A command line and its exit status for: viewer, developer, owner, operator who is no member, member of another tenant, host. What
/// they may not do is 3 when they may know of the tenant and 4 when not; the other statuses come of the state of things.
///
/// At the end, what a token must be for to be taken.
pub(crate) const MATRIX: &[(&str, [u8; 6], Needs)] = &[
    ("whoami", [0; 6], Nothing),
    ("help", [0; 6], Nothing),
    ("keys list", [0; 6], Account),
    ("keys list --all", [3, 3, 3, 0, 3, 0], Account),
    ("keys list --user dan", [3, 0, 3, 0, 3, 0], Account),
    ("keys remove SHA256:nobodys", [4; 6], Account),
    // The host is no user.
    ("tokens create ci", [0, 0, 0, 0, 0, 2], Account),
    // For a tenant that it goes nowhere in, a token is not made.
    ("tokens create ci --tenant acme --scope full", [0, 0, 0, 3, 4, 2], Account),
    ("tokens create prometheus --scope metrics", [3, 3, 3, 0, 3, 2], Account),
    ("tokens list", [0; 6], Account),
    ("tokens list --all", [3, 3, 3, 0, 3, 0], Account),
    ("tokens revoke nobodys", [4; 6], Account),
    ("console", [0, 0, 0, 0, 0, 2], Account),
    // Past authorisation, the empty input is what is wrong.
    ("upload-key eve", [3, 3, 3, 2, 3, 2], Account),
    ("tenants create new --owner dan", [3, 3, 3, 0, 3, 0], Account),
    ("tenants list", [0; 6], Nothing),
    ("tenants info acme", [0, 0, 0, 0, 4, 0], Read),
    ("tenants members acme", [0, 0, 0, 0, 4, 0], Read),
    ("tenants members acme --set vera=developer", [3, 3, 0, 0, 4, 0], Full),
    ("tenants members acme --remove dan", [3, 0, 0, 0, 4, 0], Full),
    ("tenants require-manifest acme on", [3, 3, 0, 0, 4, 0], Full),
    ("tenants invite acme", [3, 3, 0, 0, 4, 0], Full),
    ("tenants join nonsense", [4; 6], Account),
    ("apps create acme/new", [3, 3, 0, 0, 4, 0], Full),
    ("apps list", [0; 6], Nothing),
    ("apps list acme", [0, 0, 0, 0, 4, 0], Read),
    ("apps info acme/shop", [0, 0, 0, 0, 4, 0], Read),
    ("apps destroy acme/shop --confirm acme/shop", [3, 3, 0, 0, 4, 0], Full),
    ("envs create acme/shop/new", [3, 3, 0, 0, 4, 0], Full),
    ("envs list", [0; 6], Nothing),
    ("envs list acme/shop", [0, 0, 0, 0, 4, 0], Read),
    ("envs destroy acme/shop/dev --confirm acme/shop/dev", [3, 3, 0, 0, 4, 0], Full),
    ("ps", [0; 6], Nothing),
    ("ps acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("ps --why", [0; 6], Nothing),
    ("ps acme/shop/dev --why", [0, 0, 0, 0, 4, 0], Read),
    ("scale acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("scale acme/shop/dev web=3", [3, 0, 0, 0, 4, 0], Deploy),
    ("scale acme/shop/dev --reset", [3, 0, 0, 0, 4, 0], Deploy),
    ("restart acme/shop/dev", [3, 0, 0, 0, 4, 0], Deploy),
    ("logs acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("logs acme/shop/dev --build 2", [0, 0, 0, 0, 4, 0], Read),
    ("metrics acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("metrics acme/shop/dev --since 25h", [2; 6], Nothing),
    ("builds list acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("builds info acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("builds logs acme/shop/dev -f", [0, 0, 0, 0, 4, 0], Read),
    ("builds create acme/shop/dev", [3, 0, 0, 3, 4, 3], Deploy),
    // For those who may there is no such image.
    (
        "deploy acme/shop/dev berth/acme/shop@sha256:7777777777777777777777777777777777777777777777777777777777777777",
        [3, 4, 4, 3, 4, 3],
        Deploy,
    ),
    // An operator pushes nowhere uninvited; for those who may there is nothing to cancel.
    ("builds cancel acme/shop/dev", [3, 4, 4, 3, 4, 3], Deploy),
    ("builds purge-cache acme/shop", [3, 0, 0, 3, 4, 3], Deploy),
    ("releases list acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("releases info acme/shop/dev v1", [0, 0, 0, 0, 4, 0], Read),
    ("deployments list acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("deployments info acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    // For those who may there is none under way.
    ("deployments cancel acme/shop/dev", [3, 4, 4, 4, 4, 4], Deploy),
    ("rollback acme/shop/dev", [3, 0, 0, 0, 4, 0], Deploy),
    ("redeploy acme/shop/dev", [3, 0, 0, 0, 4, 0], Deploy),
    // There is no repository here to bring the commit from.
    ("promote acme/shop/dev acme/shop/prod", [3, 1, 1, 1, 4, 1], Deploy),
    // An operator sees no secrets of a tenant, and does not run as one.
    ("config list acme/shop/dev", [3, 0, 0, 3, 4, 3], Full),
    ("config get acme/shop/dev SECRET", [3, 0, 0, 3, 4, 3], Full),
    ("config set acme/shop/dev A=b", [3, 0, 0, 0, 4, 0], Full),
    ("config unset acme/shop/dev SECRET", [3, 0, 0, 0, 4, 0], Full),
    ("domains list acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("domains add acme/shop/dev a.example.com", [3, 0, 0, 0, 4, 0], Full),
    // Nothing was added yet.
    ("domains remove acme/shop/dev a.example.com", [3, 4, 4, 4, 4, 4], Full),
    ("drains list acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("drains add acme/shop/dev https://logs.example.com/?hunter2", [3, 0, 0, 0, 4, 0], Full),
    // There is none yet.
    ("drains remove acme/shop/dev 1", [3, 4, 4, 4, 4, 4], Full),
    ("run acme/shop/dev -- true", [3, 42, 42, 3, 4, 3], Full),
    ("cron list acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("cron history acme/shop/dev", [0, 0, 0, 0, 4, 0], Read),
    ("cron history acme/shop/dev nightly", [0, 0, 0, 0, 4, 0], Read),
    // It sees the config, as a one-off command does.
    ("cron run acme/shop/dev nightly", [3, 0, 0, 3, 4, 3], Full),
    ("status", [3, 3, 3, 0, 3, 0], Account),
    ("gc", [3, 3, 3, 0, 3, 0], Account),
    ("gc --dry-run", [3, 3, 3, 0, 3, 0], Account),
    ("webhooks list acme", [0, 0, 0, 0, 4, 0], Read),
    ("webhooks add acme https://hooks.example.com/ --type build.", [3, 3, 0, 0, 4, 0], Full),
    ("webhooks info acme 1a2b3c4d", [0, 0, 0, 0, 4, 0], Read),
    ("webhooks deliveries acme 1a2b3c4d", [0, 0, 0, 0, 4, 0], Read),
    // Where it leads to is refused before anything is sent.
    ("webhooks test acme 1a2b3c4d", [3, 3, 1, 1, 4, 1], Full),
    ("webhooks enable acme 1a2b3c4d", [3, 3, 0, 0, 4, 0], Full),
    ("webhooks disable acme 1a2b3c4d", [3, 3, 0, 0, 4, 0], Full),
    ("webhooks remove acme 1a2b3c4d", [3, 3, 0, 0, 4, 0], Full),
    ("events", [0; 6], Nothing),
    ("events --tenant acme", [0, 0, 0, 0, 4, 0], Read),
];

#[tokio::test]
async fn every_command_for_every_caller() {
    for (line, wanted, _) in MATRIX {
        let mut found = [0; 6];
        for (column, who) in CALLERS.iter().enumerate() {
            let world = World::new().await;
            let said = world.run(who, line).await;
            found[column] = said.status;
            assert!(
                !said.stderr.contains("hunter2") || said.status == 42,
                "a secret is told to {who} by {line}: {said:?}"
            );
        }
        assert_eq!(found, *wanted, "{line} for {CALLERS:?}");
    }
}

#[test]
fn the_matrix_has_every_command() {
    use clap::CommandFactory;
    let mut missing = Vec::new();
    for noun in parse::CommandLine::command().get_subcommands() {
        let verbs: Vec<_> =
            noun.get_subcommands().map(|verb| format!("{} {}", noun.get_name(), verb.get_name())).collect();
        let lines = if verbs.is_empty() { vec![noun.get_name().to_owned()] } else { verbs };
        let tested = |line: &String| MATRIX.iter().any(|(tested, ..)| tested.starts_with(line.as_str()));
        missing.extend(lines.into_iter().filter(|line| !tested(line)));
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_denied_changes_nothing() {
    for (line, wanted, _) in MATRIX {
        for (who, status) in CALLERS.iter().zip(wanted) {
            if !matches!(status, 3 | 4) {
                continue;
            }
            let world = World::new().await;
            let before = world.store.revision().await.unwrap();
            world.run(who, line).await;
            assert_eq!(
                world.store.revision().await.unwrap(),
                before,
                "{who} was denied {line}, which has written something"
            );
        }
    }
}

#[tokio::test]
async fn a_tenant_cannot_be_told_from_none() {
    let world = World::new().await;
    for (line, ..) in MATRIX.iter().filter(|(line, wanted, _)| line.contains("acme") && wanted[4] == 4) {
        let theirs = world.run("stan", line).await;
        let nobodys = world.run("stan", &line.replace("acme", "acne")).await;
        assert_eq!(theirs.stderr.replace("acme", "acne"), nobodys.stderr, "{line}");
        assert_eq!((theirs.status, theirs.stdout), (nobodys.status, nobodys.stdout), "{line}");
    }
}

#[tokio::test]
async fn the_git_door_asks_the_same() {
    let world = World::new().await;
    for (who, push, read) in
        [("vera", Some(3), None), ("dan", None, None), ("opal", Some(3), None), ("stan", Some(4), Some(4))]
    {
        let status = async |verb| world.commands.may(&caller(who), verb, &shop()).await.err().map(|e| e.exit_status());
        assert_eq!((status(Verb::Push).await, status(Verb::Read).await), (push, read), "{who}");
    }
}
