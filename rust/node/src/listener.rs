//! Listening sockets and addresses, on Unix sockets and TCP.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use std::time::Duration;

use crate::sync::atomic::AtomicBool;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A connection that is silent for this long is asked whether it still stands.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_COUNT: u32 = 3;
/// Bytes that were sent and are not acknowledged for this long end the connection, in milliseconds.
const UNACKNOWLEDGED_MAX: u32 = 30_000;

/// So many connections may wait to be accepted: a genuine one is to find room beside those of a flood.
const BACKLOG: i32 = 4096;

/// An address that the core dials. Names are resolved before it comes here, where nothing may block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// TCP, with TLS on it.
    Tls(SocketAddr),
}

impl Address {
    /// Reads `unix:PATH`, `tcp:IP:PORT` or `tls:IP:PORT`.
    pub(crate) fn parse(text: &str) -> std::io::Result<Address> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Address::Unix(path.into()));
        }
        let ip_and_port = |scheme| text.strip_prefix(scheme).and_then(|part| part.parse().ok());
        ip_and_port("tcp:")
            .map(Address::Tcp)
            .or_else(|| ip_and_port("tls:").map(Address::Tls))
            .ok_or_else(|| {
                std::io::Error::new(
                    std::io::ErrorKind::InvalidInput,
                    format!("{text:?} is none of unix:PATH, tcp:IP:PORT and tls:IP:PORT"),
                )
            })
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Address::Tls(_))
    }

    /// Begins a connection; one over TCP may still be under way.
    pub(crate) fn connect(&self) -> std::io::Result<OwnedFd> {
        match self {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }
            Address::Tcp(address) | Address::Tls(address) => {
                let family = if address.is_ipv4() {
                    AddressFamily::INET
                } else {
                    AddressFamily::INET6
                };
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
                tune(socket.as_fd())?;
                match rustix::net::connect(&socket, address) {
                    Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

/// Sets what every TCP connection of a cluster has; other sockets stay as they are.
pub(crate) fn tune(socket: BorrowedFd<'_>) -> std::io::Result<()> {
    let family = sockopt::socket_domain(socket)?;
    if family != AddressFamily::INET && family != AddressFamily::INET6 {
        return Ok(());
    }
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_COUNT)?;
    sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MAX)?;
    crate::ahead::bound_unsent(socket)
}

/// Has the system end a TCP connection whose other end does not acknowledge for so long; other sockets stay as they are.
pub(crate) fn limit_silence(socket: BorrowedFd<'_>, limit: Duration) {
    let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    // Where it is no TCP connection the system refuses.
    let _ = sockopt::set_tcp_user_timeout(socket, millis);
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A socket that accepts connections.
pub(crate) struct Listener {
    socket: Socket,
    /// The tag that who dials has learnt with the address.
    pub(crate) inst: [u8; 16],
    /// Who comes without an id is given one.
    pub(crate) admits: bool,
    /// Who connects has to begin with TLS.
    pub(crate) is_tls: bool,
    /// It is not watched while the process has no descriptors left.
    pub(crate) paused: AtomicBool,
}

impl Listener {
    /// Binds `unix:PATH`, `tcp:IP:PORT` or `tls:IP:PORT`; returns the address that others dial.
    pub(crate) fn bind(address: &str, inst: [u8; 16], admits: bool) -> std::io::Result<(Listener, String)> {
        let address_read = Address::parse(address)?;
        let is_tls = address_read.is_tls();
        let (socket, bound) = match address_read {
            Address::Unix(path) => {
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                (Socket::Unix(listener), address.to_owned())
            }
            Address::Tcp(at) | Address::Tls(at) => {
                let listener = TcpListener::bind(at)?;
                listener.set_nonblocking(true)?;
                let bound = format!(
                    "{}:{}",
                    if is_tls { "tls" } else { "tcp" },
                    listener.local_addr()?
                );
                (Socket::Tcp(listener), bound)
            }
        };
        let paused = AtomicBool::new(false);
        let fd = match &socket {
            Socket::Unix(listener) => listener.as_fd(),
            Socket::Tcp(listener) => listener.as_fd(),
        };
        rustix::net::listen(fd, BACKLOG)?;
        let listener = Listener {
            socket,
            inst,
            admits,
            is_tls,
            paused,
        };
        Ok((listener, bound))
    }

    /// Accepts one connection; tells from where it came, over TCP.
    pub(crate) fn accept(&self) -> std::io::Result<(OwnedFd, Option<SocketAddr>)> {
        match &self.socket {
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((stream.into(), None))
            }
            Socket::Tcp(listener) => {
                let (stream, origin) = listener.accept()?;
                stream.set_nonblocking(true)?;
                tune(stream.as_fd())?;
                Ok((stream.into(), Some(origin)))
            }
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(listener) => listener.as_fd(),
            Socket::Tcp(listener) => listener.as_fd(),
        }
    }
}
