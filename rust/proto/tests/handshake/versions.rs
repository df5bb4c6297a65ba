//! Ends of different versions.

use super::*;

fn with_range(message: &[u8], min: u16, max: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    message[8..10].copy_from_slice(&min.to_le_bytes());
    message[10..12].copy_from_slice(&max.to_le_bytes());
    message
}

/// S7: both ends learn both protocol ranges, and the text names them from each point of view.
#[test]
fn s7_a_protocol_mismatch_names_both_ranges_at_both_ends() {
    let (sent_i, _) = recorded();
    let mut end = End::new(acceptor());
    end.feed(&with_range(&sent_i[..HELLO_LEN], 2, 3));
    assert_eq!(
        end.error,
        Some(HandshakeError::ProtocolMismatch {
            ours: (1, 1),
            theirs: (2, 3)
        })
    );
    let answer = end.take_output();
    assert_eq!(answer, b"\x89PYDIST\x03\x01\x00\x01\x00");

    let mut end = End::new(initiator());
    end.take_output();
    end.feed(&with_range(&answer, 2, 3));
    let error = end.error.clone().unwrap();
    assert_eq!(
        error,
        HandshakeError::ProtocolMismatch {
            ours: (1, 1),
            theirs: (2, 3)
        }
    );
    assert_eq!(
        error.to_string(),
        "protocol version mismatch: this process speaks pydist protocol 1 to 1, the peer speaks 2 to 3; \
         install the same pydist on both"
    );
    assert!(end.take_output().is_empty());
}

/// S7: a range that overlaps is no mismatch, so nobody can pretend one; nor is an impossible range.
#[test]
fn s7_an_impossible_mismatch_is_refused() {
    let (sent_i, _) = recorded();
    for (min, max) in [(0, 0), (0, 1), (2, 1), (3, 2)] {
        let mut end = End::new(acceptor());
        end.feed(&with_range(&sent_i[..HELLO_LEN], min, max));
        assert_eq!(
            end.error,
            Some(HandshakeError::Malformed("impossible protocol range"))
        );
        assert!(end.take_output().is_empty());
    }
    let mut end = End::new(initiator());
    end.feed(b"\x89PYDIST\x03\x01\x00\x01\x00");
    assert_eq!(
        end.error,
        Some(HandshakeError::Malformed(
            "VERSION_MISMATCH though the ranges overlap"
        ))
    );
}

/// A newer initiator that also speaks our version is answered; its range is under the transcript.
#[test]
fn a_wider_range_is_answered_with_the_common_version() {
    let (sent_i, _) = recorded();
    let mut end = End::new(acceptor());
    end.feed(&with_range(&sent_i[..HELLO_LEN], 1, 9));
    let challenge = end.take_output();
    assert_eq!(
        (challenge.len(), &challenge[7..10]),
        (CHALLENGE_LEN, &[2, 1, 0][..])
    );
}

fn with_python(id: u32, python: (u8, u8, u8), package: &str) -> Local {
    Local {
        versions: Versions {
            python,
            package: package.to_owned(),
        },
        ..local(id)
    }
}

/// S7: both ends learn that the Pythons differ, and each text names both ends and both versions.
#[test]
fn s7_a_python_mismatch_names_both_versions_at_both_ends() {
    let i = Initiator::new(with_python(1, (3, 11, 9), "0.1.0"), &cookie(), secrets(0x11));
    let a = Acceptor::new(with_python(2, (3, 12, 4), "0.2.0"), &cookie(), secrets(0x22));
    let (i, a) = join(i.into(), a.into());
    assert!(!i.finished() && !a.finished());
    assert_eq!(
        i.error.unwrap().to_string(),
        "Python version mismatch: worker 1 (this process) runs CPython 3.11.9 with pydist 0.1.0, \
         worker 2 (the peer) runs CPython 3.12.4 with pydist 0.2.0; \
         functions cannot be sent between different CPython X.Y"
    );
    assert_eq!(
        a.error.unwrap().to_string(),
        "Python version mismatch: worker 2 (this process) runs CPython 3.12.4 with pydist 0.2.0, \
         worker 1 (the peer) runs CPython 3.11.9 with pydist 0.1.0; \
         functions cannot be sent between different CPython X.Y"
    );
}

