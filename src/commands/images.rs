//! Deploying an image that is in the registry already: `deploy`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::{Answer, Caller, CommandError, CommandIo, Commands, error::logged, nouns};
use crate::{
    build::oversized,
    deploy::NewRelease,
    domain::{Digest, EnvRef, ImageRef, ProcessSpec, ProcessType, Release, UpgradePolicy, Verb},
    manifest::{self, render_problems},
    registry::{Registry, RegistryError},
};

/// Largest image configuration that is read, bytes.
const MAX_CONFIG: usize = 4 << 20;
/// Where an image says which commit it was built from (OCI image spec, "Pre-Defined Annotation Keys").
const REVISION: &str = "org.opencontainers.image.revision";
/// The commit of an image that does not say.
const UNKNOWN_COMMIT: &str = "0000000000000000000000000000000000000000";
/// What the words for processes are called in messages.
const PROCESSES: &str = "processes";

/// The parts of an image's manifest and configuration (OCI image spec) that matter here.
#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
}

#[derive(Deserialize)]
struct ImageConfig {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<ContainerConfig>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ContainerConfig {
    labels: Option<BTreeMap<String, String>>,
}

impl Commands {
    /// Makes a release of an image in Berth's own registry, which must be one of the same tenant's, and lets its deployment begin. It runs
    /// with the environment's configuration, and with `processes` (a map as in `berth.yaml`, JSON or YAML in braces), else those of the
    /// newest release of that image, else those of the current release. The release phase runs where the image has not run yet.
    ///
    /// # Errors
    /// [`CommandError::Usage`] when the image is not named by its digest, [`CommandError::NotFound`] when the registry has no such image
    /// of this tenant, [`CommandError::Unfit`] when it or its processes cannot be run, [`CommandError::Conflict`] while a build is under
    /// way.
    pub async fn deploy_image(
        &self,
        caller: &Caller,
        env: &EnvRef,
        image: &str,
        processes: Option<&str>,
    ) -> Result<Release, CommandError> {
        self.env_for(caller, Verb::Push, env).await?;
        let image = parse_image(image, self.registry.address())?;
        let none = || {
            let tenant = &env.tenant;
            CommandError::NotFound(format!("the registry has no image {image} of {tenant}; see `releases info {env}`"))
        };
        if image.app().is_none_or(|app| app.tenant != env.tenant) {
            return Err(none());
        }
        self.refuse_while_building(env).await?;
        // Until the release names it.
        let _kept = self.publishing.enter().await;
        let config = self.image_config(&image).await?.ok_or_else(none)?;
        let new = self.release_of(caller, env, image, config, processes).await?;
        let release = self.deployer.create_target(new).await?;
        self.deployer.nudge(env);
        Ok(release)
    }

    /// `deploy`.
    pub(super) async fn deploy_and_answer(
        &self,
        caller: &Caller,
        args: nouns::Deploy,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        let nouns::Deploy { env, image, processes, detach } = args;
        let version = self.deploy_image(caller, &env, &image, processes.as_deref()).await?.version;
        if detach {
            let human = format!("{version} is being deployed to {env}; see `deployments info {env} {version}`");
            return Ok(Answer::new(human, json!({"env": env, "release": version})));
        }
        self.deploy_and_say(&env, version, io).await
    }

    /// What the image says of itself; `None` when it or a part of it is not there.
    async fn image_config(&self, image: &ImageRef) -> Result<Option<ImageConfig>, CommandError> {
        let registry = &*self.registry;
        let found = read_config(registry, image).await.map_err(|error| match error {
            RegistryError::Unavailable { .. } => CommandError::TryLater(error.to_string()),
            error => logged(error.into(), format!("the image {image} cannot be looked at")),
        })?;
        let Some(bytes) = found else { return Ok(None) };
        let unfit = |why: String| CommandError::Unfit(format!("{image} cannot be run here: {why}"));
        let config: ImageConfig = serde_json::from_slice(&bytes)
            .map_err(|error| unfit(format!("its configuration cannot be read: {error}")))?;
        if (config.os.as_str(), config.architecture.as_str()) != ("linux", architecture()) {
            return Err(unfit(format!(
                "it is for {}/{}, this server for linux/{}",
                config.os,
                config.architecture,
                architecture()
            )));
        }
        Ok(Some(config))
    }

    async fn release_of(
        &self,
        caller: &Caller,
        env: &EnvRef,
        image: ImageRef,
        config: ImageConfig,
        processes: Option<&str>,
    ) -> Result<NewRelease, CommandError> {
        let given = processes.map(|text| self.processes_of(env, text)).transpose()?;
        let of_image = self.newest_release(&env.to_string(), &image).await?;
        let ran_here = of_image.as_ref().is_some_and(|release| release.release_phase_done);
        let build = of_image.as_ref().and_then(|release| release.build);
        let of_image = match of_image {
            Some(release) => Some(release),
            None => self.newest_release(&env.tenant.to_string(), &image).await?,
        };
        let labels = config.config.and_then(|config| config.labels).unwrap_or_default();
        let revision = labels.get(REVISION).filter(|commit| is_commit(commit)).cloned();
        let commit = of_image.as_ref().map(|release| release.commit.clone()).or(revision);
        let model = match of_image {
            Some(release) => Some(release),
            None => self.current_release(env).await?,
        };
        let unknown = || {
            let text =
                format!("nothing is known of what runs in {image}; say it with --processes '{{web: {{command: …}}}}'");
            CommandError::Unfit(text)
        };
        let processes =
            given.or_else(|| model.as_ref().map(|release| release.processes.clone())).ok_or_else(unknown)?;
        let short = &image.digest.hex()[..12];
        let app = image.app().filter(|app| *app != env.app_ref());
        let reason = app.map_or_else(|| format!("image {short}"), |app| format!("image {short} of {app}"));
        Ok(NewRelease {
            env: env.clone(),
            image,
            commit: commit.unwrap_or_else(|| UNKNOWN_COMMIT.to_owned()),
            build,
            processes,
            release_command: model.as_ref().and_then(|release| release.release_command.clone()),
            upgrade: model.as_ref().map_or_else(UpgradePolicy::default, |release| release.upgrade.clone()),
            // Those of another environment are its own.
            domains: model
                .as_ref()
                .filter(|release| release.env == *env)
                .map(|release| release.domains.clone())
                .unwrap_or_default(),
            cron: model.map(|release| release.cron).unwrap_or_default(),
            created_by: caller.user.clone(),
            reason,
            run_release_phase: !ran_here,
            trace: caller.trace,
        })
    }

