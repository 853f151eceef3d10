//! Config variables: `config …`.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use super::{Answer, Caller, CommandError, CommandIo, Commands, access::did_you_mean, answer, nouns, now};
use crate::{
    deploy::Derive,
    domain::{EnvRef, Environment, EventKind, ReleaseVersion, Verb},
    store::NewEvent,
};

/// Largest value, and all names and values of an environment together, in bytes.
const MAX_VALUE: usize = 64 << 10;
const MAX_CONFIG: usize = 256 << 10;

/// How long a change waits for others of the same environment.
const TURN: Duration = Duration::from_secs(30);

/// Names that the platform sets itself.
const RESERVED: [&str; 2] = ["PORT", "SOURCE_VERSION"];
const RESERVED_PREFIX: &str = "BERTH_";

fn check_name(name: &str) -> Result<(), CommandError> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let valid = name.starts_with(first) && name.len() <= 128 && name.chars().all(|c| first(c) || c.is_ascii_digit());
    if !valid {
        let shown = answer::clean(&name.chars().take(64).collect::<String>());
        return Err(CommandError::Usage(format!(
            "{shown:?} is not a name: letters, digits and _ only, no digit first"
        )));
    }
    if RESERVED.contains(&name) || name.starts_with(RESERVED_PREFIX) {
        return Err(CommandError::Usage(format!("{name} is set by the platform and cannot be changed")));
    }
    Ok(())
}

fn check_value(name: &str, value: &str) -> Result<(), CommandError> {
    if value.contains('\0') || value.len() > MAX_VALUE {
        return Err(CommandError::Usage(format!("the value of {name} has a NUL byte or is longer than 64 KiB")));
    }
    Ok(())
}

/// `KEY=VALUE` words; at most one value is `-`, which is read from standard input.
async fn read_pairs(words: Vec<String>, io: &mut CommandIo) -> Result<BTreeMap<String, String>, CommandError> {
    let mut pairs = BTreeMap::new();
    let mut stdin_used = false;
    for word in words {
        // The word may hold a secret: it is never quoted back.
        let (name, value) = word.split_once('=').ok_or_else(|| {
            CommandError::Usage("write KEY=VALUE; a word without = was given (nothing was changed)".into())
        })?;
        check_name(name)?;
        let value = if value == "-" {
            if std::mem::replace(&mut stdin_used, true) {
                return Err(CommandError::Usage("only one value can come from standard input (KEY=-)".into()));
            }
            let bytes = io.read_all().await?;
            String::from_utf8(bytes).map_err(|_| CommandError::Usage(format!("the value of {name} is not UTF-8")))?
        } else {
            value.to_owned()
        };
        check_value(name, &value)?;
        if pairs.insert(name.to_owned(), value).is_some() {
            return Err(CommandError::Usage(format!("{name} is given twice")));
        }
    }
    Ok(pairs)
}

impl Commands {
    /// `config …`.
    pub(super) async fn config(
        &self,
        caller: &Caller,
        command: nouns::Config,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        match command {
            nouns::Config::List { env } => {
                let env = self.env_for(caller, Verb::ReadConfig, &env).await?;
                let rows = env.config.iter().map(|(name, value)| format!("{name}={}\n", answer::clean(value)));
                let human: String = rows.collect();
                let human = if human.is_empty() { "No config variables.".into() } else { human };
                Ok(Answer::new(human, json!(env.config)))
            }
            nouns::Config::Get { env, name } => {
                let env = self.env_for(caller, Verb::ReadConfig, &env).await?;
                let unset = || {
                    let hint = did_you_mean(&name, env.config.keys().cloned());
                    CommandError::NotFound(format!("{} is not set in {}{hint}", answer::clean(&name), env.name))
                };
                let value = env.config.get(&name).ok_or_else(unset)?;
                Ok(Answer { human: format!("{value}\n"), json: json!({name: value}) })
            }
            nouns::Config::Set { env, pairs } => {
                self.env_for(caller, Verb::WriteConfig, &env).await?;
                let pairs = read_pairs(pairs, io).await?;
                let changes = pairs.into_iter().map(|(name, value)| (name, Some(value))).collect();
                self.change_config(caller, &env, "set", changes, io).await
            }
            nouns::Config::Unset { env, names } => {
                let stored = self.env_for(caller, Verb::WriteConfig, &env).await?;
                for name in &names {
                    check_name(name)?;
                    if !stored.config.contains_key(name) {
                        let hint = did_you_mean(name, stored.config.keys().cloned());
                        let text = format!("{name} is not set in {env}{hint}; nothing was changed");
                        return Err(CommandError::NotFound(text));
                    }
                }
                let changes = names.into_iter().map(|name| (name, None)).collect();
                self.change_config(caller, &env, "unset", changes, io).await
            }
        }
    }

