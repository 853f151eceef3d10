//! One build from its record to its end: pipeline, release, deployment, and what the person who pushed is told.

use std::time::Duration;

use super::{
    error::BuildError,
    output::{BuildOutput, human_duration},
    pipeline::{Pipeline, Records, Slug, Stopwatch, time_limit_error},
};
use crate::{
    deploy::{DeployFailure, Deployed, NewRelease, Progress},
    domain::{Build, BuildState, EnvRef, Environment, ProcessSpec, ProcessType, Release, ReleaseVersion, Stage},
    manifest,
    store::{Store, StoreError},
};

use std::collections::BTreeMap;

/// What a build came to.
pub struct Ended {
    pub build: Build,
    pub state: BuildState,
}

/// Takes the record's news to whoever asks for it while the build runs.
pub trait Watch: Send + Sync {
    /// The record has changed in memory.
    fn changed(&self, build: &Build);
}

/// Does all that is left of the build. The record it returns has its state, image, release and timings; it is not written yet.
pub async fn work(pipeline: &Pipeline, mut build: Build, output: &BuildOutput, watch: &dyn Watch) -> Ended {
    let result = output.with_signs_of_life(advance(pipeline, &mut build, output, watch)).await;
    let state = match result {
        Ok(deployed) => {
            farewell(pipeline, &build, &deployed, output);
            BuildState::Succeeded
        }
        Err(Failure::Superseded(by)) => BuildState::Cancelled { reason: format!("superseded by {by}") },
        Err(Failure::Failed(error)) => {
            let reason = error.to_string();
            match &error {
                BuildError::Rejected { lines, .. } => {
                    output.error(&capitalised(&reason));
                    lines.iter().for_each(|line| output.error(line));
                }
                BuildError::Platform(error) => {
                    tracing::error!(env = %build.env, build = %build.number, "a build failed for reasons of the platform: {error:#}");
                    output.error(&format!("The platform failed, not your app: {error:#}"));
                    output.error("Push again in a moment; if that fails too, tell the operator.");
                }
            }
            BuildState::Failed { reason }
        }
    };
    Ended { build, state }
}

enum Failure {
    Failed(BuildError),
    Superseded(ReleaseVersion),
}

impl<E: Into<BuildError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

async fn advance(
    pipeline: &Pipeline,
    build: &mut Build,
    output: &BuildOutput,
    watch: &dyn Watch,
) -> Result<Deployed, Failure> {
    match build.release {
        Some(version) => deploy(pipeline, build, version, output, None).await,
        None => build_and_deploy(pipeline, build, output, watch).await,
    }
}

/// What the record says since the release was made: the same transaction wrote it.
fn enter_deployment(build: &mut Build, release: &Release, watch: &dyn Watch) -> ReleaseVersion {
    build.image = Some(release.image.clone());
    build.release = Some(release.version);
    build.state = BuildState::Running { stage: Stage::Deploy };
    watch.changed(build);
    release.version
}

async fn build_and_deploy(
    pipeline: &Pipeline,
    build: &mut Build,
    output: &BuildOutput,
    watch: &dyn Watch,
) -> Result<Deployed, Failure> {
    let trace = build.trace.map(|trace| trace.context);
    let mut stopwatch = Stopwatch::start(pipeline.settings.traces.measure(trace.as_ref()));
    let limit = pipeline.settings.time_limit;
    let built = tokio::time::timeout(limit, pipeline.run(build, output, &mut stopwatch)).await;
    build.timings.append(&mut stopwatch.stages);
    if !matches!(built, Ok(Ok(_))) {
        stopwatch.failed();
    }
    let slug = built.map_err(|_| time_limit_error(limit))??;
    let processes = processes(pipeline, &build.env, &slug)?;
    let definition = &slug.description.definition;
    if let Some(app) = &definition.app
        && *app != build.env.app_ref()
    {
        return Err(
            BuildError::rejected(format!("the manifest is for {app}, the remote for {}", build.env.app_ref())).into()
        );
    }
    if slug.description.manifest.is_none() {
        output.detail("(no berth.yaml: the Procfile or the buildpack says what to run)");
    }
    let release = pipeline.parts.delivery.create_release(NewRelease {
        env: build.env.clone(),
        image: slug.image.clone(),
        commit: build.commit.clone(),
        build: Some(build.number),
        processes,
        release_command: definition.release.clone(),
        upgrade: definition.upgrade.clone(),
        domains: definition.domains.clone(),
        cron: definition.cron_jobs(&pipeline.settings.process_defaults),
        created_by: build.pushed_by.clone(),
        reason: reason(build, &slug.subject),
        run_release_phase: true,
        trace,
    });
    stopwatch.doing("release");
    let release = release.await.inspect_err(|_| stopwatch.failed())?;
    drop(slug.published);
    stopwatch.lap("release");
    build.timings.append(&mut stopwatch.stages);
    let version = enter_deployment(build, &release, watch);
    deploy(pipeline, build, version, output, Some(&slug.records)).await
}

/// Why the release exists: `push 1a2b3c4`, with the subject of the commit.
fn reason(build: &Build, subject: &str) -> String {
    let subject: String = subject.chars().filter(|c| !c.is_control()).take(60).collect();
    let what = if build.branch.is_some() { "push" } else { "build" };
    if subject.is_empty() {
        format!("{what} {}", &build.commit[..7])
    } else {
        format!("{what} {}: {subject}", &build.commit[..7])
    }
}

