//! A file's text, and problems placed in it.

use super::Problem;

/// Largest manifest or Procfile, in bytes. A real one has a few hundred.
pub const MAX_BYTES: usize = 64 * 1024;

/// Problems reported at once; a file with more has one cause, not hundreds.
const MAX_PROBLEMS: usize = 20;

/// Widest excerpt, in characters.
const EXCERPT_WIDTH: usize = 100;

/// Longest message, in characters: a message quotes what a stranger wrote.
const MESSAGE_WIDTH: usize = 400;

/// A place in a file: line and column from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    pub const START: Self = Self { line: 1, column: 1 };

    /// `columns` further right in the same line.
    pub fn right(self, columns: usize) -> Self {
        Self { column: self.column + columns, ..self }
    }
}

/// The text of one file: known to be UTF-8, without NUL, and no larger than [`MAX_BYTES`].
pub(super) struct Source<'t> {
    pub file: &'t str,
    /// Without a byte order mark.
    pub text: &'t str,
    pub lines: Vec<&'t str>,
}

impl<'t> Source<'t> {
    /// Checks what any text file must fulfil; `file` is its name for messages.
    pub fn open(bytes: &'t [u8], file: &'t str) -> Result<Self, Box<Problem>> {
        if bytes.len() > MAX_BYTES {
            let message = format!("the file has {} bytes; at most {MAX_BYTES} are read", bytes.len());
            let advice = "move what is not for Berth into a file of its own";
            return Err(Box::new(Problem::of_file(file, message, Some(advice))));
        }
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        let (text, fault) = match std::str::from_utf8(bytes) {
            Ok(text) => (text, text.find('\0').map(|at| (at, "a NUL character does not belong in a text file"))),
            Err(error) => {
                let valid = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
                (valid, Some((valid.len(), "the file is not UTF-8 from here on")))
            }
        };
        let source = Self { file, text, lines: split_lines(text) };
        match fault {
            None => Ok(source),
            Some((at, message)) => {
                let before = split_lines(&text[..at]);
                let column = before.last().map_or(0, |line| line.chars().count()) + 1;
                let place = Place { line: before.len().max(1), column };
                Err(Box::new(source.problem(place, message, Some("save the file as UTF-8 text".into()))))
            }
        }
    }

    /// A problem at `place`, with that line as its excerpt.
    pub fn problem(&self, place: Place, message: impl Into<String>, suggestion: Option<String>) -> Problem {
        let line = self.lines.get(place.line.saturating_sub(1)).copied().unwrap_or_default();
        let (excerpt, caret) = excerpt(line, place.column.saturating_sub(1));
        Problem {
            file: clean(self.file, EXCERPT_WIDTH),
            line: Some(place.line),
            column: Some(place.column),
            excerpt: Some(excerpt),
            caret: Some(caret),
            message: clean(&message.into(), MESSAGE_WIDTH),
            suggestion: suggestion.map(|text| clean(&text, MESSAGE_WIDTH)),
        }
    }
}

/// Lines as YAML counts them: ended by LF, CR LF or a lone CR.
fn split_lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['\n', '\r']) {
        lines.push(&rest[..at]);
        let width = if rest[at..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[at + width..];
    }
    lines.push(rest);
    lines
}

/// The part of `line` around the character at `caret` (from 0), and where that character now is.
fn excerpt(line: &str, caret: usize) -> (String, usize) {
    let length = line.chars().count();
    let caret = caret.min(length);
    if length <= EXCERPT_WIDTH || caret < EXCERPT_WIDTH * 3 / 4 {
        return (clean(line, EXCERPT_WIDTH), caret);
    }
    let start = caret - EXCERPT_WIDTH / 2;
    let tail: String = line.chars().skip(start).collect();
    (format!("…{}", clean(&tail, EXCERPT_WIDTH - 1)), caret - start + 1)
}

/// `text` with nothing in it that could steer a terminal or turn the reading direction, cut to `width` characters.
/// Every character stays one character, so that a caret below it stays in place.
pub(super) fn clean(text: &str, width: usize) -> String {
    let harmless = |c: char| match c {
        '\t' | '\n' | '\r' => ' ',
        c if c.is_control() => '\u{fffd}',
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => '\u{fffd}',
        c => c,
    };
    let mut characters = text.chars().map(harmless);
    let mut out: String = characters.by_ref().take(width).collect();
    if characters.next().is_some() {
        out.pop();
        out.push('…');
    }
    out
}

