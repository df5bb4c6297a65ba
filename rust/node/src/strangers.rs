//! Processes that this one has not heard of yet: it asks the head before it says that there is none.

use std::time::Duration;

use pydist_proto::ids::{HEAD, ProcId};
use pydist_proto::machine::{CallError, Machine};

use crate::node::Node;
use crate::waiter::{Cell, Wake};

/// The head is waited for so long; its core answers at once, unless it has been stopped.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

impl Node {
    /// Opens a call or a request, also to a process that another one knew of before this one.
    pub(crate) fn open<R>(
        &self,
        mut open: impl FnMut(&mut Machine<Wake>) -> Result<R, CallError>,
    ) -> Result<R, CallError> {
        match self.with_machine(&mut open) {
            Err(CallError::NoSuchProcess(pid)) if self.me() != HEAD => {
                self.look_up(pid);
                self.with_machine(open)
            }
            opened => opened,
        }
    }

    fn look_up(&self, pid: ProcId) {
        let cell = Cell::new();
        let req = self.with_machine(|machine| machine.look_up(pid, Wake::Cell(cell.clone())));
        let until = crate::sync::now() + ANSWER_WITHIN;
        if cell.wait(self, Some(until), true).is_err() {
            self.abandon(req);
        }
    }
}
