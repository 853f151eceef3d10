//! What a form says, as the body of a request.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::{Action, Kind, missing};
use crate::console::{client::Problem, forms::COUNT, shell::Query};

/// How a form becomes a body.
#[derive(Debug)]
pub(in crate::console) enum Body {
    None,
    /// The fields by their names; those that are empty are left out.
    Fields,
    /// The same, but these ones are lists: of lines.
    WithLists(&'static [&'static str]),
    /// A field that names something within these: `name` is `{tenant}/{app}/…`.
    Named(&'static [&'static str]),
    /// `{name: value}`
    Pair,
    /// `{id: null}`
    Without,
    /// `NAME=value` lines.
    Assignments,
    /// Numbers by process type.
    Counts,
    /// A command's line.
    Line,
    /// An image and what to run of it.
    Image,
    /// Always the same.
    Fixed(&'static [(&'static str, bool)]),
}

fn unfit(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "That cannot be", detail)
}

fn needed<'s>(said: &'s Query, name: &str) -> Result<&'s str, Problem> {
    said.get(name).map(String::as_str).filter(|value| !value.is_empty()).ok_or_else(|| missing(name))
}

impl Body {
    /// The body.
    pub(super) fn made(&self, action: &Action, said: &Query) -> Result<Option<Value>, Problem> {
        Ok(Some(match self {
            Self::None => return Ok(None),
            Self::Fields => fields(action, said, &[])?,
            Self::WithLists(lists) => fields(action, said, lists)?,
            Self::Named(within) => {
                let mut name = String::new();
                for part in *within {
                    name.push_str(needed(said, part)?);
                    name.push('/');
                }
                json!({"name": name + needed(said, "name")?.trim()})
            }
            Self::Pair => json!({needed(said, "name")?.trim(): said.get("value").cloned().unwrap_or_default()}),
            Self::Without => json!({needed(said, "id")?: null}),
            Self::Assignments => assignments(needed(said, "lines")?)?,
            Self::Counts => counts(said)?,
            Self::Line => {
                let stdin = said.get("stdin").cloned().unwrap_or_default();
                json!({"command": [needed(said, "command")?], "stdin": stdin})
            }
            Self::Image => image(said)?,
            Self::Fixed(pairs) => pairs.iter().map(|(name, value)| ((*name).to_owned(), Value::Bool(*value))).collect(),
        }))
    }
}

fn fields(action: &Action, said: &Query, lists: &[&str]) -> Result<Value, Problem> {
    let mut object = Map::new();
    for field in action.fields.iter().filter(|field| !action.path.contains(&format!("{{{}}}", field.name))) {
        let text = said.get(field.name).map(|text| text.trim()).unwrap_or_default();
        let value = match field.kind {
            Kind::Check => Value::Bool(!text.is_empty()),
            _ if text.is_empty() && field.required => return Err(missing(field.label)),
            _ if text.is_empty() => continue,
            Kind::Number => match text.trim_start_matches('v').parse::<u64>() {
                Ok(number) => json!(number),
                Err(_) => return Err(unfit(format!("{}: {text:?} is no number", field.label))),
            },
            _ if lists.contains(&field.name) => {
                text.split(|c: char| c.is_whitespace() || c == ',').filter(|one| !one.is_empty()).collect()
            }
            _ => json!(text),
        };
        object.insert(field.name.to_owned(), value);
    }
    Ok(Value::Object(object))
}

/// As in a `.env` file: empty lines and those with `#` at their beginning are left out; one pair of quotes around a value goes.
fn assignments(lines: &str) -> Result<Value, Problem> {
    let mut object = Map::new();
    for (number, line) in lines.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line
            .strip_prefix("export ")
            .unwrap_or(line)
            .split_once('=')
            .ok_or_else(|| unfit(format!("line {} is not NAME=value; nothing was changed", number + 1)))?;
        let quoted = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
        object.insert(name.trim().to_owned(), json!(quoted.unwrap_or(value)));
    }
    if object.is_empty() { Err(missing("at least one line")) } else { Ok(Value::Object(object)) }
}

fn counts(said: &Query) -> Result<Value, Problem> {
    let mut object = Map::new();
    for (name, text) in said {
        let Some(process) = name.strip_prefix(COUNT) else { continue };
        let count: u32 = text.trim().parse().map_err(|_| unfit(format!("{process}: {text:?} is no number")))?;
        object.insert(process.to_owned(), json!(count));
    }
    Ok(Value::Object(object))
}

fn image(said: &Query) -> Result<Value, Problem> {
    let mut body = json!({"image": needed(said, "image")?.trim()});
    let processes = said.get("processes").map(|text| text.trim()).unwrap_or_default();
    if !processes.is_empty() {
        let processes: Value = serde_yaml::from_str(processes).map_err(|error| unfit(format!("processes: {error}")))?;
        body["processes"] = processes;
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_as_in_a_file_of_variables() {
        let taken = assignments("# of dev\nA=1\n\nexport B=\"two words\"\nC=a=b\n").unwrap();
        assert_eq!(taken, json!({"A": "1", "B": "two words", "C": "a=b"}));
        let problem = assignments("A=1\nnonsense").unwrap_err();
        assert!(problem.detail.starts_with("line 2"), "{problem:?}");
        assert!(assignments("\n#\n").is_err());
    }

    #[test]
    fn numbers_are_by_process_type() {
        let said = |pairs: &[(&str, &str)]| -> Query {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(counts(&said(&[("count.web", "2"), ("env", "dev")])).unwrap(), json!({"web": 2}));
        assert_eq!(counts(&said(&[("count.web", "-2")])).unwrap_err().status, 400);
    }
}
