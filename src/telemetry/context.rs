//! The `traceparent` of W3C Trace Context: which trace something belongs to, and which span of it began it.
//!
//! <https://www.w3.org/TR/trace-context/#traceparent-header>

use std::fmt;

/// A place in a trace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    sampled: bool,
}

impl TraceContext {
    /// The name of the header, and of the field of a message.
    pub const NAME: &str = "traceparent";

    /// A place in a trace; nothing where one of the ids is zero, which is no id.
    pub fn new(trace_id: u128, span_id: u64, sampled: bool) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, sampled })
    }

    /// Reads `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`. Whatever is not exactly so is nothing: who
    /// cannot read it begins a trace of its own. Of versions to come the part that is known counts, as the standard
    /// says.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (known, rest) = text.split_at_checked(55)?;
        let version = hex(&known[..2])?;
        let ends = if version == 0 { rest.is_empty() } else { rest.is_empty() || rest[0] == b'-' };
        let dashes = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        if version == 0xff || !ends || !dashes {
            return None;
        }
        let (trace_id, span_id) = (hex(&known[3..35])?, u64::try_from(hex(&known[36..52])?).ok()?);
        Self::new(trace_id, span_id, hex(&known[53..55])? & 1 == 1)
    }

    /// The id of the trace.
    pub fn trace_id(self) -> TraceId {
        TraceId(self.trace_id)
    }

    /// The id of the span that began what belongs to this.
    pub fn span_id(self) -> u64 {
        self.span_id
    }

    /// Whether who began the trace keeps it.
    pub fn is_sampled(self) -> bool {
        self.sampled
    }
}

/// Lower-case digits alone, as the standard has it.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The id of a trace: 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

impl From<TraceId> for u128 {
    fn from(id: TraceId) -> Self {
        id.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_comes_out_as_it_went_in() {
        let trace = TraceContext::parse(GOOD.as_bytes()).expect("valid");
        assert_eq!(trace.to_string(), GOOD);
        assert_eq!(trace.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(trace.is_sampled());
        // Flags that are not known are not handed on.
        let other = GOOD.replace("-01", "-fe");
        assert_eq!(TraceContext::parse(other.as_bytes()).expect("valid").to_string(), GOOD.replace("-01", "-00"));
        for later in ["cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what", &GOOD.replace("00-4", "01-4")] {
            assert_eq!(TraceContext::parse(later.as_bytes()), Some(trace), "{later}");
        }
    }

    #[test]
    fn what_is_not_exactly_a_traceparent_is_none() {
        let zeros = ["0".repeat(32), "0".repeat(16)];
        for wrong in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &GOOD[..54],
            &format!("{GOOD}-what"),
            &format!("{GOOD} "),
            &format!(" {GOOD}"),
            &GOOD.replace("00-4", "ff-4"),
            &GOOD.replace("00-4", "0g-4"),
            &GOOD.replace('-', "_"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &zeros[0]),
            &GOOD.replace("00f067aa0ba902b7", &zeros[1]),
            &GOOD.replace("4bf9", "4bF9"),
            &GOOD.replace("-01", "-0x"),
            &format!("{}what", GOOD.replace("00-4", "01-4")),
            &"€".repeat(20),
        ] {
            assert_eq!(TraceContext::parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
