//! The dashboard, the alerts and their cures: they speak of what the server exports, and leave none of it out.
//!
//! Each check is a function over the text of the files and answers with what is wrong. The last tests break a file and
//! show that its check says so.

use std::collections::BTreeSet;

use hotserve::metrics::{Kind, TABLE};
use serde_json::Value;

use crate::support::repository;

/// What the crate metrics-process exports.
const PROCESS: &[&str] = &[
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
    "process_virtual_memory_max_bytes",
];
/// Labels that Prometheus gives to everything it scrapes.
const TARGET_LABELS: &[&str] = &["job", "instance"];
/// Metrics that no panel and no alert needs, each with the reason.
const UNSHOWN: &[(&str, &str)] = &[
    ("hotserve_connections", "of one instance, for who looks into it"),
    ("hotserve_connections_limit", "of one instance, for who looks into it"),
    ("hotserve_connections_opened_total", "of one instance, for who looks into it"),
    ("hotserve_connections_refused_total", "of one instance, for who looks into it"),
    ("hotserve_connections_ended_total", "of one instance, for who looks into it"),
    ("hotserve_requests_shed_total", "is among the requests that were answered 503"),
    ("hotserve_tls_certificate_expiry_timestamp_seconds", "0 where no TLS is spoken"),
    ("hotserve_tls_reloads_total", "0 where no TLS is spoken"),
    ("hotserve_reloads_total", "an operator who sends SIGHUP looks at the log, and at /history"),
];
/// Units of Grafana that the dashboard may use; a misspelt one would be shown as text behind the number.
const UNITS: &[&str] = &["none", "short", "percentunit", "s", "bytes", "Bps", "reqps", "ops", "cps", "dateTimeFromNow"];
/// Columns that a panel needs to be legible on a screen 1280 pixels wide, of which Grafana makes 24.
const NARROWEST: &[(&str, u64)] = &[("stat", 4), ("timeseries", 8), ("table", 9)];

fn read(name: &str) -> String {
    std::fs::read_to_string(repository("dashboards").join(name)).unwrap()
}

/// Fails with what a check found.
fn check(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn panels_ask_for_what_the_server_exports() {
    check(&unknown_in_panels(&read("overview.json")));
}

#[test]
fn rules_ask_for_what_the_server_exports() {
    check(&unknown_in_rules(&read("alerts.yaml")));
}

#[test]
fn every_metric_is_on_a_panel_or_in_an_alert() {
    check(&unshown(&read("overview.json"), &read("alerts.yaml")));
}

#[test]
fn the_dashboard_keeps_the_rules_of_dashboard_linter() {
    check(&lint(&read("overview.json")));
}

#[test]
fn panels_neither_overlap_nor_get_too_narrow() {
    check(&misplaced(&read("overview.json")));
}

#[test]
fn every_alert_has_a_severity_a_cure_and_two_test_cases() {
    check(&uncured(&read("alerts.yaml"), &read("README.md"), &read("alerts_test.yaml")));
}

// PromQL, as far as the checks need it.

/// What an expression names.
#[derive(Debug, Default)]
struct Query {
    selectors: Vec<Selector>,
    /// Labels in `by`, `on` and the like.
    groupings: Vec<String>,
}

/// A metric with its matchers.
#[derive(Debug)]
struct Selector {
    metric: String,
    matchers: Vec<(String, String, String)>,
    range: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Range(String),
    Sign(String),
}

fn tokens(expr: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expr;
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        let end_of = |keep: &dyn Fn(char) -> bool| rest.find(|c| !keep(c)).unwrap_or(rest.len());
        let end = match first {
            '"' | '\'' => {
                let mut text = String::new();
                let mut chars = rest.char_indices().skip(1);
                let mut end = rest.len();
                while let Some((at, c)) = chars.next() {
                    match c {
                        '\\' => text.extend(chars.next().map(|(_, escaped)| escaped)),
                        _ if c == first => {
                            end = at + 1;
                            break;
                        }
                        _ => text.push(c),
                    }
                }
                tokens.push(Token::Text(text));
                end
            }
            '[' => {
                let end = rest.find(']').map_or(rest.len(), |at| at + 1);
                tokens.push(Token::Range(rest[1..end - 1].to_owned()));
                end
            }
            _ if first.is_ascii_digit() => end_of(&|c| word(c) || c == '.'),
            _ if word(first) => {
                let end = end_of(&word);
                tokens.push(Token::Word(rest[..end].to_owned()));
                end
            }
            _ if first.is_whitespace() => first.len_utf8(),
            '=' | '!' | '<' | '>' | '~' => {
                let end = end_of(&|c| matches!(c, '=' | '!' | '<' | '>' | '~'));
                tokens.push(Token::Sign(rest[..end].to_owned()));
                end
            }
            _ => {
                tokens.push(Token::Sign(first.to_string()));
                first.len_utf8()
            }
        };
        rest = &rest[end..];
    }
    tokens
}

