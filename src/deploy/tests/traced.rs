//! What traces say of deployments.

use std::time::Duration;

use tokio::time::sleep;

use super::support::*;
use crate::{
    deploy::*,
    domain::*,
    traces::{Span, Traces},
};

/// Makes a release for somebody whose trace is recorded.
async fn asked(platform: &Platform) -> (ReleaseVersion, TraceContext) {
    let asked = Traces::new(platform.spans.clone(), 1.0).begin(None).unwrap().context;
    let new = NewRelease { trace: Some(asked), ..platform.new_release(&[("web", 1)]) };
    (platform.deployer.create_release(new).await.unwrap().version, asked)
}

/// The deployment in a trace, and its parts.
async fn deployment(platform: &Platform, version: ReleaseVersion, asked: TraceContext) -> (Span, Vec<Span>) {
    let of = |span: &Span| span.context.trace() == asked.trace();
    let (whole, parts): (Vec<Span>, Vec<Span>) =
        platform.spans.all().into_iter().filter(of).partition(|span| span.name == "deployment");
    let [whole] = whole.try_into().expect("one deployment");
    let stored = platform.store.need::<Deployment>(&(env(), version)).await.unwrap().record;
    let kept = stored.trace.map(|open| (open.context, open.parent));
    assert_eq!(kept, Some((whole.context, Some(asked))));
    assert!(parts.iter().all(|part| part.parent == Some(whole.context)), "{parts:?}");
    (whole, parts)
}

fn names(parts: &[Span]) -> Vec<&str> {
    parts.iter().map(|part| part.name).collect()
}

#[tokio::test(start_paused = true)]
async fn a_trace_has_the_steps_of_a_deployment_until_all_is_settled() {
    let platform = Platform::new().await;
    let (first, begun) = asked(&platform).await;
    platform.deploy(first).await.unwrap();
    platform.settle().await;
    let (whole, parts) = deployment(&platform, first, begun).await;
    assert_eq!(names(&parts), ["start", "ready", "route", "settle"]);
    assert!(!whole.failed && parts.iter().all(|part| part.begin <= part.end && !part.failed));
    let (second, replaced) = asked(&platform).await;
    platform.deploy(second).await.unwrap();
    platform.settle().await;
    let (_, parts) = deployment(&platform, second, replaced).await;
    assert_eq!(names(&parts), ["start", "ready", "route", "drain", "stop", "settle"]);
    // What is done later is no part of it.
    let before = platform.spans.all().len();
    platform.change(|record| record.scale = [("web".parse().unwrap(), 2)].into()).await;
    platform.settle().await;
    platform.change(|record| record.scale = [("web".parse().unwrap(), 1)].into()).await;
    platform.settle().await;
    assert_eq!(platform.spans.all().len(), before);
}

#[tokio::test(start_paused = true)]
async fn the_next_server_goes_on_with_the_trace_of_a_deployment() {
    let mut platform = Platform::new().await;
    let asked = Traces::new(platform.spans.clone(), 1.0).begin(None).unwrap().context;
    let new = NewRelease { trace: Some(asked), ..platform.new_release(&[("web", 1)]) };
    let version = platform.deployer.create_target(new).await.unwrap().version;
    platform.deployer.nudge(&env());
    let begun = async {
        while platform.store.get::<Deployment>(&(env(), version)).await.unwrap().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), begun).await.unwrap();
    platform.kill().await;
    assert!(
        platform.spans.all().iter().all(|span| span.name != "deployment"),
        "it was over too soon to be of use here"
    );
    platform.restart();
    platform.deploy(version).await.unwrap();
    platform.settle().await;
    let (whole, parts) = deployment(&platform, version, asked).await;
    assert!(!whole.failed && names(&parts).contains(&"route"), "{parts:?}");
}
