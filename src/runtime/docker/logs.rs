//! Log lines of a replica, from the engine's log of it.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use bollard::{container::LogOutput, errors::Error, query_parameters::LogsOptionsBuilder};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream, stream::BoxStream};

use super::engine::{Engine, failed, status};
use crate::domain::{ReplicaId, Timestamp};
use crate::runtime::{LogLine, RuntimeError, Source};

/// Longest line handed on; the engine cuts a line into pieces of this size.
const MAX_LINE: usize = 16 << 10;
/// Lines remembered to tell what comes again. After it has begun a new file, Docker 20.10 repeats what was written since it last looked.
const RECENT: usize = 1024;
/// How often in a row a broken stream is connected anew without a line in between.
const TRIES: u32 = 5;
/// Pause before that.
const PAUSE: Duration = Duration::from_millis(500);

/// The lines from `since` on; ends when the replica has ended and all its lines are out.
pub fn follow(
    engine: Arc<Engine>,
    replica: &ReplicaId,
    since: Option<Timestamp>,
) -> impl Stream<Item = Result<LogLine, RuntimeError>> + Send + 'static {
    let position = Position::from(since);
    let frames = connect(&engine, &replica.0, since);
    let follower = Follower { engine, id: replica.0.clone(), frames, position, failures: 0 };
    stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        match follower.next().await {
            None => None,
            Some(Ok(line)) => Some((Ok(line), Some(follower))),
            Some(Err(error)) => Some((Err(error), None)),
        }
    })
}

struct Follower {
    engine: Arc<Engine>,
    id: String,
    frames: BoxStream<'static, Result<LogOutput, Error>>,
    position: Position,
    failures: u32,
}

impl Follower {
    async fn next(&mut self) -> Option<Result<LogLine, RuntimeError>> {
        loop {
            let error = match self.frames.next().await {
                Some(Ok(frame)) => match self.position.take(frame) {
                    Some(line) => {
                        self.failures = 0;
                        return Some(Ok(line));
                    }
                    None => continue,
                },
                Some(Err(error)) => match status(&error) {
                    Some(404 | 409) => return None,
                    _ => failed(&format!("reading the log of replica {}", self.id), &error),
                },
                // Ended properly, unless the replica still runs: then it was the engine that ended.
                None => match self.engine.inspect(&self.id).await {
                    Ok(found) => {
                        if found.and_then(|found| found.state?.running) != Some(true) {
                            return None;
                        }
                        RuntimeError::Unavailable("the log ended before its replica".to_owned())
                    }
                    Err(error) => error,
                },
            };
            self.failures += 1;
            if self.failures > TRIES {
                return Some(Err(error));
            }
            tokio::time::sleep(PAUSE).await;
            self.position.rewind();
            self.frames = connect(&self.engine, &self.id, self.position.since);
        }
    }
}

fn connect(engine: &Engine, id: &str, since: Option<Timestamp>) -> BoxStream<'static, Result<LogOutput, Error>> {
    let mut options = LogsOptionsBuilder::default().follow(true).stdout(true).stderr(true).timestamps(true);
    if let Some(since) = since {
        // Whole seconds is all that the client can say; `Position` skips the rest.
        options = options.since(i32::try_from(since.as_second()).unwrap_or(0));
    }
    engine.docker.logs(id, Some(options.build())).boxed()
}

/// Where in the log we are: what is older is skipped, and what was delivered before is not delivered again, whether it comes again
/// because the connection was made anew or because the engine, having begun a new log file, repeats itself.
#[derive(Debug, Clone, Default)]
struct Position {
    /// Lines before this are not wanted.
    since: Option<Timestamp>,
    /// The newest moment delivered: what is newer cannot have come before.
    newest: Option<Timestamp>,
    /// The last lines delivered, as moment and hash of source and text. Two lines that share all of these are one.
    recent: VecDeque<(Timestamp, u64)>,
    /// Whether the last piece of (stdout, stderr) had no line end: what follows belongs to a line that was cut.
    continued: [bool; 2],
}

impl Position {
    fn from(since: Option<Timestamp>) -> Self {
        Self { since, ..Self::default() }
    }

    /// Prepares for reading from the last line on.
    fn rewind(&mut self) {
        // By the line that came last, not by the newest moment: the engine's clock may have been set back since that.
        self.since = self.recent.back().map(|(at, _)| *at).or(self.since);
        self.continued = [false; 2];
    }

