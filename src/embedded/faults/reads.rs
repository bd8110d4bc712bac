//! Reading by polling: iterators of the layer's own, and pages from its index.

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answers::{self, Refusal};
use super::index::{Cursor, Entry, Limits, Page};
use super::kinesis::{Asked, Described, Inner, place, said, sequence, time_ms, timestamp};
use super::{Faults, MillisBehind, millis};

/// What an iterator stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Token {
    pub(super) stream: String,
    pub(super) shard: String,
    cursor: Cursor,
    made_ms: u64,
    /// How many pages were empty on purpose since the last one with records.
    empty_pages: u32,
}

impl Token {
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_json::from_slice(&STANDARD.decode(text).ok()?).ok()
    }

    fn write(&self) -> String {
        STANDARD.encode(json!(self).to_string())
    }
}

impl Inner {
    pub(super) async fn iterator(&self, asked: Asked) -> Response {
        let (Some(stream), Some(shard)) = (asked.stream(), asked.text("ShardId").map(str::to_owned)) else {
            return self.pass(asked).await;
        };
        let kind = asked.text("ShardIteratorType").unwrap_or_default().to_owned();
        let cursor = self.begin(&asked.head, &stream, &shard, &kind, &asked.body).await;
        match cursor {
            Ok(cursor) => {
                let made_ms = self.faults.now_ms();
                let token = Token { stream, shard, cursor, made_ms, empty_pages: 0 };
                said(&json!({"ShardIterator": token.write()}))
            }
            Err(answer) => *answer,
        }
    }

    /// Where a reader begins; Kinesis says whether what is asked makes sense, all but the time.
    async fn begin(
        &self,
        head: &Parts,
        stream: &str,
        shard: &str,
        kind: &str,
        body: &Value,
    ) -> Result<Cursor, Refusal> {
        let mut check = body.clone();
        let is_time = kind == "AT_TIMESTAMP" && body.get("Timestamp").is_some_and(Value::is_number);
        if let (true, Some(check)) = (is_time, check.as_object_mut()) {
            check.remove("Timestamp");
            check.insert("ShardIteratorType".to_owned(), json!("LATEST"));
        }
        self.ask(head, "GetShardIterator", &check).await?;
        self.known(head, stream).await?;
        let at = sequence(body.get("StartingSequenceNumber"));
        self.cursor(stream, shard, kind, at, time_ms(body.get("Timestamp")))
    }

    /// The place and time of a start.
    pub(super) fn cursor(
        &self,
        stream: &str,
        shard: &str,
        kind: &str,
        at: Option<crate::id::SequenceNumber>,
        at_ms: u64,
    ) -> Result<Cursor, Refusal> {
        let now_ms = self.faults.now_ms();
        let mut index = self.faults.index();
        let Some(log) = index.stream(stream).and_then(|stream| stream.known(shard)) else {
            let message = format!("Shard {shard} in stream {stream} under account 000000000000 does not exist");
            return Err(answers::refused("ResourceNotFoundException", &message).into());
        };
        match (kind, at) {
            ("TRIM_HORIZON", _) => Ok(log.start()),
            ("AT_TIMESTAMP", _) if at_ms > now_ms => {
                let message = format!(
                    "The timestampInMillis parameter cannot be greater than the currentTimestampInMillis. \
                     timestampInMillis: {at_ms}, currentTimestampInMillis: {now_ms}"
                );
                Err(answers::refused("InvalidArgumentException", &message).into())
            }
            ("AT_TIMESTAMP", _) => Ok(log.at_time(at_ms, now_ms)),
            ("AT_SEQUENCE_NUMBER" | "AFTER_SEQUENCE_NUMBER", Some(at)) if log.is_trimmed(&at) => {
                let message = format!(
                    "StartingSequenceNumber {at} used in GetShardIterator on shard {shard} in stream {stream} under \
                     account 000000000000 is invalid."
                );
                Err(answers::refused("InvalidArgumentException", &message).into())
            }
            ("AT_SEQUENCE_NUMBER" | "AFTER_SEQUENCE_NUMBER", Some(at)) => Ok(log.at_place(place(kind, at))),
            _ => Ok(log.tip(now_ms)),
        }
    }