    /// Sets and removes variables at once.
    pub(super) async fn patch_config(
        &self,
        caller: &Caller,
        env: &EnvRef,
        changes: Changes,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        self.env_for(caller, Verb::WriteConfig, env).await?;
        for (name, value) in &changes {
            check_name(name)?;
            value.as_ref().map_or(Ok(()), |value| check_value(name, value))?;
        }
        // Said as whoever does only the one would say it.
        let verb = match (changes.values().any(Option::is_some), changes.values().any(Option::is_none)) {
            (true, false) => "set",
            (false, true) => "unset",
            _ => "change",
        };
        self.change_config(caller, env, verb, changes, io).await
    }

    /// Changes config; when something runs, by a new release, which takes the change with it should it fail.
    async fn change_config(
        &self,
        caller: &Caller,
        env: &EnvRef,
        verb: &str,
        changes: Changes,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        // Between what is looked at here and the release, nobody else changes it.
        let turn = self.config_turns.take(env, TURN).await.map_err(|_| others_change(env))?;
        let stored = self.need_settled(env).await?;
        io.only_if.check(&json!(stored.config))?;
        let mut after = stored.config.clone();
        apply(&changes, &mut after);
        check_size(&after)?;
        if after == stored.config {
            return Ok(Answer::new("Nothing changed: the values are the same already", json!({"changed": false})));
        }
        let Some(current) = stored.current else {
            let written = self.store.modify::<Environment, CommandError>(env, |record| {
                apply(&changes, &mut record.config);
                check_size(&record.config)
            });
            written.await?;
            self.tell_config(caller, env, &changes, None).await?;
            let json = json!({"env": env, "changed": true, "release": null});
            return Ok(Answer::new("Changed; the first release will have it", json));
        };
        let names: Vec<&str> = changes.keys().map(String::as_str).collect();
        let why = format!("config {verb} {}", names.join(" "));
        let derive = Derive::Config(changes.clone());
        let version = self.deployer.derive_release(env, current, derive, &caller.user, &why).await?.version;
        drop(turn);
        self.tell_config(caller, env, &changes, Some(version)).await?;
        match self.deploy_and_say(env, version, io).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.with_fate(env, version, verb, &changes, error).await),
        }
    }

    /// Records which variables were changed; never what they are.
    async fn tell_config(
        &self,
        caller: &Caller,
        env: &EnvRef,
        changes: &Changes,
        release: Option<ReleaseVersion>,
    ) -> Result<(), CommandError> {
        let names = |set: bool| {
            let names = changes.iter().filter(|(_, value)| value.is_some() == set);
            names.map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        let (set, unset) = (names(true), names(false));
        let what: Vec<_> = [("set", &set), ("unset", &unset)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(verb, names)| format!("{verb} {}", names.join(" ")))
            .collect();
        let event = NewEvent::new(EventKind::ConfigChanged, now(), format!("config of {env}: {}", what.join(", ")));
        let event = event.env(env).by(&caller.user).data("release", release.map(|release| release.0));
        self.store.record(event.data("set", set).data("unset", unset)).await?;
        Ok(())
    }

    /// The error of a release that was to bring a change of config, and what has become of that.
    async fn with_fate(
        &self,
        env: &EnvRef,
        version: ReleaseVersion,
        verb: &str,
        changes: &Changes,
        error: CommandError,
    ) -> CommandError {
        // That it cannot be read is what the error says already, or the next command.
        let Ok(stored) = self.store.need::<Environment>(env).await else { return error };
        let fate = fate(&stored, version, verb, changes);
        match error {
            CommandError::Failed(text) => CommandError::Failed(format!("{text}\n{fate}")),
            CommandError::Conflict(text) => CommandError::Conflict(format!("{text}\n{fate}")),
            other => other,
        }
    }

    /// The environment, unless it is on its way to another release: what that ends with would be undone, or undo this.
    async fn need_settled(&self, env: &EnvRef) -> Result<Environment, CommandError> {
        let stored = self.store.need::<Environment>(env).await?.record;
        match stored.target.filter(|target| Some(*target) != stored.current) {
            None => Ok(stored),
            Some(target) => Err(CommandError::Conflict(format!(
                "{target} is being deployed to {env}; change its config when that is over (see `ps {env}`); nothing was changed"
            ))),
        }
    }
}

