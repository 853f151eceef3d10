//! The static buildpack: what nginx serves, what it keeps to itself, and which settings are refused.

use crate::harness::{Case, in_build_stack};
use crate::trees::{Expectation, expect_each, plant};

const GENERATE: &str = "python3 -I /buildpacks/static/lib/generate.py $PWD";

/// The value of a header of an answer.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
}

#[test]
fn a_folder_of_files_is_served_with_caching_and_without_secrets() {
    let build =
        Case::fixture("static-plain").file(".env", "SECRET=1").file("Procfile", "worker: sleep 1").build().succeeded();
    assert_eq!(build.process("web").as_deref(), Some(".berth/static/start"));
    let inputs: Vec<&str> = build.meta("inputs").lines().collect();
    assert_eq!(inputs, [".berth/**", ".htpasswd", ".static", "Staticfile", "Staticfile.auth", "static.json"]);
    let running = build.start_command(".berth/static/start", &[("SOURCE_VERSION", "abc"), ("BERTH_RELEASE", "v7")]);
    let statuses = [
        ("/", 200),
        ("/docs", 301),
        ("/docs/", 200),
        ("/latest/site.css", 200),
        ("/.well-known/security.txt", 200),
        ("/nope", 404),
        ("/assets/", 404),
        ("/.env", 404),
        ("/docs/%2e%2e/.env", 404),
        ("/.berth/static/nginx.conf", 404),
        ("/Procfile", 404),
        ("/../../../etc/passwd", 400),
        ("/..%2f..%2f..%2fetc/passwd", 400),
    ];
    for (path, status) in statuses {
        assert_eq!(running.get(path).status, status, "{path}");
    }
    let page = running.get("/");
    assert!(page.body.contains("hello from static"));
    assert_eq!(header(&page.head, "Cache-Control"), Some("no-cache"));
    assert_eq!(header(&page.head, "ETag"), Some("\"abc-v7\""));
    assert_eq!(header(&page.head, "Last-Modified"), None, "all files of a slug bear the same time");
    let hashed = running.get("/assets/app-3f2a9c1d.js").head;
    assert_eq!(header(&hashed, "Cache-Control"), Some("public, max-age=31536000, immutable"));
    assert_eq!(running.get("/docs").head.lines().find(|line| line.starts_with("Location")), Some("Location: /docs/"));
    assert!(running.get("/nope").body.contains("not here"), "404.html is the page for what is missing");

    let ask = |path: &str, headers: &str| running.request("GET", path, headers).unwrap();
    assert_eq!(ask("/", "If-None-Match: \"abc-v7\"\r\n").status, 304);
    assert_eq!(ask("/", "If-None-Match: W/\"abc-v7\"\r\n").status, 304);
    assert_eq!(ask("/", "If-None-Match: \"abc-v6\"\r\n").status, 200);
    let packed = ask("/assets/site.css", "Accept-Encoding: gzip\r\n").head;
    assert_eq!(header(&packed, "Content-Encoding"), Some("gzip"));
    assert_eq!(header(&packed, "Vary"), Some("Accept-Encoding"));
    assert!(running.logs().contains("\"GET /nope HTTP/1.0\" 404"), "{}", running.logs());
    assert_eq!(running.terminate().0, 0);
}

#[test]
fn static_json_is_honoured() {
    let build = Case::fixture("static-json").build().succeeded();
    let running = build.start();
    for (path, status, words) in [
        ("/", 200, "index"),
        ("/about", 200, "about"),
        ("/shop/any/thing", 200, "shop"),
        ("/app/view", 200, "app"),
        ("/app/assets/gone.js", 404, "errors/missing"),
        ("/gone", 404, "errors/missing"),
        ("/static.json", 404, "errors/missing"),
    ] {
        let answer = running.get(path);
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.body.contains(words), "{path}: {}", answer.body);
    }
    let moved = running.get("/old/gone/");
    assert_eq!((moved.status, header(&moved.head, "Location")), (302, Some("/")));
    let odd = running.get("/price");
    assert_eq!((odd.status, header(&odd.head, "Location")), (301, Some("/$5;{}\"quoted\"")));
    let head = running.get("/about").head;
    assert_eq!(header(&head, "X-Frame-Options"), Some("DENY"));
    assert_eq!(header(&head, "X-Price"), Some("$5 {$uri}"), "nothing in a value is a variable");
    assert_eq!(header(&head, "Content-Security-Policy"), Some("default-src 'self'; report-to \"a\""));
    assert_eq!(header(&running.get("/").head, "X-Frame-Options"), Some("SAMEORIGIN"), "the later glob counts");
    assert_eq!(header(&running.get("/fonts/a.txt").head, "Cache-Control"), Some("public, max-age=600"));
    let plain = running.request("GET", "/about?x=1", "X-Forwarded-Proto: http\r\n").unwrap();
    assert_eq!((plain.status, header(&plain.head, "Location")), (301, Some("https://app.test/about?x=1")));
    let tls = running.request("GET", "/about", "X-Forwarded-Proto: https\r\n").unwrap();
    assert_eq!(tls.status, 200);
}

