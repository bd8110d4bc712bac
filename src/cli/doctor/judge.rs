//! From what was seen to what to say about it; pure.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::cure::{Place, allow, connection, credentials, of_fault};
use super::last::Last;
use super::probe::{Bucket, Reached, Shards, Summary, Tip};
use super::report::Finding;
use crate::aws::{Credentials, Fault, FaultKind};
use crate::cli::paint::{age, since};
use crate::source::kinesis::consumers::{Consumer, LIMIT};

/// A signature is valid for five minutes; half of it is too near.
const WORST_SKEW: Duration = Duration::from_secs(300);
const BAD_SKEW: Duration = Duration::from_secs(150);

pub(super) fn region(region: Option<&str>) -> Finding {
    match region {
        Some(region) => Finding::ok("region", region),
        None => Finding::fail("region", "none", "set AWS_REGION, or a region in the profile (~/.aws/config)"),
    }
}

pub(super) fn endpoint(reached: &Reached, configured: bool) -> Finding {
    let by = if configured { " (configured)" } else { "" };
    let url = if reached.url.is_empty() { "Kinesis" } else { &reached.url };
    match &reached.answer {
        Ok((took, _)) => Finding::ok("endpoint", format!("{url}{by} answers in {} ms", took.as_millis())),
        Err(fault) => {
            // The layers of the client that it came through help nobody.
            let why = ["dispatch failure: ", "io error: ", "client error (Connect): "]
                .iter()
                .fold(fault.message.as_str(), |message, layer| message.strip_prefix(layer).unwrap_or(message));
            Finding::fail("endpoint", format!("{url}{by}: {why}"), connection(why))
        }
    }
}

pub(super) fn clock(ahead_ms: i64) -> Finding {
    let off = Duration::from_millis(ahead_ms.unsigned_abs());
    let which = if ahead_ms < 0 { "ahead of" } else { "behind" };
    let finding = format!("{} {which} the service's", age(off));
    let cure = "set the clock: timedatectl set-ntp true (chrony, ntpd); a container has that of its host";
    if off >= WORST_SKEW {
        Finding::fail("clock", format!("{finding}: it refuses signatures 5 min off"), cure)
    } else if off >= BAD_SKEW {
        Finding::warn("clock", finding, cure)
    } else {
        Finding::ok("clock", if off < Duration::from_secs(2) { "right".to_owned() } else { finding })
    }
}

pub(super) fn found_credentials(found: &Result<Credentials, Fault>) -> Finding {
    match found {
        Err(fault) => Finding::fail("credentials", &fault.message, credentials(&fault.message)),
        Ok(found) => {
            let left = found.expires_at.map(|at| at.duration_since(std::time::SystemTime::now()).unwrap_or_default());
            let ends = left.map(|left| format!(", for another {}", age(left))).unwrap_or_default();
            Finding::ok("credentials", format!("{} from {}{ends}", found.key_id, found.source))
        }
    }
}

pub(super) fn identity(arn: &Result<String, Fault>) -> Finding {
    match arn {
        Ok(arn) => Finding::ok("identity", arn),
        Err(fault) if fault.kind == FaultKind::Credentials => {
            Finding::fail("identity", &fault.message, credentials(&fault.message))
        }
        // It is for people only: a network that lets Kinesis through may well not let STS.
        Err(fault) => Finding::skip("identity", format!("STS does not tell: {}", fault.message)),
    }
}

pub(super) fn stream(summary: &Result<Summary, Fault>, others: &[String], place: &Place) -> Finding {
    let Place { stream, region, .. } = place;
    match summary {
        Ok(Summary { status, ready, on_demand, created_at, .. }) => {
            let mode = if *on_demand { "on demand" } else { "provisioned" };
            let finding = format!("{stream} is {status}, {mode}, {} old", age(since(*created_at)));
            if *ready {
                Finding::ok("stream", finding)
            } else if status == "deleting" {
                Finding::fail("stream", finding, "wait until it is gone, and create it anew")
            } else {
                Finding::warn("stream", finding, "wait a minute, and run this again")
            }
        }
        Err(fault) if fault.kind == FaultKind::NotFound => {
            let there = match others {
                [] => String::new(),
                [.., last] if others.len() > 5 => {
                    format!(" (there are {} others, {} to {last})", others.len(), others.first().unwrap_or(last))
                }
                others => format!(" (there is {})", others.join(", ")),
            };
            Finding::fail(
                "stream",
                format!("no stream {stream} in {region}{there}"),
                format!(
                    "check KINESIS_STREAM and AWS_REGION, or create it: aws kinesis create-stream --stream-name {stream} \
                     --stream-mode-details StreamMode=ON_DEMAND"
                ),
            )
        }
        Err(fault) if fault.kind == FaultKind::Denied => Finding::warn(
            "stream",
            format!("may not be described, so a stream made anew goes unnoticed: {}", fault.message),
            allow("kinesis:DescribeStreamSummary", &place.arn(), &fault.message),
        ),
        Err(fault) => of_fault("stream", "kinesis:DescribeStreamSummary", &place.arn(), fault, place),
    }
}

