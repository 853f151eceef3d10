//! What an environment is asked and uses: `metrics`; and the platform's metrics, for whoever scrapes them.

use std::time::Duration;

use serde_json::json;

use super::{Answer, Caller, CommandError, Commands, answer, nouns::MetricsArgs, now};
use crate::{
    disk::human,
    domain::{EnvRef, TokenRights, User, Verb},
    metrics::{INTERVAL, MetricsQuery, MetricsView, Step},
};

/// The longest and the shortest time that can be asked for, in seconds.
const SINCE: (u64, u64) = (INTERVAL as u64, 24 * 3600);

/// `90s`, `15m`, `24h`, as a time from 10 seconds to 24 hours.
pub(super) fn parse_since(text: &str) -> Result<Duration, String> {
    let parsed: Result<jiff::SignedDuration, _> = text.parse();
    let seconds = parsed.ok().and_then(|time| u64::try_from(time.as_secs()).ok());
    let seconds = seconds.filter(|seconds| (SINCE.0..=SINCE.1).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| "give a time from 10s to 24h, as in 15m or 6h".to_owned())
}

impl Commands {
    /// An environment's metrics over time.
    ///
    /// # Errors
    /// [`CommandError::Usage`] when nothing is kept of the time that is asked for; those of [`Commands::may`].
    pub async fn metrics(
        &self,
        caller: &Caller,
        env: &EnvRef,
        query: MetricsQuery,
    ) -> Result<MetricsView, CommandError> {
        self.env_for(caller, Verb::Read, env).await?;
        let (metrics, env) = (self.metrics.clone(), env.clone());
        // A day of a busy environment takes some milliseconds to unpack.
        let view = tokio::task::spawn_blocking(move || metrics.history(&env, &query, now())).await;
        let view = view.map_err(|error| CommandError::Failed(format!("the metrics could not be read: {error}")))?;
        view.map_err(CommandError::Usage)
    }

    /// The platform's metrics, for operators, in Prometheus' text format 0.0.4 (`text/plain; version=0.0.4; charset=utf-8`).
    ///
    /// # Errors
    /// [`CommandError::Denied`] for everybody else.
    pub async fn platform_metrics(&self, caller: &Caller) -> Result<String, CommandError> {
        const WHAT: &str = "see the platform's metrics";
        if caller.rights.as_ref().is_some_and(TokenRights::is_for_metrics) {
            // The caller is no operator by such a token; its user has to be one still.
            let user = self.store.get::<User>(&caller.user).await?;
            if !user.is_some_and(|user| user.operator) {
                return Err(CommandError::Denied(format!("only an operator may {WHAT}; ask yours")));
            }
        } else {
            self.need_operator(caller, WHAT)?;
        }
        Ok(self.metrics.platform_text())
    }

    /// `metrics ENV`.
    pub(super) async fn show_metrics(&self, caller: &Caller, args: MetricsArgs) -> Result<Answer, CommandError> {
        let query = MetricsQuery { from: Some(now() - args.since), ..MetricsQuery::default() };
        let view = self.metrics(caller, &args.env, query).await?;
        let since = answer::age(i64::try_from(args.since.as_secs()).unwrap_or(i64::MAX));
        Ok(Answer::new(text(&view, &since), json!(view)))
    }
}

/// A small table: the last minute beside all of the time.
fn text(view: &MetricsView, since: &str) -> String {
    if view.total == Step::default() {
        return format!("Nothing was measured of {} in the last {since}.\n", view.env);
    }
    type Cell = fn(&Step) -> Option<String>;
    let rows: [(&str, Cell); 11] = [
        ("requests/s", |step| step.requests_per_second.map(|value| format!("{value:.1}"))),
        ("p50", |step| step.p50_ms.map(millis)),
        ("p99", |step| step.p99_ms.map(millis)),
        ("errors (5xx)", |step| step.error_share.map(|share| format!("{:.2}%", share * 100.0))),
        ("under way", |step| step.under_way.map(|value| value.to_string())),
        ("cpu", |step| step.cpu_cores.map(|cores| format!("{cores:.2} cores"))),
        ("memory", |step| step.memory_bytes.map(bytes)),
        ("received/s", |step| step.received_bytes_per_second.map(bytes)),
        ("sent/s", |step| step.sent_bytes_per_second.map(bytes)),
        ("replicas", |step| Some(format!("{}/{}", step.replicas_ready?, step.replicas_wanted?))),
        ("crashes", |step| step.crashes.map(|value| value.to_string())),
    ];
    let cell = |cell: Cell, step: &Step| cell(step).unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> =
        rows.iter().map(|(name, of)| vec![(*name).to_owned(), cell(*of, &view.now), cell(*of, &view.total)]).collect();
    answer::table(&[view.env.to_string().as_str(), "last minute", &format!("last {since}")], &rows)
}

fn millis(value: f64) -> String {
    if value < 10.0 { format!("{value:.1} ms") } else { format!("{value:.0} ms") }
}

fn bytes(value: f64) -> String {
    // Never negative, and far from the largest.
    human(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(parse_since("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_since("24h"), Ok(Duration::from_secs(86_400)));
        for text in ["", "x", "5s", "25h", "-1h", "1"] {
            assert!(parse_since(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn a_table_of_what_is_known() {
        let step =
            Step { requests_per_second: Some(12.34), p50_ms: Some(3.21), p99_ms: Some(123.4), ..Step::default() };
        let total = Step {
            memory_bytes: Some(5.0 * 1024.0 * 1024.0),
            replicas_ready: Some(1.0),
            replicas_wanted: Some(2.0),
            ..step
        };
        let (from, to) = (now(), now());
        let env = "acme/shop/dev".parse().unwrap();
        let view = MetricsView { env, from, to, step: 10, now: step, total, series: Default::default() };
        let text = text(&view, "1h");
        let line = |name: &str| {
            text.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("ACME/SHOP/DEV"), "ACME/SHOP/DEV LAST MINUTE LAST 1H");
        assert_eq!((line("requests/s"), line("p99")), ("requests/s 12.3 12.3".into(), "p99 123 ms 123 ms".into()));
        assert_eq!((line("memory"), line("replicas")), ("memory - 5 MiB".into(), "replicas - 1/2".into()));
    }
}
