//! The other end of the stream: uploads an artifact to a key of its own, enters it into the manifest, announces it.
//!
//! Upload first, then the manifest, then the announcement: whoever reads one finds the other. The key holds the digest,
//! so that an object is never overwritten.
#![expect(clippy::disallowed_types, reason = "an adapter")]

mod draft;
mod place;

use std::path::Path;
use std::sync::Arc;

use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use base64::Engine as _;
use http_body_util::BodyExt as _;
use serde_json::value::RawValue;

pub use self::draft::{Draft, Model, Place};
pub use self::place::Step;
use crate::aws::{Aws, Fault, FaultKind, Retries, ServerClock};
use crate::id::{Digest, Slot, Version};
use crate::manifest::object::ManifestObject;
use crate::manifest::update::{Change, update};
use crate::manifest::{self, Entry, Manifest};
use crate::notification::{Action, Control, envelope};
use crate::trust::SigningKey;

/// The largest message, with its partition key: Kinesis' own limit, unless a stream is set to allow more.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Publishes to one stream.
pub struct Publisher {
    kinesis: aws_sdk_kinesis::Client,
    s3: aws_sdk_s3::Client,
    stream: String,
    manifest: Option<ManifestObject>,
    /// The keys that sign everything.
    signing_keys: Vec<SigningKey>,
}

/// What was published.
#[derive(Debug, Clone)]
pub struct Published {
    /// Its version.
    pub version: Option<Version>,
    /// Whether the version is the one after the manifest's, for the caller gave none.
    pub assigned: bool,
    /// Where the message went.
    pub receipt: Receipt,
}

/// Where a message went.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// The shard.
    pub shard: String,
    /// Its place there.
    pub sequence_number: String,
}

/// Why something was not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The message does not fit into a record.
    #[error(
        "the message has {bytes} bytes, and a record holds {MAX_MESSAGE}: upload the model with --to s3://bucket/prefix"
    )]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// The artifact could not be stored.
    #[error("upload to s3://{bucket}/{key}")]
    Upload {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// What S3 said.
        source: Fault,
    },
    /// The artifact could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The artifact has no place of its own there.
    #[error("upload to {uri}: {detail}")]
    Place {
        /// Where it was to go.
        uri: String,
        /// What is wrong with that.
        detail: String,
    },
    /// The message says something that no server would take.
    #[error("the message is not one that a server takes: {0}")]
    Message(String),
    /// What is signed would be good for ever.
    #[error(
        "{slot} is to be signed, and leaves a version open: whoever can write to the stream could publish it again; give \
         --version (--to and --from for a rollback), or --manifest to have it filled in"
    )]
    SignedWithoutVersion {
        /// The slot.
        slot: Slot,
    },
    /// A command leaves open what the manifest does not know either.
    #[error("the manifest does not have the versions of {slot} that the command leaves open: give {what}")]
    OpenCommand {
        /// The slot.
        slot: Slot,
        /// The flag.
        what: &'static str,
    },
    /// A rollback to what is the newest already.
    #[error("nothing above {to} is announced for {slot}: there is nothing to take back")]
    NothingAbove {
        /// The slot.
        slot: Slot,
        /// Where to go back to.
        to: Version,
    },
    /// The manifest could not be written.
    #[error("enter it into the manifest (nothing was announced)")]
    Manifest(#[from] manifest::Error),
    /// The manifest has something newer.
    #[error(
        "the manifest has {slot} version {held} already, so that version {given} would never be served: publish a \
         higher one, or without --version the next one"
    )]
    Outdated {
        /// The slot.
        slot: Slot,
        /// The version in the manifest.
        held: Version,
        /// The version given.
        given: Version,
    },
    /// There is no telling which version comes next.
    #[error(
        "the manifest has {entries} entries that this program cannot read, and their versions are not known: upgrade \
         hotserve, give --version, or look at them with hotserve manifest show"
    )]
    NoNextVersion {
        /// How many.
        entries: usize,
    },
    /// The manifest has it, the stream has not.
    #[error(
        "{slot} version {version} is in the manifest but could not be announced: servers with --manifest take it at \
         their next read, within 30 s by default; others do not hear of it until it is published again with --version \
         {version}"
    )]
    NotAnnounced {
        /// The slot.
        slot: Slot,
        /// Its version.
        version: Version,
        /// Why not.
        source: Box<Self>,
    },
    /// The message could not be put.
    #[error("put the message into stream {stream:?}")]
    Announce {
        /// The stream.
        stream: String,
        /// What Kinesis said.
        source: Fault,
    },
}

impl Publisher {
    /// A publisher to this stream.
    pub fn new(aws: &Aws, stream: String) -> Self {
        let clock = Arc::new(ServerClock::default());
        let (kinesis, s3) = (aws.kinesis(Retries::Standard, &clock), aws.s3(Retries::Standard));
        Self { kinesis, s3, stream, manifest: None, signing_keys: Vec::new() }
    }

