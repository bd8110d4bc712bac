//! How the stream is read.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::{Error, Settings, at_least};

/// The stream.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// Its name.
    pub name: String,
    /// Time between polls of a shard at the tip; without one, as the fleet size says, else a second.
    pub poll_interval: Option<Duration>,
    /// How many instances poll the stream, if that is known.
    pub fleet_size: Option<u32>,
    /// Where to begin.
    pub start: StartAt,
    /// How far back to read on start at least.
    pub lookback: Duration,
    /// How records come.
    pub consumer: ConsumerMode,
    /// The name of the fan-out consumer; without one, made from the host's.
    pub consumer_name: Option<String>,
    /// How long a subscription may say nothing before it is given up: Kinesis sends an event every few seconds.
    pub silence: Duration,
    /// After how long the next subscription is opened: one lives for five minutes.
    pub renew: Duration,
}

impl StreamConfig {
    /// The defaults for this stream.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            poll_interval: None,
            fleet_size: None,
            start: StartAt::Last,
            lookback: Duration::ZERO,
            consumer: ConsumerMode::Poll,
            consumer_name: None,
            silence: Duration::from_secs(40),
            renew: Duration::from_secs(270),
        }
    }

    pub(super) fn from_settings(settings: &Settings) -> Result<Self, Error> {
        let name = settings
            .stream
            .clone()
            .filter(|stream| !stream.is_empty())
            .ok_or_else(|| Error::new("--stream (KINESIS_STREAM)", "missing: name the Kinesis stream to follow"))?;
        if !is_name(&name) {
            let problem = format!("{name:?} is no stream name: 1 to 128 letters, digits, '_', '.' and '-'");
            return Err(Error::new("--stream (KINESIS_STREAM)", problem));
        }
        if let Some(consumer) = settings.consumer_name.as_ref().filter(|consumer| !is_name(consumer)) {
            let problem = format!("{consumer:?} is no consumer name: 1 to 128 letters, digits, '_', '.' and '-'");
            return Err(Error::new("--consumer-name (HOTSERVE_CONSUMER_NAME)", problem));
        }
        if settings.fleet_size == Some(0) {
            return Err(Error::new("--fleet-size (HOTSERVE_FLEET_SIZE)", "0 is no fleet: 1 or more"));
        }
        let poll_interval = settings
            .poll_interval
            .map(|interval| {
                let setting = "--poll-interval (HOTSERVE_POLL_INTERVAL)";
                at_least(setting, Some(interval), Duration::ZERO, Duration::from_millis(200))
            })
            .transpose()?;
        Ok(Self {
            poll_interval,
            fleet_size: settings.fleet_size,
            start: settings.start.unwrap_or(StartAt::Last),
            lookback: settings.lookback.map_or(Duration::ZERO, |lookback| lookback.0),
            consumer: settings.consumer.unwrap_or(ConsumerMode::Poll),
            consumer_name: settings.consumer_name.clone(),
            ..Self::named(name)
        })
    }
}

fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Where to begin to read the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// With the last record of each shard, looked for as far back as records are kept.
    Last,
    /// With the oldest record.
    TrimHorizon,
    /// With the first record that arrived then or later, in milliseconds since 1970; nothing before it is taken.
    AtTimestamp(u64),
    /// With the first record that arrives from now on. The service's clock is known to the second: what arrived in the
    /// last seconds may come too.
    Latest,
}

impl FromStr for StartAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "{text:?} is no place to start: write last, trim-horizon, latest or at-timestamp=2026-11-24T12:00:00Z"
            )
        };
        match text {
            "last" => Ok(Self::Last),
            "trim-horizon" => Ok(Self::TrimHorizon),
            "latest" => Ok(Self::Latest),
            _ => {
                let time = text.strip_prefix("at-timestamp=").unwrap_or(text);
                let time: Timestamp = time.parse().map_err(|_| expected())?;
                u64::try_from(time.as_millisecond()).map(Self::AtTimestamp).map_err(|_| expected())
            }
        }
    }
}

/// How records come from the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsumerMode {
    /// Ask each shard for them; its five reads a second are shared by all instances
    Poll,
    /// Have them sent through a consumer of one's own (enhanced fan-out), and poll while there is none
    FanOut,
    /// Have them sent, or poll if the stream has no room for another consumer
    Auto,
}

impl fmt::Display for ConsumerMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poll => "poll",
            Self::FanOut => "fan-out",
            Self::Auto => "auto",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_to_start_reads_as_kinesis_names_it() {
        for (text, start) in [
            ("last", StartAt::Last),
            ("trim-horizon", StartAt::TrimHorizon),
            ("latest", StartAt::Latest),
            ("at-timestamp=2026-11-24T12:00:00.5Z", StartAt::AtTimestamp(1_795_521_600_500)),
            ("2026-11-24T13:00:00.5+01:00", StartAt::AtTimestamp(1_795_521_600_500)),
        ] {
            assert_eq!(text.parse(), Ok(start), "{text}");
        }
        for text in ["", "first", "at-timestamp=", "at-timestamp=yesterday", "1969-01-01T00:00:00Z"] {
            let error = text.parse::<StartAt>().expect_err(text);
            assert!(error.contains("trim-horizon"), "{error}");
        }
    }
}
