//! Simulated peers: what is left of a process where calls are only sent back.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use pydist_proto::codec::Decoder;
use pydist_proto::frame::{encode, encode_head};
use pydist_proto::handshake::{Cookie, Handshake, Initiator, Local, PRE_AUTH_LIMIT, Secrets};
use pydist_proto::ids::ProcId;
use pydist_proto::message::{CallMode, Message, Status};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::{CLUSTER, COOKIE, Failure, INST, versions};

const MESSAGE_MAX: u64 = 1 << 20;
const EVENTS: usize = 256;

/// One end of a connection to the hub.
pub(crate) struct Peer {
    socket: UnixStream,
    decoder: Decoder,
}

/// Dials the hub, and proves to know the cookie.
pub(crate) fn connect(hub: &Path, pid: ProcId) -> Result<Peer, Failure> {
    let mut socket = UnixStream::connect(hub)?;
    let local = Local {
        id: pid,
        cluster: CLUSTER,
        assigner: None,
        versions: versions(),
        allow_python_mismatch: false,
    };
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| error.to_string())?;
    let secrets = Secrets {
        nonce,
        inst: INST,
        channel_binding: [0; 32],
    };
    let mut machine = Handshake::from(Initiator::new(local, &Cookie::new(&COOKIE)?, secrets));
    let mut buffer = [0; PRE_AUTH_LIMIT];
    loop {
        while let Some(output) = machine.poll_output() {
            socket.write_all(&output)?;
        }
        if machine.is_finished() {
            break;
        }
        let read = socket.read(&mut buffer)?;
        if read == 0 {
            return Err("the hub has refused a peer".into());
        }
        // The hub says nothing unasked, so the handshake takes all that comes.
        machine.handle_bytes(&buffer[..read])?;
    }
    let decoder = Decoder::new(machine.finish()?, MESSAGE_MAX);
    socket.set_nonblocking(true)?;
    Ok(Peer { socket, decoder })
}

/// Answers calls to all peers, until the hub has closed every connection.
pub(crate) fn serve(mut peers: Vec<Peer>) -> Result<(), Failure> {
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    for (index, peer) in peers.iter().enumerate() {
        epoll::add(
            &poll,
            &peer.socket,
            EventData::new_u64(index as u64),
            EventFlags::IN,
        )?;
    }
    let mut open = peers.len();
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    while open > 0 {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let index = event.data.u64() as usize;
            if !answer_all(&mut peers[index])? {
                epoll::delete(&poll, &peers[index].socket)?;
                open -= 1;
            }
        }
    }
    Ok(())
}

/// Answers whatever calls have come; false where the hub has closed the connection.
fn answer_all(peer: &mut Peer) -> Result<bool, Failure> {
    let read = match peer.socket.read(peer.decoder.spare()?) {
        Ok(0) => return Ok(false),
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    peer.decoder.advance(read);
    while let Some(message) = peer.decoder.poll_message()? {
        if let Message::Call {
            id,
            mode: CallMode::Fetch,
            body,
            ..
        } = message
        {
            let answer = encode(Message::Result {
                id,
                status: Status::Value,
                body: Arc::new(body),
            });
            let segments = &answer.body.get().segments;
            let lengths = segments.iter().map(|segment| segment.as_slice().len());
            let mut bytes = encode_head(answer.header, lengths, &[], None);
            for segment in segments {
                bytes.extend_from_slice(segment.as_slice());
            }
            // An answer is short and there are few under way, so there is room for it.
            peer.socket.write_all(&bytes)?;
        }
    }
    Ok(true)
}
