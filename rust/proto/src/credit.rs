//! Room in a channel that its owner sets aside for processes that put one item after the other.
//!
//! A process with credit for n items sends n puts that need no answer. Room that is set aside counts as taken, so that
//! the capacity is kept at the owner; the owner takes it back as soon as anybody else waits for room.

use crate::ids::ProcId;

/// The most that one process has, and what it begins with.
const MOST: u32 = 256;
const FIRST: u32 = 16;
/// Less is not worth a message.
const LEAST: u32 = 4;
/// One process gets this part of the free room at most.
const PART: usize = 4;

/// What one process has.
#[derive(Debug)]
struct Credit {
    pid: ProcId,
    /// What was granted, and neither came as an item nor was given back.
    left: u32,
    /// What it is to have: it doubles each time that half of it has been used.
    size: u32,
    /// It has been asked to give back what it has.
    recalled: bool,
}

/// The credit of each process at a channel, as its owner knows it.
#[derive(Debug, Default)]
pub(crate) struct Credits {
    of: Vec<Credit>,
    reserved: usize,
}

impl Credits {
    /// The room that is set aside.
    pub(crate) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Gives a process more, where it has used half of what it had; `free` is the room that nobody has.
    pub(crate) fn grant(&mut self, pid: ProcId, free: usize) -> Option<u32> {
        let at = self.of.iter().position(|credit| credit.pid == pid);
        let (left, size) = at.map_or((0, 0), |at| (self.of[at].left, self.of[at].size));
        if left > size / 2 || at.is_some_and(|at| self.of[at].recalled) {
            return None;
        }
        let size = (size * 2).clamp(FIRST, MOST);
        let share = u32::try_from(free / PART).unwrap_or(u32::MAX);
        let more = (size - left).min(share);
        if more < LEAST {
            return None;
        }
        self.reserved += more as usize;
        let recalled = false;
        let left = left + more;
        let credit = Credit {
            pid,
            left,
            size,
            recalled,
        };
        match at {
            Some(at) => self.of[at] = credit,
            None => self.of.push(credit),
        }
        Some(more)
    }

    /// An item has come for which there was room set aside; false where there was none.
    pub(crate) fn spend(&mut self, pid: ProcId) -> bool {
        self.reduce(pid, 1) == 1
    }

    /// A process gives room back.
    pub(crate) fn give_back(&mut self, pid: ProcId, count: u32) {
        self.reduce(pid, count);
    }

    /// A process is gone.
    pub(crate) fn forget(&mut self, pid: ProcId) {
        self.reduce(pid, u32::MAX);
        self.of.retain(|credit| credit.pid != pid);
    }

    fn reduce(&mut self, pid: ProcId, count: u32) -> u32 {
        let Some(at) = self.of.iter().position(|credit| credit.pid == pid) else {
            return 0;
        };
        let credit = &mut self.of[at];
        let count = count.min(credit.left);
        credit.left -= count;
        self.reserved -= count as usize;
        if credit.left == 0 && credit.recalled {
            self.of.swap_remove(at);
        }
        count
    }

    /// The processes that are to give back what they have, and have not been asked yet.
    pub(crate) fn recall(&mut self) -> Vec<ProcId> {
        let mut asked = Vec::new();
        for credit in self
            .of
            .iter_mut()
            .filter(|credit| credit.left > 0 && !credit.recalled)
        {
            credit.recalled = true;
            asked.push(credit.pid);
        }
        self.of.retain(|credit| credit.left > 0);
        asked
    }
}
