//! Bringing images to the engine, and taking them away again.

use std::{collections::HashSet, time::Duration};

use bollard::{
    auth::DockerCredentials,
    errors::Error,
    models::ContainerSummary,
    query_parameters::{CreateImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder},
};
use futures::StreamExt;

use super::{
    engine::{Engine, failed, status, whole},
    locks::KeyedLocks,
};
use crate::domain::ImageRef;
use crate::runtime::RuntimeError;

/// Without any progress for this long, a pull is given up.
const PULL_STALLED: Duration = Duration::from_secs(120);

/// Pulls under way, by image: whoever asks for one that is being pulled waits for it.
pub type Pulls = KeyedLocks<String>;

/// Pulls the image unless the engine has it.
pub async fn pull(engine: &Engine, image: &ImageRef) -> Result<(), RuntimeError> {
    let name = engine.recipe.image(image);
    let _turn = engine.pulls.lock(name.clone()).await;
    match whole(engine.docker.inspect_image(&name)).await {
        Ok(_) => return Ok(()),
        Err(error) if status(&error) == Some(404) => {}
        Err(error) => return Err(failed(&format!("looking for image {image}"), &error)),
    }
    let reason = |reason: String| RuntimeError::Image { image: name.clone(), reason };
    let silent = |reason: String| RuntimeError::Registry { image: name.clone(), reason };
    let login = engine.recipe.settings.registry_login.clone().map(|(user, password)| DockerCredentials {
        username: Some(user),
        password: Some(password),
        serveraddress: Some(engine.recipe.settings.registry.clone()),
        ..Default::default()
    });
    let options = CreateImageOptionsBuilder::default().from_image(&name).build();
    let mut progress = Box::pin(engine.docker.create_image(Some(options), None, login));
    loop {
        match tokio::time::timeout(PULL_STALLED, progress.next()).await {
            Ok(Some(Ok(_))) => {}
            Ok(None) => return Ok(()),
            Ok(Some(Err(
                Error::DockerResponseServerError { message, .. } | Error::DockerStreamError { error: message },
            ))) => {
                return Err(if unreachable(&message) { silent(message) } else { reason(message) });
            }
            Ok(Some(Err(error))) => return Err(failed(&format!("pulling image {image}"), &error)),
            Err(_) => return Err(silent(format!("no progress for {} s", PULL_STALLED.as_secs()))),
        }
    }
}

/// Whether the engine could not reach the registry, or was cut off. It says so in words only: those of Go's network library, and of a
/// registry (or a proxy before it) that is overloaded.
fn unreachable(message: &str) -> bool {
    const WORDS: [&str; 12] = [
        "connection refused",
        "connection reset",
        "no route to host",
        "network is unreachable",
        "no such host",
        "i/o timeout",
        "TLS handshake timeout",
        "deadline exceeded",
        "Client.Timeout exceeded",
        "EOF",
        "502 Bad Gateway",
        "503 Service Unavailable",
    ];
    WORDS.iter().any(|words| message.contains(words))
}

/// Images that came from Berth's registry, are not in `keep`, and belong to no container: name and bytes.
pub async fn surplus(engine: &Engine, keep: &[ImageRef]) -> Result<Vec<(String, u64)>, RuntimeError> {
    let keep: HashSet<String> = keep.iter().map(|image| engine.recipe.image(image)).collect();
    let settings = &engine.recipe.settings;
    let ours = format!("{}/{}", settings.registry, settings.repository_prefix);
    let options = ListImagesOptionsBuilder::default().build();
    let images = whole(engine.docker.list_images(Some(options))).await;
    let images = images.map_err(|error| failed("listing images", &error))?;
    // The engine lets an image be removed by digest while a stopped container is made from it; a replica about to be replaced
    // would then have to pull.
    let containers: Vec<ContainerSummary> = engine.list(vec![engine.recipe.names.instance_filter()]).await?;
    let used: HashSet<String> = containers.into_iter().filter_map(|container| container.image_id).collect();
    let mut surplus = Vec::new();
    for image in images.into_iter().filter(|image| !used.contains(&image.id)) {
        let bytes = u64::try_from(image.size).unwrap_or(0);
        let names = image.repo_digests.into_iter().filter(|name| name.starts_with(&ours) && !keep.contains(name));
        surplus.extend(names.map(|name| (name, bytes)));
    }
    Ok(surplus)
}

/// Removes what [`surplus`] finds. Returns how many.
pub async fn collect(engine: &Engine, keep: &[ImageRef]) -> Result<usize, RuntimeError> {
    let (mut removed, mut failure) = (0, None);
    for (name, _) in surplus(engine, keep).await? {
        let _turn = engine.pulls.lock(name.clone()).await;
        let options = RemoveImageOptionsBuilder::default().build();
        match engine.docker.remove_image(&name, Some(options), None).await {
            Ok(_) => removed += 1,
            // Gone already, or a container was made from it this moment.
            Err(error) if matches!(status(&error), Some(404 | 409)) => {}
            Err(error) => {
                let error = failed(&format!("removing image {name}"), &error);
                tracing::warn!(%error, "an image stays on the engine until the next round");
                failure.get_or_insert(error);
            }
        }
    }
    match failure {
        // The others are gone all the same.
        Some(error) if removed == 0 => Err(error),
        _ => Ok(removed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_says_of_a_registry() {
        for (message, passing) in [
            ("Get \"http://127.0.0.1:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused", true),
            (
                "Get \"http://127.0.0.1:5000/v2/\": net/http: request canceled (Client.Timeout exceeded while awaiting headers)",
                true,
            ),
            ("error pulling image configuration: unexpected EOF", true),
            ("received unexpected HTTP status: 503 Service Unavailable", true),
            ("manifest for 127.0.0.1:5000/berth/acme/shop@sha256:0 not found: manifest unknown", false),
            ("pull access denied for berth/acme/shop, repository does not exist", false),
        ] {
            assert_eq!(unreachable(message), passing, "{message}");
        }
    }
}
