//! Config variables and host names: `config …`, `domains …`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{Answer, Caller, CommandError, CommandIo, Commands, answer, now, parse};
use crate::{
    deploy::Derive,
    domain::{EnvRef, Environment, EventKind, Verb},
    store::NewEvent,
};

/// Largest value, and all names and values of an environment together, in bytes.
const MAX_VALUE: usize = 64 << 10;
const MAX_CONFIG: usize = 256 << 10;
/// Most host names of an environment.
const MAX_DOMAINS: usize = 50;

/// Names that the platform sets itself.
const RESERVED: [&str; 2] = ["PORT", "SOURCE_VERSION"];
const RESERVED_PREFIX: &str = "BERTH_";

fn check_name(name: &str) -> Result<(), CommandError> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let valid = name.starts_with(first) && name.len() <= 128 && name.chars().all(|c| first(c) || c.is_ascii_digit());
    if !valid {
        let shown = answer::clean(&name.chars().take(64).collect::<String>());
        return Err(CommandError::Usage(format!("{shown:?} is not a name: letters, digits and _ only, no digit first")));
    }
    if RESERVED.contains(&name) || name.starts_with(RESERVED_PREFIX) {
        return Err(CommandError::Usage(format!("{name} is set by the platform and cannot be changed")));
    }
    Ok(())
}

/// `KEY=VALUE` words; at most one value is `-`, which is read from standard input.
async fn read_pairs(words: Vec<String>, io: &mut CommandIo) -> Result<BTreeMap<String, String>, CommandError> {
    let mut pairs = BTreeMap::new();
    let mut stdin_used = false;
    for word in words {
        // The word may hold a secret: it is never quoted back.
        let (name, value) = word
            .split_once('=')
            .ok_or_else(|| CommandError::Usage("write KEY=VALUE; a word without = was given (nothing was changed)".into()))?;
        check_name(name)?;
        let value = if value == "-" {
            if std::mem::replace(&mut stdin_used, true) {
                return Err(CommandError::Usage("only one value can come from standard input (KEY=-)".into()));
            }
            let bytes = io.read_all().await?;
            String::from_utf8(bytes).map_err(|_| CommandError::Usage(format!("the value of {name} is not UTF-8")))?
        } else {
            value.to_owned()
        };
        if value.contains('\0') || value.len() > MAX_VALUE {
            return Err(CommandError::Usage(format!("the value of {name} has a NUL byte or is longer than 64 KiB")));
        }
        if pairs.insert(name.to_owned(), value).is_some() {
            return Err(CommandError::Usage(format!("{name} is given twice")));
        }
    }
    Ok(pairs)
}

/// A host name in lower case, if it is one.
fn parse_domain(text: &str, base: &str) -> Result<String, CommandError> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-') && label.chars().all(inner)
    };
    if name.len() > 253 || !name.contains('.') || !name.split('.').all(label) {
        let shown: String = answer::clean(text).chars().take(100).collect();
        return Err(CommandError::Usage(format!("{shown:?} is not a host name, as in shop.example.com")));
    }
    if name.parse::<std::net::Ipv4Addr>().is_ok() {
        return Err(CommandError::Usage(format!("{name} is an address; a host name is wanted")));
    }
    if name == base || name.ends_with(&format!(".{base}")) {
        return Err(CommandError::Usage(format!("host names below {base} are given out by the platform")));
    }
    Ok(name)
}

impl Commands {
    /// `config …`.
    pub(super) async fn config(&self, caller: &Caller, command: parse::Config, io: &mut CommandIo) -> Result<Option<Answer>, CommandError> {
        match command {
            parse::Config::List { env } => {
                let env = self.env_for(caller, Verb::ReadConfig, &env).await?;
                let rows = env.config.iter().map(|(name, value)| format!("{name}={}\n", answer::clean(value)));
                let human: String = rows.collect();
                let human = if human.is_empty() { "No config variables.".into() } else { human };
                Ok(Some(Answer::new(human, json!(env.config))))
            }
            parse::Config::Get { env, name } => {
                let env = self.env_for(caller, Verb::ReadConfig, &env).await?;
                let unset = || {
                    let hint = super::access::did_you_mean(&name, env.config.keys().cloned());
                    CommandError::NotFound(format!("{} is not set in {}{hint}", answer::clean(&name), env.name))
                };
                let value = env.config.get(&name).ok_or_else(unset)?;
                Ok(Some(Answer { human: format!("{value}\n"), json: json!({name: value}) }))
            }
            parse::Config::Set { env, pairs } => {
                self.env_for(caller, Verb::WriteConfig, &env).await?;
                let pairs = read_pairs(pairs, io).await?;
                let names: Vec<&str> = pairs.keys().map(String::as_str).collect();
                let what = format!("config set {}", names.join(" "));
                self.change_config(caller, &env, &what, io, |config| config.extend(pairs.clone())).await.map(Some)
            }
            parse::Config::Unset { env, names } => {
                let stored = self.env_for(caller, Verb::WriteConfig, &env).await?;
                for name in &names {
                    check_name(name)?;
                    if !stored.config.contains_key(name) {
                        let hint = super::access::did_you_mean(name, stored.config.keys().cloned());
                        return Err(CommandError::NotFound(format!("{name} is not set in {env}{hint}; nothing was changed")));
                    }
                }
                let what = format!("config unset {}", names.join(" "));
                self.change_config(caller, &env, &what, io, |config| config.retain(|name, _| !names.contains(name))).await.map(Some)
            }
        }
    }

