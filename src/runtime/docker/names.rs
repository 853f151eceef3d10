//! Names and labels of what Berth makes on the engine. Pure.
//!
//! Names are deterministic, so that making the same thing twice is a conflict that the engine reports and never a duplicate;
//! labels carry the identity, so that a fresh process knows what each container is.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use crate::domain::{AppRef, EnvRef, ReleaseVersion, ReplicaSet, SetId, TenantName};
use crate::runtime::{JobKind, JobSpec};

pub const INSTANCE: &str = "berth.instance";
pub const ROLE: &str = "berth.role";
pub const ROLE_REPLICA: &str = "replica";
pub const ROLE_JOB: &str = "job";
pub const TENANT: &str = "berth.tenant";
pub const APP: &str = "berth.app";
const ENV: &str = "berth.env";
const PROCESS: &str = "berth.process";
const RELEASE: &str = "berth.release";
const RESTARTS: &str = "berth.restarts";
const INDEX: &str = "berth.index";
/// Hash of what a replica was made from.
pub const SPEC: &str = "berth.spec";
/// What a replica may have of the processor, in the engine's billionths of a core.
pub const CPU: &str = "berth.cpu";
const KIND: &str = "berth.kind";
/// Identity of the server process that owns a job.
pub const BOOT: &str = "berth.boot";

/// Stands in the name of a replica that has been told to stop, so that its proper name is free for its successor.
const RETIRED: &str = ".gone-";

/// Docker takes these characters in names, and they are safe in interface and chain names too.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A hash of several texts as lower-case letters and digits; at most 32 characters. No two lists of texts look alike to it.
pub fn short_hash(parts: &[&str], length: usize) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().iter().take(length).map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect()
}

/// Four characters that stand for an instance where room is short.
pub fn tag(instance: &str) -> String {
    short_hash(&["instance", instance], 4)
}

/// Makes names and labels for one Berth on an engine.
#[derive(Debug, Clone)]
pub struct Names {
    prefix: String,
    instance: String,
    /// Four characters that stand for the instance where room is short.
    tag: String,
    /// Identity of this server process.
    boot: String,
}

impl Names {
    /// `prefix` begins every name; `instance` is this Berth's identity, `boot` this process's.
    pub fn new(prefix: &str, instance: &str, boot: String) -> Self {
        Self { prefix: prefix.to_owned(), instance: instance.to_owned(), tag: tag(instance), boot }
    }

    /// Four characters that stand for the instance.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Identity of this server process.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// `KEY=VALUE` that everything of this instance carries.
    pub fn instance_filter(&self) -> String {
        format!("{INSTANCE}={}", self.instance)
    }

    /// Filter of containers in this role.
    pub fn role_filter(&self, role: &str) -> Vec<String> {
        vec![self.instance_filter(), format!("{ROLE}={role}")]
    }

    /// Filter of all replicas of a set.
    pub fn set_filter(&self, set: &SetId) -> Vec<String> {
        let mut filter = self.role_filter(ROLE_REPLICA);
        filter.extend(set_labels(set).into_iter().map(|(key, value)| format!("{key}={value}")));
        filter
    }

    /// Filter of everything that belongs to a tenant, or to one of its apps.
    pub fn owner_filter(&self, tenant: &TenantName, app: Option<&AppRef>) -> Vec<String> {
        let mut filter = vec![self.instance_filter(), format!("{TENANT}={tenant}")];
        filter.extend(app.map(|app| format!("{APP}={}", app.app)));
        filter
    }

    fn qualified(&self, rest: std::fmt::Arguments<'_>) -> String {
        format!("{}-{}-{rest}", self.prefix, self.tag)
    }

    /// Container name of a replica. `.` never occurs in the parts, so no two replicas share one.
    pub fn replica(&self, set: &SetId, index: u32) -> String {
        let SetId { env, process, release, restarts } = set;
        let EnvRef { tenant, app, env } = env;
        self.qualified(format_args!("{tenant}.{app}.{env}.{process}.{release}.r{restarts}.{index}"))
    }

    /// Container name of a job. `name` comes from Berth itself; what Docker would not take is replaced.
    pub fn job(&self, spec: &JobSpec) -> String {
        let EnvRef { tenant, app, env } = &spec.env;
        let clean: String =
            spec.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(64).collect();
        self.qualified(format_args!("{tenant}.{app}.{env}.job-{clean}"))
    }

    /// Network of a tenant.
    pub fn network(&self, tenant: &TenantName) -> String {
        self.qualified(format_args!("net-{tenant}"))
    }

    /// Bridge of a tenant's network: 15 characters, the kernel's limit. `attempt` gives another one should two tenants' collide.
    pub fn bridge(&self, tenant: &TenantName, attempt: u32) -> String {
        let hash = short_hash(&["bridge", &self.instance, tenant.as_str(), &attempt.to_string()], 6);
        format!("bth-{}-{hash}", self.tag)
    }

    /// What iptables takes for all bridges of this instance.
    pub fn bridges(&self) -> String {
        format!("bth-{}-+", self.tag)
    }

    /// Volume with the build cache of an app.
    pub fn cache(&self, app: &AppRef) -> String {
        let hash = short_hash(&["cache", &self.instance, app.tenant.as_str(), app.app.as_str()], 20);
        self.qualified(format_args!("cache-{hash}"))
    }

    /// Labels of a tenant's network, or of an app's cache.
    pub fn owner_labels(&self, tenant: &TenantName, app: Option<&AppRef>) -> HashMap<String, String> {
        let mut labels = HashMap::from([
            (INSTANCE.to_owned(), self.instance.clone()),
            (TENANT.to_owned(), tenant.as_str().to_owned()),
        ]);
        if let Some(app) = app {
            labels.insert(APP.to_owned(), app.app.as_str().to_owned());
        }
        labels
    }

