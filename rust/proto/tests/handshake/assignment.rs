//! Ends without an id, which the head gives them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

const GIVEN: Assignment = Assignment {
    id: 40,
    topology: 2,
    cluster: [7; 16],
};

/// One that knows the cookie alone.
fn nobody() -> Local {
    Local {
        cluster: [0; 16],
        ..local(0)
    }
}

/// The head, with a count of the ids that it gave.
fn head() -> (Local, Arc<AtomicU32>) {
    let given = Arc::new(AtomicU32::new(0));
    let count = given.clone();
    let assigner = Assigner::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        GIVEN
    });
    let assigner = Some(assigner);
    (Local { assigner, ..local(1) }, given)
}

#[test]
fn one_that_dials_in_is_given_an_id() {
    let (head, given) = head();
    let i = Initiator::new(nobody(), &cookie(), secrets(0x11));
    let a = Acceptor::new(head, &cookie(), secrets(0x22));
    let (i, a) = join(i.into(), a.into());
    let (i, a) = finish(i, a);
    assert_eq!(
        (i.assigned(), i.peer_id(), i.assigned_peer()),
        (Some(&GIVEN), 1, false)
    );
    assert_eq!((a.assigned(), a.peer_id(), a.assigned_peer()), (None, 40, true));
    assert_eq!(given.load(Ordering::SeqCst), 1);
}

#[test]
fn one_that_is_dialled_is_given_an_id() {
    let (head, _) = head();
    let i = Initiator::new(head, &cookie(), secrets(0x11));
    let a = Acceptor::new(nobody(), &cookie(), secrets(0x22));
    let (i, a) = join(i.into(), a.into());
    let (i, a) = finish(i, a);
    assert_eq!((i.assigned(), i.peer_id(), i.assigned_peer()), (None, 40, true));
    assert_eq!(
        (a.assigned(), a.peer_id(), a.assigned_peer()),
        (Some(&GIVEN), 1, false)
    );
}

#[test]
fn one_that_has_an_id_is_given_none() {
    let (head, given) = head();
    let a = Acceptor::new(head, &cookie(), secrets(0x22));
    let (i, a) = join(initiator(), a.into());
    let (i, a) = finish(i, a);
    assert_eq!((i.assigned(), a.peer_id(), a.assigned_peer()), (None, 1, false));
    assert_eq!(given.load(Ordering::SeqCst), 0);
}

#[test]
fn no_id_is_given_to_who_does_not_know_the_cookie() {
    let (head, given) = head();
    let wrong = Cookie::new(b"another cookie of the same size!").unwrap();
    let i = Initiator::new(nobody(), &wrong, secrets(0x11));
    let a = Acceptor::new(head, &cookie(), secrets(0x22));
    let (i, a) = join(i.into(), a.into());
    assert!(!i.finished());
    assert_eq!(a.error, Some(HandshakeError::AuthenticationFailed));
    assert_eq!(given.load(Ordering::SeqCst), 0);
}

#[test]
fn nobody_is_refused_where_no_ids_are_given() {
    let i = Initiator::new(nobody(), &cookie(), secrets(0x11));
    let (_, a) = join(i.into(), acceptor());
    assert_eq!(a.error, Some(HandshakeError::NoAssignment));
    let i = Initiator::new(local(0), &cookie(), secrets(0x11));
    let (_, a) = join(i.into(), acceptor());
    assert_eq!(a.error, Some(HandshakeError::NoAssignment));
    let a = Acceptor::new(nobody(), &cookie(), secrets(0x22));
    let (i, a) = join(initiator(), a.into());
    assert_eq!(i.error, Some(HandshakeError::NoAssignment));
    assert!(!a.finished());
    let i = Initiator::new(nobody(), &cookie(), secrets(0x11));
    let a = Acceptor::new(nobody(), &cookie(), secrets(0x22));
    let (i, a) = join(i.into(), a.into());
    assert!(!i.finished() && !a.finished());
}

#[test]
fn one_with_an_id_must_name_the_cluster() {
    let (head, _) = head();
    let i = Local {
        cluster: [0; 16],
        ..local(2)
    };
    let i = Initiator::new(i, &cookie(), secrets(0x11));
    let a = Acceptor::new(head, &cookie(), secrets(0x22));
    assert_eq!(
        join(i.into(), a.into()).1.error,
        Some(HandshakeError::WrongCluster)
    );
}

/// S3: every bit of the INFO that gives an id is under its tag.
#[test]
fn s3_an_assignment_cannot_be_changed() {
    let info_from = CHALLENGE_LEN + PROOF_LEN;
    for bit in 0..(INFO_LEN + 23) * 8 {
        let (head, _) = head();
        let i = Initiator::new(nobody(), &cookie(), secrets(0x11));
        let a = Acceptor::new(head, &cookie(), secrets(0x22));
        let (i, _) = join_with(i.into(), a.into(), |from_initiator, offset, flight| {
            let at = info_from + bit / 8;
            if !from_initiator && (offset..offset + flight.len()).contains(&at) {
                flight[at - offset] ^= 1 << (bit % 8);
            }
        });
        assert!(!i.finished(), "bit {bit}");
    }
}
