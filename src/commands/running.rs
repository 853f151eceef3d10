//! What runs, and how much of it: `ps`, `scale`, `restart`.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Answer, Caller, CommandError, CommandIo, Commands, Part, access::did_you_mean, answer, io::interrupted, nouns, now,
};
use crate::{
    deploy::{EnvStatus, ReplicaStatus, WaitStatus},
    domain::{EnvRef, Environment, EventKind, ProcessType, Release, Timestamp, Verb},
    manifest::MAX_REPLICAS,
    store::{NewEvent, StoreError},
};

/// How long `scale` and `restart` wait for what they asked for.
const SETTLE: Duration = Duration::from_secs(600);
const NO_ENVIRONMENTS: &str = "No environments. Make an app: apps create TENANT/APP";
/// How often those who wait are told what for, when that has changed.
const SPEAK_EVERY: Duration = Duration::from_secs(3);

/// A state of the enumerations that serialise to one lower-case word.
fn word(value: impl serde::Serialize) -> String {
    json!(value).as_str().unwrap_or_default().to_owned()
}

/// `5m ago`.
fn ago(at: Timestamp) -> String {
    format!("{} ago", answer::age(now().duration_since(at).as_secs()))
}

fn replica_row(process: &ProcessType, replica: &ReplicaStatus) -> Vec<String> {
    let name = format!("{process}.{}", replica.index);
    let reason = replica.reason.clone().unwrap_or_default();
    vec![name, word(replica.health), ago(replica.since), replica.release.to_string(), reason]
}

fn replica_value(process: &ProcessType, replica: &ReplicaStatus) -> Value {
    json!({
        "process": process, "index": replica.index, "state": replica.health, "release": replica.release,
        "since": replica.since, "started_at": replica.started_at, "reason": replica.reason,
    })
}

/// What is waited for, by process type; then what concerns them all.
fn why_text(status: &EnvStatus) -> String {
    let row = |wait: &WaitStatus| {
        let until = wait
            .until
            .map_or_else(|| "-".to_owned(), |at| format!("in {}", answer::age(at.duration_since(now()).as_secs())));
        let ready = format!("{}/{}", wait.ready, wait.wanted);
        vec![wait.process.to_string(), ready, ago(wait.since), until, answer::clean(&wait.why)]
    };
    let mut text = match status.why.is_empty() {
        true => "Nothing is waited for: what runs is what should.\n".to_owned(),
        false => {
            let rows: Vec<Vec<String>> = status.why.iter().map(row).collect();
            answer::table(&["process", "ready", "since", "until", "waits for"], &rows)
        }
    };
    let told = |wait: &&String| !status.why.iter().any(|why| wait.starts_with(&format!("{}: ", why.process)));
    let others: Vec<&String> = status.waits.iter().filter(told).collect();
    if status.why.is_empty() && !(others.is_empty() && status.settled) {
        text.clear();
    }
    others.iter().for_each(|wait| text.push_str(&format!("… {}\n", answer::clean(wait))));
    text
}

/// `web=3` words.
fn parse_counts(words: &[String]) -> Result<BTreeMap<ProcessType, u32>, CommandError> {
    let mut counts = BTreeMap::new();
    for word in words {
        let usage = || CommandError::Usage(format!("{} is not TYPE=COUNT, as in web=3", answer::clean(word)));
        let (process, count) = word.split_once('=').ok_or_else(usage)?;
        let (process, count): (ProcessType, u32) = (process.parse()?, count.parse().map_err(|_| usage())?);
        if count > MAX_REPLICAS {
            return Err(CommandError::Usage(format!("{count} replicas are too many: the most is {MAX_REPLICAS}")));
        }
        if counts.insert(process, count).is_some() {
            return Err(CommandError::Usage(format!("{} names a process type twice", answer::clean(word))));
        }
    }
    Ok(counts)
}