    /// The same, that enters everything into a manifest before it is announced.
    #[must_use]
    pub fn with_manifest(self, manifest: Option<ManifestObject>) -> Self {
        Self { manifest, ..self }
    }

    /// The same, that signs everything with these keys.
    #[must_use]
    pub fn with_signing_keys(self, signing_keys: Vec<SigningKey>) -> Self {
        Self { signing_keys, ..self }
    }

    /// Enters a draft into the manifest, if there is one, and announces it.
    pub async fn publish(&self, draft: Draft) -> Result<Published, Error> {
        // Before the manifest is written: what is in it must be announceable.
        check_size(&draft.partition_key(), &self.render(&draft)?)?;
        let Some(object) = &self.manifest else {
            // What its meaning depends on when it is read could be played again, signature and all.
            let may_be_played_again = match draft.told() {
                Some(control) => control.may_be_played_again(true),
                None => draft.version().is_some(),
            };
            if !self.signing_keys.is_empty() && !may_be_played_again {
                return Err(Error::SignedWithoutVersion { slot: draft.slot() });
            }
            let receipt = self.announce(&draft.partition_key(), &self.render(&draft)?).await?;
            return Ok(Published { version: draft.version(), assigned: false, receipt });
        };
        let assigned = draft.version().is_none() && draft.told().is_none();
        let mut tried = None;
        let limits = manifest::Limits::default();
        let draft = update(object, &limits, |manifest| {
            manifest.belongs_to(&self.stream)?;
            // An answer that was lost: what looks like somebody else's write is the one from before.
            if let Some(before) = tried.take().filter(|before| self.is_held(manifest, before)) {
                return Ok((before, Change::Leave));
            }
            let draft = match draft.told() {
                Some(control) => draft.clone().with_control(explicit(control, manifest)?),
                None => versioned(&draft, manifest)?,
            };
            let text = String::from_utf8(self.render(&draft)?).map_err(|error| Error::Message(error.to_string()))?;
            let message = RawValue::from_string(text).map_err(|error| Error::Message(error.to_string()))?;
            let entry = Entry::new(message, None, &limits.message).map_err(Error::Message)?;
            let change = if manifest.fold(entry)? { Change::Write } else { Change::Leave };
            tried = Some(draft.clone());
            Ok::<_, Error>((draft, change))
        })
        .await?;
        let version = draft.version();
        match (self.announce(&draft.partition_key(), &self.render(&draft)?).await, version) {
            (Ok(receipt), _) => Ok(Published { version, assigned, receipt }),
            (Err(error), Some(version)) => {
                Err(Error::NotAnnounced { slot: draft.slot(), version, source: Box::new(error) })
            }
            (Err(error), None) => Err(error),
        }
    }

    /// The message as it is published. The same draft gives the same bytes, for Ed25519 has no chance in it.
    fn render(&self, draft: &Draft) -> Result<Vec<u8>, Error> {
        let broken = |error: serde_json::Error| Error::Message(error.to_string());
        let message = serde_json::to_vec(draft).map_err(broken)?;
        if self.signing_keys.is_empty() {
            Ok(message)
        } else {
            envelope::seal(&message, &self.signing_keys).map_err(broken)
        }
    }

    /// Whether the manifest holds this very message.
    fn is_held(&self, manifest: &Manifest, draft: &Draft) -> bool {
        let message = self.render(draft).unwrap_or_default();
        manifest.entries().any(|entry| entry.message().as_bytes() == message)
    }

    /// Puts a message. Messages with the same partition key keep their order.
    pub async fn announce(&self, partition_key: &str, message: &[u8]) -> Result<Receipt, Error> {
        check_size(partition_key, message)?;
        let put = self.kinesis.put_record().stream_name(&self.stream).partition_key(partition_key);
        let answer = put
            .data(Blob::new(message))
            .send()
            .await
            .map_err(|error| Error::Announce { stream: self.stream.clone(), source: Fault::of(&error) })?;
        Ok(Receipt { shard: answer.shard_id, sequence_number: answer.sequence_number })
    }

