//! Being signed in with a browser. A session is a token that goes by itself soon: what holds for tokens holds for it.

use jiff::{SignedDuration, ToSpan};
use serde_json::json;

use super::{Answer, Caller, CommandError, Commands, Door, ask::to_its_end, error::keep_trying, now, tokens};
use crate::{
    domain::{ApiToken, EventKind, SignInLink, Timestamp, TokenScope, User, UserName},
    store::StoreError,
    token::api::TokenSecret,
};

/// How long somebody is signed in.
const SESSION: SignedDuration = SignedDuration::from_hours(12);
/// How long a link is good.
const LINK_MINUTES: i64 = 5;
/// How many unused links a user may have; the newest are kept.
const LINKS: usize = 10;
/// What sessions are called in lists of tokens.
const NAME: &str = "console";

/// A session that has begun.
#[derive(Debug)]
pub(crate) struct Session {
    /// The token that stands for it: for the browser, once.
    pub(crate) secret: TokenSecret,
    pub(crate) about: ApiToken,
}

impl Session {
    /// As JSON, with its secret.
    pub(crate) fn value(&self) -> serde_json::Value {
        let mut value = tokens::value(&self.about);
        value["token"] = json!(self.secret.reveal());
        value
    }
}

impl Commands {
    /// `console`: a link to sign in with.
    pub(super) async fn console(&self, caller: &Caller) -> Result<Answer, CommandError> {
        caller.need_account("make links to sign in with")?;
        if caller.door == Door::Host {
            let text = "a link signs a user in, and the host itself is no user; ask for it with your key, over ssh";
            return Err(CommandError::Usage(text.into()));
        }
        self.drop_old_links(&caller.user).await?;
        let secret = TokenSecret::generate();
        let made_with = caller.rights.as_ref().map(|rights| (rights.id.clone(), rights.expires_at));
        let expires_at = now() + LINK_MINUTES.minutes();
        let link = SignInLink { secret_hash: secret.hash(), user: caller.user.clone(), expires_at, made_with };
        self.store.transaction().create(&link).commit().await?;
        let url = format!("{}/sign-in/{}", self.settings.api_url, secret.reveal());
        let human = format!(
            "Open this in a browser, within {LINK_MINUTES} minutes. It is good once, and signs in as {}: hand it to nobody.\n\n  {url}",
            caller.user
        );
        Ok(Answer::new(human, json!({"url": url, "user": caller.user, "expires_at": expires_at})))
    }

    /// Makes room for a link of this user's, and takes those away that are good no more.
    async fn drop_old_links(&self, user: &UserName) -> Result<(), CommandError> {
        let (mut good, mut old): (Vec<_>, Vec<_>) =
            self.store.list::<SignInLink>("").await?.into_iter().partition(|link| link.expires_at > now());
        good.retain(|link| link.user == *user);
        good.sort_by_key(|link| std::cmp::Reverse(link.expires_at));
        old.extend(good.drain(good.len().min(LINKS - 1)..));
        for link in &old {
            match self.store.transaction().delete(link).commit().await {
                // Somebody else has deleted it.
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whom a link signs in, if it is good still.
    ///
    /// # Errors
    /// [`CommandError::NotFound`] when it is not.
    pub(crate) async fn link_user(&self, secret: &str) -> Result<SignInLink, CommandError> {
        let unknown = || {
            let text = "this link is not good: it was used, is too old, or was cut off; ask for a new one: console";
            CommandError::NotFound(text.into())
        };
        let secret = TokenSecret::parse(secret).map_err(|_| unknown())?;
        let link = self.store.get::<SignInLink>(&secret.hash()).await?;
        link.filter(|link| link.expires_at > now()).map(|link| link.record).ok_or_else(unknown)
    }

    /// Signs the user of a link in; the link is worth nothing after that. Once begun it is done, whether or not the caller stays.
    ///
    /// # Errors
    /// As [`Self::link_user`]; the store's.
    pub(crate) async fn sign_in_by_link(&self, secret: &str) -> Result<Session, CommandError> {
        let (commands, secret) = (self.clone(), secret.to_owned());
        to_its_end(async move { commands.use_link(&secret).await }).await
    }

    async fn use_link(&self, secret: &str) -> Result<Session, CommandError> {
        let link = self.link_user(secret).await?;
        let user = self.store.need::<User>(&link.user).await?;
        let used = self.store.get::<SignInLink>(&link.secret_hash).await?;
        let used = used.ok_or_else(|| CommandError::NotFound("this link has just been used".into()))?;
        // Whoever deletes it has used it.
        self.store.transaction().delete(&used).commit().await?;
        let caller =
            Caller { user: user.name.clone(), operator: user.operator, door: Door::Api, rights: None, trace: None };
        let until = link.made_with.as_ref().map_or(now() + SESSION, |(_, end)| (now() + SESSION).min(*end));
        let new = session(TokenScope::Full, None, until, link.made_with.map(|(maker, _)| maker));
        self.begin_session(&caller, new).await
    }

    /// Signs who has come with a token in: for what that token is for, and no longer than it. Once begun it is done.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn sign_in(&self, caller: &Caller) -> Result<Session, CommandError> {
        let until = now() + SESSION;
        let new = match &caller.rights {
            Some(rights) => {
                let until = until.min(rights.expires_at);
                session(rights.scope, rights.tenant.clone(), until, Some(rights.id.clone()))
            }
            None => return Err(CommandError::Usage("who has no token signs in with a link: console".into())),
        };
        let (commands, caller) = (self.clone(), caller.clone());
        to_its_end(async move { commands.begin_session(&caller, new).await }).await
    }

    async fn begin_session(&self, caller: &Caller, new: tokens::NewToken) -> Result<Session, CommandError> {
        let secret = TokenSecret::generate();
        let (about, ended) = keep_trying(|| self.try_create_token(&caller.user, &new, &secret)).await?;
        let text = format!("{} signed in with a browser", about.user);
        self.record_token(caller, EventKind::TokenCreated, &about, text).await?;
        for token in &ended {
            let text = format!("token {} of {} ended, as there were too many sessions", token.id, token.user);
            self.record_token(caller, EventKind::TokenRevoked, token, text).await?;
        }
        Ok(Session { secret, about })
    }

    /// Ends the token that this is asked with: signs out. Once begun it is done.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn sign_out(&self, caller: &Caller) -> Result<(), CommandError> {
        let (commands, caller) = (self.clone(), caller.clone());
        to_its_end(async move { commands.end_session(&caller).await }).await
    }

    async fn end_session(&self, caller: &Caller) -> Result<(), CommandError> {
        let Some(rights) = &caller.rights else { return Ok(()) };
        let ended = keep_trying(|| self.try_revoke_token(caller, &rights.id)).await?;
        for token in &ended {
            let text = format!("token {} of {} ended by signing out", token.id, token.user);
            self.record_token(caller, EventKind::TokenRevoked, token, text).await?;
        }
        Ok(())
    }
}

fn session(
    scope: TokenScope,
    tenant: Option<crate::domain::TenantName>,
    expires_at: Timestamp,
    made_with: Option<String>,
) -> tokens::NewToken {
    tokens::NewToken { name: NAME.to_owned(), scope, tenant, expires_at, session: true, made_with }
}
