//! What a client may ask of the two services.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// One operation as IAM names it, `kinesis:GetRecords`; `s3:*` means all of a service, `*` all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Action(String);

const KINESIS: &[&str] = &[
    "CreateStream",
    "DeleteStream",
    "DeregisterStreamConsumer",
    "DescribeStream",
    "DescribeStreamConsumer",
    "DescribeStreamSummary",
    "GetRecords",
    "GetShardIterator",
    "ListShards",
    "ListStreamConsumers",
    "ListStreams",
    "MergeShards",
    "PutRecord",
    "PutRecords",
    "RegisterStreamConsumer",
    "SplitShard",
    "SubscribeToShard",
    "UpdateShardCount",
];
const S3: &[&str] = &[
    "AbortMultipartUpload",
    "CompleteMultipartUpload",
    "CreateBucket",
    "CreateMultipartUpload",
    "DeleteObject",
    "GetObject",
    "HeadBucket",
    "HeadObject",
    "ListBucket",
    "PutObject",
    "UploadPart",
];

impl Action {
    pub(super) fn kinesis(operation: &str) -> Self {
        Self(format!("kinesis:{operation}"))
    }

    pub(super) fn s3(operation: &str) -> Self {
        Self(format!("s3:{operation}"))
    }

    /// Whether this one, which may end in `*`, means that one.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => other.0.starts_with(beginning),
            None => self == other,
        }
    }

    pub(super) fn operation(&self) -> &str {
        self.0.split_once(':').map_or(&self.0, |(_, operation)| operation)
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = match text.split_once(':') {
            None => text == "*",
            Some(("kinesis", operation)) => operation == "*" || KINESIS.contains(&operation),
            Some(("s3", operation)) => operation == "*" || S3.contains(&operation),
            Some(_) => false,
        };
        if known {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("{text:?} is no action: kinesis: and one of {}, or s3: and one of {}", list(KINESIS), list(S3)))
    }
}

fn list(operations: &[&str]) -> String {
    format!("{}, *", operations.join(", "))
}

impl TryFrom<String> for Action {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_known_or_refused_and_a_star_covers_its_service() {
        let parse = |text: &str| text.parse::<Action>();
        for text in ["kinesis:GetRecords", "s3:GetObject", "s3:*", "*"] {
            assert!(parse(text).is_ok(), "{text}");
        }
        for text in ["GetRecords", "kinesis:GetRecord", "s3:GetRecords", "sqs:*", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
        let get = Action::kinesis("GetRecords");
        assert!(parse("*").unwrap().covers(&get) && parse("kinesis:*").unwrap().covers(&get));
        assert!(!parse("s3:*").unwrap().covers(&get) && !parse("kinesis:PutRecord").unwrap().covers(&get));
    }
}
