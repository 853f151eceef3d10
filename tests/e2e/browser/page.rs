//! What a person does with a page and sees of it. Controls are found by the names that people and screen readers know them by.

use std::fs;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use thirtyfour::{By, WebElement};

use super::{
    chromium::{Browser, until},
    screenshots,
};

/// How wide and high a window is, in CSS pixels.
#[derive(Debug, Clone, Copy)]
pub enum Size {
    Phone,
    Desktop,
}

/// Which colours the user prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    Light,
    Dark,
}

/// All that pages are looked at in.
pub const LOOKS: [(Size, Theme); 4] = [
    (Size::Phone, Theme::Light),
    (Size::Phone, Theme::Dark),
    (Size::Desktop, Theme::Light),
    (Size::Desktop, Theme::Dark),
];

impl Size {
    fn pixels(self) -> (u32, u32) {
        match self {
            Self::Phone => (390, 844),
            Self::Desktop => (1280, 900),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Phone => "phone",
            Self::Desktop => "desktop",
        }
    }
}

impl Theme {
    pub fn name(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }
}

/// A text as an XPath literal.
fn literal(text: &str) -> String {
    assert!(!text.contains('"'), "{text:?} cannot be said in XPath");
    format!("\"{text}\"")
}

impl Browser {
    /// Opens one of the platform's pages: a path, or a whole address.
    #[track_caller]
    pub fn open(&self, path: &str) {
        let address = if path.starts_with('/') { format!("{}{path}", self.origin) } else { path.to_owned() };
        self.wait(self.webdriver.goto(&address)).unwrap_or_else(|error| panic!("{address}: {error}"));
    }

    /// Tries to open an address that does not answer.
    #[track_caller]
    pub fn open_in_vain(&self, address: &str) {
        assert!(self.wait(self.webdriver.goto(address)).is_err(), "{address} has answered");
    }

    /// Loads the page once more.
    pub fn reload(&self) {
        self.wait(self.webdriver.refresh()).unwrap();
    }

    /// What a script returns.
    #[track_caller]
    pub fn script(&self, source: &str) -> Value {
        let ran = self.wait(self.webdriver.execute(source, Vec::new()));
        ran.unwrap_or_else(|error| panic!("{error}:\n{source:.300}")).json().clone()
    }

    /// What a script hands to its last argument, a function.
    #[track_caller]
    pub fn script_async(&self, source: &str) -> Value {
        let ran = self.wait(self.webdriver.execute_async(source, Vec::new()));
        ran.unwrap_or_else(|error| panic!("{error}:\n{source:.300}")).json().clone()
    }

    /// The path of the page.
    pub fn path(&self) -> String {
        self.wait(self.webdriver.current_url()).unwrap().path().to_owned()
    }

    /// Waits until the page is the one at this path.
    #[track_caller]
    pub fn at(&self, path: &str) {
        until(&format!("the page is {path}"), || (self.path() == path).then_some(()));
    }

