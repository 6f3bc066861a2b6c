//! Keeps the connection of a slow answer alive; the progress in a Computer's status is in `archive/uploads.rs`. Neither an archive pod nor the HTTP
//! API can distinguish a request that waits for a slot or a slow store from one that hangs. So the operator sends a line every few seconds while it works on the request, and the outcome in the last line.
//!
//! The line only means that the operator is alive: other limits end work that hangs.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;

/// Header of a request whose sender understands such an answer, and of the answer.
pub const HEADER: HeaderName = HeaderName::from_static("computer-operator-progress");
/// Time between two lines; much less than a pod waits for one.
const BEAT: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5000 });

/// How a request ended: a status, and a text for the pod's log.
pub type Outcome = (StatusCode, String);

/// Waits for a turn, does the work and answers. A client that disconnects gives its place up, but work that has begun continues, so that it cleans up.
pub async fn answer<T, W>(
    headers: &HeaderMap,
    turn: impl Future<Output = Result<T, Outcome>> + Send + 'static,
    work: impl FnOnce(T) -> W + Send + 'static,
) -> Response
where
    W: Future<Output = Result<Outcome, Outcome>> + Send + 'static,
{
    let work = async move {
        let turn = match turn.await {
            Ok(turn) => turn,
            Err(refused) => return refused,
        };
        let ended = tokio::spawn(work(turn)).await;
        ended.map_or_else(
            |e| (StatusCode::INTERNAL_SERVER_ERROR, format!("the request failed: {e}")),
            |outcome| outcome.unwrap_or_else(|no| no),
        )
    };
    if !headers.contains_key(HEADER) {
        return plain(work.await);
    }
    let lines = futures::stream::unfold(Some(Box::pin(work)), move |work| async move {
        let mut work = work?;
        match tokio::time::timeout(BEAT, &mut work).await {
            Ok(outcome) => Some((Ok::<_, Infallible>(last_line(&outcome)), None)),
            Err(_) => Some((Ok(Bytes::from_static(b"\n")), Some(work))),
        }
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(HEADER, HeaderValue::from_static("1"));
    response
}

/// As [`answer`], for a request whose answer is an object: the last line has its size, and its bytes follow. The work ends with the connection.
pub async fn object(headers: &HeaderMap, work: impl Future<Output = Result<Bytes, Outcome>> + Send + 'static) -> Response {
    if !headers.contains_key(HEADER) {
        return work.await.map_or_else(plain, |bytes| Response::new(Body::from(bytes)));
    }
    let parts = futures::stream::unfold((Some(Box::pin(work)), None), |(work, found)| async move {
        if let Some(bytes) = found {
            return Some((Ok::<_, Infallible>(bytes), (None, None)));
        }
        let mut work = work?;
        match tokio::time::timeout(BEAT, &mut work).await {
            Ok(Ok(bytes)) => Some((Ok(last_line(&(StatusCode::OK, bytes.len().to_string()))), (None, Some(bytes)))),
            Ok(Err(refused)) => Some((Ok(last_line(&refused)), (None, None))),
            Err(_) => Some((Ok(Bytes::from_static(b"\n")), (Some(work), None))),
        }
    });
    let mut response = Response::new(Body::from_stream(parts));
    response.headers_mut().insert(HEADER, HeaderValue::from_static("1"));
    response
}

/// The answer to a client that expects no lines. One that must come back gets the time in `Retry-After`.
fn plain(outcome: Outcome) -> Response {
    let busy = outcome.0 == StatusCode::TOO_MANY_REQUESTS;
    let mut response = outcome.into_response();
    if busy {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn last_line((status, text): &Outcome) -> Bytes {
    let one_line = text.replace(['\r', '\n'], " ");
    Bytes::from(format!("{} {one_line}\n", status.as_u16()))
}

/// The outcome in such an answer. `None`: the answer is incomplete.
pub fn outcome(text: &str) -> Option<Outcome> {
    let line = text.strip_suffix('\n')?.lines().next_back()?;
    let (code, text) = line.split_once(' ')?;
    Some((StatusCode::from_bytes(code.as_bytes()).ok()?, text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_answer_is_no_outcome() {
        let whole = String::from_utf8_lossy(&last_line(&(StatusCode::SERVICE_UNAVAILABLE, "a\nb".to_owned()))).into_owned();
        assert_eq!(outcome(&format!("\n\n{whole}")), Some((StatusCode::SERVICE_UNAVAILABLE, "a b".to_owned())));
        for cut in 0..whole.len() {
            assert_eq!(outcome(&format!("\n\n{}", &whole[..cut])), None, "{cut}");
        }
    }
}
