//! The last output of a replica that failed, for those who wait for its deployment.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Actor, execute::Done};
use crate::{
    domain::{ReplicaId, Timestamp},
    runtime::Runtime,
};

/// Lines that are kept.
const LINES: usize = 30;
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
    let mut last: VecDeque<String> = VecDeque::with_capacity(LINES);
    while let Ok(Ok(Some(Ok(line)))) = timeout_at(deadline, timeout(QUIET, lines.next())).await {
        if last.len() == LINES {
            last.pop_front();
        }
        last.push_back(clean(&line.bytes));
    }
    last.into()
}

/// A line for a terminal: no control characters but tabs, and not too long.
fn clean(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.chars().filter(|c| !c.is_control() || *c == '\t').take(500).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_cannot_drive_a_terminal() {
        assert_eq!(super::clean(b"a\x1b[2Jb\tc\xff"), "a[2Jb\tc\u{fffd}");
    }
}
