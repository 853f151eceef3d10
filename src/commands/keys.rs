//! Users and their keys: `upload-key`, `keys`, `whoami`.

use serde_json::{Value, json};

use super::{Answer, Caller, CommandError, CommandIo, Commands, Door, answer, error::keep_trying, nouns, now, tokens};
use crate::{
    domain::{EventKind, PublicKey, Tenant, User, UserName},
    keys::{self, ParsedKey},
    store::{NewEvent, StoreError, Stored},
};

impl Commands {
    /// Registers the keys on standard input for a user, who is made when new. On the host, the very first user becomes an
    /// operator.
    pub(super) async fn upload_key(
        &self,
        caller: &Caller,
        name: &UserName,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        if caller.door != Door::Host {
            self.need_operator(caller, "upload keys for users")?;
        }
        let bytes = io.read_all().await?;
        let parsed = keys::parse_upload(&bytes).map_err(|error| CommandError::Usage(error.to_string()))?;
        keep_trying(|| self.register_keys(caller, name, &parsed)).await
    }

    async fn register_keys(
        &self,
        caller: &Caller,
        name: &UserName,
        parsed: &[ParsedKey],
    ) -> Result<Answer, CommandError> {
        let known = self.store.get::<User>(name).await?;
        let first = caller.door == Door::Host && self.store.list::<User>("").await?.is_empty();
        let mut transaction = self.store.transaction();
        let user = match &known {
            Some(user) => {
                transaction = transaction.expect(user);
                user.record.clone()
            }
            None => {
                let user = User { name: name.clone(), operator: first, created_at: now() };
                transaction = transaction.create(&user);
                user
            }
        };
        let mut report = Vec::new();
        for key in parsed {
            match self.store.get::<PublicKey>(&key.fingerprint).await? {
                Some(theirs) if theirs.user != *name => {
                    return Err(CommandError::Conflict(format!(
                        "the key {} belongs to another user; a key names one user, so make a new one for {name}",
                        key.fingerprint
                    )));
                }
                Some(_) => report.push((key, false)),
                None => {
                    transaction = transaction.create(&record(key, name));
                    report.push((key, true));
                }
            }
        }
        transaction.commit().await?;
        self.report_upload(caller, &user, known.is_none(), &report).await
    }

    async fn report_upload(
        &self,
        caller: &Caller,
        user: &User,
        new_user: bool,
        report: &[(&ParsedKey, bool)],
    ) -> Result<Answer, CommandError> {
        let mut human = String::new();
        if new_user {
            let role = if user.operator { " (operator: the first user manages the platform)" } else { "" };
            human.push_str(&format!("Created user {}{role}\n", user.name));
        }
        for (key, new) in report {
            let what = if *new { "Added" } else { "Already there:" };
            let comment = answer::clean(&key.comment);
            human.push_str(&format!("{what} {} {} {comment}\n", key.algorithm, key.fingerprint));
            if *new {
                let event = NewEvent::new(
                    EventKind::KeyAdded,
                    now(),
                    format!("key {} added for {}", key.fingerprint, user.name),
                );
                let event = event.data("fingerprint", key.fingerprint.as_str()).data("user", user.name.as_str());
                self.store.record(event.by(&caller.user)).await?;
            }
        }
        let keys: Vec<Value> = report
            .iter()
            .map(|(key, new)| json!({"fingerprint": key.fingerprint, "algorithm": key.algorithm, "comment": key.comment, "added": new}))
            .collect();
        Ok(Answer::new(human, json!({"user": user.name, "operator": user.operator, "created": new_user, "keys": keys})))
    }

    /// `keys list` and `keys remove`.
    pub(super) async fn keys(&self, caller: &Caller, command: nouns::Keys) -> Result<Answer, CommandError> {
        match command {
            nouns::Keys::List { user, all } => self.list_keys(caller, user, all).await,
            nouns::Keys::Remove { fingerprint } => self.remove_key(caller, &fingerprint).await,
        }
    }

