//! Durations and sizes, as people write them: in settings, and in messages.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A length of time, written `200ms`, `5s`, `10m`, `24h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanDuration(pub Duration);

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split_number(text);
        let ms_per_unit = match unit {
            "us" | "µs" => 1e-3,
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 60e3,
            "h" => 3_600e3,
            "d" => 86_400e3,
            _ => return Err(format!("{text:?} is no duration: write 500us, 200ms, 5s, 10m or 24h")),
        };
        let number: f64 =
            number.parse().map_err(|_| format!("{text:?} is no duration: write 500us, 200ms, 5s, 10m or 24h"))?;
        Duration::try_from_secs_f64(number * ms_per_unit / 1e3)
            .map(Self)
            .map_err(|_| format!("{text:?} is too long a duration"))
    }
}

/// A number of bytes, written `65536`, `64KiB`, `8MiB`, `4GiB` (or kB, MB, GB).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split_number(text);
        let bytes_per_unit = match unit {
            "" | "B" => 1,
            "kB" => 1_000,
            "KiB" => 1 << 10,
            "MB" => 1_000_000,
            "MiB" => 1 << 20,
            "GB" => 1_000_000_000,
            "GiB" => 1 << 30,
            _ => return Err(format!("{text:?} is no size: write 65536, 64KiB, 8MiB or 4GiB")),
        };
        let number: u64 =
            number.parse().map_err(|_| format!("{text:?} is no size: write 65536, 64KiB, 8MiB or 4GiB"))?;
        number.checked_mul(bytes_per_unit).map(Self).ok_or_else(|| format!("{text:?} is too large a size"))
    }
}

fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_as_people_write_them() {
        for (text, ms) in [("200ms", 200), ("5s", 5_000), ("1.5s", 1_500), ("10m", 600_000), ("24h", 86_400_000)] {
            assert_eq!(text.parse(), Ok(HumanDuration(Duration::from_millis(ms))), "{text}");
        }
        assert_eq!("300us".parse(), Ok(HumanDuration(Duration::from_micros(300))));
        for text in ["", "5", "s", "5 parsecs", "-1s", "1e400s", "9999999999999999999999d"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text:?}");
        }
        for (text, bytes) in [("0", 0), ("65536", 65536), ("64KiB", 65536), ("4GiB", 1 << 32), ("1MB", 1_000_000)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MiB", "1.5MiB", "64XB", "99999999999999GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
    }
}
