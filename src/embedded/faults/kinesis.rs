//! Kinesis behind the layer: who calls, what goes wrong, and who answers.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::answers::{self, JSON, Refusal};
use super::index::{Entry, Place};
use super::reads::Token;
use super::{Action, Call, Faults};

/// Lays the layer over Kinesis.
pub(super) fn layer(faults: Arc<Faults>, kinesis: Router) -> Router {
    let inner = Inner { faults, router: kinesis.clone() };
    kinesis.layer(middleware::from_fn_with_state(inner, answer))
}

/// The layer, and Kinesis below it.
#[derive(Clone)]
pub(super) struct Inner {
    pub(super) faults: Arc<Faults>,
    router: Router,
}

/// A request, read.
pub(super) struct Asked {
    pub(super) head: Parts,
    pub(super) body: Value,
    bytes: Bytes,
}

impl Asked {
    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.body.get(field)?.as_str()
    }

    /// The stream, by its name or its ARN, or that of a consumer.
    pub(super) fn stream(&self) -> Option<String> {
        if let Some(name) = self.text("StreamName") {
            return Some(name.to_owned());
        }
        let arn = self.text("StreamARN").or_else(|| self.text("ConsumerARN"))?;
        let (_, rest) = arn.split_once(":stream/")?;
        rest.split('/').next().map(str::to_owned)
    }
}

async fn answer(State(inner): State<Inner>, request: Request, next: Next) -> Response {
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    let operation = target.and_then(|target| target.strip_prefix("Kinesis_20131202.")).map(str::to_owned);
    let is_json = request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == JSON);
    let (Some(operation), true) = (operation, is_json) else {
        return next.run(request).await;
    };
    let (head, body) = request.into_parts();
    let Ok(bytes) = to_bytes(body, 64 << 20).await else {
        return answers::refused("SerializationException", "The body ended early.");
    };
    let body = serde_json::from_slice(&bytes).unwrap_or_default();
    let mut answer = inner.answer(&operation, Asked { head, body, bytes }).await;
    if let Ok(date) = HeaderValue::from_str(&http_date(inner.faults.now_ms())) {
        answer.headers_mut().insert(DATE, date);
    }
    answer
}

impl Inner {
    async fn answer(&self, operation: &str, asked: Asked) -> Response {
        let token = asked.text("ShardIterator").and_then(Token::read);
        let shard = match &token {
            Some(token) => Some((token.stream.clone(), token.shard.clone())),
            None => asked.stream().zip(asked.text("ShardId").map(str::to_owned)),
        };
        let call = Call { action: Action::kinesis(operation), shard };
        let fault = self.faults.meet(&call).await;
        if let Some(wrong) = fault.and_then(|fault| answers::instead_of_kinesis(fault, &call)) {
            return wrong;
        }
        if asked.body.get("DryRun").and_then(Value::as_bool) == Some(true) {
            let message = "The request would have succeeded, but the DryRun parameter was specified.";
            return answers::refused("DryRunOperationException", message);
        }
        let right = match operation {
            "PutRecord" | "PutRecords" => self.put(asked).await,
            "CreateStream" => self.create(asked).await,
            "DeleteStream" => self.delete(asked).await,
            "SplitShard" | "MergeShards" | "UpdateShardCount" => self.reshard(asked).await,
            "DescribeStream" | "DescribeStreamSummary" => self.describe(asked).await,
            "GetShardIterator" => self.iterator(asked).await,
            "GetRecords" => self.records(&asked, token).await,
            "SubscribeToShard" => self.subscribe(asked).await,
            _ => self.pass(asked).await,
        };
        match fault {
            Some(fault) => answers::spoil(fault, right).await,
            None => right,
        }
    }

    /// Lets Kinesis answer.
    pub(super) async fn pass(&self, asked: Asked) -> Response {
        self.send(asked.head, Body::from(asked.bytes)).await
    }

    async fn send(&self, mut head: Parts, body: Body) -> Response {
        head.headers.remove(CONTENT_LENGTH);
        match self.router.clone().oneshot(Request::from_parts(head, body)).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }

    /// Asks Kinesis something else in the name of the same client.
    pub(super) async fn ask(&self, head: &Parts, operation: &str, body: &Value) -> Result<Value, Refusal> {
        let mut head = head.clone();
        if let Ok(target) = HeaderValue::from_str(&format!("Kinesis_20131202.{operation}")) {
            head.headers.insert("x-amz-target", target);
        }
        read(self.send(head, Body::from(body.to_string())).await).await.map(|(_, value)| value)
    }