    /// All text that a person sees.
    pub fn text(&self) -> String {
        // Between two pages there is no body for a moment.
        let text = self.wait(self.webdriver.execute("return document.body ? document.body.innerText : ''", Vec::new()));
        text.ok().and_then(|text| text.json().as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until a person sees this text.
    #[track_caller]
    pub fn see(&self, text: &str) {
        self.see_all(&[text]);
    }

    /// Waits until a person sees each of these texts, at once.
    #[track_caller]
    pub fn see_all(&self, texts: &[&str]) {
        until(&format!("the page shows {texts:?}"), || {
            let seen = self.text();
            texts.iter().all(|text| seen.contains(text)).then_some(())
        });
    }

    /// Whether something is there now and can be seen.
    pub fn has(&self, by: By) -> bool {
        self.visible(by).is_some()
    }

    fn visible(&self, by: By) -> Option<WebElement> {
        let found = self.wait(self.webdriver.find_all(by)).ok()?;
        found.into_iter().find(|element| self.wait(element.is_displayed()).unwrap_or(false))
    }

    /// Waits for something that can be seen.
    #[track_caller]
    pub fn find(&self, by: By) -> WebElement {
        until(&format!("the page has {by:?}"), || self.visible(by.clone()))
    }

    /// Waits for something that can be clicked, and clicks it. A page that changes by itself may take away what was just found; then
    /// it is looked for again.
    #[track_caller]
    pub fn click(&self, by: By) {
        until(&format!("{by:?} can be clicked"), || {
            let element = self.visible(by.clone())?;
            let enabled = self.wait(element.is_enabled()).ok()?;
            (enabled && self.wait(element.click()).is_ok()).then_some(())
        });
    }

    /// Clicks the button with this name.
    #[track_caller]
    pub fn press(&self, name: &str) {
        self.click(button(name));
    }

    /// Writes into the field with this label, in place of what is there.
    #[track_caller]
    pub fn fill(&self, label: &str, text: &str) {
        until(&format!("the field {label:?} can be filled"), || {
            let element = self.visible(field(label))?;
            self.wait(element.clear()).ok()?;
            self.wait(element.send_keys(text)).ok()
        });
    }

    /// The value of the cookie with this name, if there is one.
    pub fn cookie(&self, name: &str) -> Option<String> {
        self.wait(self.webdriver.get_named_cookie(name)).ok().map(|cookie| cookie.value)
    }

    /// Lets the page believe in a window of this size and a user of this taste; without motion, so that nothing is looked at half way.
    pub fn look(&self, size: Size, theme: Theme) {
        let (width, height) = size.pixels();
        let phone = matches!(size, Size::Phone);
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics);
        self.devtools("Emulation.setTouchEmulationEnabled", json!({ "enabled": phone }));
        let features = json!([
            { "name": "prefers-color-scheme", "value": theme.name() },
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features }));
        until("the window has its size", || {
            let seen = self.script("return [window.innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]");
            (seen[1] == matches!(theme, Theme::Dark) && (phone || seen[0] == width)).then_some(())
        });
    }

    /// Keeps a picture of the whole page, up to 4,000 pixels high, as `target/screenshots/NAME.png`.
    pub fn screenshot(&self, name: &str) {
        let metrics = self.devtools("Page.getLayoutMetrics", json!({}));
        let size = |key: &str| metrics["cssContentSize"][key].as_f64().unwrap_or(1.0);
        let clip = json!({ "x": 0, "y": 0, "width": size("width"), "height": size("height").min(4000.0), "scale": 1 });
        let parameters = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let taken = self.devtools("Page.captureScreenshot", parameters);
        let picture = STANDARD.decode(taken["data"].as_str().unwrap_or_default()).unwrap();
        fs::write(screenshots().join(format!("{name}.png")), picture).unwrap();
    }

    /// Keeps a picture of the page in all looks, and demands that nobody need scroll sideways; with axe's judgement of both sizes and
    /// both themes, though not of all pairs of them.
    #[track_caller]
    pub fn looked_at(&self, name: &str) {
        for (size, theme) in LOOKS {
            self.look(size, theme);
            let name = format!("{name}-{}", look_name(size, theme));
            self.screenshot(&name);
            let wide =
                self.script("const page = document.documentElement; return [page.scrollWidth, page.clientWidth]");
            assert!(wide[0].as_u64() <= wide[1].as_u64(), "{name}: the page is {} pixels wide in {}", wide[0], wide[1]);
            if matches!((size, theme), (Size::Phone, Theme::Light) | (Size::Desktop, Theme::Dark)) {
                self.axe(&name);
            }
        }
    }
}

/// What pictures in this look are called, after the page: `phone-dark`.
pub fn look_name(size: Size, theme: Theme) -> String {
    format!("{}-{}", size.name(), theme.name())
}

/// The button, or the link that looks like one, with this name.
pub fn button(name: &str) -> By {
    let name = literal(name);
    By::XPath(format!("//*[self::button or self::a or self::summary][normalize-space()={name} or @aria-label={name}]"))
}

/// The field with this label.
pub fn field(label: &str) -> By {
    let label = literal(label);
    By::XPath(format!(
        "//*[self::input or self::select or self::textarea]\
         [@id=//label[normalize-space()={label}]/@for or ancestor::label[starts-with(normalize-space(), {label})] or @aria-label={label}]"
    ))
}
