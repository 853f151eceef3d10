//! One task per running replica: probes it for as long as it runs, and tells its environment's actor when the verdict changes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    clock::{Steady, elapsed},
    probe::{ProbeError, ProbeTarget, Prober},
};
use crate::{
    domain::{FailPoint, Health, HealthProbe, ReplicaId, Timestamp, fail_point::reached},
    logs::plain_line,
    plan::{Phase, ProbeSchedule, Tracker},
    runtime::{Listener, Runtime, RuntimeError},
};

/// After this long without an answer it is looked up what the replica listens on instead.
const LOOK_AFTER: Duration = Duration::from_secs(3);
/// Pause between two such looks.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long such a look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Characters of what a health command said that are told: they stand in tables and in lines of progress.
const SAID: usize = 80;
/// A probe that took this much longer than it was allowed says more about a busy host than about the replica.
const OWN_DELAY: Duration = Duration::from_secs(1);

/// What a watcher found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) replica: ReplicaId,
    pub(super) phase: Phase,
    /// Why it is not ready, in words.
    pub(super) reason: Option<String>,
}

/// How a replica is asked.
enum Asked {
    Network(ProbeTarget),
    /// A command line, run in its container.
    Command(String),
}

impl Asked {
    /// Running a command costs the host far more than a connection.
    fn least_pause(&self) -> Duration {
        match self {
            Self::Network(_) => Duration::ZERO,
            Self::Command(_) => Duration::from_millis(250),
        }
    }
}

/// What a watcher needs to know.
pub(super) struct Watcher {
    pub(super) replica: ReplicaId,
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    pub(super) host: String,
    pub(super) health: Health,
    /// On the planner's time line.
    pub(super) started_at: Timestamp,
    /// It was found serving, and counts as ready until its probes say otherwise.
    pub(super) adopted: bool,
    /// See [`super::DeploySettings::stability`].
    pub(super) stability: Duration,
    pub(super) steady: Steady,
    pub(super) prober: Arc<dyn Prober>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) verdicts: mpsc::Sender<Verdict>,
    /// What is not to be quoted of what a health command says; see [`secrets`].
    pub(super) secrets: Vec<String>,
}

impl Watcher {
    /// Runs until its actor is gone (or aborts it).
    pub(super) async fn run(self) {
        match (&self.health.probe, self.address) {
            (HealthProbe::Running, _) => self.wait_for_stability().await,
            (HealthProbe::Command { command }, _) => self.probe(Asked::Command(command.clone())).await,
            (_, Some(address)) => self.probe(Asked::Network(self.target(SocketAddr::new(address, self.port)))).await,
            (_, None) => self.tell(Phase::Starting, Some("it has no network address".to_owned())).await,
        }
    }

    async fn tell(&self, phase: Phase, reason: Option<String>) {
        // An error means that the actor is gone, and this task with it soon.
        let _ = self.verdicts.send(Verdict { replica: self.replica.clone(), phase, reason }).await;
    }

    fn age(&self) -> Duration {
        elapsed(self.started_at, self.steady.now())
    }

    async fn wait_for_stability(&self) {
        if !self.adopted {
            sleep(self.stability.saturating_sub(self.age())).await;
        }
        self.tell(Phase::Ready, None).await;
    }

    fn target(&self, address: SocketAddr) -> ProbeTarget {
        let (probe, host, timeout) = (self.health.probe.clone(), self.host.clone(), self.health.timeout);
        ProbeTarget { address, probe, host, timeout, starting: !self.adopted }
    }

