//! One contract suite for every adapter of the runtime port, and what only the real engine can show.
//!
//! Cases run one after the other: they would take the engine's time from each other. The Docker part needs a running engine, root (for
//! packet filter rules) and Debian's `docker-registry` and `busybox-static`; whatever it leaves on the engine fails the run.

mod broken_wire;
mod docker_only;
mod docker_world;
mod fake_world;
mod hardening;
mod suite;
mod support;

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use docker_world::Engine;
use libtest_mimic::Arguments;
use support::{Cases, World};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let handle = runtime.handle();
    // The engine is asked for nothing unless one of its cases runs.
    let docker: Arc<OnceLock<(Arc<Engine>, World)>> = Arc::default();
    let both = {
        let (docker, handle) = (docker.clone(), handle.clone());
        move || docker.get_or_init(|| handle.block_on(docker_world::start())).clone()
    };
    let fake = handle.block_on(async { fake_world::start() });
    let (mut in_memory, world) = (Cases::new("memory", handle, move || fake.clone()), both.clone());
    let mut on_docker = Cases::new("docker", handle, move || world().1);
    let mut docker_alone = Cases::new("docker", handle, both);
    suite::add(&mut in_memory);
    suite::add(&mut on_docker);
    docker_only::add(&mut docker_alone);
    hardening::add(&mut docker_alone);
    broken_wire::add(&mut docker_alone);
    let shared = in_memory.into_trials().into_iter().chain(on_docker.into_trials());
    let conclusion = libtest_mimic::run(&arguments, shared.chain(docker_alone.into_trials()).collect());
    let left = docker.get().and_then(|(engine, _)| handle.block_on(engine.clean_up()));
    if let Some(left) = left {
        eprintln!("the engine was not left clean: {left}");
        return ExitCode::from(101);
    }
    conclusion.exit_code()
}
