//! The engine's API as the other parts use it: deadlines, errors sorted, creation and removal that are safe to repeat.

use std::{collections::HashMap, time::Duration};

use bollard::{
    Docker,
    errors::Error,
    models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary},
    query_parameters::{
        CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
        RenameContainerOptionsBuilder, StopContainerOptions, StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use futures::StreamExt;

use super::{container::Recipe, hold::Holds, images};
use crate::domain::ImageRef;
use crate::runtime::RuntimeError;

/// How long the engine may take to answer a call that does no long work by itself; generous, since a busy disk makes starts slow.
const CALL_DEADLINE: Duration = Duration::from_secs(120);
/// How long it may take to take a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long moving an archive into or out of a container may take.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(30 * 60);
/// What the engine gives a container that was made without a time to stop in.
const ENGINE_GRACE: Duration = Duration::from_secs(10);
/// How long a removal that somebody else began may take.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(60);

/// The connection, and what containers are made from.
#[derive(Debug)]
pub struct Engine {
    pub docker: Docker,
    pub recipe: Recipe,
    pub pulls: images::Pulls,
    pub holds: Holds,
}

/// The result of asking for a container by name.
pub enum Created {
    New(String),
    /// A container of this name exists.
    Exists,
}

impl Engine {
    /// Wraps a connected client.
    pub fn new(docker: Docker, recipe: Recipe) -> Self {
        Self {
            docker: docker.with_timeout(CALL_DEADLINE),
            recipe,
            pulls: images::Pulls::default(),
            holds: Holds::default(),
        }
    }

    /// The client with the deadline for moving archives.
    pub fn transfers(&self) -> Docker {
        self.docker.clone().with_timeout(TRANSFER_DEADLINE)
    }

    /// Whether the engine takes new connections: one that is being stopped does not, while it ends its containers.
    pub async fn takes_connections(&self) -> bool {
        let connection = tokio::net::UnixStream::connect(&self.recipe.settings.socket);
        matches!(tokio::time::timeout(CONNECT_DEADLINE, connection).await, Ok(Ok(_)))
    }

    /// All containers, running or not, that carry these labels.
    pub async fn list(&self, labels: Vec<String>) -> Result<Vec<ContainerSummary>, RuntimeError> {
        let filters = HashMap::from([("label", labels)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = whole(self.docker.list_containers(Some(options))).await;
        listed.map_err(|error| failed("listing containers", &error))
    }

    /// What the engine knows of a container; `None` when it is gone.
    pub async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        match whole(self.docker.inspect_container(id, None)).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(failed(&format!("inspecting container {id}"), &error)),
        }
    }

    /// Makes a container under a name that is its own; pulls the image when the engine does not have it.
    pub async fn create(
        &self,
        name: &str,
        image: &ImageRef,
        body: ContainerCreateBody,
    ) -> Result<Created, RuntimeError> {
        let options = || Some(CreateContainerOptionsBuilder::default().name(name).build());
        let mut answer = whole(self.docker.create_container(options(), body.clone())).await;
        // Asking first would cost every start a call; the engine tells.
        if answer.as_ref().err().is_some_and(no_such_image) {
            images::pull(self, image).await?;
            answer = whole(self.docker.create_container(options(), body)).await;
        }
        match answer {
            Ok(made) => Ok(Created::New(made.id)),
            Err(error) if status(&error) == Some(409) => Ok(Created::Exists),
            Err(error) => Err(failed(&format!("making container {name}"), &error)),
        }
    }

    /// Starts a container; one that runs already is fine.
    pub async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.docker.start_container(id, None).await.map_err(|error| failed(&format!("starting container {id}"), &error))
    }

    /// Gives a container another name; `false` when it is gone or being removed.
    pub async fn rename(&self, id: &str, name: &str) -> Result<bool, RuntimeError> {
        let options = RenameContainerOptionsBuilder::default().name(name).build();
        match self.docker.rename_container(id, options).await {
            Ok(()) => Ok(true),
            Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(false),
            Err(error) => Err(failed(&format!("renaming container {id}"), &error)),
        }
    }

    /// SIGTERM, `grace`, SIGKILL. One that does not run or is gone is fine.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let options = StopContainerOptionsBuilder::default().t(seconds.try_into().unwrap_or(i32::MAX)).build();
        self.stop_with(id, options, grace).await
    }

    /// The same with the grace that the container was made with.
    pub async fn stop_as_made(&self, id: &str) -> Result<(), RuntimeError> {
        let Some(found) = self.inspect(id).await? else { return Ok(()) };
        let grace = found.config.and_then(|config| u64::try_from(config.stop_timeout?).ok());
        let grace = grace.map_or(ENGINE_GRACE, Duration::from_secs);
        // Without a time the engine takes the container's own.
        self.stop_with(id, StopContainerOptionsBuilder::default().build(), grace).await
    }

    async fn stop_with(&self, id: &str, options: StopContainerOptions, grace: Duration) -> Result<(), RuntimeError> {
        let patient = self.docker.clone().with_timeout(grace + CALL_DEADLINE);
        match patient.stop_container(id, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            Err(error) => Err(failed(&format!("stopping container {id}"), &error)),
        }
    }

    /// Kills and removes a container with its unnamed volumes, and returns when it is gone.
    pub async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.docker.remove_container(id, Some(options)).await {
            Ok(()) => {
                self.holds.forget(id);
                Ok(())
            }
            Err(error) if status(&error) == Some(404) => Ok(()),
            // Somebody else removes it at this moment.
            Err(error) if status(&error) == Some(409) => self.await_removal(id).await,
            Err(error) => Err(failed(&format!("removing container {id}"), &error)),
        }
    }

    /// Waits until a container that is being removed is gone.
    pub async fn await_removal(&self, id: &str) -> Result<(), RuntimeError> {
        let options = WaitContainerOptionsBuilder::default().condition("removed").build();
        let mut answer = Box::pin(self.docker.wait_container(id, Some(options)));
        match tokio::time::timeout(REMOVAL_DEADLINE, answer.next()).await {
            Ok(None | Some(Ok(_) | Err(Error::DockerContainerWaitError { .. }))) => Ok(()),
            Ok(Some(Err(error))) if status(&error) == Some(404) => Ok(()),
            Ok(Some(Err(error))) => Err(failed(&format!("waiting for the removal of container {id}"), &error)),
            Err(_) => Err(RuntimeError::Refused(format!(
                "container {id} is being removed for more than {} s; look at the engine's log",
                REMOVAL_DEADLINE.as_secs()
            ))),
        }
    }
}