fn others_change(env: &EnvRef) -> CommandError {
    CommandError::TryLater(format!("the config of {env} is being changed by others; nothing was changed"))
}

/// New values by name; `None` removes the variable.
pub(super) type Changes = BTreeMap<String, Option<String>>;

fn apply(changes: &Changes, config: &mut BTreeMap<String, String>) {
    for (name, value) in changes {
        match value {
            Some(value) => drop(config.insert(name.clone(), value.clone())),
            None => drop(config.remove(name)),
        }
    }
}

/// What has become of a change whose release was not deployed, and what to do next. Values are never told.
fn fate(env: &Environment, version: ReleaseVersion, verb: &str, changes: &Changes) -> String {
    let list = |names: &[&str]| names.join(", ");
    let name = &env.name;
    if env.target == Some(version) && env.current != Some(version) {
        let names: Vec<&str> = changes.keys().map(String::as_str).collect();
        return format!(
            "{version} is still being deployed, and brings the change of {}: see `ps {name}`",
            list(&names)
        );
    }
    let in_force = |(variable, value): &(&String, &Option<String>)| env.config.get(*variable) == value.as_ref();
    let (kept, taken_back): (Vec<_>, Vec<_>) = changes.iter().partition(in_force);
    let names = |of: &[(&String, &Option<String>)]| list(&of.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
    let mut lines = Vec::new();
    if !taken_back.is_empty() {
        lines.push(format!(
            "The change of {} was taken back with its release: the config is as it was. When the cause is mended: config {verb} {name} …",
            names(&taken_back)
        ));
    }
    if !kept.is_empty() {
        lines.push(format!("The change of {} is stored, and every later release has it", names(&kept)));
    }
    lines.join("\n")
}

fn check_size(config: &BTreeMap<String, String>) -> Result<(), CommandError> {
    let size: usize = config.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > MAX_CONFIG {
        return Err(CommandError::Usage("all config variables together would be larger than 256 KiB".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_change_is_told_as_it_is() {
        let set: Changes = [("A".to_owned(), Some("new-secret".to_owned())), ("B".to_owned(), None)].into();
        for (a, b, target, want) in [
            (Some("old"), Some("x"), 1, &["The change of A, B was taken back", "config set acme/shop/dev"][..]),
            (Some("new-secret"), None, 3, &["The change of A, B is stored"]),
            (Some("old"), None, 1, &["change of A was taken back", "change of B is stored"]),
            (Some("new-secret"), None, 2, &["v2 is still being deployed", "the change of A, B"]),
        ] {
            let mut config = BTreeMap::new();
            config.extend(a.map(|value| ("A".to_owned(), value.to_owned())));
            config.extend(b.map(|value| ("B".to_owned(), value.to_owned())));
            let env = Environment {
                name: "acme/shop/dev".parse().unwrap(),
                created_at: crate::domain::Timestamp::UNIX_EPOCH,
                deploy_branch: None,
                config,
                scale: BTreeMap::new(),
                domains: Vec::new(),
                target: Some(ReleaseVersion(target)),
                current: Some(ReleaseVersion(if target == 3 { 3 } else { 1 })),
                last_release: 3,
                last_build: 1,
                restarts: 0,
            };
            let text = fate(&env, ReleaseVersion(2), "set", &set);
            assert!(want.iter().all(|part| text.contains(part)) && !text.contains("new-secret"), "{want:?}: {text}");
        }
    }

    #[test]
    fn names_of_variables() {
        for name in ["A", "_x", "DATABASE_URL", "a1"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "1A", "A B", "A-B", "PORT", "BERTH_ENV", "SOURCE_VERSION", "Ä", "A\nB"] {
            assert!(check_name(name).is_err(), "{name:?} was taken");
        }
    }
}
