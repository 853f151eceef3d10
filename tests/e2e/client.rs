//! A client that is generated from the OpenAPI document does what the quickstart does.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Case,
    platform::{Platform, run},
};

pub const CASES: &[Case] = &[("a_generated_client_does_the_quickstart", a_generated_client_does_the_quickstart)];

/// Python with the generator, which `scripts/setup --client` installs.
fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/client/bin/python");
    assert!(python.exists(), "there is no {}; run scripts/setup --client", python.display());
    python
}

fn a_generated_client_does_the_quickstart(platform: &Platform) {
    let token = platform.ssh(&platform.operator(), &["tokens", "create", "client", "--scope", "full", "--json"]).ok();
    let token = token.json()["token"].as_str().unwrap().to_owned();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut command = Command::new(python());
    command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(tests.join("e2e/client/quickstart.py"))
        .arg(format!("http://127.0.0.1:{}", platform.api_port))
        .args([token, platform.unique("client")])
        .arg(tests.join("fixtures/hello"))
        .arg(platform.scratch("client"))
        .arg(platform.http_port.to_string());
    run(&mut command).ok().says(&["done"]);
}
