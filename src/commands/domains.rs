//! Host names: `domains …`.

use std::collections::BTreeSet;

use serde_json::json;

use super::{Answer, Caller, CommandError, Commands, access::did_you_mean, answer, now, parse};
use crate::{
    domain::{EnvRef, Environment, EventKind, Verb},
    store::NewEvent,
};

/// Most host names of an environment.
const MAX_DOMAINS: usize = 50;

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
        let (rows, values) =
            all.map(|(d, from)| (vec![d.clone(), from.to_owned()], json!({"domain": d, "from": from}))).unzip();
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
                    return Err(CommandError::Conflict(format!(
                        "{env} has {MAX_DOMAINS} host names, which is the most"
                    )));
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
                let hint = did_you_mean(&domain, record.domains.iter().cloned());
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
    fn domains_are_host_names_outside_the_base() {
        assert_eq!(parse_domain("Shop.Example.COM.", "localhost").unwrap(), "shop.example.com");
        for text in
            ["", "shop", "a..b", "-a.b", "a_b.c", "1.2.3.4", "x.localhost", "localhost", "a b.c", "*.example.com"]
        {
            assert!(parse_domain(text, "localhost").is_err(), "{text:?} was taken");
        }
    }
}
