//! Bearer tokens: `tokens …`, and who comes with one.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Answer, Caller, CommandError, Commands, Door, answer, error::keep_trying, nouns, now};
use crate::{
    domain::{
        ApiToken, EventKind, Tenant, TenantName, Timestamp, TokenRights, TokenScope, User, UserName, UserTokens, Verb,
    },
    store::{NewEvent, StoreError, Stored, Transaction},
    token::api::TokenSecret,
};

/// Most tokens of one user.
const MAX_TOKENS: usize = 50;
/// Most browsers that a user is signed in with by keys.
const SESSIONS_BY_KEY: usize = 20;
/// The same by one token, and by all of the user's tokens.
const SESSIONS_BY_TOKEN: usize = 5;
const SESSIONS_BY_TOKENS: usize = 60;
/// Random bytes in an id. Hexadecimal, so that it cannot begin with `-`.
const ID_BYTES: usize = 6;
/// Longest name, in characters.
const MAX_NAME: usize = 60;
/// The use of a token is written down once in so many seconds, so that reading costs no write.
const USE_NOTED_EVERY: i64 = 3600;

/// The token in a few words, without its secret.
pub(super) fn described(rights: &TokenRights) -> String {
    let tenant = rights.tenant.as_ref().map_or_else(String::new, |tenant| format!(", for {tenant} alone"));
    let (id, name, scope) = (&rights.id, answer::clean(&rights.name), rights.scope);
    format!("{id} ({name}): scope {scope}{tenant}, until {}", moment(rights.expires_at))
}

/// `2026-03-01 10:05 UTC`
fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// What programs are told about a token; never its hash.
pub(super) fn value(token: &ApiToken) -> Value {
    json!({
        "id": token.id, "name": token.name, "user": token.user, "scope": token.scope, "tenant": token.tenant,
        "created_at": token.created_at, "expires_at": token.expires_at, "last_used_at": token.last_used_at,
        "expired": token.is_expired(now()), "made_with": token.made_with, "session": token.session,
    })
}

fn check_name(name: &str) -> Result<(), CommandError> {
    let length = name.chars().count();
    if (1..=MAX_NAME).contains(&length) && name.trim() == name && !name.chars().any(char::is_control) {
        return Ok(());
    }
    let text = format!("the name of a token has 1 to {MAX_NAME} characters, no control characters, no space around it");
    Err(CommandError::Usage(text))
}

/// A token to be made.
pub(super) struct NewToken {
    pub(super) name: String,
    pub(super) scope: TokenScope,
    pub(super) tenant: Option<TenantName>,
    pub(super) expires_at: Timestamp,
    /// For a browser.
    pub(super) session: bool,
    /// With which other one.
    pub(super) made_with: Option<String>,
}

/// The tokens with these ids, and all that were made with them.
fn family(tokens: &[Stored<ApiToken>], mut ids: Vec<String>) -> Vec<&Stored<ApiToken>> {
    let mut found = Vec::new();
    while let Some(id) = ids.pop() {
        found.extend(tokens.iter().filter(|token| token.id == id));
        ids.extend(tokens.iter().filter(|made| made.made_with.as_ref() == Some(&id)).map(|made| made.id.clone()));
    }
    found
}

/// The oldest sessions where there would be too many with another one. Who comes with a token pushes out what was made with tokens, and of
/// that what was made with the same one first: never what was begun with a key.
fn surplus_sessions(tokens: &[Stored<ApiToken>], maker: Option<&String>) -> Vec<String> {
    let mut sessions: Vec<_> = tokens.iter().filter(|token| token.session).collect();
    sessions.sort_by_key(|session| std::cmp::Reverse(session.created_at));
    let (own, others): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|session| session.made_with.as_ref() == maker);
    let most = if maker.is_none() { SESSIONS_BY_KEY } else { SESSIONS_BY_TOKEN };
    let room = SESSIONS_BY_TOKENS.saturating_sub(own.len().min(most - 1) + 1);
    let others = others.into_iter().filter(|session| maker.is_some() && session.made_with.is_some());
    own.into_iter().skip(most - 1).chain(others.skip(room)).map(|session| session.id.clone()).collect()
}

