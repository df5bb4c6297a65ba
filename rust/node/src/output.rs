//! What workers print: read from their pipes by a thread that needs no interpreter, and kept until it is passed on.
//!
//! A worker that prints is not to wait for a process 1 that is busy. So its pipe is always read, and of what nobody has
//! taken up only the end is kept.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use crate::sync::{Condvar, Mutex};

/// So many bytes of a pipe are kept; of more the first ones are dropped.
pub const KEPT_MAX: usize = 16 << 20;
/// So many bytes are read, and handed out, at once.
const PORTION: usize = 256 << 10;
/// So often a pipe is read when all is to be taken up: a worker may print for ever.
const ROUNDS: usize = 64;

/// What a pipe has brought since it was last asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Printed {
    pub key: u64,
    /// So many bytes before the others were dropped.
    pub dropped: u64,
    pub bytes: Vec<u8>,
    /// Nothing more will come.
    pub ended: bool,
}

struct Pipe {
    /// There until its end.
    fd: Option<OwnedFd>,
    kept: VecDeque<u8>,
    dropped: u64,
    /// It is among those that have something.
    listed: bool,
}

impl Pipe {
    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        let over = self.kept.len().saturating_sub(KEPT_MAX);
        if over > 0 {
            self.kept.drain(..over);
            self.dropped += over as u64;
        }
    }
}

#[derive(Default)]
struct State {
    pipes: FxHashMap<u64, Pipe>,
    ready: VecDeque<u64>,
    next_key: u64,
    /// What was handed out last is still being passed on.
    busy: bool,
}

impl State {
    /// Reads a part of what a pipe has, if it has something; true where there may be more.
    fn read(&mut self, key: u64, buffer: &mut [u8]) -> bool {
        let Some(pipe) = self.pipes.get_mut(&key) else {
            return false;
        };
        let Some(fd) = &pipe.fd else { return false };
        let mut ask = [PollFd::new(fd, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if !matches!(poll(&mut ask, Some(&now)), Ok(1..)) {
            return false;
        }
        let more = match rustix::io::read(fd, &mut *buffer) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return true,
            Ok(0) | Err(_) => {
                pipe.fd = None;
                false
            }
            Ok(n) => {
                pipe.keep(&buffer[..n]);
                true
            }
        };
        if !pipe.listed {
            pipe.listed = true;
            self.ready.push_back(key);
        }
        more
    }
}

/// The pipes of workers, and the thread that reads them.
pub struct Outputs {
    state: Mutex<State>,
    changed: Condvar,
    epoll: OwnedFd,
}

impl Outputs {
    /// Starts the thread, which never ends.
    pub fn start() -> std::io::Result<Arc<Outputs>> {
        let outputs = Arc::new(Outputs {
            state: Mutex::default(),
            changed: Condvar::new(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        });
        let reader = outputs.clone();
        crate::reactor::spawn_without_signals("pydist-output", move || reader.run())?;
        Ok(outputs)
    }

    /// Reads a pipe from now on, of which nobody else is to read; returns its key.
    pub fn follow(&self, fd: OwnedFd) -> std::io::Result<u64> {
        let mut state = self.state.lock();
        let key = state.next_key;
        state.next_key += 1;
        epoll::add(
            &self.epoll,
            fd.as_fd(),
            epoll::EventData::new_u64(key),
            epoll::EventFlags::IN,
        )?;
        let pipe = Pipe {
            fd: Some(fd),
            kept: VecDeque::new(),
            dropped: 0,
            listed: false,
        };
        state.pipes.insert(key, pipe);
        Ok(key)
    }

    fn run(&self) {
        let mut events: [MaybeUninit<epoll::Event>; 32] = [const { MaybeUninit::uninit() }; 32];
        let mut buffer = vec![0; PORTION];
        loop {
            match epoll::wait(&self.epoll, &mut events[..], None) {
                Ok((events, _)) => {
                    for event in events.iter() {
                        self.state.lock().read(event.data.u64(), &mut buffer);
                    }
                    self.changed.notify_all();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Waits until a pipe has brought something, and takes a part of that. What was taken before has been passed on.
    pub fn take(&self) -> Printed {
        let mut state = self.state.lock();
        state.busy = false;
        self.changed.notify_all();
        loop {
            if let Some(key) = state.ready.pop_front()
                && let Some(pipe) = state.pipes.get_mut(&key)
            {
                let n = pipe.kept.len().min(PORTION);
                let bytes: Vec<u8> = pipe.kept.drain(..n).collect();
                let dropped = std::mem::take(&mut pipe.dropped);
                let rest = !pipe.kept.is_empty();
                let ended = pipe.fd.is_none() && !rest;
                pipe.listed = rest;
                if pipe.kept.is_empty() {
                    pipe.kept.shrink_to(PORTION);
                }
                if rest {
                    state.ready.push_front(key);
                } else if ended {
                    state.pipes.remove(&key);
                }
                state.busy = true;
                return Printed {
                    key,
                    dropped,
                    bytes,
                    ended,
                };
            }
            self.changed.wait(&mut state);
        }
    }

    /// Waits until all that has been printed before is passed on; false where that takes longer than so long.
    pub fn catch_up(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let mut buffer = vec![0; PORTION];
        let mut state = self.state.lock();
        let keys: Vec<u64> = state.pipes.keys().copied().collect();
        for key in keys {
            for _ in 0..ROUNDS {
                if !state.read(key, &mut buffer) {
                    break;
                }
            }
        }
        self.changed.notify_all();
        while state.busy || !state.ready.is_empty() {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return false;
            }
        }
        true
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn all_of(outputs: &Outputs) -> (u64, Vec<u8>) {
        let (mut dropped, mut bytes) = (0, Vec::new());
        loop {
            let printed = outputs.take();
            dropped += printed.dropped;
            bytes.extend(printed.bytes);
            if printed.ended {
                return (dropped, bytes);
            }
        }
    }

    #[test]
    fn what_is_printed_comes_in_order_and_then_its_end() {
        let outputs = Outputs::start().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let key = outputs.follow(read).unwrap();
        rustix::io::write(&write, b"one ").unwrap();
        assert_eq!(outputs.take().key, key);
        rustix::io::write(&write, b"two").unwrap();
        drop(write);
        assert_eq!(all_of(&outputs), (0, b"two".to_vec()));
        assert!(outputs.state.lock().pipes.is_empty());
    }

    /// F24: who prints does not wait for who does not listen; the end of what was printed is kept.
    #[test]
    fn of_what_nobody_takes_up_the_end_is_kept() {
        let outputs = Outputs::start().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        outputs.follow(read).unwrap();
        let total = KEPT_MAX + 3_000_000;
        let printed: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
        let mut rest = &printed[..];
        while !rest.is_empty() {
            let n = rustix::io::write(&write, rest).unwrap();
            rest = &rest[n..];
        }
        drop(write);
        let ends = || outputs.state.lock().pipes.values().all(|pipe| pipe.fd.is_none());
        while !ends() {
            std::thread::yield_now();
        }
        let (dropped, bytes) = all_of(&outputs);
        assert_eq!((dropped, bytes.len()), (3_000_000, KEPT_MAX));
        assert_eq!(bytes, printed[3_000_000..]);
    }
}
