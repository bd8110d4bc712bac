//! Reading by subscription: the same index, as an event stream.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::index::{Cursor, Limits, Place};
use super::kinesis::{Asked, Inner, sequence, time_ms};
use super::reads::{insert, record};
use super::{FanOutRules, answers, frame, millis};

/// How often the index is looked at.
const TICK: Duration = Duration::from_millis(50);

/// The newest subscription of each consumer to each shard.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(Mutex<HashMap<(String, String), Newest>>);

#[derive(Debug, Clone, Copy)]
struct Newest {
    generation: u64,
    since: Instant,
}

impl Subscriptions {
    /// Makes a subscription the newest; none if the one before is too young to be taken over.
    fn begin(&self, consumer: &str, shard: &str, takeover_after: Duration, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (consumer.to_owned(), shard.to_owned());
        let before = all.get(&key).copied();
        if before.is_some_and(|before| now.saturating_duration_since(before.since) < takeover_after) {
            return None;
        }
        let generation = before.map_or(0, |before| before.generation + 1);
        all.insert(key, Newest { generation, since: now });
        Some(generation)
    }

    fn is_newest(&self, consumer: &str, shard: &str, generation: u64) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(consumer.to_owned(), shard.to_owned())).is_some_and(|newest| newest.generation == generation)
    }
}

impl Inner {
    pub(super) async fn subscribe(&self, asked: Asked) -> Response {
        let (Some(stream), Some(shard), Some(consumer)) =
            (asked.stream(), asked.text("ShardId").map(str::to_owned), asked.text("ConsumerARN").map(str::to_owned))
        else {
            return self.pass(asked).await;
        };
        let head = asked.head.clone();
        if let Err(answer) = self.known(&head, &stream).await {
            return *answer;
        }
        let start = asked.body.get("StartingPosition").cloned().unwrap_or_default();
        let kind = start.get("Type").and_then(Value::as_str).unwrap_or_default();
        // Kinesis judges the rest; of its answer the head is kept, its body ends here.
        let answer = self.pass(asked).await;
        if answer.status() != StatusCode::OK {
            return answer;
        }
        let (mut answer, _) = answer.into_parts();
        let at = sequence(start.get("SequenceNumber"));
        let cursor = match self.cursor(&stream, &shard, kind, at, time_ms(start.get("Timestamp"))) {
            Ok(cursor) => cursor,
            Err(answer) => return *answer,
        };
        let takeover_after = self.faults.rules().fan_out.takeover_after;
        let begun = self.faults.subscriptions.begin(&consumer, &shard, takeover_after, Instant::now());
        let Some(generation) = begun else {
            let message = format!(
                "Another active subscription exists for this consumer: {consumer} and shard: {shard}. Wait \
                 {takeover_after:?} and try again."
            );
            return answers::refused("ResourceInUseException", &message);
        };
        let now = Instant::now();
        let subscription = Subscription {
            inner: self.clone(),
            head,
            stream,
            shard,
            consumer,
            generation,
            cursor,
            begun: now,
            last_event: None,
            ended: false,
        };
        answer.headers.remove(CONTENT_LENGTH);
        answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/vnd.amazon.eventstream"));
        Response::from_parts(answer, subscription.body())
    }
}

struct Subscription {
    inner: Inner,
    head: Parts,
    stream: String,
    shard: String,
    consumer: String,
    generation: u64,
    cursor: Cursor,
    begun: Instant,
    last_event: Option<Instant>,
    ended: bool,
}

/// What comes next on a subscription.
enum Next {
    Frame(Bytes),
    End,
    Cut,
}

impl Subscription {
    fn body(self) -> Body {
        let is_black = self.inner.faults.rules().fan_out.blackhole;
        let first = stream::once(async move {
            if is_black {
                std::future::pending::<()>().await;
            }
            Ok(frame::initial_response())
        });
        let rest = stream::unfold(self, async |mut subscription| match subscription.next().await {
            Next::Frame(frame) => Some((Ok(frame), subscription)),
            Next::End => None,
            Next::Cut => Some((Err(std::io::Error::other("cut on purpose")), subscription)),
        });
        Body::from_stream(first.chain(rest))
    }

