//! A whole connection: handshake, decoder and the state of the process behind them, fed in any portions.

use pydist_proto::codec::Decoder;
use pydist_proto::error::ProtocolError;
use pydist_proto::frame;
use pydist_proto::handshake::Handshake;
use pydist_proto::ids::ProcId;
use pydist_proto::message::Message;

use crate::frames::{MESSAGE_MAX, any_frame};
use crate::input::Input;
use crate::process::Process;
use crate::session::{self, ACCEPTOR, INITIATOR, Session};

/// A third member, which is never heard of.
const THIRD: ProcId = 3;

/// So many portions at most for a stream; `chunks` cuts them as small as they can be.
const PORTIONS: usize = 64;

/// Where a connection is in its life.
enum Stage {
    Handshake(Box<Handshake>),
    Open(Box<Decoder>),
    Closed,
}

/// One end of a connection, and its process.
struct End {
    stage: Stage,
    peer: ProcId,
    process: Process,
}

impl End {
    fn new(initiates: bool) -> End {
        let (me, peer) = if initiates {
            (INITIATOR, ACCEPTOR)
        } else {
            (ACCEPTOR, INITIATOR)
        };
        let handshake = if initiates {
            session::initiator(session::local(me))
        } else {
            session::acceptor(session::local(me))
        };
        End {
            stage: Stage::Handshake(Box::new(handshake)),
            peer,
            process: Process::new(me, [peer, THIRD]),
        }
    }

    /// Takes bytes in portions; one that breaks the protocol closes the connection.
    fn feed(&mut self, bytes: &[u8], size: usize) {
        for portion in bytes.chunks(size) {
            let used = match &mut self.stage {
                Stage::Handshake(handshake) => {
                    let used = handshake.handle_bytes(portion);
                    while handshake.poll_output().is_some() {}
                    used
                }
                _ => Ok(0),
            };
            match used {
                Ok(used) => self.open(&portion[used..]),
                Err(_) => self.stage = Stage::Closed,
            }
        }
    }

    fn open(&mut self, rest: &[u8]) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Handshake(handshake) if handshake.is_finished() => {
                let authenticated = handshake.finish().unwrap();
                assert_eq!(authenticated.peer_id(), self.peer);
                Stage::Open(Box::new(Decoder::new(authenticated, MESSAGE_MAX)))
            }
            stage => stage,
        };
        if let Stage::Open(decoder) = &mut self.stage {
            match read(decoder, rest) {
                Ok(messages) => {
                    for message in messages {
                        self.process.receive(self.peer, message);
                    }
                }
                Err(_) => self.stage = Stage::Closed,
            }
        }
    }
}

fn read(decoder: &mut Decoder, mut bytes: &[u8]) -> Result<Vec<Message>, ProtocolError> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let spare = decoder.spare()?;
        let n = spare.len().min(bytes.len());
        spare[..n].copy_from_slice(&bytes[..n]);
        decoder.advance(n);
        bytes = &bytes[n..];
        while let Some(message) = decoder.poll_message()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

/// A stream of one message, whole.
fn streamed(input: &mut Input) -> Vec<u8> {
    let stream = u16::from(input.u8() % 4);
    let len = 1 + usize::from(input.u16());
    let header = frame::Header {
        kind: input.u8() % 20,
        id: input.number(),
        ..frame::Header::default()
    };
    let mut bytes = frame::encode_head(header, [len].into_iter(), &[], Some(stream));
    bytes.extend(frame::encode_chunk_prefix(stream, len));
    bytes.resize(bytes.len() + len, 0);
    bytes
}

/// Whatever a peer says and the user does: nobody is woken twice, and nobody waits once the peer has left.
pub(crate) fn connection(input: &[u8]) {
    let mut input = Input(input);
    let choices = input.u8();
    let size = 1 + usize::from(input.u8());
    let mut end = End::new(choices & 1 == 0);
    let good = Session::good();
    let sent = if choices & 1 == 0 {
        &good.acceptor
    } else {
        &good.initiator
    };
    // Else the input has to know the session itself.
    if choices & 2 == 0 {
        end.feed(sent, size);
        assert!(matches!(end.stage, Stage::Open(_)));
    }
    while !input.is_empty() {
        match input.u8() % 8 {
            0..=2 => {
                let frame = any_frame(&mut input);
                end.feed(&frame, size);
            }
            3 => {
                let len = usize::from(input.u8());
                end.feed(input.bytes(len), size);
            }
            4 => {
                let bytes = streamed(&mut input);
                end.feed(&bytes, size.max(bytes.len() / PORTIONS));
            }
            _ => end.process.act(&mut input, end.peer),
        }
    }
    end.process.end();
}
