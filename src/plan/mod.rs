//! Pure decisions: (desired, observed, now) → actions and why the rest waits.
//!
//! Nothing here knows a clock, a socket or an engine; the deployer (`deploy`) observes, asks, and does what it is told, again and again.
//! Since each answer depends on what is observed alone, a control plane that was killed half-way through goes on where it was.
//!
//! - [`rollout`]: from one release's replicas to another's, and keeping them; with [`bounds`] on how many.
//! - [`backoff`]: when a set whose replicas die may be started again.
//! - [`progress`]: how long a rollout may be stuck.
//! - [`health`]: from probe results to ready, starting or unhealthy.
//! - [`schedule`]: when jobs run by the clock.
//! - [`retention`]: what is kept of an environment's history.

pub mod backoff;
pub mod bounds;
pub mod health;
mod process;
pub mod progress;
pub mod retention;
pub mod rollout;
pub mod schedule;
pub mod wait;

#[cfg(test)]
mod properties;

pub use backoff::Backoff;
pub use bounds::Bounds;
pub use health::{ProbeSchedule, Tracker};
pub use rollout::{Goal, Observed, Phase, Plan, ProcessGoal, RouteState, Seen, Start, plan};
pub use wait::{Wait, Why};
