//! A channel at its owner: items, those who wait for one, and those who wait for room.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::body::Body;
use crate::ids::ProcId;
use crate::message::Status;

/// What somebody wants of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The first item, which leaves the channel.
    Take,
    /// The first item, which stays.
    Fetch,
    /// That there is an item.
    Ready,
}

/// Who asks: a process, and the number of its request there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asker {
    pub pid: ProcId,
    pub req: u64,
}

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub to: Asker,
    pub status: Status,
    pub body: Arc<Body>,
    /// The body has left the channel for good: its references go with it.
    pub moved: bool,
}

#[derive(Debug)]
struct Item {
    body: Arc<Body>,
}

#[derive(Debug)]
struct Putter {
    from: Asker,
    body: Arc<Body>,
}

/// A channel at its owner.
///
/// ```text
///   putters ──► items (at most `capacity`) ──► takers
///                 ▲                              │
///                 └── a taker died before it had ┘ confirmed the item: back to the front
/// ```
/// With capacity 0 an item goes from the first putter straight to a taker.
#[derive(Debug)]
pub struct Channel {
    capacity: usize,
    items: VecDeque<Item>,
    putters: VecDeque<Putter>,
    waiters: VecDeque<(Asker, Wish)>,
    /// Items on their way to takers on other processes, who have not confirmed them.
    unconfirmed: Vec<(Asker, Item)>,
    /// Why it is closed: the status and body that takers of an empty channel get.
    closed: Option<(Status, Arc<Body>)>,
}

impl Channel {
    /// Makes an empty, open channel; `usize::MAX` is unbounded.
    pub fn new(capacity: usize) -> Channel {
        Channel {
            capacity,
            items: VecDeque::new(),
            putters: VecDeque::new(),
            waiters: VecDeque::new(),
            unconfirmed: Vec::new(),
            closed: None,
        }
    }

    pub fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// Whether there is an item for a taker, one that a putter holds out included.
    pub fn is_ready(&self) -> bool {
        !self.items.is_empty() || !self.putters.is_empty()
    }

    /// Items in the channel, and requests that wait.
    pub fn sizes(&self) -> (usize, usize) {
        (self.items.len(), self.waiters.len() + self.putters.len())
    }

    /// Puts an item; answered with `Yes` once it is in the channel or with a taker.
    pub fn put(&mut self, from: Asker, body: Arc<Body>) -> Vec<Answer> {
        if let Some((status, reason)) = &self.closed {
            // The item stays with the putter: the references that came with it go.
            return vec![Answer { to: from, status: *status, body: reason.clone(), moved: false }];
        }
        self.putters.push_back(Putter { from, body });
        self.settle()
    }

    /// Asks for the first item, or that there is one.
    pub fn ask(&mut self, from: Asker, wish: Wish) -> Vec<Answer> {
        self.waiters.push_back((from, wish));
        self.settle()
    }

    /// Takes a request back; true where it was still waiting.
    ///
    /// A put that is taken back gives its body back, for its references.
    pub fn withdraw(&mut self, from: Asker) -> Option<Option<Arc<Body>>> {
        if let Some(at) = self.waiters.iter().position(|(asker, _)| *asker == from) {
            self.waiters.remove(at);
            return Some(None);
        }
        let at = self.putters.iter().position(|p| p.from == from)?;
        self.putters.remove(at).map(|putter| Some(putter.body))
    }

    /// A taker has its item.
    pub fn confirm(&mut self, taker: Asker) -> Option<Arc<Body>> {
        let at = self.unconfirmed.iter().position(|(asker, _)| *asker == taker)?;
        Some(self.unconfirmed.remove(at).1.body)
    }

    /// A taker does not want the item that was sent to it: it goes back to the front.
    pub fn give_back(&mut self, taker: Asker) -> Vec<Answer> {
        if let Some(at) = self.unconfirmed.iter().position(|(asker, _)| *asker == taker) {
            let (_, item) = self.unconfirmed.remove(at);
            self.items.push_front(item);
        }
        self.settle()
    }

