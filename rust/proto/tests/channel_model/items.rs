//! What became of each item, by the word that putters and takers were given.

use std::collections::{BTreeMap, BTreeSet};

use pydist_proto::ids::{ProcId, RefId};

/// What a putter was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing yet.
    Nothing,
    /// The item is in the channel.
    Put,
    /// It is not: the channel is closed, the put was taken back in time, or the channel is gone.
    NotPut,
    /// The putter gave up without an answer, or is dead: it may be either.
    Unknown,
}

#[derive(Debug)]
struct Item {
    channel: RefId,
    putter: ProcId,
    told: Told,
    /// Who has it and did not give it back.
    takers: BTreeSet<ProcId>,
    /// The owner has heard that it was taken.
    confirmed: bool,
}

/// All items of a simulation, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Items {
    items: BTreeMap<u64, Item>,
    /// The last item of each putter that each taker got from each channel.
    last: BTreeMap<(RefId, ProcId, ProcId), u64>,
    pub(crate) taken: usize,
    pub(crate) redelivered: usize,
}

impl Items {
    pub(crate) fn put(&mut self, n: u64, channel: RefId, putter: ProcId) {
        let item = Item {
            channel,
            putter,
            told: Told::Nothing,
            takers: BTreeSet::new(),
            confirmed: false,
        };
        self.items.insert(n, item);
    }

    pub(crate) fn told(&mut self, n: u64, told: Told) {
        let item = self.items.get_mut(&n).unwrap();
        assert_eq!(item.told, Told::Nothing, "the put of {n} ends twice");
        assert!(
            told != Told::NotPut || item.takers.is_empty() && !item.confirmed,
            "F51: {n} was taken, and its putter is told that it is not in the channel"
        );
        item.told = told;
    }

    /// A taker has got an item; `ordered`: none has been sent back or again.
    pub(crate) fn took(&mut self, n: u64, channel: RefId, taker: ProcId, ordered: bool) {
        let item = self.items.get_mut(&n).unwrap();
        self.taken += 1;
        assert_eq!(item.channel, channel);
        assert_ne!(item.told, Told::NotPut, "F50, F51: {n} is not in the channel");
        assert!(
            !item.confirmed,
            "{n} is taken after its owner has heard that it was"
        );
        assert!(item.takers.insert(taker), "{n} is taken twice by {taker}");
        if item.takers.len() > 1 {
            self.redelivered += 1;
        }
        if ordered {
            let last = self.last.entry((channel, item.putter, taker)).or_insert(0);
            assert!(*last < n, "first in, first out: {n} after {last}");
            *last = n;
        }
    }

    pub(crate) fn gave_back(&mut self, n: u64, taker: ProcId) {
        assert!(self.items.get_mut(&n).unwrap().takers.remove(&taker));
    }

    pub(crate) fn confirmed(&mut self, n: u64) {
        self.items.get_mut(&n).unwrap().confirmed = true;
    }

    /// The items of a putter that died before it was told, or before those that it put on credit had come.
    ///
    /// Returns those on credit that are of others.
    pub(crate) fn forget_putter(&mut self, pid: ProcId, on_credit: BTreeSet<u64>) -> BTreeSet<u64> {
        for (n, item) in &mut self.items {
            if item.putter == pid && (item.told == Told::Nothing || on_credit.contains(n)) {
                item.told = Told::Unknown;
            }
        }
        let others = on_credit.into_iter();
        others.filter(|n| self.items[n].putter != pid).collect()
    }

    /// Everything has been taken out of the channels that are left: what was put was taken, by one that lives or
    /// whose word had come.
    pub(crate) fn check(&self, drained: &BTreeSet<RefId>, living: &BTreeSet<ProcId>) {
        for (n, item) in &self.items {
            assert_ne!(item.told, Told::Nothing, "the put of {n} never ends");
            let owners = item.takers.intersection(living).count();
            assert!(owners <= 1, "{n} was taken twice: {item:?}");
            if drained.contains(&item.channel) {
                assert!(
                    owners == 0 || item.confirmed,
                    "the owner never hears that {n} was taken"
                );
            }
            if drained.contains(&item.channel) && item.told == Told::Put {
                assert!(owners == 1 || item.confirmed, "{n} is lost: {item:?}");
            }
        }
    }
}
