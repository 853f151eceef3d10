//! Whether the images that releases name are where they are needed.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Check, Problem, Records};
use crate::{
    domain::{ImageRef, Release},
    plan::retention,
    registry::RegistryError,
};

/// For all images together.
const IMAGES_DEADLINE: Duration = Duration::from_secs(300);

impl Check {
    /// Images of releases that run or may be rolled back to: in the registry, and (of what runs) on the engine.
    pub(super) async fn images(
        &self,
        problems: &mut Vec<Problem>,
        records: &Records,
        repair: bool,
    ) -> anyhow::Result<()> {
        let mut seen = BTreeSet::new();
        let deadline = Instant::now() + IMAGES_DEADLINE;
        for env in records.environments.values() {
            let releases = records.releases.get(&env.name).map_or(&[][..], Vec::as_slice);
            for (name, image) in retention::images(releases) {
                if !seen.insert(name) {
                    continue;
                }
                let used = releases.iter().filter(|release| release.image == *image).map(|release| release.version);
                let versions: Vec<String> = used.map(|version| version.to_string()).collect();
                let runs =
                    releases.iter().any(|release| release.image == *image && env.current == Some(release.version));
                let next = if runs {
                    format!("what runs goes on; make it anew before it has to be pulled: redeploy {}", env.name)
                } else {
                    format!("it cannot be rolled back to; redeploy {} if you need that commit", env.name)
                };
                // It has waited for the registry already: an answer for each image would take that long again.
                let Ok(found) = timeout_at(deadline, self.in_registry(image)).await else {
                    let what = "the registry has not answered in time: the other images were not looked for".to_owned();
                    problems.push(Problem::new(what, "see that the registry answers, then look again"));
                    return Ok(());
                };
                match found {
                    Ok(true) if runs && repair => self.pull(problems, image).await,
                    Ok(true) => {}
                    // Somebody may have removed it meanwhile, and its image then.
                    Ok(false) if !self.is_kept(image).await? => {}
                    Ok(false) => {
                        let what = format!(
                            "the image of {} {} is not in the registry, or not whole",
                            env.name,
                            versions.join(", ")
                        );
                        problems.push(Problem::new(what, next));
                    }
                    Err(error) => {
                        let what = format!(
                            "the image of {} {} cannot be looked for: {error:#}",
                            env.name,
                            versions.join(", ")
                        );
                        problems.push(Problem::new(what, "see that the registry answers, then look again"));
                        if error
                            .downcast_ref::<RegistryError>()
                            .is_some_and(|error| matches!(error, RegistryError::Unavailable { .. }))
                        {
                            let what = "the registry is away: the other images were not looked for".to_owned();
                            problems.push(Problem::new(what, "see that the registry answers, then look again"));
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a release is there that has this image.
    async fn is_kept(&self, image: &ImageRef) -> anyhow::Result<bool> {
        let releases = self.store.list::<Release>("").await?;
        Ok(releases.iter().any(|release| release.record.image == *image))
    }

    async fn in_registry(&self, image: &ImageRef) -> anyhow::Result<bool> {
        let Some(manifest) = self.registry.manifest(&image.repository, image.digest.as_str()).await? else {
            return Ok(false);
        };
        let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
        let layers = manifest["layers"].as_array().into_iter().flatten();
        for blob in [&manifest["config"]].into_iter().chain(layers) {
            let digest = blob["digest"].as_str().unwrap_or_default().parse()?;
            if !self.registry.has(&image.repository, &digest).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Brings an image back to the engine; there already is what it finds nearly always.
    async fn pull(&self, problems: &mut Vec<Problem>, image: &ImageRef) {
        if let Err(error) = self.runtime.prepare_image(image).await {
            let what = format!("the image {image} cannot be brought to the engine: {error}");
            problems.push(Problem::new(what, "see that the engine reaches the registry, then repair again"));
        }
    }
}