    async fn probe(&self, mut asked: Asked) {
        let since = self.started_at;
        let mut tracker = match self.adopted {
            true => Tracker::adopted(self.health.clone(), since),
            false => Tracker::starting(self.health.clone(), since),
        };
        let mut told = (tracker.phase(), None);
        let mut schedule = ProbeSchedule::default();
        let mut look_at = LOOK_AFTER;
        let mut hint = None;
        while !self.verdicts.is_closed() {
            if let Some(result) = self.ask(&asked).await {
                if tracker.phase() == Phase::Starting {
                    reached(FailPoint::Probe);
                }
                let phase = tracker.observe(result.is_ok(), self.steady.now());
                if let Asked::Network(target) = &mut asked {
                    target.starting &= result.is_err();
                }
                if let Err(ProbeError::Refused(port)) = result
                    && self.age() >= look_at
                {
                    hint = self.look(port).await;
                    look_at = self.age() + LOOK_AGAIN;
                } else if result.is_ok() {
                    hint = None;
                }
                let reason = result.err().map(|error| hint.clone().unwrap_or_else(|| error.to_string()));
                let now = (phase, reason);
                if now != told {
                    self.tell(now.0, now.1.clone()).await;
                    told = now;
                }
            }
            let pause = match tracker.phase() {
                Phase::Starting => schedule.pause(self.age()).max(asked.least_pause()),
                _ => self.health.interval.max(Duration::from_millis(100)),
            };
            sleep(pause).await;
        }
    }

    /// Asks once; `None` when this host was too busy to ask properly.
    async fn ask(&self, asked: &Asked) -> Option<Result<(), ProbeError>> {
        let target = match asked {
            Asked::Network(target) => target,
            // Its time is taken inside the replica.
            Asked::Command(command) => return self.run_command(command).await,
        };
        let began = Instant::now();
        let result = self.prober.probe(target).await;
        let late = began.elapsed() > self.health.timeout + OWN_DELAY;
        (result.is_ok() || !late).then_some(result)
    }

    /// Runs the command in the replica; `None` when the engine does not answer, which says nothing about the replica.
    async fn run_command(&self, command: &str) -> Option<Result<(), ProbeError>> {
        let limit = self.health.timeout;
        let ended = match self.runtime.exec(&self.replica, command, limit).await {
            Ok(ended) => ended,
            Err(RuntimeError::Unavailable(_)) => return None,
            Err(error) => return Some(Err(ProbeError::Wrong(format!("the health command cannot be run: {error}")))),
        };
        // It is told to whoever may see the state of the environment, which is not the same as its configuration.
        let said = without(&self.secrets, String::from_utf8_lossy(&ended.output).into_owned());
        let mut lines = said.lines().rev().map(|line| plain_line(line, SAID));
        let last = lines.find(|line| !line.trim().is_empty()).unwrap_or_default();
        let said = if last.is_empty() { last } else { format!(": {last}") };
        Some(match ended.code {
            Some(0) => Ok(()),
            Some(status) => Err(ProbeError::Wrong(format!("the health command ends with status {status}{said}"))),
            None => Err(ProbeError::Silent(format!("the health command does not end within {limit:?}{said}"))),
        })
    }

    /// What the replica listens on instead of its port, if that can be found out and explains why it does not answer.
    async fn look(&self, port: u16) -> Option<String> {
        let found = timeout(LOOK_TIMEOUT, self.runtime.listeners(&self.replica)).await.ok()?.ok()?;
        Some(explain(&found, port))
    }
}

/// Values of configuration shorter than this are found in any text, and are no secrets.
const SECRET: usize = 4;

/// What of a configuration is not to be quoted, the longest first.
pub(super) fn secrets(config: &BTreeMap<String, String>) -> Vec<String> {
    let mut secrets: Vec<String> = config.values().filter(|value| value.len() >= SECRET).cloned().collect();
    secrets.sort_by_key(|value| std::cmp::Reverse(value.len()));
    secrets
}

/// A text that an app has said, without these values.
fn without(secrets: &[String], text: String) -> String {
    secrets
        .iter()
        .filter(|secret| text.contains(*secret))
        .fold(text.clone(), |text, secret| text.replace(secret, "[config]"))
}

