//! What tenants and apps leave that are gone: networks and build caches.

use std::collections::{BTreeSet, HashMap};

use bollard::query_parameters::{ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, RemoveVolumeOptions};

use super::{
    Inner,
    engine::{failed, status},
    names, network,
};
use crate::{
    domain::{AppRef, TenantName},
    runtime::RuntimeError,
};

impl Inner {
    /// See [`crate::runtime::Runtime::forget_others`].
    pub(super) async fn forget_others(
        &self,
        tenants: &BTreeSet<TenantName>,
        apps: &BTreeSet<AppRef>,
    ) -> Result<usize, RuntimeError> {
        Ok(self.remove_other_caches(apps).await? + self.remove_other_networks(tenants).await?)
    }

    fn everything(&self) -> HashMap<&'static str, Vec<String>> {
        HashMap::from([("label", vec![self.engine.recipe.names.instance_filter()])])
    }

    async fn remove_other_caches(&self, apps: &BTreeSet<AppRef>) -> Result<usize, RuntimeError> {
        let options = ListVolumesOptionsBuilder::default().filters(&self.everything()).build();
        let docker = &self.engine.docker;
        let found = docker.list_volumes(Some(options)).await.map_err(|error| failed("listing build caches", &error))?;
        let others = found.volumes.unwrap_or_default().into_iter().filter(|volume| {
            // What has no such label is not a cache.
            app_of(&volume.labels).is_some_and(|app| !apps.contains(&app))
        });
        let mut removed = 0;
        for volume in others {
            tracing::info!(volume = volume.name, "removing the build cache of an app that is gone");
            match docker.remove_volume(&volume.name, None::<RemoveVolumeOptions>).await {
                Ok(()) => removed += 1,
                Err(error) if status(&error) == Some(404) => {}
                Err(error) => return Err(failed("removing a build cache", &error)),
            }
        }
        Ok(removed)
    }

    async fn remove_other_networks(&self, tenants: &BTreeSet<TenantName>) -> Result<usize, RuntimeError> {
        let options = ListNetworksOptionsBuilder::default().filters(&self.everything()).build();
        let docker = &self.engine.docker;
        let found = docker.list_networks(Some(options)).await.map_err(|error| failed("listing networks", &error))?;
        let mut removed = 0;
        for network in found {
            let owner: Option<TenantName> =
                network.labels.as_ref().and_then(|labels| labels.get(names::TENANT)?.parse().ok());
            let Some(id) = network.id.filter(|_| owner.is_some_and(|owner| !tenants.contains(&owner))) else {
                continue;
            };
            tracing::info!(network = network.name, "removing the network of a tenant that is gone");
            network::remove(docker, &id)
                .await
                .map_err(|error| failed("removing the network of a tenant that is gone", &error))?;
            removed += 1;
        }
        Ok(removed)
    }
}

fn app_of(labels: &HashMap<String, String>) -> Option<AppRef> {
    let (tenant, app) = (labels.get(names::TENANT)?, labels.get(names::APP)?);
    Some(AppRef { tenant: tenant.parse().ok()?, app: app.parse().ok()? })
}
