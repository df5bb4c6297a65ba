//! Who belongs to the cluster, and what the loss of a process means.

use std::net::IpAddr;

use crate::body::Body;
use crate::ids::{HEAD, ProcId, RefId, RemoteRef};
use crate::message::{Member, Message, RefOp};
use crate::record::{Departure, Outcome, Record, State, Waiter};
use crate::topology::Wiring;

use super::{Expect, Machine, Output};

impl<W> Machine<W> {
    /// The members in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub fn member(&self, pid: ProcId) -> Option<&Member> {
        self.members.get(&pid)
    }

    /// Takes up a new member; the head tells everybody, and tells the new one of everybody.
    pub fn join(&mut self, member: Member) {
        let pid = member.pid;
        if pid == self.me
            && let Some(own) = self.members.get_mut(&pid)
        {
            own.connected = member.connected;
            return;
        }
        if self.departed.contains_key(&pid) {
            return;
        }
        if self.me == HEAD {
            // First, so that the new one knows whom it is connected to when it hears of them.
            if !member.connected.is_empty() {
                let member = member.clone();
                self.outputs.push(Output::Send(pid, Message::Join { member }));
            }
            for other in self.members.values() {
                self.outputs.push(Output::Send(
                    pid,
                    Message::Join {
                        member: other.clone(),
                    },
                ));
                if other.pid != HEAD {
                    self.outputs.push(Output::Send(
                        other.pid,
                        Message::Join {
                            member: member.clone(),
                        },
                    ));
                }
            }
        }
        self.members.insert(pid, member);
        self.outputs.push(Output::Joined(pid));
        self.send_unsent(pid);
    }

    /// Whether the topology connects this process to another member.
    pub fn is_connected_to(&self, pid: ProcId) -> bool {
        let names = |a, b| {
            self.members
                .get(&a)
                .is_some_and(|m: &Member| m.connected.contains(&b))
        };
        pid == self.me
            || pid == HEAD
            || self.me == HEAD
            || match self.topology.wiring {
                Wiring::AllToAll => self.has_route_to(pid),
                Wiring::MasterWorker => false,
                Wiring::Custom => (names(self.me, pid) || names(pid, self.me)) && self.has_route_to(pid),
            }
    }

    /// Whether another member can be dialled from here, or has dialled this process.
    ///
    /// One on another host can not where it listens on addresses alone that do not leave its host.
    pub fn has_route_to(&self, pid: ProcId) -> bool {
        let (Some(own), Some(peer)) = (self.members.get(&self.me), self.members.get(&pid)) else {
            return true;
        };
        if self.me == HEAD || pid == HEAD {
            return true;
        }
        let elsewhere = !own.host.is_empty() && !peer.host.is_empty() && own.host != peer.host;
        !elsewhere
            || peer.address.is_empty()
            || peer.address.lines().any(leaves_host)
            || self.met.contains(&pid)
    }

    /// Whether the value of a reference is not here, and cannot come, as there is no route to its owner.
    pub fn is_out_of_reach(&self, target: RemoteRef) -> bool {
        let settled = self.records.get(&target.id).is_some_and(Record::is_settled);
        !settled && !self.has_route_to(target.owner)
    }

    /// A peer has proved itself before the head told of it; false where it has left the cluster.
    pub fn meet(&mut self, pid: ProcId) -> bool {
        if self.departed.contains_key(&pid) {
            return false;
        }
        self.met.insert(pid);
        self.members.entry(pid).or_insert_with(|| Member {
            pid,
            ..Member::default()
        });
        true
    }

    /// A process is gone: whatever waits for it ends, in one step.
    pub fn leave(&mut self, pid: ProcId, reason: &str) {
        if let Some(departure) = self.departed.get_mut(&pid)
            && departure.lives
        {
            reason.clone_into(&mut departure.reason);
            departure.lives = false;
        }
        self.part(pid, reason, false);
    }

    /// A process cannot be reached from here any more, though it may live: for this one it is as if it were gone.
    pub fn lose(&mut self, pid: ProcId, reason: &str) {
        self.part(pid, reason, true);
    }

    fn part(&mut self, pid: ProcId, reason: &str, lives: bool) {
        let unheard = self.is_stranger(pid);
        if self.members.remove(&pid).is_none() && !unheard {
            return;
        }
        self.unsent.remove(&pid);
        let departure = Departure {
            reason: reason.to_owned(),
            lives,
        };
        let outcome = Outcome::gone(pid, &departure);
        self.departed.insert(pid, departure);
        self.met.remove(&pid);
        if self.me == HEAD {
            let others: Vec<ProcId> = self.members.keys().copied().filter(|p| *p != HEAD).collect();
            for other in others {
                self.send(
                    other,
                    Message::Leave {
                        pid,
                        reason: reason.to_owned(),
                    },
                );
            }
        }
        self.outputs.push(Output::Left(pid));
        self.deltas.retain(|(owner, _)| *owner != pid);
        self.confirms.retain(|(owner, ..)| *owner != pid);
        self.credits.retain(|_, credit| credit.owner != pid);
        self.fail_outstanding(pid, &outcome);
        self.fail_records(pid, &outcome);
        self.forget_in_channels(pid);
        self.forget_holder(pid);
        self.recount_all(pid);
    }

    fn fail_outstanding(&mut self, pid: ProcId, outcome: &Outcome) {
        let mut ids: Vec<u64> = self
            .outstanding
            .iter()
            .filter(|(_, o)| o.pid == pid)
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        for id in ids {
            match self.outstanding.remove(&id).map(|o| o.expect) {
                Some(Expect::Call(wake) | Expect::Op(wake)) => {
                    self.outputs.push(Output::Wake(wake, outcome.clone()));
                }
                Some(Expect::Future(r) | Expect::Value(r) | Expect::Ready(r)) => {
                    self.settle(r, outcome.clone())
                }
                Some(Expect::Word(_) | Expect::Nothing) | None => {}
            }
        }
    }

    /// Ends every reference whose value went with the process, or whose making call never arrived.
    fn fail_records(&mut self, pid: ProcId, outcome: &Outcome) {
        let me = self.me;
        let mut lost: Vec<RefId> = self
            .records
            .iter()
            .filter(|(id, r)| {
                let owner_gone = r.owner == pid && matches!(r.state, State::Pending | State::Elsewhere);
                owner_gone || (r.owner == me && !r.created && id.whence == pid)
            })
            .map(|(id, _)| *id)
            .collect();
        lost.sort_unstable();
        for id in lost {
            self.settle(id, outcome.clone());
            if let Some(record) = self.records.get_mut(&id)
                && !record.created
            {
                record.holders.clear();
            }
            self.free_if_unused(id);
        }
    }

    /// Forgets what the process held, and asks the others what they really have of what it gave them: what
    /// it sent last may not have arrived, here or there.
    fn forget_holder(&mut self, pid: ProcId) {
        let me = self.me;
        let mut ids = Vec::new();
        let mut doubtful = Vec::new();
        for (id, record) in &mut self.records {
            record
                .waiters
                .retain(|w| !matches!(w, Waiter::Remote { pid: p, .. } if *p == pid));
            let before = record.holders.len();
            record.holders.retain(|((holder, giver), count)| {
                *holder != pid && (*giver != pid || (*holder != me && *count > 0))
            });
            if record.holders.len() != before {
                ids.push(*id);
            }
            let given = record.holders.iter().filter(|((_, giver), _)| *giver == pid);
            doubtful.extend(given.map(|((holder, _), _)| (*holder, *id)));
        }
        ids.sort_unstable();
        for id in ids {
            self.free_if_unused(id);
        }
        doubtful.sort_unstable();
        for (holder, target) in doubtful {
            let body = Body::default();
            self.send(
                holder,
                Message::RefOp {
                    req: u64::from(pid),
                    op: RefOp::Recount,
                    target,
                    body,
                },
            );
        }
    }
}

/// Whether an address, `unix:PATH`, `tcp:IP:PORT` or `tls:IP:PORT`, can be dialled from other hosts.
fn leaves_host(address: &str) -> bool {
    let rest = address
        .strip_prefix("tcp:")
        .or_else(|| address.strip_prefix("tls:"));
    let ip = rest.and_then(|rest| rest.rsplit_once(':'));
    ip.and_then(|(ip, _)| ip.trim_matches(['[', ']']).parse::<IpAddr>().ok())
        .is_some_and(|ip| !ip.is_loopback())
}
