//! The dashboards, the alerts and their cures: they speak of what the server exports, and leave none of it out.
//!
//! Each check is a function over the text of the files and answers with what is wrong. The last tests break a file and
//! show that its check says so. Whether the expressions answer with data, scripts/prometheus asks a real Prometheus.

mod grafana;
mod promql;
mod rules;

use std::collections::BTreeSet;

use hotserve::metrics::TABLE;

use crate::support::repository;
use grafana::{dashboard, expressions, lint, misplaced, unknown_in_panels};
use promql::{base, parse};
use rules::{recorded, rules, uncured, unknown_in_rules};

/// The dashboards; `hotserve-` and the name of the file are the uid.
const DASHBOARDS: &[&str] = &["overview", "swaps-and-lag", "fleet", "serving"];
/// Where cases of promtool stand.
const CASES: &[&str] = &["objectives_test.yaml", "alerts_test.yaml", "days_test.yaml"];
/// Metrics that no panel and no alert needs, each with the reason.
const UNSHOWN: &[(&str, &str)] = &[];

fn read(name: &str) -> String {
    std::fs::read_to_string(repository("dashboards").join(name)).unwrap()
}

/// Every dashboard, as JSON.
fn dashboards() -> Vec<String> {
    DASHBOARDS.iter().map(|name| read(&format!("{name}.json"))).collect()
}

/// Recording rules and alerts in one text.
fn all_rules() -> String {
    read("rules.yaml") + &read("alerts.yaml")
}

fn cases() -> String {
    CASES.iter().map(|name| read(name)).collect()
}

