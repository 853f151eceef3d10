//! The output of builds, for every door: whole, or as it comes.

use std::{collections::VecDeque, io, pin::Pin};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde_json::json;

use super::{Caller, CommandError, Commands, error::logged};
use crate::{
    domain::{Build, BuildNumber, BuildState, EnvRef, Verb},
    logs::{OutputLines, plain_text, render_line, safe_json, until_ended},
};

/// A line of a build's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLine {
    /// As it was written, control characters included, without its end. Of a line that was written over, what stood last.
    pub text: String,
    /// Where the next line begins, in bytes from the beginning of the output: what a reader goes on from.
    pub offset: u64,
}

impl BuildLine {
    /// One line of JSON, exact and harmless.
    pub fn json(&self) -> String {
        safe_json(&json!({"line": self.text, "offset": self.offset}))
    }

    /// For terminals: colours pass.
    pub fn rendered(&self) -> String {
        render_line(&self.text)
    }

    /// For everything else that shows text.
    pub fn plain(&self) -> String {
        plain_text(&self.text)
    }
}

/// What comes of a build that is followed.
#[derive(Debug, Clone, PartialEq)]
pub enum BuildItem {
    Line(BuildLine),
    /// It has ended, as its state says; nothing comes after this.
    Ended(Box<Build>),
}

impl Commands {
    /// The output of a build (the newest, unless numbered) so far.
    ///
    /// # Errors
    /// When the caller may not read the environment's builds, when there is no such build, or its output is not kept any more or cannot
    /// be read.
    pub async fn build_log(
        &self,
        caller: &Caller,
        env: &EnvRef,
        number: Option<BuildNumber>,
    ) -> Result<(Build, Vec<BuildLine>), CommandError> {
        self.env_for(caller, Verb::Read, env).await?;
        let build = self.build(env, number).await?.record;
        let number = build.number;
        let bytes = self.logs.read_build(env, number).await.map_err(|error| unreadable(env, number, error))?;
        let gone = || CommandError::NotFound(format!("the output of build {number} of {env} is not kept any more"));
        let (mut lines, mut all) = (Lines::new(0), VecDeque::new());
        lines.take(&bytes.ok_or_else(gone)?, &mut all);
        all.extend(lines.rest());
        Ok((build, all.into()))
    }

    /// The output of a build (the newest, unless numbered) from an offset on (0: its beginning, else a line's [`BuildLine::offset`]) and on
    /// as it is written, until the build has ended, which is the last item. Output that is not kept any more has no lines. Ends with an
    /// error when the caller's membership is lost.
    ///
    /// # Errors
    /// As [`Self::build_log`]; [`CommandError::Usage`] when the output is not as long as the offset, [`CommandError::TryLater`] when too
    /// many are followed already.
    pub async fn build_log_stream(
        &self,
        caller: &Caller,
        env: &EnvRef,
        number: Option<BuildNumber>,
        from: u64,
    ) -> Result<impl Stream<Item = Result<BuildItem, CommandError>> + Send + use<>, CommandError> {
        self.env_for(caller, Verb::Read, env).await?;
        let build = self.build(env, number).await?.record;
        let number = build.number;
        let place = self.follow_place(&env.tenant)?;
        let length = self.logs.build_log_length(env, number).await;
        let length = length.map_err(|error| unreadable(env, number, error))?;
        if from > length.unwrap_or(0) {
            return Err(CommandError::Usage(format!(
                "the output of build {number} of {env} has no {from} bytes; begin at 0, or at the offset of one of its lines"
            )));
        }
        let output: Output = if length.is_none() && has_ended(&build) {
            futures::stream::empty().boxed()
        } else {
            let (builds, of) = (self.builds.clone(), env.clone());
            let ended = async move { drop(builds.wait(&of, number).await) };
            until_ended(self.logs.follow_build_from(env, number, from), ended).boxed()
        };
        let (commands, env_of_build) = (self.clone(), env.clone());
        let following = Following { output, lines: Lines::new(from), ready: VecDeque::new(), over: false };
        let items = futures::stream::unfold(Some(following), move |following| {
            let (commands, env) = (commands.clone(), env_of_build.clone());
            async move {
                let mut following = following?;
                match following.line().await {
                    Ok(Some(line)) => Some((Ok(BuildItem::Line(line)), Some(following))),
                    Ok(None) => Some((commands.how_it_ended(&env, number).await, None)),
                    Err(error) => Some((Err(unreadable(&env, number, error.into())), None)),
                }
            }
        });
        Ok(self.while_allowed(caller, &env.tenant, place, items))
    }

    async fn how_it_ended(&self, env: &EnvRef, number: BuildNumber) -> Result<BuildItem, CommandError> {
        let build = self.builds.wait(env, number).await?;
        if has_ended(&build) {
            return Ok(BuildItem::Ended(Box::new(build)));
        }
        Err(CommandError::TryLater("the server is stopping; the build will go on".into()))
    }
}

fn has_ended(build: &Build) -> bool {
    !matches!(build.state, BuildState::Queued | BuildState::Running { .. })
}

fn unreadable(env: &EnvRef, number: BuildNumber, error: anyhow::Error) -> CommandError {
    logged(error, format!("the output of build {number} of {env} cannot be read"))
}

type Output = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Output on its way.
struct Following {
    output: Output,
    lines: Lines,
    ready: VecDeque<BuildLine>,
    over: bool,
}

impl Following {
    /// The next line; `None` when there is no more output.
    async fn line(&mut self) -> io::Result<Option<BuildLine>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            if self.over {
                return Ok(None);
            }
            match self.output.next().await {
                Some(bytes) => self.lines.take(&bytes?, &mut self.ready),
                None => {
                    self.over = true;
                    self.ready.extend(self.lines.rest());
                }
            }
        }
    }
}

/// Lines with their places.
struct Lines {
    lines: OutputLines,
    offset: u64,
}

impl Lines {
    fn new(offset: u64) -> Self {
        Self { lines: OutputLines::default(), offset }
    }

    fn take(&mut self, bytes: &[u8], lines: &mut VecDeque<BuildLine>) {
        // A line ends, if at all, with the last byte of each piece.
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.offset += piece.len() as u64;
            let offset = self.offset;
            self.lines.take(piece, |text| lines.push_back(BuildLine { text: text.to_owned(), offset }));
        }
    }

    /// The last line, if it has no end.
    fn rest(&mut self) -> Option<BuildLine> {
        self.lines.rest().map(|text| BuildLine { text, offset: self.offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_by_lines_with_their_places_and_is_harmless() {
        let text = b"one\r\ntwo\x1b[2J\n\nend";
        for step in 1..text.len() {
            let (mut lines, mut all) = (Lines::new(100), VecDeque::new());
            text.chunks(step).for_each(|bytes| lines.take(bytes, &mut all));
            all.extend(lines.rest());
            let found: Vec<_> = all.iter().map(|line| (line.rendered(), line.offset)).collect();
            let wanted = [("one", 105), ("two^[[2J", 113), ("", 114), ("end", 117)];
            assert_eq!(found, wanted.map(|(text, offset)| (text.to_owned(), offset)), "step {step}");
        }
        let line = BuildLine { text: "say \"hi\" \u{9b}\u{1b}[31m".into(), offset: 7 };
        assert_eq!(line.json(), r#"{"line":"say \"hi\" \u009b\u001b[31m","offset":7}"#);
        assert_eq!(line.plain(), "say \"hi\" \\u{9b}");
    }
}
