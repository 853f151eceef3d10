//! Where in an environment's log a reader is: what a client hands back to go on where it was cut off.

use std::{fmt, str::FromStr};

use flate2::Crc;
use serde::{Serialize, Serializer};

use super::ring::Position;

/// The place after one line of an environment's log. As text it is opaque to clients: file, offset and checksum of the line in hexadecimal,
/// with dashes in between. The checksum tells when that line is not there any more although something else is: in an environment that was
/// made anew, or after a crash of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogCursor {
    /// Right after the line.
    pub(super) position: Position,
    check: u32,
}

/// A text that no server has given out as a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no place in a log; hand back a `cursor` as it came, or none")]
pub struct BadCursor;

impl LogCursor {
    /// The place after `line`, which ends at `position`.
    pub(super) fn after(position: Position, line: &[u8]) -> Self {
        let mut check = Crc::new();
        check.update(line);
        Self { position, check: check.sum() }
    }
}

impl fmt::Display for LogCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}-{:08x}", self.position.sequence, self.position.offset, self.check)
    }
}

impl FromStr for LogCursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let number = |text: &str, digits| {
            // No sign, which the parser would take.
            let fits = (1..=digits).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            if fits { u64::from_str_radix(text, 16).map_err(|_| BadCursor) } else { Err(BadCursor) }
        };
        let mut parts = text.splitn(3, '-');
        let mut next = |digits| number(parts.next().unwrap_or_default(), digits);
        let position = Position { sequence: next(16)?, offset: next(16)? };
        Ok(Self { position, check: u32::try_from(next(8)?).map_err(|_| BadCursor)? })
    }
}

impl Serialize for LogCursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let cursor = LogCursor::after(Position { sequence: 17, offset: 4096 }, b"{}");
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert_ne!(cursor, LogCursor::after(cursor.position, b"{ }"));
        let most = "ffffffffffffffff-ffffffffffffffff-ffffffff";
        assert_eq!(most.parse::<LogCursor>().unwrap().to_string(), most);
        for wrong in [
            "",
            "1",
            "1-2",
            "1-2-",
            "1-2-3-4",
            "-1-2-3",
            "+1-2-3",
            "1-2-123456789",
            "1-g-3",
            "1 -2-3",
            "1-2-3\n",
            "ä-1-2",
        ] {
            assert_eq!(wrong.parse::<LogCursor>(), Err(BadCursor), "{wrong:?}");
        }
    }
}
