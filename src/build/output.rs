//! What the person who pushes sees, in Heroku's shape; all of it goes to the build's log.
//!
//! A build's text comes from strangers: install scripts, file names, other people's apps. Whatever is written here is harmless to a
//! terminal, so that everybody who reads the log may print it as it is.

use std::{
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    deploy::Progress,
    logs::{OutputLines, render_line},
};

/// Silence after which a sign of life is given.
const SILENCE: Duration = Duration::from_secs(8);
/// Container output that is passed on; the rest is dropped with a notice, bytes.
const RAW_LIMIT: usize = 8 << 20;

/// Where the text goes: a build's log.
pub trait Transcript: Send + Sync {
    /// Appends.
    fn write(&self, bytes: &[u8]);
    /// Nothing will follow.
    fn finish(&self);
}

struct State {
    /// Container output whose line has no end yet.
    raw: OutputLines,
    last_write: Instant,
    raw_written: usize,
    /// What is being done, for signs of life.
    activity: String,
}

/// Writes lines with their marks; container output goes in between, line by line.
pub struct BuildOutput {
    transcript: Box<dyn Transcript>,
    began: Instant,
    state: Mutex<State>,
}

impl BuildOutput {
    /// Output that goes to `transcript`.
    pub fn new(transcript: Box<dyn Transcript>) -> Self {
        let began = Instant::now();
        let state =
            State { raw: OutputLines::default(), last_write: began, raw_written: 0, activity: "working".to_owned() };
        Self { transcript, began, state: Mutex::new(state) }
    }

    /// Time since the build began (or was taken up again).
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain values, whole between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self, mark: &str, text: &str) {
        let mut state = self.state();
        let mut out = String::with_capacity(text.len() + 16);
        if let Some(line) = state.raw.rest() {
            out.extend([&render_line(&line), "\n"]);
        }
        let rest = if mark.starts_with('-') || mark.starts_with('=') { "       " } else { mark };
        for (index, line) in text.lines().chain(text.is_empty().then_some("")).enumerate() {
            out.push_str(if index == 0 { mark } else { rest });
            out.extend([&render_line(line), "\n"]);
        }
        self.transcript.write(out.as_bytes());
        state.last_write = Instant::now();
    }

    /// Container output whose line has no end yet, if there is any.
    fn flush(&self) -> bool {
        let mut state = self.state();
        let Some(line) = state.raw.rest() else { return false };
        self.transcript.write(format!("{}\n", render_line(&line)).as_bytes());
        state.last_write = Instant::now();
        true
    }

    /// Waits for `work`, and says from time to time that it goes on when nothing else is said.
    pub async fn with_signs_of_life<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            let next_sign = self.state().last_write + SILENCE;
            tokio::select! {
                biased;
                result = &mut work => return result,
                () = tokio::time::sleep_until(next_sign) => self.sign_of_life(),
            }
        }
    }

    fn sign_of_life(&self) {
        let (silent, activity) = {
            let state = self.state();
            (state.last_write.elapsed() >= SILENCE, state.activity.clone())
        };
        // Dots, or progress that is written over: the container's own sign of life.
        if silent && !self.flush() {
            self.detail(&format!("… still {activity} ({} s)", self.began.elapsed().as_secs()));
        }
    }

    /// Says what is being done, for signs of life: `running the buildpack`.
    pub fn doing(&self, activity: &str) {
        activity.clone_into(&mut self.state().activity);
    }

    /// Nothing will follow.
    pub fn finish(&self) {
        self.flush();
        self.transcript.finish();
    }
}

impl Progress for BuildOutput {
    fn step(&self, text: &str) {
        self.lines("-----> ", text);
    }

    fn heading(&self, text: &str) {
        self.lines("=====> ", text);
    }

    fn detail(&self, text: &str) {
        self.lines("       ", text);
    }

    fn error(&self, text: &str) {
        self.lines(" !     ", text);
    }

    fn raw(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.state();
        if state.raw_written >= RAW_LIMIT {
            return;
        }
        state.raw_written += bytes.len();
        let mut out = String::with_capacity(bytes.len());
        state.raw.take(bytes, |line| out.extend([&render_line(line), "\n"]));
        if !out.is_empty() {
            self.transcript.write(out.as_bytes());
            state.last_write = Instant::now();
        }
        let full = state.raw_written >= RAW_LIMIT;
        drop(state);
        if full {
            self.error(&format!("The output is longer than {} MiB; the rest of it is not shown.", RAW_LIMIT >> 20));
        }
    }
}

/// A duration for people: `87 ms`, `1.2 s`, `3 min 20 s`.
pub fn human_duration(duration: Duration) -> String {
    match duration.as_millis() {
        0..1000 => format!("{} ms", duration.as_millis()),
        1000..60_000 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);
    impl Transcript for Buffer {
        fn write(&self, bytes: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(bytes);
        }
        fn finish(&self) {}
    }
    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[tokio::test]
    async fn marks_lines_and_keeps_them_apart_from_container_output() {
        let buffer = Buffer::default();
        let output = BuildOutput::new(Box::new(buffer.clone()));
        output.step("One\ntwo");
        output.raw(b"half a line");
        output.error("bad\nworse");
        output.heading("Done");
        output.detail("x");
        let want = "-----> One\n       two\nhalf a line\n !     bad\n !     worse\n=====> Done\n       x\n";
        assert_eq!(buffer.text(), want);
    }

    #[tokio::test]
    async fn nothing_in_it_steers_a_terminal() {
        let buffer = Buffer::default();
        let output = BuildOutput::new(Box::new(buffer.clone()));
        output.raw(b"\x1b[32mok\x1b[0m 10%\r20%\rdone\x1b[");
        output.raw(b"2J\r\n\x1b]52;c;aGk=\x07");
        output.step("Running release phase: x\x1b[1A");
        output.error("  last line\x1b]0;owned\x07");
        output.raw(b"\x1b[31mred");
        output.finish();
        let want = "done^[[2J\n^[]52;c;aGk=^G\n-----> Running release phase: x^[[1A\n !       last line^[]0;owned^G\n\
                    \x1b[31mred\x1b[0m\n";
        assert_eq!(buffer.text(), want);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_that_is_written_over_is_a_sign_of_life() {
        let buffer = Buffer::default();
        let output = BuildOutput::new(Box::new(buffer.clone()));
        let work = async {
            for percent in 0..20 {
                output.raw(format!("\r{percent}%").as_bytes());
                tokio::time::sleep(Duration::from_millis(900)).await;
            }
        };
        output.with_signs_of_life(work).await;
        output.finish();
        assert_eq!(buffer.text(), "8%\n17%\n19%\n");
    }

    #[tokio::test(start_paused = true)]
    async fn is_never_silent_for_long() {
        let buffer = Buffer::default();
        let output = BuildOutput::new(Box::new(buffer.clone()));
        output.doing("compiling");
        output.with_signs_of_life(tokio::time::sleep(Duration::from_secs(20))).await;
        assert_eq!(buffer.text(), "       … still compiling (8 s)\n       … still compiling (16 s)\n");
    }

    #[tokio::test]
    async fn endless_container_output_is_cut() {
        let buffer = Buffer::default();
        let output = BuildOutput::new(Box::new(buffer.clone()));
        for _ in 0..200 {
            output.raw(&[b'x'; 100_000]);
        }
        assert!(buffer.text().len() < RAW_LIMIT + 200_000);
        assert!(buffer.text().contains("the rest of it is not shown"));
    }
}
