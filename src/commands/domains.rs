//! Host names: `domains …`.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    Answer, Caller, CommandError, Commands, OnlyIf, access::did_you_mean, answer, error::keep_trying, nouns, now,
};
use crate::{
    domain::{DomainClaim, EnvRef, EventKind, Verb},
    store::{NewEvent, StoreError, Stored},
};

/// Most host names of an environment.
const MAX_DOMAINS: usize = 50;

/// A host name in lower case, if it is one.
fn parse_domain(text: &str, base: &str, own: &[String]) -> Result<String, CommandError> {
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
    if own.contains(&name) {
        return Err(CommandError::Usage(format!("{name} is where the platform itself is reached")));
    }
    Ok(name)
}

impl Commands {
    /// `domains …`.
    pub(super) async fn domains(
        &self,
        caller: &Caller,
        command: nouns::Domains,
        only_if: &OnlyIf,
    ) -> Result<Answer, CommandError> {
        match command {
            nouns::Domains::List { env } => self.list_domains(caller, &env).await,
            nouns::Domains::Add { env, domain } => self.add_domain(caller, &env, &domain, only_if).await,
            nouns::Domains::Remove { env, domain } => self.remove_domain(caller, &env, &domain, only_if).await,
        }
    }

    async fn list_domains(&self, caller: &Caller, env: &EnvRef) -> Result<Answer, CommandError> {
        let env = self.env_for(caller, Verb::Read, env).await?;
        let platform = env.name.host(&self.settings.base_domain);
        let from_manifest: BTreeSet<String> = match env.current {
            Some(version) => self.release(&env.name, version).await?.domains.iter().cloned().collect(),
            None => BTreeSet::new(),
        };
        let claims: BTreeSet<String> =
            self.claims(&env.name).await?.into_iter().map(|claim| claim.record.host).collect();
        let kept: Vec<String> = claims
            .iter()
            .filter(|host| !from_manifest.contains(*host) && !env.domains.contains(host))
            .cloned()
            .collect();
        let manifest = |host: &String| if claims.contains(host) { "manifest" } else { "manifest, taken" };
        let all = std::iter::once((platform, "platform"))
            .chain(from_manifest.iter().map(|host| (host.clone(), manifest(host))))
            .chain(env.domains.iter().cloned().map(|domain| (domain, "added")))
            .chain(kept.into_iter().map(|domain| (domain, "kept")));
        let (rows, values) =
            all.map(|(d, from)| (vec![d.clone(), from.to_owned()], json!({"domain": d, "from": from}))).unzip();
        Ok(Answer::table(&["domain", "from"], rows, values, ""))
    }

    async fn add_domain(
        &self,
        caller: &Caller,
        env: &EnvRef,
        text: &str,
        only_if: &OnlyIf,
    ) -> Result<Answer, CommandError> {
        let domain = parse_domain(text, &self.settings.base_domain, &self.settings.own_hosts)?;
        if !keep_trying(|| self.try_add_domain(caller, env, &domain, only_if)).await? {
            // Whoever has not heard the answer asks again.
            return Ok(Answer::new(format!("{env} answers at {domain} already"), json!({"env": env})));
        }
        self.domain_changed(caller, env, (&domain, true), format!("{env} answers at {domain}")).await
    }

    /// The domain and the claim to it, in one transaction. Whether anything was to be changed.
    async fn try_add_domain(
        &self,
        caller: &Caller,
        env: &EnvRef,
        domain: &str,
        only_if: &OnlyIf,
    ) -> Result<bool, CommandError> {
        let stored = self.env_for(caller, Verb::WriteConfig, env).await?;
        only_if.check(&self.list_domains(caller, env).await?.json)?;
        let claim = self.store.get::<DomainClaim>(domain).await?;
        if claim.as_ref().is_some_and(|claim| claim.env != *env) {
            // Whose it is, only those may know who see that tenant.
            return Err(CommandError::Conflict(format!("{domain} belongs to another environment")));
        }
        let mut record = stored.record.clone();
        if record.domains.iter().any(|known| known == domain) {
            return Ok(false);
        }
        if record.domains.len() >= MAX_DOMAINS {
            return Err(CommandError::Conflict(format!("{env} has {MAX_DOMAINS} host names, which is the most")));
        }
        record.domains.push(domain.to_owned());
        let transaction = self.store.transaction().update(&stored, &record);
        let transaction = match &claim {
            Some(own) => transaction.expect(own),
            None => transaction.create(&DomainClaim { host: domain.to_owned(), env: env.clone(), claimed_at: now() }),
        };
        transaction.commit().await?;
        Ok(true)
    }

