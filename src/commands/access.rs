//! May this caller do that? Asked here and nowhere else.

use std::{collections::BTreeSet, convert::Infallible, sync::PoisonError};

use futures::StreamExt;
use tokio::time::Instant;

use super::{Caller, CommandError, Commands, Part, now};
use crate::{
    domain::{App, AppRef, EnvRef, Environment, EventKind, Role, Tenant, TenantName, UserTokens, Verb},
    store::{NewEvent, Stored},
};

/// Names further away than this (Jaro-Winkler) are not suggested.
const LIKENESS: f64 = 0.8;

/// `; did you mean X?` with the nearest of `names`, or nothing.
pub(crate) fn did_you_mean(wanted: &str, names: impl IntoIterator<Item = String>) -> String {
    let score = |name: &String| strsim::jaro_winkler(wanted, name);
    let near = names.into_iter().filter(|name| score(name) >= LIKENESS);
    let nearest = near.max_by(|a, b| score(a).total_cmp(&score(b)));
    nearest.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

impl Caller {
    /// The role this caller acts with in a tenant. Operators manage every tenant as owners do, but see no config values and run no
    /// commands unless they are members.
    fn may(&self, role: Option<Role>, verb: Verb) -> bool {
        let as_operator = self.operator && !matches!(verb, Verb::ReadConfig | Verb::Run | Verb::Push);
        as_operator || role.is_some_and(|role| role.may(verb))
    }

    /// Whether the token that was shown, if one was, allows `verb` in the tenants that it is for.
    pub(super) fn scope_allows(&self, verb: Verb) -> bool {
        self.rights.as_ref().is_none_or(|rights| rights.scope.allows(verb))
    }

    /// Whether this caller may know that the tenant exists.
    pub(super) fn sees(&self, tenant: &Tenant) -> bool {
        let reaches = self.rights.as_ref().is_none_or(|rights| rights.reaches(&tenant.name));
        reaches && (self.operator || tenant.members.contains_key(&self.user))
    }

    /// Refuses what is about the caller's own account, or the platform, with a token that is for less than everything.
    pub(super) fn need_account(&self, what: &str) -> Result<(), CommandError> {
        match self.rights.as_ref().filter(|rights| !rights.is_unlimited()) {
            None => Ok(()),
            Some(rights) => Err(CommandError::Denied(format!(
                "the token {} may not {what}; this needs your key, or a token of scope full that is not for one tenant",
                rights.id
            ))),
        }
    }

    /// Refuses everything with a token that is for the platform's metrics alone. Asked before anything else is.
    pub(crate) fn need_commands(&self) -> Result<(), CommandError> {
        match self.rights.as_ref().filter(|rights| rights.is_for_metrics()) {
            None => Ok(()),
            Some(rights) => Err(CommandError::Denied(format!(
                "the token {} has the scope metrics, which allows GET /metrics and nothing else; this needs a token of another scope",
                rights.id
            ))),
        }
    }

    /// What is added to a name that was not found: what a token hides.
    fn blinkers(&self) -> String {
        let only = self.rights.as_ref().and_then(|rights| rights.tenant.as_ref());
        only.map_or_else(String::new, |only| format!(", or this token, which is for {only} alone, is not for it"))
    }
}

impl Commands {
    /// Refuses what only operators may do.
    pub(super) fn need_operator(&self, caller: &Caller, what: &str) -> Result<(), CommandError> {
        caller.need_account(what)?;
        if caller.operator {
            return Ok(());
        }
        self.tell_denied(caller, &format!("{} may not {what}: only operators may", caller.user), |event| event);
        Err(CommandError::Denied(format!("only an operator may {what}; ask yours")))
    }

    /// Has it recorded that somebody was refused, but not all the time.
    fn tell_denied(&self, caller: &Caller, message: &str, more: impl FnOnce(NewEvent) -> NewEvent) {
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(suppressed) = denied.take(&caller.user, Instant::now()) else { return };
        let event = NewEvent::new(EventKind::AccessDenied, now(), message).by(&caller.user);
        self.events.sink().send(more(event.data("suppressed", suppressed)));
    }

    /// The tenants that the caller may know of.
    pub(super) async fn visible_tenants(&self, caller: &Caller) -> Result<BTreeSet<TenantName>, CommandError> {
        let tenants = self.store.list::<Tenant>("").await?.into_iter();
        Ok(tenants.filter(|tenant| caller.sees(tenant)).map(|tenant| tenant.record.name).collect())
    }

    /// The part asked for of the environments below `prefix` that the caller may know of. Those of other tenants are not even read.
    pub(super) async fn visible_environments(
        &self,
        caller: &Caller,
        prefix: &str,
        part: &Part,
    ) -> Result<Vec<Stored<Environment>>, CommandError> {
        let tenants = self.visible_tenants(caller).await?.into_iter().map(|tenant| format!("{tenant}/"));
        // In the order of keys, in which `acme-2/` comes before `acme/`.
        let tenants: BTreeSet<String> =
            tenants.filter(|tenant| prefix.is_empty() || prefix.starts_with(tenant)).collect();
        let mut found = Vec::new();
        for tenant in &tenants {
            let below = if prefix.is_empty() { tenant } else { prefix };
            found.extend(self.store.list_after::<Environment>(below, &part.after, part.most - found.len()).await?);
            if found.len() >= part.most {
                break;
            }
        }
        Ok(found)
    }

    /// The tenant, if the caller may do `verb` there. Whether it does not exist or is not the caller's looks the same.
    pub(super) async fn tenant_for(
        &self,
        caller: &Caller,
        verb: Verb,
        name: &TenantName,
    ) -> Result<Stored<Tenant>, CommandError> {
        caller.need_commands()?;
        let found = self.tenant_if_allowed(caller, verb, name).await;
        if let Err(CommandError::Denied(_)) = &found {
            let verb = verb.name();
            let message = format!("{} was refused for lack of a role in {name}: {verb}", caller.user);
            self.tell_denied(caller, &message, |event| event.tenant(name).data("verb", verb));
        }
        found
    }

    /// The same without telling.
    async fn tenant_if_allowed(
        &self,
        caller: &Caller,
        verb: Verb,
        name: &TenantName,
    ) -> Result<Stored<Tenant>, CommandError> {
        let found = self.store.get::<Tenant>(name).await?.filter(|tenant| caller.sees(tenant));
        let Some(tenant) = found else {
            let mine = self.visible_tenants(caller).await?;
            let hint = did_you_mean(name.as_str(), mine.iter().map(TenantName::to_string));
            let blinkers = caller.blinkers();
            return Err(CommandError::NotFound(format!(
                "there is no tenant {name}, or you are not a member of it{blinkers}{hint}"
            )));
        };
        let role = tenant.members.get(&caller.user).copied();
        if caller.may(role, verb) {
            return match &caller.rights {
                Some(rights) if !rights.allows(name, verb) => Err(CommandError::Denied(format!(
                    "the token {} has the scope {}, which does not go so far; this needs your key, or a token of a wider scope",
                    rights.id, rights.scope
                ))),
                _ => Ok(tenant),
            };
        }
        let role = role.map_or_else(|| "not a member".to_owned(), |role| format!("a {role}"));
        let wants = if Role::Developer.may(verb) { "a developer or owner" } else { "an owner" };
        Err(CommandError::Denied(format!("you are {role} of {name}; this needs {wants} of it")))
    }

    /// Returns once the caller may not do `verb` in the tenant any more, with what to tell them: for what goes on for long.
    pub async fn access_lost(&self, caller: &Caller, verb: Verb, name: &TenantName) -> CommandError {
        let refused = tokio::select! {
            refused = self.until_refused(caller, verb, name) => refused,
            lost = self.token_lost(caller) => return lost,
        };
        match refused {
            Ok(never) => match never {},
            Err(CommandError::NotFound(_) | CommandError::Denied(_)) => CommandError::Denied(format!(
                "your membership of {name} has changed and no longer allows this, so it was ended; ask an owner of it"
            )),
            Err(error) => error,
        }
    }

    /// Returns once the token that the caller showed is revoked or has expired, with what to tell them; never without a token.
    pub async fn token_lost(&self, caller: &Caller) -> CommandError {
        match self.until_token_ends(caller).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn until_token_ends(&self, caller: &Caller) -> Result<Infallible, CommandError> {
        let Some(rights) = &caller.rights else { return std::future::pending().await };
        let from = self.store.revision().await?;
        let mut changes = self.store.watch::<UserTokens>(caller.user.as_str(), from).await?;
        loop {
            let left = rights.expires_at.duration_since(now());
            if !left.is_positive() {
                return Err(CommandError::Denied(format!("the token {} has expired, so this was ended", rights.id)));
            }
            let known = self.store.get::<UserTokens>(&caller.user).await?;
            if !known.is_some_and(|known| known.tokens.contains_key(&rights.id)) {
                return Err(CommandError::Denied(format!("the token {} was revoked, so this was ended", rights.id)));
            }
            tokio::select! {
                // Then it is looked anew.
                () = tokio::time::sleep(left.unsigned_abs()) => {}
                change = changes.next() => if change.is_none() {
                    // The store is closed: the server is ending, and whoever waits here with it.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    async fn until_refused(&self, caller: &Caller, verb: Verb, name: &TenantName) -> Result<Infallible, CommandError> {
        let from = self.store.revision().await?;
        let mut changes = self.store.watch::<Tenant>(name.as_str(), from).await?;
        loop {
            self.tenant_if_allowed(caller, verb, name).await?;
            if changes.next().await.is_none() {
                // The store is closed: the server is ending, and whoever waits here with it.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The app, if the caller may do `verb` to it.
    pub(super) async fn app_for(
        &self,
        caller: &Caller,
        verb: Verb,
        name: &AppRef,
    ) -> Result<Stored<App>, CommandError> {
        self.tenant_for(caller, verb, &name.tenant).await?;
        if let Some(app) = self.store.get::<App>(name).await? {
            return Ok(app);
        }
        let apps = self.store.list::<App>(&format!("{}/", name.tenant)).await?;
        let hint = did_you_mean(&name.to_string(), apps.into_iter().map(|app| app.name.to_string()));
        Err(CommandError::NotFound(format!("there is no app {name}{hint}")))
    }

    /// The environment, if the caller may do `verb` to it.
    pub(super) async fn env_for(
        &self,
        caller: &Caller,
        verb: Verb,
        name: &EnvRef,
    ) -> Result<Stored<Environment>, CommandError> {
        self.tenant_for(caller, verb, &name.tenant).await?;
        if let Some(env) = self.store.get::<Environment>(name).await? {
            return Ok(env);
        }
        let envs = self.store.list::<Environment>(&format!("{}/", name.tenant)).await?;
        let hint = did_you_mean(&name.to_string(), envs.into_iter().map(|env| env.name.to_string()));
        Err(CommandError::NotFound(format!("there is no environment {name}{hint}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::Door;

    #[test]
    fn operators_manage_but_do_not_read_secrets() {
        let caller =
            |operator| Caller { user: "ann".parse().unwrap(), operator, door: Door::Ssh, rights: None, trace: None };
        let row = |operator, role| {
            Verb::ALL.map(|verb| if caller(operator).may(role, verb) { 'x' } else { '.' }).iter().collect::<String>()
        };
        assert_eq!(row(false, None), "..........");
        assert_eq!(row(true, None), "x.x.x.xxxx");
        assert_eq!(row(true, Some(Role::Developer)), "xxxxxxxxxx");
        assert_eq!(row(false, Some(Role::Viewer)), "x.........");
    }

    #[test]
    fn near_names_are_suggested() {
        let names = || ["acme/shop/dev", "acme/shop/prod"].map(String::from);
        assert_eq!(did_you_mean("acme/shop/dve", names()), "; did you mean acme/shop/dev?");
        assert_eq!(did_you_mean("zzz", names()), "");
    }
}
