//! The stream of one client: which protocol its first bytes announce, and the deadlines of a connection that hyper does not have, for these bytes and for answers
//! that the client does not take. All other waits have time-outs of hyper's.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::{Sleep, sleep, timeout},
};

/// How HTTP/2 begins (RFC 9113, section 3.4); no request of HTTP/1.1 does, or is shorter.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1, or nothing that is known.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A stream that fails with [`io::ErrorKind::TimedOut`] when its client takes nothing of an answer.
pub(super) struct ClientStream<S> {
    stream: S,
    /// What was read to tell the protocol, and is given out before all else.
    first: Bytes,
    write_timeout: Duration,
    /// When it ends if until then nothing of what waits to be written is taken.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + Unpin> ClientStream<S> {
    /// Reads of `stream` what tells the protocol, which has to come within `first_bytes`. The client may go for `write_timeout` without taking anything of an answer.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] if the client dawdles; whatever `stream` fails with.
    pub(super) async fn begin(
        mut stream: S,
        first_bytes: Duration,
        write_timeout: Duration,
    ) -> io::Result<(Protocol, Self)> {
        let (protocol, first) = timeout(first_bytes, announced(&mut stream)).await??;
        Ok((protocol, Self { stream, first, write_timeout, stalled: None }))
    }
}

/// Reads until it is clear what a client speaks.
async fn announced(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Protocol, Bytes)> {
    let mut first = BytesMut::with_capacity(PREFACE.len());
    while PREFACE.starts_with(&first) && first.len() < PREFACE.len() {
        if stream.read_buf(&mut first).await? == 0 {
            break;
        }
    }
    let protocol = if first.starts_with(PREFACE) { Protocol::Http2 } else { Protocol::Http1 };
    Ok((protocol, first.freeze()))
}

impl<S> ClientStream<S> {
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

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        let first = self.first.split_to(length);
        buffer.put_slice(&first);
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // In one go with what follows: of a request that comes in two parts hyper would make its buffer twice as large.
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => Poll::Ready(Ok(())),
            read => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
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

    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(60);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// The protocol that these bytes announce, sent one by one, and what is read from the stream after that.
    async fn told(bytes: &[u8]) -> (Protocol, Vec<u8>) {
        let (server, mut client) = duplex(1);
        let all = bytes.to_vec();
        let sent = tokio::spawn(async move { client.write_all(&all).await });
        let (protocol, mut stream) = ClientStream::begin(server, LONG, LONG).await.unwrap();
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        sent.await.unwrap().unwrap();
        (protocol, read)
    }

    #[tokio::test]
    async fn the_first_bytes_tell_the_protocol_and_are_read_again() {
        for (protocol, bytes) in [
            (Protocol::Http1, REQUEST.to_vec()),
            (Protocol::Http1, b"PUT / HTTP/1.1\r\n\r\n".to_vec()),
            (Protocol::Http1, b"PRI".to_vec()),
            (Protocol::Http1, Vec::new()),
            (Protocol::Http2, PREFACE.to_vec()),
            (Protocol::Http2, [PREFACE, b"frames"].concat()),
        ] {
            assert_eq!(told(&bytes).await, (protocol, bytes));
        }
    }

    #[tokio::test]
    async fn a_request_that_came_in_one_part_is_read_in_one() {
        let (server, mut client) = duplex(1_024);
        client.write_all(REQUEST).await.unwrap();
        let (_, mut stream) = ClientStream::begin(server, LONG, LONG).await.unwrap();
        let mut read = [0; 1_024];
        assert_eq!(stream.read(&mut read).await.unwrap(), REQUEST.len());
    }

    #[tokio::test]
    async fn who_says_too_little_is_cut_off() {
        let (server, mut client) = duplex(64);
        client.write_all(b"PRI * HT").await.unwrap();
        let error = ClientStream::begin(server, SHORT, LONG).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_takes_nothing_of_an_answer_is_cut_off() {
        let (server, mut client) = duplex(64);
        client.write_all(REQUEST).await.unwrap();
        let (_, mut stream) = ClientStream::begin(server, LONG, SHORT).await.unwrap();
        assert_eq!(stream.write_all(&[0; 65]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_takes_it_slowly_gets_it_all() {
        let (server, mut client) = duplex(64);
        client.write_all(REQUEST).await.unwrap();
        let (_, mut stream) = ClientStream::begin(server, LONG, LONG).await.unwrap();
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
