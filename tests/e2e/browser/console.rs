//! The console: what people do in it, and what it keeps them from.

use std::{thread, time::Duration};

use reqwest::blocking::{Client, Response};
use serde_json::Value;
use thirtyfour::By;

use super::{
    chromium::{Browser, until},
    page::{Size, Theme, button, look_name},
};
use crate::{
    Case,
    platform::{DEADLINE, Platform, User, eventually},
    repository::Repository,
};

pub const CASES: &[Case] = &[
    ("browser_signs_in_by_token", browser_signs_in_by_token),
    ("browser_signs_in_by_a_link_once", browser_signs_in_by_a_link_once),
    ("browser_watches_a_push_go_live", browser_watches_a_push_go_live),
    ("browser_rolls_back_and_scales", browser_rolls_back_and_scales),
    ("browser_shows_hostile_log_lines_as_text", browser_shows_hostile_log_lines_as_text),
    ("browser_changes_config_and_reveals_it_on_demand", browser_changes_config_and_reveals_it_on_demand),
    ("browser_refuses_a_viewer_changes", browser_refuses_a_viewer_changes),
    ("browser_forms_of_others_are_refused", browser_forms_of_others_are_refused),
];

const COOKIE: &str = "berth_session";

/// A link to sign in with, as `console` prints it.
fn link(platform: &Platform, user: &User) -> String {
    let made = platform.ssh(user, &["console", "--json"]).ok().json();
    made["url"].as_str().unwrap().to_owned()
}

/// A browser in which a user is signed in, on the first page.
pub fn signed_in(platform: &Platform, case: &str, user: &User) -> Browser {
    let browser = Browser::start(platform, case);
    browser.open(&link(platform, user));
    browser.press(&format!("Sign in as {}", user.name));
    browser.at("/");
    browser
}

/// A site of one page, deployed as many times as there are versions of it.
pub fn deployed_site(platform: &Platform, versions: &[&str]) -> (String, User, Repository) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    for version in versions {
        repository.write("index.html", version);
        repository.commit(version);
        repository.push().ok();
    }
    (app, user, repository)
}

fn dev_host(app: &str) -> String {
    let (tenant, app) = app.split_once('/').unwrap();
    format!("dev.{app}.{tenant}.localhost")
}

fn browser_signs_in_by_token(platform: &Platform) {
    let (_, user) = platform.new_tenant();
    let browser = Browser::start(platform, "token");
    browser.open("/");
    browser.at("/sign-in");
    browser.looked_at("sign-in");
    browser.fill("Token", "berth_pat_nonsense");
    browser.press("Sign in");
    browser.find(By::Css("[role=alert]"));
    assert_eq!(browser.cookie(COOKIE), None, "signed in with nonsense");

    let made = platform.ssh(&user, &["tokens", "create", "browser", "--scope", "full", "--json"]).ok().json();
    browser.fill("Token", made["token"].as_str().unwrap());
    browser.press("Sign in");
    browser.at("/");
    browser.see(&user.name);
    let cookie = browser.cookie(COOKIE).unwrap();
    assert_ne!(cookie, made["token"].as_str().unwrap(), "the cookie is the token itself");
    assert_eq!(browser.script("return document.cookie"), "", "scripts see the cookie");

    browser.press("Sign out");
    browser.at("/sign-in");
    assert_eq!(browser.cookie(COOKIE), None);
    // What the browser forgot is worth nothing to who kept it.
    let api = Client::builder().no_proxy().build().unwrap();
    let whoami = api.get(format!("{}/v1/whoami", browser.origin)).bearer_auth(cookie).send().unwrap();
    assert_eq!(whoami.status(), 401, "the session goes on after signing out");
    // To where one wanted to go.
    browser.open("/account");
    browser.at("/sign-in");
    browser.fill("Token", made["token"].as_str().unwrap());
    browser.press("Sign in");
    browser.at("/account");
    browser.finish_but_for(&["status of 401"]);
}

