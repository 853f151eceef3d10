//! Log drains: `drains …`.

use serde_json::json;

use super::{Answer, Caller, CommandError, Commands, error::keep_trying, error::logged, nouns, now};
use crate::{
    domain::{Drain, DrainCursor, DrainMark, DrainUrl, EnvRef, EventKind, Verb},
    drains::{DrainState, MAX_OF_ENVIRONMENT},
    store::{NewEvent, Stored},
};

impl Commands {
    /// `drains …`.
    pub(super) async fn drains(&self, caller: &Caller, command: nouns::Drains) -> Result<Answer, CommandError> {
        match command {
            nouns::Drains::List { env } => self.list_drains(caller, &env).await,
            nouns::Drains::Add { env, url } => self.add_drain(caller, &env, &url).await,
            nouns::Drains::Remove { env, id } => self.remove_drain(caller, &env, id).await,
        }
    }

    async fn list_drains(&self, caller: &Caller, env: &EnvRef) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::Read, env).await?;
        let drains = self.drains_of(env).await?;
        let states = self.drains.status(env);
        let end = if drains.is_empty() { DrainCursor::default() } else { self.log_end(env).await? };
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for Drain { id, url, created_by, created_at, .. } in drains.iter().map(|drain| &drain.record) {
            let mark = self.store.get::<DrainMark>(&(env.clone(), *id)).await?.map(|stored| stored.record);
            let status = states.get(id);
            // What the task knows is newer than what it has written.
            let written = mark.map(|mark| (mark.sent, mark.dropped, mark.cursor.line));
            let (sent, dropped, line) =
                status.map(|known| (known.sent, known.dropped, known.line)).or(written).unwrap_or_default();
            let lag = end.line.saturating_sub(line);
            let (state, why) = match status.map(|status| &status.state) {
                None | Some(DrainState::Starting) => ("starting", None),
                Some(DrainState::Connected) => ("connected", None),
                Some(DrainState::Retrying { why, .. }) => ("retrying", Some(why.clone())),
            };
            let since = status.map(|status| status.since);
            let refused = status.and_then(|status| status.refused.clone());
            let shown = since.map_or_else(|| state.to_owned(), |since| format!("{state} since {since:.0}"));
            let reason = why.clone().or_else(|| refused.clone().map(|why| format!("lines were refused: {why}")));
            let numbers = [sent, dropped, lag].map(|number| number.to_string());
            rows.push(
                [vec![id.to_string(), url.to_string(), shown], numbers.to_vec(), reason.into_iter().collect()].concat(),
            );
            values.push(json!({
                "id": id, "url": url.to_string(), "state": state, "since": since, "why": why, "sent": sent,
                "dropped": dropped, "lag": lag, "refused": refused, "created_by": created_by, "created_at": created_at,
            }));
        }
        let columns = ["id", "url", "state", "sent", "dropped", "lag", "why"];
        Ok(Answer::table(&columns, rows, values, "No drains."))
    }

    async fn add_drain(&self, caller: &Caller, env: &EnvRef, url: &str) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::WriteConfig, env).await?;
        let url: DrainUrl = url.parse().map_err(|error| CommandError::Usage(format!("{error}")))?;
        self.drains.check(&url).map_err(|refusal| CommandError::Usage(refusal.to_string()))?;
        let begin = self.log_end(env).await?;
        let id = keep_trying(|| self.try_add_drain(caller, env, &url, begin)).await?;
        self.drain_changed(caller, env, format!("the log of {env} is sent to {url} (drain {id})"), id, &url).await
    }

    async fn try_add_drain(
        &self,
        caller: &Caller,
        env: &EnvRef,
        url: &DrainUrl,
        begin: DrainCursor,
    ) -> Result<u64, CommandError> {
        let environment = self.env_for(caller, Verb::WriteConfig, env).await?;
        let (all, drains) = (self.store.list::<Drain>("").await?.len(), self.drains_of(env).await?);
        if let Some(known) = drains.iter().find(|drain| drain.url == *url) {
            return Err(CommandError::Conflict(format!(
                "the log of {env} is sent there already, by drain {}",
                known.id
            )));
        }
        if drains.len() >= MAX_OF_ENVIRONMENT {
            let text = format!("{env} has {MAX_OF_ENVIRONMENT} drains, which is the most; remove one first");
            return Err(CommandError::Conflict(text));
        }
        if all >= self.drains.most() {
            let text = format!("this server has {all} drains, which is the most (drains.most); ask its operator");
            return Err(CommandError::Conflict(text));
        }
        let id = drains.last().map_or(1, |drain| drain.id + 1);
        let (created_by, created_at) = (caller.user.clone(), now());
        let drain = Drain { env: env.clone(), id, url: url.clone(), created_by, created_at };
        let mark = DrainMark { env: env.clone(), id, cursor: begin, sent: 0, dropped: 0, told: 0 };
        self.store.transaction().expect(&environment).create(&drain).put(&mark).commit().await?;
        Ok(id)
    }

    async fn remove_drain(&self, caller: &Caller, env: &EnvRef, id: u64) -> Result<Answer, CommandError> {
        let url = keep_trying(|| self.try_remove_drain(caller, env, id)).await?;
        self.drain_changed(caller, env, format!("the log of {env} is no longer sent to {url} (drain {id})"), id, &url)
            .await
    }

    async fn try_remove_drain(&self, caller: &Caller, env: &EnvRef, id: u64) -> Result<DrainUrl, CommandError> {
        self.env_for(caller, Verb::WriteConfig, env).await?;
        let key = (env.clone(), id);
        let Some(drain) = self.store.get::<Drain>(&key).await? else {
            return Err(CommandError::NotFound(format!("{env} has no drain {id}; `drains list {env}` lists them")));
        };
        let mut transaction = self.store.transaction().delete(&drain);
        if let Some(mark) = self.store.get::<DrainMark>(&key).await? {
            transaction = transaction.delete(&mark);
        }
        transaction.commit().await?;
        Ok(drain.record.url)
    }

    async fn drains_of(&self, env: &EnvRef) -> Result<Vec<Stored<Drain>>, CommandError> {
        Ok(self.store.list::<Drain>(&format!("{env}/")).await?)
    }

    async fn log_end(&self, env: &EnvRef) -> Result<DrainCursor, CommandError> {
        self.logs.end(env).await.map_err(|error| logged(error, format!("the log of {env} could not be read")))
    }

    async fn drain_changed(
        &self,
        caller: &Caller,
        env: &EnvRef,
        what: String,
        id: u64,
        url: &DrainUrl,
    ) -> Result<Answer, CommandError> {
        let event = NewEvent::new(EventKind::DrainChanged, now(), what.clone());
        self.store.record(event.env(env).by(&caller.user)).await?;
        Ok(Answer::new(what, json!({"env": env, "id": id, "url": url.to_string()})))
    }
}
