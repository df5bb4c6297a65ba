//! One session: what is written is encrypted on its way to the socket, what is read is decrypted.
//!
//! A session never waits. What the socket does not take stays here, bounded, and nothing more is accepted meanwhile:
//! the caller sees a socket that is full, as it does without TLS.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustls::{AlertDescription, Connection, Error, PeerIncompatible};

use crate::link::send_vectored;

/// Bytes that a peer may send before TLS has been agreed on.
const HANDSHAKE_MAX: usize = 32 << 10;
/// Encrypted bytes that wait for the socket.
const WAITING_MAX: usize = 256 << 10;
/// Encrypted bytes that are read at once; few from a peer that has proved nothing yet.
const READ_FIRST: usize = 4 << 10;
const READ_OPEN: usize = 128 << 10;
/// The label of RFC 9266, whose value is different in every session.
const BINDING_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// Why nothing could be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is nothing for now.
    Again,
    Interrupted,
    /// The connection is over, with the reason.
    Broken(String),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Failure {
        match error {
            Errno::AGAIN => Failure::Again,
            Errno::INTR => Failure::Interrupted,
            error => Failure::Broken(crate::node::Node::broken(error)),
        }
    }
}

/// The session of one connection.
pub(crate) struct Session {
    connection: Connection,
    /// What was read from the socket; from `start` to `end` it has not been decrypted yet.
    ahead: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes read while TLS was being agreed on.
    handshake_bytes: usize,
    /// The other end has closed the socket.
    ended: bool,
    /// Found while there was something to hand out first.
    failure: Option<String>,
}

impl Session {
    pub(super) fn new(mut connection: Connection) -> Session {
        connection.set_buffer_limit(Some(WAITING_MAX));
        Session {
            connection,
            ahead: vec![0; READ_FIRST],
            start: 0,
            end: 0,
            handshake_bytes: 0,
            ended: false,
            failure: None,
        }
    }

    /// Goes on agreeing; returns the exporter value once that is done.
    pub(crate) fn agree(&mut self, fd: BorrowedFd<'_>) -> Result<[u8; 32], Failure> {
        while self.connection.is_handshaking() {
            self.decrypt_more(fd)?;
            if self.handshake_bytes > HANDSHAKE_MAX {
                return Err(Failure::Broken(format!(
                    "the other side sent more than {HANDSHAKE_MAX} bytes before TLS was agreed on"
                )));
            }
            if self.ended {
                return Err(Failure::Broken(self.ended_early()));
            }
        }
        // What is left goes out with what is written next, and when the socket becomes writable.
        let _ = self.send_waiting(fd);
        self.connection
            .export_keying_material([0; 32], BINDING_LABEL, Some(&[]))
            .map_err(|error| Failure::Broken(error.to_string()))
    }

    fn ended_early(&self) -> String {
        if self.handshake_bytes == 0 {
            "the other side closed the connection where TLS was to begin: it may speak no TLS".to_owned()
        } else {
            "the other side closed the connection before TLS was agreed on".to_owned()
        }
    }

    /// The peer has proved itself: large reads are worth their memory.
    pub(crate) fn trust(&mut self) {
        self.ahead.resize(READ_OPEN, 0);
    }

    /// Reads decrypted bytes; 0 at the end.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Failure> {
        if let Some(failure) = self.failure.take() {
            return Err(Failure::Broken(failure));
        }
        let room = buffer.len().min(READ_OPEN);
        let buffer = &mut buffer[..room];
        let mut filled = 0;
        while filled < buffer.len() {
            match self.connection.reader().read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => {
                    filled += n;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The socket has ended without a last word; what a message lacks, the decoder sees.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(Failure::Broken(error.to_string())),
            }
            match self.decrypt_more(fd) {
                Ok(()) => {}
                Err(Failure::Broken(reason)) if filled > 0 => {
                    self.failure = Some(reason);
                    break;
                }
                Err(_) if filled > 0 => break,
                Err(failure) => return Err(failure),
            }
        }
        Ok(filled)
    }

    /// Takes a piece of what the other end sent, from the socket where there is none, and answers where TLS does.
    fn decrypt_more(&mut self, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        // Where nothing can be sent any more, what the other end said last is still to be read.
        let _ = self.send_waiting(fd);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            let agreeing = self.connection.is_handshaking();
            let n = match rustix::net::recv(fd, &mut self.ahead[..], RecvFlags::DONTWAIT) {
                Ok((n, _)) => n,
                Err(Errno::CONNRESET) if agreeing => 0,
                Err(error) => return Err(error.into()),
            };
            self.end = n;
            self.ended |= n == 0;
            if agreeing {
                self.handshake_bytes += n;
            }
        }
        let mut piece = &self.ahead[self.start..self.end];
        // With nothing to read this tells rustls that the socket has ended.
        let taken = self.connection.read_tls(&mut piece);
        self.start += taken.map_err(|error| Failure::Broken(error.to_string()))?;
        let processed = self.connection.process_new_packets();
        let _ = self.send_waiting(fd);
        processed
            .map(|_| ())
            .map_err(|error| Failure::Broken(self.describe(&error)))
    }

    /// Encrypts bytes and writes them; returns how many are on their way.
    pub(crate) fn send(&mut self, fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
        self.send_waiting(fd)?;
        let taken = self.connection.writer().write_vectored(slices);
        let taken = taken.map_err(|_| Errno::PIPE)?;
        match self.send_waiting(fd) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => Ok(taken),
            Err(error) => Err(error),
        }
    }

    /// Writes encrypted bytes that wait, as far as the socket takes them.
    pub(crate) fn send_waiting(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        while self.connection.wants_write() {
            if let Err(error) = self.connection.write_tls(&mut Socket(fd)) {
                return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
            }
        }
        Ok(())
    }

    /// Tells the other end that nothing more comes; one with which nothing is agreed on is told nothing.
    pub(crate) fn close(&mut self, fd: BorrowedFd<'_>) {
        if !self.connection.is_handshaking() {
            self.connection.send_close_notify();
            let _ = self.send_waiting(fd);
        }
    }

    fn describe(&self, error: &Error) -> String {
        let agreeing = self.connection.is_handshaking();
        match error {
            Error::InvalidMessage(_) if agreeing => format!("the other side speaks no TLS ({error})"),
            Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::ServerDoesNotSupportTls12Or13,
            )
            | Error::AlertReceived(AlertDescription::ProtocolVersion) => {
                format!("the other side does not speak TLS 1.3 ({error})")
            }
            Error::InvalidCertificate(_) => {
                format!("the certificate of the other side is not accepted: {error}")
            }
            Error::NoCertificatesPresented => {
                "the other side has no certificate, and one of the authority is required".to_owned()
            }
            Error::AlertReceived(alert) => format!("the other side refused the TLS session: {alert:?}"),
            error => format!("TLS: {error}"),
        }
    }
}

/// Writes to a socket without waiting.
struct Socket<'a>(BorrowedFd<'a>);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> std::io::Result<usize> {
        Ok(send_vectored(self.0, slices, None)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
