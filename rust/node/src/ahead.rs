//! What the system holds of a TCP connection, ahead of whatever is sent next.
//!
//! A small message waits for the bytes before it, wherever they are: those that the sender's system has taken and not
//! sent, and those that have come and that the receiver has not read. By itself the system lets both grow to many
//! megabytes, the second kind just where the receiver gets little of its processors and is slow to read them.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, sockopt};

/// So many bytes may wait at the sender beside those that are under way; then the socket is full.
const UNSENT_MAX: u32 = 1 << 20;

/// What is asked for as the receiver's buffer. The system gives twice as much, and counts its own structures in that: at
/// least so many bytes may be under way, which is what a link of 10 GB/s carries in `SHORT`.
const UNREAD_MAX: usize = 2 << 20;

/// A receiver whose round trip takes longer needs a buffer that grows with it.
const SHORT: Duration = Duration::from_micros(200);

/// `tcpi_min_rtt` in `struct tcp_info` of the system, counted in 32 bits.
const MIN_RTT: usize = 37;

/// Bounds what waits at the sender of a TCP connection.
pub(crate) fn bound_unsent(socket: BorrowedFd<'_>) -> std::io::Result<()> {
    let value = UNSENT_MAX;
    // SAFETY: the socket is open as long as it is borrowed; the pointer is to a value on this stack frame of the length
    // that is told (`a_sender_hands_over_no_more_than_is_allowed`).
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Bounds what waits at the receiver of a TCP connection where that costs no throughput; other sockets stay as they are.
pub(crate) fn bound_unread(socket: BorrowedFd<'_>) {
    let is_tcp = sockopt::socket_domain(socket)
        .is_ok_and(|family| family == AddressFamily::INET || family == AddressFamily::INET6);
    if is_tcp
        && let Some(round_trip) = round_trip(socket)
        && is_to_be_bounded(round_trip, &Granted::read())
    {
        // Where the system refuses it goes on choosing by itself.
        let _ = sockopt::set_socket_recv_buffer_size(socket, UNREAD_MAX);
    }
}

/// What the system grants for what a connection has not read, in bytes.
struct Granted {
    /// On request.
    on_request: usize,
    /// By its own choice.
    by_itself: usize,
}

impl Granted {
    fn read() -> Granted {
        let last_number = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let last = text.split_whitespace().next_back();
            last.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        Granted {
            on_request: last_number("/proc/sys/net/core/rmem_max"),
            by_itself: last_number("/proc/sys/net/ipv4/tcp_rmem"),
        }
    }
}

/// Whether the receiver's buffer is to be bounded: on a short link, where the system gives what is asked for, so that
/// nothing is slower for it, and would choose more by itself.
fn is_to_be_bounded(round_trip: Duration, granted: &Granted) -> bool {
    round_trip <= SHORT && granted.on_request >= UNREAD_MAX && granted.by_itself > 2 * UNREAD_MAX
}

/// The shortest time that an answer of the other end's system has taken.
fn round_trip(socket: BorrowedFd<'_>) -> Option<Duration> {
    let mut info = [0u32; MIN_RTT + 1];
    let whole = size_of_val(&info) as libc::socklen_t;
    let mut len = whole;
    // SAFETY: the socket is open as long as it is borrowed; the system writes at most `len` bytes to `info`, which has as
    // many, and any bits are good numbers (`a_round_trip_is_told_of_tcp_alone`).
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let measured = result == 0 && len == whole && info[MIN_RTT] != u32::MAX;
    measured.then(|| Duration::from_micros(u64::from(info[MIN_RTT])))
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const MIB: usize = 1 << 20;
    const PLENTY: Granted = Granted {
        on_request: 4 * MIB,
        by_itself: 32 * MIB,
    };

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    /// Writes until the socket is full; returns how many bytes it took.
    fn fill(mut socket: &TcpStream) -> usize {
        socket.set_nonblocking(true).unwrap();
        let part = vec![0; MIB];
        let mut taken = 0;
        while let Ok(n) = socket.write(&part) {
            taken += n;
        }
        taken
    }

    #[test]
    fn a_short_link_is_bounded_and_a_long_one_keeps_its_throughput() {
        let at = |micros| is_to_be_bounded(Duration::from_micros(micros), &PLENTY);
        assert!(at(0) && at(30) && at(200));
        assert!(!at(201) && !at(80_000) && !is_to_be_bounded(Duration::MAX, &PLENTY));
    }

    #[test]
    fn a_link_is_left_to_a_system_that_grants_little() {
        let with = |on_request, by_itself| {
            let granted = Granted {
                on_request,
                by_itself,
            };
            is_to_be_bounded(Duration::from_micros(30), &granted)
        };
        assert!(with(4 * MIB, 32 * MIB));
        assert!(!with(212_992, 32 * MIB) && !with(4 * MIB, 4 * MIB));
        // It does not tell.
        assert!(!with(0, 0));
    }

    #[test]
    fn a_round_trip_is_told_of_tcp_alone() {
        let (one, other) = pair();
        for end in [&one, &other] {
            assert!(round_trip(end.as_fd()).unwrap() < Duration::from_secs(5));
        }
        let (local, _other) = UnixStream::pair().unwrap();
        assert_eq!(round_trip(local.as_fd()), None);
    }

    #[test]
    fn other_sockets_stay_as_they_are() {
        let (local, _other) = UnixStream::pair().unwrap();
        let before = sockopt::socket_recv_buffer_size(&local).unwrap();
        bound_unread(local.as_fd());
        assert_eq!(sockopt::socket_recv_buffer_size(&local).unwrap(), before);
    }

    /// F21: what the system holds of a connection whose reader stands still is bounded.
    #[test]
    fn a_sender_hands_over_no_more_than_is_allowed() {
        let (one, mut other) = pair();
        bound_unsent(one.as_fd()).unwrap();
        bound_unread(other.as_fd());
        let buffer = sockopt::socket_recv_buffer_size(&other).unwrap();
        let granted = Granted::read();
        let bounded = is_to_be_bounded(round_trip(other.as_fd()).unwrap(), &granted);
        if bounded {
            assert_eq!(buffer, 2 * UNREAD_MAX);
        }
        let unread = if bounded {
            2 * UNREAD_MAX
        } else {
            granted.by_itself.max(buffer)
        };
        let taken = fill(&one);
        assert!(taken <= unread + 2 * UNSENT_MAX as usize, "{taken} {unread}");
        drop(one);
        assert_eq!(other.read_to_end(&mut Vec::new()).unwrap(), taken);
    }
}
