//! What traces say of builds.

use super::*;
use crate::{domain::OpenSpan, traces::Span};

/// A push whose trace is recorded.
fn traced(world: &World, name: &str, files: &[(&str, &str)]) -> (NewBuild, OpenSpan) {
    let trace = Traces::new(world.spans.clone(), 1.0).begin(None).unwrap();
    (NewBuild { trace: Some(trace), ..world.new_build(name, files) }, trace)
}

/// Its spans, in the order in which they ended; all are parts of the same whole, which is the last.
fn spans(world: &World, trace: &OpenSpan) -> Vec<Span> {
    let all = world.spans.all();
    let of: Vec<Span> = all.into_iter().filter(|span| span.context.trace() == trace.context.trace()).collect();
    let (root, parts) = of.split_last().unwrap();
    assert_eq!((root.context, root.parent), (trace.context, None));
    for part in parts {
        assert_eq!(part.parent, Some(trace.context), "{part:?}");
        assert!(root.begin <= part.begin && part.begin <= part.end, "{part:?}");
    }
    of
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name).collect()
}

fn outcome(span: &Span) -> Option<String> {
    let found = span.attributes.iter().find(|(name, _)| *name == "berth.outcome");
    found.map(|(_, value)| format!("{value:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_has_all_stages_of_a_build() {
    let world = World::new().await;
    let (new, trace) = traced(&world, "dev", &APP);
    let build = world.builds.enqueue(new).await.unwrap();
    let build = world.end_of(&build).await;
    assert_eq!(build.trace, Some(trace), "what a later server would go on with");
    let of = spans(&world, &trace);
    assert_eq!(
        names(&of),
        ["queue", "checkout", "compile", "slug", "image", "registry push", "release", "push"],
        "{of:?}"
    );
    let root = of.last().unwrap();
    assert!(!of.iter().any(|span| span.failed) && outcome(root).unwrap().contains("succeeded"));
    assert!(root.begin <= build.queued_at, "receiving is a part of it");
    // The same once more: nothing is built.
    let (new, again) = traced(&world, "prod", &APP);
    let build = world.builds.enqueue(new).await.unwrap();
    world.end_of(&build).await;
    assert_eq!(names(&spans(&world, &again)), ["queue", "checkout", "reuse", "release", "push"]);
    assert!(!format!("{:?}", world.spans.all()).contains("hunter2"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_says_what_failed_and_no_more() {
    let world = World::new().await;
    let (new, trace) = traced(&world, "dev", &[("lock", "fail")]);
    let build = world.builds.enqueue(new).await.unwrap();
    world.end_of(&build).await;
    let of = spans(&world, &trace);
    assert_eq!(names(&of), ["queue", "checkout", "compile", "push"]);
    let failed: Vec<_> = of.iter().filter(|span| span.failed).map(|span| span.name).collect();
    assert_eq!(failed, ["compile", "push"]);
    assert!(outcome(of.last().unwrap()).unwrap().contains("failed"));
    // One without a trace leaves none.
    let before = world.spans.all().len();
    world.push("prod", &APP).await;
    assert_eq!(world.spans.all().len(), before);
    // One that was held to its end was refused: who refuses it tells of it.
    let (new, refused) = traced(&world, "third", &APP);
    let build = world.builds.enqueue(NewBuild { held: true, ..new }).await.unwrap();
    world.builds.cancel(&build.env, build.number, "another push came first").await.unwrap();
    world.end_of(&build).await;
    assert!(world.spans.all().iter().all(|span| span.context.trace() != refused.context.trace()));
    world.stop().await;
}
