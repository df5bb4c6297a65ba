//! Dialling: the addresses of a process are tried one after the other, and no thread waits for any of them.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::dispatch::is_out_of_descriptors;
use crate::listener::Address;

/// How long one address has to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that is being made.
pub(crate) struct Dial {
    left: VecDeque<String>,
    current: String,
    /// The addresses that did not answer, with the reasons.
    tried: Vec<String>,
    /// This process has no descriptor left: that the first address could not be begun with says nothing of it.
    without_descriptor: Option<std::io::Error>,
    pub(crate) deadline: Instant,
}

/// How far a dialled connection has come.
pub(crate) enum Progress {
    Connected,
    UnderWay,
    Failed(String),
}

impl Dial {
    /// Begins with the first of the addresses, one a line, that can be begun with.
    pub(crate) fn start(addresses: &str) -> std::io::Result<(Dial, OwnedFd)> {
        let mut dial = Dial {
            left: addresses
                .lines()
                .filter(|l| !l.is_empty())
                .map(str::to_owned)
                .collect(),
            current: String::new(),
            tried: Vec::new(),
            without_descriptor: None,
            deadline: crate::sync::now(),
        };
        match dial.next() {
            Some(fd) => Ok((dial, fd)),
            None => Err(dial
                .without_descriptor
                .take()
                .unwrap_or_else(|| std::io::Error::other(dial.failure()))),
        }
    }

    /// Begins with the next address that can be begun with.
    fn next(&mut self) -> Option<OwnedFd> {
        while let Some(address) = self.left.pop_front() {
            self.current = address;
            self.deadline = crate::sync::now() + PATIENCE;
            match Address::parse(&self.current).and_then(|address| address.connect()) {
                Ok(fd) => return Some(fd),
                Err(error) if is_out_of_descriptors(&error) => {
                    self.tried.push(format!("{}: {error}", self.current));
                    self.without_descriptor = Some(error);
                    return None;
                }
                Err(error) => self.tried.push(format!("{}: {error}", self.current)),
            }
        }
        None
    }

    /// The address that is being tried wants TLS.
    pub(crate) fn is_tls(&self) -> bool {
        Address::parse(&self.current).is_ok_and(|address| address.is_tls())
    }

    /// Goes on to the next address; nothing where there is none.
    pub(crate) fn give_up_current(&mut self, reason: &str) -> Option<OwnedFd> {
        self.tried.push(format!("{}: {reason}", self.current));
        self.next()
    }

    /// Says which addresses were tried.
    pub(crate) fn failure(&self) -> String {
        if self.tried.is_empty() {
            return "it has no address".to_owned();
        }
        format!("no address answered; tried {}", self.tried.join(", "))
    }
}

/// Looks how far a connection has come.
pub(crate) fn progress(fd: BorrowedFd<'_>) -> Progress {
    match sockopt::socket_error(fd) {
        Ok(Err(error)) => return Progress::Failed(error.to_string()),
        Err(error) => return Progress::Failed(error.to_string()),
        Ok(Ok(())) => {}
    }
    match rustix::net::getpeername(fd) {
        Ok(_) => Progress::Connected,
        Err(_) => Progress::UnderWay,
    }
}
