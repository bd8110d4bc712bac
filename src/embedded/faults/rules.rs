//! What goes wrong: the rules, as a test or a file gives them.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::action::Action;
use crate::config::{self, HumanDuration};

/// What goes wrong. The default is that nothing does.
///
/// As a file it is TOML; `tests/faults/gameday.toml` shows every rule. Lengths of time are written `200ms`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Rules {
    /// Where the random numbers begin: the same seed and the same calls give the same faults.
    pub seed: u64,
    /// Actions that answer `AccessDenied`.
    pub deny: Vec<Action>,
    /// Answers given instead of the right ones; of those that match a call, the first that strikes.
    #[serde(rename = "fault")]
    pub faults: Vec<Fault>,
    /// Time added before an answer; of those that match a call, the first.
    pub latency: Vec<Latency>,
    /// How Kinesis behaves.
    pub kinesis: KinesisRules,
    /// How `SubscribeToShard` behaves.
    pub fan_out: FanOutRules,
    /// How S3 behaves.
    pub s3: S3Rules,
}

/// An answer instead of the right one.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Fault {
    /// The actions it strikes.
    pub on: Vec<Action>,
    /// The one shard it strikes; none means all.
    pub shard: Option<String>,
    /// The part of the calls it strikes, 0 to 1.
    #[serde(default = "always")]
    pub rate: f64,
    /// How often it strikes before it is over; none means for ever.
    pub times: Option<u64>,
    /// What is answered.
    pub answer: Answer,
}

impl Fault {
    /// Strikes every call of an action.
    pub fn on(action: Action, answer: Answer) -> Self {
        Self { on: vec![action], shard: None, rate: 1.0, times: None, answer }
    }
}

/// What is answered instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// 500 `InternalFailure`; of S3, `InternalError`.
    InternalFailure,
    /// 503 `ServiceUnavailable`; of S3, `SlowDown`.
    Unavailable,
    /// `ProvisionedThroughputExceededException`; of S3, 503 `SlowDown`.
    Throttle,
    /// `LimitExceededException`; of S3, 503 `SlowDown`.
    LimitExceeded,
    /// `KMSThrottlingException`; of S3, 503 `SlowDown`.
    KmsThrottling,
    /// `AccessDeniedException`; of S3, 403 `AccessDenied`.
    AccessDenied,
    /// `ResourceNotFoundException`; of S3, 404 `NoSuchKey`.
    NotFound,
    /// `ResourceInUseException`; of S3, 409 `OperationAborted`.
    ResourceInUse,
    /// `ExpiredIteratorException`; of S3, 400 `ExpiredToken`.
    ExpiredIterator,
    /// `KMSDisabledException`; of S3, 400 `KMS.DisabledException`.
    KmsDisabled,
    /// `ExpiredTokenException`; of S3, 400 `ExpiredToken`: the credentials are too old.
    ExpiredToken,
    /// 502 and a page of HTML, as a proxy between gives it.
    Html,
    /// 200 and a page of HTML, as a portal gives it that wants a login first.
    Captive,
    /// 301 to another host, as S3 answers where the bucket is in another region.
    Redirect,
    /// The right answer, with one bit of its body turned over.
    GarbleBody,
    /// The right answer, with no end.
    EndlessBody,
    /// The right answer, until the connection ends in the middle of its body.
    CutBody,
    /// No answer at all, for ever. What is asked for is not done.
    Hang,
    /// The right answer, until its body stops in the middle, for ever. Of a subscription, after the first frame.
    HangBody,
}

/// Time added before an answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Latency {
    /// The actions it slows.
    pub on: Vec<Action>,
    /// The least time.
    #[serde(deserialize_with = "duration")]
    pub min: Duration,
    /// The most.
    #[serde(deserialize_with = "duration")]
    pub max: Duration,
}

/// How Kinesis behaves.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct KinesisRules {
    /// `GetRecords` calls a second and shard, of all readers together, with as many at once; AWS allows 5.
    pub reads_per_second: Option<u32>,
    /// The most of a shard's time that one `GetRecords` looks through.
    #[serde(deserialize_with = "duration")]
    pub page_skip: Duration,
    /// The most records of a page.
    pub page_limit: usize,
    /// Empty pages before each page with records.
    pub empty_pages: u32,
    /// How long an iterator is good for.
    #[serde(deserialize_with = "duration")]
    pub iterator_life: Duration,
    /// What `MillisBehindLatest` says.
    pub millis_behind: MillisBehind,
    /// Ended shards do not name their children in `GetRecords` and `SubscribeToShard`.
    pub hide_children: bool,
    /// Closed shards go on with empty pages and never say that they ended.
    pub endless_shards: bool,
}

impl Default for KinesisRules {
    fn default() -> Self {
        Self {
            reads_per_second: None,
            page_skip: Duration::from_secs(300),
            page_limit: 10_000,
            empty_pages: 0,
            iterator_life: Duration::from_secs(300),
            millis_behind: MillisBehind::Truthful,
            hide_children: false,
            endless_shards: false,
        }
    }
}

/// What `MillisBehindLatest` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MillisBehind {
    /// The time from the place of the answer to the tip of the shard.
    Truthful,
    /// 0, backlog or not.
    Zero,
    /// Nothing: the field is left out.
    Absent,
    /// Always the same.
    #[serde(deserialize_with = "duration")]
    Constant(Duration),
    /// The truth, but at the idle tip, half of the time, something between 1 ms and this.
    #[serde(deserialize_with = "duration")]
    Spurious(Duration),
}

