//! The python buildpack: what it installs with which tool, what it tells Berth, and the processes that come of it.

use std::fs;

use crate::harness::{Case, Volume, in_build_stack, in_volume, shared_cache};

/// A fixture with the cache that the cases share.
fn app(fixture: &str) -> Case {
    Case::fixture(fixture).cache(&shared_cache("python"))
}

#[test]
fn flask_is_found_served_and_told_its_surroundings() {
    let build = app("flask").build().succeeded();
    assert_eq!(build.meta("buildpacks"), "python\tPython\n");
    assert_eq!(build.meta("layers"), "python\t.venv\n");
    let build = build.says(&["web: gunicorn --bind 0.0.0.0:$PORT app:app"]);
    let running = build.start();
    assert_eq!(running.get("/").body, "hello from flask\n");
    assert!(running.logs().contains("Starting gunicorn"), "{}", running.logs());
    let (_, said) = build.command(
        "command -v python; python -c 'import sys; print(sys.prefix)'; echo $PYTHONUNBUFFERED $((WEB_CONCURRENCY > 0))",
    );
    assert_eq!(said, "/app/.venv/bin/python\n/app/.venv\n1 1");
    // The app object moves without a build: the process looks for it when it starts.
    let (_, said) = build.command(
        "mv app.py wsgi.py && sed -i 's/app/site/' wsgi.py && PORT=5000 timeout 5 python -I .berth/python/web",
    );
    assert!(said.contains("Starting gunicorn --bind 0.0.0.0:$PORT wsgi:site"), "{said}");
    assert!(said.contains("Listening at: http://0.0.0.0:5000"), "{said}");
}

#[test]
fn a_code_change_touches_no_input_and_reuses_packages() {
    let cache = Volume::new("flask");
    let first = Case::fixture("flask").cache(&cache).build().succeeded();
    let inputs: Vec<&str> = first.meta("inputs").lines().collect();
    for input in
        ["requirements.txt", ".python-version", "runtime.txt", "Procfile", "bin/pre_compile", "bin/post_compile"]
    {
        assert!(inputs.contains(&input), "{input} is not in {inputs:?}");
    }
    assert!(!inputs.iter().any(|input| ["**", "*", "app.py", "*.py"].contains(input)), "{inputs:?}");
    let listing = "find .venv -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum";
    let second = Case::fixture("flask")
        .file("other.py", "# new")
        .cache(&cache)
        .build()
        .succeeded()
        .says(&["Packages unchanged"])
        .does_not_say(&["Installing packages"]);
    assert_eq!(first.command(listing), second.command(listing));
    let other = Case::fixture("flask")
        .file("requirements.txt", "gunicorn==23.0.0\n")
        .cache(&cache)
        .build()
        .succeeded()
        .says(&["Installing packages"]);
    let (status, _) = other.command("python -c 'import flask'");
    assert_ne!(status, 0, "a package that is no longer asked for is gone");
}

#[test]
fn a_torn_cache_does_no_harm_and_the_layer_comes_out_the_same() {
    let cache = Volume::new("torn");
    let first = Case::fixture("flask").cache(&cache).build().succeeded();
    in_volume(
        &cache,
        "cd /cache/python; for f in venv-*.tar; do head -c 100000 $f > /tmp/t; cat /tmp/t > $f; done; rm -rf pip",
    );
    let second = Case::fixture("flask").cache(&cache).build().succeeded().says(&["Installing packages"]);
    let listing = "find .venv -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum";
    assert_eq!(first.command(listing), second.command(listing));
    assert_eq!(second.start().get("/").status, 200);
}

#[test]
fn django_collects_static_files_and_runs_under_gunicorn() {
    let build = app("django").build().succeeded().says(&["Collecting static files", "1 static file copied"]);
    assert_eq!(build.process("web").as_deref(), Some("gunicorn --bind 0.0.0.0:$PORT shop.wsgi"));
    assert_eq!(build.meta("inputs"), "**\n");
    let running = build.start();
    let page = running.get("/").body;
    let (_, path) = page.trim().rsplit_once(' ').unwrap();
    assert!(path.starts_with("/static/shop/style."), "{page}");
    assert_eq!(running.get(path).body, "body { color: #333; }\n");

    let off = app("django")
        .variable("DISABLE_COLLECTSTATIC", "1")
        .build()
        .succeeded()
        .says(&["DISABLE_COLLECTSTATIC is set"])
        .does_not_say(&["Collecting static"]);
    assert!(!off.meta("inputs").lines().any(|glob| glob == "**"), "{}", off.meta("inputs"));

    app("django").file("shop/settings.py", "import os\nSECRET_KEY = os.environ['SECRET_KEY']\n").build().refused(&[
        "KeyError: 'SECRET_KEY'",
        "build.env of berth.yaml",
        "DISABLE_COLLECTSTATIC",
    ]);
}

