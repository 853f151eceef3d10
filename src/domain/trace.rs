//! Which trace something belongs to, over tasks, processes and servers: the trace context of the W3C.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// A span of a trace as others are told of it: `00-TRACE-SPAN-FLAGS` in hexadecimal digits (W3C Trace Context, section 3.2, the header
/// `traceparent`). Neither number is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceContext {
    trace: u128,
    span: u64,
    /// Whether whoever began the trace records it.
    sampled: bool,
}

/// What is not a trace context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no trace context of version 00, which is 00-TRACE-SPAN-FLAGS in hexadecimal digits")]
pub struct NoTraceContext;

impl TraceContext {
    /// A span, which is recorded if it is `sampled`; `None` when a number is zero, which means "none".
    pub fn new(trace: u128, span: u64, sampled: bool) -> Option<Self> {
        (trace != 0 && span != 0).then_some(Self { trace, span, sampled })
    }

    /// The number of the trace.
    pub fn trace(&self) -> u128 {
        self.trace
    }

    /// The number of the span, within the trace.
    pub fn span(&self) -> u64 {
        self.span
    }

    /// Whether whoever began the trace records it.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl From<TraceContext> for String {
    fn from(context: TraceContext) -> Self {
        context.to_string()
    }
}

impl TryFrom<String> for TraceContext {
    type Error = NoTraceContext;
    fn try_from(text: String) -> Result<Self, NoTraceContext> {
        text.parse()
    }
}

impl FromStr for TraceContext {
    type Err = NoTraceContext;

    /// Later versions begin like this one and may go on after another hyphen (section 3.2.4).
    fn from_str(text: &str) -> Result<Self, NoTraceContext> {
        let digits = |part: Option<&str>, length: usize| {
            let part = part.filter(|part| part.len() == length)?;
            // Only small letters (section 3.2.2), and no sign, which the conversion would take.
            let fits = part.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
            u128::from_str_radix(part, 16).ok().filter(|_| fits)
        };
        let read = || {
            let mut parts = text.splitn(5, '-');
            let (version, trace) = (digits(parts.next(), 2)?, digits(parts.next(), 32)?);
            let (span, flags) = (u64::try_from(digits(parts.next(), 16)?).ok()?, digits(parts.next(), 2)?);
            let known = version != 0xff && (version != 0 || parts.next().is_none());
            Self::new(trace, span, flags & 1 == 1).filter(|_| known)
        };
        read().ok_or(NoTraceContext)
    }
}

/// A span that is under way, as a record keeps it: whoever ends it, in whichever process, tells of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSpan {
    pub context: TraceContext,
    /// What it is a part of, in the same trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<TraceContext>,
    pub begin: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_standard() {
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert_eq!(
            (context.trace(), context.span()),
            (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7)
        );
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), EXAMPLE);
        let json = serde_json::to_string(&context).unwrap();
        assert_eq!(serde_json::from_str::<TraceContext>(&json).unwrap(), context);
        let quiet: TraceContext = EXAMPLE.replace("-01", "-00").parse().unwrap();
        assert!(!quiet.is_sampled() && quiet.to_string().ends_with("-00"));
        assert!(EXAMPLE.replace("-01", "-ff").parse::<TraceContext>().unwrap().is_sampled());
        let later = format!("cc{}-what-will-be", &EXAMPLE[2..]);
        assert_eq!(later.parse::<TraceContext>().unwrap(), context);
    }

    #[test]
    fn what_is_no_trace_context() {
        for text in [
            "",
            "00",
            &EXAMPLE[..54],
            &format!("{EXAMPLE}-more"),
            &format!("{EXAMPLE}0"),
            &format!("ff{}", &EXAMPLE[2..]),
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replace("4bf92f", "+bf92f"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(NoTraceContext), "{text}");
        }
    }
}
