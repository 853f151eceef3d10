//! `logs`.

use futures::StreamExt;
use serde_json::json;

use super::{Caller, CommandError, CommandIo, Commands, error::logged, io::interrupted, nouns};
use crate::{
    domain::Verb,
    logs::{LogFilter, LogItem, LogRecord, render_record},
};

/// One line: for people rendered, for programs one JSON object.
fn line(record: &LogRecord, as_json: bool) -> String {
    if as_json { format!("{}\n", json!(record)) } else { format!("{}\n", render_record(record)) }
}

impl Commands {
    /// Prints the last lines, and on as they come with `-f`, until the caller interrupts.
    pub(super) async fn show_logs(
        &self,
        caller: &Caller,
        args: nouns::LogsArgs,
        as_json: bool,
        io: &mut CommandIo,
    ) -> Result<(), CommandError> {
        self.env_for(caller, Verb::Read, &args.env).await?;
        if let Some(number) = args.build {
            let number = self.build(&args.env, Some(number)).await?.number;
            return self.build_logs(caller, &args.env, number, args.follow, as_json, io).await;
        }
        let filter = args.process.map_or_else(LogFilter::all, LogFilter::process);
        let count = args.lines as usize;
        let unreadable = |error| logged(error, format!("the logs of {} cannot be read", args.env));
        if !args.follow {
            let records = self.logs.tail(&args.env, count, &filter).await.map_err(unreadable)?;
            let text: String = records.iter().map(|record| line(record, as_json)).collect();
            return io.print(&text).await;
        }
        let (records, lines) = self.logs.tail_and_follow(&args.env, count, &filter).await.map_err(unreadable)?;
        let text: String = records.iter().map(|record| line(record, as_json)).collect();
        io.print(&text).await?;
        let mut lines = std::pin::pin!(lines);
        let mut access_lost = std::pin::pin!(self.access_lost(caller, Verb::Read, &args.env.tenant));
        loop {
            tokio::select! {
                item = lines.next() => match item {
                    Some(LogItem::Record(record)) => io.print(&line(&record, as_json)).await?,
                    Some(LogItem::Missed(count)) => io.tell(&format!("… {count} lines were missed\n")).await,
                    None => return Ok(()),
                },
                () = interrupted(&mut io.controls) => return Ok(()),
                denied = &mut access_lost => return Err(denied),
            }
        }
    }
}
