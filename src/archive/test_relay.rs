//! A slow connection, for tests: forwards data at a limited rate, and can stop in the middle. `tests/s3.rs` includes this file too.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

/// One direction of a line, which any number of connections may share.
#[derive(Clone)]
struct Line {
    /// Bytes per second.
    rate: u64,
    /// When it is free.
    free: Arc<Mutex<Instant>>,
}

impl Line {
    fn of(rate: u64) -> Self {
        Self { rate, free: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Waits until this many bytes are at the other end.
    async fn carry(&self, bytes: u64) {
        let until = {
            let mut free = self.free.lock().unwrap();
            *free = (*free).max(Instant::now()) + Duration::from_nanos(bytes * 1_000_000_000 / self.rate);
            *free
        };
        tokio::time::sleep_until(until).await;
    }
}

/// Forwards from a new port of this machine to `to`: this many bytes per second and connection in each direction, and at most `most` bytes
/// per connection.
pub fn relay(to: SocketAddr, rate: u64, most: u64) -> SocketAddr {
    serve(to, most, move || [Line::of(rate), Line::of(rate)])
}

/// Forwards over a line that all connections share: this many bytes per second in each direction.
#[allow(dead_code)] // `tests/s3.rs` has a line that is shared.
pub fn shared_line(to: SocketAddr, rate: u64) -> SocketAddr {
    let lines = [Line::of(rate), Line::of(rate)];
    serve(to, u64::MAX, move || lines.clone())
}

/// Socket buffers are small, so that the rate applies and not the kernel's buffers.
fn socket() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket
}

fn serve(to: SocketAddr, most: u64, lines: impl Fn() -> [Line; 2] + Send + 'static) -> SocketAddr {
    let here = socket();
    here.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = here.listen(1024).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let [up, down] = lines();
            tokio::spawn(async move {
                let Ok(server) = socket().connect(to).await else { return };
                let (from_client, to_client) = TcpStream::into_split(client);
                let (from_server, to_server) = TcpStream::into_split(server);
                tokio::join!(forward(from_client, to_server, up, most), forward(from_server, to_client, down, most));
            });
        }
    });
    address
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: Line, most: u64) {
    let (mut buffer, mut forwarded) = ([0; 16 * 1024], 0);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        line.carry(read as u64).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        forwarded += read as u64;
        if forwarded > most {
            return std::future::pending().await;
        }
    }
}