#[test]
fn uv_installs_what_its_lock_says() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/buildpacks/fixtures/fastapi-uv");
    // A uv.lock names the index it was made with, so it is made here.
    let lock = in_build_stack(
        fixture.as_ref(),
        "cp -r /work /tmp/project && cd /tmp/project && uv lock --quiet && cat uv.lock",
    );
    let build = app("fastapi-uv")
        .file("uv.lock", &lock)
        .build()
        .succeeded()
        .says(&["uvicorn --host 0.0.0.0 --port $PORT main:app"]);
    assert!(build.start().get("/").body.contains("from fastapi"));
    assert_ne!(build.command("python -c 'import iniconfig'").0, 0, "no development packages");
    let inputs: Vec<&str> = build.meta("inputs").lines().collect();
    assert!(inputs.contains(&"uv.lock") && !inputs.contains(&"**"), "{inputs:?}");

    let manifest = fs::read_to_string(format!("{fixture}/pyproject.toml")).unwrap();
    app("fastapi-uv")
        .file("uv.lock", &lock)
        .file("pyproject.toml", &manifest.replace("fastapi==0.121.0", "fastapi==0.120.0"))
        .build()
        .refused(&["uv sync --locked failed", "run `uv lock`"]);
}

#[test]
fn poetry_is_installed_through_an_export() {
    let build = app("poetry").build().succeeded().says(&["Installing packages with poetry", "'wsgi:create_app()'"]);
    assert_eq!(build.start().get("/").body, "hello from poetry\n");
    assert_eq!(build.command("greet"), (0, "hello from poetry".to_owned()));
    assert_ne!(build.command("python -c 'import iniconfig'").0, 0, "no development packages");

    let manifest = include_str!("fixtures/poetry/pyproject.toml");
    app("poetry")
        .file("pyproject.toml", &manifest.replace("3.1.2", "3.1.1"))
        .build()
        .refused(&["poetry.lock does not belong to this pyproject.toml", "poetry lock"]);
}

#[test]
fn pipenv_is_installed_through_an_export() {
    let build = app("pipenv").build().succeeded().says(&["Installing packages with pipenv"]);
    assert_eq!(build.start().get("/").body, "hello from flask\n");
    assert_ne!(build.command("python -c 'import iniconfig'").0, 0, "no development packages");

    app("pipenv").without("Pipfile.lock").build().refused(&["no Pipfile.lock"]);
    let pipfile = include_str!("fixtures/pipenv/Pipfile");
    app("pipenv")
        .file("Pipfile", &pipfile.replace("3.1.2", "3.1.1"))
        .build()
        .refused(&["Pipfile.lock does not belong to this Pipfile", "pipenv lock"]);
}

#[test]
fn hooks_run_with_the_build_variables() {
    let hook = "#!/bin/sh\nset -e\necho \"greeting is $GREETING\"\ncommand -v python >> where\n";
    let build = Case::empty()
        .cache(&shared_cache("python"))
        .file("bin/pre_compile", "#!/bin/sh\necho '# made by the hook' > requirements.txt\n")
        .executable("bin/pre_compile")
        .file("bin/post_compile", hook)
        .file("requirements.txt", "no-such-package-in-any-index==1\n")
        .variable("GREETING", "it's \"$(fine)\"")
        .build()
        .succeeded()
        .says(&["Running bin/pre_compile", "greeting is it's \"$(fine)\"", "No default web process"]);
    assert_eq!(build.meta("inputs"), "**\n");
    assert_eq!(build.command("cat where").1, "/app/.venv/bin/python");
    assert_eq!(build.process("web"), None);

    Case::fixture("flask")
        .cache(&shared_cache("python"))
        .file("bin/post_compile", "#!/bin/sh\necho broken; exit 3\n")
        .build()
        .refused(&["broken", "bin/post_compile failed"]);
}

#[test]
fn modules_of_the_app_never_stand_in_for_pythons_own() {
    let trap = "import os\nos.write(2, b'the trap was sprung')\nraise SystemExit(1)\n";
    let build = app("flask")
        .file("re.py", trap)
        .file("json.py", trap)
        .file("ast.py", trap)
        .build()
        .succeeded()
        .does_not_say(&["trap"]);
    let (_, said) = build.command("PORT=5000 timeout 2 python -I .berth/python/web");
    assert!(said.contains("Starting gunicorn"), "{said}");
}

#[test]
fn a_package_that_does_not_exist_is_named() {
    Case::empty()
        .cache(&shared_cache("python"))
        .file("requirements.txt", "flask==0.0.99\n")
        .build()
        .refused(&["flask==0.0.99", "The packages could not be installed."]);
}
