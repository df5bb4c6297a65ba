//! Giving memory back: tables keep the room of their largest size until they are told to shrink.

use std::hash::Hash;

use rustc_hash::FxHashMap;

use super::Machine;

/// Room for this many entries is kept.
const KEPT: usize = 4096;
/// A table is too large where it has room for this many times its entries.
const SPARE: usize = 8;

fn too_large(len: usize, capacity: usize) -> bool {
    capacity > 2 * KEPT && len.saturating_mul(SPARE) < capacity
}

fn shrink<K: Eq + Hash, V>(map: &mut FxHashMap<K, V>) {
    if too_large(map.len(), map.capacity()) {
        map.shrink_to(KEPT.max(2 * map.len()));
    }
}

impl<W> Machine<W> {
    /// Whether the tables have much more room than they need.
    pub fn is_oversized(&self) -> bool {
        too_large(self.records.len(), self.records.capacity())
            || too_large(self.outstanding.len(), self.outstanding.capacity())
            || too_large(self.running.len(), self.running.capacity())
            || too_large(self.deltas.len(), self.deltas.capacity())
            || too_large(self.confirms.len(), self.confirms.capacity())
    }

    /// Gives back the room that the tables do not need.
    pub fn shrink(&mut self) {
        shrink(&mut self.records);
        shrink(&mut self.outstanding);
        shrink(&mut self.running);
        self.deltas.shrink_to(KEPT);
        self.confirms.shrink_to(KEPT);
    }
}
