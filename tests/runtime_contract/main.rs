//! One contract suite for every adapter of the runtime port, and what only the real engine can show.
//!
//! `BERTH_CONTRACT=NAME` runs the cases whose name contains NAME. The Docker part needs a running engine, root (for packet filter
//! rules) and Debian's `docker-registry` and `busybox-static`; whatever it leaves on the engine fails it.

mod docker_only;
mod docker_world;
mod fake_world;
mod hardening;
mod suite;
mod support;

use support::Runner;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_keeps_the_contract() {
    let (engine, world) = docker_world::start().await;
    let mut runner = Runner::new("docker", world.clone());
    suite::run(&mut runner).await;
    let mut only = Runner::new("docker", (engine.clone(), world.clone()));
    docker_only::run(&mut only).await;
    hardening::run(&mut only).await;
    drop(world);
    runner.absorb(only);
    runner.check("nothing is left behind", engine.clean_up().await);
    runner.report();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fake_keeps_the_contract() {
    let mut runner = Runner::new("in memory", fake_world::start());
    suite::run(&mut runner).await;
    runner.report();
}