/// `text` as it is quoted in a message.
pub(super) fn quote(text: &str) -> String {
    format!("`{}`", clean(text, 60))
}

/// Collects problems of one file, the first [`MAX_PROBLEMS`] of them.
pub(super) struct Problems<'s, 't> {
    pub source: &'s Source<'t>,
    found: Vec<Problem>,
    left_out: usize,
}

impl<'s, 't> Problems<'s, 't> {
    pub fn new(source: &'s Source<'t>) -> Self {
        Self { source, found: Vec::new(), left_out: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn add(&mut self, place: Place, message: impl Into<String>, suggestion: Option<String>) {
        if self.found.len() < MAX_PROBLEMS {
            self.found.push(self.source.problem(place, message, suggestion));
        } else {
            self.left_out += 1;
        }
    }

    /// All problems in the order of the file.
    pub fn into_vec(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|problem| (problem.line, problem.column));
        self.found.dedup();
        if self.left_out > 0 {
            let message = format!("… and {} more problems", self.left_out);
            self.found.push(Problem::of_file(self.source.file, message, None));
        }
        self.found
    }
}

impl Problem {
    /// A problem of a whole file, with no one place in it.
    pub fn of_file(file: &str, message: impl Into<String>, suggestion: Option<&str>) -> Self {
        Self {
            file: clean(file, EXCERPT_WIDTH),
            line: None,
            column: None,
            excerpt: None,
            caret: None,
            message: clean(&message.into(), MESSAGE_WIDTH),
            suggestion: suggestion.map(|text| clean(text, MESSAGE_WIDTH)),
        }
    }
}

/// The problems as people read them: `file:line:column: message`, the line with a caret below the place, and what to do.
/// Ends with a line feed; empty for no problems.
pub fn render_problems(problems: &[Problem]) -> String {
    problems.iter().map(render).collect::<Vec<_>>().join("\n")
}

fn render(problem: &Problem) -> String {
    let mut place = problem.file.clone();
    for number in [problem.line, problem.column].into_iter().flatten() {
        place.push_str(&format!(":{number}"));
    }
    // What concerns everything has no place.
    let place = if place.is_empty() { place } else { place + ": " };
    let mut out = format!("{place}{}\n", problem.message);
    if let (Some(line), Some(excerpt)) = (problem.line, &problem.excerpt) {
        out.push_str(&format!("{line:>5} | {excerpt}\n"));
        if let Some(caret) = problem.caret {
            out.push_str(&format!("      | {:caret$}^\n", ""));
        }
    }
    if let Some(suggestion) = &problem.suggestion {
        out.push_str(&format!("      = {suggestion}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_as_yaml_counts_them() {
        assert_eq!(split_lines("a\nb\r\nc\rd"), ["a", "b", "c", "d"]);
        assert_eq!(split_lines(""), [""]);
        assert_eq!(split_lines("a\n"), ["a", ""]);
    }

    #[test]
    fn an_excerpt_is_cut_around_the_place_and_harmless() {
        let line = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let (text, caret) = excerpt(&line, 500);
        assert!(text.chars().count() <= EXCERPT_WIDTH, "{text}");
        assert_eq!(text.chars().nth(caret), Some('X'), "{text}");
        let (text, caret) = excerpt("a\u{1b}[31m\tb\u{202e}c", 6);
        assert_eq!(text, "a\u{fffd}[31m b\u{fffd}c");
        assert_eq!(caret, 6);
        assert_eq!(excerpt("short", 99), ("short".into(), 5));
    }

    #[test]
    fn files_that_are_not_text_are_refused_with_the_place() {
        let place = |bytes: &[u8]| Source::open(bytes, "berth.yaml").map(|_| ()).map_err(|p| (p.line, p.column));
        assert_eq!(place(b"a\nbc\xff\n"), Err((Some(2), Some(3))));
        assert_eq!(place(b"a\r\nbcd\0"), Err((Some(2), Some(4))));
        assert_eq!(place(&vec![b'a'; MAX_BYTES + 1]), Err((None, None)));
        assert_eq!(place(&vec![b'a'; MAX_BYTES]), Ok(()));
        assert_eq!(Source::open("\u{feff}a: 1".as_bytes(), "f").map(|s| s.text.to_owned()), Ok("a: 1".into()));
    }
}
