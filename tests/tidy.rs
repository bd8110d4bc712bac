//! What no compiler checks: the layers, and what belongs into one file only.

use std::path::{Path, PathBuf};

use crate::support::repository;

/// The layers of ARCHITECTURE.md, lowest first: a module may import from rows before its own, and from itself.
const LAYERS: &[&[&str]] = &[
    &["id", "trust", "config", "metrics", "status", "shutdown", "failpoint", "priority", "error", "telemetry", "aws"],
    &["notification"],
    &["manifest"],
    &["source", "store", "serving", "publisher"],
    &["manager"],
    &["http"],
    &["app", "embedded"],
    &["cli"],
];

/// Imports within the first row, which all others stand on.
const WITHIN_THE_FIRST_ROW: &[(&str, &str)] = &[
    ("trust", "id"),
    ("config", "id"),
    ("config", "trust"),
    ("status", "id"),
    ("aws", "error"),
    ("aws", "telemetry"),
    ("telemetry", "error"),
];

pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(rust_files(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
    files.sort();
    files
}

/// The path of a file below src/, and its text without comments.
fn sources() -> Vec<(String, String)> {
    let src = repository("src");
    rust_files(&src)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let code: Vec<_> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
            (name, code.join("\n"))
        })
        .collect()
}

fn module(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// The modules of this crate that a text names as `crate::module`, in whatever braces.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            // `use crate::{a, b}` is not written here: one line a module.
            Some(_) => vec!["{"],
            None => vec![rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()],
        };
        found.extend(names.into_iter().map(str::to_owned));
    }
    found
}

#[test]
fn imports_point_down_the_layers() {
    let mut wrong = Vec::new();
    for (file, code) in sources() {
        let from = module(&file);
        if matches!(from, "lib" | "main") {
            continue;
        }
        let own = layer(from).unwrap_or_else(|| panic!("{file} is in no layer: add it to LAYERS and ARCHITECTURE.md"));
        for to in imports(&code) {
            let fine = to == from
                || layer(&to).is_some_and(|other| other < own)
                || WITHIN_THE_FIRST_ROW.contains(&(from, to.as_str()));
            if !fine {
                wrong.push(format!("src/{file} imports crate::{to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_belongs_into_one_file_stays_there() {
    let rules: &[(&str, &[&str])] = &[
        ("arc_swap", &["serving.rs"]),
        ("metrics_exporter_prometheus", &["metrics.rs"]),
        ("counter!", &[]),
        ("gauge!", &[]),
        ("histogram!", &[]),
        (
            "aws_sdk_kinesis",
            &["aws.rs", "source/kinesis/api.rs", "source/kinesis/consumers.rs", "publisher.rs", "cli/doctor/probe.rs"],
        ),
        ("aws_sdk_s3", &["aws.rs", "store/s3.rs", "manifest/object.rs", "publisher.rs", "cli/doctor/probe.rs"]),
        ("aws_sdk_sts", &["aws/identity.rs"]),
        ("aws_config", &["aws.rs"]),
        ("aws_lc_rs", &["trust/ed25519.rs", "config/tls.rs", "cli/healthcheck/tls.rs"]),
        ("opentelemetry", &["telemetry/otlp.rs"]),
        ("ferrokinesis", &["embedded.rs"]),
        ("s3s", &["embedded.rs"]),
    ];
    let mut wrong = Vec::new();
    for (file, code) in sources() {
        for (word, files) in rules {
            let named = code.match_indices(word).any(|(at, _)| {
                let before = code[..at].chars().next_back();
                before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
            });
            if named && !files.contains(&file.as_str()) {
                wrong.push(format!("src/{file} names {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn models_know_no_aws_no_http_and_no_runtime() {
    let manifest = std::fs::read_to_string(repository("models/Cargo.toml")).unwrap();
    for word in ["aws", "http", "tokio", "axum", "hyper"] {
        assert!(!manifest.contains(word), "models/Cargo.toml names {word}");
    }
}

#[test]
fn architecture_shows_the_layers_as_they_are() {
    let text = std::fs::read_to_string(repository("ARCHITECTURE.md")).unwrap();
    for row in LAYERS {
        let row = row.iter().map(|module| format!("`{module}`")).collect::<Vec<_>>().join(", ");
        assert!(text.contains(&row), "ARCHITECTURE.md lacks the row {row}");
    }
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    let words = ["/home/", "/Users/"];
    for (file, code) in sources() {
        for word in words {
            assert!(!code.contains(word), "src/{file} names {word}");
        }
    }
}