impl Commands {
    /// Who has the token with this secret, with no more rights than it gives. `None`: it is unknown or malformed, was revoked, or has
    /// expired.
    ///
    /// # Errors
    /// The store's.
    pub async fn authenticate_token(&self, secret: &str) -> Result<Option<Caller>, StoreError> {
        let Ok(secret) = TokenSecret::parse(secret) else { return Ok(None) };
        let found = self.store.get::<ApiToken>(&secret.hash()).await?;
        let Some(token) = found.filter(|token| !token.is_expired(now())) else { return Ok(None) };
        let Some(user) = self.store.get::<User>(&token.user).await? else { return Ok(None) };
        self.note_use(&token).await;
        let rights = token.rights();
        Ok(Some(Caller {
            user: user.name.clone(),
            operator: user.operator && rights.is_unlimited(),
            door: Door::Api,
            rights: Some(rights),
            trace: None,
        }))
    }

    /// Writes down that the token is used, unless that was done a while ago. Nobody is turned away because it fails.
    async fn note_use(&self, token: &Stored<ApiToken>) {
        let now = now();
        if token.last_used_at.is_some_and(|last| now.duration_since(last).as_secs() < USE_NOTED_EVERY) {
            return;
        }
        let used = ApiToken { last_used_at: Some(now), ..token.record.clone() };
        if let Err(error) = self.store.transaction().update(token, &used).commit().await {
            tracing::debug!(token = token.id, %error, "the use of a token is not written down");
        }
    }

    /// `tokens …`.
    pub(super) async fn tokens_of(&self, caller: &Caller, command: nouns::Tokens) -> Result<Answer, CommandError> {
        match command {
            nouns::Tokens::Create { name, scope, tenant, expires } => {
                let expires_at = now() + expires.0;
                let made_with = caller.rights.as_ref().map(|rights| rights.id.clone());
                let new = NewToken { name, scope, tenant, expires_at, session: false, made_with };
                self.create_token(caller, new).await
            }
            nouns::Tokens::List { user, all } => self.list_tokens(caller, user, all).await,
            nouns::Tokens::Revoke { id } => self.revoke_token(caller, &id).await,
        }
    }

    async fn create_token(&self, caller: &Caller, mut new: NewToken) -> Result<Answer, CommandError> {
        caller.need_account("make tokens")?;
        if caller.door == Door::Host {
            return Err(CommandError::Usage(
                "a token is a user's, and the host itself is no user; make it with your key, over ssh".into(),
            ));
        }
        check_name(&new.name)?;
        if new.scope == TokenScope::Metrics {
            self.need_operator(caller, "make a token for the platform's metrics")?;
            if new.tenant.is_some() {
                let text = "the platform's metrics are of no tenant: leave --tenant out, or choose the scope read";
                return Err(CommandError::Usage(text.into()));
            }
        }
        if let Some(tenant) = &new.tenant {
            self.need_member(caller, tenant).await?;
        }
        // Who finds a token must not make it last by making another one with it.
        if let Some(rights) = &caller.rights {
            new.expires_at = new.expires_at.min(rights.expires_at);
        }
        let secret = TokenSecret::generate();
        let (token, _) = keep_trying(|| self.try_create_token(&caller.user, &new, &secret)).await?;
        let text = format!("token {} made by {}", described(&token.rights()), token.user);
        self.record_token(caller, EventKind::TokenCreated, &token, text).await?;
        Ok(self.created_token(&token, &secret))
    }

    /// Refuses a token for a tenant in which it would be worth nothing.
    async fn need_member(&self, caller: &Caller, name: &TenantName) -> Result<(), CommandError> {
        let tenant: Stored<Tenant> = self.tenant_for(caller, Verb::Read, name).await?;
        if tenant.members.contains_key(&caller.user) {
            return Ok(());
        }
        // Operators see it all the same.
        Err(CommandError::Denied(format!(
            "you are not a member of {name}, and what an operator may goes with no token that is for one tenant"
        )))
    }

