//! What a dashboard of Grafana must keep to.

use std::collections::BTreeSet;

use serde_json::Value;

use super::promql::{Selector, parse, unknown, unknown_in_template};

/// Units of Grafana that the dashboard may use; a misspelt one would be shown as text behind the number.
const UNITS: &[&str] = &["none", "short", "percentunit", "s", "bytes", "Bps", "reqps", "ops", "cps", "dateTimeFromNow"];
/// Columns that a panel needs to be legible on a screen 1280 pixels wide, of which Grafana makes 24.
const NARROWEST: &[(&str, u64)] = &[("stat", 4), ("timeseries", 8), ("table", 9)];

pub(super) fn dashboard(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The panels that show something.
pub(super) fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    list(dashboard, "/panels").iter().filter(|panel| text(panel, "/type") != "row")
}

/// Every expression of the dashboard and its legend, with the place where it stands.
pub(super) fn expressions(dashboard: &Value) -> Vec<(String, &str, &str)> {
    let targets = panels(dashboard).flat_map(|panel| {
        let place = format!("panel {:?}", text(panel, "/title"));
        list(panel, "/targets").iter().map(move |it| (place.clone(), text(it, "/expr"), text(it, "/legendFormat")))
    });
    let annotations = list(dashboard, "/annotations/list").iter();
    let annotations = annotations.map(|it| ("annotation".to_owned(), text(it, "/expr"), text(it, "/textFormat")));
    targets.chain(annotations).collect()
}

/// `label_values(selector, label)`, taken apart.
pub(super) fn label_values(query: &str) -> Option<(&str, &str)> {
    query.strip_prefix("label_values(")?.strip_suffix(')')?.rsplit_once(',').map(|(expr, label)| (expr, label.trim()))
}

pub(super) fn unknown_in_panels(json: &str, recorded: &[String]) -> Vec<String> {
    let dashboard = dashboard(json);
    let mut wrong = Vec::new();
    for (place, expr, legend) in expressions(&dashboard) {
        let found = unknown(expr, recorded).into_iter().chain(unknown_in_template(legend, expr));
        wrong.extend(found.map(|what| format!("{place}: {what}")));
    }
    for variable in list(&dashboard, "/templating/list").iter().filter(|it| text(it, "/type") == "query") {
        let expr = label_values(text(variable, "/query")).map_or("", |(expr, _)| expr);
        wrong
            .extend(unknown(expr, &[]).into_iter().map(|what| format!("variable {}: {what}", text(variable, "/name"))));
    }
    wrong
}

/// The rules of grafana/dashboard-linter, by its names for them, and some of our own. What rules record has no instance,
/// nor have some alerts.
pub(super) fn lint(json: &str, uid: &str) -> Vec<String> {
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
                let has = |name: &str, value: &str| {
                    matchers.iter().any(|it| *it == (name.to_owned(), "=~".to_owned(), value.to_owned()))
                };
                let of_instance = match metric.as_str() {
                    "ALERTS" => has("instance", "$instance|"),
                    recorded if recorded.contains(':') => true,
                    _ => has("instance", "$instance"),
                };
                expect(has("job", "$job"), "target-job-rule", &place);
                expect(of_instance, "target-instance-rule", &place);
                let fine = range.as_ref().is_none_or(|range| range == "$__rate_interval");
                expect(fine, "target-rate-interval-rule", &place);
                expect(!metric.ends_with("_total") || range.is_some(), "target-counter-agg-rule", &place);
            }
        }
    }
    expect(dashboard["editable"] == false, "uneditable-dashboard-rule", "editable is false");
    let portable = dashboard["id"].is_null() && dashboard.get("__inputs").is_none() && dashboard["uid"] == uid;
    expect(
        portable && dashboard["schemaVersion"] == 39,
        "a file to provision has a fixed uid, no id and no inputs",
        "",
    );
    let annotations = list(&dashboard, "/annotations/list");
    let swaps = annotations.iter().any(|it| text(it, "/name") == "Swaps" && it["enable"] == true && templated(it));
    expect(swaps, "swaps are marked on every panel", "annotations");
    let linked = list(&dashboard, "/links").iter().any(|it| {
        let tags = list(it, "/tags");
        text(it, "/type") == "dashboards" && tags == ["hotserve"] && it["includeVars"] == true && it["keepTime"] == true
    });
    expect(
        linked && list(&dashboard, "/tags").iter().any(|tag| tag == "hotserve"),
        "dashboards lead to each other",
        "links",
    );
    wrong
}

pub(super) fn misplaced(json: &str) -> Vec<String> {
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