/// What the description tells beside the status.
pub(super) fn settings(summary: &Summary, has_manifest: bool, stream: &str) -> Vec<Finding> {
    let hours = summary.retention_hours;
    let retention = if hours <= 24 && !has_manifest {
        Finding::warn(
            "retention",
            format!("{hours} h: a server that starts finds no message older than that"),
            format!(
                "publish each slot again within {hours} h, or keep messages longer: aws kinesis \
                 increase-stream-retention-period --stream-name {stream} --retention-period-hours 168"
            ),
        )
    } else {
        Finding::ok("retention", if hours < 72 { format!("{hours} h") } else { format!("{} d", hours / 24) })
    };
    let encryption = Finding::ok(
        "encryption",
        match &summary.key {
            Some(key) => format!("{key} (readers need kms:Decrypt)"),
            None => "none".to_owned(),
        },
    );
    let mut findings = vec![retention, encryption];
    if summary.auto_distribution {
        findings.push(Finding::warn(
            "distribution",
            "AUTO: partition keys are ignored, so messages of one slot come in any order",
            "give every message a version (hotserve publish --version N)",
        ));
    }
    findings
}

pub(super) fn shards(shards: &Shards) -> Finding {
    let finding = format!("{} open, {} closed", shards.open.len(), shards.closed);
    match shards.open.len() {
        0 => Finding::fail("shards", finding, "a stream without an open shard takes no messages: split or merge again"),
        1 => Finding::ok("shards", finding),
        _ => Finding::warn(
            "shards",
            format!("{finding}: between shards only the time of arrival orders messages"),
            "give messages a version (--version N), or those of one slot the same partition key, as hotserve publish does",
        ),
    }
}

pub(super) fn tip(tip: &Tip) -> Finding {
    let behind = if tip.behind.is_zero() { String::new() } else { format!(", {} behind the tip", age(tip.behind)) };
    Finding::ok("GetRecords", format!("allowed, answers in {} ms{behind}", tip.took.as_millis()))
}

pub(super) fn last_message(last: &Last, retention_hours: Option<u64>) -> Finding {
    match last {
        Last::Message { arrived_at, contents: Ok(slots) } => {
            Finding::ok("last message", format!("{} ago: {}", age(since(*arrived_at)), slots.join(", ")))
        }
        Last::Message { arrived_at, contents: Err(why) } => Finding::warn(
            "last message",
            format!("{} ago, and no server applies it: {why}", age(since(*arrived_at))),
            "mend the publisher; hotserve tail --json shows what it sends",
        ),
        Last::Nothing => {
            let within = retention_hours.map(|hours| format!(" within the retention of {hours} h")).unwrap_or_default();
            Finding::warn("last message", format!("none{within}"), "publish one: hotserve publish state 42")
        }
        Last::NothingYet => Finding::warn(
            "last message",
            "none found in 8 s: a server that starts has to search further back, which takes up to minutes",
            "publish each slot again from time to time, so that the last message is never far",
        ),
    }
}

pub(super) fn consumers(found: &Result<Vec<Consumer>, Fault>, place: &Place) -> Finding {
    let all = match found {
        Ok(all) => all,
        Err(fault) if fault.kind == FaultKind::Denied => {
            // It concerns enhanced fan-out only.
            let resource = format!("{} (and /consumer/*)", place.arn());
            return Finding::warn(
                "consumers",
                format!("may not be listed: {}", fault.message),
                allow("kinesis:ListStreamConsumers, only needed for enhanced fan-out,", &resource, &fault.message),
            );
        }
        Err(fault) => return of_fault("consumers", "kinesis:ListStreamConsumers", &place.arn(), fault, place),
    };
    let ours: Vec<_> = all.iter().filter(|consumer| consumer.is_ours()).collect();
    let oldest = match ours.first() {
        Some(oldest) => format!(", {} of hotserve, the oldest for {}", ours.len(), age(since(oldest.created_at))),
        None => String::new(),
    };
    let finding = format!("{} of {LIMIT}{oldest}", all.len());
    // Two places are what a rolling update wants.
    if all.len() + 2 < LIMIT {
        Finding::ok("consumers", finding)
    } else {
        Finding::warn(
            "consumers",
            format!("{finding}: no place for more (50 in on-demand advantage mode)"),
            "remove those that ended instances left behind: hotserve consumers clear --older-than 24h",
        )
    }
}

