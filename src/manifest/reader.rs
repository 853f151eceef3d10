//! Reading typed values out of the tree, each refusal placed and with advice.

use std::ops::RangeInclusive;

use super::{
    source::{Problems, clean, quote},
    suggest,
    tree::{Entry, Kind, Node, Value},
    units::Refusal,
};

/// Reads values; what is wrong goes to `problems` and the reading goes on, so that one run reports all of it.
pub(super) struct Reader<'p, 's, 't> {
    pub problems: &'p mut Problems<'s, 't>,
}

/// A mapping whose keys are known to be allowed ones.
pub(super) struct Fields<'n> {
    /// Where it stands: `processes.web`; empty for the top level.
    pub path: String,
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// The value of `key` and its full name for messages.
    pub fn get(&self, key: &str) -> Option<(&'n Node, String)> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some((&entry.value, join(&self.path, key)))
    }
}

/// `processes` and `web` → `processes.web`.
pub(super) fn join(path: &str, key: &str) -> String {
    let key = clean(key, 60);
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

impl Reader<'_, '_, '_> {
    /// A mapping with fixed keys. Unknown ones are reported; a value of another type yields `None`.
    pub fn fields<'n>(&mut self, node: &'n Node, path: &str, allowed: &[&str], example: &str) -> Option<Fields<'n>> {
        let entries = self.entries(node, path, example)?;
        for entry in entries.iter().filter(|entry| !allowed.contains(&entry.key.as_str())) {
            let owner = if path.is_empty() { "a manifest".to_owned() } else { quote(path) };
            let message = format!("{owner} has no key {}", quote(&entry.key));
            self.problems.add(entry.place, message, Some(suggest::for_key(path, &entry.key, allowed)));
        }
        Some(Fields { path: path.to_owned(), entries })
    }

    /// A mapping with free keys.
    pub fn entries<'n>(&mut self, node: &'n Node, path: &str, example: &str) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Map(entries) => Some(entries),
            _ => {
                self.wrong_type(node, path, "a mapping", Some(format!("write {example}")));
                None
            }
        }
    }

    /// A list of texts, each read by `check`; duplicates and more than `most` are refused.
    pub fn list<T: PartialEq>(
        &mut self,
        node: &Node,
        path: &str,
        example: &str,
        most: usize,
        check: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Option<Vec<T>> {
        let Value::List(items) = &node.value else {
            self.wrong_type(node, path, "a list", Some(format!("write {example}")));
            return None;
        };
        if items.len() > most {
            self.problems.add(node.place, format!("{} lists more than {most}", quote(path)), None);
            return None;
        }
        let mut out = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let Some(value) = self.text(item, &path, &check) else { continue };
            if out.contains(&value) {
                self.problems.add(
                    item.place,
                    format!("{} is listed twice", quote(&path)),
                    Some("keep one of them".into()),
                );
            } else {
                out.push(value);
            }
        }
        Some(out)
    }

    /// A text, read by `check`.
    pub fn text<T>(&mut self, node: &Node, path: &str, check: impl FnOnce(&str) -> Result<T, Refusal>) -> Option<T> {
        match &node.value {
            Value::Scalar(Kind::Text, text) => self.checked(node, path, text, check(text)),
            Value::Scalar(Kind::Number | Kind::Bool, text) => {
                // What the check says of it is better advice than quotes: `5` wants to be `5s`.
                let result = check(text);
                if result.is_ok() {
                    self.wrong_type(node, path, "text", Some(format!("put it in quotes: \"{text}\"")));
                    return None;
                }
                self.checked(node, path, text, result)
            }
            _ => {
                let advice = check("").err().map_or_else(|| "write it on one line".into(), |refusal| refusal.advice);
                self.wrong_type(node, path, "text", Some(advice));
                None
            }
        }
    }

    /// Text, or a number or truth value taken as it is written; for environment variables.
    pub fn scalar<T>(&mut self, node: &Node, path: &str, check: impl FnOnce(&str) -> Result<T, Refusal>) -> Option<T> {
        match &node.value {
            Value::Scalar(Kind::Text | Kind::Number | Kind::Bool, text) => self.checked(node, path, text, check(text)),
            _ => {
                self.wrong_type(
                    node,
                    path,
                    "text, a number or true/false",
                    Some("write \"\" for an empty value".into()),
                );
                None
            }
        }
    }

    /// A whole number in `range`.
    pub fn integer(&mut self, node: &Node, path: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let (kind, text) = self.number_text(node, path, &wanted)?;
        let plain = text.chars().all(|c| c.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        let number = text.parse::<u32>().ok().filter(|number| plain && range.contains(number));
        if kind == Kind::Number && number.is_some() {
            return number;
        }
        let advice = number.map(|number| format!("write it without quotes: {number}"));
        self.wrong_type(node, path, &wanted, advice);
        None
    }

    /// A decimal number in `range`, counting `unit`.
    pub fn number(&mut self, node: &Node, path: &str, range: RangeInclusive<f64>, unit: &str) -> Option<f64> {
        let wanted = format!("a number of {unit} from {} to {}", range.start(), range.end());
        let (kind, text) = self.number_text(node, path, &wanted)?;
        let number = text.parse::<f64>().ok().filter(|number| range.contains(number));
        if kind == Kind::Number && number.is_some() {
            return number;
        }
        let advice = if kind == Kind::Text { suggest::for_number(text) } else { None };
        self.wrong_type(node, path, &wanted, advice);
        None
    }

    /// The scalar that should be a number.
    fn number_text<'n>(&mut self, node: &'n Node, path: &str, wanted: &str) -> Option<(Kind, &'n str)> {
        match &node.value {
            Value::Scalar(kind, text) if *kind != Kind::Null => Some((*kind, text)),
            _ => {
                self.wrong_type(node, path, wanted, None);
                None
            }
        }
    }

    /// Passes on what a check of `text` found.
    pub fn checked<T>(&mut self, node: &Node, path: &str, text: &str, result: Result<T, Refusal>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(refusal) => {
                let shown = if text.is_empty() { String::new() } else { format!(" {}", quote(text)) };
                let message = format!("{}:{shown} {}", quote(path), refusal.message);
                self.problems.add(node.place, message, Some(refusal.advice));
                None
            }
        }
    }

    /// Reports that `path` must be `wanted`.
    pub fn wrong_type(&mut self, node: &Node, path: &str, wanted: &str, advice: Option<String>) {
        let what = if path.is_empty() { "the manifest".to_owned() } else { quote(path) };
        let found = match &node.value {
            Value::Scalar(Kind::Null, _) => "nothing".to_owned(),
            Value::Scalar(Kind::Text, text) => format!("the text {}", quote(text)),
            Value::Scalar(_, text) => quote(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        };
        let advice = match (&node.value, advice) {
            (Value::Scalar(Kind::Null, _), Some(advice)) => Some(format!("{advice}; or remove the line")),
            (Value::Scalar(Kind::Null, _), None) => Some("give it a value, or remove the line".into()),
            (_, advice) => advice,
        };
        self.problems.add(node.place, format!("{what} must be {wanted}, not {found}"), advice);
    }
}
