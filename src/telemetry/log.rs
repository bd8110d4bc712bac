//! The log: lines for people, or JSON for machines, on standard error.

use std::fmt;
use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use super::Seldom;

/// How lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people on a terminal, JSON elsewhere
    #[default]
    Auto,
    /// For people
    Human,
    /// One JSON object a line
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

/// A field as it is, without quotes; left out where there is none.
pub fn shown<T: fmt::Display>(value: Option<T>) -> Option<tracing::field::DisplayValue<T>> {
    value.map(tracing::field::display)
}

/// Panics are lines too; where each request panics, that many.
static PANICS: Seldom = Seldom::new(10);

/// Begins to log on standard error; what is said is chosen by `RUST_LOG`, and where that says nothing, by `level`. Once
/// a process.
pub fn start(format: LogFormat, level: &str) {
    let said = std::env::var_os(EnvFilter::DEFAULT_ENV).is_some_and(|value| !value.is_empty());
    let filter = if said { EnvFilter::try_from_default_env().map_err(Some) } else { Err(None) };
    let (filter, misread) = filter.map_or_else(|error| (EnvFilter::new(level), error), |filter| (filter, None));
    let is_terminal = std::io::stderr().is_terminal();
    let is_human = match format {
        LogFormat::Auto => is_terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if is_human {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        builder.with_target(false).with_ansi(is_terminal && !plain).init();
    } else {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    }
    if let Some(error) = misread {
        tracing::warn!(%error, level, "RUST_LOG cannot be read, and does not count");
    }
    // A model that panics is refused and said so where it is handled; the panic is a line beside the others.
    std::panic::set_hook(Box::new(|panic| {
        let Some(unsaid) = PANICS.may_say() else { return };
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let at = panic.location().map(ToString::to_string);
        let said = panic.payload_as_str().unwrap_or("without a word");
        tracing::error!(thread, at, unsaid = (unsaid > 0).then_some(unsaid), "panicked: {said}");
    }));
}