/// An answer with a deadline for all of it: the client's own ends with the answer's head.
pub async fn whole<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(CALL_DEADLINE, call).await.unwrap_or(Err(Error::RequestTimeoutError))
}

/// The HTTP status of the engine's refusal.
pub fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

fn no_such_image(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, message } if message.contains("No such image"))
}

/// Whether the engine said that a network is not there.
pub fn no_such_network(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::Gone(text) | RuntimeError::Refused(text) if text.contains("network") && text.contains("not found"))
}

/// Whether a container cannot be started any more since an engine was killed while it started it, and left half of what belongs to that: the
/// next one of the same name can. "id already in use" is what Docker 20.10 says of a container that containerd still knows (moby/moby#40613).
pub fn left_in_the_middle(error: &RuntimeError) -> bool {
    let shim = |text: &str| text.contains("failed to start shim") || text.contains("failed to create shim");
    let half_started = |text: &str| shim(text) && (text.contains("file exists") || text.contains("already exists"));
    let known = |text: &str| text.ends_with("the engine refused: id already in use");
    matches!(error, RuntimeError::Refused(text) if half_started(text) || known(text))
}

/// Sorts an error of the client. `doing` says what was being done.
pub fn failed(doing: &str, error: &Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { status_code: 404, message } => {
            RuntimeError::Gone(format!("{doing}: what it needs ({message})"))
        }
        Error::DockerResponseServerError { message, .. } => {
            RuntimeError::Refused(format!("{doing}: the engine refused: {message}"))
        }
        Error::IOError { .. }
        | Error::HyperResponseError { .. }
        | Error::HyperLegacyError { .. }
        | Error::RequestTimeoutError
        | Error::SocketNotFoundError(_) => RuntimeError::Unavailable(format!("{doing}: {}", chain(error))),
        other => RuntimeError::Refused(format!("{doing}: {other}")),
    }
}

/// The error with its causes: the client's own message often is only "client error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_engine_leaves() {
        let refused = |text: &str| RuntimeError::Refused(text.to_owned());
        for (text, left) in [
            ("the engine refused: failed to start shim: mkdir /run/x/moby/8a41: file exists: unknown", true),
            (
                "the engine refused: failed to create shim task: OCI runtime create failed: exec: \"x\": not found",
                false,
            ),
            ("the engine refused: mkdir /data: file exists", false),
            ("starting container cc71: the engine refused: id already in use", true),
            ("the engine refused: exec \"id already in use\": not found", false),
        ] {
            assert_eq!(left_in_the_middle(&refused(text)), left, "{text}");
        }
    }
}
