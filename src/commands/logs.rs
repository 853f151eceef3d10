//! Logs of environments: `logs`, and what every door asks about them.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};

use super::{Caller, CommandError, CommandIo, Commands, error::logged, io::interrupted, nouns, now};
use crate::{
    domain::{EnvRef, Verb},
    logs::{LogFilter, LogItem, LogQuery, MAX_TAIL, Search, render_record},
};

/// Lines that are written in one go, as far as they are there.
const AT_ONCE: usize = 500;

impl Commands {
    /// The lines that are asked for, oldest first: the last ones or, after a place, the first ones. [`LogItem::Gap`] says that the place is
    /// not in the log any more.
    ///
    /// # Errors
    /// When the caller may not read the environment's log, or it cannot be read.
    pub async fn log_tail(&self, caller: &Caller, env: &EnvRef, query: LogQuery) -> Result<Vec<LogItem>, CommandError> {
        self.env_for(caller, Verb::Read, env).await?;
        let read = match query.after {
            Some(after) => self.logs.read_after(env, after, query.lines, &query.filter).await,
            None => self.logs.tail(env, query.lines, &query.filter).await.map(into_items),
        };
        read.map_err(|error| unreadable(env, error))
    }

    /// The lines that are asked for, and every line after them as it comes. A reader who is too slow is told how many lines it missed. The
    /// stream ends at the end of the time that is asked for and when the environment is removed; with an error when the caller's membership
    /// is lost.
    ///
    /// # Errors
    /// As [`Self::log_tail`]; [`CommandError::TryLater`] when too many are followed already.
    pub async fn log_stream(
        &self,
        caller: &Caller,
        env: &EnvRef,
        query: LogQuery,
    ) -> Result<impl Stream<Item = Result<LogItem, CommandError>> + Send + use<>, CommandError> {
        self.env_for(caller, Verb::Read, env).await?;
        let place = self.follow_place(&env.tenant)?;
        let items: Pin<Box<dyn Stream<Item = Result<LogItem, CommandError>> + Send>> = match query.after {
            Some(after) => {
                let env_of_log = env.clone();
                let items = self.logs.follow_after(env, after, &query.filter);
                items.map(move |item| item.map_err(|error| unreadable(&env_of_log, error))).boxed()
            }
            None => {
                let started = self.logs.tail_and_follow(env, query.lines, &query.filter).await;
                let (last, coming) = started.map_err(|error| unreadable(env, error))?;
                futures::stream::iter(into_items(last)).chain(coming).map(Ok).boxed()
            }
        };
        let until = query.filter.until;
        let over = async move {
            match until {
                // What has been is sent all the same.
                Some(until) => tokio::time::sleep(until.duration_since(now()).try_into().unwrap_or_default()).await,
                None => std::future::pending().await,
            }
        };
        Ok(self.while_allowed(caller, &env.tenant, place, until_over(items, over)))
    }

    /// Prints the last lines, and on as they come with `-f`, until the caller interrupts.
    pub(super) async fn show_logs(
        &self,
        caller: &Caller,
        args: nouns::LogsArgs,
        as_json: bool,
        io: &mut CommandIo,
    ) -> Result<(), CommandError> {
        if let Some(number) = args.build {
            return self.build_logs(caller, &args.env, Some(number), args.follow, as_json, io).await;
        }
        let (env, follow, query) = (args.env.clone(), args.follow, query(args)?);
        if !follow {
            let items = self.log_tail(caller, &env, query).await?;
            return print(items, as_json, io).await;
        }
        let items = self.log_stream(caller, &env, query).await?;
        let mut items = std::pin::pin!(items.ready_chunks(AT_ONCE));
        loop {
            let chunk = tokio::select! {
                chunk = items.next() => chunk,
                () = interrupted(&mut io.controls) => return Ok(()),
            };
            let Some(chunk) = chunk else { return Ok(()) };
            let mut denied = None;
            let mut lines = Vec::with_capacity(chunk.len());
            for item in chunk {
                match item {
                    Ok(item) => lines.push(item),
                    Err(error) => denied = Some(error),
                }
            }
            print(lines, as_json, io).await?;
            if let Some(denied) = denied {
                return Err(denied);
            }
        }
    }
}

fn into_items(entries: Vec<crate::logs::LogEntry>) -> Vec<LogItem> {
    entries.into_iter().map(|entry| LogItem::Record(Arc::new(entry))).collect()
}

fn unreadable(env: &EnvRef, error: anyhow::Error) -> CommandError {
    logged(error, format!("the logs of {env} cannot be read"))
}

/// What is there until then, and nothing that comes afterwards.
fn until_over<T: Send + 'static>(
    items: Pin<Box<dyn Stream<Item = T> + Send>>,
    over: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = T> + Send + 'static {
    futures::stream::unfold((items, Box::pin(over)), async |(mut items, mut over)| {
        let item = tokio::select! {
            biased;
            item = items.next() => item,
            () = &mut over => None,
        };
        item.map(|item| (item, (items, over)))
    })
}

/// What is asked for in words.
fn query(args: nouns::LogsArgs) -> Result<LogQuery, CommandError> {
    let search = args.search.map(|text| Search::new(&text, args.ignore_case)).transpose();
    let now = now();
    let filter = LogFilter {
        process: args.process,
        replica: args.replica,
        source: args.source,
        stream: args.stream,
        since: args.since.map(|since| since.at(now)),
        until: args.until.map(|until| until.at(now)),
        search: search.map_err(|error| CommandError::Usage(format!("--search: {error}")))?,
        level: args.level,
    };
    if let (Some(since), Some(until)) = (filter.since, filter.until)
        && since >= until
    {
        return Err(CommandError::Usage(format!("--since {since} is not before --until {until}")));
    }
    Ok(LogQuery { filter, lines: (args.lines as usize).min(MAX_TAIL), after: args.after })
}

/// For people rendered, for programs one JSON object a line; what is missing is told besides.
async fn print(items: Vec<LogItem>, as_json: bool, io: &mut CommandIo) -> Result<(), CommandError> {
    let mut text = String::new();
    for item in items {
        let missing = match item {
            LogItem::Record(entry) if as_json => {
                text.push_str(entry.json());
                text.push('\n');
                continue;
            }
            LogItem::Record(entry) => {
                text.push_str(&render_record(&entry));
                text.push('\n');
                continue;
            }
            LogItem::Missed(count) => format!("… {count} lines were missed\n"),
            LogItem::Gap => "… lines are missing here: they are not kept any more\n".to_owned(),
        };
        if !text.is_empty() {
            io.print(&std::mem::take(&mut text)).await?;
        }
        io.tell(&missing).await;
    }
    if text.is_empty() { Ok(()) } else { io.print(&text).await }
}