    pub(super) async fn records(&self, asked: &Asked, token: Option<Token>) -> Response {
        let Some(token) = token else {
            return answers::refused("InvalidArgumentException", "Invalid ShardIterator.");
        };
        let rules = self.faults.rules().kinesis;
        let (now_ms, life_ms) = (self.faults.now_ms(), millis(rules.iterator_life));
        if now_ms.saturating_sub(token.made_ms) > life_ms {
            let time = |ms: u64| jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(0)).unwrap_or_default();
            let utc = |ms: u64| time(ms).strftime("%a %b %d %H:%M:%S UTC %Y").to_string();
            let message = format!(
                "Iterator expired. The iterator was created at time {} while right now it is {} which is further in \
                 the future than the tolerated delay of {life_ms} milliseconds.",
                utc(token.made_ms),
                utc(now_ms)
            );
            return answers::refused("ExpiredIteratorException", &message);
        }
        let description = match self.known(&asked.head, &token.stream).await {
            Ok(description) => description,
            Err(answer) => return *answer,
        };
        let wanted = asked.body.get("Limit").and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
        let limits = Limits {
            skip_ms: millis(rules.page_skip),
            records: wanted.filter(|limit| *limit > 0).unwrap_or(usize::MAX).min(rules.page_limit),
        };
        let Some((page, ended)) = self.page(&description, &token.stream, &token.shard, &token.cursor, limits).await
        else {
            return answers::refused("InvalidArgumentException", "Invalid ShardIterator.");
        };
        let children = (ended && !rules.hide_children).then(|| description.children(&token.shard));
        let is_held_back = !page.entries.is_empty() && token.empty_pages < rules.empty_pages;
        let (entries, behind_ms, cursor, empty_pages) = if is_held_back {
            let behind_ms = now_ms.saturating_sub(token.cursor.at_ms).max(1);
            (Vec::new(), behind_ms, token.cursor.clone(), token.empty_pages + 1)
        } else {
            // Quiet time is no page that was made empty.
            let empty_pages = if page.entries.is_empty() { token.empty_pages } else { 0 };
            (page.entries, page.behind_ms, page.next, empty_pages)
        };
        let mut answer = json!({"Records": entries.iter().map(record).collect::<Vec<_>>()});
        if !ended {
            let next = Token { cursor, made_ms: now_ms, empty_pages, ..token };
            insert(&mut answer, "NextShardIterator", json!(next.write()));
        }
        if let Some(children) = children {
            insert(&mut answer, "ChildShards", children);
        }
        if let Some(behind_ms) = self.faults.told(behind_ms, entries.is_empty()) {
            insert(&mut answer, "MillisBehindLatest", json!(behind_ms));
        }
        said(&answer)
    }

    /// A page of a shard, and whether the shard has ended before it.
    pub(super) async fn page(
        &self,
        description: &Described,
        stream: &str,
        shard: &str,
        cursor: &Cursor,
        limits: Limits,
    ) -> Option<(Page, bool)> {
        let read = || {
            let now_ms = self.faults.now_ms();
            Some(self.faults.index().stream(stream)?.known(shard)?.page(cursor, now_ms, limits))
        };
        let is_at_end = |page: &Page| page.is_last && page.entries.is_empty();
        let page = read()?;
        let can_end = description.is_closed(shard) && !self.faults.rules().kinesis.endless_shards;
        if !can_end || !is_at_end(&page) {
            return Some((page, false));
        }
        // A record that was put before the end may not be in the index yet.
        let _alone = self.faults.puts.lock().await;
        let page = read()?;
        let ended = is_at_end(&page);
        Some((page, ended))
    }
}

impl Faults {
    /// What `MillisBehindLatest` says instead of the truth.
    pub(super) fn told(&self, behind_ms: u64, is_empty: bool) -> Option<u64> {
        let mut state = self.state();
        match state.rules.kinesis.millis_behind {
            MillisBehind::Truthful => Some(behind_ms),
            MillisBehind::Zero => Some(0),
            MillisBehind::Absent => None,
            MillisBehind::Constant(constant) => Some(millis(constant)),
            MillisBehind::Spurious(most) => {
                let is_idle = behind_ms == 0 && is_empty;
                let lie = is_idle && state.random.0.bool();
                Some(if lie { state.random.0.u64(1..=millis(most).max(1)) } else { behind_ms })
            }
        }
    }
}

pub(super) fn record(entry: &Entry) -> Value {
    json!({
        "SequenceNumber": entry.sequence.as_str(),
        "ApproximateArrivalTimestamp": timestamp(entry.arrival_ms),
        "Data": entry.data,
        "PartitionKey": entry.partition_key,
    })
}

pub(super) fn insert(answer: &mut Value, field: &str, value: Value) {
    if let Some(object) = answer.as_object_mut() {
        object.insert(field.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::faults::index::Place;

    #[test]
    fn an_iterator_is_what_it_stands_for_and_nothing_else_is_one() {
        let cursor = Cursor { place: Place::After("12".parse().unwrap()), at_ms: 34 };
        let token = Token { stream: "s".to_owned(), shard: "1".to_owned(), cursor, made_ms: 5, empty_pages: 0 };
        assert_eq!(Token::read(&token.write()), Some(token));
        assert_eq!(Token::read("AAAA"), None);
        assert_eq!(Token::read(""), None);
    }
}
