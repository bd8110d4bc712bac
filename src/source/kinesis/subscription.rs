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
/// A subscription lives for five minutes; the next one is opened before.
const RENEW: Duration = Duration::from_secs(270);

/// Hands on what the subscription brings until it ends; `Ok` when it has lived its time.
///
/// The next one is opened while this one still delivers: Kinesis lets a newer call for the same consumer and shard take
/// over, five seconds after the one before. What both deliver, the cursor drops.
pub(super) async fn run(
    api: &Api,
    consumer: &str,
    shard: &ShardId,
    mut at: Anchor,
    silence: Duration,
    reader: ReaderId,
    deliveries: &mpsc::Sender<Event>,
) -> Result<(), Fault> {
    let open = async |at: Anchor| {
        let opening = timeout(OPEN, api.subscribe(consumer, shard, &at)).await;
        opening.unwrap_or_else(|_| Err(Fault::unavailable("a subscription did not open within 20 s")))
    };
    let mut subscription = open(at.clone()).await?;
    let mut renew_at = Instant::now() + RENEW.mul_f64(0.95 + 0.05 * fastrand::f64());
    loop {
        let next = tokio::select! {
            biased;
            received = timeout(silence, subscription.next()) => {
                received.map_err(|_| Fault::unavailable(format!("a subscription has been silent for {silence:?}")))?
            }
            () = tokio::time::sleep_until(renew_at) => {
                // Whatever comes until it is open comes again through the new one.
                subscription = open(at.clone()).await?;
                renew_at = Instant::now() + RENEW.mul_f64(0.95 + 0.05 * fastrand::f64());
                continue;
            }
        };
        let Some(delivery) = next? else { return Ok(()) };
        if let Some(continuation) = &delivery.continuation {
            at = Anchor::At(continuation.clone());
        }
        if deliveries.send(Event::Delivered(reader, delivery)).await.is_err() {
            return Ok(());
        }
    }
}