fn browser_signs_in_by_a_link_once(platform: &Platform) {
    let (app, user) = platform.new_app();
    let link = link(platform, &user);
    let browser = Browser::start(platform, "link");
    assert!(link.starts_with(&format!("{}/sign-in/", browser.origin)), "{link}");
    // Looking at it does not use it up.
    browser.open(&link);
    browser.looked_at("sign-in-link");
    browser.reload();
    browser.press(&format!("Sign in as {}", user.name));
    browser.at("/");
    browser.see(&user.name);
    browser.open(&link);
    browser.see("this link is not good");
    assert!(!browser.has(button(&format!("Sign in as {}", user.name))));

    // A session that is revoked elsewhere ends here, with a page that follows what happens too.
    browser.open(&format!("/envs/{app}/dev"));
    browser.see("Nothing deployed yet");
    let tokens = platform.ssh(&user, &["tokens", "list", "--json"]).ok().json();
    let session = tokens.as_array().unwrap().iter().find(|token| token["session"] == true).unwrap()["id"].clone();
    platform.ssh(&user, &["tokens", "revoke", session.as_str().unwrap()]).ok();
    platform.ssh(&user, &["config", "set", &format!("{app}/dev"), "A=b"]).ok();
    browser.at("/sign-in");
    browser.open("/account");
    browser.at("/sign-in");
    browser.finish_but_for(&["status of 404", "status of 401"]);
}

/// Has the page keep each text that it ever shows. The record is gone when the page is loaded anew.
const RECORD: &str = "window.shown = [document.getElementById('main').innerText]; \
                      new MutationObserver(() => window.shown.push(document.getElementById('main').innerText)) \
                        .observe(document.getElementById('main'), { childList: true, subtree: true, characterData: true, attributes: true });";

fn browser_watches_a_push_go_live(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    // It takes a while to answer, so that the deployment can be seen under way.
    repository.write(
        "app.py",
        "import time, http.server\ntime.sleep(6)\nhttp.server.test(port=int(__import__('os').environ['PORT']))\n",
    );
    repository.write("requirements.txt", "");
    repository.write("Procfile", "web: python3 app.py\n");
    repository.commit("First");
    let browser = signed_in(platform, "watch", &user);
    browser.open(&format!("/envs/{app}/dev"));
    browser.see("Nothing deployed yet");
    browser.looked_at("environment-empty");
    browser.script(RECORD);
    thread::scope(|scope| {
        let push = scope.spawn(|| repository.push());
        browser.find(By::Css("#deployment .progress"));
        for (size, theme) in [(Size::Phone, Theme::Dark), (Size::Desktop, Theme::Light)] {
            browser.look(size, theme);
            browser.screenshot(&format!("environment-deploying-{}", look_name(size, theme)));
        }
        push.join().unwrap().ok();
    });
    browser.see_all(&["web.1 ready", "v1", "succeeded"]);
    let shown = browser.script("return window.shown");
    let shown: Vec<&str> =
        shown.as_array().expect("the page was loaded anew").iter().filter_map(Value::as_str).collect();
    for text in ["build 1", "Deploying", "0 of 1 ready", "web.1 starting", "web.1 ready"] {
        assert!(shown.iter().any(|page| page.contains(text)), "{text:?} was never shown:\n{}", shown.join("\n=====\n"));
    }
    browser.finish();
}

fn browser_rolls_back_and_scales(platform: &Platform) {
    let (app, user, _repository) = deployed_site(platform, &["one", "two"]);
    assert_eq!(platform.get(&dev_host(&app), "/").1, "two");
    let browser = signed_in(platform, "operate", &user);
    browser.open(&format!("/envs/{app}/dev"));
    browser.press("Roll back 1");
    browser.see_all(&["Going back", "v3"]);
    eventually("the first version is back", DEADLINE, || (platform.get(&dev_host(&app), "/").1 == "one").then_some(()));
    browser.find(By::Css("#release-3 .badge.good"));

    browser.fill("web", "2");
    browser.press("Scale");
    browser.see("The new scale is being reached");
    browser.see_all(&["web.1 ready", "web.2 ready"]);
    let ps = platform.ssh(&user, &["ps", &format!("{app}/dev"), "--json"]).ok().json();
    assert_eq!(ps["replicas"].as_array().unwrap().len(), 2, "{ps}");
    browser.finish();
}

/// What a line of a log must not be: markup, a colour, a terminal's title, text that runs backwards.
const HOSTILE: &str = "</div><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> \
                       \\x1b[31mred\\x1b[0m \\x1b]0;owned\\x07 \\u202eback";

/// What is in the log on the page, and whether it is text alone.
const LOOK_INTO_LOG: &str = "const log = document.getElementById('log'); \
                             return [log.innerText, log.querySelectorAll('script, img').length, document.title]";