/// How `SubscribeToShard` behaves.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct FanOutRules {
    /// No frame leaves any more, of subscriptions that are there and of new ones, and no connection ends.
    pub blackhole: bool,
    /// How long a subscription lasts; AWS: 5 minutes.
    #[serde(deserialize_with = "duration")]
    pub session: Duration,
    /// The time after which a subscription's connection is cut.
    #[serde(deserialize_with = "optional_duration")]
    pub cut_after: Option<Duration>,
    /// The time between events of an idle shard.
    #[serde(deserialize_with = "duration")]
    pub heartbeat: Duration,
    /// The time in which a second subscription of a consumer to a shard is refused with `ResourceInUseException`; later
    /// it ends the first one. AWS: 5 seconds.
    #[serde(deserialize_with = "duration")]
    pub takeover_after: Duration,
}

impl Default for FanOutRules {
    fn default() -> Self {
        Self {
            blackhole: false,
            session: Duration::from_secs(300),
            cut_after: None,
            heartbeat: Duration::from_secs(1),
            takeover_after: Duration::from_secs(5),
        }
    }
}

/// How S3 behaves.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct S3Rules {
    /// The speed of the body of a `GetObject`.
    pub bytes_per_second: Option<u64>,
    /// How long after it is first put an object is not there yet.
    #[serde(deserialize_with = "duration")]
    pub appears_after: Duration,
}

impl Rules {
    /// Reads rules from TOML.
    pub fn parse(text: &str) -> Result<Self, config::Error> {
        let rules: Self = toml::from_str(text).map_err(|error| config::Error::new("rules", error.to_string()))?;
        rules.check().map(|()| rules)
    }

    /// Reads the rules of a file.
    pub fn from_file(path: &Path) -> Result<Self, config::Error> {
        let at = |problem: String| config::Error::new(format!("--faults {}", path.display()), problem);
        let text = std::fs::read_to_string(path).map_err(|error| at(error.to_string()))?;
        Self::parse(&text).map_err(|error| at(error.problem))
    }

    fn check(&self) -> Result<(), config::Error> {
        let wrong = |setting: String, problem: &str| Err(config::Error::new("rules", format!("{setting}: {problem}")));
        for (number, fault) in self.faults.iter().enumerate() {
            if !(0.0..=1.0).contains(&fault.rate) {
                return wrong(format!("rate of fault {}", number + 1), "from 0 to 1");
            }
        }
        for (number, latency) in self.latency.iter().enumerate() {
            if latency.min > latency.max {
                return wrong(format!("latency {}", number + 1), "min is more than max");
            }
        }
        if self.kinesis.reads_per_second == Some(0) {
            return wrong("kinesis.reads-per-second".to_owned(), "1 or more, or leave it out");
        }
        if self.kinesis.page_limit == 0 {
            return wrong("kinesis.page-limit".to_owned(), "1 or more");
        }
        if self.kinesis.page_skip.is_zero() {
            return wrong("kinesis.page-skip".to_owned(), "1ms or more: a reader would never get on");
        }
        if self.s3.bytes_per_second == Some(0) {
            return wrong("s3.bytes-per-second".to_owned(), "1 or more: to stop a body, use the answer hang-body");
        }
        Ok(())
    }
}

fn always() -> f64 {
    1.0
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    HumanDuration::deserialize(from).map(|duration| duration.0)
}

fn optional_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_all_and_the_default_says_nothing() {
        assert_eq!(Rules::parse("").unwrap(), Rules::default());
        let rules = Rules::parse(
            r#"
            deny = ["s3:GetObject"]
            [[fault]]
            on = ["kinesis:GetRecords"]
            answer = "html"
            rate = 0.5
            [kinesis]
            reads-per-second = 5
            millis-behind = { constant = "2s" }
            "#,
        )
        .unwrap();
        assert_eq!(rules.deny, ["s3:GetObject".parse().unwrap()]);
        assert_eq!(rules.faults[0].answer, Answer::Html);
        assert_eq!(rules.kinesis.reads_per_second, Some(5));
        assert_eq!(rules.kinesis.millis_behind, MillisBehind::Constant(Duration::from_secs(2)));
        assert_eq!(rules.kinesis.page_skip, Duration::from_secs(300), "what is not said keeps its default");
    }

    #[test]
    fn the_example_file_is_sound_and_names_every_rule() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/gameday.toml");
        Rules::from_file(&path).unwrap();
        // Every rule of it that is commented out is sound too.
        let text = std::fs::read_to_string(&path).unwrap();
        let all: String = text.lines().map(|line| format!("{}\n", line.strip_prefix("#: ").unwrap_or(line))).collect();
        let all = Rules::parse(&all).unwrap();
        assert_ne!(all.kinesis, KinesisRules::default());
        assert!(!all.deny.is_empty() && all.latency.len() > 1 && all.fan_out.blackhole, "{all:?}");
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, named) in [
            ("denny = []", "denny"),
            ("deny = ['kinesis:GetRecord']", "kinesis:GetRecord"),
            ("[[fault]]\non = ['*']\nanswer = 'shrug'", "shrug"),
            ("[[fault]]\non = ['*']\nanswer = 'html'\nrate = 2", "rate of fault 1"),
            ("[[latency]]\non = ['*']\nmin = '2s'\nmax = '1s'", "latency 1"),
            ("[kinesis]\npage-skip = '0s'", "page-skip"),
            ("[kinesis]\niterator-life = '5 parsecs'", "parsecs"),
            ("[s3]\nbytes-per-second = 0", "bytes-per-second"),
        ] {
            let error = Rules::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
