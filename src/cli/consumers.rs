//! `hotserve consumers`: what is registered with the stream for enhanced fan-out, and the way to get rid of it.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;

use super::paint::{age, printable, since};
use super::target::Target;
use crate::aws::FaultKind;
use crate::config::{self, HumanDuration};
use crate::source::kinesis::consumers::{Consumer, ConsumerStatus, Consumers, PREFIX};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the registered consumers
    List(List),
    /// Deregister consumers that instances left behind
    ///
    /// Without names, only those that hotserve registered itself: their names begin with "hotserve-". It is safe: an
    /// instance that is still alive loses its subscription, registers itself again, and goes on behind the last record
    /// that it read.
    Clear(Clear),
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct Clear {
    /// These, whoever registered them [default: all of hotserve that are old enough]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only those registered longer ago than this; required unless names are given
    #[arg(long, value_name = "DURATION")]
    older_than: Option<HumanDuration>,
    /// Only say which it would be
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        What::List(list) => show(list).await,
        What::Clear(args) => clear(args).await,
    }
}

async fn show(args: List) -> anyhow::Result<()> {
    let target = args.target.resolve().await?;
    let stream = target.stream()?;
    let all = Consumers::new(&target.aws, stream).list().await.context("list the consumers")?;
    // A closed pipe is no reason to fail.
    let _ = std::io::stdout().write_all(table(stream, &all).as_bytes());
    Ok(())
}

fn table(stream: &str, consumers: &[Consumer]) -> String {
    use std::fmt::Write as _;
    if consumers.is_empty() {
        return format!("no consumer is registered with stream {stream}\n");
    }
    let width = consumers.iter().map(|consumer| consumer.name.len()).max().unwrap_or(0).max("NAME".len());
    let mut text = format!("{:<width$}  {:<8}  {:<20}  AGE\n", "NAME", "STATUS", "CREATED");
    for Consumer { name, status, created_at, .. } in consumers {
        let (name, age) = (printable(name), age(since(*created_at)));
        let _ = writeln!(text, "{name:<width$}  {status:<8}  {created_at:<20.0}  {age}");
    }
    text
}

async fn clear(args: Clear) -> anyhow::Result<()> {
    if args.names.is_empty() && args.older_than.is_none() {
        let problem = "missing: say how old, as in --older-than 1h, or name the consumers";
        return Err(config::Error::new("--older-than", problem).into());
    }
    let target = args.target.resolve().await?;
    let consumers = Consumers::new(&target.aws, target.stream()?);
    let all = consumers.list().await.context("list the consumers")?;
    if let Some(missing) = args.names.iter().find(|name| !all.iter().any(|consumer| consumer.name == **name)) {
        bail!(
            "no consumer {missing:?} is registered with stream {}; hotserve consumers list shows them",
            target.stream()?
        );
    }
    let older_than = args.older_than.map_or(Duration::ZERO, |age| age.0);
    let chosen = choose(all, &args.names, |consumer| since(consumer.created_at) >= older_than);
    if chosen.is_empty() {
        println!("nothing to remove: no consumer {PREFIX}* is that old");
    }
    for consumer in chosen {
        let (name, age) = (printable(&consumer.name), age(since(consumer.created_at)));
        if args.dry_run {
            println!("would remove {name} ({}, {age} old)", consumer.status);
            continue;
        }
        remove(&consumers, &consumer).await.with_context(|| format!("remove {name}"))?;
        println!("removed {name} ({}, {age} old)", consumer.status);
    }
    Ok(())
}

/// The named ones, or all of ours; in either case only those that are old enough and not going already.
fn choose(all: Vec<Consumer>, names: &[String], old_enough: impl Fn(&Consumer) -> bool) -> Vec<Consumer> {
    let meant =
        |consumer: &Consumer| if names.is_empty() { consumer.is_ours() } else { names.contains(&consumer.name) };
    all.into_iter()
        .filter(|consumer| consumer.status != ConsumerStatus::Deleting && meant(consumer) && old_enough(consumer))
        .collect()
}

/// Five calls a second are allowed, to the whole account: the others may be using them.
async fn remove(consumers: &Consumers, consumer: &Consumer) -> anyhow::Result<()> {
    for _ in 0..20 {
        match consumers.deregister(&consumer.arn).await {
            Err(fault) if fault.kind == FaultKind::Throttled => tokio::time::sleep(Duration::from_millis(500)).await,
            result => return Ok(result?),
        }
    }
    Ok(consumers.deregister(&consumer.arn).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(name: &str, status: ConsumerStatus) -> Consumer {
        let created_at = "2026-11-23T18:00:00Z".parse().expect("a time");
        Consumer { name: name.to_owned(), arn: format!("arn:{name}"), status, created_at }
    }

    #[test]
    fn only_ours_go_unless_named() {
        let all = || {
            vec![
                consumer("hotserve-a", ConsumerStatus::Active),
                consumer("hotserve-b", ConsumerStatus::Deleting),
                consumer("billing", ConsumerStatus::Active),
            ]
        };
        let chosen = |names: &[&str], old: bool| -> Vec<String> {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            choose(all(), &names, |_| old).into_iter().map(|consumer| consumer.name).collect()
        };
        assert_eq!(chosen(&[], true), ["hotserve-a"]);
        assert_eq!(chosen(&["billing"], true), ["billing"]);
        assert!(chosen(&["billing"], false).is_empty());
    }

    #[test]
    fn the_table_is_aligned() {
        let text = table("s", &[consumer("hotserve-long-name", ConsumerStatus::Creating)]);
        let (head, line) = text.trim_end().split_once('\n').expect("two lines");
        for (title, value) in [("STATUS", "creating"), ("CREATED", "2026-11-23T18:00:00Z")] {
            assert_eq!(head.find(title), line.find(value), "{text}");
        }
    }
}