fn is_harmless(browser: &Browser, mark: &str) {
    until(&format!("the log shows {mark}"), || {
        let seen = browser.script(LOOK_INTO_LOG);
        let text = seen[0].as_str()?;
        let line = text.lines().find(|line| line.contains(mark) && line.contains("red"))?;
        assert!(line.contains("<script>document.title='owned'</script><img src=x"), "{line:?}");
        let acted_on = |character: char| character.is_control() || ('\u{202a}'..='\u{202e}').contains(&character);
        assert!(!line.contains(acted_on), "{line:?}");
        assert!(seen[1] == 0 && seen[2] != "owned", "{seen}");
        Some(())
    });
}

fn browser_shows_hostile_log_lines_as_text(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    let source = format!(
        "import http.server, os\nLINE = '''{HOSTILE}'''\n\
         class Handler(http.server.BaseHTTPRequestHandler):\n\
        \x20   def log_message(self, *_): pass\n\
        \x20   def do_GET(self):\n\
        \x20       print('asked', self.path, LINE, flush=True)\n\
        \x20       self.send_response(200)\n\
        \x20       self.end_headers()\n\
         http.server.HTTPServer(('', int(os.environ['PORT'])), Handler).serve_forever()\n"
    );
    repository.write("app.py", source);
    repository.write("requirements.txt", "");
    repository.write("Procfile", "web: python3 app.py\n");
    repository.commit("First");
    repository.push().ok();
    let env = format!("{app}/dev");
    platform.get(&dev_host(&app), "/before");
    eventually("the line is in the log", DEADLINE, || {
        platform.ssh(&user, &["logs", &env]).ok().stdout.contains("asked /before").then_some(())
    });
    let browser = signed_in(platform, "logs", &user);
    browser.open(&format!("/envs/{env}/logs"));
    is_harmless(&browser, "asked /before");
    // What comes while one looks on goes another way, through the page's script.
    browser.script("window.unchanged = true");
    platform.get(&dev_host(&app), "/meanwhile");
    is_harmless(&browser, "asked /meanwhile");
    assert_eq!(browser.script("return window.unchanged"), true, "the page was loaded anew");
    browser.looked_at("logs");
    browser.fill("Text", "meanwhile");
    browser.press("Show");
    is_harmless(&browser, "asked /meanwhile");
    assert!(!browser.text().contains("asked /before"), "lines are shown that do not fit");
    browser.finish();
}

fn browser_changes_config_and_reveals_it_on_demand(platform: &Platform) {
    let (app, user) = platform.new_app();
    let browser = signed_in(platform, "config", &user);
    browser.open(&format!("/envs/{app}/dev/config"));
    browser.see("No variables yet");
    let value = "secret <b>&amp; 'quoted'";
    browser.fill("Name", "GREETING");
    browser.fill("Value (optional)", value);
    browser.press("Set");
    browser.see_all(&["Set; when something runs", "GREETING"]);
    assert_eq!(
        platform.ssh(&user, &["config", "get", &format!("{app}/dev"), "GREETING"]).ok().stdout.trim_end(),
        value
    );
    let source = || browser.script("return document.documentElement.outerHTML").as_str().unwrap().to_owned();
    assert!(!source().contains("quoted"), "the value is in the page before it is asked for:\n{}", source());
    browser.press("Reveal GREETING");
    browser.see(value);
    browser.press("Hide all");
    until("the value is hidden again", || (!source().contains("quoted")).then_some(()));

    browser.press("Remove GREETING…");
    browser.see("A new release without it is deployed at once.");
    browser.looked_at("config-remove");
    browser.press("Remove");
    browser.see_all(&["Removed", "No variables yet"]);
    browser.finish();
}

/// A viewer of an app's tenant.
fn viewer(platform: &Platform, app: &str, owner: &User) -> User {
    let viewer = platform.add_user(&platform.unique("viewer"));
    let tenant = app.split_once('/').unwrap().0;
    let invited = platform.ssh(owner, &["tenants", "invite", tenant, "--role", "viewer", "--json"]).ok().json();
    platform.ssh(&viewer, &["tenants", "join", invited["code"].as_str().unwrap()]).ok();
    viewer
}

/// A field of a form, or a header: name and value.
type Pair<'t> = (&'t str, &'t str);

