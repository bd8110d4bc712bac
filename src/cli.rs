//! The command line: one file a subcommand.

#[cfg(feature = "embedded")]
mod dev;
mod manifest;
mod publish;
mod running;
mod serve;
mod target;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config;
use crate::error::chain;

/// Serves state and models over HTTP, and replaces them while it serves, driven by a Kinesis stream
#[derive(Debug, Parser)]
#[command(name = "hotserve", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in one process: a Kinesis and an S3 endpoint, sample models, and the server
    #[cfg(feature = "embedded")]
    Dev(dev::Args),
    /// Follow a Kinesis stream and serve what it brings
    Serve(serve::Args),
    /// Publish a state or a model
    Publish(publish::Args),
    /// Look at a manifest, or make one from the stream
    Manifest(manifest::Args),
}

/// A bad flag, environment variable or file: `EX_USAGE` of sysexits.h.
const EX_USAGE: u8 = 64;

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    log();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("serving").build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::from(error).context("start the runtime")),
    };
    let result = runtime.block_on(async {
        match cli.command {
            #[cfg(feature = "embedded")]
            Command::Dev(args) => dev::run(args).await,
            Command::Serve(args) => serve::run(args).await,
            Command::Publish(args) => publish::run(args).await,
            Command::Manifest(args) => manifest::run(args).await,
        }
    });
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", chain(error.as_ref()));
    if error.is::<config::Error>() { ExitCode::from(EX_USAGE) } else { ExitCode::FAILURE }
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
        let mut arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
        if let Some(variable) = arguments.find(|arg| arg.get_long() == Some(flag)).and_then(clap::Arg::get_env) {
            eprintln!("--{flag} can also be set by the environment variable {}", variable.to_string_lossy());
        }
    }
    ExitCode::from(EX_USAGE)
}

/// Lines for people on a terminal, JSON for machines elsewhere; what to say is chosen by `RUST_LOG`.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,hotserve=info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
    // A model that panics is refused and said so where it is handled; the panic is a line beside the others.
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let at = panic.location().map(ToString::to_string);
        let said = panic.payload_as_str().unwrap_or("without a word");
        tracing::error!(thread, at, "panicked: {said}");
    }));
}
