//! What a model must pass before it is served, and what that may cost.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use hotserve_models::Signature;
use serde::Deserialize;

use super::{Error, Settings, Size, at_least};
use crate::id::ModelName;

/// The gates of a server, and what they may cost.
#[derive(Debug, Clone)]
pub struct GatesConfig {
    /// Where a new model is tried.
    pub isolation: IsolationConfig,
    /// The longest time for a model to be loaded, warmed up and checked in a process of its own.
    pub load_timeout: Duration,
    /// Memory that models may take.
    pub memory_budget: MemoryBudget,
    /// What to do when a new model does not fit beside the old.
    pub memory_policy: MemoryPolicy,
    /// Whether the model before the served one is kept in memory.
    pub warm_previous: bool,
    /// What the model of a slot must take and give, whatever its message says.
    pub contracts: BTreeMap<ModelName, Signature>,
    /// The longest time for one row.
    pub max_row_time: Option<Duration>,
    /// How many times as long as the model that it replaces a model may take for one row.
    pub max_slowdown: Option<f64>,
    /// Whether a model may answer NaN or infinity where nothing expects it.
    pub allow_non_finite: bool,
    /// How many rows of requests that wait for a model may be answered together.
    pub max_batch_rows: usize,
}

/// The default of `--max-batch-rows`: beyond it little is gained, and who is first waits for many.
pub const BATCH_ROWS: usize = 32;

/// Where a new model is tried.
#[derive(Debug, Clone, Default)]
pub struct IsolationConfig {
    /// In what.
    pub mode: Isolation,
    /// The program that tries it; none means this one, which then calls `hotserve::probe::child` at its start.
    pub program: Option<Program>,
}

/// A program, and its first arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// What stands behind it.
    pub args: Vec<String>,
}

/// In what a new model is tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// In a child process, where the program can be one and the system allows it; else in a thread, which is said.
    #[default]
    Auto,
    /// In a child process: what crashes, hangs or eats memory dies there. The server does not start without.
    Process,
    /// In a thread of the server: what crashes or hangs takes the server with it.
    Thread,
}

/// Memory that models may take, in bytes: what is served, kept and being loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemoryBudget {
    /// A share of what the container may take; without a container that has a limit, no bound.
    #[default]
    Auto,
    /// No bound.
    None,
    /// So many bytes.
    Bytes(u64),
}

impl FromStr for MemoryBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            _ => match text.parse::<Size>() {
                Ok(Size(0)) => Err("a budget of 0 lets no model in: write none for no bound".to_owned()),
                Ok(Size(bytes)) => Ok(Self::Bytes(bytes)),
                Err(error) => Err(format!("{error}, or auto, or none")),
            },
        }
    }
}

/// What to do when a new model does not fit beside the old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryPolicy {
    /// The old one is served on, and the new one refused.
    #[default]
    Availability,
    /// The old one is unloaded first: the slot answers 503 until the new one is there, or the old one again.
    Resource,
}

impl GatesConfig {
    /// Checks the settings of the gates, and reads the contracts.
    pub(super) fn from_settings(settings: &Settings) -> Result<Self, Error> {
        let load_timeout = at_least(
            "--load-timeout (HOTSERVE_LOAD_TIMEOUT)",
            settings.load_timeout,
            Duration::from_secs(60),
            Duration::from_millis(100),
        )?;
        if settings.max_slowdown.is_some_and(|factor| !(factor.is_finite() && factor >= 1.0)) {
            let problem = "a factor is 1 or more, as 2.5".to_owned();
            return Err(Error::new("--max-slowdown (HOTSERVE_MAX_SLOWDOWN)", problem));
        }
        let (budget, policy) = (settings.memory_budget.unwrap_or_default(), settings.memory_policy.unwrap_or_default());
        if (budget, policy) == (MemoryBudget::None, MemoryPolicy::Resource) {
            let problem = "without a budget everything fits: give one with --memory-budget";
            return Err(Error::new("--memory-policy (HOTSERVE_MEMORY_POLICY)", problem));
        }
        Ok(Self {
            isolation: IsolationConfig { mode: settings.isolation.unwrap_or_default(), program: None },
            load_timeout,
            memory_budget: budget,
            memory_policy: policy,
            warm_previous: settings.warm_previous.unwrap_or(true),
            contracts: settings.contract.iter().map(|text| contract(text)).collect::<Result<_, _>>()?,
            max_row_time: settings.max_row_time.map(|time| time.0),
            max_slowdown: settings.max_slowdown,
            allow_non_finite: settings.allow_non_finite.unwrap_or(false),
            max_batch_rows: settings.max_batch_rows.unwrap_or(BATCH_ROWS).max(1),
        })
    }
}

fn contract(text: &str) -> Result<(ModelName, Signature), Error> {
    let fault = |problem: String| Error::new("--contract (HOTSERVE_CONTRACT)", format!("{text:?}: {problem}"));
    let (name, file) =
        text.split_once('=').ok_or_else(|| fault("write NAME=FILE, the file with a signature as JSON".to_owned()))?;
    let name = name.parse::<ModelName>().map_err(|error| fault(error.to_string()))?;
    let json = std::fs::read(file).map_err(|error| fault(format!("{file} cannot be read: {error}")))?;
    let signature = serde_json::from_slice(&json).map_err(|error| {
        fault(format!("{file} is no signature, {{\"inputs\": […], \"outputs\": […]}} as /models shows them: {error}"))
    })?;
    Ok((name, signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_reads_as_people_write_it() {
        for (text, budget) in
            [("auto", MemoryBudget::Auto), ("none", MemoryBudget::None), ("3GiB", MemoryBudget::Bytes(3 << 30))]
        {
            assert_eq!(text.parse(), Ok(budget), "{text}");
        }
        for text in ["", "0", "much", "-1"] {
            assert!(text.parse::<MemoryBudget>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_contract_is_read_and_a_fault_in_it_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("contract.json");
        let text = |name: &str| format!("{name}={}", file.display());
        std::fs::write(&file, r#"{"inputs": [], "outputs": []}"#).expect("writable");
        let (name, signature) = contract(&text("fraud")).expect("sound");
        assert_eq!((name.as_str(), signature.inputs.len()), ("fraud", 0));
        assert!(contract(&text("../fraud")).is_err());
        assert!(contract("fraud").expect_err("no file").problem.contains("NAME=FILE"));
        std::fs::write(&file, r#"{"inputs": []}"#).expect("writable");
        assert!(contract(&text("fraud")).expect_err("half").problem.contains("is no signature"));
    }
}
