//! Ends of connections that have proved themselves and now send what they like.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use pydist_node::Node;
use pydist_proto::handshake::{Cookie, Handshake, Initiator, Local, Secrets, Versions};
use pydist_proto::message::Member;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::{address, eventually, folder, node};

/// An end of a connection that has proved itself and now sends what it likes.
pub(crate) struct Stranger {
    pub(crate) socket: UnixStream,
    /// Bytes that have come through the socket in the handshake.
    pub(crate) received: u64,
    pub(crate) head: Arc<Node>,
    folder: std::path::PathBuf,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.head.close();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn stranger() -> Stranger {
    let folder = folder();
    let head = node(1, address(&folder, 1), &[9; 32]);
    head.listen(&address(&folder, 1)).unwrap();
    let (socket, received) = join(&head, &folder, 2);
    Stranger {
        socket,
        received,
        head,
        folder,
    }
}

/// Proves to a head that it is process `pid`; tells how many bytes have come for that.
pub(crate) fn join(head: &Node, folder: &std::path::Path, pid: u32) -> (UnixStream, u64) {
    let before = head.stats().connections;
    head.expect_worker(Member {
        pid,
        host: "here".to_owned(),
        ..Member::default()
    });
    let mut socket = UnixStream::connect(folder.join("1")).unwrap();
    let versions = Versions {
        python: (3, 11, 0),
        package: "0".to_owned(),
    };
    let local = Local {
        id: pid,
        cluster: [7; 16],
        assigner: None,
        versions,
        allow_python_mismatch: false,
    };
    let secrets = Secrets {
        nonce: [5; 32],
        inst: [1; 16],
        channel_binding: [0; 32],
    };
    let cookie = Cookie::new(&[9; 32]).unwrap();
    let mut machine: Handshake = Initiator::new(local, &cookie, secrets).into();
    let mut buffer = [0; 1024];
    let mut received = 0;
    loop {
        while let Some(bytes) = machine.poll_output() {
            socket.write_all(&bytes).unwrap();
        }
        if machine.is_finished() {
            break;
        }
        let n = socket.read(&mut buffer).unwrap();
        received += n as u64;
        assert_eq!(machine.handle_bytes(&buffer[..n]).unwrap(), n);
    }
    eventually("the connection is open", || {
        head.stats().connections == before + 1
    });
    (socket, received)
}

pub(crate) fn send(socket: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(files)));
    }
    // The other end may have closed the connection already.
    let _ = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

pub(crate) fn memory(len: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("test", flags).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

/// The descriptors of this process that are memory files of a name.
pub(crate) fn descriptors() -> usize {
    let names = std::fs::read_dir("/proc/self/fd").unwrap();
    let names = names.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    names
        .filter(|name| name.to_string_lossy().contains("memfd:test"))
        .count()
}
