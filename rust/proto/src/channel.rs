//! A channel at its owner: items, those who wait for one, and those who wait for room.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::body::Body;
use crate::credit::Credits;
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
}

impl Answer {
    pub fn bare(to: Asker, status: Status) -> Answer {
        let body = Arc::default();
        Answer { to, status, body }
    }

    fn closed(to: Asker, reason: &Arc<Body>) -> Answer {
        let (status, body) = (Status::Closed, reason.clone());
        Answer { to, status, body }
    }
}

/// What follows from an operation.
#[derive(Debug, Default)]
pub struct Effect {
    /// The answers, in the order in which they are to be given.
    pub answers: Vec<Answer>,
    /// The bodies that the channel no longer holds: their references go.
    pub dropped: Vec<Arc<Body>>,
    /// For how many items more room is set aside for each of these processes.
    pub credit: Vec<(ProcId, u32)>,
    /// The processes that are to give back the room that is set aside for them.
    pub recalled: Vec<ProcId>,
    /// The puts whose items are in and whose answers are held back: [`Channel::answer_held`] is to be called soon.
    pub held: Vec<Asker>,
}

impl From<Answer> for Effect {
    fn from(answer: Answer) -> Effect {
        let answers = vec![answer];
        Effect {
            answers,
            ..Effect::default()
        }
    }
}

/// How full a channel is, and who waits in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauge {
    /// `usize::MAX` is unbounded.
    pub capacity: usize,
    pub items: usize,
    /// Requests that wait for room, and those that wait for an item.
    pub putters: usize,
    pub takers: usize,
    pub is_open: bool,
}

/// An item, and the request that put it.
#[derive(Clone, Debug)]
struct Item {
    from: Asker,
    body: Arc<Body>,
    /// Its process is going to put more.
    more: bool,
    /// Its time is over: it is answered with `Cancelled` unless room that is given back makes place for it.
    withdrawn: bool,
}

impl Item {
    fn new(from: Asker, body: Arc<Body>, more: bool) -> Item {
        let withdrawn = false;
        Item {
            from,
            body,
            more,
            withdrawn,
        }
    }
}

/// In a channel with less room than this, or an eighth of its capacity, answers to those who put many items are held back.
const ROOM: usize = 64;

/// The number of a request that has none, as nobody waits for its answer.
const UNASKED: u64 = 0;

/// A channel at its owner.
///
/// ```text
///   putters ──► items (at most `capacity`) ──► unconfirmed ── confirm ──► (gone)
///   credit ───►   ▲                                 │
///                 └─ the taker died, or gave it back ┘ to the front
/// ```
/// Room that is set aside as credit counts as taken. All of it is asked back when somebody waits for room, and when
/// the channel is closed; until it has come back, takers of an empty closed channel wait for what may be on its way.
///
/// With capacity 0 an item goes from the first putter straight to a taker. Every request of [`Channel::put`] and
/// [`Channel::ask`] gets one answer, unless its process is forgotten.
#[derive(Debug)]
pub struct Channel {
    capacity: usize,
    items: VecDeque<Item>,
    putters: VecDeque<Item>,
    waiters: VecDeque<(Asker, Wish)>,
    /// Items that takers have been sent and have not confirmed, in the order in which they left.
    unconfirmed: VecDeque<(Asker, Item)>,
    credits: Credits,
    /// Puts whose items are in, and whose processes are to hear of it when there is room for more of theirs.
    held: Vec<Asker>,
    /// Why it is closed: the body that takers of an empty channel get.
    closed: Option<Arc<Body>>,
}

impl Channel {
    /// Makes an empty, open channel; `usize::MAX` is unbounded.
    pub fn new(capacity: usize) -> Channel {
        Channel {
            capacity,
            items: VecDeque::new(),
            putters: VecDeque::new(),
            waiters: VecDeque::new(),
            unconfirmed: VecDeque::new(),
            credits: Credits::default(),
            held: Vec::new(),
            closed: None,
        }
    }

    pub fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    pub fn gauge(&self) -> Gauge {
        Gauge {
            capacity: self.capacity,
            items: self.items.len(),
            putters: self.putters.len(),
            takers: self.waiters.len(),
            is_open: self.is_open(),
        }
    }

    /// Whether there is an item for a taker, one that a putter holds out included.
    pub fn is_ready(&self) -> bool {
        !self.items.is_empty() || !self.putters.is_empty()
    }

    /// Puts an item; answered with `Yes` once it is in the channel or with a taker.
    pub fn put(&mut self, from: Asker, body: Arc<Body>) -> Effect {
        self.enter(Item::new(from, body, false))
    }

    /// Puts an item of a process that is going to put more: where there is much room, some is set aside for it.
    ///
    /// Where there is little, the answer is held back, as the process would be woken for one item each time.
    pub fn put_of_many(&mut self, from: Asker, body: Arc<Body>) -> Effect {
        self.enter(Item::new(from, body, true))
    }