    /// Stores a file under a key. S3 proves the digest too; `progress` hears of every piece that is sent.
    pub async fn upload(
        &self,
        bucket: &str,
        key: &str,
        path: &Path,
        size: u64,
        digest: &Digest,
        progress: impl Fn(u64) + Clone + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let body = ByteStream::from_path(path)
            .await
            .map_err(|error| Error::Read { path: path.display().to_string(), source: std::io::Error::other(error) })?;
        let put = self
            .s3
            .put_object()
            .bucket(bucket)
            .key(key)
            .content_length(i64::try_from(size).unwrap_or(i64::MAX))
            .checksum_sha256(base64::engine::general_purpose::STANDARD.encode(digest.as_bytes()))
            .body(body)
            .customize()
            .mutate_request(move |request| {
                let progress = progress.clone();
                let body = std::mem::replace(request.body_mut(), SdkBody::taken());
                *request.body_mut() = body.map_preserve_contents(move |body| {
                    let progress = progress.clone();
                    SdkBody::from_body_1_x(body.map_frame(move |frame| {
                        progress(frame.data_ref().map_or(0, |data| data.len() as u64));
                        frame
                    }))
                });
            });
        put.send().await.map_err(|error| Error::Upload {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            source: Fault::of(&error),
        })?;
        Ok(())
    }

    /// Makes the stream, if it is not there, and waits until it can be used. Answers whether it was made.
    pub async fn ensure_stream(&self, shards: i32) -> Result<bool, Error> {
        let failed = |source| Error::Announce { stream: self.stream.clone(), source };
        let made = match self.kinesis.create_stream().stream_name(&self.stream).shard_count(shards).send().await {
            Ok(_) => true,
            Err(error) => match Fault::of(&error) {
                Fault { kind: FaultKind::NotReady, .. } => false,
                fault => return Err(failed(fault)),
            },
        };
        for _ in 0..200 {
            let answer = self.kinesis.describe_stream_summary().stream_name(&self.stream).send().await;
            let summary = answer.map_err(|error| failed(Fault::of(&error)))?.stream_description_summary;
            if summary.is_some_and(|summary| summary.stream_status == aws_sdk_kinesis::types::StreamStatus::Active) {
                return Ok(made);
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        let message = "the stream does not become active".to_owned();
        Err(failed(Fault { kind: FaultKind::NotReady, message }))
    }

    /// Makes the bucket, if it is not there.
    pub async fn ensure_bucket(&self, bucket: &str) -> Result<(), Error> {
        if self.s3.head_bucket().bucket(bucket).send().await.is_ok() {
            return Ok(());
        }
        self.s3.create_bucket().bucket(bucket).send().await.map(|_| ()).map_err(|error| Error::Upload {
            bucket: bucket.to_owned(),
            key: String::new(),
            source: Fault::of(&error),
        })
    }
}

fn check_size(partition_key: &str, message: &[u8]) -> Result<(), Error> {
    if message.len() + partition_key.len() > MAX_MESSAGE {
        return Err(Error::TooLarge { bytes: message.len() });
    }
    Ok(())
}

/// The draft with a version: its own, if that is news, else the one after the manifest's.
fn versioned(draft: &Draft, manifest: &Manifest) -> Result<Draft, Error> {
    let slot = draft.slot();
    let held = manifest.held(&slot).and_then(|held| held.rank.version());
    match (draft.version(), held) {
        (Some(given), Some(held)) if given < held => Err(Error::Outdated { slot, held, given }),
        // Of the same version the fold takes the same content again, and refuses another.
        (Some(_), _) => Ok(draft.clone()),
        (None, _) if !manifest.unreadable().is_empty() => {
            Err(Error::NoNextVersion { entries: manifest.unreadable().len() })
        }
        (None, held) => {
            // A version is above every place in the stream, so the first one is above what has none.
            let next = held.map_or(1, |held| held.get() + 1);
            let next = Version::try_from(next).map_err(|error| Error::Message(error.to_string()))?;
            Ok(draft.clone().with_version(next))
        }
    }
}

/// The command with the versions that it leaves open, as the manifest has them: what it means must not depend on when
/// it is read.
fn explicit(control: &Control, manifest: &Manifest) -> Result<Control, Error> {
    let Control { slot, action } = control;
    let newest = manifest.held(slot).and_then(|held| held.rank.version());
    // What is served where everything was obeyed, and what comes before it.
    let good = |held: &manifest::Held<'_>| !manifest.is_barred(slot, held.rank);
    let mut kept = manifest.kept(slot).filter(good).filter_map(|held| held.rank.version());
    let (served, before) = (kept.next(), kept.next());
    let open = |what: &'static str| Error::OpenCommand { slot: slot.clone(), what };
    let action = match *action {
        Action::Pin(None) => Action::Pin(Some(served.ok_or_else(|| open("--version"))?)),
        Action::Rollback { to, from } => {
            let (to, from) = (to.or(before), from.or(newest));
            let (to, from) = (to.ok_or_else(|| open("--to"))?, from.ok_or_else(|| open("--from"))?);
            if to >= from {
                return Err(Error::NothingAbove { slot: slot.clone(), to });
            }
            Action::Rollback { to: Some(to), from: Some(from) }
        }
        action => action,
    };
    Ok(Control { slot: slot.clone(), action })
}
