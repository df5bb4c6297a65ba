//! Attackers between, before and behind the two ends.

use super::*;

/// S3: a flip of any bit of any message is refused by the end that receives it, and a flip of what either
/// proof covers by both ends, also when the attacker goes on with a pickle.
#[test]
fn s3_no_flipped_bit_authenticates() {
    let (sent_i, sent_a) = recorded();
    let pre_info = [
        (true, HELLO_LEN + PROOF_LEN, sent_i.len()),
        (false, CHALLENGE_LEN + PROOF_LEN, sent_a.len()),
    ];
    for (to_acceptor, proved, total) in pre_info {
        for bit in 0..total * 8 {
            let (i, a) = join_with(initiator(), acceptor(), |direction, offset, flight| {
                let flipped = (bit / 8).checked_sub(offset).filter(|_| direction == to_acceptor);
                if let Some(byte) = flipped.and_then(|at| flight.get_mut(at)) {
                    *byte ^= 1 << (bit % 8);
                }
            });
            let (mut receiver, sender) = if to_acceptor { (a, i) } else { (i, a) };
            for _ in 0..20 {
                receiver.feed(PICKLE);
            }
            assert!(!receiver.finished(), "bit {bit}, to acceptor: {to_acceptor}");
            let Some(error) = receiver.error.clone() else {
                panic!("bit {bit} is not refused")
            };
            assert_eq!(receiver.handshake.finish().unwrap_err(), error);
            if bit / 8 < proved {
                assert!(!sender.finished(), "bit {bit}, to acceptor: {to_acceptor}");
            }
        }
    }
}

/// S3: a session cut at any byte, then continued with a pickle, is refused by the end that receives it.
#[test]
fn s3_no_truncated_session_authenticates() {
    let (sent_i, sent_a) = recorded();
    for (make, input) in [(initiator as fn() -> Handshake, sent_a), (acceptor, sent_i)] {
        for cut in 0..input.len() {
            let mut end = End::new(make());
            end.feed(&input[..cut]);
            assert!(!end.finished());
            for _ in 0..20 {
                end.feed(PICKLE);
            }
            assert!(end.error.is_some() && !end.finished(), "cut at {cut}");
        }
    }
}

/// S4: a fresh nonce makes a recorded session worthless, in both roles.
#[test]
fn s4_a_replayed_session_fails() {
    let (sent_i, sent_a) = recorded();
    let mut end = End::new(Acceptor::new(local(2), &cookie(), secrets(0x23)).into());
    end.feed(&sent_i[..HELLO_LEN]);
    assert_eq!(end.take_output().len(), CHALLENGE_LEN);
    end.feed(&sent_i[HELLO_LEN..]);
    assert_eq!(end.error, Some(HandshakeError::AuthenticationFailed));
    assert!(end.take_output().is_empty());

    let mut end = End::new(Initiator::new(local(1), &cookie(), secrets(0x12)).into());
    end.feed(&sent_a);
    assert_eq!(end.error, Some(HandshakeError::AuthenticationFailed));
}

/// S4: what an end sent is never accepted by the same end.
#[test]
fn s4_reflected_messages_fail() {
    let (sent_i, sent_a) = recorded();
    let (proof_i, info_i) = sent_i[HELLO_LEN..].split_at(PROOF_LEN);
    let (hello, challenge) = (&sent_i[..HELLO_LEN], &sent_a[..CHALLENGE_LEN]);
    let (proof_a, info_a) = sent_a[CHALLENGE_LEN..].split_at(PROOF_LEN);

    let refused = |handshake: Handshake, messages: &[&[u8]], expected: HandshakeError| {
        let mut end = End::new(handshake);
        for message in messages {
            end.feed(message);
            end.take_output();
        }
        assert_eq!(end.error, Some(expected));
        assert!(!end.finished());
    };
    refused(
        initiator(),
        &[&sent_i],
        HandshakeError::Malformed("this is not an answer to HELLO"),
    );
    refused(
        initiator(),
        &[challenge, proof_i],
        HandshakeError::AuthenticationFailed,
    );
    refused(
        initiator(),
        &[challenge, proof_a, info_i],
        HandshakeError::AuthenticationFailed,
    );
    refused(
        acceptor(),
        &[&sent_a],
        HandshakeError::Malformed("this is not a HELLO"),
    );
    refused(
        acceptor(),
        &[hello, proof_a],
        HandshakeError::AuthenticationFailed,
    );
    refused(
        acceptor(),
        &[hello, proof_i, info_a],
        HandshakeError::AuthenticationFailed,
    );
}

