//! The command line: one file a subcommand.

mod check;
mod completions;
mod config;
mod consumers;
mod control;
#[cfg(feature = "embedded")]
mod dev;
mod doctor;
mod healthcheck;
mod keygen;
mod manifest;
mod paint;
mod publish;
mod reference;
mod running;
mod serve;
mod tail;
mod target;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::Error as BadSetting;
use crate::error::chain;
use crate::telemetry::{self, LogFormat};

pub use self::reference::reference;

/// Serves state and models over HTTP, and replaces them while it serves, driven by a Kinesis stream
#[derive(Debug, Parser)]
#[command(name = "hotserve", version = env!("HOTSERVE_VERSION"), max_term_width = 110)]
struct Cli {
    /// How the log on standard error is written
    #[arg(long, env = "HOTSERVE_LOG_FORMAT", global = true, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in one process: a Kinesis and an S3 endpoint, sample models, and the server
    #[cfg(feature = "embedded")]
    Dev(dev::Args),
    /// Follow a Kinesis stream and serve what it brings
    Serve(Box<serve::Args>),
    /// Publish a state, a model or a command
    Publish(publish::Args),
    #[command(flatten)]
    Control(control::Command<control::Server>),
    /// Look at a manifest, or make one from the stream
    Manifest(manifest::Args),
    /// Show the messages of a stream as they come, decoded
    Tail(tail::Args),
    /// List or remove the consumers that are registered with a stream for enhanced fan-out
    Consumers(consumers::Args),
    /// Check what a server needs of AWS, and say what is wrong with its cure
    Doctor(doctor::Args),
    /// Check whether a server would take a model's file, and what serving it costs
    Check(check::Args),
    /// Make a key to sign messages with, and print the lines by which servers trust it
    Keygen(keygen::Args),
    /// Ask the server on this machine whether it is ready; exit 0 if it is, else 1
    Healthcheck(healthcheck::Args),
    /// Show where each setting of a server comes from, or check them all
    Config(config::Args),
    /// Print the completions for a shell
    Completions(completions::Args),
    /// Print the manual page, or write one for every command
    Man(completions::Man),
}

impl Command {
    /// What is logged unless `RUST_LOG` says otherwise. Commands that a person looks at say themselves what is wrong.
    fn log_level(&self) -> &'static str {
        match self {
            Self::Tail(_) | Self::Consumers(_) | Self::Doctor(_) | Self::Check(_) | Self::Control(_) => "error",
            Self::Healthcheck(_) | Self::Config(_) => "error",
            _ => "warn,hotserve=info",
        }
    }

    /// Whether it answers requests: only of these there are traces.
    fn serves(&self) -> bool {
        match self {
            #[cfg(feature = "embedded")]
            Self::Dev(_) => true,
            Self::Serve(_) => true,
            _ => false,
        }
    }
}

/// A bad flag, environment variable or file: `EX_USAGE` of sysexits.h.
const EX_USAGE: u8 = 64;

/// Runs the program.
pub fn main() -> ExitCode {
    // The matches know where each value comes from.
    let parsed = Cli::command().try_get_matches().and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error.format(&mut Cli::command())),
    };
    telemetry::start(cli.log_format, cli.command.log_level());
    if cli.command.serves() {
        telemetry::export();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("serving").build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::from(error).context("start the runtime")),
    };
    let result = runtime.block_on(async {
        match cli.command {
            #[cfg(feature = "embedded")]
            Command::Dev(args) => dev::run(args).await?,
            Command::Serve(args) => serve::run(*args).await?,
            Command::Publish(args) => publish::run(args).await?,
            Command::Control(command) => control::run(command).await?,
            Command::Manifest(args) => manifest::run(args).await?,
            Command::Tail(args) => tail::run(args).await?,
            Command::Consumers(args) => consumers::run(args).await?,
            Command::Doctor(args) => return doctor::run(args).await,
            Command::Check(args) => return check::run(args),
            Command::Keygen(args) => keygen::run(&args)?,
            Command::Healthcheck(args) => return Ok(healthcheck::run(args)),
            Command::Config(args) => config::run(args, &matches)?,
            Command::Completions(args) => completions::run(&args),
            Command::Man(args) => completions::man(&args)?,
        }
        Ok(ExitCode::SUCCESS)
    });
    runtime.shutdown_background();
    telemetry::flush();
    result.unwrap_or_else(|error| fail(&error))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", chain(error.as_ref()));
    if error.is::<BadSetting>() { ExitCode::from(EX_USAGE) } else { ExitCode::FAILURE }
}

/// Prints clap's word, and where else than in the flag the bad value can have come from.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe is no reason to fail.
    let _ = error.print();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return ExitCode::SUCCESS;
    }
    if let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) {
        let flag = argument.split([' ', '=', '[']).next().unwrap_or_default().trim_start_matches("--");
        let command = Cli::command();
        // The first word that is no flag: a flag of the same name elsewhere may have a variable that this one has not.
        let asked = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
        let arguments = command.find_subcommand(&asked).into_iter().flat_map(clap::Command::get_arguments);
        let mut arguments = arguments.chain(command.get_arguments());
        if let Some(variable) = arguments.find(|arg| arg.get_long() == Some(flag)).and_then(clap::Arg::get_env) {
            eprintln!("--{flag} can also be set by the environment variable {}", variable.to_string_lossy());
        }
    }
    ExitCode::from(EX_USAGE)
}
