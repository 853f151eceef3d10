//! End to end: the built binary, real git, ssh, engine, registry and HTTP.
//!
//! One platform serves all cases, which run beside each other, each in tenants of its own; cases that restart the platform's processes
//! run afterwards, alone. A case that leaves something on the engine fails the run.

mod api;
mod apps;
mod browser;
mod client;
mod commands;
mod failures;
mod load;
mod platform;
mod pushes;
mod repository;
mod sources;
mod traces;

use std::{panic, process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use platform::Platform;

/// A case: its name and what it does.
pub type Case = (&'static str, fn(&Platform));

fn trial(platform: &Arc<Platform>, (name, case): Case) -> Trial {
    let platform = platform.clone();
    Trial::test(name, move || {
        // libtest-mimic reports a panic by itself; here its text is kept beside the case's name.
        panic::catch_unwind(panic::AssertUnwindSafe(|| case(&platform))).map_err(|cause| {
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Failed::from(text.unwrap_or_else(|| "it panicked".into()))
        })
    })
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let beside: Vec<Case> = [
        apps::CASES,
        pushes::CASES,
        commands::CASES,
        api::CASES,
        sources::CASES,
        client::CASES,
        browser::CASES,
        browser::console::CASES,
        browser::looks::CASES,
    ]
    .concat();
    let alone: Vec<Case> = [load::CASES, failures::CASES, traces::CASES].concat();
    let wanted = |name: &str| arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    if arguments.list || !beside.iter().chain(&alone).any(|(name, _)| wanted(name)) {
        // Nothing runs: no platform is needed.
        let all = beside.iter().chain(&alone).map(|(name, _)| Trial::test(*name, || Ok(()))).collect();
        return libtest_mimic::run(&arguments, all).exit_code();
    }
    let platform = Arc::new(Platform::start());
    let log = platform.log_file("serve");
    // Cases mostly wait for the engine; more of them at once than cores keeps both busy.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let first = libtest_mimic::run(&arguments, beside.into_iter().map(|case| trial(&platform, case)).collect());
    arguments.test_threads = Some(1);
    let second = libtest_mimic::run(&arguments, alone.iter().map(|case| trial(&platform, *case)).collect());
    let wrong = platform.stop();
    for text in &wrong {
        eprintln!("the platform was not left clean: {text}");
    }
    let failed = |conclusion: &Conclusion| conclusion.has_failed();
    if failed(&first) || failed(&second) || !wrong.is_empty() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(80).collect();
        eprintln!("the last lines of the server's log:");
        tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        return ExitCode::from(101);
    }
    ExitCode::SUCCESS
}