/// Sends a form without a browser: with the session's cookie and, where one is given, a word that forms bear.
fn send_form(browser: &Browser, action: &str, pairs: &[Pair], headers: &[Pair]) -> Response {
    let client =
        Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(DEADLINE).build().unwrap();
    let mut body = url::form_urlencoded::Serializer::new(String::new());
    body.extend_pairs(pairs);
    let mut request = client.post(format!("{}{action}", browser.origin));
    request = request.header("Content-Type", "application/x-www-form-urlencoded");
    request = request.header("Cookie", format!("{COOKIE}={}", browser.cookie(COOKIE).unwrap()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.finish()).send().unwrap()
}

/// The word that this session's forms bear.
fn form_word(browser: &Browser) -> String {
    let word = browser.script("return document.querySelector('form[action=\"/sign-out\"] input[name=form]').value");
    word.as_str().unwrap().to_owned()
}

/// What `web` is scaled to.
fn scale(platform: &Platform, user: &User, app: &str) -> usize {
    let ps = platform.ssh(user, &["ps", &format!("{app}/dev"), "--json"]).ok().json();
    ps["replicas"].as_array().unwrap().len()
}

fn browser_refuses_a_viewer_changes(platform: &Platform) {
    let (app, owner, _repository) = deployed_site(platform, &["one", "two"]);
    let (tenant, name) = app.split_once('/').unwrap();
    let viewer = viewer(platform, &app, &owner);
    let browser = signed_in(platform, "viewer", &viewer);
    browser.open(&format!("/envs/{app}/dev"));
    browser.see("web.1 ready");
    for action in ["Scale", "Restart", "Redeploy", "Roll back 1"] {
        assert!(!browser.has(button(action)), "a viewer is offered to {action}");
    }
    browser.looked_at("environment-viewer");
    let word = form_word(&browser);
    let whole = [("form", word.as_str()), ("tenant", tenant), ("app", name), ("env", "dev")];
    for (action, more) in [
        ("scale", [("count.web", "2"), ("x", "x")]),
        ("restart", [("x", "x"), ("x", "x")]),
        ("rollback", [("version", "1"), ("x", "x")]),
        ("config-set", [("name", "A"), ("value", "b")]),
        ("domain-add", [("id", "a.example.com"), ("x", "x")]),
        ("env-destroy", [("confirm", &format!("{app}/dev")), ("x", "x")]),
    ] {
        let answer = send_form(&browser, &format!("/do/{action}"), &[&whole[..], &more].concat(), &[]);
        assert_eq!(answer.status(), 403, "a viewer may {action}: {}", answer.text().unwrap());
    }
    assert_eq!(scale(platform, &owner, &app), 1);
    browser.open(&format!("/do/scale?tenant={tenant}&app={name}&env=dev"));
    browser.see("You may not do that");
    browser.open(&format!("/envs/{app}/dev/config"));
    assert!(!browser.has(button("Set")), "a viewer is offered to set variables");
    browser.open("/platform");
    browser.see("403");
    browser.finish_but_for(&["status of 403"]);
}

fn browser_forms_of_others_are_refused(platform: &Platform) {
    let (app, user, _repository) = deployed_site(platform, &["one"]);
    let (tenant, name) = app.split_once('/').unwrap();
    let browser = signed_in(platform, "csrf", &user);
    let word = form_word(&browser);
    let (_, stranger) = platform.new_tenant();
    let other = signed_in(platform, "csrf-other", &stranger);
    let others_word = form_word(&other);
    other.finish();
    let unsigned = [("tenant", tenant), ("app", name), ("env", "dev"), ("count.web", "2")];
    let signed = |word| [&[("form", word)], &unsigned[..]].concat();
    let refused: [(&str, Vec<Pair>, &[Pair]); 6] = [
        ("no word", unsigned.to_vec(), &[]),
        ("an empty word", signed(""), &[]),
        ("somebody else's word", signed(&others_word), &[]),
        ("from another origin", signed(&word), &[("Origin", "http://evil.example")]),
        ("from another site", signed(&word), &[("Sec-Fetch-Site", "cross-site")]),
        ("from an app of the same machine", signed(&word), &[("Sec-Fetch-Site", "same-site")]),
    ];
    for (why, pairs, headers) in refused {
        let answer = send_form(&browser, "/do/scale", &pairs, headers);
        assert_eq!(answer.status(), 403, "{why}: {}", answer.text().unwrap());
    }
    let sign_out = send_form(&browser, "/sign-out", &[("form", "")], &[]);
    assert_eq!(sign_out.status(), 403, "anybody signs one out");
    assert_eq!(scale(platform, &user, &app), 1, "a form of others was taken");
    // The same form is taken when all is right, or the above has shown nothing.
    let answer = send_form(&browser, "/do/scale", &signed(&word), &[("Origin", &browser.origin)]);
    assert_eq!(answer.status(), 303, "{}", answer.text().unwrap());
    eventually("it is scaled", Duration::from_secs(60), || (scale(platform, &user, &app) == 2).then_some(()));
    browser.finish();
}