fn processes(pipeline: &Pipeline, env: &EnvRef, slug: &Slug) -> Result<BTreeMap<ProcessType, ProcessSpec>, BuildError> {
    let Slug { description, defaults, buildpacks, .. } = slug;
    let procfile = description.procfile.as_deref();
    let resolved = manifest::resolve(
        description.manifest.as_ref(),
        procfile,
        defaults,
        &env.env,
        &pipeline.settings.process_defaults,
    );
    let found = match resolved {
        Ok(processes) if processes.keys().any(ProcessType::is_web) => return Ok(processes),
        Ok(processes) => processes.keys().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        Err(_) => "none".to_owned(),
    };
    let state = |there: bool| if there { "there, without `web`" } else { "not there" };
    let yaml = description.manifest.is_some();
    Err(BuildError::Rejected {
        reason: "there is no web process".to_owned(),
        lines: vec![
            format!(
                "Looked in: berth.yaml ({}), Procfile ({}), the default of the buildpack {} ({}).",
                state(yaml),
                state(procfile.is_some()),
                buildpacks.join(", "),
                if defaults.is_empty() { "it has none" } else { "it has no `web`" }
            ),
            format!("Process types found: {found}."),
            "Add a Procfile with a line such as `web: node server.js`, or processes.web.command to berth.yaml."
                .to_owned(),
        ],
    })
}

/// Deploys; what is to be remembered is written meanwhile.
async fn deploy(
    pipeline: &Pipeline,
    build: &mut Build,
    version: ReleaseVersion,
    output: &BuildOutput,
    records: Option<&Records>,
) -> Result<Deployed, Failure> {
    let parts = &pipeline.parts;
    tell_scale(&parts.store, &build.env, version, output).await?;
    output.doing("waiting for the new release to become healthy");
    let write = async {
        if let Some(records) = records {
            pipeline.remember(records).await;
        }
    };
    let (deployed, ()) = futures::join!(parts.delivery.deploy(&build.env, version, output), write);
    match deployed {
        Ok(mut deployed) => {
            build.timings.append(&mut deployed.timings.clone());
            deployed.timings.clear();
            Ok(deployed)
        }
        Err(DeployFailure::Superseded { by }) => {
            output.error(&format!("Release {version} was superseded by {by} before it was live."));
            Err(Failure::Superseded(by))
        }
        Err(DeployFailure::Failed { release, reason, last_log_lines }) => {
            let mut lines = Vec::new();
            if !last_log_lines.is_empty() {
                lines.push(format!("The last lines of the log of {release}:"));
                lines.extend(last_log_lines.iter().map(|line| format!("  {line}")));
            }
            Err(BuildError::Rejected { reason: format!("release {release} was not deployed: {reason}"), lines }.into())
        }
        Err(DeployFailure::Store(error)) => Err(error.into()),
    }
}

/// Writes a build's record anew. One that is gone stays gone: its environment was destroyed, and may have been made anew.
pub async fn write(store: &Store, build: &Build) -> Result<(), StoreError> {
    let id = (build.env.clone(), build.number);
    let change = |record: &mut Build| {
        let cancelling = record.cancelling.take();
        record.clone_from(build);
        // Decided meanwhile, and true until the build has ended.
        if !build.state.is_final() {
            record.cancelling = cancelling;
        }
        Ok(())
    };
    match store.modify::<Build, StoreError>(&id, change).await {
        Ok(_) | Err(StoreError::Missing(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Says which numbers of replicas are those of `scale` and not the manifest's.
async fn tell_scale(
    store: &Store,
    env: &EnvRef,
    version: ReleaseVersion,
    output: &BuildOutput,
) -> Result<(), StoreError> {
    let Some(environment) = store.get::<Environment>(env).await?.filter(|found| !found.scale.is_empty()) else {
        return Ok(());
    };
    let release = store.need::<Release>(&(env.clone(), version)).await?;
    for (process, spec) in &release.processes {
        if let Some(count) = environment.scale.get(process).filter(|count| **count != spec.replicas) {
            let (replicas, manifest) = (plural(*count), spec.replicas);
            output.detail(&format!(
                "{process}: {replicas} as set by scale (manifest: {manifest}); scale {env} --reset goes back"
            ));
        }
    }
    Ok(())
}

fn plural(replicas: u32) -> String {
    if replicas == 1 { "1 replica".to_owned() } else { format!("{replicas} replicas") }
}

/// The end of the output: release, URL, and time from push to live.
fn farewell(pipeline: &Pipeline, build: &Build, deployed: &Deployed, output: &BuildOutput) {
    if pipeline.settings.print_timings {
        let stages: Vec<_> = build.timings.iter().map(|(stage, millis)| format!("{stage} {millis}")).collect();
        output.detail(&format!("timings (ms): {}", stages.join(", ")));
    }
    // Receiving and waiting; by their durations, since the time of day may have jumped.
    let begun = build.timings.iter().rposition(|(stage, _)| stage == "queued").map_or(0, |place| place + 1);
    let before: u64 = build.timings[..begun].iter().map(|(_, millis)| millis).sum();
    let total = Duration::from_millis(before) + output.age();
    output.heading(&format!("{} is live: release {}", build.env, deployed.release));
    output.detail(&deployed.url);
    output.detail(&format!("{} from push to live", human_duration(total)));
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
