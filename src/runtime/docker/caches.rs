//! How large the build caches are.

use std::{collections::HashMap, path::Path};

use bollard::query_parameters::ListVolumesOptionsBuilder;

use super::{
    engine::{Engine, failed},
    names,
};
use crate::{disk::size_of, domain::AppRef, runtime::RuntimeError};

/// The build caches of this instance, with the bytes of their files. The engine only measures everything it has at once, which takes
/// minutes on a full one; so their files are looked at here. Those of an engine on another host count as empty.
pub async fn sizes(engine: &Engine) -> Result<Vec<(AppRef, u64)>, RuntimeError> {
    let filters = HashMap::from([("label", vec![engine.recipe.names.instance_filter()])]);
    let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
    let found = engine.docker.list_volumes(Some(options)).await;
    let found = found.map_err(|error| failed("listing build caches", &error))?;
    let owner = |labels: &HashMap<String, String>| {
        format!("{}/{}", labels.get(names::TENANT)?, labels.get(names::APP)?).parse::<AppRef>().ok()
    };
    let volumes = found.volumes.unwrap_or_default().into_iter();
    let volumes: Vec<_> = volumes.filter_map(|volume| Some((owner(&volume.labels)?, volume.mountpoint))).collect();
    let measured = tokio::task::spawn_blocking(move || {
        volumes.into_iter().map(|(app, path)| (app, size_of(Path::new(&path)).unwrap_or(0))).collect()
    });
    measured.await.map_err(|error| RuntimeError::Refused(format!("build caches could not be measured: {error}")))
}
