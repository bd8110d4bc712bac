//! What the rules of Prometheus must keep to.

use super::promql::{unknown, unknown_in_template};

/// A recording rule or an alert, with its fields: expr, severity, summary and so on.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) records: bool,
    pub(super) fields: Vec<(String, String)>,
}

impl Rule {
    pub(super) fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// The rules of rules.yaml and alerts.yaml, line by line: they are written here, and in one way only.
pub(super) fn rules(yaml: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    // The indentation of a key whose value stands in the lines below.
    let mut block: Option<usize> = None;
    for line in yaml.lines() {
        let trimmed = line.trim();
        let indent = line.len() - line.trim_start().len();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        if let Some(of) = block {
            if indent > of {
                let field = rules.last_mut().and_then(|rule| rule.fields.last_mut());
                field.unwrap().1.push_str(&format!("{trimmed}\n"));
                continue;
            }
            block = None;
        }
        let (key, value) = trimmed.split_once(':').unwrap_or((trimmed, ""));
        let value = value.trim();
        match key {
            "- record" | "- alert" => {
                let (name, records) = (value.to_owned(), key == "- record");
                rules.push(Rule { name, records, fields: Vec::new() });
            }
            _ => {
                let Some(rule) = rules.last_mut() else { continue };
                let below = value == "|";
                block = below.then_some(indent);
                rule.fields.push((key.to_owned(), if below { String::new() } else { value.to_owned() }));
            }
        }
    }
    rules
}

/// The names that rules record.
pub(super) fn recorded(yaml: &str) -> Vec<String> {
    rules(yaml).into_iter().filter(|rule| rule.records).map(|rule| rule.name).collect()
}

pub(super) fn unknown_in_rules(yaml: &str) -> Vec<String> {
    let (rules, recorded) = (rules(yaml), recorded(yaml));
    let mut wrong = Vec::new();
    for rule in &rules {
        let expr = rule.field("expr");
        let templates = rule.fields.iter().filter(|(key, _)| key != "expr");
        let templates = templates.flat_map(|(_, text)| unknown_in_template(text, expr));
        let found = unknown(expr, &recorded).into_iter().chain(templates);
        wrong.extend(found.map(|what| format!("rule {}: {what}", rule.name)));
    }
    wrong
}

pub(super) fn uncured(yaml: &str, readme: &str, cases: &str) -> Vec<String> {
    let page = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/dashboards/README.md");
    let alerts: Vec<Rule> = rules(yaml).into_iter().filter(|rule| !rule.records).collect();
    let headings: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    // An alert's name in a test, and what is expected of it in the line below.
    let lines: Vec<&str> = cases.lines().map(str::trim).collect();
    let tested: Vec<(&str, bool)> = lines
        .windows(2)
        .filter_map(|pair| Some((pair[0].strip_prefix("alertname: ")?, pair[1] == "exp_alerts:")))
        .collect();
    let mut wrong = Vec::new();
    for alert in &alerts {
        let name = alert.name.as_str();
        let mut expect = |fine: bool, what: &str| {
            if !fine {
                wrong.push(format!("{name} {what}"));
            }
        };
        expect(headings.contains(&name), "has no cure in README.md");
        expect(tested.contains(&(name, true)), "has no test in which it fires");
        expect(tested.contains(&(name, false)), "has no test in which it stays silent");
        expect(["page", "ticket"].contains(&alert.field("severity")), "has no severity");
        expect(!alert.field("summary").is_empty() && !alert.field("description").is_empty(), "says too little");
        let anchor = format!("{page}#{}", name.to_lowercase());
        expect(alert.field("runbook_url") == anchor, &format!("does not point at {anchor}"));
    }
    let known = |name: &&str| alerts.iter().any(|alert| alert.name == *name);
    let cures = headings.iter().filter(|heading| heading.starts_with("Hotserve"));
    wrong.extend(cures.filter(|name| !known(name)).map(|name| format!("README.md cures {name}, which is no alert")));
    wrong
}
