//! What a push may do: pure rules over the refs it wants to change and the options it brings.

use serde::{Deserialize, Serialize};

use crate::{domain::EnvRef, git::short_branch, logs::render_line};

/// The options that a push may bring, as `git push -o NAME`.
const OPTIONS: [(&str, &str); 3] = [
    ("detach", "return once the build is queued"),
    ("supersede", "cancel the build that is running"),
    ("no-cache", "build without the cache"),
];
/// Branches that a first push may choose.
const FIRST_BRANCHES: [&str; 2] = ["refs/heads/main", "refs/heads/master"];
/// Refs that one push may change: git writes and syncs each of them.
pub const MAX_UPDATES: usize = 5000;
/// How many wrong refs are named.
const NAMED: usize = 5;

/// One ref that a push wants to change, as `pre-receive` is told (githooks(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// 40 hexadecimal digits; zeros: the ref does not exist.
    pub old: String,
    /// Zeros: the ref is to be deleted.
    pub new: String,
    /// Full name.
    pub name: String,
}

impl Update {
    /// From a line of the hook's input, `OLD NEW NAME`.
    pub fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, ' ');
        let (old, new, name) = (parts.next()?, parts.next()?, parts.next()?);
        let is_id = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_id(old) && is_id(new)).then(|| Self { old: old.to_owned(), new: new.to_owned(), name: name.to_owned() })
    }

    fn is_delete(&self) -> bool {
        self.new.bytes().all(|digit| digit == b'0')
    }
}

/// `-o` options, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PushOptions {
    pub detach: bool,
    pub supersede: bool,
    pub no_cache: bool,
}

impl PushOptions {
    /// Reads them; an unknown one is refused with the list of those there are.
    pub fn parse(options: &[String]) -> Result<Self, Refusal> {
        let mut parsed = Self::default();
        for option in options {
            match option.as_str() {
                "detach" => parsed.detach = true,
                "supersede" => parsed.supersede = true,
                "no-cache" => parsed.no_cache = true,
                unknown => {
                    let unknown: String = unknown.chars().take(60).collect();
                    let mut refusal = Refusal::new(format!("There is no push option {unknown:?}. The options are:"));
                    for (name, meaning) in OPTIONS {
                        refusal = refusal.detail(format!("git push -o {name:<10} {meaning}"));
                    }
                    return Err(refusal);
                }
            }
        }
        Ok(parsed)
    }
}

/// The assurance of a refusal that nothing has come of the push.
const UNCHANGED: &str = "Nothing was changed.";

/// What sort of refusal it is, for programs; the names are part of what they rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The push wants what no push may do there.
    Policy,
    /// Another build is under way, or another push came first.
    Busy,
    /// The commit or its history cannot be taken.
    Commit,
    /// What the tree says of itself does not fit.
    Manifest,
    /// As many builds as may wait do.
    QueueFull,
    /// There is no room on the disk.
    Disk,
    /// The server failed.
    Internal,
    /// The server cannot take it just now.
    Later,
    /// There is no such environment any more.
    Gone,
}

impl RefusalKind {
    /// Whether what was sent cannot be taken as it is.
    pub fn is_unfit(self) -> bool {
        matches!(self, Self::Policy | Self::Commit | Self::Manifest)
    }

    /// Whether nothing is wrong with what was sent: later it may be taken.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::QueueFull | Self::Disk | Self::Later)
    }
}

/// Why a push is refused: one line that says what, and lines that say what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    pub reason: String,
    pub details: Vec<String>,
}

impl Refusal {
    /// Of what was sent, without details yet.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Policy, reason: reason.into(), details: Vec::new() }
    }

    /// The same, of another kind.
    pub fn of(self, kind: RefusalKind) -> Self {
        Self { kind, ..self }
    }

    /// With one more line.
    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// Says that the push has had no effect at all.
    pub fn unchanged(self) -> Self {
        self.detail(UNCHANGED)
    }

    /// Says what has happened although the push was refused.
    pub fn but(mut self, line: impl Into<String>) -> Self {
        self.details.retain(|detail| detail != UNCHANGED);
        self.detail(line)
    }

    /// The reason and all details, as lines without marks.
    pub fn text(&self) -> String {
        [&self.reason].into_iter().chain(&self.details).map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// As the pusher sees it.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for line in self.reason.lines() {
            text.push_str(&format!(" !     {}\n", render_line(line)));
        }
        for line in self.details.iter().flat_map(|detail| detail.lines()) {
            text.push_str(&format!("       {}\n", render_line(line)));
        }
        text
    }
}

