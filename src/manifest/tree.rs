//! YAML text → a tree of values which know their places.
//!
//! The events come one by one from the parser, so hostile input is cut off where a limit is passed, not after it was
//! read. What YAML offers beyond plain data (tags, several documents, keys that are not text) is refused.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};

use super::{
    Problem,
    source::{Place, Problems, Source, quote},
};

/// Deepest nesting; the manifest itself needs 7.
const MAX_DEPTH: usize = 16;

/// Most values in all, those that aliases repeat included.
const MAX_NODES: usize = 10_000;

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A scalar exactly as written (quotes and escapes resolved), so that `1.10` stays `1.10`.
    Scalar(Kind, String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// What an unquoted scalar is by YAML 1.2's core schema; a quoted one is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool,
    Number,
    Text,
}

/// One key of a mapping with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub place: Place,
    pub value: Node,
}

impl Node {
    /// Number of values in it, itself included.
    fn size(&self) -> usize {
        match &self.value {
            Value::Scalar(..) => 1,
            Value::List(items) => 1 + items.iter().map(Self::size).sum::<usize>(),
            Value::Map(entries) => 1 + entries.iter().map(|entry| entry.value.size()).sum::<usize>(),
        }
    }
}

/// Reads the one document in `source`; problems that leave a usable tree (duplicate keys) go to `problems`.
pub(super) fn read(source: &Source<'_>, problems: &mut Problems<'_, '_>) -> Result<Node, Box<Problem>> {
    let mut builder =
        Builder { source, problems, open: Vec::new(), anchors: HashMap::new(), nodes: 0, documents: 0, root: None };
    let mut parser = Parser::new_from_str(source.text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| syntax_problem(source, &error))?;
        builder.take(event, place(span.start))?;
    }
    builder.root.ok_or_else(|| {
        let advice = "write `app: TENANT/APP` at least, or remove the file";
        Box::new(Problem::of_file(source.file, "the file is empty", Some(advice)))
    })
}

fn place(marker: Marker) -> Place {
    Place { line: marker.line().max(1), column: marker.col() + 1 }
}

/// A list or mapping that has begun and not ended.
struct Open {
    place: Place,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, places: HashMap<String, Place>, key: Option<(String, Place)> },
}

struct Builder<'b, 's, 't> {
    source: &'b Source<'b>,
    problems: &'b mut Problems<'s, 't>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    documents: usize,
    root: Option<Node>,
}

impl Builder<'_, '_, '_> {
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<(), Box<Problem>> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => self.document(place),
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some(), place)?;
                let kind = if style == ScalarStyle::Plain { kind_of(&text) } else { Kind::Text };
                self.add(Node { place, value: Value::Scalar(kind, text.into_owned()) }, anchor, 1)
            }
            Event::SequenceStart(anchor, tag) => self.begin(place, anchor, tag.is_some(), Content::List(Vec::new())),
            Event::MappingStart(anchor, tag) => {
                let content = Content::Map { entries: Vec::new(), places: HashMap::new(), key: None };
                self.begin(place, anchor, tag.is_some(), content)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(self.fail(place, "this alias stands inside what it refers to", "write the value out"));
                };
                let (node, size) = (node.clone(), node.size());
                self.add(node, 0, size)
            }
        }
    }

    fn fail(&self, place: Place, message: &str, advice: &str) -> Box<Problem> {
        Box::new(self.source.problem(place, message, Some(advice.to_owned())))
    }

    fn document(&mut self, place: Place) -> Result<(), Box<Problem>> {
        self.documents += 1;
        if self.documents > 1 {
            let advice = "keep one document; differences between environments go under `environments:`";
            return Err(self.fail(place, "a second YAML document begins here", advice));
        }
        Ok(())
    }

    fn refuse_tag(&self, tagged: bool, place: Place) -> Result<(), Box<Problem>> {
        if tagged {
            let advice = "remove the tag; put a value in quotes to make it text";
            return Err(self.fail(place, "YAML tags (`!…`) are not supported here", advice));
        }
        Ok(())
    }

    fn begin(&mut self, place: Place, anchor: usize, tagged: bool, content: Content) -> Result<(), Box<Problem>> {
        self.refuse_tag(tagged, place)?;
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(self.source, place));
        }
        if let Some(Open { content: Content::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(self.bad_key(place));
        }
        self.count(place, 1)?;
        self.open.push(Open { place, anchor, content });
        Ok(())
    }

    fn bad_key(&self, place: Place) -> Box<Problem> {
        self.fail(place, "a key must be plain text", "if this is meant as a value, put it in quotes")
    }

    fn count(&mut self, place: Place, size: usize) -> Result<(), Box<Problem>> {
        self.nodes = self.nodes.saturating_add(size);
        if self.nodes > MAX_NODES {
            let message = format!("more than {MAX_NODES} values, those that aliases repeat included");
            return Err(self.fail(place, &message, "write a smaller manifest, without aliases of aliases"));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Box<Problem>> {
        // The parser balances begin and end.
        let Some(Open { place, anchor, content }) = self.open.pop() else { return Ok(()) };
        let value = match content {
            Content::List(items) => Value::List(items),
            Content::Map { entries, .. } => Value::Map(self.merge_keys(entries)?),
        };
        self.add(Node { place, value }, anchor, 0)
    }

    fn add(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), Box<Problem>> {
        self.count(node.place, size)?;
        if anchor != 0 {
            self.count(node.place, node.size())?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.content {
            Content::List(items) => items.push(node),
            Content::Map { entries, places, key } => match (key.take(), node) {
                (None, Node { place, value: Value::Scalar(_, text) }) => *key = Some((text, place)),
                (None, node) => return Err(self.bad_key(node.place)),
                (Some((key, place)), value) => match places.get(&key) {
                    Some(first) => {
                        let message = format!("the key {} is given twice", quote(&key));
                        let advice = format!("the first is in line {}; keep one of them", first.line);
                        self.problems.add(place, message, Some(advice));
                    }
                    None => {
                        places.insert(key.clone(), place);
                        entries.push(Entry { key, place, value });
                    }
                },
            },
        }
        Ok(())
    }

    /// Resolves `<<: *anchor`, as Compose files and YAML 1.1 have it: what the mapping says itself wins.
    fn merge_keys(&mut self, mut entries: Vec<Entry>) -> Result<Vec<Entry>, Box<Problem>> {
        let Some(at) = entries.iter().position(|entry| entry.key == "<<") else { return Ok(entries) };
        let merge = entries.remove(at);
        let sources = match merge.value.value {
            Value::List(items) => items,
            _ => vec![merge.value],
        };
        for source in sources {
            self.count(merge.place, source.size())?;
            let Value::Map(inherited) = source.value else {
                return Err(self.fail(
                    merge.place,
                    "`<<` takes a mapping",
                    "write `<<: *name` with `&name` at a mapping",
                ));
            };
            for entry in inherited {
                if entries.iter().all(|own| own.key != entry.key) {
                    entries.push(entry);
                }
            }
        }
        Ok(entries)
    }
}

fn too_deep(source: &Source<'_>, place: Place) -> Box<Problem> {
    let advice = "nothing in a manifest is nested that deep; check the indentation";
    Box::new(source.problem(place, format!("nested deeper than {MAX_DEPTH} levels"), Some(advice.into())))
}

/// What the core schema of YAML 1.2 makes of an unquoted scalar.
fn kind_of(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => return Kind::Bool,
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let special = matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN");
    let based = |prefix: &str, base: u32| {
        text.strip_prefix(prefix).is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_digit(base)))
    };
    let begins = unsigned.strip_prefix('.').unwrap_or(unsigned).starts_with(|c: char| c.is_ascii_digit());
    if special || based("0x", 16) || based("0o", 8) || (begins && unsigned.parse::<f64>().is_ok()) {
        Kind::Number
    } else {
        Kind::Text
    }
}

