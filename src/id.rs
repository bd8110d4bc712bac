//! Names and numbers that identify things: parsed once at the boundary, valid ever after.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Why a text is not the identifier that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: {rule}")]
pub struct Invalid {
    /// The kind of identifier, for a person.
    pub what: &'static str,
    /// The text, cut short.
    pub text: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl Invalid {
    fn new(what: &'static str, text: &str, rule: &'static str) -> Self {
        Self { what, text: text.chars().take(80).collect(), rule }
    }
}

/// Declares a cheap-to-clone text newtype that is valid by construction.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.into())) } else { Err(Invalid::new($what, text, $rule)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

/// One to 64 of the characters that are safe in a URL path, a metric label and a log line.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

text_id!(
    /// The name of a model slot.
    ModelName, "model name", "1 to 64 letters, digits, '-', '_' and '.', the first a letter or digit", is_name
);
text_id!(
    /// The key of a state slot.
    StateKey, "state key", "1 to 64 letters, digits, '-', '_' and '.', the first a letter or digit", is_name
);
text_id!(
    /// The name of a model format: `linear`, `xgboost`, ….
    Format, "model format", "1 to 64 letters, digits, '-', '_' and '.', the first a letter or digit", is_name
);
text_id!(
    /// A producer's id of a message; it removes duplicates and never orders.
    MessageId, "message id", "1 to 256 bytes of text without control characters",
    |text| (1..=256).contains(&text.len()) && !text.chars().any(char::is_control)
);
text_id!(
    /// The id of a shard of the stream.
    ShardId, "shard id", "1 to 128 letters, digits, '-', '_' and '.'",
    |text| (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
);

text_id!(
    /// The id of a signing key: what a signature says it was made with.
    KeyId, "key id", "1 to 128 visible ASCII characters without quotes and backslashes",
    |text| (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b'\\'))
);

impl StateKey {
    /// The key of a message that names none, shown at `GET /state`.
    pub const DEFAULT: &'static str = "default";
}

impl Default for StateKey {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

/// The rank of a notification within its slot: 1 to 2^53 − 1, so that every JSON reader and a float gauge hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Version(u64);

impl Version {
    const MAX: u64 = (1 << 53) - 1;

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for Version {
    type Error = Invalid;

    fn try_from(number: u64) -> Result<Self, Invalid> {
        if (1..=Self::MAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(Invalid::new("version", &number.to_string(), "an integer from 1 to 2^53 - 1"))
        }
    }
}

impl From<Version> for u64 {
    fn from(version: Version) -> Self {
        version.0
    }
}

impl FromStr for Version {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let number: u64 = text.parse().map_err(|_| Invalid::new("version", text, "an integer from 1 to 2^53 - 1"))?;
        Self::try_from(number)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A SHA-256; the identity of an artifact's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The result of an incremental hash.
    pub fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hex digits: enough for a person and a log line.
    pub fn short(&self) -> String {
        let mut hex = self.to_string();
        hex.truncate(12);
        hex
    }
}

impl FromStr for Digest {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::new("SHA-256", text, "64 lower-case hex digits");
        let hex = text.as_bytes();
        if hex.len() != 64 {
            return Err(invalid());
        }
        let nibble = |b: u8| match b {
            b'0'..=b'9' => Ok(b - b'0'),
            b'a'..=b'f' => Ok(b - b'a' + 10),
            _ => Err(invalid()),
        };
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(hex.as_chunks::<2>().0) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(digest))
    }
}

impl TryFrom<String> for Digest {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The place of a record in its shard: a decimal integer of up to 129 digits, compared as one. It says nothing about
/// the order between shards.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SequenceNumber(Arc<str>);

impl SequenceNumber {
    /// The decimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SequenceNumber {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if (1..=129).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) {
            Ok(Self(text.into()))
        } else {
            Err(Invalid::new("sequence number", text, "1 to 129 decimal digits"))
        }
    }
}

impl TryFrom<String> for SequenceNumber {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<SequenceNumber> for String {
    fn from(number: SequenceNumber) -> Self {
        number.as_str().to_owned()
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.0.trim_start_matches('0'), other.0.trim_start_matches('0'));
        a.len().cmp(&b.len()).then_with(|| a.cmp(b))
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A named place whose content is replaced.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// A state, by its key.
    State(StateKey),
    /// A model, by its name.
    Model(ModelName),
}

impl Slot {
    /// `state` or `model`: the metrics' label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::State(_) => "state",
            Self::Model(_) => "model",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(key) => write!(f, "state {key}"),
            Self::Model(name) => write!(f, "model {name}"),
        }
    }
}

/// Where a record stands in the stream: what orders notifications that carry no version.
///
/// Within a shard the sequence number decides, and within a record the place in it. Across shards there is only the arrival time, which Kinesis calls
/// approximate: a heuristic, made monotone within a shard and its descendants by the source. Publish versions where
/// several shards or producers write one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// When the stream was created, in milliseconds since 1970: a stream deleted and made anew is a new era. 0 where
    /// that may not be asked.
    pub era: u64,
    /// When the record arrived, in milliseconds since 1970, never less than a record's before it in the lineage.
    pub arrival_ms: u64,
    /// The shard.
    pub shard: ShardId,
    /// The place in the shard.
    pub sequence: SequenceNumber,
    /// The place in the record, from 0, where a producer packed several messages into one record; else 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub subsequence: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Position {
    /// The era of a stream whose creation time may not be asked for: it is not compared.
    pub const UNKNOWN_ERA: u64 = 0;

    /// Whether this record is after the other, as far as the stream can tell.
    pub fn is_after(&self, other: &Self) -> bool {
        let known = self.era != Self::UNKNOWN_ERA && other.era != Self::UNKNOWN_ERA;
        let order = if known && self.era != other.era {
            self.era.cmp(&other.era)
        } else if self.shard == other.shard {
            self.sequence.cmp(&other.sequence).then(self.subsequence.cmp(&other.subsequence))
        } else {
            (self.arrival_ms, &self.shard).cmp(&(other.arrival_ms, &other.shard))
        };
        order == Ordering::Greater
    }
}

