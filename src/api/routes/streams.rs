//! Server-sent events (HTML, section 9.2), a piece at a time.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{FutureExt, Stream, StreamExt, future::ready};

/// Events that are there together are sent in one piece, until it has so many bytes: each by itself would cost about as much as a piece, and a
/// connection holds some pieces that its client does not read.
const PIECE: usize = 8 << 10;

/// Events as they come, and a comment where none comes for long.
pub(super) fn event_stream(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let answer = Sse::new(events).keep_alive(KeepAlive::new().interval(super::KEEP_ALIVE)).into_response();
    // Events do not fail, so neither does what is made of them.
    answer.map(|body| Body::from_stream(pieces(body.into_data_stream().scan((), |(), part| ready(part.ok())))))
}

/// What there is of the parts at a time.
fn pieces(parts: impl Stream<Item = Bytes> + Send + 'static) -> impl Stream<Item = Result<Vec<u8>, Infallible>> + Send {
    futures::stream::unfold(Box::pin(parts.fuse()), async |mut parts| {
        let mut piece = parts.next().await?.to_vec();
        while piece.len() < PIECE
            && let Some(Some(next)) = parts.next().now_or_never()
        {
            piece.extend_from_slice(&next);
        }
        Some((Ok(piece), parts))
    })
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn events_that_are_there_together_are_one_piece_of_some_length() {
        let (sender, events) = mpsc::unbounded();
        let mut pieces = Box::pin(event_stream(events.map(Ok)).into_body().into_data_stream());
        for n in 0..1000 {
            sender.unbounded_send(Event::default().id(n.to_string()).data("hello")).unwrap();
        }
        let (mut all, mut count) = (Vec::new(), 0);
        while let Some(Some(Ok(piece))) = pieces.next().now_or_never() {
            assert!(piece.len() < PIECE + 100, "{}", piece.len());
            (all, count) = ([&all[..], &piece].concat(), count + 1);
        }
        let all = String::from_utf8(all).unwrap();
        assert_eq!(all.split_terminator("\n\n").count(), 1000);
        assert!(all.starts_with("id: 0\ndata: hello\n\nid: 1\n") && count < 10, "{count} pieces: {all:.100}");
        assert_eq!(pieces.next().await.unwrap().unwrap(), ":\n\n", "nothing came for long");
        sender.unbounded_send(Event::default().event("end").data("null")).unwrap();
        drop(sender);
        assert_eq!(pieces.next().await.unwrap().unwrap(), "event: end\ndata: null\n\n");
        assert!(pieces.next().await.is_none());
    }
}