    /// One at a time: so the numbers of a shard are in the index in their order, and none is missing.
    async fn put(&self, asked: Asked) -> Response {
        let Some(stream) = asked.stream() else {
            return self.pass(asked).await;
        };
        if let Err(answer) = self.known(&asked.head, &stream).await {
            return *answer;
        }
        let _alone = self.faults.puts.lock().await;
        let body = asked.body.clone();
        let answer = match read(self.pass(asked).await).await {
            Ok(answer) => answer,
            Err(answer) => return *answer,
        };
        let (put, stored) = match (body.get("Records"), answer.1.get("Records")) {
            (Some(Value::Array(put)), Some(Value::Array(stored))) => (put.as_slice(), stored.as_slice()),
            _ => (std::slice::from_ref(&body), std::slice::from_ref(&answer.1)),
        };
        let arrival_ms = self.faults.now_ms();
        let mut index = self.faults.index();
        if let Some(stream) = index.stream(&stream) {
            for (put, stored) in put.iter().zip(stored) {
                let text = |value: &Value, field: &str| value.get(field)?.as_str().map(str::to_owned);
                if let (Some(shard), Some(sequence), Some(data)) =
                    (text(stored, "ShardId"), sequence(stored.get("SequenceNumber")), text(put, "Data"))
                {
                    let partition_key = text(put, "PartitionKey").unwrap_or_default();
                    stream.shard(&shard, true).add(Entry { sequence, arrival_ms, partition_key, data });
                }
            }
        }
        drop(index);
        written(answer)
    }

    async fn create(&self, asked: Asked) -> Response {
        let stream = asked.stream();
        let answer = self.pass(asked).await;
        if let (Some(stream), StatusCode::OK) = (stream, answer.status()) {
            self.faults.index().create(&stream, self.faults.now_ms());
        }
        answer
    }

    async fn delete(&self, asked: Asked) -> Response {
        let stream = asked.stream();
        let _alone = self.faults.puts.lock().await;
        let answer = self.pass(asked).await;
        if let (Some(stream), StatusCode::OK) = (stream, answer.status()) {
            self.faults.index().delete(&stream);
        }
        answer
    }

    async fn reshard(&self, asked: Asked) -> Response {
        let stream = asked.stream().unwrap_or_default();
        if let Err(answer) = self.known(&asked.head, &stream).await {
            return *answer;
        }
        let answer = self.pass(asked).await;
        let now_ms = self.faults.now_ms();
        if let Some(stream) = self.faults.index().stream(&stream) {
            stream.resharded_ms = now_ms;
        }
        answer
    }

    /// A description, with the creation in the time of the layer.
    async fn describe(&self, asked: Asked) -> Response {
        let Some(stream) = asked.stream() else {
            return self.pass(asked).await;
        };
        let head = asked.head.clone();
        let mut answer = match read(self.pass(asked).await).await {
            Ok(answer) => answer,
            Err(answer) => return *answer,
        };
        if self.known(&head, &stream).await.is_ok() {
            let created_ms = self.faults.index().stream(&stream).map(|stream| stream.created_ms);
            for kind in ["StreamDescription", "StreamDescriptionSummary"] {
                if let (Some(Value::Object(description)), Some(created_ms)) = (answer.1.get_mut(kind), created_ms) {
                    description.insert("StreamCreationTimestamp".to_owned(), timestamp(created_ms));
                }
            }
        }
        written(answer)
    }

    /// What is known of a stream; its records are read in where they were there before the layer was.
    pub(super) async fn known(&self, head: &Parts, stream: &str) -> Result<Described, Refusal> {
        let answer = self.ask(head, "DescribeStream", &json!({"StreamName": stream, "Limit": 10_000})).await?;
        let description = Described::read(&answer);
        let is_new = self.faults.index().stream(stream).is_none();
        if is_new && description.is_there {
            let _alone = self.faults.puts.lock().await;
            self.take_in(head, stream, &description).await?;
        }
        let now_ms = self.faults.now_ms();
        if let Some(known) = self.faults.index().stream(stream) {
            known.trim(now_ms.saturating_sub(description.retention_ms));
            for shard in &description.shards {
                known.shard(&shard.id, !shard.parents.is_empty());
            }
        }
        Ok(description)
    }

    async fn take_in(&self, head: &Parts, stream: &str, description: &Described) -> Result<(), Refusal> {
        let mut found = Vec::new();
        for shard in &description.shards {
            let from = json!({"StreamName": stream, "ShardId": shard.id, "ShardIteratorType": "TRIM_HORIZON"});
            let mut next = self.ask(head, "GetShardIterator", &from).await?.get("ShardIterator").cloned();
            while let Some(iterator) = next.filter(Value::is_string) {
                let page = self.ask(head, "GetRecords", &json!({"ShardIterator": iterator})).await?;
                let records = page.get("Records").and_then(Value::as_array).cloned().unwrap_or_default();
                found.extend(records.iter().filter_map(|record| Some((shard, entry(record)?))));
                next = page.get("NextShardIterator").cloned().filter(|_| !records.is_empty());
            }
        }
        let mut index = self.faults.index();
        if index.stream(stream).is_none() {
            let known = index.create(stream, description.created_ms.min(self.faults.now_ms()));
            for (shard, entry) in found {
                known.shard(&shard.id, !shard.parents.is_empty()).add(entry);
            }
        }
        Ok(())
    }
}

