//! The end of a container's output, whatever it writes.

use std::collections::VecDeque;

use super::OutputLines;
use crate::runtime::{Output, Source};

/// Bytes of output of which the last lines are made.
const RAW_BYTES: usize = 32 << 10;
/// Pieces of it that are smaller than this grow, and there are no more than so many.
const PIECE: usize = 4 << 10;
const PIECES: usize = 128;

/// Keeps the end of what it is given, and counts the lines. It costs little more than to copy the output: what somebody else's program
/// writes without end is not to cost the server what it costs that program.
#[derive(Debug, Default)]
pub struct OutputTail {
    last: VecDeque<(Source, Vec<u8>)>,
    bytes: usize,
    /// What was before is gone.
    cut: bool,
    ended: u64,
    /// What standard output and standard error wrote last has no line end.
    open: [bool; 2],
}

impl OutputTail {
    /// Takes output as it came.
    pub fn take(&mut self, output: &Output) {
        let Some(newest) = output.bytes.last() else { return };
        self.ended += output.bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.open[usize::from(output.source == Source::Stderr)] = *newest != b'\n';
        let bytes = &output.bytes[output.bytes.len().saturating_sub(RAW_BYTES)..];
        self.cut |= bytes.len() < output.bytes.len();
        self.bytes += bytes.len();
        match self.last.back_mut().filter(|(source, last)| *source == output.source && last.len() < PIECE) {
            Some((_, last)) => last.extend_from_slice(bytes),
            None => self.last.push_back((output.source, bytes.to_vec())),
        }
        while let Some((_, oldest)) = self.last.front()
            && (self.bytes - oldest.len() >= RAW_BYTES || self.last.len() > PIECES)
        {
            self.bytes -= oldest.len();
            self.last.pop_front();
            self.cut = true;
        }
    }

    /// The lines there were, those without an end among them.
    pub fn count(&self) -> u64 {
        self.ended + self.open.iter().filter(|open| **open).count() as u64
    }

    /// The last lines, at most `most` of them, in the order in which they ended; those without an end are the last.
    pub fn lines(&self, most: usize) -> VecDeque<(Source, String)> {
        // Neither stream runs into the other.
        let mut partial = [OutputLines::default(), OutputLines::default()];
        // The first line of each may lack its beginning.
        let mut torn = [self.cut; 2];
        let mut lines = VecDeque::new();
        let mut keep = |source: Source, line: &str| {
            if lines.len() == most {
                lines.pop_front();
            }
            lines.push_back((source, line.to_owned()));
        };
        for (source, bytes) in &self.last {
            let which = usize::from(*source == Source::Stderr);
            partial[which].take(bytes, |line| {
                if !std::mem::take(&mut torn[which]) {
                    keep(*source, line);
                }
            });
        }
        for (source, partial) in [Source::Stdout, Source::Stderr].into_iter().zip(&mut partial) {
            if let Some(line) = partial.rest() {
                keep(source, &line);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(source: Source, text: String) -> Output {
        Output { source, bytes: text.into_bytes().into() }
    }

    #[test]
    fn however_much_there_was_the_last_lines_are_whole_and_little_is_kept() {
        let mut tail = OutputTail::default();
        for turn in 0..100_000 {
            // In pieces that end in the middle of lines.
            let text = format!("{:06}\nnumber ", turn.max(1) - 1);
            tail.take(&output(Source::Stdout, if turn == 0 { "number ".to_owned() } else { text }));
        }
        tail.take(&output(Source::Stdout, "099999\n".to_owned()));
        assert!(tail.last.len() <= PIECES && tail.bytes < RAW_BYTES + PIECE);
        let lines: Vec<String> = tail.lines(30).into_iter().map(|(_, line)| line).collect();
        assert_eq!(lines, (99_970..100_000).map(|turn| format!("number {turn:06}")).collect::<Vec<_>>());
        assert_eq!(tail.count(), 100_000);
        let all = tail.lines(usize::MAX);
        assert!(all.len() > 1000 && all.iter().all(|(_, line)| line.len() == "number 000000".len()), "one is torn");
        tail.take(&output(Source::Stdout, "y\n".repeat(100_000) + "no end"));
        assert_eq!(tail.count(), 200_001);
        let lines = tail.lines(3);
        assert_eq!(lines.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>(), ["y", "y", "no end"]);
        assert!(tail.lines(1000).iter().all(|(_, line)| line == "y" || line == "no end"));
    }
}