/// Which of the updates is to be deployed (`None`: only tags move), or why the push is refused as a whole. `deploy_branch` is the
/// environment's, a full or short name; `None` before the first push.
pub fn decide<'u>(
    env: &EnvRef,
    deploy_branch: Option<&str>,
    updates: &'u [Update],
) -> Result<Option<&'u Update>, Refusal> {
    let deploy_branch = deploy_branch.map(|name| format!("refs/heads/{}", short_branch(name)));
    if updates.len() > MAX_UPDATES {
        return Err(Refusal::new(format!("One push may change {MAX_UPDATES} refs, and this one changes more."))
            .detail("Nothing was changed. Tags that are needed here can be pushed in several portions; a deployment needs none.")
            .detail(format!("Deploy with: git push paas-{} HEAD:{}", env.env, wanted(deploy_branch.as_deref()))));
    }
    let may_deploy = |name: &str| match &deploy_branch {
        Some(branch) => branch == name,
        None => FIRST_BRANCHES.contains(&name),
    };
    let branches = || updates.iter().filter(|update| update.name.starts_with("refs/heads/"));
    let strange: Vec<&str> = updates
        .iter()
        .map(|update| update.name.as_str())
        .filter(|name| !name.starts_with("refs/heads/") && !name.starts_with("refs/tags/"))
        .collect();
    if !strange.is_empty() {
        let names = strange.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        return Err(Refusal::new(format!("Only the deploy branch and tags can be pushed here, not {names}."))
            .detail("Nothing was changed. A mirror push (`git push --mirror`) brings such refs along; push the branch by name.")
            .detail(format!("Deploy with: git push paas-{} HEAD:{}", env.env, wanted(deploy_branch.as_deref()))));
    }
    if let Some(deleted) = branches().find(|update| update.is_delete() && may_deploy(&update.name)) {
        return Err(Refusal::new(format!(
            "{} is the deploy branch of {env} and cannot be deleted.",
            short_branch(&deleted.name)
        ))
        .detail("To take the environment down: envs destroy. To stop its processes: scale."));
    }
    let others: Vec<&Update> = branches().filter(|update| !update.is_delete() && !may_deploy(&update.name)).collect();
    if let Some(first) = others.first() {
        return Err(other_branch(env, deploy_branch.as_deref(), first, others.len()));
    }
    let mut deployed = branches().filter(|update| !update.is_delete());
    let update = deployed.next();
    if deployed.next().is_some() {
        return Err(Refusal::new(
            "The first push chooses the branch that is deployed, and this one brings main and master.",
        )
        .detail(format!("Push one of them: git push paas-{} main", env.env)));
    }
    Ok(update)
}

fn wanted(deploy_branch: Option<&str>) -> &str {
    deploy_branch.map_or("main", short_branch)
}

