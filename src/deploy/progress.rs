//! Where the output of a push or a command goes.

use bytes::Bytes;
use tokio::sync::mpsc;

/// Takes what a deployment has to tell, in the shape of Heroku's push output.
pub trait Progress: Send + Sync {
    /// `-----> text`
    fn step(&self, text: &str);
    /// `=====> text`
    fn heading(&self, text: &str);
    /// Seven spaces, then the text.
    fn detail(&self, text: &str);
    /// ` !     text`
    fn error(&self, text: &str);
    /// Output of a container, as it came.
    fn raw(&self, bytes: &[u8]);
}

/// Drops everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct SilentProgress;

impl Progress for SilentProgress {
    fn step(&self, _: &str) {}
    fn heading(&self, _: &str) {}
    fn detail(&self, _: &str) {}
    fn error(&self, _: &str) {}
    fn raw(&self, _: &[u8]) {}
}

/// One call of [`Progress`], on its way from the environment's actor to who waits for the deployment.
#[derive(Debug, Clone)]
pub(super) enum Note {
    Step(String),
    Detail(String),
    Error(String),
    Raw(Bytes),
}

impl Note {
    pub(super) fn tell(&self, progress: &dyn Progress) {
        match self {
            Self::Step(text) => progress.step(text),
            Self::Detail(text) => progress.detail(text),
            Self::Error(text) => progress.error(text),
            Self::Raw(bytes) => progress.raw(bytes),
        }
    }
}

/// Notes that may wait for a reader; then further ones are dropped. A reader that is this far behind reads nothing at all.
pub(super) const NOTES: usize = 1024;

/// Those who wait for a deployment and want to hear of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Audience(Vec<mpsc::Sender<Note>>);

impl Audience {
    pub(super) fn join(&mut self, listener: mpsc::Sender<Note>) {
        self.0.retain(|other| !other.is_closed());
        self.0.push(listener);
    }

    pub(super) fn tell(&self, note: Note) {
        for listener in &self.0 {
            // Full or gone: a deployment does not wait for its audience.
            let _ = listener.try_send(note.clone());
        }
    }

    pub(super) fn detail(&self, text: impl Into<String>) {
        self.tell(Note::Detail(text.into()));
    }
}
