//! `hotserve doctor`: looks at everything that a server needs of AWS, and says what is wrong with its cure.
//!
//! ```text
//!   probe, last: what is there ─► judge, cure: what to say about it (pure) ─► report: how it is shown
//! ```

mod cure;
mod judge;
mod last;
mod probe;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use self::cure::{Place, of_fault};
use self::probe::Probe;
use self::report::{Finding, Report};
use super::target::{Resolved, Target};
use crate::aws::{Aws, FaultKind};
use crate::config::{self, Settings};
use crate::source::kinesis::consumers::{Consumer, ConsumerStatus, Consumers};

/// Check what a server needs: credentials, permissions, stream, shards, buckets; each line with its cure
///
/// Nothing is changed or published. Ends with 0 if a server would serve (warnings included), 1 if a check failed, 64 if
/// a setting is wrong.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The TOML file of the server
    #[arg(long, env = "HOTSERVE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// Where artifacts lie, repeatable [default: what --allow names]
    #[arg(long, env = "HOTSERVE_PUBLISH_TO", value_name = "s3://BUCKET/PREFIX", value_delimiter = ',')]
    artifacts: Vec<String>,
    /// Where the server takes artifacts from
    #[arg(long, env = "HOTSERVE_ALLOW", value_name = "URI", value_delimiter = ',')]
    allow: Vec<String>,
    /// Print a JSON array of {check, status, finding, cure}
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(mut args: Args) -> anyhow::Result<ExitCode> {
    let file = args.config.as_deref().map(Settings::from_file).transpose()?.unwrap_or_default();
    args.target.stream = args.target.stream.take().or(file.stream.clone());
    let target = args.target.locate().await?;
    let stream = target.stream()?.to_owned();
    let Resolved { aws, manifest, bucket, .. } = target;
    let settings = Settings { stream: Some(stream.clone()), allow: args.allow, ..Settings::default() }.or(file);
    let mut artifacts = if args.artifacts.is_empty() { settings.allow.clone() } else { args.artifacts };
    // As the server would: what is wrong with a setting is said before anything is asked.
    let manifest = manifest.or(settings.validate()?.manifest.map(|manifest| manifest.uri));
    artifacts.extend(bucket.map(|bucket| format!("s3://{bucket}/models")).filter(|_| artifacts.is_empty()));
    let artifacts: Vec<_> = artifacts
        .iter()
        .filter(|uri| !uri.starts_with("file://"))
        .map(|uri| split("--artifacts (HOTSERVE_PUBLISH_TO)", uri))
        .collect::<Result<_, _>>()?;
    let manifest = manifest.map(|uri| split("--manifest (HOTSERVE_MANIFEST)", &uri.to_string())).transpose()?;

    let place = Place { region: aws.region().unwrap_or_default().to_owned(), stream, account: None, key: None };
    let doctor = Doctor {
        probe: Probe::new(&aws, &place.stream),
        aws,
        place,
        artifacts,
        manifest,
        report: Report::new(args.json),
    };
    doctor.examine().await.end()
}

/// Bucket, and prefix or key.
fn split(setting: &str, uri: &str) -> Result<(String, String), config::Error> {
    let wrong = || config::Error::new(setting, format!("{uri:?} is no s3://bucket/prefix"));
    let rest = uri.strip_prefix("s3://").ok_or_else(wrong)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() { Err(wrong()) } else { Ok((bucket.to_owned(), prefix.to_owned())) }
}

struct Doctor {
    aws: Aws,
    probe: Probe,
    place: Place,
    artifacts: Vec<(String, String)>,
    manifest: Option<(String, String)>,
    report: Report,
}

impl Doctor {
    async fn examine(mut self) -> Report {
        self.report.add(judge::region(self.aws.region()));
        if self.aws.region().is_none() {
            self.report.add(Finding::skip("the rest", "needs a region"));
            return self.report;
        }
        let reached = self.probe.reach().await;
        let configured = self.aws.endpoint_override("kinesis");
        self.report.add(judge::endpoint(&reached, configured.is_some()));
        if let Ok((_, ahead_ms)) = reached.answer {
            self.report.add(judge::clock(ahead_ms));
        }
        let found = self.aws.credentials().await;
        self.report.add(judge::found_credentials(&found));
        if found.is_err() {
            self.report.add(Finding::skip("the rest", "needs credentials"));
            return self.report;
        }
        self.identity().await;
        if reached.answer.is_ok() {
            self.stream().await;
        } else {
            self.report.add(Finding::skip("stream", "needs the endpoint"));
        }
        self.buckets().await;
        self.report
    }

