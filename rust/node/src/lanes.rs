//! Lanes: calls of one process that run one at a time, in the order in which they came.

use std::collections::{HashMap, VecDeque};

use pydist_proto::ids::ProcId;
use pydist_proto::machine::Incoming;

/// The lanes in which a call is queued or runs, and the calls that wait behind it.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    behind: HashMap<(ProcId, u64), VecDeque<Incoming>>,
    /// The lane of each call that has been let through.
    ahead: HashMap<(ProcId, u64), u64>,
}

impl Lanes {
    /// Gives a call back that may run now; one whose lane is taken waits.
    pub(crate) fn enter(&mut self, call: Incoming) -> Option<Incoming> {
        if call.lane == 0 {
            return Some(call);
        }
        if let Some(behind) = self.behind.get_mut(&(call.src, call.lane)) {
            behind.push_back(call);
            return None;
        }
        self.behind.insert((call.src, call.lane), VecDeque::new());
        self.ahead.insert((call.src, call.id), call.lane);
        Some(call)
    }

    /// A call has ended: gives the next one of its lane.
    pub(crate) fn leave(&mut self, src: ProcId, id: u64) -> Option<Incoming> {
        let lane = self.ahead.remove(&(src, id))?;
        let next = self.behind.get_mut(&(src, lane))?.pop_front();
        match &next {
            Some(next) => self.ahead.insert((src, next.id), lane).map(|_| ()),
            None => self.behind.remove(&(src, lane)).map(|_| ()),
        };
        next
    }
}

#[cfg(test)]
mod tests {
    use pydist_proto::body::Body;
    use pydist_proto::message::CallMode;

    use super::*;

    fn call(src: ProcId, id: u64, lane: u64) -> Incoming {
        Incoming {
            src,
            id,
            mode: CallMode::Fetch,
            lane,
            body: Body::default(),
        }
    }

    fn id(call: Option<Incoming>) -> Option<u64> {
        call.map(|call| call.id)
    }

    #[test]
    fn calls_of_a_lane_wait_for_each_other_in_order() {
        let mut lanes = Lanes::default();
        assert_eq!(id(lanes.enter(call(1, 1, 7))), Some(1));
        assert_eq!(id(lanes.enter(call(1, 2, 7))), None);
        assert_eq!(id(lanes.enter(call(1, 3, 7))), None);
        assert_eq!(id(lanes.leave(1, 1)), Some(2));
        assert_eq!(id(lanes.leave(1, 2)), Some(3));
        assert_eq!(id(lanes.leave(1, 3)), None);
        assert!(lanes.behind.is_empty() && lanes.ahead.is_empty());
        assert_eq!(id(lanes.enter(call(1, 4, 7))), Some(4));
    }

    #[test]
    fn other_lanes_processes_and_calls_without_a_lane_do_not_wait() {
        let mut lanes = Lanes::default();
        assert_eq!(id(lanes.enter(call(1, 1, 7))), Some(1));
        assert_eq!(id(lanes.enter(call(1, 2, 8))), Some(2));
        assert_eq!(id(lanes.enter(call(2, 1, 7))), Some(1));
        assert_eq!(id(lanes.enter(call(1, 3, 0))), Some(3));
        assert_eq!(id(lanes.enter(call(1, 4, 0))), Some(4));
        assert_eq!(id(lanes.leave(1, 3)), None);
    }

    #[test]
    fn a_call_that_ends_twice_lets_one_through() {
        let mut lanes = Lanes::default();
        lanes.enter(call(1, 1, 7));
        lanes.enter(call(1, 2, 7));
        lanes.enter(call(1, 3, 7));
        assert_eq!(id(lanes.leave(1, 1)), Some(2));
        assert_eq!(id(lanes.leave(1, 1)), None);
    }
}
