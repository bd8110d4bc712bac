//! Enhanced fan-out of one shard: a subscription that is renewed before it ends, and noticed when it falls silent.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::api::Api;
use super::cursor::Anchor;
use super::tailer::{Event, ReaderId};
use crate::aws::Fault;
use crate::id::ShardId;

/// How long a subscription may take to open. The SDK's own timeouts end before the first frame, which it waits for.
const OPEN: Duration = Duration::from_secs(20);

/// How long until a renewal that failed is tried again; what is subscribed to lives on meanwhile.
const AGAIN: Duration = Duration::from_secs(5);

/// What a subscription lives by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// How long it may say nothing.
    pub(super) silence: Duration,
    /// When the next one is opened.
    pub(super) renew: Duration,
}

/// Hands on what the subscription brings until it ends; `Ok` when it has lived its time.
///
/// The next one is opened while this one still delivers: Kinesis lets a newer call for the same consumer and shard take
/// over, five seconds after the one before. What both deliver, the cursor drops.
pub(super) async fn run(
    api: &Api,
    consumer: &str,
    shard: &ShardId,
    mut at: Anchor,
    terms: Terms,
    reader: ReaderId,
    deliveries: &mpsc::Sender<Event>,
) -> Result<(), Fault> {
    let open = async |at: Anchor| {
        let opening = timeout(OPEN, api.subscribe(consumer, shard, &at)).await;
        opening.unwrap_or_else(|_| Err(Fault::unavailable("a subscription did not open within 20 s")))
    };
    let lifetime = || terms.renew.mul_f64(0.95 + 0.05 * fastrand::f64());
    let mut subscription = open(at.clone()).await?;
    let mut renew_at = Instant::now() + lifetime();
    let mut heard_at = Instant::now();
    let mut renewal = None;
    loop {
        tokio::select! {
            received = subscription.next() => {
                let delivery = match (received, renewal.take()) {
                    (Ok(Some(delivery)), under_way) => {
                        renewal = under_way;
                        delivery
                    }
                    // The next one has taken over before it said so here.
                    (_, Some(next)) => {
                        subscription = next.await?;
                        (renew_at, heard_at) = (Instant::now() + lifetime(), Instant::now());
                        continue;
                    }
                    (over, None) => return over.map(|_| ()),
                };
                heard_at = Instant::now();
                if let Some(continuation) = &delivery.continuation {
                    at = Anchor::At(continuation.clone());
                }
                if deliveries.send(Event::Delivered(reader, delivery)).await.is_err() {
                    return Ok(());
                }
            }
            () = tokio::time::sleep_until(heard_at + terms.silence) => {
                let message = format!("a subscription has been silent for {:?}", terms.silence);
                return Err(Fault::unavailable(message));
            }
            () = tokio::time::sleep_until(renew_at), if renewal.is_none() => {
                renewal = Some(Box::pin(open(at.clone())));
            }
            opened = async { renewal.as_mut().expect("it is only awaited while there is one").await }, if renewal.is_some() => {
                renewal = None;
                renew_at = Instant::now() + match opened {
                    Ok(next) => {
                        subscription = next;
                        lifetime()
                    }
                    Err(_) => AGAIN,
                };
            }
        }
    }
}
