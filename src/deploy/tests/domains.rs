//! Host names stay with the environment that has them.

use super::support::*;
use crate::{
    deploy::{Derive, NewRelease},
    domain::{DomainClaim, EnvRef, Environment, ReleaseVersion},
};

const HOST: &str = "shop.example.com";

/// Another environment with a release that asks for the same domain.
async fn rival(platform: &Platform) -> (EnvRef, ReleaseVersion) {
    let rival: EnvRef = "other/app/dev".parse().unwrap();
    let record = Environment { name: rival.clone(), ..platform.record().await };
    let record = Environment { target: None, current: None, last_release: 0, ..record };
    platform.store.transaction().create(&record).commit().await.unwrap();
    let new = NewRelease { env: rival.clone(), ..platform.new_release(&[("web", 1)]) };
    let release = platform.deployer.create_release(new).await.unwrap();
    (rival, release.version)
}

async fn owner(platform: &Platform) -> EnvRef {
    platform.store.need::<DomainClaim>(HOST).await.unwrap().record.env
}

#[tokio::test(start_paused = true)]
async fn a_domain_that_is_taken_is_told_and_not_served() {
    let platform = Platform::new().await;
    let version = platform.create(&[("web", 1)]).await;
    platform.deploy(version).await.unwrap();
    let (rival, version) = rival(&platform).await;
    let heard = Heard::default();
    platform.deployer.deploy(&rival, version, &heard).await.unwrap();
    let told = format!(" !     the domain {HOST} is not served here: another environment has it");
    assert!(heard.text().contains(&told) && !heard.text().contains("acme"), "{}", heard.text());
    let status = platform.deployer.status(&rival).await.unwrap();
    assert!(status.waits.iter().any(|wait| wait.contains(HOST)), "{status:?}");
    assert_eq!(platform.router.table().hosts[HOST], env());
}

#[tokio::test(start_paused = true)]
async fn a_domain_is_kept_by_its_owner_while_no_release_asks_for_it() {
    let mut platform = Platform::new().await;
    let without = NewRelease { domains: vec![], ..platform.new_release(&[("web", 1)]) };
    let without = platform.deployer.create_release(without).await.unwrap().version;
    let with = platform.create(&[("web", 1)]).await;
    platform.deploy(with).await.unwrap();
    let (rival, version) = rival(&platform).await;
    platform.deployer.deploy(&rival, version, &Heard::default()).await.unwrap();
    let by = "alice".parse().unwrap();
    let back = platform.deployer.derive_release(&env(), without, Derive::Everything, &by, "rollback").await.unwrap();
    platform.deploy(back.version).await.unwrap();
    assert_eq!((owner(&platform).await, platform.router.table().hosts.get(HOST)), (env(), None));
    // Not even without a routes table.
    platform.kill().await;
    platform.router.lose();
    platform.restart();
    platform.settle().await;
    platform.deployer.status(&rival).await.unwrap();
    assert_eq!(platform.router.table().hosts.get(HOST), None);
    let again = platform.deployer.derive_release(&env(), with, Derive::Everything, &by, "rollback").await.unwrap();
    platform.deploy(again.version).await.unwrap();
    assert_eq!(platform.router.table().hosts[HOST], env());
}

#[tokio::test(start_paused = true)]
async fn records_from_before_there_were_claims_keep_what_is_served() {
    let mut platform = Platform::new().await;
    let version = platform.create(&[("web", 1)]).await;
    platform.deploy(version).await.unwrap();
    // In order before the one that is served.
    let early: EnvRef = "aaa/app/dev".parse().unwrap();
    let record = Environment { name: early.clone(), ..platform.record().await };
    let record = Environment {
        domains: vec![HOST.to_owned(), "early.example.com".to_owned()],
        target: None,
        current: None,
        ..record
    };
    let claim = platform.store.need::<DomainClaim>(HOST).await.unwrap();
    platform.store.transaction().create(&record).delete(&claim).commit().await.unwrap();
    platform.kill().await;
    platform.restart();
    platform.settle().await;
    assert_eq!(owner(&platform).await, env());
    let other = platform.store.need::<DomainClaim>("early.example.com").await.unwrap();
    assert_eq!(other.env, early);
    assert_eq!(platform.router.table().hosts[HOST], env());
}