    /// Makes a token; with it come those that had to go for it.
    pub(super) async fn try_create_token(
        &self,
        user: &UserName,
        new: &NewToken,
        secret: &TokenSecret,
    ) -> Result<(ApiToken, Vec<ApiToken>), CommandError> {
        let user = self.store.need::<User>(user).await?;
        let listed = self.store.get::<UserTokens>(&user.name).await?;
        let mut tokens = listed.as_ref().map_or_else(BTreeMap::new, |listed| listed.tokens.clone());
        let all = self.tokens_in(&tokens).await?;
        let (expired, good): (Vec<_>, Vec<_>) = all.into_iter().partition(|token| token.is_expired(now()));
        let surplus = if new.session { surplus_sessions(&good, new.made_with.as_ref()) } else { Vec::new() };
        let ended = family(&good, surplus);
        let mut transaction = self.store.transaction().expect(&user);
        for token in expired.iter().chain(ended.iter().copied()) {
            tokens.remove(&token.id);
            transaction = transaction.delete(token);
        }
        // One that was revoked meanwhile, or is among those that go, makes no other.
        if new.made_with.as_ref().is_some_and(|maker| !tokens.contains_key(maker)) {
            return Err(CommandError::Denied("the token that this was asked with is not good any more".into()));
        }
        if !new.session && good.iter().filter(|token| !token.session).count() >= MAX_TOKENS {
            return Err(CommandError::Conflict(format!(
                "you have {MAX_TOKENS} tokens, which is the most; revoke one that is not used any more: `tokens list` says when each was"
            )));
        }
        let id = hex::encode(rand::random::<[u8; ID_BYTES]>());
        if tokens.contains_key(&id) {
            // Once in 2⁴⁸; the next attempt has another one.
            return Err(CommandError::TryLater("two tokens would have the same id; try again".into()));
        }
        let token = ApiToken {
            secret_hash: secret.hash(),
            id: id.clone(),
            name: new.name.clone(),
            user: user.name.clone(),
            scope: new.scope,
            tenant: new.tenant.clone(),
            created_at: now(),
            expires_at: new.expires_at,
            last_used_at: None,
            made_with: new.made_with.clone(),
            session: new.session,
        };
        tokens.insert(id, token.secret_hash.clone());
        write_list(transaction.create(&token), listed.as_ref(), &user.name, tokens).commit().await?;
        Ok((token, ended.into_iter().map(|ended| ended.record.clone()).collect()))
    }

    /// What `tokens create` says: the only time that the secret is.
    fn created_token(&self, token: &ApiToken, secret: &TokenSecret) -> Answer {
        let (secret, url) = (secret.reveal(), &self.settings.api_url);
        let human = format!(
            "Created token {}\n\nIt is shown this once; put it where you keep secrets:\n\n  {secret}\n\n\
             Use it as BERTH_TOKEN:\n  \
             curl -H \"Authorization: Bearer $BERTH_TOKEN\" {url}/v1/whoami\n\
             When it is not needed any more, or was seen by others: tokens revoke {}",
            described(&token.rights()),
            token.id
        );
        let mut json = value(token);
        json["token"] = json!(secret);
        Answer::new(human, json)
    }

    /// The records of listed tokens.
    async fn tokens_in(&self, listed: &BTreeMap<String, String>) -> Result<Vec<Stored<ApiToken>>, StoreError> {
        let mut tokens = Vec::new();
        for hash in listed.values() {
            // One that is gone was revoked meanwhile; then the list has changed too, and whoever writes it tries again.
            tokens.extend(self.store.get::<ApiToken>(hash).await?);
        }
        Ok(tokens)
    }

