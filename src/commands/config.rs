//! Config variables and host names: `config …`, `domains …`.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Answer, Caller, CommandError, CommandIo, Commands, answer, parse};
use crate::{
    deploy::Derive,
    domain::{EnvRef, Environment, Verb},
};

/// Largest value, and all names and values of an environment together, in bytes.
const MAX_VALUE: usize = 64 << 10;
const MAX_CONFIG: usize = 256 << 10;

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
        if value.contains('\0') || value.len() > MAX_VALUE {
            return Err(CommandError::Usage(format!("the value of {name} has a NUL byte or is longer than 64 KiB")));
        }
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
        command: parse::Config,
        io: &mut CommandIo,
    ) -> Result<Answer, CommandError> {
        match command {
            parse::Config::List { env } => {
                let env = self.env_for(caller, Verb::ReadConfig, &env).await?;
                let rows = env.config.iter().map(|(name, value)| format!("{name}={}\n", answer::clean(value)));
                let human: String = rows.collect();
                let human = if human.is_empty() { "No config variables.".into() } else { human };
                Ok(Answer::new(human, json!(env.config)))
            }
            parse::Config::Get { env, name } => {
                let env = self.env_for(caller, Verb::ReadConfig, &env).await?;
                let unset = || {
                    let hint = super::access::did_you_mean(&name, env.config.keys().cloned());
                    CommandError::NotFound(format!("{} is not set in {}{hint}", answer::clean(&name), env.name))
                };
                let value = env.config.get(&name).ok_or_else(unset)?;
                Ok(Answer { human: format!("{value}\n"), json: json!({name: value}) })
            }
            parse::Config::Set { env, pairs } => {
                self.env_for(caller, Verb::WriteConfig, &env).await?;
                let pairs = read_pairs(pairs, io).await?;
                let names: Vec<&str> = pairs.keys().map(String::as_str).collect();
                let what = format!("config set {}", names.join(" "));
                self.change_config(caller, &env, &what, io, |config| config.extend(pairs.clone())).await
            }
            parse::Config::Unset { env, names } => {
                let stored = self.env_for(caller, Verb::WriteConfig, &env).await?;
                for name in &names {
                    check_name(name)?;
                    if !stored.config.contains_key(name) {
                        let hint = super::access::did_you_mean(name, stored.config.keys().cloned());
                        return Err(CommandError::NotFound(format!(
                            "{name} is not set in {env}{hint}; nothing was changed"
                        )));
                    }
                }
                let what = format!("config unset {}", names.join(" "));
                self.change_config(caller, &env, &what, io, |config| config.retain(|name, _| !names.contains(name)))
                    .await
            }
        }
    }

    /// Writes a change of config; when something runs, a new release with it is rolled out.
    async fn change_config(
        &self,
        caller: &Caller,
        env: &EnvRef,
        what: &str,
        io: &mut CommandIo,
        change: impl Fn(&mut BTreeMap<String, String>) + Send + Sync,
    ) -> Result<Answer, CommandError> {
        let (mut changed, mut before) = (false, BTreeMap::new());
        let written = self
            .store
            .modify::<Environment, CommandError>(env, |record| {
                before = record.config.clone();
                change(&mut record.config);
                changed = record.config != before;
                let size: usize = record.config.iter().map(|(name, value)| name.len() + value.len()).sum();
                if size > MAX_CONFIG {
                    return Err(CommandError::Usage("all config variables together are larger than 256 KiB".into()));
                }
                Ok(())
            })
            .await?;
        if !changed {
            return Ok(Answer::new("Nothing changed: the values are the same already", json!({"changed": false})));
        }
        let Some(current) = written.target.or(written.current) else {
            return Ok(Answer::new("Set; the first release will have it", json!({"changed": true, "release": null})));
        };
        let release =
            self.deployer.derive_release(env, current, Derive::ConfigOfEnvironment, &caller.user, what).await?;
        let deployed = self.deploy_and_say(env, release.version, io).await;
        if matches!(deployed, Err(CommandError::Failed(_))) {
            // What was refused must not come in with the next release; what somebody else set meanwhile stays.
            let refused = written.config;
            let put_back = self.store.modify::<Environment, CommandError>(env, |record| {
                if record.config == refused {
                    record.config.clone_from(&before);
                }
                Ok(())
            });
            put_back.await?;
        }
        deployed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
