//! `BERTH__SECTION__KEY=value` laid over the file: the value is read as YAML, so that lists and numbers work.

use anyhow::{Context, bail};
use serde_yaml::{Mapping, Value};

const PREFIX: &str = "BERTH__";

/// Lays the variables that begin with `BERTH__` over `config`.
pub(super) fn apply(config: &mut Value, environment: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<()> {
    for (name, text) in environment {
        let Some(path) = name.strip_prefix(PREFIX) else { continue };
        let value = serde_yaml::from_str(&text).with_context(|| format!("{name} is not a YAML value"))?;
        set(config, &path.to_lowercase(), value).with_context(|| format!("{name} names no key"))?;
    }
    Ok(())
}

fn set(config: &mut Value, path: &str, value: Value) -> anyhow::Result<()> {
    let mut place = config;
    for part in path.split("__") {
        if part.is_empty() {
            bail!("a part of its name is empty; write BERTH__SECTION__KEY");
        }
        if place.is_null() {
            *place = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(mapping) = place else { bail!("{part:?} is below a key that has a value") };
        place = mapping.entry(Value::String(part.to_owned())).or_insert(Value::Null);
    }
    *place = value;
    Ok(())
}
