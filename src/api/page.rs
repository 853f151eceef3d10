//! Pages of lists, by cursor: what is made or removed meanwhile neither doubles nor hides anything else.

use std::{fmt::Display, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{entity::view, problem::Problem};
use crate::commands::Part;

/// Items of a page where nothing is said, and at the most.
const USUAL: usize = 100;
const MOST: usize = 1000;

/// Which part of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// Items of a page, from 1 to 1000; 100 where nothing is said
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// `next` of the page before
    cursor: Option<String>,
}

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<V> {
    items: Vec<V>,
    /// Where the next page begins; not there on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

fn cursor(key: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(key)
}

fn key(item: &Value, fields: &[&str]) -> String {
    let text = |field: &&str| match &item[*field] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    fields.iter().map(text).collect::<Vec<_>>().join("\n")
}

impl PageQuery {
    fn limit(&self) -> Result<usize, Problem> {
        let limit = self.limit.unwrap_or(USUAL);
        if (1..=MOST).contains(&limit) {
            return Ok(limit);
        }
        Err(Problem::bad_request(format!("limit is {limit}, and has to be from 1 to {MOST}")))
    }

    /// What is to be asked of a command that can list by parts, by names of kind `N`: the page, and one more if there is one. See [`Self::cut`].
    ///
    /// # Errors
    /// When the cursor or the limit is none.
    pub(super) fn part<N: FromStr + Display>(&self) -> Result<Part, Problem> {
        let name = |cursor: &String| {
            let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
            text.parse::<N>().ok().map(|name| name.to_string())
        };
        let after = match &self.cursor {
            Some(cursor) => {
                name(cursor).ok_or_else(|| Problem::bad_request("this cursor is none; begin again without it"))?
            }
            None => String::new(),
        };
        Ok(Part { after, most: self.limit()? + 1 })
    }

    /// The page of such a part, whose items have their name in `field`.
    ///
    /// # Errors
    /// When the limit is none, or it is no list.
    pub(super) fn cut<V: DeserializeOwned>(&self, part: Value, field: &str) -> Result<Page<V>, Problem> {
        Self { cursor: None, ..*self }.page(part, &[field])
    }

    /// The page of what a command has listed. `fields` tell one item from all others.
    ///
    /// # Errors
    /// When the cursor or the limit is none, or the item that the cursor stands for is gone.
    pub(super) fn page<V: DeserializeOwned>(&self, list: Value, fields: &[&str]) -> Result<Page<V>, Problem> {
        let Value::Array(mut items) = list else { return Err(Problem::broken("what was listed is no list")) };
        let limit = self.limit()?;
        if let Some(after) = &self.cursor {
            let gone =
                || Problem::bad_request("this cursor is none, or what it stands for is gone; begin again without it");
            let last = items.iter().position(|item| cursor(&key(item, fields)) == *after).ok_or_else(gone)?;
            items.drain(..=last);
        }
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|item| cursor(&key(item, fields)));
        Ok(Page { items: view(Value::Array(items))?, next })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(page: &Page<Value>) -> Vec<u64> {
        page.items.iter().filter_map(|item| item["n"].as_u64()).collect()
    }

    #[test]
    fn pages_follow_each_other_whatever_is_put_before_them() {
        let list = |from: u64| Value::Array((from..8).map(|n| json!({"n": n, "of": "x"})).collect());
        let ask = |cursor: Option<String>, list: Value| {
            PageQuery { limit: Some(3), cursor }.page::<Value>(list, &["of", "n"])
        };
        let first = ask(None, list(2)).unwrap();
        assert_eq!(names(&first), [2, 3, 4]);
        let second = ask(first.next, list(0)).unwrap();
        assert_eq!((names(&second), second.next), (vec![5, 6, 7], None));
        assert_eq!(ask(Some("nonsense".into()), list(0)).unwrap_err().status, 400);
        assert_eq!(PageQuery { limit: Some(0), cursor: None }.page::<Value>(list(0), &["n"]).unwrap_err().status, 400);
    }
}