/// What the scanner says in YAML's own terms, with what usually is the cause.
fn syntax_problem(source: &Source<'_>, error: &ScanError) -> Box<Problem> {
    let mut at = place(*error.marker());
    // What is missing at the end of the file is shown at the end of its last line.
    while at.line > 1 && source.lines.get(at.line - 1).is_none_or(|line| line.trim().is_empty()) {
        at.line -= 1;
        at.column = source.lines.get(at.line - 1).map_or(0, |line| line.trim_end().chars().count()) + 1;
    }
    let line = source.lines.get(at.line - 1).copied().unwrap_or_default();
    let indent = &line[..line.len() - line.trim_start().len()];
    if let Some(tab) = indent.find('\t') {
        let place = Place { column: indent[..tab].chars().count() + 1, ..at };
        return Box::new(source.problem(place, "a tab cannot indent YAML", Some("indent with spaces".into())));
    }
    let info = error.info();
    if info.contains("recursion limit") {
        return too_deep(source, at);
    }
    let advice = match info {
        _ if info.contains("mapping values are not allowed") || info.contains("illegal placement of ':'") => {
            "a value that contains `: ` needs quotes around it; else check the indentation, and that the line above has its `:`"
        }
        _ if info.contains("unknown anchor") => {
            "an alias `*name` needs `&name` further up; a value that begins with `*` needs quotes"
        }
        _ if info.contains("anchor or alias") => {
            "a value that begins with `*` or `&` needs quotes: schedule: \"* * * * *\""
        }
        _ if info.contains("unexpected character") => "a value that begins with this character needs quotes around it",
        _ if info.contains("simple key") => {
            "every line of a mapping is written `key: value`, with a space after the colon"
        }
        _ if info.contains("quoted scalar") => {
            "check that every quote is closed; text with a backslash fits single quotes"
        }
        _ if info.contains("flow") => "check that every `[` and `{` is closed, with commas in between",
        _ if info.contains("tab") => "indent with spaces",
        _ => "check the indentation: keys of one mapping begin in the same column",
    };
    Box::new(source.problem(at, format!("this is not valid YAML: {info}"), Some(advice.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_core_schema() {
        let cases = [
            (Kind::Null, ["", "~", "null"]),
            (Kind::Bool, ["true", "False", "TRUE"]),
            (Kind::Number, ["0x1F", "-1.5e3", ".5"]),
            (Kind::Number, ["0o17", "+12", "-.inf"]),
            (Kind::Number, ["1.", ".nan", "007"]),
            (Kind::Text, ["yes", "1.2.3", "0x"]),
            (Kind::Text, ["inf", "nan", "-"]),
            (Kind::Text, ["+.nan", "e5", "1_000"]),
        ];
        for (kind, texts) in cases {
            for text in texts {
                assert_eq!(kind_of(text), kind, "{text:?}");
            }
        }
    }
}