/// Fails with what a check found.
fn check(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// Runs a check over every dashboard, given its JSON and its uid.
fn check_each(wrong: impl Fn(&str, &str) -> Vec<String>) {
    for name in DASHBOARDS {
        let found = wrong(&read(&format!("{name}.json")), &format!("hotserve-{name}"));
        check(&found.into_iter().map(|what| format!("{name}: {what}")).collect::<Vec<_>>());
    }
}

#[test]
fn every_file_is_under_test() {
    let names = std::fs::read_dir(repository("dashboards")).unwrap().map(|entry| entry.unwrap().file_name());
    let found: BTreeSet<String> = names.filter_map(|name| name.into_string().ok()).collect();
    let jsons = DASHBOARDS.iter().map(|name| format!("{name}.json"));
    let others = ["README.md", "rules.yaml", "alerts.yaml"].iter().chain(CASES).map(|name| (*name).to_owned());
    assert_eq!(found, jsons.chain(others).collect());
}

#[test]
fn panels_ask_for_what_the_server_exports() {
    let recorded = recorded(&read("rules.yaml"));
    check_each(|json, _| unknown_in_panels(json, &recorded));
}

#[test]
fn rules_ask_for_what_the_server_exports() {
    check(&unknown_in_rules(&all_rules()));
}

#[test]
fn every_metric_is_on_a_panel_or_in_an_alert() {
    check(&unshown(&dashboards(), &all_rules()));
}

#[test]
fn the_dashboards_keep_the_rules_of_dashboard_linter() {
    check_each(lint);
}

#[test]
fn panels_neither_overlap_nor_get_too_narrow() {
    check_each(|json, _| misplaced(json));
}

#[test]
fn every_alert_has_a_severity_a_cure_and_two_test_cases() {
    check(&uncured(&read("alerts.yaml"), &read("README.md"), &cases()));
}

fn unshown(jsons: &[String], yaml: &str) -> Vec<String> {
    let dashboards: Vec<_> = jsons.iter().map(|json| dashboard(json)).collect();
    let rules = rules(yaml);
    let exprs = dashboards.iter().flat_map(expressions).map(|(_, expr, _)| expr);
    let exprs = exprs.chain(rules.iter().map(|rule| rule.field("expr")));
    let shown: BTreeSet<String> =
        exprs.flat_map(|expr| parse(expr).selectors).map(|selector| base(&selector.metric).to_owned()).collect();
    let excused = |name: &str| UNSHOWN.iter().any(|(of, _)| *of == name);
    let missing = TABLE.iter().filter(|spec| !shown.contains(spec.name) && !excused(spec.name));
    let needless = UNSHOWN.iter().filter(|(name, _)| shown.contains(*name));
    missing
        .map(|spec| format!("{} is on no panel and in no alert", spec.name))
        .chain(needless.map(|(name, _)| format!("{name} is shown: take it out of UNSHOWN")))
        .collect()
}

// The checks themselves.

/// Breaks a text in one place, and fails unless the check says the word.
fn breaks(of: &str, from: &str, to: &str, says: &str, check: impl Fn(&str) -> Vec<String>) {
    assert!(of.contains(from), "{from} is not there to be broken");
    let found = check(&of.replacen(from, to, 1));
    assert!(found.iter().any(|what| what.contains(says)), "{from} → {to} should say {says:?}, says {found:?}");
}

#[test]
fn a_renamed_metric_label_or_value_is_found() {
    let recorded = recorded(&read("rules.yaml"));
    let unknown_in_panels = |json: &str| unknown_in_panels(json, &recorded);
    let json: String = read("overview.json");
    breaks(&json, "hotserve_stream_lag_seconds", "hotserve_stream_delay_seconds", "no metric", unknown_in_panels);
    breaks(&json, "hotserve_stream_lag_seconds", "hotserve_stream_lag_seconds_sum", "no metric", unknown_in_panels);
    breaks(&json, "_duration_seconds_bucket", "_duration_seconds", "no metric", unknown_in_panels);
    let serving = read("serving.json");
    breaks(&serving, "process_open_fds", "process_opened_fds", "no metric", unknown_in_panels);
    breaks(&serving, "ratio_rate5m", "ratio_rate4m", "no metric", unknown_in_panels);
    breaks(&json, "label_values(hotserve_build_info", "label_values(hotserve_info", "no metric", unknown_in_panels);
    breaks(&json, "changes(hotserve_generation", "changes(hotserve_era", "no metric", unknown_in_panels);
    breaks(&json, "by (reason)", "by (cause)", "the label cause", unknown_in_panels);
    breaks(&json, "{{reason}}", "{{cause}}", "the label cause", unknown_in_panels);
    breaks(&json, r#"status=~\"5.."#, r#"status=~\"6.."#, "like 6..", unknown_in_panels);

    let yaml = all_rules();
    breaks(&yaml, "hotserve_live_generations >", "hotserve_generations >", "no metric", unknown_in_rules);
    breaks(&all_rules(), "ratio_rate1h > ", "ratio_rate3h > ", "no metric", unknown_in_rules);
    breaks(&yaml, "outcome=\"throttled\"", "result=\"throttled\"", "no label result", unknown_in_rules);
    breaks(&yaml, "outcome=\"throttled\"", "outcome=\"slowed\"", "no outcome like slowed", unknown_in_rules);
    breaks(
        &read("rules.yaml"),
        "/predict.*|/state.*",
        "/predict.*|/status.*",
        "no route like /status.*",
        unknown_in_rules,
    );
    breaks(&yaml, "job, instance, shard)", "job, instance, shard_id)", "the label shard_id", unknown_in_rules);
    breaks(&yaml, "$labels.shard ", "$labels.shard_id ", "the label shard_id", unknown_in_rules);
}

#[test]
fn a_metric_that_is_shown_nowhere_is_found() {
    let without = |json: String| json.replace("hotserve_stream_shards", "hotserve_stream_gaps_total");
    let found = unshown(&dashboards().into_iter().map(without).collect::<Vec<_>>(), &all_rules());
    assert!(found.contains(&"hotserve_stream_shards is on no panel and in no alert".to_owned()), "{found:?}");
}

#[test]
fn a_dashboard_that_breaks_a_rule_is_found() {
    let json = read("overview.json");
    let lint = |json: &str| lint(json, "hotserve-overview");
    let cases = [
        ("\"label\": \"Data source\"", "\"label\": \"Source\"", "template-datasource-rule"),
        ("\"label\": \"Job\"", "\"label\": \"Service\"", "template-job-rule"),
        ("\"label\": \"Instance\"", "\"label\": \"Host\"", "template-instance-rule"),
        ("\"label_values(", "\"all_values(", "template-label-promql-rule"),
        ("\"refresh\": 2", "\"refresh\": 1", "template-on-time-change-reload-rule"),
        ("\"title\": \"Ready instances\"", "\"title\": \"\"", "panel-title-description-rule"),
        ("\"unit\": \"reqps\"", "\"unit\": \"req/s\"", "panel-units-rule"),
        ("[$__rate_interval]", "[5m]", "target-rate-interval-rule"),
        ("sum(hotserve_ready{job=~\\\"$job\\\",", "sum(hotserve_ready{", "target-job-rule"),
        (
            "sum(hotserve_ready{job=~\\\"$job\\\",instance=~\\\"$instance\\\"",
            "sum(hotserve_ready{job=~\\\"$job\\\"",
            "target-instance-rule",
        ),
        ("sum(hotserve_ready", "sum((hotserve_ready", "target-promql-rule"),
        (
            "sum(hotserve_ready{job=~\\\"$job\\\"",
            "sum(hotserve_swaps_total{job=~\\\"$job\\\"",
            "target-counter-agg-rule",
        ),
        ("\"editable\": false", "\"editable\": true", "uneditable-dashboard-rule"),
        ("\"id\": null", "\"id\": 7", "a file to provision"),
        ("\"uid\": \"hotserve-overview\"", "\"uid\": \"hotserve\"", "a file to provision"),
        ("\"name\": \"Swaps\"", "\"name\": \"Deployments\"", "swaps are marked"),
        ("\"keepTime\": true", "\"keepTime\": false", "lead to each other"),
        ("instance=~\\\"$instance|\\\"", "instance=~\\\"a\\\"", "target-instance-rule"),
    ];
    for (from, to, says) in cases {
        breaks(&json, from, to, says, lint);
    }
    let (before, panels) = json.split_once("\"panels\"").unwrap();
    let fixed = format!("{before}\"panels\"{}", panels.replacen("${datasource}", "prometheus", 1));
    assert!(lint(&fixed).iter().any(|what| what.contains("panel-datasource-rule")), "{:?}", lint(&fixed));
    breaks(&json, "\"x\": 4, \"y\": 1, \"w\": 4", "\"x\": 4, \"y\": 1, \"w\": 5", "overlap", misplaced);
    breaks(&json, "\"x\": 4, \"y\": 1, \"w\": 4", "\"x\": 4, \"y\": 1, \"w\": 3", "narrower", misplaced);
}

#[test]
fn an_alert_without_a_cure_or_a_case_is_found() {
    let (yaml, readme, cases) = (read("alerts.yaml"), read("README.md"), cases());
    let (heading, name) = ("### HotserveStreamGap", "alertname: HotserveStreamGap");
    breaks(&readme, heading, "### StreamGap", "no cure", |readme| uncured(&yaml, readme, &cases));
    breaks(&yaml, "alert: HotserveStreamGap", "alert: HotserveHole", "is no alert", |yaml| {
        uncured(yaml, &readme, &cases)
    });
    breaks(&yaml, "#hotservestreamgap", "#gap", "does not point at", |yaml| uncured(yaml, &readme, &cases));
    breaks(&yaml, "severity: page", "severity: high", "no severity", |yaml| uncured(yaml, &readme, &cases));
    breaks(&cases, name, "alertname: Hole", "in which it fires", |cases| uncured(&yaml, &readme, cases));
    let quiet = format!("{name}\n        exp_alerts: []");
    breaks(&cases, &quiet, "alertname: Hole", "stays silent", |cases| uncured(&yaml, &readme, cases));
}