#[test]
fn a_site_with_a_password_is_never_open() {
    let build = Case::fixture("staticfile-auth").build().succeeded().says(&["Visitors need a name"]);
    let running = build.start();
    let ask = |headers: &str| running.request("GET", "/deep/link", headers).unwrap();
    assert_eq!(ask("").status, 401);
    assert_eq!(ask("Authorization: Basic YWxpY2U6d3Jvbmc=\r\n").status, 401);
    assert_eq!(ask("If-None-Match: \"\"\r\n").status, 401);
    let inside = ask("Authorization: Basic YWxpY2U6d29uZGVy\r\n");
    assert_eq!((inside.status, inside.body.as_str()), (200, "<p>for alice</p>\n"));
    assert_eq!(header(&inside.head, "Strict-Transport-Security"), Some("max-age=31536000"));
    assert_eq!(header(&inside.head, "Cache-Control"), Some("private, no-cache"));

    let build = Case::empty()
        .file("static.json", r#"{"basic_auth": true, "basic_auth_htpasswd_path": "who/may"}"#)
        .file("index.html", "inside")
        .build()
        .succeeded();
    let (status, said) = build.command("PORT=5000 .berth/static/start");
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("set BASIC_AUTH_USERNAME and BASIC_AUTH_PASSWORD"), "{said}");
    let secrets = [("BASIC_AUTH_USERNAME", "bob"), ("BASIC_AUTH_PASSWORD", "$a{b}\"c")];
    let running = build.start_command(".berth/static/start", &secrets);
    assert_eq!(running.get("/").status, 401);
    let inside = running.request("GET", "/", "Authorization: Basic Ym9iOiRhe2J9ImM=\r\n").unwrap();
    assert_eq!(inside.body, "inside");
    drop(running);
    assert_eq!(build.command("mkdir who && echo 'bob:{PLAIN}$a{b}\"c' > who/may").0, 0);
    let running = build.start();
    let ask = |path: &str| running.request("GET", path, "Authorization: Basic Ym9iOiRhe2J9ImM=\r\n").unwrap().status;
    assert_eq!((ask("/"), ask("/who/may")), (200, 404), "the passwords are not for those who are in either");
}

#[test]
fn a_link_that_leads_out_is_not_followed() {
    let build = Case::empty().file("index.html", "home").build().succeeded();
    // As a push would bring them; the site is not built again for them.
    assert_eq!(build.command("mkdir real && echo in > real/page.html && ln -s real inner && echo x > .secret").0, 0);
    let running = build.start();
    assert_eq!(running.get("/inner/page.html").status, 200, "a link inside the site is fine");
    drop(running);
    for target in ["/etc", "../etc", ".", ".secret"] {
        assert_eq!(build.command(&format!("ln -sfn {target} leak")).0, 0);
        let running = build.start();
        if target == "." {
            assert_eq!(running.get("/leak/.secret").status, 404);
            continue;
        }
        for path in ["/leak", "/leak/passwd"] {
            assert_eq!(running.get(path).status, 404, "{path} -> {target}");
        }
        assert!(running.logs().contains("lead out of the site"), "{}", running.logs());
    }
    let (status, said) = build.command("rm index.html && PORT=5000 .berth/static/start");
    assert!(status == 1 && said.contains("index.html is gone"), "{said}");
}