    /// The line in a frame (`TIMESTAMP LINE\n`), unless it is the rest of a cut one, or not wanted.
    fn take(&mut self, frame: LogOutput) -> Option<LogLine> {
        let (source, message) = match frame {
            LogOutput::StdErr { message } => (Source::Stderr, message),
            LogOutput::StdOut { message } | LogOutput::Console { message } => (Source::Stdout, message),
            LogOutput::StdIn { .. } => return None,
        };
        let (at, bytes) = split(&message)?;
        let ended = bytes.last() == Some(&b'\n');
        let rest_of_line = std::mem::replace(&mut self.continued[usize::from(source == Source::Stderr)], !ended);
        // The two streams are read side by side: a line may be a little older than the one before it.
        if rest_of_line || self.since.is_some_and(|since| at < since) {
            return None;
        }
        let mut end = bytes.len() - usize::from(ended);
        end -= usize::from(ended && end > 0 && bytes[end - 1] == b'\r');
        let line = LogLine { at, source, bytes: bytes.slice(..end.min(MAX_LINE)) };
        self.is_new(&line).then_some(line)
    }

    fn is_new(&mut self, line: &LogLine) -> bool {
        let mut hasher = DefaultHasher::new();
        (line.source == Source::Stderr, &line.bytes).hash(&mut hasher);
        let mark = (line.at, hasher.finish());
        if self.newest >= Some(line.at) && self.recent.contains(&mark) {
            return false;
        }
        self.newest = self.newest.max(Some(line.at));
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(mark);
        true
    }
}

fn split(message: &Bytes) -> Option<(Timestamp, Bytes)> {
    let space = message.iter().position(|byte| *byte == b' ')?;
    let at = std::str::from_utf8(&message[..space]).ok()?.parse().ok()?;
    Some((at, message.slice(space + 1..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(position: &mut Position, frames: &[(&str, char)]) -> Vec<String> {
        let frame = |(text, source): &(&str, char)| {
            let message = Bytes::copy_from_slice(text.as_bytes());
            if *source == 'o' { LogOutput::StdOut { message } } else { LogOutput::StdErr { message } }
        };
        let lines = frames.iter().filter_map(|one| position.take(frame(one)));
        lines.map(|line| String::from_utf8(line.bytes.to_vec()).unwrap()).collect()
    }

    #[test]
    fn lines() {
        let mut position = Position::from(None);
        let all = [
            ("2026-01-01T00:00:00.5Z a b\r\n", 'o'),
            ("2026-01-01T00:00:00.5Z same moment\n", 'e'),
            ("2026-01-01T00:00:01Z cut", 'o'),
            ("2026-01-01T00:00:01Z other stream\n", 'e'),
            ("2026-01-01T00:00:01Z rest\n", 'o'),
            ("2026-01-01T00:00:02Z \n", 'o'),
        ];
        assert_eq!(frames(&mut position, &all), ["a b", "same moment", "cut", "other stream", ""]);
        position.rewind();
        let again = [&all[..], &[("2026-01-01T00:00:02Z new\n", 'o'), ("2026-01-01T00:00:03Z newer\n", 'o')]].concat();
        assert_eq!(frames(&mut position, &again), ["new", "newer"]);
        let mut position = Position::from(None);
        let repeated = [
            ("2026-01-01T00:00:00.3Z a\n", 'o'),
            ("2026-01-01T00:00:00.3Z a\n", 'o'),
            ("2026-01-01T00:00:00.2Z b\n", 'e'),
        ];
        assert_eq!(frames(&mut position, &repeated), ["a", "b"], "only what comes again is dropped");
        assert_eq!(frames(&mut position, &[("no timestamp\n", 'o'), ("", 'o')]), [""; 0]);
    }

    #[test]
    fn a_clock_that_was_set_back_loses_no_line() {
        let mut position = Position::from(None);
        let before = [("2036-01-01T00:00:01Z a\n", 'o'), ("2026-01-01T00:00:02Z b\n", 'o')];
        assert_eq!(frames(&mut position, &before), ["a", "b"]);
        position.rewind();
        let again = [&before[..], &[("2026-01-01T00:00:03Z c\n", 'o')]].concat();
        assert_eq!(frames(&mut position, &again), ["c"]);
    }

    #[test]
    fn since() {
        let since = Some("2026-01-01T00:00:00.5Z".parse().unwrap());
        let mut position = Position::from(since);
        let all = [
            ("2026-01-01T00:00:00.4Z old\n", 'o'),
            ("2026-01-01T00:00:00.5Z then\n", 'o'),
            ("2026-01-01T00:00:00.6Z later\n", 'o'),
        ];
        assert_eq!(frames(&mut position, &all), ["then", "later"]);
    }
}