    async fn next(&mut self) -> Next {
        loop {
            let rules = self.inner.faults.rules();
            let age = self.begun.elapsed();
            if rules.fan_out.blackhole {
                // For ever: a rule that is taken back helps new subscriptions only.
                std::future::pending::<()>().await;
            }
            if self.ended || age >= rules.fan_out.session {
                return Next::End;
            }
            if rules.fan_out.cut_after.is_some_and(|after| age >= after) {
                return Next::Cut;
            }
            if !self.inner.faults.subscriptions.is_newest(&self.consumer, &self.shard, self.generation) {
                self.ended = true;
                let message = format!("Another subscription took over {}.", self.shard);
                return Next::Frame(frame::exception("ResourceInUseException", &message));
            }
            match self.event(&rules.fan_out).await {
                Some(event) => return Next::Frame(event),
                None => tokio::time::sleep(TICK).await,
            }
        }
    }

    /// The next event, if it is time for one.
    async fn event(&mut self, fan_out: &FanOutRules) -> Option<Bytes> {
        let rules = self.inner.faults.rules().kinesis;
        let gone = "The stream is not there any more.";
        let Ok(description) = self.inner.known(&self.head, &self.stream).await else {
            self.ended = true;
            return Some(frame::exception("ResourceNotFoundException", gone));
        };
        let limits = Limits { skip_ms: millis(rules.page_skip), records: rules.page_limit };
        let page = self.inner.page(&description, &self.stream, &self.shard, &self.cursor, limits).await;
        let Some((page, ended)) = page else {
            self.ended = true;
            return Some(frame::exception("ResourceNotFoundException", gone));
        };
        let is_due = self.last_event.is_none_or(|last| last.elapsed() >= fan_out.heartbeat);
        if page.entries.is_empty() && page.behind_ms == 0 && !ended && !is_due {
            self.cursor = page.next;
            return None;
        }
        self.cursor = page.next;
        self.last_event = Some(Instant::now());
        self.ended = ended;
        let mut event = json!({"Records": page.entries.iter().map(record).collect::<Vec<_>>()});
        if !ended {
            let continuation = self.continuation().or_else(|| description.first_sequence(&self.shard));
            insert(&mut event, "ContinuationSequenceNumber", json!(continuation));
        }
        if ended && !rules.hide_children {
            insert(&mut event, "ChildShards", description.children(&self.shard));
        }
        if let Some(behind_ms) = self.inner.faults.told(page.behind_ms, page.entries.is_empty()) {
            insert(&mut event, "MillisBehindLatest", json!(behind_ms));
        }
        Some(frame::event(event.to_string().as_bytes()))
    }

    /// The number after which another subscription goes on.
    fn continuation(&self) -> Option<String> {
        if let Place::After(sequence) = &self.cursor.place {
            return Some(sequence.as_str().to_owned());
        }
        let mut index = self.inner.faults.index();
        let before = index.stream(&self.stream)?.known(&self.shard)?.before(&self.cursor.place)?;
        Some(before.as_str().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_subscription_is_refused_for_a_while_and_then_takes_over() {
        let subscriptions = Subscriptions::default();
        let (start, wait) = (Instant::now(), Duration::from_secs(5));
        let begin = |shard: &str, after: u64| subscriptions.begin("c", shard, wait, start + Duration::from_secs(after));
        assert_eq!(begin("a", 0), Some(0));
        assert_eq!(begin("b", 0), Some(0));
        assert_eq!(begin("a", 4), None);
        assert!(subscriptions.is_newest("c", "a", 0));
        assert_eq!(begin("a", 5), Some(1));
        assert!(!subscriptions.is_newest("c", "a", 0));
    }
}