/// What Kinesis says of a stream.
pub(super) struct Described {
    is_there: bool,
    created_ms: u64,
    retention_ms: u64,
    shards: Vec<DescribedShard>,
}

/// What Kinesis says of a shard.
pub(super) struct DescribedShard {
    pub(super) id: String,
    pub(super) parents: Vec<String>,
    hash_key_range: Value,
    first_sequence: Option<String>,
    is_closed: bool,
}

impl Described {
    fn read(answer: &Value) -> Self {
        let description = answer.get("StreamDescription").unwrap_or(&Value::Null);
        let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        let shard = |shard: &Value| {
            let parents = ["ParentShardId", "AdjacentParentShardId"].map(|field| text(shard, field));
            DescribedShard {
                id: text(shard, "ShardId").unwrap_or_default(),
                parents: parents.into_iter().flatten().collect(),
                hash_key_range: shard.get("HashKeyRange").cloned().unwrap_or_default(),
                first_sequence: text(
                    shard.get("SequenceNumberRange").unwrap_or(&Value::Null),
                    "StartingSequenceNumber",
                ),
                is_closed: shard.pointer("/SequenceNumberRange/EndingSequenceNumber").is_some_and(Value::is_string),
            }
        };
        let hours = description.get("RetentionPeriodHours").and_then(Value::as_u64).unwrap_or(24);
        Self {
            is_there: matches!(text(description, "StreamStatus").as_deref(), Some("ACTIVE" | "UPDATING")),
            created_ms: time_ms(description.get("StreamCreationTimestamp")),
            retention_ms: hours * 3_600_000,
            shards: description.get("Shards").and_then(Value::as_array).into_iter().flatten().map(shard).collect(),
        }
    }

    pub(super) fn is_closed(&self, shard: &str) -> bool {
        self.shards.iter().any(|one| one.id == shard && one.is_closed)
    }

    /// The number that a shard begins with, before that of its first record.
    pub(super) fn first_sequence(&self, shard: &str) -> Option<String> {
        self.shards.iter().find(|one| one.id == shard)?.first_sequence.clone()
    }

    /// The children of a shard, as an answer names them.
    pub(super) fn children(&self, shard: &str) -> Value {
        let of_it = self.shards.iter().filter(|one| one.parents.iter().any(|parent| parent == shard));
        of_it
            .map(|one| json!({"ShardId": one.id, "ParentShards": one.parents, "HashKeyRange": one.hash_key_range}))
            .collect()
    }
}

fn entry(record: &Value) -> Option<Entry> {
    Some(Entry {
        sequence: sequence(record.get("SequenceNumber"))?,
        arrival_ms: time_ms(record.get("ApproximateArrivalTimestamp")),
        partition_key: record.get("PartitionKey")?.as_str()?.to_owned(),
        data: record.get("Data")?.as_str()?.to_owned(),
    })
}

pub(super) fn sequence(value: Option<&Value>) -> Option<crate::id::SequenceNumber> {
    value?.as_str()?.parse().ok()
}

/// Where a text field says that a reader wants to begin.
pub(super) fn place(kind: &str, sequence: crate::id::SequenceNumber) -> Place {
    if kind == "AT_SEQUENCE_NUMBER" { Place::At(sequence) } else { Place::After(sequence) }
}

/// Seconds, as Kinesis writes time, in milliseconds.
pub(super) fn time_ms(value: Option<&Value>) -> u64 {
    let seconds = value.and_then(Value::as_f64).unwrap_or(0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time, and the cast saturates")]
    let ms = (seconds * 1e3).round() as u64;
    ms
}

/// Milliseconds as Kinesis writes time, in seconds. A microsecond is added: clients cut off what a float lacks.
pub(super) fn timestamp(ms: u64) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "exact for the next 200,000 years")]
    let seconds = (ms as f64 + 1e-3) / 1e3;
    json!(seconds)
}

/// An answer of JSON that is no error.
async fn read(answer: Response) -> Result<(http::response::Parts, Value), Refusal> {
    let (head, body) = answer.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
    if head.status != StatusCode::OK {
        return Err(Response::from_parts(head, Body::from(bytes)).into());
    }
    Ok((head, serde_json::from_slice(&bytes).unwrap_or_default()))
}

fn written((mut head, value): (http::response::Parts, Value)) -> Response {
    head.headers.remove(CONTENT_LENGTH);
    Response::from_parts(head, Body::from(value.to_string()))
}

/// An answer of JSON.
pub(super) fn said(value: &Value) -> Response {
    let mut answer = Response::new(Body::from(value.to_string()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    answer
}

fn http_date(ms: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX)).unwrap_or_default();
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
