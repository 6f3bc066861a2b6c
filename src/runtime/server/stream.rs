//! The stream to a client that may be slow on purpose. A client that does not read, or does not send a request in time, is disconnected. A client that still
//! sends when the response has been written can read the response: closing a socket with unread bytes would reset the connection and lose the response, so a
//! client with a large body would see "connection reset" instead of 413.
//!
//! hyper answers an invalid head itself, without a body and without a hook for another response. [`Refusal`] recognizes such a response when it is written
//! and replaces it by the endpoint's own.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::Limits;
use super::request_state::{Stage, Turn};

/// Time within which a client must read something.
const WRITE: Duration = Duration::from_secs(20);
/// How long bytes after the last response are read and discarded.
const LINGER: Duration = Duration::from_secs(2);
/// How many bytes after the last response are read and discarded.
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// A stream with time limits.
#[derive(Debug)]
pub struct Peer<S> {
    stream: S,
    turn: Turn,
    limits: Limits,
    /// Timer while a request is awaited, for the stage with this number.
    silent: Option<(u64, Pin<Box<Sleep>>)>,
    /// Timer while the client does not read.
    stalled: Option<Pin<Box<Sleep>>>,
    /// The response that replaces hyper's, and how much of it has been written.
    refusal: Option<Refusal>,
    /// Set after our side has been closed: until when and how many bytes are still discarded.
    closing: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> Peer<S> {
    /// Wraps a stream.
    pub fn new(stream: S, turn: Turn, limits: Limits) -> Self {
        Self { stream, turn, limits, silent: None, stalled: None, refusal: None, closing: None }
    }

    fn bounded<T>(&mut self, context: &mut Context<'_>, answer: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if answer.is_ready() {
            self.stalled = None;
            return answer;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }

    /// Ready if the time limit for a request has passed.
    fn overdue(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (stage, number) = self.turn.stage();
        let limit = match stage {
            Stage::Head => self.limits.header,
            Stage::Idle => self.limits.idle,
            Stage::Answering | Stage::Answered => return Poll::Pending,
        };
        if self.silent.as_ref().is_none_or(|(of, _)| *of != number) {
            self.silent = Some((number, Box::pin(tokio::time::sleep(limit))));
        }
        self.silent.as_mut().map_or(Poll::Pending, |(_, until)| until.as_mut().poll(context))
    }
}

/// The endpoint's response that replaces hyper's own.
#[derive(Debug)]
struct Refusal {
    answer: Vec<u8>,
    written: usize,
}

impl Refusal {
    /// Checks the bytes that hyper writes. Only the complete head of an empty response is replaced. A body cannot look like one, because JSON strings contain
    /// no line breaks.
    fn of(bytes: &[u8], limits: &Limits) -> Option<Self> {
        let code = bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        let code = StatusCode::from_bytes(code).ok().filter(StatusCode::is_client_error)?;
        let head = std::str::from_utf8(bytes.strip_suffix(b"\r\n\r\n")?).ok()?;
        if head.contains("\r\n\r\n") || !head.lines().any(|line| line.eq_ignore_ascii_case("content-length: 0")) {
            return None;
        }
        let (headers, body) = limits.refusal?(code);
        let status = head.lines().next()?;
        let mut answer = format!("{status}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            answer.extend([name, ": ", &value, "\r\n"]);
        }
        answer.extend(["\r\n", &body]);
        Some(Self { answer: answer.into_bytes(), written: 0 })
    }
}

impl<S: AsyncWrite + Unpin> Peer<S> {
    /// Writes the replacement of `bytes`, if there is one; ready when all of it has been written.
    fn replace(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if self.refusal.is_none() && matches!(self.turn.stage().0, Stage::Head | Stage::Idle) {
            self.refusal = Refusal::of(bytes, &self.limits);
        }
        let mut refusal = self.refusal.take()?;
        while refusal.written < refusal.answer.len() {
            let answer = Pin::new(&mut self.stream).poll_write(context, &refusal.answer[refusal.written..]);
            match self.bounded(context, answer) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(written)) => refusal.written += written,
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => {
                    self.refusal = Some(refusal);
                    return Some(Poll::Pending);
                }
            }
        }
        Some(Poll::Ready(Ok(bytes.len())))
    }
}

