//! `gc`: what is not needed any more goes.

use async_trait::async_trait;
use serde_json::json;

use super::{Answer, Caller, CommandError, CommandIo, Commands, answer};
use crate::{
    disk::human,
    gc::{Gc, GcError, Report},
};

/// Takes away what is not needed: [`Gc`], whose method of the same name this is.
#[async_trait]
pub trait Collections: Send + Sync {
    /// As [`Gc::run`].
    async fn run(&self, dry_run: bool) -> Result<Report, GcError>;
}

#[async_trait]
impl Collections for Gc {
    async fn run(&self, dry_run: bool) -> Result<Report, GcError> {
        Self::run(self, dry_run).await
    }
}

/// Things that are listed one by one for people.
const LISTED: usize = 50;

impl Commands {
    /// Collects, or says what would go.
    pub(super) async fn gc(&self, caller: &Caller, dry_run: bool, io: &mut CommandIo) -> Result<Answer, CommandError> {
        self.need_operator(caller, "collect what is not needed")?;
        if !dry_run {
            io.tell("Collecting what is not needed any more; it goes on when you do not wait\n").await;
        }
        let report = self.collections.run(dry_run).await.map_err(|error| match error {
            GcError::Running => CommandError::Conflict(error.to_string()),
            GcError::Stopping => CommandError::TryLater(error.to_string()),
            GcError::Failed(_) => CommandError::Failed(format!("{error:#}")),
        })?;
        Ok(answer(&report))
    }
}

fn answer(report: &Report) -> Answer {
    let mut text = String::new();
    if report.dry_run {
        let named = report.gone.iter().take(LISTED);
        text.extend(named.map(|gone| format!("would go: {} {}\n", gone.kind.name(), answer::clean(&gone.name))));
        if report.count() > LISTED as u64 {
            text.push_str(&format!("… and {} more\n", report.count() - LISTED as u64));
        }
    }
    let rows: Vec<Vec<String>> = report
        .sums
        .iter()
        .map(|(kind, sum)| vec![kind.name().to_owned(), sum.count.to_string(), human(sum.bytes)])
        .collect();
    if rows.is_empty() {
        text.push_str("There is nothing that is not needed.\n");
    } else {
        text.push_str(&answer::table(&["what", if report.dry_run { "would go" } else { "gone" }, "size"], &rows));
    }
    text.extend(report.failures.iter().map(|failure| format!(" !     {}\n", answer::clean(failure))));
    Answer::new(text, json!(report))
}
