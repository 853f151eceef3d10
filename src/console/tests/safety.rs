//! What other sites, other people's text and lesser rights cannot do.

use axum::{
    body::Body,
    http::{Request, Version, header},
};

use super::{DEV, OF_DEV, Server, cookie};
use crate::{
    domain::{App, Build, BuildNumber, Timestamp},
    logs::{LogRecord, MAX_TEXT},
};

const SCRIPT: &str = "<script>alert(1)</script>";

/// Pages below an environment, and others.
fn pages() -> Vec<String> {
    let of_env = [
        "",
        "/logs",
        "/metrics",
        "/builds",
        "/builds/2",
        "/releases",
        "/releases/1",
        "/config",
        "/domains",
        "/jobs",
        "/drains",
        "/run",
        "/events",
        "/settings",
    ];
    let others = ["/tenants/acme", "/tenants/acme/webhooks/1a2b3c4d", "/apps/acme/shop", "/events"];
    of_env.iter().map(|path| format!("{DEV}{path}")).chain(others.map(str::to_owned)).collect()
}

fn changes(page: &str) -> bool {
    // Whoever is a member may leave, whatever else they may.
    page.replace("/do/leave?", "").contains("/do/") || page.contains("/upload")
}

#[tokio::test]
async fn a_form_of_another_session_or_site_does_nothing() {
    let server = Server::new().await;
    let (olga, dan) = (server.session("olga").await, server.session("dan").await);
    server.page(&olga, "/").await.is(200);
    let before = server.world.store.revision().await.unwrap();
    let scale = format!("{OF_DEV}&count.web=5");
    for word in ["", "zz", &dan.form_word()] {
        server.post(Some(&olga), "/do/scale", &format!("{scale}&form={word}"), &[]).await.is(403);
        server.post(Some(&olga), "/sign-out", &format!("form={word}"), &[]).await.is(403);
    }
    server.post(Some(&olga), "/do/scale", &scale, &[]).await.is(403);
    let form = format!("{scale}&form={}", olga.form_word());
    for headers in [
        &[("sec-fetch-site", "cross-site")][..],
        &[("sec-fetch-site", "same-site")],
        &[("origin", "https://evil.example"), ("host", "localhost:7000")],
        &[("origin", "null"), ("host", "localhost:7000")],
    ] {
        server.post(Some(&olga), "/do/scale", &form, headers).await.is(403);
        server.post(Some(&olga), "/sign-out", &format!("form={}", olga.form_word()), headers).await.is(403);
        let signed_in = server.post(None, "/sign-in", "token=berth_pat_x", headers).await.is(403);
        assert!(!signed_in.headers.contains_key(header::SET_COOKIE));
    }
    let upload = "--edge\r\nContent-Disposition: form-data; name=\"tenant\"\r\n\r\nacme\r\n\
                  --edge\r\nContent-Disposition: form-data; name=\"source\"; filename=\"a\"\r\n\r\nx\r\n--edge--\r\n";
    let request = Request::post("/upload").header(header::COOKIE, cookie(&olga));
    let request = request.header(header::CONTENT_TYPE, "multipart/form-data; boundary=edge");
    server.send(request.body(Body::from(upload)).unwrap()).await.is(403);
    assert_eq!(server.world.store.revision().await.unwrap(), before, "something was done");
    let own = [("sec-fetch-site", "same-origin"), ("origin", "http://localhost:7000"), ("host", "localhost:7000")];
    server.post(Some(&olga), "/do/scale", &form, &own).await.leads_to("/envs/acme/shop/dev?did=scale");
    assert_ne!(server.world.store.revision().await.unwrap(), before);
}

