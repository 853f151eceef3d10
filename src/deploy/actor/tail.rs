//! The last output of a replica that failed, for those who wait for its deployment.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::SignedDuration;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Actor, execute::Done};
use crate::{
    domain::{LAST_LOG_LINE_CHARS, ReplicaId, Timestamp},
    logs::plain_line,
    runtime::Runtime,
};

/// Lines that are kept.
const LINES: usize = 30;
/// Lines of the two streams of a replica come out of order by less than this.
const APART: SignedDuration = SignedDuration::from_secs(1);
/// How long reading may take in all.
const DEADLINE: Duration = Duration::from_secs(2);
/// A replica that still runs has said all it has to say when nothing comes for this long.
const QUIET: Duration = Duration::from_millis(300);
/// Output older than this is not read.
const RECENT: Duration = Duration::from_secs(600);

impl Actor {
    /// Begins to read a replica's last output; its remains are left alone meanwhile.
    pub(super) fn read_tail(&mut self, id: &ReplicaId) {
        let Some(one) = self.replicas.get(id) else { return };
        let set = one.replica.set.clone();
        self.sets.entry(set.clone()).or_default().tails.insert(id.clone());
        let end = one.replica.finished_at.unwrap_or_else(|| self.parts.clock.now());
        let (runtime, replica) = (self.parts.runtime.clone(), id.clone());
        self.tasks.spawn(async move {
            let mut lines = last_lines(&runtime, &replica, Some(end - RECENT)).await;
            if lines.is_empty() {
                // It said nothing lately, or the clock leapt.
                lines = last_lines(&runtime, &replica, None).await;
            }
            Done::Tail { set, replica, lines }
        });
    }
}

async fn last_lines(runtime: &Arc<dyn Runtime>, replica: &ReplicaId, since: Option<Timestamp>) -> Vec<String> {
    let deadline = Instant::now() + DEADLINE;
    let Ok(Ok(mut lines)) = timeout_at(deadline, runtime.logs(replica, since)).await else { return Vec::new() };
    let mut last = Newest::default();
    while let Ok(Ok(Some(Ok(line)))) = timeout_at(deadline, timeout(QUIET, lines.next())).await {
        last.take(line.at, plain_line(&String::from_utf8_lossy(&line.bytes), LAST_LOG_LINE_CHARS));
    }
    last.0.into_iter().map(|(_, line)| line).collect()
}

/// The last lines, in the order in which they were written.
#[derive(Default)]
struct Newest(VecDeque<(Timestamp, String)>);

impl Newest {
    /// The engine reads standard output and standard error side by side, and says when each line came: one that is a little older than
    /// those before it belongs before them. One that is much older was written after the clock was set back.
    fn take(&mut self, at: Timestamp, line: String) {
        let later = |other: &&(Timestamp, String)| other.0 > at && other.0.duration_since(at) < APART;
        let place = self.0.len() - self.0.iter().rev().take_while(later).count();
        self.0.insert(place, (at, line));
        if self.0.len() > LINES {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[(i64, &str)]) -> Vec<String> {
        let mut last = Newest::default();
        for (millis, line) in lines {
            last.take(Timestamp::from_millisecond(*millis).unwrap(), (*line).to_owned());
        }
        last.0.into_iter().map(|(_, line)| line).collect()
    }

    #[test]
    fn lines_stand_in_the_order_in_which_they_were_written() {
        let mixed = [(10, "out 1"), (30, "out 2"), (20, "err 1"), (30, "err 2"), (5, "err 0"), (40, "out 3")];
        assert_eq!(said(&mixed), ["err 0", "out 1", "err 1", "out 2", "err 2", "out 3"]);
        // The clock was set back by a minute.
        assert_eq!(said(&[(100_000, "a"), (40_000, "b"), (40_010, "d"), (40_005, "c")]), ["a", "b", "c", "d"]);
        let many: Vec<(i64, &str)> = (0..100).map(|at| (at, if at == 99 { "last" } else { "x" })).collect();
        let kept = said(&many);
        assert!(kept.len() == LINES && kept.last().is_some_and(|line| line == "last"), "{kept:?}");
    }
}
