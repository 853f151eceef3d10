//! What a push is told whose build has ended and not come to anything that serves.

use super::{Receive, Refusal};
use crate::{
    domain::{Build, BuildState, Deployment, DeploymentState, Environment, Release, ReleaseVersion, still_serving},
    store::StoreError,
};

/// What is known of a release that was made and is not deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Undeployed {
    version: ReleaseVersion,
    /// How its deployment ended, if it has.
    end: Option<DeploymentState>,
    /// Its release phase has succeeded, or there was none.
    phase_done: bool,
    /// What was deployed with success before.
    serves: Option<ReleaseVersion>,
}

impl Receive {
    /// The answer to a push whose build has failed: the build itself, or the deployment of what it has made.
    pub(super) async fn failure(&self, build: &Build) -> Refusal {
        match self.undeployed(build).await {
            Ok(undeployed) => failure(build, undeployed.as_ref()),
            Err(error) => {
                tracing::error!(env = %build.env, number = %build.number, %error, "what came of a release could not be read");
                failure(build, None)
            }
        }
    }

    async fn undeployed(&self, build: &Build) -> Result<Option<Undeployed>, StoreError> {
        let Some(version) = build.release else { return Ok(None) };
        let (store, id) = (&self.0.store, (build.env.clone(), version));
        let end = store.get::<Deployment>(&id).await?.map(|stored| stored.record.state);
        let phase_done = store.get::<Release>(&id).await?.is_none_or(|stored| stored.record.release_phase_done);
        let serves = store.get::<Environment>(&build.env).await?.and_then(|stored| stored.record.current);
        Ok(Some(Undeployed { version, end: end.filter(|end| *end != DeploymentState::Running), phase_done, serves }))
    }
}

fn failure(build: &Build, undeployed: Option<&Undeployed>) -> Refusal {
    let (env, number) = (&build.env, build.number);
    let Some(Undeployed { version, end, phase_done, serves }) = undeployed else {
        return Refusal::new(format!("Push rejected: build {number} failed"))
            .detail(format!("See its output again with: builds logs {env} {number}"));
    };
    let what = match end {
        Some(DeploymentState::Cancelled { by }) => {
            format!("the deployment of its release {version} was cancelled by {by}")
        }
        Some(DeploymentState::Failed { .. }) if !phase_done => {
            format!("the release phase of its release {version} failed")
        }
        Some(DeploymentState::Failed { .. }) => format!("its release {version} did not become ready"),
        _ => format!("its release {version} is not deployed yet"),
    };
    let serving = still_serving(*serves);
    let logs = if *phase_done { String::new() } else { " --process release".to_owned() };
    Refusal::new(format!("Push rejected: build {number} succeeded, but {what}; {serving}"))
        .detail(format!("See what it said:      logs {env}{logs}"))
        .detail(format!("See how it went:       deployments info {env} {version}"))
        .detail(format!("See this output again: builds logs {env} {number}"))
}

/// What a push is told whose build has ended, which the server cannot write down.
pub(super) fn unrecorded(build: &Build) -> Refusal {
    let (env, number) = (&build.env, build.number);
    let (ended, then) = match (&build.state, build.release) {
        (BuildState::Succeeded, _) => {
            ("succeeded and its release serves".to_owned(), " The branch moves as soon as it can.")
        }
        (BuildState::Cancelled { .. }, _) => ("was cancelled".to_owned(), ""),
        (_, Some(version)) => (format!("succeeded and its release {version} was not deployed"), ""),
        (_, None) => ("failed".to_owned(), ""),
    };
    Refusal::new(format!("Build {number} {ended}, but the server could not record that yet: its store takes nothing."))
        .detail(format!("It goes on trying.{then}"))
        .detail(format!("See what is recorded: builds info {env} {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{BuildNumber, Timestamp};

    fn build(release: Option<u64>) -> Build {
        Build {
            env: "acme/shop/dev".parse().unwrap(),
            number: BuildNumber(5),
            commit: "1a".repeat(20),
            branch: Some("refs/heads/main".into()),
            old_commit: None,
            state: BuildState::Failed { reason: "x".into() },
            queued_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            pushed_by: "dan".parse().unwrap(),
            no_cache: false,
            detached: false,
            image: None,
            release: release.map(ReleaseVersion),
            timings: Vec::new(),
            interruptions: 0,
            cancelling: None,
            held: false,
            settled: false,
            trace: None,
        }
    }

    #[test]
    fn a_build_is_not_blamed_for_its_release() {
        let failed = || Some(DeploymentState::Failed { reason: "web.1 exited with status 3".into() });
        let cancelled = || Some(DeploymentState::Cancelled { by: "eve".parse().unwrap() });
        for (end, phase_done, serves, want) in [
            (failed(), true, Some(2), "its release v3 did not become ready; v2, the one before, goes on serving"),
            (failed(), true, None, "its release v3 did not become ready; nothing served before, so nothing serves now"),
            (failed(), false, Some(2), "the release phase of its release v3 failed; v2, the one before"),
            (cancelled(), true, Some(2), "the deployment of its release v3 was cancelled by eve; v2"),
            (None, true, Some(2), "its release v3 is not deployed yet; v2"),
        ] {
            let serves = serves.map(ReleaseVersion);
            let undeployed = Undeployed { version: ReleaseVersion(3), end, phase_done, serves };
            let text = failure(&build(Some(3)), Some(&undeployed)).render();
            assert!(text.starts_with(&format!(" !     Push rejected: build 5 succeeded, but {want}")), "{text}");
            assert!(
                text.contains("deployments info acme/shop/dev v3\n") && text.contains("logs acme/shop/dev"),
                "{text}"
            );
            assert_eq!(text.contains("--process release"), !phase_done, "{text}");
            assert!(!text.contains("failed") || !phase_done, "{text}");
        }
        let text = unrecorded(&build(Some(3))).render();
        assert!(
            text.contains("Build 5 succeeded and its release v3 was not deployed, but the server could not"),
            "{text}"
        );
        assert!(unrecorded(&build(None)).render().contains("Build 5 failed, but the server could not"));
        let text = failure(&build(None), None).render();
        assert!(
            text.contains("Push rejected: build 5 failed\n") && text.contains("builds logs acme/shop/dev 5"),
            "{text}"
        );
    }
}
