//! `events`.

use futures::StreamExt;
use serde_json::json;

use super::{Caller, CommandError, CommandIo, Commands, answer, io::interrupted, nouns};
use crate::{
    domain::{Event, Tenant, TenantName, Verb},
    store::Revision,
};

/// One event as a line.
fn line(event: &Event, as_json: bool) -> String {
    if as_json {
        return format!("{}\n", json!(event));
    }
    let actor = event.actor.as_ref().map_or_else(String::new, |actor| format!(" ({actor})"));
    let kind = json!(event.kind);
    let kind = kind.as_str().unwrap_or_default();
    format!("{} {kind:<20} {}{actor}\n", event.at.strftime("%Y-%m-%d %H:%M:%S"), answer::clean(&event.message))
}

impl Commands {
    /// Prints the newest events that the caller may see, and on as they come with `-f`. JSON is one object a line.
    pub(super) async fn events(
        &self,
        caller: &Caller,
        args: nouns::Events,
        as_json: bool,
        io: &mut CommandIo,
    ) -> Result<(), CommandError> {
        if let Some(tenant) = &args.tenant {
            self.tenant_for(caller, Verb::Read, tenant).await?;
        }
        let from = self.store.revision().await?;
        let mut visible = Vec::new();
        for event in self.store.list::<Event>("").await? {
            if self.sees_event(caller, args.tenant.as_ref(), &event).await? {
                visible.push(event.record);
            }
        }
        let skip = visible.len().saturating_sub(args.lines as usize);
        let text: String = visible[skip..].iter().map(|event| line(event, as_json)).collect();
        io.print(&text).await?;
        if args.follow { self.follow_events(caller, args.tenant.as_ref(), from, as_json, io).await } else { Ok(()) }
    }

    async fn follow_events(
        &self,
        caller: &Caller,
        tenant: Option<&TenantName>,
        from: Revision,
        as_json: bool,
        io: &mut CommandIo,
    ) -> Result<(), CommandError> {
        let mut changes = self.store.watch::<Event>("", from).await?;
        let mut token_lost = std::pin::pin!(self.token_lost(caller));
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Some(Ok((_, Some(event)))) => {
                        if self.sees_event(caller, tenant, &event).await? {
                            io.print(&line(&event, as_json)).await?;
                        }
                    }
                    Some(Ok((_, None))) => {}
                    Some(Err(_)) => io.tell("… some events were missed\n").await,
                    None => return Ok(()),
                },
                () = interrupted(&mut io.controls) => return Ok(()),
                denied = &mut token_lost => return Err(denied),
            }
        }
    }

    async fn sees_event(
        &self,
        caller: &Caller,
        only: Option<&TenantName>,
        event: &Event,
    ) -> Result<bool, CommandError> {
        let Some(name) = &event.tenant else { return Ok(caller.operator && only.is_none()) };
        if only.is_some_and(|only| only != name) {
            return Ok(false);
        }
        if caller.operator {
            return Ok(true);
        }
        Ok(self.store.get::<Tenant>(name).await?.is_some_and(|tenant| caller.sees(&tenant)))
    }
}
