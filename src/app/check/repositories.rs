//! An environment's records and its repository.

use std::collections::BTreeSet;

use super::{Check, Mending, Problem, Records};
use crate::{
    domain::{Build, BuildState, EnvRef, Environment},
    git::{GitError, PINS, Repositories, full_commit, pin_name, short_branch},
    store::Stored,
};

/// What a branch that does not exist points at.
const NOWHERE: &str = "0000000000000000000000000000000000000000";

/// What a repair does.
enum Mend {
    Make,
    Pin(Box<Build>),
    Unpin(String),
    Branch { name: String, commit: String },
}

impl Check {
    pub(super) async fn repository(
        &self,
        env: &Stored<Environment>,
        records: &Records,
        mending: &Mending,
    ) -> Vec<Problem> {
        let builds = records.builds.get(&env.name).cloned().unwrap_or_default();
        let releases = records.releases.get(&env.name).map_or(&[][..], Vec::as_slice);
        let current = releases.iter().find(|release| Some(release.version) == env.current);
        let needed = current.map(|release| (release.version.to_string(), release.commit.clone()));
        let (record, mending) = (env.record.clone(), mending.clone());
        let worked = self.with_repositories(move |repositories| {
            let found = compare(repositories, &record, &builds, needed);
            let mended = found.into_iter().map(|(problem, mend)| match mend {
                Some(mend) if mending.may(&problem) => {
                    problem.tried(apply(repositories, &record.name, mend).map_err(Into::into))
                }
                _ => problem,
            });
            Ok(mended.collect())
        });
        worked
            .await
            .unwrap_or_else(|error| vec![Problem::new(format!("{}: {error:#}", env.name), "see the server's log")])
    }
}

fn compare(
    repositories: &Repositories,
    env: &Environment,
    builds: &[Build],
    current: Option<(String, String)>,
) -> Vec<(Problem, Option<Mend>)> {
    let name = &env.name;
    let mut found = Vec::new();
    // It is made by the first push.
    if !repositories.path(name).exists() {
        if env.last_build > 0 {
            let what = format!("the repository of {name} is missing; what runs goes on, redeploy and promote cannot");
            let problem = Problem::mendable(what, "make an empty one").then("push again, or restore a backup");
            found.push((problem, Some(Mend::Make)));
        }
        return found;
    }
    let refs = match repositories.refs(name) {
        Ok(refs) => refs,
        Err(error) => {
            let what = format!("the repository of {name} cannot be read: {error}");
            let next = format!(
                "move {} aside, repair again, and push again; or restore a backup",
                repositories.path(name).display()
            );
            found.push((Problem::new(what, next), None));
            return found;
        }
    };
    let has = |commit: &str| full_commit(repositories, name, commit).unwrap_or(false);
    if let Some((version, commit)) = current.filter(|(_, commit)| !has(commit)) {
        let what = format!("commit {commit:.12} of {name} {version}, which runs, is not in the repository");
        found.push((Problem::new(what, "what runs goes on; push that commit again, or restore a backup"), None));
    }
    for build in builds.iter().filter(|build| !build.state.is_final()) {
        let what = |what: &str| {
            format!("commit {:.12} of build {} of {name}, which is not over, {what}", build.commit, build.number)
        };
        if !has(&build.commit) {
            let next = format!("builds cancel {name} {}, and push again", build.number);
            found.push((Problem::new(what("is not in the repository"), next), None));
        } else if !refs.targets.contains_key(&pin_name(build.number)) {
            found.push((Problem::mendable(what("is not pinned"), "pin it"), Some(Mend::Pin(Box::new(build.clone())))));
        }
    }
    let known: BTreeSet<String> = builds.iter().map(|build| pin_name(build.number)).collect();
    for pin in refs.targets.keys().filter(|target| target.starts_with(PINS) && !known.contains(*target)) {
        // Old builds' records may be gone; a number that was never given out belongs to nothing.
        let number = pin[PINS.len()..].parse::<u64>().ok();
        if number.is_none_or(|number| number > env.last_build) {
            let problem = Problem::mendable(format!("{pin} of {name} belongs to no build"), "delete it");
            found.push((problem, Some(Mend::Unpin(pin.clone()))));
        }
    }
    let branch = env.deploy_branch.as_ref().map(|branch| format!("refs/heads/{}", short_branch(branch)));
    if let Some(branch) = branch.filter(|branch| !refs.targets.contains_key(branch)) {
        let of_branch = |build: &&Build| build.state == BuildState::Succeeded && build.branch.as_ref() == Some(&branch);
        let newest =
            builds.iter().filter(of_branch).max_by_key(|build| build.number).filter(|build| has(&build.commit));
        let what = format!("the branch {} of {name}, which is deployed, does not exist", short_branch(&branch));
        found.extend(newest.map(|build| {
            let mend = Mend::Branch { name: branch.clone(), commit: build.commit.clone() };
            (Problem::mendable(what, "make it at the commit last deployed from it"), Some(mend))
        }));
    }
    found
}

fn apply(repositories: &Repositories, env: &EnvRef, mend: Mend) -> Result<(), GitError> {
    match mend {
        Mend::Make => repositories.ensure(env).map(drop),
        Mend::Pin(build) => repositories.pin(env, build.number, &build.commit),
        Mend::Unpin(name) => repositories.delete_ref(env, &name),
        Mend::Branch { name, commit } => repositories.move_branch(env, &name, NOWHERE, &commit).map(drop),
    }
}