impl Commands {
    /// `ps ENV`; `why`: with what is waited for, since when and until when.
    pub(super) async fn ps(&self, caller: &Caller, env: &EnvRef, why: bool) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::Read, env).await?;
        let status = self.deployer.status(env).await?;
        let url = self.deployer.url(env);
        let of_process = |process: &crate::deploy::ProcessStatus| {
            let name = process.process.clone();
            process.replicas.iter().map(move |replica| (name.clone(), replica.clone())).collect::<Vec<_>>()
        };
        let replicas: Vec<(ProcessType, ReplicaStatus)> = status.processes.iter().flat_map(of_process).collect();
        let release = status.current.map_or_else(|| "nothing deployed".to_owned(), |version| version.to_string());
        let mut human = format!("{env}: {release} at {url}\n");
        if replicas.is_empty() {
            human.push_str("Nothing runs.\n");
        } else {
            let rows: Vec<Vec<String>> =
                replicas.iter().map(|(process, replica)| replica_row(process, replica)).collect();
            human.push_str(&answer::table(&["replica", "state", "since", "release", "why"], &rows));
        }
        if why {
            human.push_str(&why_text(&status));
        } else {
            status.waits.iter().for_each(|wait| human.push_str(&format!("… {}\n", answer::clean(wait))));
        }
        let json = json!({
            "env": env, "release": status.current, "target": status.target, "url": url, "deployment": status.deployment,
            "settled": status.settled, "waiting": status.waits, "why": status.why,
            "processes": status.processes.iter().map(|process| (process.process.to_string(), json!({"wanted": process.wanted, "ready": process.serving()}))).collect::<serde_json::Map<_, _>>(),
            "replicas": replicas.iter().map(|(process, replica)| replica_value(process, replica)).collect::<Vec<_>>(),
        });
        Ok(Answer::new(human, json))
    }

    /// How one of several environments is, which may have been destroyed since they were listed.
    async fn status_of(&self, env: &EnvRef) -> Result<EnvStatus, CommandError> {
        match self.deployer.status(env).await {
            Err(StoreError::Missing(_)) => Ok(EnvStatus::unknown(env.clone(), "it has just been destroyed")),
            status => Ok(status?),
        }
    }

    /// `ps` of everything that the caller sees.
    pub(super) async fn ps_all(&self, caller: &Caller, part: &Part) -> Result<Answer, CommandError> {
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for env in self.visible_environments(caller, "", part).await? {
            let status = self.status_of(&env.name).await?;
            let release = status.current.map_or_else(|| "-".to_owned(), |version| version.to_string());
            let counts: Vec<String> =
                status.processes.iter().map(|p| format!("{}: {}/{}", p.process, p.serving(), p.wanted)).collect();
            rows.push(vec![env.name.to_string(), release, counts.join(", "), status.waits.join("; ")]);
            let processes: Vec<Value> = status
                .processes
                .iter()
                .map(|p| json!({"process": p.process, "ready": p.serving(), "wanted": p.wanted}))
                .collect();
            values.push(json!({"env": env.name, "release": status.current, "settled": status.settled, "processes": processes, "waiting": status.waits}));
        }
        Ok(Answer::table(&["environment", "release", "ready", "waiting"], rows, values, NO_ENVIRONMENTS))
    }

    /// `ps --why` of everything that the caller sees: what is waited for, environment by environment. Of a single one, all there is
    /// to say for people; programs get a list in any case.
    pub(super) async fn why_all(&self, caller: &Caller, part: &Part) -> Result<Answer, CommandError> {
        let environments = self.visible_environments(caller, "", part).await?;
        let single = environments.len() == 1 && *part == Part::default();
        let (mut human, mut values, mut quiet) = (String::new(), Vec::new(), 0_usize);
        for env in &environments {
            let status = self.status_of(&env.name).await?;
            let json = json!({"env": env.name, "release": status.current, "settled": status.settled, "waiting": status.waits, "why": status.why});
            values.push(json);
            if status.settled && status.waits.is_empty() && status.why.is_empty() {
                quiet += 1;
                continue;
            }
            human.push_str(&format!("{}:\n{}", env.name, why_text(&status)));
        }
        match environments.first() {
            None => human.push_str(NO_ENVIRONMENTS),
            Some(env) if single => human = self.ps(caller, &env.name, true).await?.human,
            Some(_) if quiet == environments.len() => human.push_str("Nothing is waited for in any environment"),
            Some(_) if quiet > 0 => human.push_str(&format!("Nothing is waited for in {quiet} more")),
            Some(_) => {}
        }
        Ok(Answer::new(human, Value::Array(values)))
    }

    /// `scale`.
    pub(super) async fn scale(
        &self,
        caller: &Caller,
        args: nouns::Scale,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        let env = &args.env;
        let verb = if args.counts.is_empty() && !args.reset { Verb::Read } else { Verb::Operate };
        let stored = self.env_for(caller, verb, env).await?;
        let version = stored.target.or(stored.current);
        let version =
            version.ok_or_else(|| CommandError::NotFound(format!("{env} has no release to scale yet; push first")))?;
        let release = self.release(env, version).await?;
        let counts = parse_counts(&args.counts)?;
        if counts.is_empty() && !args.reset {
            return Ok(scale_answer(&release, &stored.scale));
        }
        for process in counts.keys() {
            if !release.processes.contains_key(process) {
                let hint = did_you_mean(process.as_str(), release.processes.keys().map(ToString::to_string));
                let text = format!("{version} of {env} has no process type {process}{hint}; nothing was changed");
                return Err(CommandError::NotFound(text));
            }
        }
        let only_if = io.only_if.clone();
        let mut before = stored.scale.clone();
        let changed = self
            .store
            .modify::<Environment, CommandError>(env, |record| {
                only_if.check(&scale_answer(&release, &record.scale).json)?;
                before.clone_from(&record.scale);
                if args.reset {
                    record.scale.clear();
                }
                record.scale.extend(counts.clone());
                Ok(())
            })
            .await?;
        let what = if args.reset { "back to the manifest".to_owned() } else { args.counts.join(" ") };
        let event = NewEvent::new(EventKind::ScaleChanged, now(), format!("{env} scaled: {what}"));
        let event = event.data("old", json!(before)).data("new", json!(changed.scale)).data("reset", args.reset);
        self.store.record(event.env(env).by(&caller.user)).await?;
        self.deployer.nudge(env);
        io.tell(&format!("-----> Scaling {env}: {what}\n")).await;
        self.settle(env, io).await?;
        Ok(scale_answer(&release, &changed.scale))
    }

    /// `restart`: every replica is replaced, in the way of a deployment.
    pub(super) async fn restart(
        &self,
        caller: &Caller,
        env: &EnvRef,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        let stored = self.env_for(caller, Verb::Operate, env).await?;
        if stored.current.is_none() {
            return Err(CommandError::NotFound(format!("{env} has no release to restart yet; push first")));
        }
        self.store
            .modify::<Environment, CommandError>(env, |record| {
                record.restarts += 1;
                Ok(())
            })
            .await?;
        let event = NewEvent::new(EventKind::EnvRestarted, now(), format!("{env} is restarted"));
        self.store.record(event.env(env).by(&caller.user)).await?;
        self.deployer.nudge(env);
        io.tell(&format!("-----> Restarting {env}\n")).await;
        self.settle(env, io).await?;
        Ok(Answer::new(format!("Restarted {env}"), json!({"env": env, "restarted": true})))
    }

    /// Waits until what runs is what should, telling now and then what is waited for. A caller who interrupts does not stop it.
    async fn settle(&self, env: &EnvRef, io: &mut CommandIo) -> Result<EnvStatus, CommandError> {
        if !io.waits {
            return Ok(self.deployer.status(env).await?);
        }
        let deadline = Instant::now() + SETTLE;
        let mut said = Vec::new();
        loop {
            let settled = tokio::select! {
                settled = self.deployer.await_settled(env, SPEAK_EVERY) => settled,
                () = interrupted(&mut io.controls) => {
                    return Err(CommandError::Failed(format!("not waiting any longer; it goes on, see `ps {env}`")));
                }
            };
            let status = match settled {
                Ok(status) => return Ok(status),
                Err(status) => status,
            };
            if let Some(looping) = status.processes.iter().find(|one| one.crash_looping && one.ready < one.wanted) {
                let (process, why) = (&looping.process, status.waits.join("; "));
                let text = format!(
                    "that is set, but {process} is crash-looping: {why}. It is tried again, less and less often; see `logs {env}` and `ps {env} --why`"
                );
                return Err(CommandError::Failed(text));
            }
            let waits = if status.waits.is_empty() { vec!["it takes long".to_owned()] } else { status.waits };
            if Instant::now() >= deadline {
                let (seconds, waits) = (SETTLE.as_secs(), waits.join("; "));
                let text = format!("{env} is not there after {seconds} s: {waits}. It goes on; see `ps {env}`");
                return Err(CommandError::Failed(text));
            }
            if waits != said {
                for wait in &waits {
                    io.tell(&format!("       {}\n", answer::clean(wait))).await;
                }
                said = waits;
            }
        }
    }
}

fn scale_answer(release: &Release, overrides: &BTreeMap<ProcessType, u32>) -> Answer {
    let (mut rows, mut counts) = (Vec::new(), serde_json::Map::new());
    for (process, spec) in &release.processes {
        let count = overrides.get(process).copied().unwrap_or(spec.replicas);
        let from = if overrides.contains_key(process) { "scale (until `scale --reset`)" } else { "manifest" };
        rows.push(vec![process.to_string(), count.to_string(), from.to_owned()]);
        counts.insert(process.to_string(), json!(count));
    }
    Answer::new(answer::table(&["process", "replicas", "from"], &rows), json!({"env": release.env, "scale": counts}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let parse = |words: &[&str]| parse_counts(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>());
        assert_eq!(parse(&["web=3", "worker=0"]).unwrap().into_values().collect::<Vec<_>>(), [3, 0]);
        for words in [&["web"][..], &["web=-1"], &["web=x"], &["web=101"], &["web=1", "web=2"], &["W=1"]] {
            assert!(parse(words).is_err(), "{words:?} was taken");
        }
    }
}