/// S7: an end that fails on the peer's INFO has its own INFO in the output already.
#[test]
fn s7_the_end_that_fails_first_still_sends_its_info() {
    let i = Initiator::new(with_python(1, (3, 11, 9), "0.1.0"), &cookie(), secrets(0x11));
    let a = Acceptor::new(with_python(2, (3, 12, 4), "0.2.0"), &cookie(), secrets(0x22));
    let (mut i, mut a) = (End::new(i.into()), End::new(a.into()));
    a.feed(&i.take_output());
    i.feed(&a.take_output());
    a.feed(&i.take_output());
    i.feed(&a.take_output());
    assert!(matches!(i.error, Some(HandshakeError::PythonMismatch { .. })));
    let info = i.take_output();
    assert_eq!(info.len(), INFO_LEN);
    a.feed(&info);
    assert!(matches!(
        a.error,
        Some(HandshakeError::PythonMismatch {
            our_id: 2,
            peer_id: 1,
            ..
        })
    ));
}

/// S7: each end decides for itself whether it minds.
#[test]
fn s7_a_python_mismatch_can_be_allowed() {
    for (allow_i, allow_a) in [(true, true), (true, false), (false, true)] {
        let i = Local {
            allow_python_mismatch: allow_i,
            ..with_python(1, (3, 11, 9), "0.1.0")
        };
        let a = Local {
            allow_python_mismatch: allow_a,
            ..with_python(2, (3, 12, 4), "0.2.0")
        };
        let i = Initiator::new(i, &cookie(), secrets(0x11));
        let a = Acceptor::new(a, &cookie(), secrets(0x22));
        let (i, a) = join(i.into(), a.into());
        assert_eq!((i.finished(), a.finished()), (allow_i, allow_a));
    }
}

#[test]
fn another_micro_version_is_no_mismatch() {
    let i = Initiator::new(with_python(1, (3, 12, 0), ""), &cookie(), secrets(0x11));
    let a = Acceptor::new(with_python(2, (3, 12, 255), ""), &cookie(), secrets(0x22));
    let (i, a) = join(i.into(), a.into());
    let (i, _) = finish(i, a);
    assert_eq!(
        i.peer_versions(),
        &Versions {
            python: (3, 12, 255),
            package: String::new()
        }
    );
}

/// S7: another pydist is refused, and each text names both ends and both versions.
#[test]
fn s7_another_package_is_named_at_both_ends() {
    let i = Initiator::new(with_python(1, (3, 12, 4), "0.1.0"), &cookie(), secrets(0x11));
    let a = Acceptor::new(with_python(2, (3, 12, 4), "0.2.0"), &cookie(), secrets(0x22));
    let (i, a) = join(i.into(), a.into());
    assert_eq!(
        i.error.unwrap().to_string(),
        "pydist version mismatch: worker 1 (this process) has pydist 0.1.0, \
         worker 2 (the peer) has pydist 0.2.0; install the same version on both"
    );
    assert_eq!(
        a.error.unwrap().to_string(),
        "pydist version mismatch: worker 2 (this process) has pydist 0.2.0, \
         worker 1 (the peer) has pydist 0.1.0; install the same version on both"
    );
}

#[test]
fn a_long_package_version_is_cut_not_refused() {
    let i = Initiator::new(
        with_python(1, (3, 12, 0), &"x".repeat(9999)),
        &cookie(),
        secrets(0x11),
    );
    let a = Acceptor::new(
        with_python(2, (3, 12, 0), &"x".repeat(64)),
        &cookie(),
        secrets(0x22),
    );
    let (i, a) = join(i.into(), a.into());
    assert_eq!(finish(i, a).1.peer_versions().package, "x".repeat(64));
}
