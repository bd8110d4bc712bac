//! `hotserve rollback`, `pin`, `unpin` and `revoke`: tell a server what a slot may serve.
//!
//! `hotserve publish control` tells all of them the same by the stream; only where it goes differs.

mod server;

use clap::Subcommand;
use serde::Deserialize;

pub(super) use self::server::Server;
use crate::config;
use crate::id::{Digest, ModelName, Slot, StateKey, Version};
use crate::notification::{Action, Control};

/// A command and where it goes.
#[derive(Debug, Subcommand)]
pub(super) enum Command<T: clap::Args> {
    /// Take back what a slot serves: the version before is served until something newer is published
    Rollback(Rollback<T>),
    /// Hold a slot at a version, whatever is published
    Pin(Pin<T>),
    /// Let a slot serve the newest again
    Unpin(Unpin<T>),
    /// Never serve a version, or an artifact, again
    Revoke(Revoke<T>),
}

/// Which slot.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// Which model
    #[arg(long, value_name = "NAME")]
    model: Option<ModelName>,
    /// Which state, by its key
    #[arg(long, value_name = "KEY")]
    key: Option<StateKey>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Rollback<T: clap::Args> {
    #[command(flatten)]
    which: Which,
    /// The version to go back to [default: the one before]
    #[arg(long, value_name = "VERSION")]
    to: Option<Version>,
    /// The newest version that is taken back [default: the newest announced]
    #[arg(long, value_name = "VERSION", requires = "to")]
    from: Option<Version>,
    #[command(flatten)]
    target: T,
}

#[derive(Debug, clap::Args)]
pub(super) struct Pin<T: clap::Args> {
    #[command(flatten)]
    which: Which,
    /// The version to hold it at [default: the one that is served]
    #[arg(long)]
    version: Option<Version>,
    #[command(flatten)]
    target: T,
}

#[derive(Debug, clap::Args)]
pub(super) struct Unpin<T: clap::Args> {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    target: T,
}

#[derive(Debug, clap::Args)]
pub(super) struct Revoke<T: clap::Args> {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    target: T,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct What {
    /// The version
    #[arg(long)]
    version: Option<Version>,
    /// The artifact, by its digest, whatever version it comes as
    #[arg(long, value_name = "DIGEST")]
    sha256: Option<Digest>,
}

impl<T: clap::Args> Command<T> {
    /// The command as it is sent, and where.
    pub(super) fn into_parts(self) -> anyhow::Result<(Control, T)> {
        let (which, action, target) = match self {
            Self::Rollback(Rollback { which, to, from, target }) => (which, Action::Rollback { to, from }, target),
            Self::Pin(Pin { which, version, target }) => (which, Action::Pin(version), target),
            Self::Unpin(Unpin { which, target }) => (which, Action::Unpin, target),
            Self::Revoke(Revoke { which, what, target }) => {
                let action = match (what.version, what.sha256) {
                    (Some(version), _) => Action::Revoke(version),
                    (None, Some(digest)) => Action::RevokeDigest(digest),
                    (None, None) => return Err(missing("--version or --sha256")),
                };
                (which, action, target)
            }
        };
        let slot = match (which.model, which.key) {
            (Some(name), _) => Slot::Model(name),
            (None, Some(key)) => Slot::State(key),
            (None, None) => return Err(missing("--model or --key")),
        };
        Ok((Control { slot, action }, target))
    }
}

/// What clap has said before it comes to this.
fn missing(flags: &str) -> anyhow::Error {
    config::Error::new(flags, "missing").into()
}

/// What a server answers to a command: the manager's `Done`.
#[derive(Debug, Deserialize)]
struct Answer {
    slot: String,
    before: Option<String>,
    serving: Option<String>,
    progress: String,
}

pub(super) async fn run(command: Command<Server>) -> anyhow::Result<()> {
    let (control, server) = command.into_parts()?;
    let answer: Answer = serde_json::from_slice(&server.tell(&control).await?)?;
    let told = told(&answer, control.action);
    // What was told holds; but nothing that is here can serve it.
    if answer.progress == "waiting" {
        anyhow::bail!("{told}: publish it again");
    }
    println!("{told}");
    Ok(())
}

/// What is served now, in a line.
fn told(answer: &Answer, action: Action) -> String {
    let Answer { slot, before, serving, progress } = answer;
    let served = |version: &Option<String>| match version {
        Some(version) => format!("version {version} is served"),
        None => "nothing is served".to_owned(),
    };
    let now = served(serving);
    match progress.as_str() {
        "loading" => format!("{slot}: what was asked for is being made ready; {now} meanwhile"),
        "waiting" => format!("{slot}: what was asked for is not on this server; {now} until it comes"),
        _ => {
            let was = match before {
                _ if before == serving => ", as before".to_owned(),
                Some(before) => format!(" ({before} was)"),
                None => " (nothing was)".to_owned(),
            };
            let held = if matches!(action, Action::Pin(_)) { ", and nothing else until it is unpinned" } else { "" };
            format!("{slot}: {now}{was}{held}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(progress: &str, action: Action, before: Option<&str>, serving: Option<&str>, expected: &str) {
        let answer = Answer {
            slot: "model fraud".to_owned(),
            before: before.map(str::to_owned),
            serving: serving.map(str::to_owned),
            progress: progress.to_owned(),
        };
        assert_eq!(told(&answer, action), format!("model fraud: {expected}"));
    }

    #[test]
    fn a_person_is_told_what_is_served_now() {
        let back = Action::Rollback { to: None, from: None };
        check("done", back, Some("12"), Some("11"), "version 11 is served (12 was)");
        check("done", Action::Unpin, Some("12"), Some("12"), "version 12 is served, as before");
        check("done", back, None, Some("11"), "version 11 is served (nothing was)");
        check("done", back, Some("12"), None, "nothing is served (12 was)");
        let held = "version 11 is served (12 was), and nothing else until it is unpinned";
        check("done", Action::Pin(None), Some("12"), Some("11"), held);
        let loading = "what was asked for is being made ready; version 12 is served meanwhile";
        check("loading", back, Some("12"), Some("12"), loading);
        let waiting = "what was asked for is not on this server; version 12 is served until it comes";
        check("waiting", back, Some("12"), Some("12"), waiting);
    }
}