    fn enter(&mut self, item: Item) -> Effect {
        let mut effect = Effect::default();
        match &self.closed {
            Some(reason) => {
                effect.answers.push(Answer::closed(item.from, reason));
                effect.dropped.push(item.body);
            }
            None => {
                self.putters.push_back(item);
                self.settle(&mut effect);
            }
        }
        effect
    }

    /// Puts an item where it need not wait; nothing where it would.
    pub fn put_now(&mut self, from: Asker, body: &Arc<Body>) -> Option<Effect> {
        if !self.is_open() || !self.has_room() {
            return None;
        }
        let mut effect = Effect::default();
        self.items.push_back(Item::new(from, body.clone(), false));
        self.settle(&mut effect);
        Some(effect)
    }

    /// Puts an item for which there is room set aside, also after the closing; nothing where there is none, and then
    /// the item is not in the channel.
    pub fn put_on_credit(&mut self, pid: ProcId, body: &Arc<Body>) -> Option<Effect> {
        if !self.credits.spend(pid) {
            return None;
        }
        let (mut effect, req) = (Effect::default(), UNASKED);
        self.items
            .push_back(Item::new(Asker { pid, req }, body.clone(), true));
        self.settle(&mut effect);
        self.grant(pid, &mut effect);
        Some(effect)
    }

    /// A process gives back room that was set aside for it.
    pub fn give_credit_back(&mut self, pid: ProcId, count: u32) -> Effect {
        let mut effect = Effect::default();
        self.credits.give_back(pid, count);
        self.settle(&mut effect);
        effect
    }

    /// Takes the first item for one who has it on return, where there is one.
    pub fn take_now(&mut self) -> Option<(Arc<Body>, Effect)> {
        let mut effect = Effect::default();
        if self.items.is_empty() {
            self.accept(&mut effect);
        }
        let item = self.items.pop_front()?;
        self.settle(&mut effect);
        Some((item.body, effect))
    }

    /// Asks for the first item, or that there is one.
    pub fn ask(&mut self, from: Asker, wish: Wish) -> Effect {
        let mut effect = Effect::default();
        self.waiters.push_back((from, wish));
        self.settle(&mut effect);
        effect
    }

    /// Takes a request back: answered with `Cancelled` where it was still waiting, else it has its answer.
    ///
    /// A put that waits while room is asked back is answered once that has come: there may be room for it.
    pub fn withdraw(&mut self, from: Asker) -> Effect {
        let mut effect = Effect::default();
        if let Some(at) = self.waiters.iter().position(|(asker, _)| *asker == from) {
            self.waiters.remove(at);
            effect.answers.push(Answer::bare(from, Status::Cancelled));
        } else if let Some(at) = self.held.iter().position(|asker| *asker == from) {
            self.held.remove(at);
            effect.answers.push(Answer::bare(from, Status::Yes));
        } else if let Some(putter) = self.putters.iter_mut().find(|p| p.from == from) {
            putter.withdrawn = true;
            self.cancel_withdrawn(&mut effect);
        }
        effect
    }

    /// Answers the puts whose time is over, unless room may still come back for them.
    fn cancel_withdrawn(&mut self, effect: &mut Effect) {
        if self.credits.reserved() > 0 {
            return;
        }
        self.putters.retain(|putter| {
            if putter.withdrawn {
                effect.answers.push(Answer::bare(putter.from, Status::Cancelled));
                effect.dropped.push(putter.body.clone());
            }
            !putter.withdrawn
        });
    }

    /// A taker has its item.
    pub fn confirm(&mut self, taker: Asker) -> Effect {
        let mut effect = Effect::default();
        effect.dropped.extend(self.recall(taker).map(|item| item.body));
        effect
    }

    /// Nobody wants the answer to a request any more, and none is given: it waits no longer, an item that it
    /// took goes back to the front, and one that it put is dropped unless a taker has been sent it.
    pub fn undo(&mut self, from: Asker) -> Effect {
        let mut effect = Effect::default();
        self.held.retain(|asker| *asker != from);
        if let Some(item) = self.recall(from) {
            self.items.push_front(item);
        } else if let Some(at) = self.waiters.iter().position(|(asker, _)| *asker == from) {
            self.waiters.remove(at);
        } else {
            for queue in [&mut self.putters, &mut self.items] {
                if let Some(at) = queue.iter().position(|item| item.from == from) {
                    effect.dropped.extend(queue.remove(at).map(|item| item.body));
                }
            }
        }
        self.settle(&mut effect);
        effect
    }

    fn recall(&mut self, taker: Asker) -> Option<Item> {
        let at = self.unconfirmed.iter().position(|(asker, _)| *asker == taker)?;
        self.unconfirmed.remove(at).map(|(_, item)| item)
    }

    /// Closes the channel: items in it can still be taken, whoever waits for room fails now.
    pub fn close(&mut self, reason: Arc<Body>) -> Effect {
        let mut effect = Effect::default();
        if self.closed.is_some() {
            effect.dropped.push(reason);
            return effect;
        }
        for putter in self.putters.drain(..) {
            effect.answers.push(Answer::closed(putter.from, &reason));
            effect.dropped.push(putter.body);
        }
        self.closed = Some(reason);
        self.settle(&mut effect);
        effect
    }

