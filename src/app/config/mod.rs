//! The server's configuration: `config/berth.yaml`, each key of which an environment variable `BERTH__SECTION__KEY` overrides.

mod overlay;
mod sections;
mod telemetry;
mod units;

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

pub use sections::{
    Api, Builds, Cron, Deploy, Disk, Drains, Gc, Git, Logs, Metrics, Outbound, Registry, Router, Runtime, Ssh, Webhooks,
};
pub use telemetry::{ENDPOINT_VARIABLE, Headers, Telemetry};
pub use units::{Bytes, PublicUrl};

/// All of it. Every key has a default, so that an empty file is a valid one.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Host names of environments end in this.
    pub base_domain: String,
    pub ssh: Ssh,
    pub api: Api,
    pub git: Git,
    pub router: Router,
    pub registry: Registry,
    pub runtime: Runtime,
    pub builds: Builds,
    pub deploy: Deploy,
    pub cron: Cron,
    pub outbound: Outbound,
    pub webhooks: Webhooks,
    pub logs: Logs,
    pub drains: Drains,
    pub metrics: Metrics,
    pub telemetry: Telemetry,
    pub gc: Gc,
    pub disk: Disk,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/berth".into(),
            base_domain: "localhost".into(),
            ssh: Ssh::default(),
            api: Api::default(),
            git: Git::default(),
            router: Router::default(),
            registry: Registry::default(),
            runtime: Runtime::default(),
            builds: Builds::default(),
            deploy: Deploy::default(),
            cron: Cron::default(),
            outbound: Outbound::default(),
            webhooks: Webhooks::default(),
            logs: Logs::default(),
            drains: Drains::default(),
            metrics: Metrics::default(),
            telemetry: Telemetry::default(),
            gc: Gc::default(),
            disk: Disk::default(),
        }
    }
}

/// Where the configuration is looked for when the command line names none.
const DEFAULT_FILES: [&str; 2] = ["/etc/berth/berth.yaml", "config/berth.yaml"];

impl Config {
    /// Reads the file (the given one must exist; else the first default one that does, else none) and lays the environment over it.
    pub fn load(file: Option<&Path>, environment: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<Self> {
        let found = || DEFAULT_FILES.iter().map(Path::new).find(|path| path.exists());
        let (text, name) = match file.or_else(found) {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration {}", path.display()))?;
                (text, path.display().to_string())
            }
            None => (String::new(), "the environment".to_owned()),
        };
        Self::parse(&text, environment).with_context(|| format!("the configuration in {name} is not valid"))
    }

    fn parse(text: &str, environment: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<Self> {
        // Once by itself, for errors with line and column; then with the environment laid over it.
        if !text.trim().is_empty() {
            serde_yaml::from_str::<Option<Self>>(text)?;
        }
        let mut value: serde_yaml::Value = serde_yaml::from_str(text)?;
        overlay::apply(&mut value, environment)?;
        let config: Option<Self> = serde_yaml::from_value(value).context("a BERTH__ variable does not fit")?;
        Ok(config.unwrap_or_default())
    }

    /// Host names at which users reach Berth itself.
    pub fn own_hosts(&self) -> Vec<String> {
        let url = url::Url::parse(&self.api_url()).ok();
        let api = url.and_then(|url| url.host_str().map(str::to_ascii_lowercase));
        api.into_iter().chain([self.ssh.host.to_ascii_lowercase()]).collect()
    }

    /// How users reach the API and the console; never ends in `/`.
    pub fn api_url(&self) -> String {
        match &self.api.url {
            Some(url) => url.as_str().to_owned(),
            None => {
                let port = self.api.listen.first().map_or(Api::PORT, std::net::SocketAddr::port);
                format!("http://localhost:{port}")
            }
        }
    }

    /// The socket that hooks and host commands use.
    pub fn control_socket(&self) -> PathBuf {
        self.data_dir.join("control.sock")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(text: &str, environment: &[(&str, &str)]) -> anyhow::Result<Config> {
        Config::parse(text, environment.iter().map(|(k, v)| (k.to_string(), v.to_string())))
    }

    #[test]
    fn the_commented_file_says_the_defaults() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/berth.yaml")).unwrap();
        assert_eq!(parse(&text, &[]).unwrap(), Config::default());
    }

    #[test]
    fn the_environment_wins() {
        let text = "ssh: {listen: ['127.0.0.1:22']}\nbuilds: {time_limit: 5m}\n";
        let variables = [
            ("BERTH__SSH__LISTEN", "['127.0.0.1:2022']"),
            ("BERTH__BUILDS__MEMORY", "3Gi"),
            ("BERTH__BASE_DOMAIN", "example.com"),
            ("BERTH_OTHER", "x"),
        ];
        let config = parse(text, &variables).unwrap();
        assert_eq!(config.ssh.listen, ["127.0.0.1:2022".parse().unwrap()]);
        assert_eq!(config.builds.time_limit, Duration::from_secs(300));
        assert_eq!(config.builds.memory, Bytes(3 << 30));
        assert_eq!(config.base_domain, "example.com");
        assert_eq!(parse("", &[]).unwrap(), Config::default());
    }

    #[test]
    fn the_api_is_where_it_listens_unless_said_otherwise() {
        let url = |text: &str, variables| parse(text, variables).unwrap().api_url();
        assert_eq!(url("", &[]), "http://localhost:7000");
        assert_eq!(url("api: {listen: ['127.0.0.1:7001']}", &[]), "http://localhost:7001");
        assert_eq!(url("", &[("BERTH__API__URL", "https://berth.example.com/")]), "https://berth.example.com");
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text, variables| format!("{:#}", parse(text, variables).unwrap_err());
        assert!(error("ssh:\n  prot: 1\n", &[]).contains("unknown field `prot`"));
        assert!(error("ssh:\n  prot: 1\n", &[]).contains("line 2"));
        assert!(error("", &[("BERTH__SSH__PROT", "1")]).contains("unknown field `prot`"));
        assert!(error("builds: {time_limit: soon}", &[]).contains("time_limit"));
        assert!(error("api: {url: berth.example.com}", &[]).contains("is not a URL"));
    }
}