#[test]
fn settings_that_are_not_supported_are_refused_by_name() {
    let page = ("index.html", "");
    let json = |text: &'static str| [("index.html", ""), ("static.json", text)];
    let staticfile = |text: &'static str| [("index.html", ""), ("Staticfile", text)];
    let cases: &[Expectation<'_>] = &[
        (&json("{}"), &["status 0"]),
        (&json(r#"{"worker_connections": 5}"#), &["worker_connections has no effect here", "status 0"]),
        (&json(r#"{"basic_atuh": true}"#), &["\"basic_atuh\" is not supported", "status 1"]),
        (&json(r#"{"basic_auth": {"username": "a"}}"#), &["basic_auth must be true or false", "status 1"]),
        (&json(r#"{"basic_auth": true, "basic_auth": false}"#), &["is there twice", "status 1"]),
        (&json(r#"{"proxies": {"/api/": {"origin": "http://x"}}}"#), &["proxies are not supported", "status 1"]),
        (&json(r#"{"root": "../.."}"#), &["cannot be served", "status 1"]),
        (&json(r#"{"root": ".git"}"#), &["cannot be served", "status 1"]),
        (&json(r#"{"root": "missing"}"#), &["missing/ is not there", "status 1"]),
        (&json(r#"{"root": "x\"; autoindex on; #"}"#), &["cannot be served", "status 1"]),
        (&json(r#"{"headers": {"/**": {"X: y\r\nZ": "a"}}}"#), &["is not the name of a header", "status 1"]),
        (&json(r#"{"headers": {"/**": {"X": "a\nb"}}}"#), &["control character", "status 1"]),
        (&json(r#"{"redirects": {"/a": {"url": "${HOST}/"}}}"#), &["variables are not filled in", "status 1"]),
        (&json(r#"{"error_page": "../../etc/passwd"}"#), &["leads out of the site", "status 1"]),
        (&json("{"), &["not valid JSON", "line 1", "status 1"]),
        (&staticfile("root: .\npushstate: enabled\n"), &["status 0"]),
        (&staticfile("host_dot_files: true\n"), &["host_dot_files is not supported", "status 1"]),
        (&staticfile("location_include: x.conf\n"), &["location_include is not supported", "status 1"]),
        (&staticfile("basic_auth: true\n"), &["'basic_auth' is not supported", "status 1"]),
        (&staticfile("what is this\n"), &["line 1 is not understood", "status 1"]),
        (&[page, ("Staticfile", ""), ("static.json", "{}")], &["Both static.json and Staticfile", "status 1"]),
        (
            &[page, ("Staticfile", ""), ("Staticfile.auth", "alice:wonderland\n")],
            &["entry 1 is not NAME:HASH", "status 1"],
        ),
        (&[page, ("Staticfile", ""), ("Staticfile.auth", "# nobody\n")], &["names nobody", "status 1"]),
        (&[page, ("static.json", "{}"), ("Staticfile.auth", "a:$1$b$c\n")], &["does not use it", "status 1"]),
        (&[page, ("out", "->."), ("static.json", r#"{"root": "out"}"#)], &["leads to the app itself", "status 1"]),
        (&[page, ("out", "->/etc"), ("static.json", r#"{"root": "out"}"#)], &["leads out of the app", "status 1"]),
    ];
    expect_each(cases, GENERATE);
}

#[test]
fn another_buildpacks_folder_is_served_with_a_fallback_for_pages() {
    let directory = tempfile::Builder::new().prefix("berth-test-folder").tempdir().unwrap();
    plant(directory.path(), &[("dist/index.html", "the app"), ("dist/app.js", "code"), ("secret.js", "server")]);
    let said = in_build_stack(
        directory.path(),
        "cp -r /work /tmp/app && cd /tmp/app && /buildpacks/static/bin/serve-folder /tmp/app dist 2>/tmp/messages
         cat /tmp/messages; export PORT=5000; .berth/static/start &
         for try in $(seq 400); do curl -s -o /dev/null 127.0.0.1:5000/ && break; sleep 0.05; done
         for path in / /deep/link /app.js /gone.js /secret.js /../secret.js; do
           curl -s --path-as-is -o /tmp/body -w \"$path %{http_code} \" 127.0.0.1:5000$path; head -c 20 /tmp/body | head -n 1; echo
         done; kill $!; wait $!; echo status $?",
    );
    for words in [
        "\n.berth/static/start\n",
        "Serving dist/",
        "answered with index.html",
        "/ 200 the app",
        "/deep/link 200 the app",
        "/app.js 200 code",
        "/gone.js 404",
        "/secret.js 404",
        "/../secret.js 400",
        "status 0",
    ] {
        assert!(format!("\n{said}").contains(words), "{words:?} is not in:\n{said}");
    }
}
