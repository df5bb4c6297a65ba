//! The extension module `pydist._core`: the process's node, seen from Python.

mod buffer;
mod calls;
mod channels;
mod credit;
mod errors;
mod executor;
mod finalizers;
mod fork;
mod kinds;
mod lifecycle;
mod logs;
mod names;
mod observing;
mod outcome;
mod output;
mod plain;
mod queue;
mod refs;
mod schedule;
mod singles;
mod stacks;
mod trace;
mod waiting;

use pyo3::pymodule;

#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::buffer::{Buffer, Shared, share};
    #[pymodule_export]
    use super::calls::{
        call_do, call_fetch, call_future, call_queue, cancel_fetch, plain_do, plain_fetch, plain_future,
        recall,
    };
    #[pymodule_export]
    use super::channels::{
        channel_ask, channel_confirm, channel_create, channel_custom, channel_give_back, channel_here,
        channel_tell, channel_unanswered, channel_unwant, channel_withdraw, plain_put, plain_take,
    };
    #[pymodule_export]
    use super::executor::{
        Executor, forget_exception, interrupt_call, limit_calls, limit_threads, limit_threads_for,
    };
    #[pymodule_export]
    use super::finalizers::UnraisableHook;
    #[pymodule_export]
    use super::fork::fork_sibling;
    #[pymodule_export]
    use super::kinds::all_of;
    #[pymodule_export]
    use super::lifecycle::{
        abandon, after_fork_in_child, announce_ready, ask_exit, attach_incoming, attach_worker,
        bind_listener, check_pid, close, close_listener, config_of, dial_head, die_with_parent, drop_worker,
        expect_worker, forget_worker, has_route_to, heartbeat, interface_addresses, interrupt, listen, me,
        members, next_id, open_listener, own_address_to, park_other_threads, peer_of_socket, set_cookie,
        set_heartbeat, set_topology, set_worker_ospid, share_heaps, start, stats, take_ids, use_tls_files,
        use_transport, wait_open, watch_members, worker_arrived,
    };
    #[pymodule_export]
    use super::logs::{keep_events, next_events, stop_events};
    #[pymodule_export]
    use super::names::know_names;
    #[pymodule_export]
    use super::observing::{ask_observation, call_began, call_ended, forget_calls, observation};
    #[pymodule_export]
    use super::outcome::{Hold, Outcome};
    #[pymodule_export]
    use super::output::{catch_up_output, follow_output, take_output};
    #[pymodule_export]
    use super::queue::Queue;
    #[pymodule_export]
    use super::refs::{Ref, create_future, exported, local_call, reference};
    #[pymodule_export]
    use super::schedule::Schedule;
    #[pymodule_export]
    use super::singles::Singles;
    #[pymodule_export]
    use super::stacks::{answer_stacks, ask_stacks, dump_stacks_by, report_hangs};
    #[pymodule_export]
    use super::trace::{trace_clock, trace_start, trace_stop};

    /// Tells Python the version, which stands in `Cargo.toml` alone.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("ASK_GRACE", super::channels::ASK_GRACE.as_secs_f64())?;
        module.add("PUT_GRACE", super::channels::PUT_GRACE.as_secs_f64())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
