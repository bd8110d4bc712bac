//! Where a manifest lies.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// `s3://bucket/prefix/manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestUri {
    bucket: String,
    key: String,
}

impl ManifestUri {
    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key of the object.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Reads the setting; an empty one is none, as a variable of a deployment that has no manifest.
    pub fn from_setting(text: Option<String>) -> Result<Option<Self>, Error> {
        text.filter(|text| !text.is_empty()).map(|text| text.parse()).transpose()
    }
}

impl FromStr for ManifestUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let sound = |bucket: &str, key: &str| {
            let strange = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '\\' | '?' | '#' | '%');
            (3..=63).contains(&bucket.len())
                && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
                && key.len() <= 1024
                && !key.chars().any(strange)
                && !key.split('/').any(|segment| matches!(segment, "" | "." | ".."))
        };
        match text.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
            Some((bucket, key)) if sound(bucket, key) => Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() }),
            _ => {
                let problem = format!("{text:?} is no object of S3: write s3://bucket/prefix/manifest.json");
                Err(Error::new("--manifest (HOTSERVE_MANIFEST)", problem))
            }
        }
    }
}

impl fmt::Display for ManifestUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_object_of_s3_is_a_place_for_a_manifest() {
        for good in ["s3://bucket/manifest.json", "s3://my-bucket.eu/prod/manifest.json"] {
            assert_eq!(good.parse::<ManifestUri>().expect(good).to_string(), good);
        }
        for bad in [
            "manifest.json",
            "s3://bucket",
            "s3://bucket/",
            "s3://b/m",
            "s3://Bucket/m",
            "s3://bucket/a/../m",
            "s3://bucket//m",
            "s3://bucket/m?versionId=1",
            "file:///m",
        ] {
            assert!(bad.parse::<ManifestUri>().is_err(), "{bad}");
        }
        assert!(matches!(ManifestUri::from_setting(Some(String::new())), Ok(None)));
    }
}