    async fn list_tokens(&self, caller: &Caller, user: Option<UserName>, all: bool) -> Result<Answer, CommandError> {
        caller.need_account("see tokens")?;
        let whose = user.unwrap_or_else(|| caller.user.clone());
        if all || whose != caller.user {
            self.need_operator(caller, "see the tokens of others")?;
        }
        let mut tokens = if all {
            self.store.list::<ApiToken>("").await?
        } else {
            match self.store.get::<UserTokens>(&whose).await? {
                Some(listed) => self.tokens_in(&listed.tokens).await?,
                None => Vec::new(),
            }
        };
        tokens.sort_by(|a, b| (&a.user, a.created_at, &a.id).cmp(&(&b.user, b.created_at, &b.id)));
        let now = now();
        let row = |token: &Stored<ApiToken>| {
            let used = token.last_used_at.map(|at| format!("{} ago", answer::age(now.duration_since(at).as_secs())));
            let expired = if token.is_expired(now) { " (expired)" } else { "" };
            vec![
                token.id.clone(),
                token.name.clone(),
                token.user.to_string(),
                token.scope.to_string(),
                token.tenant.as_ref().map_or_else(|| "-".to_owned(), TenantName::to_string),
                format!("{}{expired}", moment(token.expires_at)),
                used.unwrap_or_else(|| "never".to_owned()),
            ]
        };
        let (rows, values) = (tokens.iter().map(row).collect(), tokens.iter().map(|token| value(token)).collect());
        let columns = ["id", "name", "user", "scope", "tenant", "expires", "last used"];
        Ok(Answer::table(&columns, rows, values, "No tokens. Make one: tokens create NAME"))
    }

    async fn revoke_token(&self, caller: &Caller, id: &str) -> Result<Answer, CommandError> {
        caller.need_account("revoke tokens")?;
        let revoked = keep_trying(|| self.try_revoke_token(caller, id)).await?;
        for token in &revoked {
            let name = answer::clean(&token.name);
            let mut text = format!("token {} ({name}) of {} revoked", token.id, token.user);
            if token.id != id {
                text.push_str(&format!(", as it was made with {id}"));
            }
            self.record_token(caller, EventKind::TokenRevoked, token, text).await?;
        }
        let others = match revoked.len() - 1 {
            0 => String::new(),
            count => format!(", and {count} made with it"),
        };
        let ids: Vec<&String> = revoked.iter().map(|token| &token.id).collect();
        Ok(Answer::new(format!("Revoked {id}{others}"), json!({"revoked": ids, "user": revoked[0].user})))
    }

    /// Deletes a token and those that were made with it; it is the first of what is returned.
    pub(super) async fn try_revoke_token(&self, caller: &Caller, id: &str) -> Result<Vec<ApiToken>, CommandError> {
        let mut listed = self.store.get::<UserTokens>(&caller.user).await?;
        if caller.operator && !listed.as_ref().is_some_and(|listed| listed.tokens.contains_key(id)) {
            let all = self.store.list::<UserTokens>("").await?;
            listed = all.into_iter().find(|listed| listed.tokens.contains_key(id));
        }
        let Some(listed) = listed.filter(|listed| listed.tokens.contains_key(id)) else {
            let text = format!("you have no token {}; `tokens list` shows yours", answer::clean(id));
            return Err(CommandError::NotFound(text));
        };
        let tokens = self.tokens_in(&listed.tokens).await?;
        let revoked = family(&tokens, vec![id.to_owned()]);
        if revoked.is_empty() {
            return Err(CommandError::TryLater(format!("the token {id} is being changed; try again")));
        }
        let mut left = listed.tokens.clone();
        let mut transaction = self.store.transaction();
        for token in &revoked {
            left.remove(&token.id);
            transaction = transaction.delete(token);
        }
        write_list(transaction, Some(&listed), &listed.user, left).commit().await?;
        Ok(revoked.into_iter().map(|token| token.record.clone()).collect())
    }

    /// Records an event about a token: its user's, or, when it is for one, its tenant's. Sessions are their user's alone: they come and go
    /// often, and what a tenant keeps of its own is bounded.
    pub(super) async fn record_token(
        &self,
        caller: &Caller,
        kind: EventKind,
        token: &ApiToken,
        text: String,
    ) -> Result<(), CommandError> {
        let event = NewEvent::new(kind, now(), text).by(&caller.user);
        let event = match &token.tenant {
            Some(tenant) if !token.session => event.tenant(tenant),
            _ => event,
        };
        self.store.record(event).await?;
        Ok(())
    }
}

/// Adds the change of a user's list, guarded by what was read of it.
fn write_list(
    transaction: Transaction,
    read: Option<&Stored<UserTokens>>,
    user: &UserName,
    tokens: BTreeMap<String, String>,
) -> Transaction {
    let list = UserTokens { user: user.clone(), tokens };
    match read {
        Some(read) => transaction.update(read, &list),
        None => transaction.create(&list),
    }
}
