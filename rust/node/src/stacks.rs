//! What a process runs and waits for, told to others by its Python, or without it where that is stuck.

use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use pydist_proto::body::Body;
use pydist_proto::ids::ProcId;
use pydist_proto::message::{Message, Status};

use crate::inbox::Item;
use crate::node::Node;
use crate::sending::CallFailed;
use crate::sync::Mutex;
use crate::waiter::Wake;

/// So long Python has for its answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Has the stacks of all threads written to a file, by a handler of Python that needs no interpreter.
struct Dump {
    file: std::fs::File,
    signal: i32,
}

/// Who has asked this process for its stacks, and how they are had without Python.
#[derive(Default)]
pub(crate) struct Stacks {
    asked: Mutex<Vec<(ProcId, u64, Instant)>>,
    dump: Mutex<Option<Dump>>,
}

impl Node {
    /// Asks a process what it runs and waits for; a text wakes `wake`.
    pub fn ask_stacks(&self, pid: ProcId, wake: Wake) -> Result<u64, CallFailed> {
        Ok(self.open(|machine| machine.open_stacks(pid, wake.clone()))?)
    }

    /// In answer to `signal`, which a thread sends to itself, a handler writes the stacks of all threads to `file`.
    pub fn dump_stacks_by(&self, file: OwnedFd, signal: i32) {
        *self.stacks.dump.lock() = Some(Dump {
            file: file.into(),
            signal,
        });
    }

    pub(crate) fn stacks_asked(&self, from: ProcId, req: u64) {
        let until = crate::sync::now() + PATIENCE;
        self.stacks.asked.lock().push((from, req, until));
        self.push_item(Item::Stacks(from, req));
        self.driver.arm(until);
    }

    /// Tells who has asked; only the first answer is sent.
    pub fn answer_stacks(&self, from: ProcId, req: u64, text: String) {
        let mut asked = self.stacks.asked.lock();
        let before = asked.len();
        asked.retain(|(pid, id, _)| (*pid, *id) != (from, req));
        let first = asked.len() < before;
        drop(asked);
        if first {
            self.answer_text(from, req, text);
        }
    }

    /// Answers a question about this process with a text.
    pub(crate) fn answer_text(&self, to: ProcId, req: u64, text: String) {
        let body = Body::of_bytes(text.into_bytes()).into();
        let status = Status::Value;
        self.send_message(
            to,
            Message::Result {
                id: req,
                status,
                body,
            },
        );
    }

    /// Answers for Python where that has not done so in time.
    pub(crate) fn look_for_stuck_stacks(&self, now: Instant) {
        let asked = self.stacks.asked.lock();
        let (late, next) = (
            asked.iter().any(|(_, _, until)| *until <= now),
            asked
                .iter()
                .map(|(_, _, until)| *until)
                .filter(|until| *until > now)
                .min(),
        );
        drop(asked);
        if let Some(next) = next {
            self.driver.arm(next);
        }
        let Some(node) = self.this.upgrade().filter(|_| late) else {
            return;
        };
        let spawned = std::thread::Builder::new()
            .name("pydist-stacks".to_owned())
            .spawn(move || node.answer_without_python(now));
        if let Err(error) = spawned {
            self.note(&format!("the stacks of a stuck process cannot be had: {error}"));
        }
    }

    fn answer_without_python(&self, now: Instant) {
        let asked = self.stacks.asked.lock();
        let late: Vec<(ProcId, u64)> = asked
            .iter()
            .filter(|(_, _, until)| *until <= now)
            .map(|(from, req, _)| (*from, *req))
            .collect();
        drop(asked);
        if late.is_empty() {
            return;
        }
        let running: String = self
            .machine
            .lock()
            .running_calls()
            .map(|(src, id)| format!("call {id} of process {src} runs\n"))
            .collect();
        let text = format!(
            "its Python has not answered within {} s: a call holds the interpreter, perhaps in C code\n{running}{}",
            PATIENCE.as_secs_f64(),
            self.dump(),
        );
        for (from, req) in late {
            self.answer_stacks(from, req, text.clone());
        }
    }

    fn dump(&self) -> String {
        let mut dump = self.stacks.dump.lock();
        let Some(dump) = dump.as_mut() else {
            return String::new();
        };
        match dump.stacks() {
            Ok(text) => text,
            Err(error) => format!("its stacks cannot be had: {error}"),
        }
    }
}

impl Dump {
    /// While the interpreter is held by one thread, in C code, no other changes what the handler reads.
    fn stacks(&mut self) -> std::io::Result<String> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        // SAFETY: the set is initialised by `sigemptyset` and lives on this stack frame; the thread sends the signal,
        // for which Python has a handler, to itself, and gets it before `pthread_kill` returns
        // (tests/faults/test_stacks.py).
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, self.signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
            libc::pthread_kill(libc::pthread_self(), self.signal);
        }
        let mut text = Vec::new();
        self.file.rewind()?;
        self.file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