    /// Labels of a replica.
    pub fn replica_labels(&self, set: &ReplicaSet, index: u32) -> HashMap<String, String> {
        let mut labels: HashMap<String, String> =
            set_labels(&set.id).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        labels.insert(INSTANCE.to_owned(), self.instance.clone());
        labels.insert(ROLE.to_owned(), ROLE_REPLICA.to_owned());
        labels.insert(INDEX.to_owned(), index.to_string());
        labels.insert(SPEC.to_owned(), spec_hash(set));
        labels
    }

    /// Labels of a job.
    pub fn job_labels(&self, spec: &JobSpec) -> HashMap<String, String> {
        let mut labels = self.owner_labels(&spec.env.tenant, Some(&spec.env.app_ref()));
        labels.insert(ENV.to_owned(), spec.env.env.as_str().to_owned());
        labels.insert(ROLE.to_owned(), ROLE_JOB.to_owned());
        labels.insert(BOOT.to_owned(), self.boot.clone());
        let kind = match spec.kind {
            JobKind::Build => "build",
            JobKind::ReleasePhase => "release-phase",
            JobKind::OneOff => "one-off",
            JobKind::Cron => "cron",
        };
        labels.insert(KIND.to_owned(), kind.to_owned());
        labels
    }
}

fn set_labels(set: &SetId) -> Vec<(&'static str, String)> {
    vec![
        (TENANT, set.env.tenant.to_string()),
        (APP, set.env.app.to_string()),
        (ENV, set.env.env.to_string()),
        (PROCESS, set.process.to_string()),
        (RELEASE, set.release.0.to_string()),
        (RESTARTS, set.restarts.to_string()),
    ]
}

/// The identity in a replica's labels; `None` when they are not a replica's.
pub fn replica_identity(labels: &HashMap<String, String>) -> Option<(SetId, u32)> {
    let text = |key: &str| labels.get(key).map(String::as_str);
    let set = SetId {
        env: EnvRef {
            tenant: text(TENANT)?.parse().ok()?,
            app: text(APP)?.parse().ok()?,
            env: text(ENV)?.parse().ok()?,
        },
        process: text(PROCESS)?.parse().ok()?,
        release: ReleaseVersion(text(RELEASE)?.parse().ok()?),
        restarts: text(RESTARTS)?.parse().ok()?,
    };
    Some((set, text(INDEX)?.parse().ok()?))
}

/// Hash of what a replica is made from. Only a replica that never ran is made anew when it differs: one that serves is never
/// replaced behind the deployer's back.
pub fn spec_hash(set: &ReplicaSet) -> String {
    let limits = format!("{:?}", set.limits);
    let image = set.image.to_string();
    let mut parts = vec![image.as_str(), &set.command, &limits];
    parts.extend(set.environment.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]));
    short_hash(&parts, 16)
}

/// The name of a replica that has been told to stop.
pub fn retired_name(name: &str, id: &str) -> String {
    format!("{name}{RETIRED}{}", id.chars().take(12).collect::<String>())
}

/// Whether this is the name of a replica that has been told to stop.
pub fn is_retired(name: &str) -> bool {
    name.contains(RETIRED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> SetId {
        SetId {
            env: "acme/shop/dev".parse().unwrap(),
            process: "web".parse().unwrap(),
            release: ReleaseVersion(7),
            restarts: 2,
        }
    }

    fn names(instance: &str) -> Names {
        Names::new("berth", instance, "boot".to_owned())
    }

    #[test]
    fn identity_survives_labels() {
        let set = ReplicaSet {
            id: set(),
            image: crate::domain::ImageRef {
                repository: "berth/acme/shop".to_owned(),
                digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            },
            command: "run".to_owned(),
            environment: [("A".to_owned(), "secret".to_owned())].into(),
            count: 1,
            limits: crate::domain::Limits { cpu_millis: 500, memory: 1 << 28, pids: 64 },
            stop_grace: std::time::Duration::from_secs(1),
        };
        let labels = names("one").replica_labels(&set, 3);
        assert_eq!(replica_identity(&labels), Some((set.id.clone(), 3)));
        assert!(labels.values().all(|value| !value.contains("secret")));
        let mut other = set.clone();
        other.environment = [("As".to_owned(), "ecret".to_owned())].into();
        assert_ne!(spec_hash(&set), spec_hash(&other), "the hash must see where a value begins");
        other = set.clone();
        other.count = 5;
        assert_eq!(spec_hash(&set), spec_hash(&other), "the count is not part of a replica");
        for key in [TENANT, APP, ENV, PROCESS, RELEASE, RESTARTS, INDEX] {
            let mut torn = labels.clone();
            torn.remove(key);
            assert_eq!(replica_identity(&torn), None, "without {key}");
        }
    }

    #[test]
    fn names_fit_and_differ() {
        let (one, two) = (names("one"), names("two"));
        let tenant: TenantName = "acme".parse().unwrap();
        assert_eq!(one.bridge(&tenant, 0).len(), 15);
        assert!(one.bridge(&tenant, 0).starts_with(one.bridges().trim_end_matches('+')));
        assert_ne!(one.bridge(&tenant, 0), two.bridge(&tenant, 0));
        assert_ne!(one.bridge(&tenant, 0), one.bridge(&tenant, 1));
        assert_ne!(one.replica(&set(), 1), two.replica(&set(), 1));
        assert!(one.replica(&set(), 1).ends_with("-acme.shop.dev.web.v7.r2.1"));
        assert!(!is_retired(&one.replica(&set(), 1)));
        assert!(is_retired(&retired_name(&one.replica(&set(), 1), "0123456789abcdef")));
    }
}
