//! The body of a request, whole: within what one request may send, and what all that are under way may hold.

use std::fmt::Display;
use std::sync::Arc;

use axum::body::HttpBody;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;

/// What bodies that are not whole with their first piece may hold in memory, all together, in bytes: else a hundred clients that send
/// slowly hold a hundred times the largest body.
const ROOM: usize = 256 << 20;
/// How finely that is counted, in bytes.
const UNIT: usize = 16 << 10;

/// The room of all bodies, where one may have `limit` bytes: a few of the largest always fit.
pub(super) fn room(limit: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ROOM.max(limit.saturating_mul(4)).min(Semaphore::MAX_PERMITS).div_ceil(UNIT)))
}

/// The whole body, if it keeps the limit and there is room. Its room is free when the answer is dropped.
pub(super) async fn read<B>(room: &Arc<Semaphore>, mut body: B, limit: usize) -> Result<Bytes, Problem>
where
    B: HttpBody<Data = Bytes, Error: Display> + Unpin,
{
    let too_large = || {
        let detail = format!("the body is over the limit of {limit} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    };
    let hint = body.size_hint();
    if hint.lower() > limit as u64 {
        return Err(too_large());
    }
    // Most bodies are one frame: it is passed on as it came.
    let mut first = Bytes::new();
    let mut rest = Held::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, "body_broken", format!("the body broke off: {error}"))
        })?;
        // Trailers say nothing about a prediction.
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limit - first.len() - rest.bytes.len() {
            return Err(too_large());
        }
        if first.is_empty() && rest.bytes.is_empty() {
            first = data;
            // What comes next may take its time.
            if !body.is_end_stream() {
                rest.grow(room, first.len())?;
            }
            continue;
        }
        rest.grow(room, first.len() + rest.bytes.len() + data.len())?;
        if rest.bytes.is_empty() {
            let size = usize::try_from(hint.lower()).unwrap_or(limit);
            rest.bytes.reserve(size.max(first.len() + data.len()));
            rest.bytes.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.bytes.extend_from_slice(&data);
    }
    Ok(if rest.bytes.is_empty() { first } else { Bytes::from_owner(rest) })
}

/// A body and the room that it takes.
#[derive(Default)]
struct Held {
    bytes: BytesMut,
    room: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Takes room for this many bytes in all.
    fn grow(&mut self, room: &Arc<Semaphore>, bytes: usize) -> Result<(), Problem> {
        let has = self.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(UNIT).saturating_sub(has);
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let more = Arc::clone(room).try_acquire_many_owned(more).map_err(|_| {
            Problem::unavailable("overloaded", "as many large bodies as may be are under way: send it again later")
        })?;
        match &mut self.room {
            None => self.room = Some(more),
            Some(room) => room.merge(more),
        }
        Ok(())
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    /// A body in pieces, each of a unit.
    fn pieces(count: usize) -> impl HttpBody<Data = Bytes, Error = Infallible> + Unpin {
        let piece = |_| Ok(Frame::data(Bytes::from(vec![7; UNIT])));
        StreamBody::new(stream::iter((0..count).map(piece)))
    }

    #[tokio::test]
    async fn bodies_that_do_not_fit_beside_others_are_told_to_come_again() {
        let room = Arc::new(Semaphore::new(5));
        let limit = 10 * UNIT;
        let first = read(&room, pieces(3), limit).await.unwrap();
        assert_eq!(first.len(), 3 * UNIT);
        assert_eq!(room.available_permits(), 2);
        let refused = read(&room, pieces(3), limit).await.unwrap_err();
        assert_eq!((refused.status, refused.code), (StatusCode::SERVICE_UNAVAILABLE, "overloaded"));
        assert_eq!(room.available_permits(), 2, "what was refused holds nothing");
        read(&room, pieces(1), limit).await.unwrap();
        let part = first.slice(..1);
        drop(first);
        assert_eq!(room.available_permits(), 2, "a part keeps the whole");
        drop(part);
        read(&room, pieces(5), limit).await.unwrap();
        assert_eq!(room.available_permits(), 5);
    }

    #[tokio::test]
    async fn a_first_piece_takes_room_while_the_rest_is_awaited_and_a_whole_body_takes_none() {
        let room = Arc::new(Semaphore::new(2));
        let piece = Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; UNIT])));
        let slow = StreamBody::new(stream::iter([piece]).chain(stream::pending()));
        let mut reading = Box::pin(read(&room, slow, 10 * UNIT));
        assert!(futures_util::poll!(&mut reading).is_pending());
        assert_eq!(room.available_permits(), 1);
        drop(reading);
        room.close();
        let whole = http_body_util::Full::new(Bytes::from(vec![7; UNIT]));
        assert_eq!(read(&room, whole, UNIT).await.unwrap().len(), UNIT);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_whatever_room_there_is() {
        let refused = read(&room(UNIT), pieces(2), UNIT).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}
