//! PromQL, as far as the checks need it, and what the server exports.

use std::collections::BTreeSet;

use hotserve::metrics::{Kind, TABLE};

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

/// What an expression names.
#[derive(Debug, Default)]
pub(super) struct Query {
    pub(super) selectors: Vec<Selector>,
    /// Labels in `by`, `on` and the like.
    pub(super) groupings: Vec<String>,
}

/// A metric with its matchers.
#[derive(Debug)]
pub(super) struct Selector {
    pub(super) metric: String,
    pub(super) matchers: Vec<(String, String, String)>,
    pub(super) range: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    Text(String),
    Range(String),
    Sign(String),
}

pub(super) fn tokens(expr: &str) -> Vec<Token> {
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

pub(super) fn parse(expr: &str) -> Query {
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
pub(super) fn matches_whole(pattern: &str, text: &str) -> bool {
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
pub(super) type Label = (&'static str, &'static [&'static str]);

/// The table's metric behind the name of a series.
pub(super) fn base(series: &str) -> &str {
    let histogram = |name: &str| TABLE.iter().any(|spec| spec.name == name && matches!(spec.kind, Kind::Histogram(_)));
    let parts = ["_bucket", "_sum", "_count"];
    parts.iter().filter_map(|part| series.strip_suffix(part)).find(|name| histogram(name)).unwrap_or(series)
}

/// The labels of a series, or nothing if there is none of this name.
pub(super) fn labels_of(series: &str) -> Option<Vec<Label>> {
    let name = base(series);
    if let Some(spec) = TABLE.iter().find(|spec| spec.name == name) {
        // A histogram has no series of its own name.
        let bare = matches!(spec.kind, Kind::Histogram(_)) && name == series;
        let bucket: &[Label] = if series.ends_with("_bucket") { &[("le", &[])] } else { &[] };
        return (!bare).then(|| [spec.labels, bucket].concat());
    }
    match series {
        "up" => Some(Vec::new()),
        "ALERTS" => Some(vec![("alertname", &[]), ("alertstate", &["pending", "firing"]), ("severity", &[])]),
        _ => PROCESS.contains(&series).then(Vec::new),
    }
}

/// What is wrong with an expression; `recorded` are the names that rules define, which keep the job alone.
pub(super) fn unknown(expr: &str, recorded: &[String]) -> Vec<String> {
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
pub(super) fn template_labels(text: &str) -> Vec<&str> {
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
pub(super) fn unknown_in_template(text: &str, expr: &str) -> Vec<String> {
    let query = parse(expr);
    let labels = query.selectors.iter().filter_map(|selector| labels_of(&selector.metric)).flatten();
    let known: BTreeSet<&str> = labels.map(|(label, _)| label).chain(TARGET_LABELS.iter().copied()).collect();
    let unknown = template_labels(text).into_iter().filter(|label| !known.contains(label));
    unknown.map(|label| format!("{text:?} names the label {label}, which no metric of it has")).collect()
}