fn other_branch(env: &EnvRef, deploy_branch: Option<&str>, pushed: &Update, count: usize) -> Refusal {
    let (pushed, wanted, remote) = (short_branch(&pushed.name), wanted(deploy_branch), &env.env);
    let reason = match deploy_branch {
        Some(_) => format!("{env} is deployed from the branch {wanted}, not {pushed}."),
        None => format!("A first push must be to main or master, not {pushed}."),
    };
    let refusal = Refusal::new(reason).detail(format!("To deploy it: git push paas-{remote} {pushed}:{wanted}"));
    let refusal = refusal.detail(format!("To deploy what is checked out: git push paas-{remote} HEAD:{wanted}"));
    match count {
        1 => refusal,
        _ => refusal.detail("Nothing was changed. `--all` pushes every branch; push one by name."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEROS: &str = "0000000000000000000000000000000000000000";
    const ONE: &str = "1111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222";

    fn updates(lines: &[&str]) -> Vec<Update> {
        let line = |line: &&str| {
            let (kind, name) = line.split_once(' ').unwrap();
            let (old, new) = match kind {
                "+" => (ZEROS, ONE),
                "-" => (ONE, ZEROS),
                _ => (ONE, TWO),
            };
            Update::parse(&format!("{old} {new} {name}")).unwrap()
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn which_refs_may_move() {
        let env: EnvRef = "acme/shop/dev".parse().unwrap();
        type Row = (Option<&'static str>, &'static [&'static str], Result<Option<&'static str>, &'static str>);
        let table: [Row; 20] = [
            (None, &["+ refs/heads/main"], Ok(Some("refs/heads/main"))),
            (None, &["+ refs/heads/master"], Ok(Some("refs/heads/master"))),
            (None, &["+ refs/heads/main", "+ refs/heads/master"], Err("git push paas-dev main")),
            (None, &["+ refs/heads/feature"], Err("git push paas-dev feature:main")),
            (None, &["+ refs/heads/feature"], Err("git push paas-dev HEAD:main")),
            (None, &["+ refs/tags/v1"], Ok(None)),
            (None, &["- refs/heads/main"], Err("cannot be deleted")),
            (Some("main"), &["* refs/heads/main", "+ refs/tags/v1", "- refs/tags/v0"], Ok(Some("refs/heads/main"))),
            (Some("refs/heads/main"), &["* refs/heads/main"], Ok(Some("refs/heads/main"))),
            (Some("main"), &["+ refs/heads/master"], Err("git push paas-dev master:main")),
            (Some("master"), &["+ refs/heads/main"], Err("git push paas-dev main:master")),
            (Some("main"), &["* refs/heads/main", "+ refs/heads/a", "+ refs/heads/b"], Err("every branch")),
            (Some("main"), &["- refs/heads/main"], Err("cannot be deleted")),
            (Some("main"), &["- refs/heads/main", "+ refs/tags/v1"], Err("cannot be deleted")),
            (Some("main"), &["- refs/heads/old"], Ok(None)),
            (Some("main"), &["+ refs/notes/commits"], Err("refs/notes/commits")),
            (Some("main"), &["* refs/heads/main", "+ refs/berth/builds/1"], Err("refs/berth/builds/1")),
            (Some("main"), &["+ refs/heads/main/x"], Err("main/x:main")),
            (Some("main"), &["+ HEAD"], Err("not HEAD")),
            (Some("main"), &["+ refs/remotes/origin/main"], Err("mirror")),
        ];
        for (branch, lines, want) in table {
            let updates = updates(lines);
            let got = decide(&env, branch, &updates);
            match (&got, want) {
                (Ok(update), Ok(want)) => {
                    assert_eq!(update.map(|update| update.name.as_str()), want, "{branch:?} {lines:?}")
                }
                (Err(refusal), Err(text)) => {
                    assert!(refusal.render().contains(text), "{lines:?}: {}", refusal.render())
                }
                _ => panic!("{branch:?} {lines:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_push_of_too_many_refs_is_refused() {
        let env: EnvRef = "acme/shop/dev".parse().unwrap();
        let tag = |n| Update::parse(&format!("{ZEROS} {ONE} refs/tags/{n}")).unwrap();
        let tags: Vec<Update> = (0..=MAX_UPDATES).map(tag).collect();
        let refusal = decide(&env, None, &tags).unwrap_err().render();
        assert!(refusal.contains("may change 5000 refs"), "{refusal}");
        assert_eq!(decide(&env, None, &tags[1..]), Ok(None));
    }

    #[test]
    fn a_refusal_does_not_steer_the_terminal() {
        let refusal = Refusal::new("no \u{1b}[2Jbranch").detail("src/\u{202e}gpj.exe\nnext\r");
        assert_eq!(refusal.render(), " !     no ^[[2Jbranch\n       src/\\u{202e}gpj.exe\n       next^M\n");
    }

    #[test]
    fn lines_of_the_hook() {
        assert!(Update::parse(&format!("{ZEROS} {ONE} refs/heads/a b")).is_some());
        for bad in ["", "x y z", &format!("{ZEROS} {ONE}"), &format!("{ZEROS} {}g refs/heads/a", &ONE[1..])] {
            assert_eq!(Update::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn options() {
        let parse = |options: &[&str]| PushOptions::parse(&options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>());
        let all = parse(&["detach", "supersede", "no-cache"]).unwrap();
        assert_eq!(all, PushOptions { detach: true, supersede: true, no_cache: true });
        assert_eq!(parse(&[]).unwrap(), PushOptions::default());
        let refused = parse(&["ci.skip\x1b[31m"]).unwrap_err().render();
        assert!(refused.contains("git push -o supersede") && !refused.contains('\x1b'), "{refused}");
    }
}
