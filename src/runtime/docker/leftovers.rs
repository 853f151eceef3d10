//! What tenants and apps leave that are gone: networks and build caches.

use std::{
    collections::{BTreeSet, HashMap},
    sync::PoisonError,
};

use bollard::query_parameters::{ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, RemoveVolumeOptions};

use super::{
    Inner,
    engine::{failed, status},
    names,
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
        // One of them that is still in use, say by a container that is just being removed, does not keep the others.
        let (caches, networks) = (self.remove_other_caches(apps).await, self.remove_other_networks(tenants).await);
        Ok(caches? + networks?)
    }

    fn everything(&self) -> HashMap<&'static str, Vec<String>> {
        HashMap::from([("label", vec![self.engine.recipe.names.instance_filter()])])
    }

    async fn remove_other_caches(&self, apps: &BTreeSet<AppRef>) -> Result<usize, RuntimeError> {
        let options = ListVolumesOptionsBuilder::default().filters(&self.everything()).build();
        let docker = &self.engine.docker;
        let found = docker.list_volumes(Some(options)).await.map_err(|error| failed("listing build caches", &error))?;
        let others = found.volumes.unwrap_or_default().into_iter().filter(|volume| {
            // What has no such label is not a cache. What a job of this process has had belongs to an app that has come meanwhile.
            let used = |app: &AppRef| self.used_caches.lock().unwrap_or_else(PoisonError::into_inner).contains(app);
            app_of(&volume.labels).is_some_and(|app| !apps.contains(&app) && !used(&app))
        });
        let (mut removed, mut failure) = (0, None);
        for volume in others {
            tracing::info!(volume = volume.name, "removing the build cache of an app that is gone");
            match docker.remove_volume(&volume.name, None::<RemoveVolumeOptions>).await {
                Ok(()) => removed += 1,
                Err(error) if status(&error) == Some(404) => {}
                Err(error) => failure = Some(failed("removing a build cache", &error)),
            }
        }
        failure.map_or(Ok(removed), Err)
    }

    async fn remove_other_networks(&self, tenants: &BTreeSet<TenantName>) -> Result<usize, RuntimeError> {
        let options = ListNetworksOptionsBuilder::default().filters(&self.everything()).build();
        let docker = &self.engine.docker;
        let found = docker.list_networks(Some(options)).await.map_err(|error| failed("listing networks", &error))?;
        let (mut removed, mut failure) = (0, None);
        for network in found {
            let owner: Option<TenantName> =
                network.labels.as_ref().and_then(|labels| labels.get(names::TENANT)?.parse().ok());
            let (Some(id), Some(owner)) = (network.id, owner.filter(|owner| !tenants.contains(owner))) else {
                continue;
            };
            tracing::info!(network = network.name, "removing the network of a tenant that is gone");
            match self.networks.remove_left(&self.engine, &owner, &id).await {
                Ok(gone) => removed += usize::from(gone),
                Err(error) => failure = Some(failed("removing the network of a tenant that is gone", &error)),
            }
        }
        failure.map_or(Ok(removed), Err)
    }
}

fn app_of(labels: &HashMap<String, String>) -> Option<AppRef> {
    let (tenant, app) = (labels.get(names::TENANT)?, labels.get(names::APP)?);
    Some(AppRef { tenant: tenant.parse().ok()?, app: app.parse().ok()? })
}