    /// Closes the channel: items that are in it can still be taken, whoever waits for room fails now.
    ///
    /// Returns the answers and the bodies of the puts that failed.
    pub fn close(&mut self, status: Status, reason: Arc<Body>) -> (Vec<Answer>, Vec<Arc<Body>>) {
        if self.closed.is_some() {
            return (Vec::new(), Vec::new());
        }
        let mut answers = Vec::new();
        let mut dropped = Vec::new();
        for putter in self.putters.drain(..) {
            answers.push(Answer { to: putter.from, status, body: reason.clone(), moved: false });
            dropped.push(putter.body);
        }
        self.closed = Some((status, reason));
        answers.extend(self.settle());
        (answers, dropped)
    }

    /// A process has gone: its requests go, and items that it has not confirmed come back, in their order.
    pub fn forget(&mut self, pid: ProcId) -> (Vec<Answer>, Vec<Arc<Body>>) {
        self.waiters.retain(|(asker, _)| asker.pid != pid);
        let mut dropped = Vec::new();
        let (gone, kept) = std::mem::take(&mut self.putters).into_iter().partition(|p: &Putter| p.from.pid == pid);
        self.putters = kept;
        dropped.extend(Vec::from_iter::<VecDeque<Putter>>(gone).into_iter().map(|p| p.body));
        let (back, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unconfirmed).into_iter().partition(|(asker, _)| asker.pid == pid);
        self.unconfirmed = kept;
        for (_, item) in back.into_iter().rev() {
            self.items.push_front(item);
        }
        (self.settle(), dropped)
    }

    /// Every body in the channel, at its end.
    pub fn into_bodies(self) -> Vec<Arc<Body>> {
        let mut bodies: Vec<Arc<Body>> = self.items.into_iter().map(|i| i.body).collect();
        bodies.extend(self.putters.into_iter().map(|p| p.body));
        bodies.extend(self.unconfirmed.into_iter().map(|(_, item)| item.body));
        bodies.extend(self.closed.map(|(_, reason)| reason));
        bodies
    }

    /// Whoever waits in this channel, at its end.
    pub fn askers(&self) -> impl Iterator<Item = Asker> {
        self.waiters.iter().map(|(asker, _)| *asker).chain(self.putters.iter().map(|p| p.from))
    }

    /// Moves items on as far as they go.
    fn settle(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        loop {
            while self.items.len() < self.capacity {
                let Some(putter) = self.putters.pop_front() else { break };
                answers.push(Answer::bare(putter.from, Status::Yes));
                self.items.push_back(Item { body: putter.body });
            }
            if !self.is_ready() {
                break;
            }
            let Some((asker, wish)) = self.waiters.pop_front() else { break };
            match wish {
                Wish::Ready => answers.push(Answer::bare(asker, Status::Yes)),
                Wish::Fetch => {
                    if let Some(body) = self.first() {
                        answers.push(Answer { to: asker, status: Status::Value, body, moved: false });
                    }
                }
                Wish::Take => {
                    let item = match self.items.pop_front() {
                        Some(item) => Some(item),
                        None => self.putters.pop_front().map(|putter| {
                            answers.push(Answer::bare(putter.from, Status::Yes));
                            Item { body: putter.body }
                        }),
                    };
                    if let Some(item) = item {
                        let body = item.body.clone();
                        self.unconfirmed.push((asker, item));
                        answers.push(Answer { to: asker, status: Status::Value, body, moved: true });
                    }
                }
            }
        }
        if !self.is_ready()
            && let Some((status, reason)) = &self.closed
        {
            for (to, _) in self.waiters.drain(..) {
                answers.push(Answer { to, status: *status, body: reason.clone(), moved: false });
            }
        }
        answers
    }

    fn first(&self) -> Option<Arc<Body>> {
        self.items.front().map(|item| item.body.clone()).or_else(|| self.putters.front().map(|p| p.body.clone()))
    }
}

impl Answer {
    fn bare(to: Asker, status: Status) -> Answer {
        Answer { to, status, body: Arc::default(), moved: false }
    }
}