    /// The newest release of an image below `prefix/`.
    async fn newest_release(&self, prefix: &str, image: &ImageRef) -> Result<Option<Release>, CommandError> {
        let releases = self.store.list::<Release>(&format!("{prefix}/")).await?.into_iter().map(|stored| stored.record);
        Ok(releases.filter(|release| release.image == *image).max_by_key(|release| release.created_at))
    }

    async fn current_release(&self, env: &EnvRef) -> Result<Option<Release>, CommandError> {
        let Some(version) = self.store.need::<crate::domain::Environment>(env).await?.current else { return Ok(None) };
        Ok(Some(self.release(env, version).await?.record))
    }

    /// The processes that were given, as those of a manifest.
    fn processes_of(&self, env: &EnvRef, text: &str) -> Result<BTreeMap<ProcessType, ProcessSpec>, CommandError> {
        let text = text.trim();
        if !text.starts_with('{') {
            let text = "write the processes as a map in braces: '{web: {command: node server.js}}'";
            return Err(CommandError::Usage(text.into()));
        }
        let parsed = manifest::parse(format!("processes: {text}\n"), PROCESSES);
        let definition =
            parsed.map_err(|problems| CommandError::Unfit(render_problems(&problems)))?.for_environment(&env.env);
        if !definition.processes.keys().any(ProcessType::is_web) {
            return Err(CommandError::Unfit("there is no `web` among the processes".into()));
        }
        let oversized = oversized(&definition, self.settings.largest_process);
        if !oversized.is_empty() {
            return Err(CommandError::Unfit(oversized.join("\n")));
        }
        let defaults = &self.settings.process_defaults;
        Ok(definition.processes.iter().map(|(name, process)| (name.clone(), process.to_spec(name, defaults))).collect())
    }
}

/// The image's configuration, if all of the image is there.
async fn read_config(registry: &dyn Registry, image: &ImageRef) -> Result<Option<Vec<u8>>, RegistryError> {
    let ImageRef { repository, digest } = image;
    let Some(manifest) = registry.manifest(repository, digest.as_str()).await? else { return Ok(None) };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&manifest) else { return Ok(None) };
    for layer in &manifest.layers {
        if !registry.has(repository, &layer.digest).await? {
            return Ok(None);
        }
    }
    registry.small_blob(repository, &manifest.config.digest, MAX_CONFIG).await
}

/// `REPOSITORY@sha256:…`, with or without the address of the registry, which is ours.
fn parse_image(text: &str, address: &str) -> Result<ImageRef, CommandError> {
    let usage = |why: &str| Err(CommandError::Usage(format!("{why}; write it as berth/TENANT/APP@sha256:…")));
    let path = text.strip_prefix(address).and_then(|rest| rest.strip_prefix('/')).unwrap_or(text);
    let (name, digest) = path.split_once('@').unwrap_or((path, ""));
    if name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        return usage("a tag may come to name another image, so an image is named by its digest alone");
    }
    let Ok(digest) = digest.parse() else {
        return usage("an image is named by its digest, 64 hexadecimal digits after sha256:");
    };
    let host = name.split('/').next().unwrap_or_default();
    if host.contains(['.', ':']) || host == "localhost" {
        return usage("only images in the server's own registry can be deployed");
    }
    Ok(ImageRef { repository: name.to_owned(), digest })
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// This machine's, in OCI's (Go's) words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_by_digest_alone() {
        let digest = format!("sha256:{}", "1a".repeat(32));
        let image = |text: String| parse_image(&text, "127.0.0.1:5000");
        for text in [format!("berth/acme/shop@{digest}"), format!("127.0.0.1:5000/berth/acme/shop@{digest}")] {
            let found = image(text).unwrap();
            assert_eq!((found.repository.as_str(), found.digest.as_str()), ("berth/acme/shop", digest.as_str()));
        }
        for (text, why) in [
            ("berth/acme/shop:v1".to_owned(), "a tag"),
            (format!("berth/acme/shop:v1@{digest}"), "a tag"),
            ("berth/acme/shop".to_owned(), "by its digest"),
            ("berth/acme/shop@sha256:12".to_owned(), "by its digest"),
            (format!("docker.io/library/nginx@{digest}"), "own registry"),
            (format!("localhost/x@{digest}"), "own registry"),
            (String::new(), "by its digest"),
        ] {
            let error = image(text.clone()).unwrap_err();
            assert!(error.exit_status() == 2 && error.to_string().contains(why), "{text}: {error}");
        }
    }
}