/// Why nothing answers on `port`, given what is listened on.
fn explain(found: &[Listener], port: u16) -> String {
    let is_loopback = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(address) => {
            address.is_loopback() || address.to_ipv4_mapped().is_some_and(|mapped| mapped.is_loopback())
        }
    };
    if found.iter().any(|listener| listener.port == port && is_loopback(&listener.address)) {
        return format!(
            "it listens on port {port} of loopback only (127.0.0.1), where nobody outside the container reaches it; let it listen on 0.0.0.0"
        );
    }
    let mut others: Vec<u16> =
        found.iter().filter(|listener| !is_loopback(&listener.address)).map(|listener| listener.port).collect();
    others.sort_unstable();
    others.dedup();
    // Some programs open many; a handful is enough to see what is wrong.
    let list = others.iter().take(5).map(u16::to_string).collect::<Vec<_>>().join(", ");
    match others.first() {
        Some(first) => format!(
            "nothing listens on port {port} (the value of PORT), but on {list}; let it listen on $PORT, or say `port: {first}` for this process in berth.yaml"
        ),
        None => format!("nothing listens on port {port} (the value of PORT) yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::{Behaviour, FakeRuntime};

    #[test]
    fn says_what_is_listened_on_instead() {
        let on = |address: &str, port| Listener { address: address.parse().unwrap(), port };
        for (found, want) in [
            (vec![on("127.0.0.1", 5000)], "loopback only"),
            (vec![on("::1", 5000), on("0.0.0.0", 9000)], "loopback only"),
            (vec![on("0.0.0.0", 3000), on("::", 3000)], "but on 3000; let it listen on $PORT, or say `port: 3000`"),
            (vec![on("127.0.0.1", 3000)], "nothing listens on port 5000 (the value of PORT) yet"),
            (vec![], "yet"),
        ] {
            let text = explain(&found, 5000);
            assert!(text.contains(want), "{text}");
        }
    }

    #[test]
    fn no_configuration_is_quoted() {
        let config = [("A", "hunter2"), ("B", "hunter2-long"), ("C", "1"), ("D", "two\nlines")];
        let config = config.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let said = "cannot log in as hunter2-long or hunter2 (1): two\nlines".to_owned();
        assert_eq!(without(&secrets(&config), said), "cannot log in as [config] or [config] (1): [config]");
    }

    /// Fails the first time and whenever it is asked after it has answered; notes who was taken for starting.
    #[derive(Default)]
    struct Notes(std::sync::Mutex<Vec<bool>>);

    #[async_trait::async_trait]
    impl Prober for Notes {
        async fn probe(&self, target: &ProbeTarget) -> Result<(), ProbeError> {
            let mut notes = self.0.lock().unwrap();
            notes.push(target.starting);
            if notes.len() == 2 { Ok(()) } else { Err(ProbeError::Silent("busy".to_owned())) }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_answered_is_not_taken_for_starting_any_more() {
        let second = Duration::from_secs(1);
        for (adopted, want) in [(false, [true, true, false, false]), (true, [false; 4])] {
            let (steady, prober) = (Steady::starting_at(Timestamp::now()), Arc::new(Notes::default()));
            let (verdicts, _heard) = mpsc::channel(64);
            let watcher = Watcher {
                replica: ReplicaId("r1".to_owned()),
                address: Some([127, 0, 0, 1].into()),
                port: 5000,
                host: String::new(),
                health: Health {
                    probe: HealthProbe::Tcp,
                    interval: second,
                    timeout: second,
                    grace: second,
                    failures: 3,
                },
                started_at: steady.now(),
                adopted,
                stability: Duration::ZERO,
                steady,
                prober: prober.clone(),
                runtime: Arc::new(FakeRuntime::new(Behaviour::default())),
                verdicts,
                secrets: Vec::new(),
            };
            let _ = timeout(Duration::from_secs(60), watcher.run()).await;
            assert_eq!(prober.0.lock().unwrap()[..4], want);
        }
    }
}
