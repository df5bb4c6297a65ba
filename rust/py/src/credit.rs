//! What has to wait until puts on credit have come to the owners of their channels.

use std::time::{Duration, Instant};

use pydist_node::waiter::{Cell, Wake};
use pydist_node::{Parked, Payload, PutOnCredit};
use pydist_proto::ids::{ProcId, RemoteRef};
use pydist_proto::message::RefOp;
use pyo3::prelude::*;

use crate::calls::small;
use crate::lifecycle::{detached, node};

/// An owner that is silent, as it may be stopped, holds up messages to others for so long at most.
const PATIENCE: Duration = Duration::from_millis(500);

/// No process in particular.
pub(crate) const ANYBODY: ProcId = 0;

/// Puts a small item on credit, where there is some; true where that has happened. What is not in the socket then is
/// waited for, as the item of a put that has returned is not to be lost with its process.
pub(crate) fn put_on_credit(py: Python<'_>, target: RemoteRef, payload: Payload<'_>) -> PyResult<bool> {
    settle_puts(py, target.owner)?;
    let done = node()?.put_on_credit(target, payload);
    if done == PutOnCredit::Queued {
        settle_puts(py, ANYBODY)?;
    }
    Ok(done != PutOnCredit::None)
}

/// Python is about to tell a process something: items that it has put on credit elsewhere are to be there first.
pub(crate) fn settle_puts(py: Python<'_>, told: ProcId) -> PyResult<()> {
    let node = node()?;
    for put in node.unsettled_puts(told) {
        let cell = Cell::new();
        let wake = Wake::Cell(cell.clone());
        // An owner that is gone takes its channel along.
        if let Ok(req) = node.ref_op(put.target, RefOp::ChannelIsOpen, small(&[]), wake) {
            let until = Instant::now() + PATIENCE;
            let answered = detached(py, || {
                loop {
                    match cell.wait(node, Some(until), true) {
                        Ok(_) => return true,
                        Err(Parked::TimedOut) => return false,
                        Err(_) => {}
                    }
                }
            });
            if !answered {
                node.abandon(req);
            }
        }
        node.settled(put);
    }
    Ok(())
}
