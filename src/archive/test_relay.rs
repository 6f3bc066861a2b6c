//! A slow connection, for tests: forwards data at a limited rate, and can stop in the middle. `tests/s3.rs` includes this file too.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// Forwards from a new port of this machine to `to`: this many bytes per second and connection in each direction, and at most `most` bytes
/// per connection. Socket buffers are small, so that the rate applies and not the kernel's buffers.
pub fn relay(to: SocketAddr, rate: u64, most: u64) -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = socket.listen(64).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let socket = TcpSocket::new_v4().unwrap();
                socket.set_recv_buffer_size(64 * 1024).unwrap();
                let Ok(server) = socket.connect(to).await else { return };
                let (from_client, to_client) = TcpStream::into_split(client);
                let (from_server, to_server) = TcpStream::into_split(server);
                let up = forward(from_client, to_server, rate, most);
                let down = forward(from_server, to_client, rate, most);
                tokio::join!(up, down);
            });
        }
    });
    address
}

async fn forward(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, rate: u64, most: u64) {
    let (mut buffer, mut forwarded) = ([0; 16 * 1024], 0);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        forwarded += read as u64;
        if forwarded > most {
            return std::future::pending().await;
        }
        tokio::time::sleep(Duration::from_millis(read as u64 * 1000 / rate)).await;
    }
}
