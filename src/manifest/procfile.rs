//! The Procfile: one `name: command` a line.

use std::collections::HashMap;

use super::{
    Problem, checks,
    read::MAX_PROCESS_TYPES,
    source::{Place, Problems, Source, quote},
    suggest,
};
use crate::domain::ProcessType;

/// What the file is called.
pub const PROCFILE: &str = "Procfile";

/// Parses a Procfile into its process types, `release` among them, in the order of the file.
///
/// Comments, blank lines, CR LF and a byte order mark are fine. A line that is not `name: command`, an unknown kind of
/// name and a second line for one name are problems, each placed.
pub fn parse_procfile(text: impl AsRef<[u8]>) -> Result<Vec<(ProcessType, String)>, Vec<Problem>> {
    let source = Source::open(text.as_ref(), PROCFILE).map_err(|problem| vec![*problem])?;
    let mut problems = Problems::new(&source);
    let mut out: Vec<(ProcessType, String)> = Vec::new();
    let mut lines: HashMap<ProcessType, usize> = HashMap::new();
    for (index, line) in source.lines.iter().enumerate() {
        let Some((place, name, command)) = split_line(line, index + 1, &mut problems) else { continue };
        if let Some(first) = lines.insert(name.clone(), place.line) {
            let message = format!("`{name}` is given twice");
            problems.add(place, message, Some(format!("the first is in line {first}; keep one of them")));
        } else {
            out.push((name, command));
        }
    }
    let types = out.iter().filter(|(name, _)| name.as_str() != "release").count();
    if types > MAX_PROCESS_TYPES && problems.is_empty() {
        problems.add(Place::START, format!("more than {MAX_PROCESS_TYPES} process types"), None);
    }
    if problems.is_empty() { Ok(out) } else { Err(problems.into_vec()) }
}

/// One line's name and command; `None` for a blank line, a comment, and a line with a problem.
fn split_line(line: &str, number: usize, problems: &mut Problems<'_, '_>) -> Option<(Place, ProcessType, String)> {
    let content = without_comment(line).trim();
    if content.is_empty() {
        return None;
    }
    let indent = line.chars().take_while(|c| c.is_whitespace()).count();
    let place = Place { line: number, column: indent + 1 };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let Some((name, command)) = content.split_once(':').filter(|(name, _)| !name.is_empty() && name.chars().all(word))
    else {
        let advice = "write `web: node server.js`; a command cannot go on in a second line";
        problems.add(place, "this line is not `name: command`", Some(advice.into()));
        return None;
    };
    let parsed = name.parse::<ProcessType>();
    if let Err(error) = &parsed {
        problems.add(place, error.to_string(), suggest::for_name::<ProcessType>(name));
    }
    let command = match checks::command(command) {
        Ok(command) => command,
        Err(refusal) => {
            let message = format!("the command of {} {}", quote(name), refusal.message);
            problems.add(place.right(name.len() + 1), message, Some(refusal.advice));
            return None;
        }
    };
    Some((place, parsed.ok()?, command))
}

/// `line` up to a `#` that begins a word outside quotes, as the shell that runs the command would read it.
fn without_comment(line: &str) -> &str {
    let mut quoted = None;
    let mut escaped = false;
    let mut word_begins = true;
    for (at, c) in line.char_indices() {
        match (quoted, c) {
            _ if escaped => escaped = false,
            (Some('"') | None, '\\') => escaped = true,
            (Some(quote), c) if c == quote => quoted = None,
            (None, '"' | '\'') => quoted = Some(c),
            (None, '#') if word_begins => return &line[..at],
            _ => {}
        }
        word_begins = c.is_whitespace() && !escaped;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        let lines =
            parse_procfile(text).unwrap_or_else(|problems| panic!("{}", crate::manifest::render_problems(&problems)));
        lines.into_iter().map(|(name, command)| (name.to_string(), command)).collect()
    }

    #[test]
    fn lines_are_taken_as_heroku_and_the_shell_take_them() {
        let cases = [
            ("web: node server.js", "node server.js"),
            ("web:node server.js", "node server.js"),
            ("  web:\tnode server.js  ", "node server.js"),
            ("web: node server.js # the site", "node server.js"),
            ("web: node server.js\t#the site", "node server.js"),
            ("web: echo 'a # b' \"c # d\"", "echo 'a # b' \"c # d\""),
            ("web: echo 'a # b' # c", "echo 'a # b'"),
            ("web: echo \\# \"a\\\" # b\"", "echo \\# \"a\\\" # b\""),
            ("web: echo a#b ${x#y} $#", "echo a#b ${x#y} $#"),
            ("web: echo '\\' # c", "echo '\\'"),
            ("web: a: b", "a: b"),
        ];
        for (line, command) in cases {
            assert_eq!(parsed(line), [("web".to_owned(), command.to_owned())], "{line}");
        }
    }

    #[test]
    fn a_whole_file() {
        let text = "\u{feff}# processes\r\n\r\nweb: node server.js\r\nrelease: node migrate.js\r\nclock_1: x";
        let pairs = [("web", "node server.js"), ("release", "node migrate.js"), ("clock_1", "x")];
        assert_eq!(parsed(text), pairs.map(|(name, command)| (name.to_owned(), command.to_owned())));
        assert_eq!(parsed(""), []);
    }

    #[test]
    fn what_is_refused_and_where() {
        let long = format!("web: {}", "x".repeat(checks::MAX_COMMAND + 1));
        let many: String = (0..21).map(|n| format!("w{n}: x\n")).collect();
        let cases = [
            ("web: a\nweb: b", 2, 1, "`web` is given twice"),
            ("web: a\n  --flag", 2, 3, "this line is not `name: command`"),
            ("web:", 1, 5, "the command of `web` is empty"),
            ("web: # nothing", 1, 5, "the command of `web` is empty"),
            ("Web: a", 1, 1, "must begin with a lower-case letter"),
            (": a", 1, 1, "this line is not `name: command`"),
            ("a b: c", 1, 1, "this line is not `name: command`"),
            ("web: a\0b", 1, 7, "NUL"),
            (&long, 1, 5, "32769 bytes"),
            (&many, 1, 1, "more than 20 process types"),
        ];
        for (text, line, column, message) in cases {
            let problems = parse_procfile(text).unwrap_err();
            let first = &problems[0];
            assert!(first.message.contains(message), "{text:?}: {}", first.message);
            assert_eq!((first.line, first.column), (Some(line), Some(column)), "{text:?}");
        }
        let problems = parse_procfile("Web: a\n:\nworker:").unwrap_err();
        assert_eq!(problems.len(), 3);
        assert_eq!(problems[0].suggestion.as_deref(), Some("did you mean `web`?"));
    }
}
