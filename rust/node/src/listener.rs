//! Listening sockets and dialling, on Unix sockets and TCP.

use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A socket that accepts connections.
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Binds `unix:PATH` or `tcp:HOST:PORT`; returns the address that others dial.
    pub(crate) fn bind(address: &str) -> std::io::Result<(Listener, String)> {
        if let Some(path) = address.strip_prefix("unix:") {
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            return Ok((Listener::Unix(listener), address.to_owned()));
        }
        let listener = TcpListener::bind(tcp_part(address)?)?;
        listener.set_nonblocking(true)?;
        let bound = format!("tcp:{}", listener.local_addr()?);
        Ok((Listener::Tcp(listener), bound))
    }

    /// Accepts one connection, with the address of who dialled for the log.
    pub(crate) fn accept(&self) -> std::io::Result<(OwnedFd, String)> {
        match self {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((stream.into(), "a Unix socket".to_owned()))
            }
            Listener::Tcp(listener) => {
                let (stream, from) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok((stream.into(), from.to_string()))
            }
        }
    }

    pub(crate) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsFd;
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// Connects to an address of [`Listener::bind`].
pub(crate) fn dial(address: &str) -> std::io::Result<OwnedFd> {
    if let Some(path) = address.strip_prefix("unix:") {
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        return Ok(stream.into());
    }
    let mut last = std::io::Error::other(format!("{address} names no address"));
    for target in tcp_part(address)?.to_socket_addrs()? {
        match TcpStream::connect_timeout(&target, DIAL_TIMEOUT) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                return Ok(stream.into());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn tcp_part(address: &str) -> std::io::Result<&str> {
    address.strip_prefix("tcp:").ok_or_else(|| {
        std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            format!("{address:?} is neither unix: nor tcp:"),
        )
    })
}
