//! What is wrong with pages though they look right: errors on the console, broken policies, requests to elsewhere, and what axe finds.

use std::fs;

use serde_json::Value;

use super::chromium::Browser;

/// axe-core, as `scripts/setup --browser` installs it.
const AXE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/browser/node_modules/axe-core/axe.min.js");

/// Runs axe over the page and gives the violations alone.
const RUN_AXE: &str = "const done = arguments[arguments.length - 1]; \
                       axe.run(document, { resultTypes: ['violations'] }).then(found => done(found.violations), error => done(String(error)));";

/// What the browser has reported since its start.
pub struct Findings {
    /// Our own origin: `http://localhost:PORT`.
    origin: String,
    errors: Vec<String>,
    elsewhere: Vec<String>,
}

impl Findings {
    pub fn new(origin: &str) -> Self {
        Self { origin: origin.to_owned(), errors: Vec::new(), elsewhere: Vec::new() }
    }

    /// Takes a line of the console's log. Pages write nothing there, but to tell of a fault.
    fn console(&mut self, level: &str, text: &str) {
        if matches!(level, "SEVERE" | "WARNING" | "DEBUG")
            || text.contains("Content Security Policy")
            || text.contains("Refused to ")
        {
            self.errors.push(format!("console: {text}"));
        }
    }

    /// Takes an event of the DevTools protocol: which address was asked?
    fn network(&mut self, message: &str) {
        let event = serde_json::from_str::<Value>(message).unwrap_or_default();
        let event = &event["message"];
        let address = match event["method"].as_str() {
            Some("Network.requestWillBeSent") => event["params"]["request"]["url"].as_str(),
            Some("Network.webSocketCreated") => event["params"]["url"].as_str(),
            _ => None,
        };
        if let Some(address) = address.filter(|address| !self.is_ours(address)) {
            self.elsewhere.push(format!("a request to elsewhere: {address}"));
        }
    }

    fn is_ours(&self, address: &str) -> bool {
        let inside = ["data:", "blob:", "about:", "chrome:"].iter().any(|scheme| address.starts_with(scheme));
        inside || address.strip_prefix(&self.origin).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// All that is wrong, but for errors with one of these texts.
    pub fn wrong(&self, allowed: &[&str]) -> Vec<String> {
        let unexpected = self.errors.iter().filter(|error| !allowed.iter().any(|text| error.contains(text)));
        unexpected.chain(&self.elsewhere).cloned().collect()
    }
}

impl Browser {
    /// Takes over what the browser has logged since this was last done.
    pub(super) fn collect(&self) {
        for kind in ["browser", "performance"] {
            // A browser that has gone has said so elsewhere.
            let Ok(entries) = self.wait(self.webdriver.get_log(kind)) else { continue };
            let mut findings = self.findings.borrow_mut();
            for entry in entries {
                match kind {
                    "browser" => findings.console(&entry.level, &entry.message),
                    _ => findings.network(&entry.message),
                }
            }
        }
    }

    /// The barriers of serious or critical impact that axe-core finds on the page as it is now.
    #[track_caller]
    pub fn barriers(&self) -> Vec<String> {
        if self.script("return typeof window.axe") != "object" {
            let source = fs::read_to_string(AXE)
                .unwrap_or_else(|error| panic!("{AXE}: {error}; scripts/setup --browser installs it"));
            self.script(&source);
        }
        let found = self.script_async(RUN_AXE);
        let Some(violations) = found.as_array() else { panic!("axe has failed: {found}") };
        violations.iter().filter(|violation| is_grave(violation)).map(told).collect()
    }

    /// Panics when axe-core finds such barriers.
    #[track_caller]
    pub fn axe(&self, page: &str) {
        let barriers = self.barriers();
        assert!(barriers.is_empty(), "{page}: axe has found:\n{}", barriers.join("\n"));
    }
}

fn is_grave(violation: &Value) -> bool {
    matches!(violation["impact"].as_str(), Some("serious" | "critical"))
}

/// A violation in words: rule, help, and where.
fn told(violation: &Value) -> String {
    let nodes = violation["nodes"].as_array().cloned().unwrap_or_default();
    let lines = nodes.iter().take(8).map(|node| {
        let why = node["failureSummary"].as_str().unwrap_or_default().replace('\n', " ");
        format!("\n    {}\n      {why}", node["html"].as_str().unwrap_or_default())
    });
    let text: String = lines.collect();
    let word = |key: &str| violation[key].as_str().unwrap_or_default().to_owned();
    format!(
        "  {} ({}): {} ({} places; {}){text}",
        word("id"),
        word("impact"),
        word("help"),
        nodes.len(),
        word("helpUrl")
    )
}