fn parse(expr: &str) -> Query {
    const LISTS: &[&str] = &["by", "without", "on", "ignoring", "group_left", "group_right"];
    const OPERATORS: &[&str] = &["and", "or", "unless", "bool", "offset", "inf", "nan"];
    let is = |token: Option<&Token>, sign: &str| matches!(token, Some(Token::Sign(found)) if found == sign);
    let tokens = tokens(expr);
    let mut query = Query::default();
    let mut at = 0;
    while at < tokens.len() {
        let Token::Word(word) = &tokens[at] else {
            at += 1;
            continue;
        };
        at += 1;
        if LISTS.contains(&word.as_str()) {
            if is(tokens.get(at), "(") {
                while at < tokens.len() && !is(tokens.get(at), ")") {
                    if let Token::Word(label) = &tokens[at] {
                        query.groupings.push(label.clone());
                    }
                    at += 1;
                }
            }
            continue;
        }
        let aggregates = matches!(tokens.get(at), Some(Token::Word(next)) if next == "by" || next == "without");
        if OPERATORS.contains(&word.as_str()) || aggregates || is(tokens.get(at), "(") {
            continue;
        }
        let mut selector = Selector { metric: word.clone(), matchers: Vec::new(), range: None };
        if is(tokens.get(at), "{") {
            while at < tokens.len() && !is(tokens.get(at), "}") {
                if let [Token::Word(label), Token::Sign(sign), Token::Text(value)] =
                    &tokens[at..tokens.len().min(at + 3)]
                {
                    selector.matchers.push((label.clone(), sign.clone(), value.clone()));
                }
                at += 1;
            }
            at += 1;
        }
        if let Some(Token::Range(range)) = tokens.get(at) {
            selector.range = Some(range.clone());
        }
        query.selectors.push(selector);
    }
    query
}

/// Whether a pattern of letters, `.`, `.*` and `.+` matches the whole text.
fn matches_whole(pattern: &str, text: &str) -> bool {
    let Some(first) = pattern.chars().next() else { return text.is_empty() };
    let rest = &pattern[first.len_utf8()..];
    let tails = |from: usize| text.char_indices().map(|(at, _)| at).chain([text.len()]).skip(from);
    match (first, rest.chars().next()) {
        ('.', Some('*')) => tails(0).any(|at| matches_whole(&rest[1..], &text[at..])),
        ('.', Some('+')) => tails(1).any(|at| matches_whole(&rest[1..], &text[at..])),
        _ => text
            .chars()
            .next()
            .is_some_and(|c| (first == '.' || first == c) && matches_whole(rest, &text[c.len_utf8()..])),
    }
}

