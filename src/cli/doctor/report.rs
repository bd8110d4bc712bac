//! What was found, and how it is shown.

use std::io::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::paint::{Colour, Paint, printable};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    /// Not tried, and why.
    Skip,
    /// It serves, but not as well as it could.
    Warn,
    /// It does not serve.
    Fail,
}

/// One check and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) status: Status,
    pub(super) finding: String,
    /// What to do; where all is well, nothing.
    pub(super) cure: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, finding: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, finding: finding.into(), cure: None }
    }

    pub(super) fn skip(check: &'static str, why: impl Into<String>) -> Self {
        Self { check, status: Status::Skip, finding: why.into(), cure: None }
    }

    pub(super) fn warn(check: &'static str, finding: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, status: Status::Warn, finding: finding.into(), cure: Some(cure.into()) }
    }

    pub(super) fn fail(check: &'static str, finding: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, status: Status::Fail, finding: finding.into(), cure: Some(cure.into()) }
    }

    fn text(&self, paint: Paint) -> String {
        let (word, colour) = match self.status {
            Status::Ok => ("ok  ", Colour::Green),
            Status::Skip => ("skip", Colour::Dim),
            Status::Warn => ("warn", Colour::Yellow),
            Status::Fail => ("FAIL", Colour::Red),
        };
        let check = format!("{}:", self.check);
        let mut text = format!("{}  {check:<WIDTH$} {}\n", paint.paint(colour, word), printable(&self.finding));
        if let Some(cure) = &self.cure {
            text.push_str(&format!("      {:<WIDTH$} → {}\n", "", printable(cure)));
        }
        text
    }
}

/// The longest name of a check, with its colon.
const WIDTH: usize = "GetShardIterator:".len();

/// Shows each finding as it is made, or all of them as JSON at the end.
pub(super) struct Report {
    json: bool,
    paint: Paint,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self { json, paint: Paint::stdout(), findings: Vec::new() }
    }

    pub(super) fn add(&mut self, finding: Finding) {
        if !self.json {
            say(&finding.text(self.paint));
        }
        self.findings.push(finding);
    }

    /// The last line, and the answer to a script: 1 if a check failed.
    pub(super) fn end(self) -> anyhow::Result<ExitCode> {
        if self.json {
            say(&format!("{}\n", serde_json::to_string_pretty(&self.findings)?));
        } else {
            say(&format!("\n{}\n", verdict(&self.findings)));
        }
        let failed = self.findings.iter().any(|finding| finding.status == Status::Fail);
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn verdict(findings: &[Finding]) -> String {
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    let plural = |count: usize, one: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") };
    match (count(Status::Fail), count(Status::Warn)) {
        (0, 0) => "All is well.".to_owned(),
        (0, warned) => format!("It serves; {}.", plural(warned, "warning")),
        (failed, 0) => format!("{} failed.", plural(failed, "check")),
        (failed, warned) => format!("{} failed; {}.", plural(failed, "check"), plural(warned, "warning")),
    }
}

/// A closed pipe is no reason to fail: the exit code says the rest.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_aligned_and_its_cure_stands_below() {
        let text = Finding::warn("retention", "24 h", "raise it").text(Paint::plain());
        assert_eq!(text, "warn  retention:        24 h\n                        → raise it\n");
        assert_eq!(Finding::ok("region", "eu-west-1").text(Paint::plain()), "ok    region:           eu-west-1\n");
    }

    #[test]
    fn the_verdict_counts_what_is_wrong() {
        let (ok, warn, fail) = (Finding::ok("a", ""), Finding::warn("b", "", ""), Finding::fail("c", "", ""));
        assert_eq!(verdict(std::slice::from_ref(&ok)), "All is well.");
        assert_eq!(verdict(&[ok.clone(), warn.clone()]), "It serves; 1 warning.");
        assert_eq!(verdict(&[ok, warn, fail.clone(), fail]), "2 checks failed; 1 warning.");
    }
}
