//! `hotserve config`: where each setting comes from, and whether all are sound; and variables that nobody reads.

use std::collections::BTreeSet;
use std::io::Write as _;

use anyhow::Context as _;
use clap::{ArgMatches, CommandFactory as _};
use serde_json::json;

use super::{Cli, serve};
use crate::config::{Origin, Setting, Settings};

/// Variables that are no flag's.
const OTHERS: &[&str] =
    &["HOTSERVE_ADMIN_TOKEN", "HOTSERVE_FAILPOINT", "HOTSERVE_GENERATE", "HOTSERVE_PROBE", "HOTSERVE_REVISION"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show every setting, its value and where that comes from, as hotserve serve would read them with the same flags
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        serve: Box<serve::Args>,
    },
    /// Check every setting as hotserve serve does, and open nothing; exit 0, or 64 where something is wrong
    Check {
        #[command(flatten)]
        serve: Box<serve::Args>,
    },
}

pub(super) fn run(args: Args, matches: &ArgMatches) -> anyhow::Result<()> {
    for variable in misspelt() {
        eprintln!("warning: {variable}");
    }
    match args.command {
        Command::Check { serve } => {
            let config = serve.validate()?;
            let (stream, listen) = (&config.stream.name, config.http.listen);
            say(&format!("the settings are sound: a server would follow the stream {stream} and listen on {listen}\n"));
        }
        Command::Show { json, serve } => {
            let matches = matches.subcommand_matches("config").and_then(|matches| matches.subcommand_matches("show"));
            let matches = matches.context("config show was not asked for")?;
            let mut settings = Settings::explain(matches, serve.config.as_deref())?;
            let at = settings.partition_point(|setting| setting.name != "admin-token-file") + 1;
            settings.insert(at.min(settings.len()), admin_token());
            say(&if json { as_json(&settings) } else { as_text(&settings) });
        }
    }
    Ok(())
}

/// A closed pipe is no reason to fail.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// The one secret that a variable may hold: whether it is there, and nothing more.
fn admin_token() -> Setting {
    let name = "HOTSERVE_ADMIN_TOKEN".to_owned();
    let set = std::env::var_os(&name).is_some_and(|token| !token.is_empty());
    let (value, origin) = match set {
        true => (Some("(set, and not shown)".to_owned()), Origin::Variable(name)),
        false => (None, Origin::Default),
    };
    Setting { name: "admin-token".to_owned(), value, origin }
}

fn as_text(settings: &[Setting]) -> String {
    let value = |setting: &Setting| setting.value.clone().unwrap_or_else(|| "–".to_owned());
    let width = |of: &dyn Fn(&Setting) -> usize| settings.iter().map(of).max().unwrap_or(0);
    let names = width(&|setting| setting.name.chars().count());
    // One that is very long does not push the others out of sight.
    let values = width(&|setting| value(setting).chars().count()).min(48);
    let line = |setting: &Setting| {
        let origin = match &setting.origin {
            Origin::Flag(flag) => format!("flag {flag}"),
            Origin::Variable(name) => format!("variable {name}"),
            Origin::File(path) => format!("file {}", path.display()),
            Origin::Default => "default".to_owned(),
        };
        format!("{:<names$}  {:<values$}  {origin}\n", setting.name, value(setting))
    };
    settings.iter().map(line).collect()
}

fn as_json(settings: &[Setting]) -> String {
    let one = |setting: &Setting| {
        let origin = match &setting.origin {
            Origin::Flag(flag) => json!({"kind": "flag", "name": flag}),
            Origin::Variable(name) => json!({"kind": "variable", "name": name}),
            Origin::File(path) => json!({"kind": "file", "name": path.display().to_string()}),
            Origin::Default => json!({"kind": "default"}),
        };
        json!({"name": setting.name, "value": setting.value, "origin": origin})
    };
    format!("{:#}\n", json!({"settings": settings.iter().map(one).collect::<Vec<_>>()}))
}

