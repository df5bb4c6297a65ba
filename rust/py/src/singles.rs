//! The elements of a map that go one in each message: taken, sent and brought back without Python's part in each.
//!
//! What is not that simple is handed to Python (`_map_run.py`): elements that are not plain, workers that have not
//! been sent the function or do not read, and all that does not end with a plain value.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pydist_node::waiter::{self, Wake};
use pydist_node::{Node, Parked};
use pydist_proto::ids::ProcId;
use pydist_proto::message::Status;
use pydist_proto::record;
use pydist_proto::schedule::{Action, Key, Nanos};
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyList, PyTuple};

use crate::calls::small;
use crate::credit::settle_puts;
use crate::lifecycle::{detached, node};
use crate::names::END;
use crate::outcome::{Outcome, outcome_object};
use crate::plain;
use crate::queue::Queue;
use crate::schedule::{PyAction, Schedule, action};
use crate::waiting::{Ended, deadline, wait_quietly};

/// An element that is under way.
struct Flight {
    worker: ProcId,
    first: u64,
    row: Py<PyAny>,
    call: u64,
}

/// What Python is told of a flight: (worker, element, row, call).
type PyFlight = (ProcId, u64, Py<PyAny>, u64);

impl Flight {
    fn into_python(self) -> PyFlight {
        (self.worker, self.first, self.row, self.call)
    }
}

#[derive(Default)]
struct State {
    /// The workers that have been sent the function.
    knowing: Vec<ProcId>,
    flights: HashMap<Key, Flight>,
}

/// Where values go that have come.
enum Values {
    /// By the number of their element; those that have not come are None.
    All(Py<PyList>),
    /// As lists of one, by the number of their element: who consumes them takes them out.
    Pieces(Py<PyDict>),
}

impl Values {
    fn put(&self, element: u64, value: Bound<'_, PyAny>) -> PyResult<()> {
        let py = value.py();
        match self {
            Values::All(values) => {
                let (values, element) = (values.bind(py), element as usize);
                while values.len() < element {
                    values.append(py.None())?;
                }
                if values.len() == element {
                    values.append(value)
                } else {
                    values.set_item(element, value)
                }
            }
            Values::Pieces(pieces) => pieces.bind(py).set_item(element, PyList::new(py, [value])?),
        }
    }
}

/// The elements of one map, each in a message of its own.
#[pyclass(frozen, module = "pydist._core")]
pub(crate) struct Singles {
    schedule: Py<Schedule>,
    queue: Arc<waiter::Queue>,
    /// The pickle of a call up to its elements.
    prefix: Vec<u8>,
    lane: u64,
    rows: Py<PyIterator>,
    /// A row is a tuple of arguments, not the only one.
    several: bool,
    values: Values,
    state: Mutex<State>,
}

/// An action of the schedule, and the row of an element that Python is to send, or the error in place of one.
type Step = (PyAction, Option<Py<PyAny>>);

impl Singles {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an element; nothing where that is for Python to do.
    fn send(&self, node: &Node, worker: ProcId, key: Key, row: &Bound<'_, PyAny>) -> Option<u64> {
        if !self.lock().knowing.contains(&worker) || !node.takes_small(worker) {
            return None;
        }
        let mut pickle = Vec::with_capacity(self.prefix.len() + 32);
        pickle.extend_from_slice(&self.prefix);
        let plain = if self.several {
            plain::encode_each(row.cast::<PyTuple>().ok()?.iter(), &mut pickle)
        } else {
            plain::encode_each(std::iter::once(row.clone()), &mut pickle)
        };
        if !plain {
            return None;
        }
        pickle.push(b't');
        pickle.extend_from_slice(END);
        settle_puts(row.py(), worker).ok()?;
        let wake = Wake::Queue(self.queue.clone(), key);
        node.call_gathered(worker, self.lane, small(&[&pickle]), wake)
            .ok()
    }

    /// The value of an element and the time it took, of a plain answer.
    fn plain_value<'py>(py: Python<'py>, answer: &record::Outcome) -> Option<(u64, Bound<'py, PyAny>)> {
        let [pickle] = answer.body.segments.as_slice() else {
            return None;
        };
        if answer.status != Status::Value {
            return None;
        }
        let value = plain::decode(py, pickle.as_slice())?;
        let pair = value
            .cast_exact::<PyTuple>()
            .ok()
            .filter(|pair| pair.len() == 2)?;
        Some((pair.get_item(0).ok()?.extract().ok()?, pair.get_item(1).ok()?))
    }

    /// Puts the plain values where they belong; gives how many there were, and the other outcomes.
    fn take(
        &self,
        py: Python<'_>,
        ready: Vec<(u64, record::Outcome)>,
        now: Nanos,
    ) -> PyResult<(usize, Vec<(u64, Outcome)>)> {
        let (mut values, mut others) = (0, Vec::new());
        for (key, answer) in ready {
            let is_single = self.lock().flights.contains_key(&key);
            let Some((took, value)) = Self::plain_value(py, &answer).filter(|_| is_single) else {
                others.push((key, outcome_object(py, answer)?));
                continue;
            };
            // The row is dropped once the lock is free.
            let flight = self.lock().flights.remove(&key);
            let done = self.schedule.get().lock().finished(key, 1, took, now);
            if flight.is_some()
                && let Some((first, _)) = done
            {
                self.values.put(first, value)?;
                values += 1;
            }
        }
        Ok((values, others))
    }
}

