//! Every page of the console, in every look: pictures to look at, and axe's judgement.

use std::{thread, time::Duration};

use serde_json::json;

use super::{
    chromium::{Browser, until},
    console::{deployed_site, signed_in},
    page::{Size, Theme},
};
use crate::{
    Case,
    platform::{DEADLINE, Platform, eventually},
};

pub const CASES: &[Case] = &[
    ("browser_looks_at_every_page", browser_looks_at_every_page),
    ("browser_looks_at_the_pages_of_operators", browser_looks_at_the_pages_of_operators),
    ("browser_looks_at_first_steps", browser_looks_at_first_steps),
    ("browser_leaves_pages_while_they_are_made_again", browser_leaves_pages_while_they_are_made_again),
];

fn browser_looks_at_every_page(platform: &Platform) {
    let (app, user, repository) = deployed_site(platform, &["one", "two"]);
    let (tenant, env) = (app.split_once('/').unwrap().0, format!("{app}/dev"));
    platform.ssh(&user, &["config", "set", &env, "GREETING=hello", "LOG_LEVEL=debug"]).ok();
    platform.ssh(&user, &["domains", "add", &env, &format!("{tenant}.example.com")]).ok();
    // A build that fails has more to show than one that succeeds.
    repository.write("package.json", "{");
    repository.commit("Broken");
    repository.push().refused(&[]);
    let host = format!("dev.app.{tenant}.localhost");
    for path in ["/", "/missing", "/"] {
        platform.get(&host, path);
    }
    eventually("the requests are in the log", DEADLINE, || {
        platform.ssh(&user, &["logs", &env]).ok().stdout.contains("/missing").then_some(())
    });
    let browser = signed_in(platform, "pages", &user);
    let pages = [
        ("home", "/".to_owned(), "app"),
        ("tenant", format!("/tenants/{tenant}"), "Members"),
        ("app", format!("/apps/{app}"), "berth.yaml"),
        ("environment", format!("/envs/{env}"), "web.1 ready"),
        ("releases", format!("/envs/{env}/releases"), "Deployments"),
        ("release", format!("/envs/{env}/releases/2"), "Processes"),
        ("builds", format!("/envs/{env}/builds"), "failed"),
        ("build", format!("/envs/{env}/builds/1"), "Output"),
        ("build-failed", format!("/envs/{env}/builds/3"), "failed"),
        ("env-logs", format!("/envs/{env}/logs"), "/missing"),
        ("config", format!("/envs/{env}/config"), "GREETING"),
        ("domains", format!("/envs/{env}/domains"), "example.com"),
        ("metrics", format!("/envs/{env}/metrics"), "Requests per second"),
        ("jobs", format!("/envs/{env}/jobs"), "Jobs"),
        ("drains", format!("/envs/{env}/drains"), "Drains"),
        ("run", format!("/envs/{env}/run"), "Run"),
        ("env-events", format!("/envs/{env}/events"), "Events"),
        ("settings", format!("/envs/{env}/settings"), "Settings"),
        ("events", "/events".to_owned(), "Events"),
        ("account", "/account".to_owned(), "Tokens"),
        ("destroy", format!("/do/app-destroy?tenant={tenant}&app=app"), "To be sure"),
    ];
    for (name, path, text) in pages {
        browser.open(&path);
        browser.see(text);
        browser.looked_at(name);
        if name == "metrics" {
            charts_follow_the_theme(&browser);
        }
    }
    browser.open(&format!("/envs/{app}/nothing"));
    browser.see("404");
    browser.looked_at("not-found");
    browser.finish_but_for(&["status of 404"]);
}

/// Charts are drawn, not styled: their lines have the colour of the theme that one changes to, without being opened again.
fn charts_follow_the_theme(browser: &Browser) {
    // Whether there are lines in the light theme's colour, and in the dark one's.
    let lines = "
        const canvas = document.querySelector('.chart canvas'), found = [false, false];
        // A copy: the browser complains of canvases that are drawn on and read again and again.
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
        for (let at = 0; at < data.length; at += 4) {
            if (data[at + 3] < 250) continue;
            const near = (colour) => colour.every((one, channel) => Math.abs(data[at + channel] - one) < 3);
            found[0] ||= near([0xd7, 0xdc, 0xe3]);
            found[1] ||= near([0x33, 0x3c, 0x47]);
        }
        return found";
    for (theme, drawn) in [(Theme::Light, [true, false]), (Theme::Dark, [false, true]), (Theme::Light, [true, false])] {
        if theme == Theme::Dark {
            // From here on no new data come, with which the charts would be drawn anew in any case.
            browser.script("window.fetch = () => new Promise(() => {})");
        }
        browser.look(Size::Desktop, theme);
        until(&format!("the chart is drawn in {}", theme.name()), || {
            (browser.script(lines) == json!(drawn)).then_some(())
        });
    }
}

fn browser_looks_at_the_pages_of_operators(platform: &Platform) {
    let browser = signed_in(platform, "platform", &platform.operator());
    browser.open("/platform");
    browser.see_all(&["Engine", "Registry", "Disk", "Queue"]);
    browser.looked_at("platform");
    browser.finish();
}

fn browser_looks_at_first_steps(platform: &Platform) {
    let nobody = platform.add_user(&platform.unique("nobody"));
    let browser = signed_in(platform, "first", &nobody);
    browser.see("Nothing here yet");
    browser.looked_at("home-nobody");
    browser.finish();
    let (_, owner) = platform.new_tenant();
    let browser = signed_in(platform, "first-app", &owner);
    browser.see("apps create");
    browser.looked_at("home-empty");
    browser.finish();
}

/// A page asks for itself anew at events, and once when its stream has opened: at each moment of that it can be left, without a fault.
fn browser_leaves_pages_while_they_are_made_again(platform: &Platform) {
    // Of which the first page has the same form for each.
    for _ in 0..2 {
        platform.new_tenant();
    }
    let browser = signed_in(platform, "leaving", &platform.operator());
    for step in 0..40 {
        browser.open(if step % 2 == 0 { "/platform" } else { "/" });
        thread::sleep(Duration::from_millis(130 + 4 * step));
    }
    browser.finish();
}