/// What orders the contents of one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rank {
    /// The content that a slot has before any message.
    Initial,
    /// The stream's own order, where the message has no version.
    Stream(Position),
    /// The producer's version.
    Version(Version),
}

impl Rank {
    /// Whether this rank is above the other. A version is above every place in the stream.
    pub fn is_above(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Initial, _) | (Self::Stream(_), Self::Version(_)) => false,
            (Self::Stream(_), Self::Initial) | (Self::Version(_), Self::Initial | Self::Stream(_)) => true,
            (Self::Stream(a), Self::Stream(b)) => a.is_after(b),
            (Self::Version(a), Self::Version(b)) => a > b,
        }
    }

    /// The producer's version, if there is one.
    pub fn version(&self) -> Option<Version> {
        match self {
            Self::Version(version) => Some(*version),
            Self::Initial | Self::Stream(_) => None,
        }
    }
}

impl fmt::Display for Rank {
    /// What the version headers say: the version, else the sequence number (and the place in the record, behind the
    /// first one: two contents of one record are told apart), else 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Initial => f.write_str("0"),
            Self::Stream(Position { sequence, subsequence: 0, .. }) => sequence.fmt(f),
            Self::Stream(Position { sequence, subsequence, .. }) => write!(f, "{sequence}.{subsequence}"),
            Self::Version(version) => version.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_compare_as_integers() {
        let n = |text: &str| text.parse::<SequenceNumber>().expect("digits");
        assert!(n("10") > n("9"));
        assert!(n("0010") > n("9"));
        assert_eq!(n("007").cmp(&n("7")), Ordering::Equal);
        assert!("12a".parse::<SequenceNumber>().is_err());
        assert!("".parse::<SequenceNumber>().is_err());
    }

    #[test]
    fn names_that_could_be_paths_or_labels_with_quotes_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "a\"b", "a b", "-a", &"x".repeat(65)] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad:?}");
        }
        for good in ["a", "fraud", "Fraud_v2.1-eu", &"x".repeat(64)] {
            assert!(good.parse::<ModelName>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn versions_stay_where_a_double_is_exact() {
        assert!(Version::try_from(0).is_err());
        assert!(Version::try_from(1 << 53).is_err());
        assert_eq!(Version::try_from((1 << 53) - 1).map(Version::get), Ok((1 << 53) - 1));
    }

    #[test]
    fn a_digest_reads_back_what_it_prints() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!(digest.to_string().to_uppercase().parse::<Digest>().is_err());
    }

    #[test]
    fn position_orders_by_era_then_sequence_in_a_shard_then_arrival_between_shards() {
        let at = |era, arrival_ms, shard: &str, sequence: &str| Position {
            era,
            arrival_ms,
            shard: shard.parse().expect("shard"),
            sequence: sequence.parse().expect("sequence"),
            subsequence: 0,
        };
        assert!(at(2, 0, "s-0", "1").is_after(&at(1, 9, "s-0", "9")));
        assert!(at(1, 5, "s-0", "10").is_after(&at(1, 9, "s-0", "9")), "the clock is not asked within a shard");
        assert!(at(1, 9, "s-0", "1").is_after(&at(1, 5, "s-1", "10")));
        assert!(!at(1, 5, "s-0", "1").is_after(&at(1, 5, "s-0", "1")));
        assert!(at(0, 5, "s-0", "2").is_after(&at(9, 5, "s-0", "1")), "an unknown era is not compared");
    }

    #[test]
    fn messages_of_one_record_are_ordered_told_apart_and_read_back() {
        let at = |sequence: &str, subsequence| Position {
            era: 1,
            arrival_ms: 5,
            shard: "s-0".parse().expect("shard"),
            sequence: sequence.parse().expect("sequence"),
            subsequence,
        };
        assert!(at("7", 1).is_after(&at("7", 0)) && !at("7", 0).is_after(&at("7", 1)));
        assert!(!at("7", 1).is_after(&at("7", 1)));
        assert!(at("8", 0).is_after(&at("7", 9)), "the record comes first");
        let elsewhere = Position { shard: "s-1".parse().expect("shard"), ..at("7", 0) };
        assert!(!at("7", 9).is_after(&elsewhere), "it says nothing about another shard");
        assert_ne!(at("7", 1), at("7", 0));
        for (subsequence, shown) in [(0, "7"), (1, "7.1")] {
            let position = at("7", subsequence);
            assert_eq!(Rank::Stream(position.clone()).to_string(), shown);
            let json = serde_json::to_string(&position).expect("to memory");
            assert_eq!(serde_json::from_str::<Position>(&json).expect("what was written"), position);
            assert_eq!(json.contains("subsequence"), subsequence > 0, "what older journals look like: {json}");
        }
    }
}
