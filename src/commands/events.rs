//! `events`, and the streams behind it and the API's.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use futures::{Stream, StreamExt};
use serde_json::json;

use super::{Caller, CommandError, CommandIo, Commands, Door, answer, io::interrupted, nouns};
use crate::{
    domain::{Event, Tenant, TenantName, User, Verb},
    events::{EventFilter, FilterError, Follower, Published, StreamEnd, Told},
    store::{KEPT_EVENTS, Store, Stored},
};

/// Events that are shown unless more or less are asked for.
const LINES: usize = 50;

impl From<FilterError> for CommandError {
    fn from(error: FilterError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// One event as a line.
fn line(event: &Event, as_json: bool) -> String {
    if as_json {
        return format!("{}\n", json!(event));
    }
    let actor = event.actor.as_ref().map_or_else(String::new, |actor| format!(" ({actor})"));
    let (at, kind) = (event.at.strftime("%Y-%m-%d %H:%M:%S"), event.kind);
    format!("{at} {kind:<20} {}{actor}\n", answer::clean(&event.message))
}

/// Somebody who reads events as they come.
struct Reader {
    store: Store,
    caller: Caller,
    filter: EventFilter,
    follower: Follower,
    /// What is to be told next.
    ready: VecDeque<Told>,
    /// The changes of users that are known.
    users: u64,
    over: bool,
}

impl Commands {
    /// The events that the caller may see and the filter takes: the newest `limit`, or with `after` the first `limit` of those that came
    /// after the event with that number. The oldest comes first.
    ///
    /// # Errors
    /// [`CommandError::NotFound`] when the filter names what does not exist or the caller may not know of; else the store failed.
    pub async fn event_list(
        &self,
        caller: &Caller,
        filter: &EventFilter,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Event>, CommandError> {
        Ok(self.events_kept(caller, filter, after, limit).await?.0)
    }

    /// The events as they come, in the order of their numbers, each exactly once: with `after`, first those that are kept and came after
    /// the event with that number; without it, only what comes from now on. What the caller may see is looked at anew whenever it
    /// changes; without a tenant in the filter, events of a tenant that the caller is no longer a member of are left out from then on. The
    /// stream ends with the first error.
    ///
    /// Nothing is gathered for who does not poll: see [`crate::events`].
    ///
    /// # Errors
    /// As [`Self::event_list`].
    pub async fn event_stream(
        &self,
        caller: &Caller,
        filter: EventFilter,
        after: Option<u64>,
    ) -> Result<impl Stream<Item = Result<Told, StreamEnd>> + Send + use<>, CommandError> {
        self.may_filter(caller, &filter).await?;
        let mut ready = VecDeque::new();
        let mut from = after;
        if let Some(after) = after.filter(|after| *after > self.events.last()) {
            // The numbers go back when an older state of the records is restored.
            let last = self.store.list::<Event>("").await?.last().map_or(0, |event| event.id);
            if last < after {
                ready.push_back(Told::Missed { from: last + 1, to: after });
                from = Some(last);
            }
        }
        Ok(self.reader(caller, filter, from, ready).into_stream())
    }

    fn reader(&self, caller: &Caller, filter: EventFilter, after: Option<u64>, ready: VecDeque<Told>) -> Reader {
        let follower = self.events.follow(filter.clone(), after);
        let (store, caller) = (self.store.clone(), caller.clone());
        Reader { store, caller, filter, follower, ready, users: 0, over: false }
    }

    /// Whether what the filter names exists, and the caller may know of it.
    async fn may_filter(&self, caller: &Caller, filter: &EventFilter) -> Result<(), CommandError> {
        caller.need_commands()?;
        match (&filter.env, &filter.app, &filter.tenant) {
            (Some(env), _, _) => self.env_for(caller, Verb::Read, env).await.map(drop),
            (None, Some(app), _) => self.app_for(caller, Verb::Read, app).await.map(drop),
            (None, None, Some(tenant)) => self.tenant_for(caller, Verb::Read, tenant).await.map(drop),
            (None, None, None) => Ok(()),
        }
    }

    /// The events, and the number of the last that was looked at.
    async fn events_kept(
        &self,
        caller: &Caller,
        filter: &EventFilter,
        after: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<Event>, u64), CommandError> {
        self.may_filter(caller, filter).await?;
        let tenants = self.visible_tenants(caller).await?;
        let mut wanted = self.store.list::<Event>("").await?;
        let last = wanted.last().map_or(0, |event| event.id);
        if let Some(after) = after.filter(|after| *after > last && last > 0) {
            // As after a restore of what was before it: who waits for what comes after it would miss all until then.
            return Err(CommandError::Usage(format!(
                "there is no event {after}: the newest is {last}; begin anew, without `after`"
            )));
        }
        wanted.retain(|event| {
            after.is_none_or(|after| event.id > after) && filter.takes(event) && sees_event(caller, &tenants, event)
        });
        let skip = if after.is_some() { 0 } else { wanted.len().saturating_sub(limit) };
        let left_out = wanted.get(skip + limit).map(|event| event.id);
        let events = wanted.into_iter().skip(skip).take(limit).map(|event: Stored<Event>| event.record).collect();
        Ok((events, left_out.map_or(last, |id| id - 1)))
    }

    /// Prints events that the caller may see, and on as they come with `-f`. JSON is one object a line.
    pub(super) async fn events(
        &self,
        caller: &Caller,
        args: nouns::Events,
        as_json: bool,
        io: &mut CommandIo,
    ) -> Result<(), CommandError> {
        let filter = EventFilter::new(args.tenant, args.app, args.env, args.kinds)?;
        let limit = args.lines.map(|lines| lines as usize);
        let limit = limit.unwrap_or(if args.after.is_some() { KEPT_EVENTS * 2 } else { LINES });
        let (events, last) = self.events_kept(caller, &filter, args.after, limit).await?;
        let text: String = events.iter().map(|event| line(event, as_json)).collect();
        io.print(&text).await?;
        if !args.follow {
            return Ok(());
        }
        let mut told = self.reader(caller, filter, Some(last), VecDeque::new()).into_stream();
        let mut token_lost = std::pin::pin!(self.token_lost(caller));
        loop {
            let next = tokio::select! {
                next = told.next() => next,
                () = interrupted(&mut io.controls) => return Ok(()),
                denied = &mut token_lost => return Err(denied),
            };
            match next {
                Some(Ok(Told::Event(event))) => io.print(&line(&event, as_json)).await?,
                Some(Ok(Told::Missed { from, to })) => {
                    io.tell(&format!("… events {from} to {to} are not kept any more\n")).await;
                }
                Some(Err(end)) => return ended(end),
                None => return Ok(()),
            }
        }
    }
}

fn ended(end: StreamEnd) -> Result<(), CommandError> {
    match end {
        StreamEnd::TooSlow { last_id } => Err(CommandError::TryLater(format!(
            "you read too slowly, and too many events wait for you; go on with `events -f --after {last_id}`"
        ))),
        StreamEnd::AccessLost { reason } => Err(CommandError::Denied(reason)),
        StreamEnd::Stopping { .. } => Ok(()),
    }
}

fn sees_event(caller: &Caller, tenants: &BTreeSet<TenantName>, event: &Event) -> bool {
    match &event.tenant {
        Some(tenant) => caller.operator || tenants.contains(tenant),
        None => caller.operator,
    }
}

impl Reader {
    fn into_stream(self) -> impl Stream<Item = Result<Told, StreamEnd>> + Send + use<> {
        futures::stream::unfold(self, Self::next).boxed()
    }

    async fn next(mut self) -> Option<(Result<Told, StreamEnd>, Self)> {
        loop {
            if self.over {
                return None;
            }
            if let Some(told) = self.ready.pop_front() {
                return Some((Ok(told), self));
            }
            if let Err(end) = self.read_on().await {
                self.over = true;
                return Some((Err(end), self));
            }
        }
    }

    /// Takes what is there, or waits until there may be more.
    async fn read_on(&mut self) -> Result<(), StreamEnd> {
        let caller = self.caller.clone();
        let sees = move |whose: Option<(&TenantName, Option<&Tenant>)>| match whose {
            Some((_, tenant)) => caller.operator || tenant.is_some_and(|tenant| caller.sees(tenant)),
            None => caller.operator,
        };
        let page = self.follower.page(&sees).await?;
        if !page.allowed {
            return Err(self.refused());
        }
        if std::mem::replace(&mut self.users, page.users) != page.users {
            self.check_operator().await?;
        }
        self.ready.extend(page.missed.map(|(from, to)| Told::Missed { from, to }));
        let events = page.events.into_iter().map(|event: Arc<Published>| Told::Event(event));
        self.ready.extend(events);
        if self.ready.is_empty() {
            self.follower.changed().await?;
        }
        Ok(())
    }

    /// Whoever reads as an operator must still be one.
    async fn check_operator(&self) -> Result<(), StreamEnd> {
        if !self.caller.operator || self.caller.door == Door::Host {
            return Ok(());
        }
        match self.store.get::<User>(&self.caller.user).await {
            Ok(Some(user)) if user.operator => Ok(()),
            Ok(_) => {
                let reason = "you are not an operator any more, so this was ended; ask yours".to_owned();
                Err(StreamEnd::AccessLost { reason })
            }
            Err(error) => {
                tracing::error!(%error, "it cannot be read who is an operator; a stream of events is ended");
                Err(StreamEnd::Stopping { last_id: self.follower.cursor() })
            }
        }
    }

    fn refused(&self) -> StreamEnd {
        let name = self.filter.of_tenant().map_or_else(String::new, ToString::to_string);
        let reason = format!(
            "your membership of {name} has changed and no longer allows this, so it was ended; ask an owner of it"
        );
        StreamEnd::AccessLost { reason }
    }
}