/// Asserts that neither end authenticates and that the acceptor sends its CHALLENGE and no proof.
fn assert_acceptor_refuses(i: Initiator, a: Acceptor) {
    let (i, a) = join(i.into(), a.into());
    assert_eq!(a.error, Some(HandshakeError::AuthenticationFailed));
    assert_eq!(a.sent.len(), CHALLENGE_LEN);
    assert!(!i.finished() && !a.finished());
}

/// S4: a relay from a seized port to another listener fails, for the two have different instance tags.
#[test]
fn s4_another_instance_tag_fails() {
    let a = Secrets {
        inst: [10; 16],
        ..secrets(0x22)
    };
    assert_acceptor_refuses(
        Initiator::new(local(1), &cookie(), secrets(0x11)),
        Acceptor::new(local(2), &cookie(), a),
    );
}

/// A man in the middle who ends TLS on both sides fails, for the two sessions export different values.
#[test]
fn another_channel_binding_fails() {
    let a = Secrets {
        channel_binding: [6; 32],
        ..secrets(0x22)
    };
    assert_acceptor_refuses(
        Initiator::new(local(1), &cookie(), secrets(0x11)),
        Acceptor::new(local(2), &cookie(), a),
    );
}

/// Bytes cannot move between the channel binding and the instance tag.
#[test]
fn the_binding_values_do_not_run_into_each_other() {
    let i = Secrets {
        channel_binding: [0; 32],
        inst: [1; 16],
        ..secrets(0x11)
    };
    let mut moved = [0; 32];
    moved[31] = 1;
    let mut inst = [1; 16];
    inst[15] = 0;
    let a = Secrets {
        channel_binding: moved,
        inst,
        ..secrets(0x22)
    };
    assert_acceptor_refuses(
        Initiator::new(local(1), &cookie(), i),
        Acceptor::new(local(2), &cookie(), a),
    );
}

#[test]
fn a_wrong_cookie_never_gets_a_proof_from_the_acceptor() {
    let wrong = Cookie::new(b"the cookie of this very cluster?").unwrap();
    assert_acceptor_refuses(
        Initiator::new(local(1), &wrong, secrets(0x11)),
        Acceptor::new(local(2), &cookie(), secrets(0x22)),
    );
    assert_acceptor_refuses(
        Initiator::new(local(1), &cookie(), secrets(0x11)),
        Acceptor::new(local(2), &wrong, secrets(0x22)),
    );
}

/// An initiator refuses an acceptor that goes on without the cookie, and tells it nothing more.
#[test]
fn an_initiator_refuses_an_acceptor_without_the_cookie() {
    let (_, sent_a) = recorded();
    let wrong = Cookie::new(b"the cookie of this very cluster?").unwrap();
    let mut end = End::new(Initiator::new(local(1), &wrong, secrets(0x11)).into());
    end.feed(&sent_a[..CHALLENGE_LEN]);
    assert_eq!(end.take_output().len(), HELLO_LEN + PROOF_LEN);
    end.feed(&sent_a[CHALLENGE_LEN..]);
    assert_eq!(end.error, Some(HandshakeError::AuthenticationFailed));
    assert!(end.take_output().is_empty());
}

#[test]
fn another_cluster_is_refused_without_a_word() {
    let stranger = Local {
        cluster: [8; 16],
        ..local(1)
    };
    let (i, a) = join(
        Initiator::new(stranger, &cookie(), secrets(0x11)).into(),
        acceptor(),
    );
    assert_eq!(a.error, Some(HandshakeError::WrongCluster));
    assert!(a.sent.is_empty() && !i.finished());
}

/// S1: nothing that a log could show holds the cookie.
#[test]
fn s1_no_debug_text_or_error_holds_the_cookie() {
    let raw = String::from_utf8(cookie().as_bytes().to_vec()).unwrap();
    let listed = format!("{:?}", cookie().as_bytes());
    let mut texts = vec![format!("{:?}", cookie()), format!("{:?}", secrets(1))];
    for handshake in [initiator(), acceptor()] {
        texts.push(format!("{handshake:?}"));
        let mut end = End::new(handshake);
        end.feed(b"x");
        texts.push(format!(
            "{:?} {:?} {}",
            end.handshake,
            end.error,
            end.error.as_ref().unwrap()
        ));
    }
    for text in texts {
        assert!(
            !text.contains(&raw) && !text.contains(listed.trim_matches(['[', ']'])),
            "{text}"
        );
        assert!(text.len() < 200);
    }
}
