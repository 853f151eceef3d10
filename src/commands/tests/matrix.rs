//! Every command × every kind of caller.

use super::*;

/// Who asks, in the order of the columns.
const CALLERS: [&str; 6] = ["vera", "dan", "olga", "opal", "stan", "host"];

/// A command line and its exit status for: viewer, developer, owner, operator who is no member, member of another tenant, host. What
/// they may not do is 3 when they may know of the tenant and 4 when not; the other statuses come of the state of things.
const MATRIX: &[(&str, [u8; 6])] = &[
    ("whoami", [0; 6]),
    ("help", [0; 6]),
    ("keys list", [0; 6]),
    ("keys list --all", [3, 3, 3, 0, 3, 0]),
    ("keys list --user dan", [3, 0, 3, 0, 3, 0]),
    ("keys remove SHA256:nobodys", [4; 6]),
    // Past authorisation, the empty input is what is wrong.
    ("upload-key eve", [3, 3, 3, 2, 3, 2]),
    ("tenants create new --owner dan", [3, 3, 3, 0, 3, 0]),
    ("tenants list", [0; 6]),
    ("tenants members acme", [0, 0, 0, 0, 4, 0]),
    ("tenants members acme --set vera=developer", [3, 3, 0, 0, 4, 0]),
    ("tenants members acme --remove dan", [3, 0, 0, 0, 4, 0]),
    ("tenants require-manifest acme on", [3, 3, 0, 0, 4, 0]),
    ("tenants invite acme", [3, 3, 0, 0, 4, 0]),
    ("tenants join nonsense", [4; 6]),
    ("apps create acme/new", [3, 3, 0, 0, 4, 0]),
    ("apps list", [0; 6]),
    ("apps list acme", [0, 0, 0, 0, 4, 0]),
    ("apps info acme/shop", [0, 0, 0, 0, 4, 0]),
    ("apps destroy acme/shop --confirm acme/shop", [3, 3, 0, 0, 4, 0]),
    ("envs create acme/shop/new", [3, 3, 0, 0, 4, 0]),
    ("envs list", [0; 6]),
    ("envs list acme/shop", [0, 0, 0, 0, 4, 0]),
    ("envs destroy acme/shop/dev --confirm acme/shop/dev", [3, 3, 0, 0, 4, 0]),
    ("ps", [0; 6]),
    ("ps acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("ps --why", [0; 6]),
    ("ps acme/shop/dev --why", [0, 0, 0, 0, 4, 0]),
    ("scale acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("scale acme/shop/dev web=3", [3, 0, 0, 0, 4, 0]),
    ("scale acme/shop/dev --reset", [3, 0, 0, 0, 4, 0]),
    ("restart acme/shop/dev", [3, 0, 0, 0, 4, 0]),
    ("logs acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("logs acme/shop/dev --build 2", [0, 0, 0, 0, 4, 0]),
    ("metrics acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("metrics acme/shop/dev --since 25h", [2; 6]),
    ("builds list acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("builds info acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("builds logs acme/shop/dev -f", [0, 0, 0, 0, 4, 0]),
    // An operator pushes nowhere uninvited; for those who may there is nothing to cancel.
    ("builds cancel acme/shop/dev", [3, 4, 4, 3, 4, 3]),
    ("builds purge-cache acme/shop", [3, 0, 0, 3, 4, 3]),
    ("releases list acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("releases info acme/shop/dev v1", [0, 0, 0, 0, 4, 0]),
    ("deployments list acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("deployments info acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    // For those who may there is none under way.
    ("deployments cancel acme/shop/dev", [3, 4, 4, 4, 4, 4]),
    ("rollback acme/shop/dev", [3, 0, 0, 0, 4, 0]),
    ("redeploy acme/shop/dev", [3, 0, 0, 0, 4, 0]),
    // There is no repository here to bring the commit from.
    ("promote acme/shop/dev acme/shop/prod", [3, 1, 1, 1, 4, 1]),
    // An operator sees no secrets of a tenant, and does not run as one.
    ("config list acme/shop/dev", [3, 0, 0, 3, 4, 3]),
    ("config get acme/shop/dev SECRET", [3, 0, 0, 3, 4, 3]),
    ("config set acme/shop/dev A=b", [3, 0, 0, 0, 4, 0]),
    ("config unset acme/shop/dev SECRET", [3, 0, 0, 0, 4, 0]),
    ("domains list acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("domains add acme/shop/dev a.example.com", [3, 0, 0, 0, 4, 0]),
    // Nothing was added yet.
    ("domains remove acme/shop/dev a.example.com", [3, 4, 4, 4, 4, 4]),
    ("run acme/shop/dev -- true", [3, 42, 42, 3, 4, 3]),
    ("cron list acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("cron history acme/shop/dev", [0, 0, 0, 0, 4, 0]),
    ("cron history acme/shop/dev nightly", [0, 0, 0, 0, 4, 0]),
    // It sees the config, as a one-off command does.
    ("cron run acme/shop/dev nightly", [3, 0, 0, 3, 4, 3]),
    ("gc", [3, 3, 3, 0, 3, 0]),
    ("gc --dry-run", [3, 3, 3, 0, 3, 0]),
    ("events", [0; 6]),
    ("events --tenant acme", [0, 0, 0, 0, 4, 0]),
];

#[tokio::test]
async fn every_command_for_every_caller() {
    for (line, wanted) in MATRIX {
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
        let tested = |line: &String| MATRIX.iter().any(|(tested, _)| tested.starts_with(line.as_str()));
        missing.extend(lines.into_iter().filter(|line| !tested(line)));
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_denied_changes_nothing() {
    for (line, wanted) in MATRIX {
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
    for (line, _) in MATRIX.iter().filter(|(line, wanted)| line.contains("acme") && wanted[4] == 4) {
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