/// A place where artifacts lie.
pub(super) fn artifacts(bucket: &str, prefix: &str, seen: &Bucket, place: &Place) -> Finding {
    let check = "artifacts";
    let uri = format!("s3://{bucket}/{prefix}");
    let objects = format!("arn:{}:s3:::{bucket}/{prefix}*", place.partition());
    let whole = format!("arn:{}:s3:::{bucket}", place.partition());
    if let Some(elsewhere) = &seen.elsewhere {
        return Finding::fail(
            check,
            format!("{uri} is in {elsewhere}, and asked for in {}", place.region),
            format!("keep models in a bucket of {}: replicate this one", place.region),
        );
    }
    match (&seen.listed, &seen.read) {
        (Err(fault), None) if fault.kind == FaultKind::NotFound => {
            Finding::fail(check, format!("no bucket {bucket}"), "check the name: buckets are s3://BUCKET/PREFIX")
        }
        (_, Some(Err(fault))) if fault.kind == FaultKind::Denied && fault.message.contains("kms:") => {
            let cure = "allow kms:Decrypt on the bucket's key, in the policy of the role and in that of the key";
            Finding::fail(check, format!("{uri}: {}", fault.message), cure)
        }
        (Ok(_), Some(Err(fault))) if fault.kind == FaultKind::Denied => Finding::fail(
            check,
            format!("{uri} may be listed and not read: {}", fault.message),
            allow("s3:GetObject", &objects, &fault.message),
        ),
        // Both are one answer to whoever may not list: that it may read cannot be seen.
        (Err(_), Some(Err(fault))) if fault.kind == FaultKind::Denied => Finding::fail(
            check,
            format!("{uri} may not be listed, and perhaps not read: {}", fault.message),
            format!("{}; and s3:ListBucket on {whole}", allow("s3:GetObject", &objects, &fault.message)),
        ),
        (Err(list), Some(_)) => Finding::warn(
            check,
            format!("{uri} may be read and not listed: an object that is missing looks forbidden"),
            allow("s3:ListBucket", &whole, &list.message),
        ),
        (Err(fault), None) | (Ok(_), Some(Err(fault))) => {
            let finding = of_fault(check, "s3:ListBucket", &whole, fault, place);
            let cure = finding.cure.map(|cure| cure.replace("AWS_ENDPOINT_URL_KINESIS", "AWS_ENDPOINT_URL_S3"));
            Finding { finding: format!("{uri}: {}", finding.finding), cure, ..finding }
        }
        (Ok(_), Some(Ok(()))) => Finding::ok(check, format!("{uri} may be listed and read")),
        (Ok(_), None) => Finding::ok(check, format!("{uri} may be listed; nothing is there yet to try reading")),
    }
}