/// A sentence for each variable of the environment that looks like one of hotserve's and is none.
pub(super) fn misspelt() -> Vec<String> {
    let known = variables();
    let given = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let unknown = given.filter(|(name, value)| {
        let ours = name.starts_with("HOTSERVE_") && !name.starts_with("HOTSERVE_TEST_") && !known.contains(name);
        ours && !is_of_kubernetes(name, &value.to_string_lossy())
    });
    let mut sentences: Vec<_> = unknown.map(|(name, _)| sentence(&name, &known)).collect();
    sentences.sort();
    sentences
}

fn sentence(name: &str, known: &BTreeSet<String>) -> String {
    match nearest(name, known) {
        Some(near) => format!("nothing reads the variable {name}: did you mean {near}?"),
        None => format!("nothing reads the variable {name}: hotserve config show lists those there are"),
    }
}

/// Every variable of every command.
fn variables() -> BTreeSet<String> {
    fn gather(command: &clap::Command, into: &mut BTreeSet<String>) {
        let named = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
        into.extend(named.map(str::to_owned));
        command.get_subcommands().for_each(|command| gather(command, into));
    }
    let mut known = OTHERS.iter().map(|name| (*name).to_owned()).collect();
    gather(&Cli::command(), &mut known);
    known
}

/// Kubernetes tells every container of the services beside it: one that is called hotserve, or hotserve-admin, makes
/// `HOTSERVE_PORT=tcp://10.0.0.1:80`, `HOTSERVE_SERVICE_HOST`, `HOTSERVE_PORT_80_TCP_ADDR` and more.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let is_url = |value: &str| ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let of_port = name.split_once("_PORT_").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    let of_service = name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT");
    of_service || of_port || (name.ends_with("_PORT") && is_url(value))
}

/// The variable that is probably meant: the prefix is not what anybody mistypes, but what is put before `PORT`.
fn nearest<'k>(name: &str, known: &'k BTreeSet<String>) -> Option<&'k str> {
    fn core(name: &str) -> &str {
        name.trim_start_matches("HOTSERVE_").trim_start_matches("KINESIS_")
    }
    let distance = |other: &str| strsim::osa_distance(core(name), core(other));
    let near = known.iter().map(|other| (distance(other), other.as_str())).min()?;
    (near.0 <= (core(name).len() / 3).max(1)).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_told_what_was_meant() {
        let known = variables();
        for (name, meant) in [
            ("HOTSERVE_PORT", Some("PORT")),
            ("HOTSERVE_STREAM", Some("KINESIS_STREAM")),
            ("HOTSERVE_KINESIS_STREAM", Some("KINESIS_STREAM")),
            ("HOTSERVE_BODYLIMIT", Some("HOTSERVE_BODY_LIMIT")),
            ("HOTSERVE_POLL_INTERVALL", Some("HOTSERVE_POLL_INTERVAL")),
            ("HOTSERVE_COLOUR_OF_THE_SKY", None),
        ] {
            assert!(!known.contains(name), "{name}");
            assert_eq!(nearest(name, &known), meant, "{name}");
        }
    }

    #[test]
    fn what_kubernetes_says_of_a_service_is_no_slip() {
        for (name, value) in [
            ("HOTSERVE_PORT", "tcp://10.0.0.1:80"),
            ("HOTSERVE_SERVICE_HOST", "10.0.0.1"),
            ("HOTSERVE_SERVICE_PORT", "80"),
            ("HOTSERVE_SERVICE_PORT_HTTP", "80"),
            ("HOTSERVE_ADMIN_SERVICE_HOST", "10.0.0.1"),
            ("HOTSERVE_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("HOTSERVE_PORT_80_TCP_PROTO", "tcp"),
            ("HOTSERVE_ADMIN_PORT_9000_TCP_ADDR", "10.0.0.1"),
        ] {
            assert!(is_of_kubernetes(name, value), "{name}={value}");
        }
        for (name, value) in [("HOTSERVE_PORT", "9000"), ("HOTSERVE_BODYLIMIT", "tcp://x"), ("HOTSERVE_PORTS", "1")] {
            assert!(!is_of_kubernetes(name, value), "{name}={value}");
        }
    }
}
