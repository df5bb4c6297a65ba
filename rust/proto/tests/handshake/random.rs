//! Random splits, noise and damage.

use proptest::prelude::*;

use super::*;

/// Cuts `input` at random places and feeds the pieces.
fn feed_in_pieces(end: &mut End, input: &[u8], cuts: &[prop::sample::Index]) -> usize {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
    places.extend([0, input.len()]);
    places.sort_unstable();
    let mut consumed = 0;
    for pair in places.windows(2) {
        consumed += end.feed(&input[pair[0]..pair[1]]);
        end.take_output();
    }
    consumed
}

proptest! {
    #[test]
    fn any_split_gives_the_same_handshake(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let (sent_i, sent_a) = recorded();
        for (mut end, input, sent) in
            [(End::new(initiator()), &sent_a, &sent_i), (End::new(acceptor()), &sent_i, &sent_a)]
        {
            prop_assert_eq!(feed_in_pieces(&mut end, input, &cuts), input.len());
            prop_assert!(end.finished());
            prop_assert_eq!(&end.sent, sent);
        }
    }

    /// S3: random bytes, alone or after a good beginning of any length, neither authenticate nor panic, and
    /// get no proof out of an acceptor.
    #[test]
    fn s3_random_bytes_never_authenticate(
        good in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 1..1500),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let (sent_i, sent_a) = recorded();
        for (handshake, whole) in [(initiator(), &sent_a), (acceptor(), &sent_i)] {
            let good = &whole[..good.index(whole.len())];
            // Noise that happens to continue the session would be no noise.
            let mut noise = noise.clone();
            if noise[0] == whole[good.len()] {
                noise[0] ^= 1;
            }
            let is_acceptor = matches!(handshake, Handshake::Acceptor(_));
            let mut end = End::new(handshake);
            feed_in_pieces(&mut end, &[good, &noise].concat(), &cuts);
            prop_assert!(!end.finished());
            prop_assert!(end.handshake.finish().is_err());
            if is_acceptor && good.len() < HELLO_LEN + PROOF_LEN {
                prop_assert!(end.sent.len() <= CHALLENGE_LEN);
            }
        }
    }

    /// S3: a range of bytes of one direction replaced by random ones never authenticates the receiver.
    #[test]
    fn s3_a_damaged_session_never_authenticates(
        to_acceptor in any::<bool>(),
        at in any::<prop::sample::Index>(),
        damage in prop::collection::vec(any::<u8>(), 1..40),
    ) {
        let (sent_i, sent_a) = recorded();
        let total = if to_acceptor { sent_i.len() } else { sent_a.len() };
        let at = at.index(total);
        let mut changed = false;
        let (i, a) = join_with(initiator(), acceptor(), |direction, offset, flight| {
            for (place, byte) in flight.iter_mut().enumerate().filter(|_| direction == to_acceptor) {
                if let Some(new) = (offset + place).checked_sub(at).and_then(|index| damage.get(index)) {
                    changed |= byte != new;
                    *byte = *new;
                }
            }
        });
        let receiver = if to_acceptor { a } else { i };
        prop_assert_eq!(receiver.finished(), !changed);
    }
}
