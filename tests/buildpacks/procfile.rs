//! The procfile buildpack, and what is said when nothing fits.

use crate::harness::Case;

#[test]
fn an_app_with_a_procfile_runs_as_it_is() {
    let build = Case::empty()
        .file(
            "Procfile",
            "# two of them\r\nweb: python3 -m http.server $PORT # the site\n\nclock: sh -c 'echo \"#\"; sleep 9'\n",
        )
        .file("notes.txt", "hello from a procfile")
        .build()
        .succeeded()
        .says(&["       web: python3 -m http.server $PORT\n", "       clock: sh -c 'echo \"#\"; sleep 9'\n"]);
    assert_eq!(build.meta("buildpacks"), "procfile\tProcfile\n");
    assert_eq!(build.meta("inputs"), "Procfile\n");
    assert_eq!(build.meta("layers"), "");
    assert_eq!(build.process("web"), None, "the Procfile itself says so");
    let running = build.start_command("python3 -m http.server $PORT", &[]);
    assert_eq!(running.get("/notes.txt").body, "hello from a procfile");
}

#[test]
fn a_procfile_that_cannot_be_used_is_refused_line_by_line() {
    let cases: [(&str, &[&str]); 4] = [
        ("web python3 server.py\n", &["line 1 is not of the form TYPE: COMMAND: web python3 server.py"]),
        ("web: a\n\nworker:\n", &["line 3 is not of the form"]),
        ("web: a\nweb: b\n", &["names the process type web twice"]),
        ("# nothing\n", &["names no process"]),
    ];
    for (text, words) in cases {
        Case::empty().file("Procfile", text).build().refused(words);
    }
    Case::empty().file("Procfile", "worker: sleep 1").build().succeeded().says(&["There is no web process"]);
}

#[test]
fn what_was_looked_for_and_found_is_said_when_nothing_fits() {
    let build = Case::empty().file("app.py", "").file("pyproject.toml", "[tool.black]\n").build();
    assert_eq!(build.status, 10);
    build.says(&[
        "No buildpack fits",
        "python: requirements.txt",
        "static: index.html",
        "procfile: Procfile",
        "app.py pyproject.toml",
    ]);
}
