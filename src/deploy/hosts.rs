//! Which host name the router gives to which environment, of those that `domains` says are theirs. Pure.
//!
//! A name that changes hands may for a moment be asked for by both: whoever is served keeps it until it no longer asks.

use std::collections::BTreeMap;

use crate::domain::EnvRef;

/// Host names as they were given out, and what could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hosts {
    pub(super) hosts: BTreeMap<String, EnvRef>,
    /// One line per domain that an environment asked for and did not get.
    pub(super) conflicts: BTreeMap<EnvRef, Vec<String>>,
}

/// Gives each environment its own host below `base`, and the domains it asks for. A domain belongs to one environment: whoever has it
/// (`before`) keeps it as long as it asks for it, else the first in order gets it. Nobody gets a name below `base` but their own.
pub(super) fn assign(base: &str, asked: &BTreeMap<EnvRef, Vec<String>>, before: &BTreeMap<String, EnvRef>) -> Hosts {
    let mut given = Hosts::default();
    for env in asked.keys() {
        given.hosts.insert(env.host(base), env.clone());
    }
    let asks =
        |env: &EnvRef, domain: &str| asked.get(env).is_some_and(|list| list.iter().any(|one| tidy(one) == domain));
    for (env, domains) in asked {
        for domain in domains.iter().map(|domain| tidy(domain)) {
            if domain == env.host(base) {
                continue;
            }
            let problem = if domain == base || domain.ends_with(&format!(".{base}")) {
                Some(format!("the domain {domain} is not served: names below {base} are given by the platform"))
            } else {
                let owner =
                    given.hosts.get(&domain).or_else(|| before.get(&domain).filter(|owner| asks(owner, &domain)));
                // Whose it is stays unsaid: it may be another tenant's.
                owner.filter(|owner| *owner != env).map(|_| {
                    format!("the domain {domain} is not served here: another environment has it; remove it there first")
                })
            };
            match problem {
                Some(problem) => given.conflicts.entry(env.clone()).or_default().push(problem),
                None => drop(given.hosts.insert(domain, env.clone())),
            }
        }
    }
    given
}

pub(super) fn tidy(domain: &str) -> String {
    domain.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_have_one_owner() {
        let env = |name: &str| name.parse::<EnvRef>().unwrap();
        let (dev, prod) = (env("acme/shop/dev"), env("acme/shop/prod"));
        let asked: BTreeMap<EnvRef, Vec<String>> = [
            (dev.clone(), vec!["Shop.Example.com.".into(), "shop.acme.localhost".into(), "localhost".into()]),
            (prod.clone(), vec!["shop.example.com".into()]),
        ]
        .into();
        let first = assign("localhost", &asked, &BTreeMap::new());
        assert_eq!(first.hosts["shop.example.com"], dev);
        assert_eq!(first.hosts["shop.acme.localhost"], prod);
        assert_eq!(first.hosts["dev.shop.acme.localhost"], dev);
        assert_eq!((first.conflicts[&dev].len(), first.conflicts[&prod].len()), (2, 1));
        let before = [("shop.example.com".to_owned(), prod.clone())].into();
        let kept = assign("localhost", &asked, &before);
        assert_eq!((&kept.hosts["shop.example.com"], kept.conflicts[&dev].len()), (&prod, 3));
        let without: BTreeMap<_, _> = [(dev.clone(), asked[&dev].clone()), (prod, vec![])].into();
        assert_eq!(assign("localhost", &without, &before).hosts["shop.example.com"], dev);
    }
}