/// A label, and all its values where they are closed.
type Label = (&'static str, &'static [&'static str]);

/// The table's metric behind the name of a series.
fn base(series: &str) -> &str {
    let histogram = |name: &str| TABLE.iter().any(|spec| spec.name == name && matches!(spec.kind, Kind::Histogram(_)));
    let parts = ["_bucket", "_sum", "_count"];
    parts.iter().filter_map(|part| series.strip_suffix(part)).find(|name| histogram(name)).unwrap_or(series)
}

/// The labels of a series, or nothing if there is none of this name.
fn labels_of(series: &str) -> Option<Vec<Label>> {
    let name = base(series);
    if let Some(spec) = TABLE.iter().find(|spec| spec.name == name) {
        // A histogram has no series of its own name.
        let bare = matches!(spec.kind, Kind::Histogram(_)) && name == series;
        let bucket: &[Label] = if series.ends_with("_bucket") { &[("le", &[])] } else { &[] };
        return (!bare).then(|| [spec.labels, bucket].concat());
    }
    (series == "up" || PROCESS.contains(&series)).then(Vec::new)
}

/// What is wrong with an expression; `recorded` are the names that rules define.
fn unknown(expr: &str, recorded: &[String]) -> Vec<String> {
    let query = parse(expr);
    let mut wrong = Vec::new();
    let mut known: BTreeSet<&str> = TARGET_LABELS.iter().copied().collect();
    for Selector { metric, matchers, .. } in &query.selectors {
        if recorded.contains(metric) {
            continue;
        }
        let Some(labels) = labels_of(metric) else {
            wrong.push(format!("there is no metric {metric}"));
            continue;
        };
        known.extend(labels.iter().map(|(label, _)| label));
        for (label, sign, value) in matchers {
            if TARGET_LABELS.contains(&label.as_str()) {
                continue;
            }
            let Some((_, values)) = labels.iter().find(|(name, _)| name == label) else {
                wrong.push(format!("{metric} has no label {label}"));
                continue;
            };
            let regex = sign.ends_with('~');
            for alternative in value.split('|').filter(|_| !values.is_empty()) {
                let fits = |value: &&str| if regex { matches_whole(alternative, value) } else { *value == alternative };
                if !values.iter().any(&fits) {
                    wrong.push(format!("{metric} has no {label} like {alternative}"));
                }
            }
        }
    }
    if query.selectors.is_empty() {
        wrong.push("it names no metric".to_owned());
    }
    for label in query.groupings.iter().filter(|label| !known.contains(label.as_str())) {
        wrong.push(format!("no metric of it has the label {label}"));
    }
    wrong
}

/// The labels that a template names: `{{label}}` of a legend, `{{ $labels.label }}` of an annotation.
fn template_labels(text: &str) -> Vec<&str> {
    let word = |text: &str| text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let inside = text.split("{{").skip(1).filter_map(|part| part.split("}}").next());
    inside
        .flat_map(|part| match part.contains('$') {
            true => part.split("$labels.").skip(1).map(|rest| &rest[..word(rest)]).collect(),
            false => vec![part.trim()],
        })
        .collect()
}

/// What is wrong with the labels of a template over the results of an expression.
fn unknown_in_template(text: &str, expr: &str) -> Vec<String> {
    let query = parse(expr);
    let labels = query.selectors.iter().filter_map(|selector| labels_of(&selector.metric)).flatten();
    let known: BTreeSet<&str> = labels.map(|(label, _)| label).chain(TARGET_LABELS.iter().copied()).collect();
    let unknown = template_labels(text).into_iter().filter(|label| !known.contains(label));
    unknown.map(|label| format!("{text:?} names the label {label}, which no metric of it has")).collect()
}

// The dashboard.

fn dashboard(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The panels that show something.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    list(dashboard, "/panels").iter().filter(|panel| text(panel, "/type") != "row")
}

/// Every expression of the dashboard and its legend, with the place where it stands.
fn expressions(dashboard: &Value) -> Vec<(String, &str, &str)> {
    let targets = panels(dashboard).flat_map(|panel| {
        let place = format!("panel {:?}", text(panel, "/title"));
        list(panel, "/targets").iter().map(move |it| (place.clone(), text(it, "/expr"), text(it, "/legendFormat")))
    });
    let annotations = list(dashboard, "/annotations/list").iter();
    let annotations = annotations.map(|it| ("annotation".to_owned(), text(it, "/expr"), text(it, "/textFormat")));
    targets.chain(annotations).collect()
}

/// `label_values(selector, label)`, taken apart.
fn label_values(query: &str) -> Option<(&str, &str)> {
    query.strip_prefix("label_values(")?.strip_suffix(')')?.rsplit_once(',').map(|(expr, label)| (expr, label.trim()))
}

fn unknown_in_panels(json: &str) -> Vec<String> {
    let dashboard = dashboard(json);
    let mut wrong = Vec::new();
    for (place, expr, legend) in expressions(&dashboard) {
        let found = unknown(expr, &[]).into_iter().chain(unknown_in_template(legend, expr));
        wrong.extend(found.map(|what| format!("{place}: {what}")));
    }
    for variable in list(&dashboard, "/templating/list").iter().filter(|it| text(it, "/type") == "query") {
        let expr = label_values(text(variable, "/query")).map_or("", |(expr, _)| expr);
        wrong
            .extend(unknown(expr, &[]).into_iter().map(|what| format!("variable {}: {what}", text(variable, "/name"))));
    }
    wrong
}

/// The rules of grafana/dashboard-linter, by its names for them, and four of our own.
fn lint(json: &str) -> Vec<String> {
    let dashboard = dashboard(json);
    let mut wrong = Vec::new();
    let mut expect = |fine: bool, rule: &str, place: &str| {
        if !fine {
            wrong.push(format!("{rule}: {place}"));
        }
    };
    let variables = list(&dashboard, "/templating/list");
    let templated = |value: &Value| {
        text(value, "/datasource/uid") == "${datasource}" && text(value, "/datasource/type") == "prometheus"
    };

    let sources: Vec<_> = variables.iter().filter(|it| text(it, "/type") == "datasource").collect();
    let fine = sources.len() == 1
        && text(sources[0], "/name") == "datasource"
        && text(sources[0], "/label") == "Data source"
        && text(sources[0], "/query") == "prometheus";
    expect(fine, "template-datasource-rule", "one variable, datasource, of type prometheus");
    for (rule, name, label) in [("template-job-rule", "job", "Job"), ("template-instance-rule", "instance", "Instance")]
    {
        let fine = variables.iter().any(|it| {
            text(it, "/name") == name
                && text(it, "/label") == label
                && text(it, "/type") == "query"
                && text(it, "/allValue") == ".+"
                && it["multi"] == true
                && it["includeAll"] == true
                && templated(it)
        });
        expect(fine, rule, name);
    }
    for it in variables.iter().filter(|it| text(it, "/type") == "query") {
        let fine = label_values(text(it, "/query")).is_some_and(|(expr, _)| parse(expr).selectors.len() == 1);
        expect(fine, "template-label-promql-rule", text(it, "/name"));
        expect(it["refresh"] == 2, "template-on-time-change-reload-rule", text(it, "/name"));
    }

    let mut ids = BTreeSet::new();
    for panel in list(&dashboard, "/panels") {
        expect(ids.insert(panel["id"].as_u64()), "each panel has an id of its own", text(panel, "/title"));
    }
    for panel in panels(&dashboard) {
        let title = text(panel, "/title");
        expect(templated(panel), "panel-datasource-rule", title);
        expect(!title.is_empty() && !text(panel, "/description").is_empty(), "panel-title-description-rule", title);
        expect(text(panel, "/description").contains("ormal"), "a description says what is normal", title);
        expect(!list(panel, "/targets").is_empty(), "panel-no-targets-rule", title);
        let overrides = list(panel, "/fieldConfig/overrides").iter().flat_map(|it| list(it, "/properties"));
        let units = overrides.filter(|it| it["id"] == "unit").map(|it| text(it, "/value"));
        for unit in units.chain([text(panel, "/fieldConfig/defaults/unit")]) {
            expect(UNITS.contains(&unit), "panel-units-rule", &format!("{title} has the unit {unit:?}"));
        }
        for target in list(panel, "/targets") {
            let expr = text(target, "/expr");
            let place = format!("{title}: {expr}");
            let query = parse(expr);
            let pairs = [('(', ')'), ('{', '}'), ('[', ']')];
            let balanced =
                pairs.iter().all(|(open, close)| expr.matches(*open).count() == expr.matches(*close).count());
            expect(balanced && !query.selectors.is_empty(), "target-promql-rule", &place);
            expect(templated(target), "each target has the panel's data source", &place);
            for Selector { metric, matchers, range } in &query.selectors {
                let has = |name: &str| {
                    let value = format!("${name}");
                    matchers.iter().any(|it| *it == (name.to_owned(), "=~".to_owned(), value.clone()))
                };
                expect(has("job"), "target-job-rule", &place);
                expect(has("instance"), "target-instance-rule", &place);
                let fine = range.as_ref().is_none_or(|range| range == "$__rate_interval");
                expect(fine, "target-rate-interval-rule", &place);
                expect(!metric.ends_with("_total") || range.is_some(), "target-counter-agg-rule", &place);
            }
        }
    }
    expect(dashboard["editable"] == false, "uneditable-dashboard-rule", "editable is false");
    let portable =
        dashboard["id"].is_null() && dashboard.get("__inputs").is_none() && dashboard["uid"] == "hotserve-overview";
    expect(
        portable && dashboard["schemaVersion"] == 39,
        "a file to provision has a fixed uid, no id and no inputs",
        "",
    );
    wrong
}

fn misplaced(json: &str) -> Vec<String> {
    let dashboard = dashboard(json);
    let mut wrong = Vec::new();
    let placed: Vec<_> = list(&dashboard, "/panels")
        .iter()
        .map(|panel| {
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap_or(0));
            (text(panel, "/title"), text(panel, "/type"), x..x + w, y..y + h)
        })
        .collect();
    for (at, (title, kind, columns, rows)) in placed.iter().enumerate() {
        if columns.is_empty() || rows.is_empty() || columns.end > 24 {
            wrong.push(format!("{title} does not lie within the 24 columns"));
        }
        let least = NARROWEST.iter().find(|(of, _)| of == kind).map_or(24, |(_, least)| *least);
        if columns.end - columns.start < least {
            wrong.push(format!("{title} is narrower than {least} columns"));
        }
        for (other, _, across, down) in &placed[..at] {
            let meet = |a: &std::ops::Range<u64>, b: &std::ops::Range<u64>| a.start < b.end && b.start < a.end;
            if meet(columns, across) && meet(rows, down) {
                wrong.push(format!("{title} and {other} overlap"));
            }
        }
    }
    wrong
}

// The rules.

/// A recording rule or an alert, with its fields: expr, severity, summary and so on.
#[derive(Debug)]
struct Rule {
    name: String,
    records: bool,
    fields: Vec<(String, String)>,
}

impl Rule {
    fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// The rules of alerts.yaml, line by line: it is written here, and in one way only.
fn rules(yaml: &str) -> Vec<Rule> {
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

fn unknown_in_rules(yaml: &str) -> Vec<String> {
    let rules = rules(yaml);
    let recorded: Vec<String> = rules.iter().filter(|rule| rule.records).map(|rule| rule.name.clone()).collect();
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

fn uncured(yaml: &str, readme: &str, cases: &str) -> Vec<String> {
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

fn unshown(json: &str, yaml: &str) -> Vec<String> {
    let dashboard = dashboard(json);
    let rules = rules(yaml);
    let exprs = expressions(&dashboard).into_iter().map(|(_, expr, _)| expr);
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
    let json = read("overview.json");
    breaks(&json, "hotserve_stream_lag_seconds", "hotserve_stream_delay_seconds", "no metric", unknown_in_panels);
    breaks(&json, "hotserve_stream_lag_seconds", "hotserve_stream_lag_seconds_sum", "no metric", unknown_in_panels);
    breaks(&json, "_duration_seconds_bucket", "_duration_seconds", "no metric", unknown_in_panels);
    breaks(&json, "process_open_fds", "process_opened_fds", "no metric", unknown_in_panels);
    breaks(&json, "label_values(hotserve_build_info", "label_values(hotserve_info", "no metric", unknown_in_panels);
    breaks(&json, "changes(hotserve_generation", "changes(hotserve_era", "no metric", unknown_in_panels);
    breaks(&json, "by (reason)", "by (cause)", "the label cause", unknown_in_panels);
    breaks(&json, "{{reason}}", "{{cause}}", "the label cause", unknown_in_panels);
    breaks(&json, r#"status=~\"5.."#, r#"status=~\"6.."#, "like 6..", unknown_in_panels);

    let yaml = read("alerts.yaml");
    breaks(&yaml, "hotserve_live_generations >", "hotserve_generations >", "no metric", unknown_in_rules);
    breaks(&yaml, "ratio_rate1h > ", "ratio_rate3h > ", "no metric", unknown_in_rules);
    breaks(&yaml, "outcome=\"throttled\"", "result=\"throttled\"", "no label result", unknown_in_rules);
    breaks(&yaml, "outcome=\"throttled\"", "outcome=\"slowed\"", "no outcome like slowed", unknown_in_rules);
    breaks(&yaml, "/predict.*|/state.*", "/predict.*|/status.*", "no route like /status.*", unknown_in_rules);
    breaks(&yaml, "job, instance, shard)", "job, instance, shard_id)", "the label shard_id", unknown_in_rules);
    breaks(&yaml, "$labels.shard ", "$labels.shard_id ", "the label shard_id", unknown_in_rules);
}

#[test]
fn a_metric_that_is_shown_nowhere_is_found() {
    let json = read("overview.json").replace("hotserve_stream_shards", "hotserve_stream_gaps_total");
    let found = unshown(&json, &read("alerts.yaml"));
    assert!(found.contains(&"hotserve_stream_shards is on no panel and in no alert".to_owned()), "{found:?}");
}

#[test]
fn a_dashboard_that_breaks_a_rule_is_found() {
    let json = read("overview.json");
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
    let (yaml, readme, cases) = (read("alerts.yaml"), read("README.md"), read("alerts_test.yaml"));
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
