//! The buildpacks, run as a build runs them: fixtures are compiled in the build stack, by the real engine, and what comes out
//! is started in the run stack and asked over HTTP. `BERTH_STACKS_DIR` says where the stacks are (default `target/stacks`;
//! they are built there when missing).

#[path = "buildpacks/harness.rs"]
mod harness;
#[path = "buildpacks/nodejs.rs"]
mod nodejs;
#[path = "buildpacks/procfile.rs"]
mod procfile;
#[path = "buildpacks/python.rs"]
mod python;
#[path = "buildpacks/python_rules.rs"]
mod python_rules;
#[path = "buildpacks/static_site.rs"]
mod static_site;
#[path = "buildpacks/trees.rs"]
mod trees;