    async fn list_keys(&self, caller: &Caller, user: Option<UserName>, all: bool) -> Result<Answer, CommandError> {
        caller.need_account("see keys")?;
        let whose = user.unwrap_or_else(|| caller.user.clone());
        if all || whose != caller.user {
            self.need_operator(caller, "see the keys of others")?;
        }
        let keys = self.store.list::<PublicKey>("").await?;
        let keys: Vec<_> = keys.into_iter().filter(|key| all || key.user == whose).collect();
        let row = |key: &Stored<PublicKey>| {
            let date = key.added_at.strftime("%Y-%m-%d").to_string();
            vec![key.user.to_string(), key.fingerprint.clone(), key.algorithm.clone(), date, key.comment.clone()]
        };
        let value = |key: &Stored<PublicKey>| json!(key.record);
        let (rows, values) = (keys.iter().map(row).collect(), keys.iter().map(value).collect());
        Ok(Answer::table(&["user", "fingerprint", "type", "added", "comment"], rows, values, "No keys."))
    }

    async fn remove_key(&self, caller: &Caller, fingerprint: &str) -> Result<Answer, CommandError> {
        caller.need_account("remove keys")?;
        let found = self.store.get::<PublicKey>(fingerprint).await?;
        let found = found.filter(|key| caller.operator || key.user == caller.user);
        let key = found
            .ok_or_else(|| CommandError::NotFound(format!("you have no key {fingerprint}; `keys list` shows yours")))?;
        let others = self.store.list::<PublicKey>("").await?;
        if !others.iter().any(|other| other.user == key.user && other.fingerprint != key.fingerprint)
            && !caller.operator
        {
            return Err(CommandError::Conflict(
                "this is your only key; without it you could not come back. Add another one first".into(),
            ));
        }
        if self.is_last_operator_key(&key, &others).await? {
            return Err(CommandError::Conflict(
                "this is the only key of the only operator; nobody could manage the platform".into(),
            ));
        }
        self.store.transaction().delete(&key).commit().await?;
        let event = NewEvent::new(EventKind::KeyRemoved, now(), format!("key {fingerprint} of {} removed", key.user));
        let event = event.data("fingerprint", fingerprint).data("user", key.user.as_str());
        self.store.record(event.by(&caller.user)).await?;
        Ok(Answer::new(
            format!("Removed {fingerprint} of {}", key.user),
            json!({"removed": fingerprint, "user": key.user}),
        ))
    }

    async fn is_last_operator_key(&self, key: &PublicKey, keys: &[Stored<PublicKey>]) -> Result<bool, StoreError> {
        let users = self.store.list::<User>("").await?;
        let operator = |name: &UserName| users.iter().any(|user| user.operator && user.name == *name);
        Ok(operator(&key.user)
            && !keys.iter().any(|other| other.fingerprint != key.fingerprint && operator(&other.user)))
    }

    /// `whoami`.
    pub(super) async fn whoami(&self, caller: &Caller) -> Result<Answer, CommandError> {
        let tenants = self.store.list::<Tenant>("").await?;
        let seen = tenants.iter().filter(|tenant| caller.sees(tenant));
        let mine: Vec<_> = seen.filter_map(|t| Some((&t.name, *t.members.get(&caller.user)?))).collect();
        let mut human = caller.user.to_string();
        if caller.operator {
            human.push_str(" (operator)");
        }
        for (tenant, role) in &mine {
            human.push_str(&format!("\n{role} of {tenant}"));
        }
        let tenants: serde_json::Map<String, Value> =
            mine.iter().map(|(tenant, role)| (tenant.to_string(), json!(role))).collect();
        let mut json = json!({"user": caller.user, "operator": caller.operator, "tenants": tenants});
        if let Some(rights) = &caller.rights {
            human.push_str(&format!("\nwith token {}", tokens::described(rights)));
            json["token"] = json!({
                "id": rights.id, "name": rights.name, "scope": rights.scope, "tenant": rights.tenant,
                "expires_at": rights.expires_at,
            });
        }
        Ok(Answer::new(human, json))
    }
}

fn record(key: &ParsedKey, user: &UserName) -> PublicKey {
    PublicKey {
        fingerprint: key.fingerprint.clone(),
        openssh: key.openssh.clone(),
        algorithm: key.algorithm.clone(),
        comment: key.comment.clone(),
        user: user.clone(),
        added_at: now(),
    }
}