    /// Writes a change of config; when something runs, a new release with it is rolled out.
    async fn change_config(
        &self,
        caller: &Caller,
        env: &EnvRef,
        what: &str,
        io: &mut CommandIo,
        change: impl Fn(&mut BTreeMap<String, String>) + Send,
    ) -> Result<Answer, CommandError> {
        let mut changed = false;
        let written = self
            .store
            .modify::<Environment, CommandError>(env, |record| {
                let before = record.config.clone();
                change(&mut record.config);
                changed = record.config != before;
                let size: usize = record.config.iter().map(|(name, value)| name.len() + value.len()).sum();
                if size > MAX_CONFIG {
                    return Err(CommandError::Usage("all config variables together are larger than 256 KiB".into()));
                }
                Ok(())
            })
            .await?;
        if !changed {
            return Ok(Answer::new("Nothing changed: the values are the same already", json!({"changed": false})));
        }
        let Some(current) = written.target.or(written.current) else {
            return Ok(Answer::new("Set; the first release will have it", json!({"changed": true, "release": null})));
        };
        let release = self.deployer.derive_release(env, current, Derive::ConfigOfEnvironment, &caller.user, what).await?;
        self.deploy_and_say(env, release.version, io).await
    }

    /// `domains …`.
    pub(super) async fn domains(&self, caller: &Caller, command: parse::Domains) -> Result<Answer, CommandError> {
        match command {
            parse::Domains::List { env } => self.list_domains(caller, &env).await,
            parse::Domains::Add { env, domain } => self.add_domain(caller, &env, &domain).await,
            parse::Domains::Remove { env, domain } => self.remove_domain(caller, &env, &domain).await,
        }
    }

    async fn list_domains(&self, caller: &Caller, env: &EnvRef) -> Result<Answer, CommandError> {
        let env = self.env_for(caller, Verb::Read, env).await?;
        let platform = env.name.host(&self.settings.base_domain);
        let from_manifest: BTreeSet<String> = match env.current {
            Some(version) => self.release(&env.name, version).await?.domains.iter().cloned().collect(),
            None => BTreeSet::new(),
        };
        let all = std::iter::once((platform, "platform"))
            .chain(from_manifest.into_iter().map(|domain| (domain, "manifest")))
            .chain(env.domains.iter().cloned().map(|domain| (domain, "added")));
        let (rows, values) = all.map(|(d, from)| (vec![d.clone(), from.to_owned()], json!({"domain": d, "from": from}))).unzip();
        Ok(Answer::table(&["domain", "from"], rows, values, ""))
    }

    async fn add_domain(&self, caller: &Caller, env: &EnvRef, text: &str) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::WriteConfig, env).await?;
        let domain = parse_domain(text, &self.settings.base_domain)?;
        for other in self.store.list::<Environment>("").await? {
            if other.name != *env && other.domains.contains(&domain) {
                // Whose it is, only those may know who see that tenant.
                return Err(CommandError::Conflict(format!("{domain} belongs to another environment")));
            }
        }
        self.store
            .modify::<Environment, CommandError>(env, |record| {
                if record.domains.contains(&domain) {
                    return Err(CommandError::Conflict(format!("{env} answers at {domain} already")));
                }
                if record.domains.len() >= MAX_DOMAINS {
                    return Err(CommandError::Conflict(format!("{env} has {MAX_DOMAINS} host names, which is the most")));
                }
                record.domains.push(domain.clone());
                Ok(())
            })
            .await?;
        self.domain_changed(caller, env, format!("{env} answers at {domain}")).await
    }

    async fn remove_domain(&self, caller: &Caller, env: &EnvRef, domain: &str) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::WriteConfig, env).await?;
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        self.store
            .modify::<Environment, CommandError>(env, |record| {
                let hint = super::access::did_you_mean(&domain, record.domains.iter().cloned());
                let before = record.domains.len();
                record.domains.retain(|known| *known != domain);
                if record.domains.len() == before {
                    let shown = answer::clean(&domain);
                    return Err(CommandError::NotFound(format!("{shown} was not added to {env}{hint}")));
                }
                Ok(())
            })
            .await?;
        self.domain_changed(caller, env, format!("{env} no longer answers at {domain}")).await
    }

    async fn domain_changed(&self, caller: &Caller, env: &EnvRef, what: String) -> Result<Answer, CommandError> {
        self.deployer.nudge(env);
        let event = NewEvent::new(EventKind::DomainChanged, now(), what.clone());
        self.store.record(event.env(env).by(&caller.user)).await?;
        Ok(Answer::new(what, json!({"env": env})))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variables() {
        for name in ["A", "_x", "DATABASE_URL", "a1"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "1A", "A B", "A-B", "PORT", "BERTH_ENV", "SOURCE_VERSION", "Ä", "A\nB"] {
            assert!(check_name(name).is_err(), "{name:?} was taken");
        }
    }

    #[test]
    fn domains_are_host_names_outside_the_base() {
        assert_eq!(parse_domain("Shop.Example.COM.", "localhost").unwrap(), "shop.example.com");
        for text in ["", "shop", "a..b", "-a.b", "a_b.c", "1.2.3.4", "x.localhost", "localhost", "a b.c", "*.example.com"] {
            assert!(parse_domain(text, "localhost").is_err(), "{text:?} was taken");
        }
    }
}
