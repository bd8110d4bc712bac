//! From what a service answered to what a person can do about it; pure.

use super::report::Finding;
use crate::aws::{Fault, FaultKind};

/// Where the checks look.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) region: String,
    pub(super) stream: String,
    /// The account, once it is known.
    pub(super) account: Option<String>,
    /// The KMS key of the stream, once it is known.
    pub(super) key: Option<String>,
}

impl Place {
    /// The stream's ARN, as a policy names it.
    pub(super) fn arn(&self) -> String {
        let account = self.account.as_deref().unwrap_or("*");
        format!("arn:{}:kinesis:{}:{account}:stream/{}", self.partition(), self.region, self.stream)
    }

    pub(super) fn partition(&self) -> &'static str {
        if self.region.starts_with("cn-") {
            "aws-cn"
        } else if self.region.starts_with("us-gov-") {
            "aws-us-gov"
        } else {
            "aws"
        }
    }
}

/// The finding of a call that failed. `action` and `resource` are what a policy has to allow.
pub(super) fn of_fault(check: &'static str, action: &str, resource: &str, fault: &Fault, place: &Place) -> Finding {
    let message = &fault.message;
    match fault.kind {
        FaultKind::Denied if message.contains("KMS") || message.contains("kms:") => {
            Finding::fail(check, format!("the key refuses: {message}"), kms(message, place))
        }
        FaultKind::Denied => Finding::fail(check, format!("not allowed: {message}"), allow(action, resource, message)),
        FaultKind::Credentials | FaultKind::Config => Finding::fail(check, message, credentials(message)),
        FaultKind::NotFound => Finding::fail(check, message, "it was there a moment ago: run this again"),
        FaultKind::Throttled => Finding::warn(
            check,
            format!("throttled: {message}"),
            "a shard answers 5 reads a second to all its readers together: raise --poll-interval, or have fewer readers",
        ),
        FaultKind::NotReady => Finding::warn(check, message, "wait, and run this again"),
        FaultKind::ExpiredIterator | FaultKind::InvalidArgument | FaultKind::Unavailable => {
            Finding::fail(check, message, connection(message))
        }
    }
}

/// What lets a call pass.
pub(super) fn allow(action: &str, resource: &str, message: &str) -> String {
    if message.contains("explicit deny") {
        return format!("a policy denies {action} on {resource} explicitly: take it out, for no Allow outweighs it");
    }
    format!("allow {action} on {resource}, in the policy of the role")
}

fn kms(message: &str, place: &Place) -> String {
    let key = place.key.as_deref().unwrap_or("the stream's key");
    if message.contains("Disabled") || message.contains("InvalidState") {
        format!("enable the key in KMS: {key}")
    } else if message.contains("NotFound") {
        format!("the key is gone: give the stream another one, in place of {key}")
    } else {
        format!("allow kms:Decrypt on {key}, in the policy of the role and in that of the key")
    }
}

pub(super) fn credentials(message: &str) -> String {
    if message.contains("Signature") {
        "the secret does not belong to the key, or this machine's clock is wrong (timedatectl)".to_owned()
    } else if message.contains("xpired") {
        "the session is over: sign in again (aws sso login), or fetch a new token".to_owned()
    } else if message.contains("token included in the request is invalid") || message.contains("InvalidAccessKeyId") {
        "this key is not known there: check AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN (a stale one?) and AWS_REGION"
            .to_owned()
    } else {
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (aws configure), or give the instance, task or \
         service account a role"
            .to_owned()
    }
}

/// What to look at when there is no connection, by what the connector says.
pub(super) fn connection(message: &str) -> String {
    if message.contains("Skewed") {
        return "set this machine's clock: timedatectl set-ntp true".to_owned();
    }
    let has = |words: &[&str]| words.iter().any(|word| message.to_ascii_lowercase().contains(word));
    if has(&["dns", "resolve", "lookup"]) {
        "the name is not known: check AWS_REGION and AWS_ENDPOINT_URL_KINESIS, and the DNS of this network".to_owned()
    } else if has(&["refused"]) {
        "nobody listens there: check AWS_ENDPOINT_URL_KINESIS and that what it names is running (hotserve dev?), and \
         HTTPS_PROXY"
            .to_owned()
    } else if has(&["certificate", "tls", "handshake"]) {
        "the certificate is not trusted: behind a proxy that opens TLS, name its authority in SSL_CERT_FILE".to_owned()
    } else {
        "is there a way out of this network? A NAT, a VPC endpoint for kinesis-streams (and its security group), or \
         HTTPS_PROXY; and AWS_ENDPOINT_URL_KINESIS, if it is set"
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::report::Status;

    fn place() -> Place {
        Place { region: "eu-west-1".to_owned(), stream: "s".to_owned(), account: Some("12".to_owned()), key: None }
    }

    fn cure(kind: FaultKind, message: &str) -> String {
        let fault = Fault { kind, message: message.to_owned() };
        let place = Place { key: Some("arn:key".to_owned()), ..place() };
        of_fault("ListShards", "kinesis:ListShards", &place.arn(), &fault, &place).cure.expect("a cure")
    }

    #[test]
    fn every_fault_names_its_cure() {
        for (kind, message, expected) in [
            (
                FaultKind::Denied,
                "AccessDeniedException: no",
                "kinesis:ListShards on arn:aws:kinesis:eu-west-1:12:stream/s",
            ),
            (FaultKind::Denied, "AccessDenied: with an explicit deny", "take it out"),
            (FaultKind::Denied, "KMSAccessDeniedException: no", "kms:Decrypt on arn:key"),
            (FaultKind::Denied, "KMSDisabledException: off", "enable the key"),
            (FaultKind::Denied, "KMSNotFoundException: what", "another one"),
            (FaultKind::Credentials, "ExpiredTokenException: late", "sign in again"),
            (FaultKind::Credentials, "InvalidSignatureException: Signature expired: 2 < 3", "clock"),
            (FaultKind::Credentials, "InvalidSignatureException: The request signature we", "secret"),
            (FaultKind::Credentials, "X: The security token included in the request is invalid.", "AWS_ACCESS_KEY_ID"),
            (FaultKind::Credentials, "no AWS credentials (…)", "give the instance"),
            (FaultKind::Credentials, "the SSO session has expired", "sign in again"),
            (FaultKind::Unavailable, "RequestTimeTooSkewed: what", "set-ntp"),
            (FaultKind::Throttled, "slow", "--poll-interval"),
            (FaultKind::Unavailable, "dns error: failed to lookup", "AWS_REGION"),
            (FaultKind::Unavailable, "Connection refused (os error 111)", "nobody listens"),
            (FaultKind::Unavailable, "invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
            (FaultKind::Unavailable, "no answer within 8 s", "VPC endpoint"),
        ] {
            let cure = cure(kind, message);
            assert!(cure.contains(expected), "{message}: {cure}");
        }
    }

    #[test]
    fn a_throttle_is_no_failure_and_an_unknown_account_is_a_wildcard() {
        let fault = Fault { kind: FaultKind::Throttled, message: "slow".to_owned() };
        assert_eq!(of_fault("GetRecords", "", "", &fault, &place()).status, Status::Warn);
        let china = Place { region: "cn-north-1".to_owned(), account: None, ..place() };
        assert_eq!(china.arn(), "arn:aws-cn:kinesis:cn-north-1:*:stream/s");
    }
}
