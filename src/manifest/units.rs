//! Values with units: durations, memory, percent, cores.

use std::time::Duration;

/// Why a text is not such a value, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub message: String,
    pub advice: String,
}

impl Refusal {
    pub fn new(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { message: message.into(), advice: advice.into() }
    }
}

/// What a duration looks like; used by the JSON Schema, and the parser is tested against it.
pub(super) const DURATION_PATTERN: &str = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+$";
/// What an amount of memory looks like.
pub(super) const MEMORY_PATTERN: &str = r"^[0-9]{1,15}(\.[0-9]{1,9})?(k|K|M|G|T|Ki|Mi|Gi|Ti)$";
/// What a percentage looks like.
pub(super) const PERCENT_PATTERN: &str = r"^(0|[1-9][0-9]?|100)%$";

/// Splits `12.5Mi` into digits, fraction and unit; refuses what the patterns refuse.
fn number_and_rest(text: &str, most_digits: usize) -> Option<(f64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if digits == 0 || digits > most_digits {
        return None;
    }
    let mut end = digits;
    if let Some(fraction) = text[digits..].strip_prefix('.') {
        let length = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
        if length == 0 || length > 9 {
            return None;
        }
        end += 1 + length;
    }
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// `500ms`, `5s`, `10m`, `1h`, `1m30s`.
pub(super) fn duration(text: &str) -> Result<Duration, Refusal> {
    let refuse = |advice: String| Err(Refusal::new("is not a duration", advice));
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let Some((number, after)) = number_and_rest(rest, 9) else {
            return refuse("write a number with ms, s, m or h, as in `500ms`, `30s` or `10m`".into());
        };
        let length = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let seconds = match &after[..length] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" => return refuse(format!("say the unit, as in `{text}s` or `{text}m`")),
            _ => return refuse("the units are ms, s, m and h, as in `500ms`, `30s` or `10m`".into()),
        };
        // At most 9 digits of hours: far below the largest duration, but many parts may add up.
        total = total.saturating_add(Duration::from_secs_f64(number * seconds));
        rest = &after[length..];
    }
    if text.is_empty() {
        return refuse("write a number with ms, s, m or h, as in `30s`".into());
    }
    // Whole milliseconds: finer means nothing here, and `0.1s` is `100ms`.
    Ok(Duration::from_millis(u64::try_from((total.as_nanos() + 500_000) / 1_000_000).unwrap_or(u64::MAX)))
}

/// `256Mi`, `1.5Gi`, `512M`: bytes.
pub(super) fn memory(text: &str) -> Result<u64, Refusal> {
    let refuse = |advice: String| Err(Refusal::new("is not an amount of memory", advice));
    let Some((number, unit)) = number_and_rest(text, 15) else {
        return refuse("write a number with a unit, as in `256Mi` or `1Gi`".into());
    };
    let factor: u64 = match unit {
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "" => return refuse(format!("say the unit, as in `{text}Mi`")),
        "m" | "mb" | "MB" | "MiB" | "Mb" | "mib" => return refuse(format!("did you mean `{number}Mi`?")),
        "g" | "gb" | "GB" | "GiB" | "Gb" | "gib" => return refuse(format!("did you mean `{number}Gi`?")),
        _ => return refuse("the units are Ki, Mi, Gi, Ti (1024) and k, M, G, T (1000), as in `256Mi`".into()),
    };
    // A float-to-integer cast saturates, and the range check that follows refuses the rest.
    Ok((number * factor as f64).round() as u64)
}

/// `100%`: 0 to 100.
pub(super) fn percent(text: &str) -> Result<u32, Refusal> {
    let refuse = |advice: String| Err(Refusal::new("is not a percentage", advice));
    let Some(digits) = text.strip_suffix('%') else {
        return match text.parse::<f64>() {
            Ok(number) if number > 0.0 && number < 1.0 => refuse(format!("write `{:.0}%`", number * 100.0)),
            Ok(number) if (0.0..=100.0).contains(&number) => refuse(format!("write `{number:.0}%`")),
            _ => refuse("write a whole number from 0 to 100 with a percent sign, as in `50%`".into()),
        };
    };
    let plain = digits == "0" || (digits.starts_with(|c: char| c != '0') && digits.chars().all(|c| c.is_ascii_digit()));
    match digits.parse::<u32>() {
        Ok(number) if plain && number <= 100 => Ok(number),
        _ => refuse("write a whole number from 0 to 100 with a percent sign, as in `50%`".into()),
    }
}

/// Bytes as a person writes them: the largest unit that divides them.
pub fn format_memory(bytes: u64) -> String {
    for (unit, size) in [("Ti", 1u64 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10), ("k", 1_000)] {
        if bytes != 0 && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{:.3}Mi", bytes as f64 / f64::from(1 << 20))
}

/// A duration as the manifest writes it, to the millisecond.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".into(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("500ms", 500),
            ("5s", 5_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("0.5s", 500),
            ("0s", 0),
        ];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "5", "s", "5 s", "-5s", "5S", "5d", "1e3s", "1.s", ".5s", "5s ", "ms", "٣s", "1234567890s", "9s9"]
        {
            assert!(duration(text).is_err(), "{text:?} was taken");
        }
        assert_eq!(duration("30").unwrap_err().advice, "say the unit, as in `30s` or `30m`");
        let many = "999999999h".repeat(6000);
        assert!(duration(&many).is_ok());
    }

    #[test]
    fn amounts_of_memory() {
        let cases = [
            ("256Mi", 256 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            ("512M", 512_000_000),
            ("64k", 64_000),
            ("64K", 64_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for text in ["", "256", "Mi", "256MB", "256m", "1g", "-1Mi", "1 Gi", "1e3Mi", "0x10Mi", "1.Gi", "1Pi"] {
            assert!(memory(text).is_err(), "{text:?} was taken");
        }
        assert_eq!(memory("256MB").unwrap_err().advice, "did you mean `256Mi`?");
        assert_eq!(memory("999999999999999Ti"), Ok(u64::MAX));
    }

    #[test]
    fn percentages() {
        assert_eq!((percent("0%"), percent("50%"), percent("100%")), (Ok(0), Ok(50), Ok(100)));
        for text in ["", "%", "101%", "-1%", "+1%", "1.5%", "007%", "50", "50 %"] {
            assert!(percent(text).is_err(), "{text:?} was taken");
        }
        assert_eq!(percent("0.5").unwrap_err().advice, "write `50%`");
        assert_eq!(percent("75").unwrap_err().advice, "write `75%`");
    }

    #[test]
    fn formats_can_be_read_again() {
        for bytes in [16 << 20, 1 << 40, 512_000_000, 3 << 29, 64_000] {
            assert_eq!(memory(&format_memory(bytes)), Ok(bytes));
        }
        for millis in [0, 1, 500, 5_000, 90_000, 600_000, 7_200_000] {
            let given = Duration::from_millis(millis);
            assert_eq!(duration(&format_duration(given)), Ok(given));
        }
    }
}