    /// Whether Kinesis is played by another program.
    fn is_stand_in(&self) -> bool {
        let host = |url: String| url.split("://").nth(1)?.split(['/', ':']).next().map(str::to_owned);
        let of_aws =
            |host: &str| [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"].iter().any(|end| host.ends_with(end));
        self.aws.endpoint_override("kinesis").is_some_and(|url| !host(url).is_some_and(|host| of_aws(&host)))
    }

    async fn identity(&mut self) {
        if self.is_stand_in() && self.aws.endpoint_override("sts").is_none() {
            let why = "not asked: the endpoint is a stand-in, and AWS_ENDPOINT_URL_STS names none for STS";
            self.report.add(Finding::skip("identity", why));
            return;
        }
        let arn = self.aws.identity().await;
        self.place.account = arn.as_ref().ok().and_then(|arn| arn.split(':').nth(4)).map(str::to_owned);
        self.report.add(judge::identity(&arn));
    }

    async fn stream(&mut self) {
        let summary = self.probe.summary().await;
        let missing = summary.as_ref().is_err_and(|fault| fault.kind == FaultKind::NotFound);
        let others = if missing { self.probe.streams().await } else { Vec::new() };
        self.report.add(judge::stream(&summary, &others, &self.place));
        if let Ok(summary) = &summary {
            self.place.account = summary.arn.split(':').nth(4).map(str::to_owned);
            self.place.key.clone_from(&summary.key);
        }
        // One that may not be described can be read all the same.
        if missing || summary.as_ref().is_ok_and(|summary| !summary.ready) {
            return;
        }
        let (shard, readable) = self.permissions().await;
        if let Ok(summary) = &summary {
            for finding in judge::settings(summary, self.manifest.is_some(), &self.place.stream) {
                self.report.add(finding);
            }
            self.consumers(shard.as_deref()).await;
        }
        if readable {
            let last = last::look(&self.aws, &self.place.stream).await;
            self.report.add(judge::last_message(&last, summary.ok().map(|summary| summary.retention_hours)));
        } else {
            self.report.add(Finding::skip("last message", "needs the permission to read"));
        }
    }

    /// The calls that a reader makes. Answers an open shard, and whether it can be read.
    ///
    /// They are made, not tried with `DryRun`: a real one proves the key's permission too, and works with stand-ins.
    async fn permissions(&mut self) -> (Option<String>, bool) {
        let of_fault =
            |check, fault: &_, place: &Place| of_fault(check, &format!("kinesis:{check}"), &place.arn(), fault, place);
        let shard = match self.probe.shards().await {
            Ok(shards) => {
                self.report.add(Finding::ok("ListShards", "allowed"));
                self.report.add(judge::shards(&shards));
                shards.open.into_iter().next()
            }
            Err(fault) => {
                self.report.add(of_fault("ListShards", &fault, &self.place));
                None
            }
        };
        // The first shard of every stream that was never resharded: enough to see the permission.
        let tried = shard.clone().unwrap_or_else(|| "shardId-000000000000".to_owned());
        let iterator = match self.probe.iterator(&tried).await {
            Err(fault) if shard.is_some() || fault.kind == FaultKind::Denied => {
                self.report.add(of_fault("GetShardIterator", &fault, &self.place));
                return (shard, false);
            }
            Err(_) => {
                self.report.add(Finding::skip("GetShardIterator", "needs a shard"));
                return (shard, false);
            }
            Ok(iterator) => iterator,
        };
        self.report.add(Finding::ok("GetShardIterator", "allowed"));
        match self.probe.tip(&iterator).await {
            Ok(tip) => self.report.add(judge::tip(&tip)),
            Err(fault) => {
                let throttled = fault.kind == FaultKind::Throttled;
                self.report.add(of_fault("GetRecords", &fault, &self.place));
                return (shard.clone(), throttled && shard.is_some());
            }
        }
        let readable = shard.is_some();
        (shard, readable)
    }

    async fn consumers(&mut self, shard: Option<&str>) {
        let found = Consumers::new(&self.aws, &self.place.stream).list().await;
        self.report.add(judge::consumers(&found, &self.place));
        let active = |consumer: &Consumer| consumer.is_ours() && consumer.status == ConsumerStatus::Active;
        let consumer = found.ok().and_then(|all| all.into_iter().find(active));
        if let (Some(consumer), Some(shard), false) = (consumer, shard, self.is_stand_in()) {
            let check = "SubscribeToShard";
            let resource = format!("{}/consumer/*", self.place.arn());
            self.report.add(match self.probe.may_subscribe(&consumer.arn, shard).await {
                Ok(()) => Finding::ok(check, "allowed"),
                Err(fault) => of_fault(check, "kinesis:SubscribeToShard", &resource, &fault, &self.place),
            });
        }
    }

    async fn buckets(&mut self) {
        if self.artifacts.is_empty() {
            let why = "no bucket is named: --artifacts s3://bucket/prefix (HOTSERVE_PUBLISH_TO), or --allow";
            self.report.add(Finding::skip("artifacts", why));
        }
        for (bucket, prefix) in &self.artifacts {
            let seen = self.probe.bucket(bucket, prefix).await;
            self.report.add(judge::artifacts(bucket, prefix, &seen, &self.place));
        }
        if let Some((bucket, key)) = &self.manifest {
            let object = self.probe.object(bucket, key).await;
            self.report.add(judge::manifest(&format!("s3://{bucket}/{key}"), &object, &self.place));
        }
    }
}
