//! One line of an app's output as plain text, for errors and records: colours and whatever else drives a terminal are taken out, not
//! shown, so that what is left can be read.

use super::render::is_unsafe;

const ESCAPE: char = '\u{1b}';
/// Longest control sequence (`ESC [ … final`), and longest text of a command (`ESC ] … BEL`), that is taken for one, in bytes.
const MAX_CONTROL: usize = 64;
const MAX_COMMAND: usize = 1024;
/// So many bytes of the text are looked at for each character that is wanted.
const READ_PER_CHARACTER: usize = 16;

/// The line without escape sequences and control characters other than tab, at most `most` characters of it. Of a line that was
/// written over (`10%\r20%`), as progress is, what stood last counts. The text of a sequence that is not complete stays.
pub fn plain_line(text: &str, most: usize) -> String {
    let text = text.trim_end_matches(['\r', '\n']);
    let rest = text.rsplit('\r').next().unwrap_or(text);
    // What is taken out is not to be without end either.
    let mut rest = &rest[..rest.floor_char_boundary(most.saturating_mul(READ_PER_CHARACTER))];
    let (mut plain, mut left) = (String::new(), most);
    while let Some(c) = rest.chars().next().filter(|_| left > 0) {
        if let Some(length) = sequence(rest) {
            rest = &rest[length..];
            continue;
        }
        rest = &rest[c.len_utf8()..];
        if !is_unsafe(c) {
            plain.push(c);
            left -= 1;
        }
    }
    plain
}

/// The length of the escape sequence that the text begins with (ECMA-48).
fn sequence(text: &str) -> Option<usize> {
    let first = text.chars().next()?;
    let (kind, start) = match first {
        ESCAPE => (text[1..].chars().next().filter(char::is_ascii)?, 2),
        // The same in one character.
        '\u{80}'..='\u{9f}' => (char::from(u8::try_from(first).ok()? - 0x40), first.len_utf8()),
        _ => return None,
    };
    let body = &text[start..];
    let length = match kind {
        '[' => control(body)?,
        ']' | 'P' | 'X' | '^' | '_' => command(body)?,
        // `ESC ( B` and the like: what it begins with says how it goes on.
        ' '..='/' if first == ESCAPE => {
            1 + body.bytes().next().filter(|byte| (0x30..0x7f).contains(byte)).map(|_| 0)?
        }
        '0'..='~' if first == ESCAPE => 0,
        _ => return None,
    };
    Some(start + length)
}

/// Parameters, intermediates and the final character.
fn control(body: &str) -> Option<usize> {
    let end = body.bytes().take(MAX_CONTROL).position(|byte| !(0x20..0x40).contains(&byte))?;
    (0x40..0x7f).contains(&body.as_bytes()[end]).then_some(end + 1)
}

/// Everything until it is ended by BEL, `ESC \` or ST.
fn command(body: &str) -> Option<usize> {
    for (at, c) in body.char_indices().take_while(|(at, _)| *at < MAX_COMMAND) {
        match c {
            '\u{7}' | '\u{9c}' => return Some(at + c.len_utf8()),
            ESCAPE => return body[at..].starts_with("\u{1b}\\").then_some(at + 2),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_drives_a_terminal_is_taken_out() {
        for (text, want) in [
            ("plain\ttext ä", "plain\ttext ä"),
            ("\u{1b}[31mError\u{1b}[0m: no \u{1b}[1;38;5;196mX\u{1b}[m", "Error: no X"),
            ("\u{1b}[2J\u{1b}[1;1Hcleared", "cleared"),
            ("\u{1b}]0;title\u{7}text \u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\", "text link"),
            ("\u{1b}(Bset\u{1b}=\u{1b}7\u{1b}c", "set"),
            ("\u{9b}31mred\u{9d}0;t\u{9c}.", "red."),
            // Not complete: nothing that stands after it is lost.
            ("\u{1b}[31", "[31"),
            ("\u{1b}]0;never ended", "]0;never ended"),
            ("\u{1b}]0;x\u{1b}[31mred", "]0;xred"),
            ("\u{1b}ä\u{1b}", "ä"),
            ("bell\u{7} nul\0 del\u{7f} right-to-left\u{202e}", "bell nul del right-to-left"),
            ("10%\r20%\r100%\r\n", "100%"),
            ("\r", ""),
        ] {
            assert_eq!(plain_line(text, 100), want, "{text:?}");
        }
        assert_eq!(plain_line("\u{1b}[31mäöü", 2), "äö");
        let long = format!("\u{1b}]{}\u{7}", "x".repeat(5000));
        assert!(plain_line(&long, 10).starts_with("]xxx"));
    }

    proptest! {
        #[test]
        fn nothing_that_drives_a_terminal_is_left(text in "[\u{1b}\u{9b}\u{9d}\\[\\]\\\\;0-9mAa(\u{7}\r\nä ]{0,60}", most in 0_usize..40) {
            let plain = plain_line(&text, most);
            prop_assert!(!plain.chars().any(is_unsafe) && plain.chars().count() <= most, "{plain:?}");
            prop_assert_eq!(plain_line(&plain, most), plain);
        }
    }
}
