//! Deadlines of a connection that hyper does not have: for its first bytes, by which HTTP/1.1 and HTTP/2 are told apart, and for answers that the client does not
//! take. All other waits have time-outs of hyper's.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// The length of the HTTP/2 connection preface; no request of HTTP/1.1 is shorter.
const PREFACE: usize = 24;

/// A stream that fails with [`io::ErrorKind::TimedOut`] when its client dawdles.
pub(super) struct Deadlines<S> {
    stream: S,
    missing: usize,
    first_bytes: Pin<Box<Sleep>>,
    write_timeout: Duration,
    /// When it ends if until then nothing of what waits to be written is taken.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Deadlines<S> {
    /// `stream`, whose first bytes have to come within `first_bytes`, and whose client may go for `write_timeout` without taking anything of an answer.
    pub(super) fn new(stream: S, first_bytes: Duration, write_timeout: Duration) -> Self {
        let first_bytes = Box::pin(sleep(first_bytes));
        Self { stream, missing: PREFACE, first_bytes, write_timeout, stalled: None }
    }

    /// What a write came to: while nothing is taken the time runs.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Deadlines<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
        if read.is_pending() && self.missing > 0 && self.first_bytes.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Deadlines<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.in_time(cx, written)
    }

    /// A flush of what was taken says nothing of the client: TCP's ends at once.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.in_time(cx, ended)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.in_time(cx, written)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn who_takes_nothing_of_an_answer_is_cut_off() {
        let (server, _client) = duplex(64);
        let mut stream = Deadlines::new(server, LONG, SHORT);
        assert_eq!(stream.write_all(&[0; 65]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_takes_it_slowly_gets_it_all() {
        let (server, mut client) = duplex(64);
        let mut stream = Deadlines::new(server, LONG, LONG);
        for number in 0..6 {
            stream.write_all(&[number; 64]).await.unwrap();
            assert!(stream.stalled.is_none(), "something was taken: the time begins anew");
            let full = poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_write(cx, &[0]).is_pending()));
            assert!(full.await && stream.stalled.is_some(), "nothing is taken: the time runs");
            let mut taken = [0; 64];
            client.read_exact(&mut taken).await.unwrap();
            assert_eq!(taken, [number; 64]);
        }
    }
}