    async fn remove_domain(
        &self,
        caller: &Caller,
        env: &EnvRef,
        domain: &str,
        only_if: &OnlyIf,
    ) -> Result<Answer, CommandError> {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        keep_trying(|| self.try_remove_domain(caller, env, &domain, only_if)).await?;
        self.domain_changed(caller, env, (&domain, false), format!("{env} no longer answers at {domain}")).await
    }

    /// Takes the domain off the record, and gives it up.
    async fn try_remove_domain(
        &self,
        caller: &Caller,
        env: &EnvRef,
        domain: &str,
        only_if: &OnlyIf,
    ) -> Result<(), CommandError> {
        let stored = self.env_for(caller, Verb::WriteConfig, env).await?;
        only_if.check(&self.list_domains(caller, env).await?.json)?;
        let claim = self.store.get::<DomainClaim>(domain).await?.filter(|claim| claim.env == *env);
        let added = stored.domains.iter().any(|known| known == domain);
        if !added && claim.is_none() {
            let (shown, hint) = (answer::clean(domain), did_you_mean(domain, stored.domains.iter().cloned()));
            return Err(CommandError::NotFound(format!("{shown} was not added to {env}{hint}")));
        }
        let mut wanted_by = None;
        for version in [stored.target, stored.current].into_iter().flatten() {
            let release = self.release(env, version).await?;
            if release.domains.iter().any(|host| host == domain) {
                wanted_by.get_or_insert(version);
            }
        }
        if let Some(version) = wanted_by.filter(|_| !added) {
            return Err(CommandError::Conflict(format!(
                "{domain} is in the berth.yaml of {version}; take it out there and push, then it can be given up"
            )));
        }
        let mut record = stored.record.clone();
        record.domains.retain(|known| known != domain);
        let mut transaction = self.store.transaction().update(&stored, &record);
        if let Some(claim) = claim.filter(|_| wanted_by.is_none()) {
            transaction = transaction.delete(&claim);
        }
        transaction.commit().await?;
        Ok(())
    }

    /// The host names that are the environment's.
    pub(super) async fn claims(&self, env: &EnvRef) -> Result<Vec<Stored<DomainClaim>>, StoreError> {
        let mut claims = self.store.list::<DomainClaim>("").await?;
        claims.retain(|claim| claim.env == *env);
        Ok(claims)
    }

    async fn domain_changed(
        &self,
        caller: &Caller,
        env: &EnvRef,
        (domain, added): (&str, bool),
        what: String,
    ) -> Result<Answer, CommandError> {
        self.deployer.nudge(env);
        let event = NewEvent::new(EventKind::DomainChanged, now(), what.clone());
        let event = event.data("domain", domain).data("added", added);
        self.store.record(event.env(env).by(&caller.user)).await?;
        Ok(Answer::new(what, json!({"env": env})))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_host_names_outside_the_base() {
        let own = ["berth.example.com".to_owned()];
        assert_eq!(parse_domain("Shop.Example.COM.", "localhost", &own).unwrap(), "shop.example.com");
        for text in [
            "",
            "shop",
            "a..b",
            "-a.b",
            "a_b.c",
            "1.2.3.4",
            "x.localhost",
            "localhost",
            "a b.c",
            "*.example.com",
            "Berth.Example.com",
        ] {
            assert!(parse_domain(text, "localhost", &own).is_err(), "{text:?} was taken");
        }
    }
}
