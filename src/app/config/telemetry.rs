//! Where traces go.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, ensure};
use serde::Deserialize;
use url::Url;

use crate::domain::parse_url;

/// Traces of pushes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// The collector, by OTLP over HTTP; `None`: none, unless the variable [`ENDPOINT_VARIABLE`] names one.
    pub otlp_endpoint: Option<String>,
    /// Sent with every request to it.
    pub headers: Headers,
    /// The part of all traces that is recorded, 0 to 1.
    pub sample: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { otlp_endpoint: None, headers: Headers::default(), sample: 1.0 }
    }
}

/// Names and values, which may be secrets and are not shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Headers(pub BTreeMap<String, String>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// OpenTelemetry's own name for the address of a collector (OpenTelemetry Protocol Exporter, "Configuration Options").
pub const ENDPOINT_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Where traces go at a collector (OTLP, "OTLP/HTTP Request").
const TRACES_PATH: &str = "/v1/traces";

impl Telemetry {
    /// Where traces are sent; `variable` is the value of [`ENDPOINT_VARIABLE`]. `None`: nowhere.
    ///
    /// # Errors
    /// When what is configured is no address of a collector, or the sample is no part.
    pub fn endpoint(&self, variable: Option<String>) -> anyhow::Result<Option<Url>> {
        ensure!((0.0..=1.0).contains(&self.sample), "telemetry.sample must be between 0 and 1, and is {}", self.sample);
        let (text, name) = match (&self.otlp_endpoint, variable) {
            (Some(text), _) => (text.clone(), "telemetry.otlp_endpoint"),
            (None, Some(text)) => (text, ENDPOINT_VARIABLE),
            (None, None) => return Ok(None),
        };
        if text.trim().is_empty() {
            return Ok(None);
        }
        // Without what was said, which may hold a password.
        let mut url =
            parse_url(text.trim()).map_err(anyhow::Error::msg).with_context(|| format!("{name} is not a URL"))?;
        ensure!(matches!(url.scheme(), "http" | "https"), "{name} must begin with http:// or https://");
        let secret = !url.username().is_empty() || url.password().is_some();
        ensure!(!secret, "{name} must not hold a user or a password; put what is secret into telemetry.headers");
        // It is logged, and this is where keys are put that it does not show.
        let bare = url.query().is_none() && url.fragment().is_none();
        ensure!(bare, "{name} must not have a query (?…); put what is secret into telemetry.headers");
        let path = url.path().trim_end_matches('/').to_owned();
        if !path.ends_with(TRACES_PATH) {
            url.set_path(&format!("{path}{TRACES_PATH}"));
        }
        Ok(Some(url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_traces_go() {
        let endpoint = |key: Option<&str>, variable: Option<&str>| {
            let telemetry = Telemetry { otlp_endpoint: key.map(str::to_owned), ..Telemetry::default() };
            telemetry.endpoint(variable.map(str::to_owned)).map(|url| url.map(String::from)).map_err(|e| e.to_string())
        };
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(endpoint(None, None), Ok(None));
        assert_eq!(endpoint(Some(""), Some("http://other:4318")), Ok(None), "off, whatever the variable says");
        assert_eq!(endpoint(None, Some("http://collector:4318")), some("http://collector:4318/v1/traces"));
        assert_eq!(
            endpoint(Some("https://c.example/otlp/"), Some("http://x")),
            some("https://c.example/otlp/v1/traces")
        );
        assert_eq!(endpoint(Some("http://c:4318/v1/traces"), None), some("http://c:4318/v1/traces"));
        for (text, why) in [
            ("collector", "not a URL"),
            ("ftp://c", "http://"),
            ("http://me:secret@c", "telemetry.headers"),
            ("http://me@c", "telemetry.headers"),
            ("https://c.example/otlp?api-key=secret@1", "telemetry.headers"),
            ("http://c/?", "must not have a query"),
        ] {
            let error = endpoint(Some(text), None).unwrap_err();
            assert!(error.contains(why) && !error.contains("secret@"), "{text}: {error}");
        }
        for sample in [-0.1, 1.1, f64::NAN] {
            assert!(Telemetry { sample, ..Telemetry::default() }.endpoint(None).is_err(), "{sample}");
        }
    }

    #[test]
    fn headers_are_not_shown() {
        let headers = Headers(BTreeMap::from([("authorization".to_owned(), "Bearer secret".to_owned())]));
        assert_eq!(format!("{headers:?}"), r#"{"authorization"}"#);
    }
}
