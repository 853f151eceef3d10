//! Output of a container by lines, however it was cut on its way.

/// Longest line that is held back until its end comes, in bytes.
const MAX_LINE: usize = 64 << 10;

/// Takes bytes, gives lines. Of a line that was written over (`10%\r20%`), as progress is, what stood last counts.
#[derive(Debug, Default)]
pub struct OutputLines {
    partial: Vec<u8>,
}

impl OutputLines {
    /// Calls `line` with each line that is complete with these bytes, without its end.
    pub fn take(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let unseen = self.partial.len().saturating_sub(1);
            self.partial.extend_from_slice(piece);
            let end = self.end();
            if let Some(over) = self.partial[..end].iter().skip(unseen).rposition(|byte| *byte == b'\r') {
                self.partial.drain(..=unseen + over);
            }
            if (piece.ends_with(b"\n") || self.partial.len() >= MAX_LINE)
                && let Some(whole) = self.rest()
            {
                line(&whole);
            }
        }
    }

    /// What stands on the line that has no end yet; it is over thereby.
    pub fn rest(&mut self) -> Option<String> {
        let line = String::from_utf8_lossy(&self.partial[..self.end()]).into_owned();
        let there = !self.partial.is_empty();
        self.partial.clear();
        there.then_some(line)
    }

    /// Where the line ends, without the characters that end it.
    fn end(&self) -> usize {
        self.partial.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], step: usize) -> Vec<String> {
        let (mut lines, mut out) = (OutputLines::default(), Vec::new());
        for piece in input.chunks(step) {
            lines.take(piece, |line| out.push(line.to_owned()));
        }
        out.extend(lines.rest());
        out
    }

    #[test]
    fn lines_however_they_are_cut() {
        let input = "one\r\n\nä 10%\r 20%\r\rdone\r\r\nx\r\n50%\r60%\r".as_bytes();
        for step in 1..=input.len() {
            assert_eq!(lines(input, step), ["one", "", "done", "x", "60%"], "step {step}");
        }
        assert_eq!(lines(b"", 1), Vec::<String>::new());
    }

    #[test]
    fn an_endless_line_is_not_held_back_for_ever() {
        let long = vec![b'x'; 3 * MAX_LINE + 10];
        let got = lines(&long, 1000);
        assert!(got.len() >= 3 && got.concat().len() == long.len());
        let progress = b"50%\r".repeat(MAX_LINE);
        assert_eq!(lines(&progress, 7), ["50%"]);
    }
}