    /// A process has gone: its requests go, and items that it has not confirmed come back, in their order.
    pub fn forget(&mut self, pid: ProcId) -> Effect {
        let mut effect = Effect::default();
        self.credits.forget(pid);
        self.held.retain(|asker| asker.pid != pid);
        self.waiters.retain(|(asker, _)| asker.pid != pid);
        self.putters.retain(|putter| {
            let gone = putter.from.pid == pid;
            if gone {
                effect.dropped.push(putter.body.clone());
            }
            !gone
        });
        let mut back = Vec::new();
        self.unconfirmed.retain(|(asker, item)| {
            let gone = asker.pid == pid;
            if gone {
                back.push(item.clone());
            }
            !gone
        });
        for item in back.into_iter().rev() {
            self.items.push_front(item);
        }
        self.settle(&mut effect);
        effect
    }

    /// The channel is freed: whoever waits in it hears that it is gone.
    pub fn end(mut self) -> Effect {
        let mut effect = Effect {
            recalled: self.credits.recall(),
            ..Effect::default()
        };
        self.answer(&mut effect);
        let putters = self.putters.iter().map(|p| p.from);
        let askers = self.waiters.iter().map(|(asker, _)| *asker).chain(putters);
        let gone = askers.map(|to| Answer::bare(to, Status::UnknownRef));
        effect.answers.extend(gone);
        let unconfirmed = self.unconfirmed.into_iter().map(|(_, item)| item);
        let items = self.items.into_iter().chain(self.putters).chain(unconfirmed);
        effect.dropped.extend(items.map(|item| item.body));
        effect.dropped.extend(self.closed);
        effect
    }

    /// Moves items on as far as they go.
    fn settle(&mut self, effect: &mut Effect) {
        loop {
            while self.has_room() && self.accept(effect) {}
            if !self.is_ready() {
                break;
            }
            let Some((asker, wish)) = self.waiters.pop_front() else {
                break;
            };
            self.serve(asker, wish, effect);
        }
        if !self.putters.is_empty() || self.closed.is_some() {
            effect.recalled.extend(self.credits.recall());
        }
        self.cancel_withdrawn(effect);
        if !self.is_tight() || self.closed.is_some() {
            self.answer(effect);
        }
        if !self.is_ready()
            && self.credits.reserved() == 0
            && let Some(reason) = &self.closed
        {
            let waiters = self.waiters.drain(..);
            effect
                .answers
                .extend(waiters.map(|(to, _)| Answer::closed(to, reason)));
        }
    }

    fn has_room(&self) -> bool {
        self.items.len() + self.credits.reserved() < self.capacity
    }

    fn free(&self) -> usize {
        let taken = self.items.len() + self.credits.reserved();
        self.capacity.saturating_sub(taken)
    }

    /// Whether there is so little room that those who put many items had better wait for more.
    fn is_tight(&self) -> bool {
        let much = (self.capacity / 8).min(ROOM);
        much >= ROOM / 8 && self.free() < much
    }

    /// Gives the answers that were held back.
    pub fn answer_held(&mut self) -> Effect {
        let mut effect = Effect::default();
        self.answer(&mut effect);
        effect
    }

    fn answer(&mut self, effect: &mut Effect) {
        for from in std::mem::take(&mut self.held) {
            effect.answers.push(Answer::bare(from, Status::Yes));
            self.grant(from.pid, effect);
        }
    }

    /// Sets room aside for a process, where nobody waits for it.
    fn grant(&mut self, pid: ProcId, effect: &mut Effect) {
        if self.closed.is_some() || !self.putters.is_empty() {
            return;
        }
        let more = self.credits.grant(pid, self.free());
        effect.credit.extend(more.map(|more| (pid, more)));
    }

    /// Takes the item of the first putter in, whose put has ended; false where there is none.
    fn accept(&mut self, effect: &mut Effect) -> bool {
        let Some(item) = self.putters.pop_front() else {
            return false;
        };
        let (from, more) = (item.from, item.more);
        self.items.push_back(item);
        if more && self.closed.is_none() && self.is_tight() {
            self.held.push(from);
            effect.held.push(from);
            return true;
        }
        effect.answers.push(Answer::bare(from, Status::Yes));
        if more {
            self.grant(from.pid, effect);
        }
        true
    }

    /// Answers one who waits for an item, now that there is one.
    fn serve(&mut self, asker: Asker, wish: Wish, effect: &mut Effect) {
        if wish == Wish::Ready {
            return effect.answers.push(Answer::bare(asker, Status::Yes));
        }
        if wish == Wish::Take && self.items.is_empty() {
            self.accept(effect);
        }
        let Some(item) = self.items.front().or(self.putters.front()).cloned() else {
            return;
        };
        if wish == Wish::Take {
            self.items.pop_front();
            self.unconfirmed.push_back((asker, item.clone()));
        }
        let (to, status, body) = (asker, Status::Value, item.body);
        effect.answers.push(Answer { to, status, body });
    }
}
