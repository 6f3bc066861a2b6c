//! The stream to a peer that may be slow on purpose: one that does not read is put out, and one that still sends when the answer is
//! written gets to read it. Closing a socket with unread bytes in it resets the connection, and the answer is lost with it: whoever
//! sends too much would see "connection reset" instead of 413.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A peer must take something within this time.
const WRITE: Duration = Duration::from_secs(20);
/// What comes after the last answer is thrown away for this long,
const LINGER: Duration = Duration::from_secs(2);
/// and up to this much.
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// A stream with these bounds.
#[derive(Debug)]
pub struct Peer<S> {
    stream: S,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Set once our side is closed: until when, and how much is still taken.
    closing: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> Peer<S> {
    /// Wraps a stream.
    pub fn new(stream: S) -> Self {
        Self { stream, stalled: None, closing: None }
    }

    fn bounded<T>(&mut self, context: &mut Context<'_>, answer: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if answer.is_ready() {
            self.stalled = None;
            return answer;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
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
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Peer<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let answer = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, answer)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let answer = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.bounded(context, answer)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let answer = Pin::new(&mut self.stream).poll_flush(context);
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

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_put_out() {
        let (ours, _theirs) = duplex(16);
        let began = Instant::now();
        let error = Peer::new(ours).write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, WRITE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_slowly_is_not() {
        let (ours, mut theirs) = duplex(16);
        let mut ours = Peer::new(ours);
        let writing = tokio::spawn(async move { ours.write_all(&[7; 160]).await });
        let mut got = [0; 16];
        for _ in 0..10 {
            tokio::time::sleep(WRITE / 2).await;
            theirs.read_exact(&mut got).await.unwrap();
        }
        writing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_still_comes_is_taken_but_not_for_ever() {
        let (ours, mut theirs) = duplex(16);
        let mut ours = Peer::new(ours);
        let closing = tokio::spawn(async move { ours.shutdown().await });
        theirs.write_all(&[0; 1000]).await.unwrap();
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
        let began = Instant::now();
        closing.await.unwrap().unwrap();
        assert!(began.elapsed() <= LINGER, "a silent peer is not waited for longer");
    }
}
