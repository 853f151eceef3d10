//! A real Chromium, driven by ChromeDriver: one of its own per case, with an empty profile, ended with the case.

use std::{
    cell::RefCell,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::Value;
use thirtyfour::{
    ChromiumLikeCapabilities, DesiredCapabilities, LoggingPrefsLogLevel, WebDriver, error::WebDriverResult,
};
use tokio::runtime::Runtime;

use super::{findings::Findings, screenshots};
use crate::platform::Platform;

/// How long Chromium may take to start, to load a page, to run a script, or to show what is waited for. Generous: other cases build
/// images meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What Chromium is told not to do here: ask the world for anything, or keep anything.
const FLAGS: &[&str] = &[
    "--headless",
    // Cases run as root in containers, where Chromium's own sandbox does not; what it shows here is ours alone.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
];

/// ChromeDriver, as a child with a process group of its own. Chromium is a child of it.
struct Driver {
    process: Child,
    port: u16,
}

impl Driver {
    /// Starts it on a port of its choice, with its files below `directory`.
    fn start(directory: &std::path::Path) -> Self {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .env("TMPDIR", directory)
            .env("HOME", directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("chromedriver: {error}; scripts/setup --browser installs it"));
        let port = port_of(process.stdout.take().unwrap());
        Self { process, port }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Chromium is in the group too, whatever became of the session.
        let _ = killpg(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGKILL);
        let _ = self.process.wait();
    }
}

/// The port that ChromeDriver says it listens at. Its output is read to the end, so that it never waits for a reader.
fn port_of(stdout: impl Read + Send + 'static) -> u16 {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let said = line.strip_prefix("ChromeDriver was started successfully on port ");
            if let Some(port) = said.and_then(|rest| rest.trim_end_matches('.').parse().ok()) {
                let _ = sender.send(port);
            }
        }
    });
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("chromedriver has named no port: {error}"))
}

/// A browser with one page.
pub struct Browser {
    pub(super) webdriver: WebDriver,
    pub(super) findings: RefCell<Findings>,
    /// `http://localhost:PORT`: where the platform's pages are.
    pub origin: String,
    case: String,
    runtime: Runtime,
    // In this order: the processes end before their files go.
    _driver: Driver,
    _directory: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser for a case, with no page open.
    pub fn start(platform: &Platform, case: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("berth-browser-").tempdir().unwrap();
        let driver = Driver::start(directory.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let profile = directory.path().join("profile");
        let capabilities = capabilities(profile.to_str().unwrap()).unwrap();
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE * 2).build().unwrap();
        let address = format!("http://127.0.0.1:{}", driver.port);
        let webdriver = runtime
            .block_on(async {
                let webdriver = WebDriver::builder(address, capabilities).client(client).connect().await?;
                webdriver.set_page_load_timeout(PATIENCE).await?;
                webdriver.set_script_timeout(PATIENCE).await?;
                Ok::<_, thirtyfour::error::WebDriverError>(webdriver)
            })
            .unwrap_or_else(|error| panic!("Chromium does not start: {error}"));
        let origin = format!("http://localhost:{}", platform.api_port);
        let findings = RefCell::new(Findings::new(&origin));
        Self { webdriver, findings, origin, case: case.to_owned(), runtime, _driver: driver, _directory: directory }
    }

    /// Waits for something asked of the browser.
    pub(super) fn wait<T>(&self, asked: impl Future<Output = WebDriverResult<T>>) -> WebDriverResult<T> {
        self.runtime.block_on(asked)
    }

    /// A command of the Chrome DevTools protocol.
    pub(super) fn devtools(&self, method: &str, parameters: Value) -> Value {
        let cdp = self.webdriver.cdp();
        self.wait(cdp.send_raw(method, parameters)).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Ends the browser. Panics when a page has reported an error, has broken its content security policy, or has asked for anything
    /// from elsewhere, since the start.
    pub fn finish(self) {
        self.finish_but_for(&[]);
    }

    /// The same, with errors allowed that hold one of these texts.
    pub fn finish_but_for(self, allowed: &[&str]) {
        let wrong = self.wrong_but_for(allowed);
        assert!(wrong.is_empty(), "{}: the browser has found:\n  {}", self.case, wrong.join("\n  "));
    }

    /// What is wrong with what was seen since the start.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong_but_for(&[])
    }

    fn wrong_but_for(&self, allowed: &[&str]) -> Vec<String> {
        self.collect();
        self.findings.borrow().wrong(allowed)
    }

    /// Keeps what a failed case last saw: a picture, and the text of the page.
    fn keep_what_is_seen(&self) {
        let Ok(picture) = self.wait(self.webdriver.screenshot_as_png()) else { return };
        let path = screenshots().join(format!("failed-{}.png", self.case));
        if fs::write(&path, picture).is_ok() {
            eprintln!("{}: the page as it was last seen: {}", self.case, path.display());
        }
        let said =
            self.wait(self.webdriver.execute("return location.pathname + '\\n' + document.body.innerText", Vec::new()));
        if let Ok(text) = said {
            eprintln!("{}: {}", self.case, text.json().as_str().unwrap_or_default());
        }
        self.wrong().iter().for_each(|wrong| eprintln!("{}: {wrong}", self.case));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if thread::panicking() {
            self.keep_what_is_seen();
        }
        // An orderly end, for which there is no long wait: the processes are killed next.
        let quit = self.webdriver.clone().quit();
        let _ = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), quit).await });
    }
}

fn capabilities(profile: &str) -> WebDriverResult<thirtyfour::ChromeCapabilities> {
    let mut capabilities = DesiredCapabilities::chrome();
    for flag in FLAGS {
        capabilities.add_arg(flag)?;
    }
    capabilities.add_arg(&format!("--user-data-dir={profile}"))?;
    capabilities.set_logging_prefs("browser", LoggingPrefsLogLevel::All)?;
    capabilities.set_logging_prefs("performance", LoggingPrefsLogLevel::All)?;
    Ok(capabilities)
}

/// Runs `condition` until it gives something; asks the browser not more than twenty times a second.
#[track_caller]
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    let found = crate::platform::eventually(what, PATIENCE, condition);
    if begun.elapsed() > PATIENCE / 2 {
        eprintln!("{what}: took {:?}", begun.elapsed());
    }
    found
}