/// The object that a start begins from.
pub(super) fn manifest(uri: &str, object: &Result<(bytes::Bytes, Option<Timestamp>), Fault>, place: &Place) -> Finding {
    let check = "manifest";
    let resource = format!("arn:{}:s3:::{}", place.partition(), uri.trim_start_matches("s3://"));
    match object {
        Err(fault) if fault.kind == FaultKind::NotFound => {
            Finding::fail(check, format!("nothing at {uri}"), "check the location (HOTSERVE_MANIFEST), or publish one")
        }
        Err(fault) => {
            let finding = of_fault(check, "s3:GetObject", &resource, fault, place);
            Finding { finding: format!("{uri}: {}", finding.finding), ..finding }
        }
        Ok((bytes, written)) => {
            #[derive(Deserialize)]
            struct Head {
                manifest: u64,
            }
            match serde_json::from_slice(bytes) {
                Ok(Head { manifest: 1 }) => {
                    let written = written.map(|at| format!(", written {} ago", age(since(at)))).unwrap_or_default();
                    Finding::ok(check, format!("{uri}{written}"))
                }
                Ok(Head { manifest }) => Finding::fail(
                    check,
                    format!("{uri} is of version {manifest}, and this program reads version 1"),
                    "use the hotserve of the publisher's version",
                ),
                Err(error) => Finding::fail(
                    check,
                    format!("{uri} is no manifest: {error}"),
                    "check the location (HOTSERVE_MANIFEST), or publish it anew",
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::report::Status;
    use crate::source::kinesis::consumers::ConsumerStatus;

    fn place() -> Place {
        Place { region: "eu-west-1".to_owned(), stream: "s".to_owned(), account: Some("12".to_owned()), key: None }
    }

    fn denied() -> Fault {
        Fault { kind: FaultKind::Denied, message: "AccessDenied: no".to_owned() }
    }

    fn check(finding: &Finding, status: Status, words: &[&str]) {
        let text = format!("{} → {}", finding.finding, finding.cure.as_deref().unwrap_or_default());
        assert_eq!(finding.status, status, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }

    #[test]
    fn a_clock_that_is_off_says_which_way() {
        check(&clock(-400), Status::Ok, &["right"]);
        check(&clock(20_000), Status::Ok, &["20 s behind the service's"]);
        check(&clock(-200_000), Status::Warn, &["ahead of", "timedatectl"]);
        check(&clock(301_000), Status::Fail, &["behind", "5 min", "timedatectl"]);
    }

    #[test]
    fn what_a_stream_is_set_to_is_weighed() {
        let summary = |retention_hours, auto_distribution| Summary {
            arn: String::new(),
            status: "active".to_owned(),
            ready: true,
            on_demand: true,
            retention_hours,
            key: Some("alias/aws/kinesis".to_owned()),
            auto_distribution,
            created_at: Timestamp::UNIX_EPOCH,
        };
        let of = |summary: &Summary, manifest| settings(summary, manifest, "s");
        check(&of(&summary(24, false), false)[0], Status::Warn, &["24 h", "increase-stream-retention-period"]);
        check(&of(&summary(24, false), true)[0], Status::Ok, &["24 h"]);
        check(&of(&summary(168, false), false)[0], Status::Ok, &["7 d"]);
        check(&of(&summary(168, false), false)[1], Status::Ok, &["alias/aws/kinesis", "kms:Decrypt"]);
        check(&of(&summary(168, true), false)[2], Status::Warn, &["AUTO", "--version N"]);
        let updating = Summary { status: "creating".to_owned(), ready: false, ..summary(24, false) };
        check(&stream(&Ok(updating), &[], &place()), Status::Warn, &["creating", "wait"]);
    }

    #[test]
    fn a_stream_without_places_for_consumers_says_how_to_make_some() {
        let consumer = Consumer {
            name: "hotserve-a".to_owned(),
            arn: String::new(),
            status: ConsumerStatus::Active,
            created_at: Timestamp::now(),
        };
        check(&consumers(&Ok(vec![consumer.clone(); 3]), &place()), Status::Ok, &["3 of 20, 3 of hotserve"]);
        check(&consumers(&Ok(vec![consumer; 19]), &place()), Status::Warn, &["19 of 20", "consumers clear"]);
        check(&consumers(&Err(denied()), &place()), Status::Warn, &["kinesis:ListStreamConsumers", "stream/s"]);
    }

    #[test]
    fn what_a_bucket_does_not_allow_is_named() {
        let judged = |listed, read, elsewhere: Option<&str>| {
            let seen = Bucket { elsewhere: elsewhere.map(str::to_owned), listed, read };
            artifacts("models", "prod/", &seen, &place())
        };
        let key = || Ok(Some("prod/m".to_owned()));
        let missing = Fault { kind: FaultKind::NotFound, message: "NoSuchKey".to_owned() };
        let secret = Fault { message: "AccessDenied: not authorized to perform: kms:Decrypt".to_owned(), ..denied() };
        let away = Fault { kind: FaultKind::Unavailable, message: "Connection refused".to_owned() };
        check(&judged(key(), Some(Ok(())), None), Status::Ok, &["listed and read"]);
        check(&judged(Ok(None), None, None), Status::Ok, &["nothing is there yet"]);
        check(&judged(key(), Some(Err(denied())), None), Status::Fail, &["s3:GetObject on arn:aws:s3:::models/prod/*"]);
        check(&judged(key(), Some(Err(secret)), None), Status::Fail, &["kms:Decrypt on the bucket's key"]);
        check(
            &judged(Err(denied()), Some(Err(denied())), None),
            Status::Fail,
            &["s3:GetObject on arn:aws:s3:::models/prod/*", "s3:ListBucket on arn:aws:s3:::models"],
        );
        check(
            &judged(Err(denied()), Some(Err(missing.clone())), None),
            Status::Warn,
            &["looks forbidden", "s3:ListBucket on arn:aws:s3:::models,"],
        );
        check(&judged(Err(missing), None, None), Status::Fail, &["no bucket models"]);
        check(&judged(Err(away), None, None), Status::Fail, &["AWS_ENDPOINT_URL_S3"]);
        check(&judged(Err(denied()), None, Some("us-east-2")), Status::Fail, &["us-east-2", "a bucket of eu-west-1"]);
    }

    #[test]
    fn a_manifest_is_one_that_can_be_read() {
        let judged = |text: &'static str| {
            manifest("s3://models/m.json", &Ok((bytes::Bytes::from_static(text.as_bytes()), None)), &place())
        };
        check(&judged(r#"{"manifest":1,"slots":[]}"#), Status::Ok, &["s3://models/m.json"]);
        check(&judged(r#"{"manifest":2}"#), Status::Fail, &["version 2"]);
        check(&judged("<html>"), Status::Fail, &["no manifest"]);
        let forbidden = manifest("s3://models/m.json", &Err(denied()), &place());
        check(&forbidden, Status::Fail, &["s3:GetObject on arn:aws:s3:::models/m.json"]);
    }
}
