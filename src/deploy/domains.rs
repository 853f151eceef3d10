//! Whose a host name is: one record for each, made in the transaction that first asks for it, and kept until its environment gives it
//! up. Neither a release that does without it nor a lost routes table changes that.

use std::collections::{BTreeMap, BTreeSet};

use super::{Parts, hosts::tidy};
use crate::{
    domain::{DomainClaim, EnvRef, Environment, Release, Timestamp},
    store::{Store, StoreError, Transaction},
};

/// Most host names that releases take for one environment; only who gives some up gets more.
const MAX_CLAIMS: usize = 200;

/// What an environment asks for, looked up.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Host names that are its own.
    pub(super) own: Vec<String>,
    /// One line per host name that it does not get.
    pub(super) conflicts: Vec<String>,
}

/// Host names that no environment can ask for.
#[derive(Debug, Clone)]
pub struct Given {
    /// Names below it are given out by their form.
    pub base: String,
    /// Those at which the platform itself is reached: an app there would be sent what browsers keep for the console.
    pub own: Vec<String>,
}

impl Given {
    fn has(&self, host: &str) -> bool {
        host == self.base || host.ends_with(&format!(".{}", self.base)) || self.own.iter().any(|own| own == host)
    }
}

/// Which of these host names the environment has.
pub(super) async fn look_up<'h>(
    store: &Store,
    given: &Given,
    env: &EnvRef,
    hosts: impl Iterator<Item = &'h String>,
) -> Result<Asked, StoreError> {
    let mut asked = Asked::default();
    for host in hosts.map(|host| tidy(host)).collect::<BTreeSet<_>>() {
        if host == env.host(&given.base) {
            continue;
        }
        if given.has(&host) {
            let base = &given.base;
            let text =
                format!("the domain {host} is not served: it is, as names below {base} are, the platform's to give");
            asked.conflicts.push(text);
            continue;
        }
        match store.get::<DomainClaim>(&host).await? {
            Some(claim) if claim.env == *env => asked.own.push(host),
            // Whose it is stays unsaid: it may be another tenant's.
            Some(_) => asked.conflicts.push(format!(
                "the domain {host} is not served here: another environment has it; give it up there (`domains remove`), \
                 then `domains add {env} {host}`"
            )),
            None => asked.conflicts.push(format!(
                "the domain {host} is not served: nobody has it (given up, or {env} keeps {MAX_CLAIMS} others); \
                 `domains add {env} {host}` takes it"
            )),
        }
    }
    Ok(asked)
}

/// Adds to a transaction the claims to those host names of the release that nobody has.
pub(super) async fn claim(
    store: &Store,
    given: &Given,
    release: &Release,
    mut transaction: Transaction,
) -> Result<Transaction, StoreError> {
    let mut free = Vec::new();
    for host in release.domains.iter().map(|host| tidy(host)).collect::<BTreeSet<_>>() {
        if !given.has(&host) && store.get::<DomainClaim>(&host).await?.is_none() {
            free.push(host);
        }
    }
    if free.is_empty() {
        return Ok(transaction);
    }
    let all = store.list::<DomainClaim>("").await?;
    let room = MAX_CLAIMS.saturating_sub(all.iter().filter(|claim| claim.env == release.env).count());
    for host in free.into_iter().take(room) {
        transaction =
            transaction.create(&DomainClaim { host, env: release.env.clone(), claimed_at: release.created_at });
    }
    Ok(transaction)
}

/// Once, for records that were written before there were claims: each host name becomes that of the environment that is served there,
/// else of the first in order that asks for it.
pub(super) async fn adopt(parts: &Parts, environments: &[Environment], now: Timestamp) -> Result<(), StoreError> {
    let (store, given) = (&parts.store, &parts.settings.given());
    if !store.list::<DomainClaim>("").await?.is_empty() {
        return Ok(());
    }
    let mut owners: BTreeMap<String, EnvRef> = BTreeMap::new();
    let mut asked: BTreeSet<(String, EnvRef)> = BTreeSet::new();
    for environment in environments {
        let mut hosts = environment.domains.clone();
        if let Some(version) = environment.current {
            let release = store.get::<Release>(&(environment.name.clone(), version)).await?;
            hosts.extend(release.into_iter().flat_map(|release| release.record.domains));
        }
        asked.extend(hosts.iter().map(|host| (tidy(host), environment.name.clone())));
    }
    let view = parts.routes.view().borrow().clone();
    let served = asked.iter().filter(|(host, env)| view.table.hosts.get(host) == Some(env));
    for (host, env) in served.chain(&asked).filter(|(host, _)| !given.has(host)) {
        owners.entry(host.clone()).or_insert_with(|| env.clone());
    }
    if owners.is_empty() {
        return Ok(());
    }
    let mut transaction = store.transaction();
    for (host, env) in owners {
        transaction = transaction.create(&DomainClaim { host, env, claimed_at: now });
    }
    transaction.commit().await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::tests::support::{env, release},
        *,
    };
    use crate::store::MemoryKv;

    fn given() -> Given {
        Given { base: "localhost".into(), own: vec!["berth.example.com".into()] }
    }

    async fn claims(store: &Store, release: &Release) -> Transaction {
        claim(store, &given(), release, store.transaction()).await.unwrap()
    }

    fn asking(env: EnvRef, domains: &[String]) -> Release {
        Release { env, domains: domains.to_vec(), ..release(1, &[]) }
    }

    #[tokio::test]
    async fn of_two_releases_at_once_one_gets_the_domain() {
        let store = Store::new(Arc::new(MemoryKv::new()));
        let domains = ["Shop.example.com.".to_owned(), "x.localhost".to_owned()];
        let other: EnvRef = "other/app/dev".parse().unwrap();
        let late = claims(&store, &asking(other.clone(), &domains)).await;
        claims(&store, &asking(env(), &domains)).await.commit().await.unwrap();
        assert!(matches!(late.commit().await, Err(StoreError::Conflict(_))));
        claims(&store, &asking(other.clone(), &domains)).await.commit().await.unwrap();
        let asked = look_up(&store, &given(), &env(), domains.iter()).await.unwrap();
        assert_eq!((asked.own, asked.conflicts.len()), (vec!["shop.example.com".to_owned()], 1));
        let asked = look_up(&store, &given(), &other, domains.iter()).await.unwrap();
        assert_eq!((asked.own, asked.conflicts.len()), (Vec::new(), 2));
    }

    #[tokio::test]
    async fn nobody_gets_the_platforms_own_name() {
        let store = Store::new(Arc::new(MemoryKv::new()));
        let domains = ["Berth.example.com".to_owned()];
        claims(&store, &asking(env(), &domains)).await.commit().await.unwrap();
        assert_eq!(store.list::<DomainClaim>("").await.unwrap().len(), 0);
        let asked = look_up(&store, &given(), &env(), domains.iter()).await.unwrap();
        assert_eq!((asked.own.len(), asked.conflicts.len()), (0, 1));
    }

    #[tokio::test]
    async fn an_environment_cannot_take_every_name() {
        let store = Store::new(Arc::new(MemoryKv::new()));
        let domains: Vec<String> = (0..MAX_CLAIMS + 50).map(|n| format!("s{n}.example.com")).collect();
        for some in domains.chunks(50) {
            claims(&store, &asking(env(), some)).await.commit().await.unwrap();
        }
        assert_eq!(store.list::<DomainClaim>("").await.unwrap().len(), MAX_CLAIMS);
    }
}
