//! Why a step waits, for people.

use std::fmt;

use crate::domain::{ProcessType, Timestamp};

/// One process type that is not yet as it should be, and why nothing is done about it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    pub process: ProcessType,
    /// New replicas that are ready and, for web, served by the router.
    pub ready: u32,
    /// New replicas wanted.
    pub wanted: u32,
    pub why: Why,
}

/// What a process type waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The engine is starting this many containers.
    Launch(u32),
    /// Replicas with these indexes run and are not ready yet.
    Ready(Vec<u32>),
    /// Replicas died lately; the next start is at this time.
    Backoff(Timestamp),
    /// The router has not said yet that it serves the new replicas.
    RouterIn,
    /// The router still sends or finishes requests to replicas that are to be stopped.
    Drain,
    /// Replicas are being stopped.
    Stopping(u32),
    /// No more may run at a time.
    Room { running: u32, max: u32 },
    /// Stopping an old replica now would leave too few healthy ones.
    MinHealthy { healthy: u32, min: u32 },
    /// Old replicas of a process type that is going away wait for the other types to be deployed.
    OthersFirst,
    /// The last output of replicas that died is being collected.
    LastOutput,
    /// The router is being told that dead replicas are gone.
    RouteOutDead,
}

fn list(indexes: &[u32], process: &ProcessType) -> String {
    indexes.iter().map(|index| format!("{process}.{index}")).collect::<Vec<_>>().join(", ")
}

impl Wait {
    /// What is waited for, without the counts.
    pub fn why_text(&self) -> String {
        let text = self.to_string();
        text.split_once('(').map_or(text.clone(), |(_, why)| why.trim_end_matches(')').to_owned())
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, ready, wanted, why } = self;
        write!(f, "{process}: {ready}/{wanted} ready (")?;
        match why {
            Why::Launch(1) => write!(f, "starting 1 container")?,
            Why::Launch(count) => write!(f, "starting {count} containers")?,
            Why::Ready(indexes) => write!(f, "waiting for {} to be ready", list(indexes, process))?,
            Why::Backoff(until) => write!(f, "waiting until {until:.0} before trying again, since replicas died")?,
            Why::RouterIn => write!(f, "waiting for the router to serve the new replicas")?,
            Why::Drain => write!(f, "waiting for requests to old replicas to finish")?,
            Why::Stopping(count) => write!(f, "stopping {count} old")?,
            Why::Room { running, max } => write!(f, "{running} run and at most {max} may")?,
            Why::MinHealthy { healthy, min } => write!(f, "{healthy} healthy and at least {min} must stay so")?,
            Why::OthersFirst => write!(f, "goes away once the other process types are deployed")?,
            Why::LastOutput => write!(f, "collecting the last output of what died")?,
            Why::RouteOutDead => write!(f, "telling the router which replicas are gone")?,
        }
        write!(f, ")")
    }
}
