//! Help for people who come from Heroku or Dokku, and the greeting of those who come without a command.

use super::Caller;

/// Groups of commands: a title, and what to type beside what it does.
const GROUPS: [(&str, &[(&str, &str)]); 5] = [
    (
        "Start",
        &[
            ("apps create TENANT/APP", "make an app; prints the remote to push to and a berth.yaml"),
            ("apps list | info | destroy", "your apps, their remotes and URLs"),
            ("envs create | list | destroy", "environments: dev and prod are there from the start"),
        ],
    ),
    (
        "Run",
        &[
            ("ps [ENV] [--why]", "what runs; --why: what is waited for, since when, until when"),
            ("logs ENV [-f]", "logs; --process web, --since 10m, --level error, --search TEXT, -n N"),
            ("metrics ENV [--since 6h]", "requests, latency, errors, processor, memory, network; --json: over time"),
            ("scale ENV web=3 worker=1", "number of replicas; --reset: as the manifest says"),
            ("restart ENV", "replace all replicas, one after another"),
            ("run ENV -- CMD", "a one-off command in the current release; `ssh -t` for a terminal"),
            ("cron list | history | run ENV JOB", "jobs that run by the clock, and what became of their runs"),
            ("config list | get | set | unset", "config variables; a change is a new release, without a build"),
            ("drains list | add | remove", "send the log on: syslog, or NDJSON over HTTPS"),
            ("domains list | add | remove", "host names"),
        ],
    ),
    (
        "Deploy",
        &[
            ("builds create ENV < source.tar.gz", "deploy a source without git"),
            ("builds list | info | logs | cancel", "builds; `builds logs ENV -f` goes back to one under way"),
            ("builds purge-cache TENANT/APP", "forget what builds have cached"),
            ("releases list | info", "releases"),
            ("deployments list | info | cancel", "moves from release to release; `cancel` goes back to what served"),
            ("rollback ENV [vN]", "back to an earlier release"),
            ("redeploy ENV", "build and deploy the commit last pushed, again"),
            ("deploy ENV IMAGE@DIGEST", "deploy an image that is in the registry already"),
            ("promote FROM-ENV TO-ENV", "run in one environment what runs in another, without a build"),
        ],
    ),
    (
        "People",
        &[
            ("whoami", "who you are, and what you may do where"),
            ("keys list | remove", "your keys"),
            ("console", "a link to sign in to the web page with, good once"),
            ("tokens create NAME", "a bearer token; --scope read|deploy|full|metrics, --expires 90d"),
            ("tokens list | revoke", "your tokens; `revoke` ends what goes on with one, too"),
            ("tenants list | info | members", "who owns apps, and who is in it"),
            ("tenants invite TENANT", "an invitation code for a colleague, who types: tenants join CODE"),
            ("events [-f]", "what happened"),
            ("webhooks list | add TENANT", "have events sent to a URL; `info`, `deliveries`, `test`: how it goes"),
        ],
    ),
    (
        "Operators",
        &[
            ("upload-key USER < key.pub", "let somebody in"),
            ("tenants create TENANT", "make a tenant"),
            ("status", "engine, registry, router, disk, queues on one page, and what is missing"),
            ("gc [--dry-run]", "take away what is not needed any more"),
        ],
    ),
];

/// Column where the explanations begin.
const COLUMN: usize = 36;

/// The help for `help` without a command; `program` is how commands are begun, as in `ssh -p 2222 berth@HOST`.
pub(super) fn overview(program: &str) -> String {
    let mut text = format!(
        "Deploy with git, everything else with commands:\n\n\
         \x20 git push paas-dev main           build, release and run what is committed\n\
         \x20 {program} COMMAND\n\n\
         ENV is TENANT/APP/ENV, as in acme/shop/dev. Its remote is what `apps info` prints; the URL too.\n"
    );
    for (title, commands) in GROUPS {
        text.push_str(&format!("\n{title}\n"));
        for (words, what) in commands {
            text.push_str(&format!("  {words:<COLUMN$}{what}\n"));
        }
    }
    text.push_str(&format!(
        "\nExamples\n\
         \x20 {program} apps create acme/shop\n\
         \x20 {program} config set acme/shop/dev DATABASE_URL=postgres://…\n\
         \x20 {program} logs acme/shop/dev -f --process web\n\n\
         `help COMMAND` tells more. --json prints JSON. The colon form (`apps:create`) is taken as well.\n"
    ));
    text
}

/// What somebody is told who comes without a command.
pub(super) fn welcome(caller: &Caller, program: &str) -> String {
    let operator = if caller.operator { " (operator)" } else { "" };
    format!("Hello {}{operator}, this is Berth. There is no shell here.\n\n{}", caller.user, overview(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_the_overview() {
        let text = overview("ssh berth@example.com");
        for name in super::super::parse::names() {
            assert!(text.contains(&format!("\n  {name}")), "{name} is missing:\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
        assert!(text.contains("ssh berth@example.com logs acme/shop/dev -f"));
    }
}
