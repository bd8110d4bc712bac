//! `hotserve check`: whether a server would take a model's file, and what serving it costs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use hotserve_models::{Golden, Loaders, Signature, TensorSpec};
use serde::de::DeserializeOwned;

use super::paint::{Colour, Paint, printable};
use super::publish::recognize;
use crate::config::{self, HumanDuration};
use crate::id::Format;
use crate::manager::check::{Expected, Report, check};

/// How many names of features are shown.
const NAMES: usize = 12;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model's file
    file: PathBuf,
    /// Its format [default: told from its first bytes]
    #[arg(long)]
    format: Option<Format>,
    /// Golden cases that it must get right: {"cases":[{"inputs":{…},"outputs":{…}}]}
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// The inputs and outputs that it must have, as serve --contract takes them
    #[arg(long, value_name = "FILE")]
    contract: Option<PathBuf>,
    /// The longest time that one row may take: 500us, 5ms
    #[arg(long, value_name = "DURATION")]
    max_row_time: Option<HumanDuration>,
    /// Let NaN and infinities come out where nothing expects them
    #[arg(long)]
    allow_non_finite: bool,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let format = match args.format {
        Some(format) => format,
        None => recognize(&args.file)?,
    };
    let expected = Expected {
        golden: args.golden.as_deref().map(|path| read::<Golden>("--golden", path)).transpose()?,
        contract: args.contract.as_deref().map(|path| read::<Signature>("--contract", path)).transpose()?,
        row_time: args.max_row_time.map(|time| time.0),
        allow_non_finite: args.allow_non_finite,
    };
    let paint = Paint::stdout();
    match check(&args.file, format, expected, &Loaders::bundled()) {
        Ok(report) if args.json => println!("{}", serde_json::to_string_pretty(&report).context("write the findings")?),
        Ok(report) => print!("{}", text(&args.file, &report, paint)),
        Err(refusal) if args.json => {
            println!("{}", serde_json::json!({"refused": refusal.reason, "detail": refusal.detail}));
            return Ok(ExitCode::FAILURE);
        }
        Err(refusal) => {
            let verdict = paint.paint(Colour::Red, &format!("refused as {}", refusal.reason));
            println!("{}: {verdict}: {}", args.file.display(), printable(&refusal.detail));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A file of JSON, named by its flag when it is none.
pub(super) fn read<T: DeserializeOwned>(flag: &'static str, path: &Path) -> Result<T, config::Error> {
    let problem = |detail: String| config::Error::new(flag, format!("{}: {detail}", path.display()));
    let text = std::fs::read(path).map_err(|error| problem(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| problem(error.to_string()))
}

fn text(file: &Path, report: &Report, paint: Paint) -> String {
    let Report { format, bytes, sha256, engine, signature, golden_cases, load_seconds, memory_bytes, row, batches } =
        report;
    let mut text = format!("{}: {}\n", file.display(), paint.paint(Colour::Green, "would be served"));
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<12}{value}\n"));
    line("format", format!("{format}, {bytes} bytes, sha256 {sha256}"));
    line("engine", (*engine).to_owned());
    for (what, specs) in [("input", &signature.inputs), ("output", &signature.outputs)] {
        for spec in specs {
            line(what, describe(spec));
        }
    }
    line(
        "golden",
        match golden_cases {
            0 => "none given: --golden FILE holds it to answers that you know".to_owned(),
            1 => "1 case agrees".to_owned(),
            many => format!("{many} cases agree"),
        },
    );
    line("load", format!("{}, then {} of memory", time(*load_seconds), size(*memory_bytes)));
    line("one row", format!("p50 {}, p99 {}, on one thread", time(row.p50_seconds), time(row.p99_seconds)));
    for batch in batches {
        let each = time(batch.rows_per_second.recip());
        line(&format!("{} rows", batch.rows), format!("{:.0} rows/s, {each} a row", batch.rows_per_second));
    }
    text
}

fn describe(spec: &TensorSpec) -> String {
    let shape = serde_json::to_string(&spec.shape).unwrap_or_default();
    let mut names: Vec<String> = spec.features.iter().take(NAMES).map(|name| printable(name)).collect();
    let more = spec.features.len() - names.len();
    if more > 0 {
        names.push(format!("… {more} more"));
    }
    let names = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
    format!("{} {} {shape}{names}", printable(&spec.name), spec.datatype)
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-6 => format!("{:.0} ns", s * 1e9),
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

fn size(bytes: usize) -> String {
    match bytes as f64 {
        bytes if bytes < 1e3 => format!("{bytes} bytes"),
        bytes if bytes < 1e6 => format!("{:.1} kB", bytes / 1e3),
        bytes if bytes < 1e9 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.2} GB", bytes / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_that_a_person_reads() {
        assert_eq!([3e-9, 2.5e-6, 0.012, 3.0].map(time), ["3 ns", "2.5 µs", "12.0 ms", "3.0 s"]);
        assert_eq!([12, 1_500, 2_000_000, 3_210_000_000].map(size), ["12 bytes", "1.5 kB", "2.0 MB", "3.21 GB"]);
    }
}
