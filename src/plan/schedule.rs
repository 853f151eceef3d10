//! When jobs run: schedules, and what to do about a job at a moment. (schedule, what was dealt with, what runs, now) → start, skip or
//! replace, and when to look again.
//!
//! A job is due at the moments of its schedule. Of those that came and went while nobody looked (the server was down, the clock was set
//! forward) the newest alone counts: it is started late, if it is not too late, and the others are not. A clock that is set back by less
//! than the job's own period makes it wait until the clock is where it was, so that nothing runs twice; one that is set back further was
//! wrong before, and the job goes on from the new time.

use std::time::Duration;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::tz::TimeZone;

use crate::domain::{Overlap, Timestamp};

/// Longest text of a schedule, in bytes; a real one has ten.
const MAX_TEXT: usize = 100;
/// The furthest that a clock may be set back for a job to wait until it is where it was.
const HOLD: Duration = Duration::from_secs(3 * 3600);
/// How often the clock is looked at at least, so that one that is set is noticed.
const LOOK: Duration = Duration::from_secs(60);

/// A schedule that can be asked for its moments.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// Why a text is no schedule or no time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {advice}")]
pub struct ScheduleError {
    /// What is wrong, to stand after the text itself.
    pub message: String,
    pub advice: String,
}

fn refuse<T>(message: impl Into<String>, advice: impl Into<String>) -> Result<T, ScheduleError> {
    Err(ScheduleError { message: message.into(), advice: advice.into() })
}

impl Schedule {
    /// The time zone of a job that names none.
    pub const UTC: &'static str = "UTC";

    /// Reads five fields (minute, hour, day of month, month, day of week) or a nickname, to be understood in `timezone`.
    ///
    /// # Errors
    /// When it is neither, when it names no moment that ever comes, or when the time zone is not known.
    pub fn parse(text: &str, timezone: &str) -> Result<Self, ScheduleError> {
        const FIELDS: &str = "write minute, hour, day of month, month and day of week, as in `*/5 * * * *`, or @daily";
        let text = text.trim();
        let known = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@hourly"];
        let text = match text {
            "@midnight" => "@daily",
            "@reboot" => {
                return refuse("is not a time", "for something that runs once per release there is `release:`");
            }
            text if text.starts_with('@') && !known.contains(&text) => {
                return refuse("is not a schedule", format!("the short forms are {}", known.join(", ")));
            }
            text => text,
        };
        if text.len() > MAX_TEXT {
            return refuse(format!("is longer than {MAX_TEXT} characters"), FIELDS);
        }
        let fields = text.split_whitespace().count();
        if fields == 6 || fields == 7 {
            return refuse(format!("has {fields} fields; there are none for seconds or years"), FIELDS);
        }
        if !text.starts_with('@') && fields != 5 {
            return refuse(format!("has {fields} fields; a schedule has 5"), FIELDS);
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = match parser.parse(text) {
            Ok(cron) => cron,
            Err(error) => return refuse(format!("is not a schedule ({error})"), FIELDS),
        };
        let schedule = Self { cron, zone: Self::zone(timezone)? };
        // Leap years come round within eight years, whatever day it is.
        if schedule.next_after(Timestamp::UNIX_EPOCH).is_none() {
            return refuse("never comes", "that day is in no month");
        }
        Ok(schedule)
    }

    /// A time zone by its name in the IANA database.
    ///
    /// # Errors
    /// When the database of this machine has none of this name.
    pub fn zone(name: &str) -> Result<TimeZone, ScheduleError> {
        if name == Self::UTC {
            return Ok(TimeZone::UTC);
        }
        let shaped = name.len() <= 64
            && name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_+/-".contains(c));
        let advice = "write its name in the IANA database, as in `Europe/Berlin`";
        match TimeZone::get(if shaped { name } else { "" }) {
            Ok(zone) => Ok(zone),
            Err(_) => refuse("is not a time zone that this machine knows", advice),
        }
    }

    /// The first moment after `moment`; `None` when there is none that can be written down.
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        let next = self.cron.find_next_occurrence(&moment.to_zoned(self.zone.clone()), false).ok()?;
        Some(next.timestamp()).filter(|next| *next > moment)
    }

    /// The last moment that is not after `moment`.
    pub fn last_until(&self, moment: Timestamp) -> Option<Timestamp> {
        let last = self.cron.find_previous_occurrence(&moment.to_zoned(self.zone.clone()), true).ok()?;
        Some(last.timestamp()).filter(|last| *last <= moment)
    }
}

/// A job as it stands.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    pub schedule: &'a Schedule,
    pub overlap: Overlap,
    /// Moments up to here (inclusive) are dealt with.
    pub considered: Timestamp,
    /// Whether a run is under way.
    pub running: bool,
}

/// What to do about a job now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Start the run of this moment; with `replace`, after ending what runs.
    Start { at: Timestamp, replace: bool },
    /// Leave the run of this moment out, since one is under way.
    Skip { at: Timestamp },
    /// The runs from the first to the last moment are too late to be started.
    Miss { first: Timestamp, last: Timestamp },
    /// The clock was set back: go on from now.
    Rewind,
}

/// What to do, and when to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    /// What is dealt with once the action is.
    pub considered: Timestamp,
    /// When there is something to be done next, by the clock; `None`: never.
    pub next: Option<Timestamp>,
}

/// What to do about a job at `now`. A run that is up to `deadline` late is still started.
pub fn decide(job: &Standing<'_>, now: Timestamp, deadline: Duration) -> Decision {
    let Standing { schedule, considered, .. } = *job;
    let stay = |next| Decision { action: Action::Wait, considered, next };
    if considered > now {
        let next = schedule.next_after(considered);
        let held = next.is_none_or(|next| gap(now, considered) < hold(schedule, next));
        return match held {
            true => stay(next),
            false => Decision { action: Action::Rewind, considered: now, next: schedule.next_after(now) },
        };
    }
    let next = schedule.next_after(now);
    let Some(at) = schedule.last_until(now).filter(|at| *at > considered) else { return stay(next) };
    let action = if gap(at, now) > deadline {
        let first = schedule.next_after(considered).map_or(at, |first| first.min(at));
        Action::Miss { first, last: at }
    } else {
        match (job.running, job.overlap) {
            (false, _) | (true, Overlap::Allow) => Action::Start { at, replace: false },
            (true, Overlap::Replace) => Action::Start { at, replace: true },
            (true, Overlap::Skip) => Action::Skip { at },
        }
    };
    Decision { action, considered: at, next }
}

/// How long to wait for `next`: no longer than it takes to notice that the clock was set.
pub fn pause(next: Option<Timestamp>, now: Timestamp) -> Duration {
    next.map_or(LOOK, |next| gap(now, next).min(LOOK))
}

/// How far back the clock may be set for a job to wait: not longer than it would otherwise have waited for its next run.
fn hold(schedule: &Schedule, next: Timestamp) -> Duration {
    schedule.next_after(next).map_or(HOLD, |after| gap(next, after).min(HOLD))
}

/// Time from `earlier` to `later`; zero if it is the other way round.
fn gap(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