#[tokio::test]
async fn a_request_names_one_host() {
    let server = Server::new().await;
    for path in ["/sign-in", "/openapi.json"] {
        for (version, hosts, status) in [
            (Version::HTTP_11, &["a"][..], 200),
            (Version::HTTP_10, &[], 200),
            (Version::HTTP_11, &[], 400),
            (Version::HTTP_11, &["a", "b"], 400),
            (Version::HTTP_10, &["a", "a"], 400),
            (Version::HTTP_11, &["[::1]:80"], 200),
            (Version::HTTP_11, &["berth_1.example.com:65535"], 200),
            (Version::HTTP_11, &["build.42:7000"], 200),
            (Version::HTTP_11, &[""], 400),
            (Version::HTTP_11, &[":80"], 400),
            (Version::HTTP_11, &["@a"], 400),
            (Version::HTTP_11, &["a\\"], 400),
            (Version::HTTP_11, &["a/."], 400),
            (Version::HTTP_11, &["a:b"], 400),
            (Version::HTTP_11, &["a b"], 400),
            (Version::HTTP_11, &["a/b"], 400),
            (Version::HTTP_11, &["a/"], 400),
            (Version::HTTP_11, &["ann@a"], 400),
            (Version::HTTP_11, &["a:99999"], 400),
            (Version::HTTP_11, &["[::1"], 400),
            (Version::HTTP_11, &["<script>"], 400),
        ] {
            let request =
                hosts.iter().fold(Request::get(path).version(version), |request, host| request.header("host", *host));
            let answer = server.send_as_is(request.body(Body::empty()).unwrap()).await.is(status);
            assert!(answer.headers.contains_key("x-request-id"), "{path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn the_relay_only_reads_and_only_for_who_is_signed_in() {
    let server = Server::new().await;
    let olga = server.session("olga").await;
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        server.send(request.body(Body::empty()).unwrap()).await
    };
    let cookie = cookie(&olga);
    let own = [("cookie", cookie.as_str())];
    let read = ask("GET", "/relay/v1/whoami", &own).await.is(200).shows("\"olga\"");
    assert_eq!(read.header(header::CONTENT_SECURITY_POLICY), "default-src 'none'; sandbox");
    assert_eq!(
        (read.header(header::CACHE_CONTROL), read.header(header::X_CONTENT_TYPE_OPTIONS)),
        ("no-store", "nosniff")
    );
    ask("GET", "/relay/v1/whoami", &[]).await.is(401);
    ask("GET", "/relay/v1/whoami", &[("cookie", &cookie), ("sec-fetch-site", "cross-site")]).await.is(401);
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        ask(method, "/relay/v1/apps/acme/shop", &own).await.is(405);
    }
    assert!(server.world.store.get::<App>(&"acme/shop".parse().unwrap()).await.unwrap().is_some());
    ask("GET", "/relay/v1/envs/other/app/dev", &own).await.is(404);
    // The cookie alone is nothing to the API, where other sites' forms could be sent to.
    ask("GET", "/v1/whoami", &own).await.is(401);
    ask("DELETE", "/v1/apps/acme/shop", &own).await.is(401);
}

#[tokio::test]
async fn every_page_says_what_browsers_may_do_with_it() {
    let server = Server::new().await;
    let opal = server.session("opal").await;
    let others =
        ["/", "/account", "/platform", "/sign-in", "/sign-in/nonsense", "/tenants/nobodys", "/do/tenant-create"];
    for path in pages().into_iter().chain(others.map(str::to_owned)).chain(["/nothing".to_owned()]) {
        let request = Request::get(&path).header(header::COOKIE, cookie(&opal)).header(header::ACCEPT, "text/html");
        let page = server.send(request.body(Body::empty()).unwrap()).await;
        assert!(page.header(header::CONTENT_TYPE).starts_with("text/html"), "{path}: {page:?}");
        let policy = page.header(header::CONTENT_SECURITY_POLICY);
        for rule in ["default-src 'none'", "script-src 'self'", "form-action 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(rule) && !policy.contains("unsafe"), "{path}: {policy:?}");
        }
        assert_eq!(page.header(header::CACHE_CONTROL), "no-store", "{path}");
        assert_eq!(page.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff", "{path}");
        assert!(!page.text.contains(" onclick=") && !page.text.contains(" style="), "{path} has something inline");
    }
}

#[tokio::test]
async fn what_people_and_programs_have_written_stays_text() {
    let server = Server::new().await;
    let olga = server.session("olga").await;
    let shop = "acme/shop/dev".parse().unwrap();
    let logs = &server.world.logs;
    logs.append_when_ready(&shop, LogRecord::berth(Timestamp::now(), "web.1", SCRIPT)).await;
    logs.flush().await;
    let mut output = logs.build_writer(&shop, BuildNumber(1)).unwrap();
    output.write(format!("{SCRIPT}\n").as_bytes());
    output.finish().unwrap();
    let sent = "%3Cscript%3Ealert(1)%3C/script%3E";
    server.act(&olga, "config-set", &format!("{OF_DEV}&name=BAD&value={sent}")).await.is(303);
    server.act(&olga, "token-create", &format!("name={sent}&scope=read")).await.is(200);
    let (logs, build) = (format!("{DEV}/logs"), format!("{DEV}/builds/1"));
    let (search, config) = (format!("{logs}?search={sent}"), format!("{DEV}/config?reveal=*"));
    let unknown = format!("/apps/acme/{sent}");
    let again = format!("/do/domain-add?{OF_DEV}&id={sent}");
    let mut shown = Vec::new();
    for path in [&logs, &search, &build, &config, "/account", &unknown, &again] {
        shown.push((path, server.page(&olga, path).await));
    }
    // What concerns an account is told to operators.
    let opal = server.session("opal").await;
    shown.push(("events", server.page(&opal, "/events?type=token.").await.is(200)));
    shown.push(("run", server.act(&olga, "run", &format!("{OF_DEV}&command={sent}")).await.is(200)));
    shown.push(("domain-add", server.act(&olga, "domain-add", &format!("{OF_DEV}&id={sent}")).await.is(400)));
    for (path, page) in shown {
        assert!(!page.text.contains("<script>"), "{path}: {page:?}");
        // A name that cannot be one is not quoted everywhere.
        let quoted = page.text.contains("&#60;script&#62;") || page.text.contains("%3Cscript%3E");
        assert!(quoted || path == unknown, "{path}: {page:?}");
    }
}

#[tokio::test]
async fn the_same_form_for_several_things_can_be_told_apart() {
    let server = Server::new().await;
    for tenant in ["empty", "em-pty", "empty-hint"] {
        server.world.run("opal", &format!("tenants create {tenant}")).await.ok();
    }
    let opal = server.session("opal").await;
    let page = server.page(&opal, "/").await.is(200);
    for tenant in ["empty", "em-pty", "empty-hint"] {
        assert!(page.text.contains(&format!(" id=\"app-create-name-{tenant}\"")), "{tenant}: {page:?}");
    }
}

#[tokio::test]
async fn where_there_is_something_to_promote_is_offered() {
    let server = Server::new().await;
    let olga = server.session("olga").await;
    let there = server.page(&olga, "/envs/acme/shop/prod/settings").await.is(200);
    there.shows("<option value=\"acme/shop/dev\">");
    // Nothing runs in the only other one.
    let here = server.page(&olga, "/envs/acme/shop/dev/settings").await.is(200).shows("name=\"from\" value=\"\"");
    assert!(!here.text.contains("<datalist"), "{}", here.text);
}

#[tokio::test]
async fn viewers_are_offered_nothing_that_changes_anything() {
    let server = Server::new().await;
    let (vera, olga) = (server.session("vera").await, server.session("olga").await);
    for path in pages() {
        let page = server.page(&vera, &path).await;
        assert_eq!(page.status, if path.ends_with("/config") { 403 } else { 200 }, "{path}");
        assert!(!changes(&page.text), "{path}: {page:?}");
    }
    let with_forms = ["", "/config", "/domains", "/drains", "/settings", "/run", "/jobs", "/releases"];
    for path in with_forms.map(|path| format!("{DEV}{path}")) {
        assert!(changes(&server.page(&olga, &path).await.text), "an owner is offered nothing at {path}");
    }
    for action in ["scale", "app-destroy", "config-set", "invite"] {
        server.page(&vera, &format!("/do/{action}?{OF_DEV}")).await.is(403);
        server.page(&olga, &format!("/do/{action}?{OF_DEV}")).await.is(200);
    }
}

#[tokio::test]
async fn a_session_allows_no_more_than_the_token_it_began_with() {
    let server = Server::new().await;
    let read = server.session_with("olga", "--scope read").await;
    for path in pages().into_iter().chain(["/".to_owned(), "/account".to_owned()]) {
        let page = server.page(&read, &path).await;
        assert!(matches!(page.status, 200 | 403) && !changes(&page.text), "{path}: {page:?}");
    }
    let before = server.state().await;
    for (action, form) in [
        ("scale", "count.web=5"),
        ("restart", ""),
        ("config-set", "name=A&value=b"),
        ("env-destroy", "confirm=acme/shop/dev"),
        ("token-create", "name=more&scope=full"),
        ("run", "command=true"),
    ] {
        server.act(&read, action, &format!("{OF_DEV}&{form}")).await.is(403);
    }
    assert_eq!(server.state().await, before);
    let deploy = server.session_with("olga", "--scope deploy").await;
    server.act(&deploy, "scale", &format!("{OF_DEV}&count.web=5")).await.is(303);
    server.act(&deploy, "config-set", &format!("{OF_DEV}&name=A&value=b")).await.is(403);
}

#[tokio::test]
async fn what_cannot_be_undone_is_done_when_its_name_is_typed() {
    let server = Server::new().await;
    let olga = server.session("olga").await;
    server.page(&olga, "/do/app-destroy?tenant=acme&app=shop").await.is(200).shows("<strong>acme/shop</strong>");
    let form = "tenant=acme&app=shop";
    for confirm in ["", "&confirm=", "&confirm=shop", "&confirm=acme/shop/dev", "&confirm=acme/blog"] {
        server.act(&olga, "app-destroy", &format!("{form}{confirm}")).await.is(400).shows("acme/shop");
        server.act(&olga, "env-destroy", &format!("{form}&env=prod{confirm}")).await.is(400);
    }
    server.page(&olga, "/envs/acme/shop/prod").await.is(200);
    server.act(&olga, "env-destroy", &format!("{form}&env=prod&confirm=acme/shop/prod")).await.is(303);
    server.page(&olga, "/envs/acme/shop/prod").await.is(404);
    server
        .act(&olga, "app-destroy", &format!("{form}&confirm=acme/shop"))
        .await
        .leads_to("/tenants/acme?did=app-destroy");
    server.page(&olga, "/apps/acme/shop").await.is(404);
}

#[tokio::test]
async fn a_log_of_long_lines_shows_the_newest_that_fit() {
    let server = Server::new().await;
    let (olga, shop) = (server.session("olga").await, "acme/shop/dev".parse().unwrap());
    // Characters that JSON makes twice as long as they are on disk: more than a page takes, and all of it is kept.
    let long = "\u{202e}".repeat(MAX_TEXT / 3);
    for n in 0..600 {
        let record = LogRecord::berth(Timestamp::now(), "web.1", format!("{n}{long}"));
        server.world.logs.append_when_ready(&shop, record).await;
    }
    server.world.logs.append_when_ready(&shop, LogRecord::berth(Timestamp::now(), "web.1", "the newest")).await;
    let page = server.page(&olga, &format!("{DEV}/logs?lines=10000")).await.is(200);
    page.shows("the newest").shows("lines before these are not shown");
    server.page(&olga, &format!("{DEV}/logs?lines=many")).await.is(400);
}

#[tokio::test]
async fn a_source_that_is_sent_twice_is_built_once_and_that_is_told() {
    let server = Server::new().await;
    let olga = server.session("olga").await;
    let first = server.upload(&olga, "1a2b", "an archive").await;
    let to = first.header(header::LOCATION).to_owned();
    server.page(&olga, &to).await.is(200).shows("The build is queued.");
    // Whether anything was built since this was asked last: the build is taken away, and is there again when it is.
    let built = async || {
        let builds = server.world.store.list::<Build>("acme/shop/dev/").await.unwrap();
        let Some(build) = builds.into_iter().find(|build| build.commit == "5c".repeat(20)) else { return false };
        server.world.store.transaction().delete(&build).commit().await.unwrap();
        true
    };
    assert!(built().await);
    assert_eq!(server.upload(&olga, "1a2b", "an archive").await.header(header::LOCATION), to);
    assert!(!built().await, "the same was built twice");
    // The same page with another file.
    server.upload(&olga, "1a2b", "another archive").await.is(303);
    assert!(built().await, "another file was not built");
}
