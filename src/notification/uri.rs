//! Where an artifact lies: a grammar that admits what is safe, instead of a list of what is not.

use std::fmt;
use std::str::FromStr;

/// `s3://bucket/key`, or `file:///absolute/path` where the configuration allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArtifactUri {
    /// An object of a bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// The key, without a leading slash.
        key: String,
    },
    /// A file of this machine.
    File {
        /// An absolute path without `.` and `..`.
        path: String,
    },
}

/// Why a text is no [`ArtifactUri`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UriError(&'static str);

impl FromStr for ArtifactUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.len() > 2048 {
            return Err(UriError("a uri has at most 2048 bytes"));
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, key) = rest.split_once('/').ok_or(UriError("an s3 uri is s3://bucket/key"))?;
            if !is_bucket(bucket) {
                return Err(UriError("a bucket has 3 to 63 lower-case letters, digits, '.' and '-'"));
            }
            check_segments(key)?;
            Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
        } else if let Some(path) = text.strip_prefix("file://") {
            let inner = path.strip_prefix('/').ok_or(UriError("a file uri is file:///absolute/path"))?;
            check_segments(inner)?;
            Ok(Self::File { path: path.to_owned() })
        } else {
            Err(UriError("a uri begins with s3:// (or file://, where the configuration allows it)"))
        }
    }
}

impl fmt::Display for ArtifactUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            Self::File { path } => write!(f, "file://{path}"),
        }
    }
}

fn is_bucket(bucket: &str) -> bool {
    (3..=63).contains(&bucket.len())
        && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
        && bucket.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && !bucket.contains("..")
}

fn check_segments(path: &str) -> Result<(), UriError> {
    if path.chars().any(|c| c.is_control() || matches!(c, '\\' | '?' | '#' | '%')) {
        return Err(UriError("a uri has no control characters, '\\', '?', '#' or '%'"));
    }
    if path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(UriError("a uri's path has no empty, '.' or '..' segment"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_locations_parse() {
        for good in ["s3://models/fraud/12/model.ubj", "s3://a.b-c/k", "file:///srv/m.json"] {
            assert_eq!(good.parse::<ArtifactUri>().expect(good).to_string(), good);
        }
        for bad in [
            "",
            "model.ubj",
            "../model.ubj",
            "/etc/passwd",
            "http://169.254.169.254/latest",
            "s3://models",
            "s3://models/",
            "s3:///key",
            "s3://mo/k",
            "s3://Models/k",
            "s3://user@models/k",
            "s3://models/a/../b",
            "s3://models/./b",
            "s3://models//b",
            "s3://models/a?versionId=1",
            "s3://models/a#b",
            "s3://models/%2e%2e/b",
            "s3://models/a\\b",
            "s3://models/a\nb",
            "file://etc/passwd",
            "file:///srv/../etc/passwd",
            "S3://models/k",
        ] {
            assert!(bad.parse::<ArtifactUri>().is_err(), "{bad:?}");
        }
    }
}
