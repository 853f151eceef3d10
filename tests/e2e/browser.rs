//! The platform's pages in a real Chromium: what a person sees, on a phone and on a desktop, by day and by night.

mod chromium;
pub mod console;
mod findings;
pub mod looks;
mod page;

use std::{fs, path::PathBuf};

use chromium::Browser;
use thirtyfour::By;

use crate::{Case, platform::Platform};

pub const CASES: &[Case] = &[
    ("browser_shows_the_pages_of_the_api", browser_shows_the_pages_of_the_api),
    ("browser_reports_what_is_wrong_with_a_page", browser_reports_what_is_wrong_with_a_page),
];

/// Where pictures are kept, as part of the tests' output.
fn screenshots() -> PathBuf {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/screenshots"));
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn browser_shows_the_pages_of_the_api(platform: &Platform) {
    let browser = Browser::start(platform, "docs");
    browser.open("/docs");
    browser.see_all(&["Berth", "/v1/whoami"]);
    for (size, theme) in page::LOOKS {
        browser.look(size, theme);
    }
    browser.screenshot("docs");
    browser.click(By::Css("[aria-label^='get'][aria-label$='whoami']"));
    browser.see("Responses");
    browser.finish();
}

/// The tests' own eyes: each kind of thing that cases assert the absence of is found when it is there.
fn browser_reports_what_is_wrong_with_a_page(platform: &Platform) {
    let browser = Browser::start(platform, "wrong");
    browser.open("/docs");
    browser.see("Berth");
    browser.script("document.body.innerHTML = '<main><button></button></main>'");
    let barriers = browser.barriers();
    assert!(
        barriers.iter().any(|barrier| barrier.contains("button-name")),
        "axe has seen no nameless button: {barriers:?}"
    );
    browser.script("console.error('told on purpose')");
    browser.script("new Image().src = 'http://elsewhere.invalid/picture.png'");
    // Asked by the one who drives the browser, whom no policy binds; nothing but localhost has an address here.
    browser.open_in_vain("http://elsewhere.invalid/");
    let wrong = browser.wrong();
    for text in ["told on purpose", "Content Security Policy", "to elsewhere: http://elsewhere.invalid/"] {
        assert!(wrong.iter().any(|found| found.contains(text)), "{text:?} was not found: {wrong:?}");
    }
}
