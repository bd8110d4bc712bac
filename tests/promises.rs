//! `docs/faults.md` and `docs/promises.md` say which test holds which promise: they must not say what is not so.

use std::collections::BTreeMap;
use std::path::Path;

use hotserve::metrics::{REJECTIONS, TABLE};

use crate::support::repository;

/// The rows of the fault matrix: a letter, and the last number.
const ROWS: &[(&str, usize)] = &[("K", 16), ("S", 10), ("V", 2), ("M", 10), ("D", 9), ("F", 4)];

struct Row {
    id: String,
    seen: String,
    tests: String,
}

fn rows(page: &str) -> Vec<Row> {
    let lines = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| # "));
    lines
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
            let [id, _, _, seen, tests] = <[String; 5]>::try_from(cells).unwrap_or_else(|cells| panic!("{cells:?}"));
            Row { id, seen, tests }
        })
        .collect()
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether there is a test of this name, as `cargo test` shows it.
fn is_test(name: &str) -> bool {
    let Some((path, function)) = name.rsplit_once("::") else { return false };
    let path = path.replace("::", "/");
    // In a file of its own, or in `mod tests` at the end of one.
    let own = [repository(&format!("tests/{path}.rs")), repository(&format!("src/{path}.rs"))];
    let beside = path.strip_suffix("/tests").map(|path| repository(&format!("src/{path}.rs")));
    own.iter().any(|file| has_test(file, function, false)) || beside.is_some_and(|file| has_test(&file, function, true))
}

fn has_test(file: &Path, function: &str, indented: bool) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines.iter().enumerate().any(|(at, line)| {
        let code = line.trim_start();
        let code = code.strip_prefix("async ").unwrap_or(code);
        let is_it = code.starts_with(&format!("fn {function}(")) && line.starts_with(' ') == indented;
        let before = lines[..at].iter().rev().map(|line| line.trim_start());
        let mut marks = before.take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        is_it && marks.any(|mark| mark.starts_with("#[test]") || mark.starts_with("#[tokio::test"))
    })
}

/// What is wrong with the page.
fn wrong(page: &str) -> Vec<String> {
    let rows = rows(page);
    let mut wrong = Vec::new();
    let mut count = BTreeMap::<&str, usize>::new();
    for row in &rows {
        *count.entry(&row.id).or_default() += 1;
        let mut names = quoted(&row.tests).peekable();
        if names.peek().is_none() && !row.tests.starts_with("left out: ") {
            wrong.push(format!("{}: neither a test nor a reason", row.id));
        }
        wrong.extend(names.filter(|name| !is_test(name)).map(|name| format!("{}: no test {name}", row.id)));
        for name in quoted(&row.seen) {
            let metric = name.split('{').next().unwrap_or_default();
            let reason = name.strip_prefix("reason=\"").and_then(|rest| rest.strip_suffix('"'));
            let known = match reason {
                Some(reason) => REJECTIONS.contains(&reason),
                None => !metric.starts_with("hotserve_") || TABLE.iter().any(|spec| spec.name == metric),
            };
            if !known {
                wrong.push(format!("{}: the server exports no {name}", row.id));
            }
            // A value of a label must be one that the label has.
            for part in name.split(['{', ',', '}']).skip(1).filter(|part| part.contains('=')) {
                let (label, value) = part.split_once('=').expect("it contains one");
                let spec = TABLE.iter().find(|spec| spec.name == metric);
                let values = spec.and_then(|spec| spec.labels.iter().find(|(name, _)| *name == label));
                if !values.is_some_and(|(_, values)| values.contains(&value.trim_matches('"'))) {
                    wrong.push(format!("{}: the server exports no {name}", row.id));
                }
            }
        }
    }
    let expected = ROWS.iter().flat_map(|(letter, last)| (1..=*last).map(move |number| format!("{letter}{number}")));
    let expected: Vec<String> = expected.collect();
    for id in &expected {
        match count.get(id.as_str()) {
            Some(1) => {}
            Some(times) => wrong.push(format!("{id} is there {times} times")),
            None => wrong.push(format!("{id} is not there")),
        }
    }
    wrong.extend(rows.iter().filter(|row| !expected.contains(&row.id)).map(|row| format!("{} is no row", row.id)));
    wrong
}

fn page() -> String {
    std::fs::read_to_string(repository("docs/faults.md")).unwrap()
}

#[test]
fn every_fault_has_a_test_or_a_reason() {
    let wrong = wrong(&page());
    assert!(wrong.is_empty(), "docs/faults.md:\n{}", wrong.join("\n"));
}

/// What `docs/promises.md` names that is not there.
fn missing(page: &str) -> Vec<String> {
    let is_there = |name: &str| match name.strip_suffix("::") {
        Some(module) => ["tests", "src"].iter().any(|root| {
            let path = module.replace("::", "/");
            repository(&format!("{root}/{path}.rs")).exists()
        }),
        None if name.starts_with("scripts/") || name.starts_with("bench/") => repository(name).exists(),
        None if name.contains("::") => is_test(name),
        None if name.starts_with("hotserve_") => TABLE.iter().any(|spec| Some(spec.name) == name.split('{').next()),
        None => true,
    };
    quoted(page).filter(|name| !is_there(name)).map(ToOwned::to_owned).collect()
}

#[test]
fn every_promise_is_seen_and_tested() {
    let page = std::fs::read_to_string(repository("docs/promises.md")).unwrap();
    assert_eq!(missing(&page), [""; 0], "docs/promises.md");
    let broken = page.replace("hotserve_held", "hotserve_hold").replace("`crash::`", "`crush::`");
    assert!(missing(&broken).contains(&"hotserve_hold".to_owned()) && missing(&broken).contains(&"crush::".to_owned()));
}

#[test]
fn a_page_that_promises_too_much_is_found() {
    let page = page();
    for (from, to, named) in [
        (
            "a_trickle_is_given_up_as_slow",
            "a_trickle_is_endured",
            "S9: no test faults::artifacts::a_trickle_is_endured",
        ),
        ("faults::artifacts::a_trickle", "faults::clock::a_trickle", "S9: no test faults::clock::a_trickle"),
        ("pace::tests::throttling", "pace::throttling", "K1: no test source::kinesis::pace::throttling"),
        (
            "faults::artifacts::a_trickle_is_given_up_as_slow",
            "faults::artifacts::strike",
            "S9: no test faults::artifacts::strike",
        ),
        ("reason=\"slow\"", "reason=\"lazy\"", "S9: the server exports no reason=\"lazy\""),
        ("hotserve_stream_gaps_total", "hotserve_gaps_total", "K10: the server exports no hotserve_gaps_total"),
        ("outcome=\"stale\"", "outcome=\"old\"", "K5: the server exports no"),
        ("| S9 |", "| S90 |", "S9 is not there"),
        ("| S9 |", "| S8 |", "S8 is there 2 times"),
        ("left out: there is no relay", "nobody asked", "F4: neither a test nor a reason"),
    ] {
        assert!(page.contains(from), "{from}");
        let wrong = wrong(&page.replace(from, to));
        assert!(wrong.iter().any(|text| text.starts_with(named)), "{named} is not found: {wrong:?}");
    }
}