#[pymethods]
impl Singles {
    /// `prefix` is the pickle of a call up to the elements, in a tuple whose end is open; `values` is a list for all
    /// values, or a dict for those that are to be consumed.
    #[new]
    #[pyo3(signature = (schedule, queue, *, prefix, lane, rows, several, values))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        schedule: Py<Schedule>,
        queue: &Bound<'_, Queue>,
        prefix: Vec<u8>,
        lane: u64,
        rows: Py<PyIterator>,
        several: bool,
        values: &Bound<'_, PyAny>,
    ) -> PyResult<Singles> {
        let values = match values.cast::<PyList>() {
            Ok(all) => Values::All(all.clone().unbind()),
            Err(_) => Values::Pieces(values.cast::<PyDict>()?.clone().unbind()),
        };
        Ok(Singles {
            schedule,
            queue: queue.get().inner.clone(),
            prefix,
            lane,
            rows,
            several,
            values,
            state: Mutex::default(),
        })
    }

    /// A worker has been sent the function.
    fn know(&self, worker: ProcId) {
        let mut state = self.lock();
        if !state.knowing.contains(&worker) {
            state.knowing.push(worker);
        }
    }

    /// Sends what can be sent, and gives the next thing that Python is to do: an action of the schedule; ("row", …)
    /// with the row of an element to be sent; ("error", …) with what taking an element has raised.
    fn poll(&self, py: Python<'_>, now: Nanos) -> PyResult<Option<Step>> {
        let node = node()?;
        let begin = Instant::now();
        let rows = self.rows.bind(py);
        let step = loop {
            let moment = now + begin.elapsed().as_nanos() as Nanos;
            let next = self.schedule.get().lock().poll(moment);
            let Some(Action::Pull(key, worker, range)) = next else {
                break next.map(|next| (action(next), None));
            };
            let row = match rows.clone().next() {
                Some(Ok(row)) => row,
                end => {
                    self.schedule.get().lock().filled(key, 0, true);
                    match end {
                        Some(Err(error)) if error.is_instance_of::<PyException>(py) => {
                            let error = error.into_value(py).into_any();
                            break Some((("error", key, worker, range.first, 0), Some(error)));
                        }
                        Some(Err(error)) => return Err(error),
                        _ => continue,
                    }
                }
            };
            self.schedule.get().lock().filled(key, 1, false);
            let Some(call) = self.send(node, worker, key, &row) else {
                break Some((("row", key, worker, range.first, 1), Some(row.unbind())));
            };
            let (first, row) = (range.first, row.unbind());
            self.lock().flights.insert(
                key,
                Flight {
                    worker,
                    first,
                    row,
                    call,
                },
            );
        };
        node.uncork_calls();
        Ok(step)
    }

    /// Waits until something has come: gives how many elements have their values, and the other outcomes.
    fn wait(&self, py: Python<'_>, timeout: f64, now: Nanos) -> PyResult<(usize, Vec<(u64, Outcome)>)> {
        let node = node()?;
        let begin = Instant::now();
        let until = deadline(Some(timeout))?;
        let attempt = |end| -> Result<_, Parked> { self.queue.wait(node, end) };
        match wait_quietly(py, self.queue.clone(), until, attempt) {
            Ok(ready) => self.take(py, ready, now + begin.elapsed().as_nanos() as Nanos),
            Err(Ended::TimedOut) => Ok((0, Vec::new())),
            Err(Ended::Raised(error)) => Err(error),
        }
    }

    /// Takes what has come, as `wait` does.
    fn drain(&self, py: Python<'_>, now: Nanos) -> PyResult<(usize, Vec<(u64, Outcome)>)> {
        let ready = detached(py, || self.queue.drain());
        self.take(py, ready, now)
    }

    /// Leaves an element that is under way to Python.
    fn release(&self, key: Key) -> Option<PyFlight> {
        self.lock().flights.remove(&key).map(Flight::into_python)
    }

    /// Leaves all elements that are under way to Python.
    fn release_all(&self) -> Vec<(Key, PyFlight)> {
        let flights = std::mem::take(&mut self.lock().flights);
        flights
            .into_iter()
            .map(|(key, flight)| (key, flight.into_python()))
            .collect()
    }
}