impl<S: AsyncRead + Unpin> Peer<S> {
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some((until, left)) = &mut self.closing else { return Poll::Ready(()) };
        let mut bytes = [0; 8192];
        while *left > 0 {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => *left = left.saturating_sub(buffer.filled().len()),
                Poll::Ready(_) => break,
                Poll::Pending => return until.as_mut().poll(context),
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Peer<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let answer = Pin::new(&mut self.stream).poll_read(context, buffer);
        if answer.is_pending() {
            ready!(self.overdue(context));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client sends no request")));
        }
        if buffer.filled().len() > before {
            self.turn.received();
        }
        answer
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Peer<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(replaced) = self.replace(context, bytes) {
            return replaced;
        }
        let answer = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, answer)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut filled = parts.iter().filter(|part| !part.is_empty());
        if let (Some(only), None) = (filled.next(), filled.next())
            && let Some(replaced) = self.replace(context, only)
        {
            return replaced;
        }
        let answer = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.bounded(context, answer)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let answer = Pin::new(&mut self.stream).poll_flush(context);
        if answer.is_ready() {
            // hyper flushes after it has written everything.
            self.turn.flushed();
        }
        self.bounded(context, answer)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            let answer = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.bounded(context, answer))?;
            self.closing = Some((Box::pin(tokio::time::sleep(LINGER)), LINGER_BYTES));
        }
        self.drain(context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::runtime::server::connections::Crowd;

    const LIMITS: Limits = Limits {
        connections: 1,
        head: 8192,
        socket: (8192, 8192),
        header: Duration::from_secs(10),
        idle: Duration::from_secs(90),
        single: None,
        drain: Duration::from_secs(1),
        refusal: Some(|status| (vec![("content-type", "text/plain".to_owned())], status.as_u16().to_string())),
    };

    fn turn() -> Turn {
        let crowd = std::sync::Arc::new(Crowd::default());
        Turn::new(crowd.seat("192.0.2.1".parse().unwrap()))
    }

    fn peer<S>(stream: S) -> Peer<S> {
        Peer::new(stream, turn(), LIMITS)
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_a_shorter_time_limit_than_an_idle_connection() {
        let (ours, mut theirs) = duplex(64);
        let turn = turn();
        let mut ours = Peer::new(ours, turn.clone(), LIMITS);
        let mut buffer = [0; 8];
        let silent = async |ours: &mut Peer<_>| {
            let began = Instant::now();
            let error = ours.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            began.elapsed()
        };
        assert_eq!(silent(&mut ours).await, LIMITS.header);
        // A client that sends single bytes does not get more time.
        let (ours, mut drips) = duplex(64);
        let mut ours = peer(ours);
        let began = Instant::now();
        for _ in 0..4 {
            drips.write_all(b"x").await.unwrap();
            assert_eq!(ours.read(&mut buffer).await.unwrap(), 1);
            let _ = tokio::time::timeout(LIMITS.header / 5, ours.read(&mut buffer)).await;
        }
        silent(&mut ours).await;
        assert_eq!(began.elapsed(), LIMITS.header);
        // After a response the idle limit applies until the first byte of the next request.
        let (ours, mut again) = duplex(64);
        let mut ours = Peer::new(ours, turn.clone(), LIMITS);
        turn.begins();
        drop(super::super::request_state::Answering::wrap(
            Ok::<_, std::convert::Infallible>(axum::http::Response::default()),
            turn.clone(),
        ));
        ours.flush().await.unwrap();
        assert_eq!(turn.stage().0, Stage::Idle);
        assert_eq!(silent(&mut ours).await, LIMITS.idle);
        again.write_all(b"x").await.unwrap();
        assert_eq!(ours.read(&mut buffer).await.unwrap(), 1);
        assert_eq!(silent(&mut ours).await, LIMITS.header);
        theirs.shutdown().await.unwrap();
    }

    /// The replacement is written through a small buffer. Other responses are not changed.
    #[tokio::test]
    async fn an_empty_error_of_hyper_gets_a_body() {
        let sent = async |bytes: &[u8]| {
            let (ours, mut theirs) = duplex(16);
            let bytes = bytes.to_vec();
            let writing = tokio::spawn(async move {
                let mut ours = peer(ours);
                ours.write_all(&bytes).await.unwrap();
            });
            let mut all = String::new();
            theirs.read_to_string(&mut all).await.unwrap();
            writing.await.unwrap();
            all
        };
        let empty = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let answer =
            "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 3\r\ncontent-type: text/plain\r\n\r\n431";
        assert_eq!(sent(empty.as_bytes()).await, answer);
        for other in [
            empty.replace("431", "200"),
            empty.replace("length: 0", "length: 7") + "the one",
            format!("{empty}{empty}"),
            empty.replace("\r\n\r\n", "\r\n"),
        ] {
            assert_eq!(sent(other.as_bytes()).await, other);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_disconnected() {
        let (ours, _theirs) = duplex(16);
        let began = Instant::now();
        let error = peer(ours).write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, WRITE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_not_disconnected() {
        let (ours, mut theirs) = duplex(16);
        let mut ours = peer(ours);
        let writing = tokio::spawn(async move { ours.write_all(&[7; 160]).await });
        let mut got = [0; 16];
        for _ in 0..10 {
            tokio::time::sleep(WRITE / 2).await;
            theirs.read_exact(&mut got).await.unwrap();
        }
        writing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_after_the_response_are_discarded_for_a_limited_time() {
        let (ours, mut theirs) = duplex(16);
        let mut ours = peer(ours);
        let closing = tokio::spawn(async move { ours.shutdown().await });
        theirs.write_all(&[0; 1000]).await.unwrap();
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
        let began = Instant::now();
        closing.await.unwrap().unwrap();
        assert!(began.elapsed() <= LINGER, "a silent client must not delay the end");
    }
}
