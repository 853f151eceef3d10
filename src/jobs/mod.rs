//! Commands that run to their end in a container of a release: one-off commands, release phases, cron jobs.
//!
//! What is the same for all of them is here and nowhere else: what the command sees and may use ([`ReleaseJob`]), how it is started and
//! cleared up ([`Started`]), and, for those that nobody sits in front of, how it is watched until it ends, is too late or is told to stop
//! ([`attend()`]). Whoever starts one says when, and does with the end what is to be done.

mod attend;
mod spec;

pub use attend::{Attended, Audience, Begin, Ending, Started, attend, attend_within};
pub use spec::{ReleaseJob, variables, widest};
