//! Properties of the messages and of the account that each end keeps of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::VecDeque;

use glasshouse_guest_nats::{Broken, HEADER_BYTES, Header, Kind, Ledger, MAX_MESSAGE_BYTES, WINDOW};
use proptest::prelude::*;

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Piece), Just(Kind::Taken), Just(Kind::End)]
}

/// What two honest ends may do, and the bus between them.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// An end sends a piece if it may.
    Send(usize),
    /// The oldest message on its way to an end arrives.
    Deliver(usize),
    /// An end hands on the oldest piece that it has.
    Take(usize),
    /// The oldest message on its way to an end is lost.
    Lose(usize),
}

fn step(loses: bool) -> impl Strategy<Value = Step> {
    let lost = u32::from(loses);
    prop_oneof![
        8 => (0..2_usize).prop_map(Step::Send),
        8 => (0..2_usize).prop_map(Step::Deliver),
        8 => (0..2_usize).prop_map(Step::Take),
        lost => (0..2_usize).prop_map(Step::Lose),
    ]
}

/// Both ends, and what is on its way to each.
#[derive(Default)]
struct World {
    ends: [Ledger; 2],
    coming: [VecDeque<(Header, u64)>; 2],
    held: [VecDeque<u64>; 2],
    sent: [u64; 2],
    handed_on: [u64; 2],
}

impl World {
    fn say(&mut self, end: usize, kind: Kind) {
        let header = self.ends[end].send(kind);
        self.coming[1 - end].push_back((header, self.sent[end]));
        self.sent[end] += u64::from(kind == Kind::Piece);
    }

    fn step(&mut self, step: Step) -> Result<(), Broken> {
        match step {
            Step::Send(end) if self.ends[end].has_room() => self.say(end, Kind::Piece),
            Step::Send(_) => {}
            Step::Deliver(end) => {
                if let Some((header, piece)) = self.coming[end].pop_front() {
                    self.ends[end].receive(header)?;
                    if header.kind == Kind::Piece {
                        self.held[end].push_back(piece);
                    }
                }
            }
            Step::Take(end) => {
                if let Some(piece) = self.held[end].pop_front() {
                    assert_eq!(piece, self.handed_on[end], "a piece out of order was handed on");
                    self.handed_on[end] += 1;
                    if self.ends[end].take() {
                        self.say(end, Kind::Taken);
                    }
                }
            }
            Step::Lose(end) => {
                self.coming[end].pop_front();
            }
        }
        for end in 0..2 {
            assert!(self.sent[1 - end] - self.handed_on[end] <= WINDOW, "more is under way than the window");
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_header_is_read_as_it_was_written(kind in kind(), number: u64, taken: u64, piece in 1..100_usize) {
        let header = Header { kind, number, taken };
        let mut message = header.write().to_vec();
        message.extend(vec![0; if kind == Kind::Taken { 0 } else { piece }]);
        prop_assert_eq!(Header::read(&message), Ok(header));
    }

    #[test]
    fn no_message_is_believed_for_its_length(bytes in prop::collection::vec(any::<u8>(), 0..200), more: bool) {
        let mut message = bytes;
        if more {
            message.resize(MAX_MESSAGE_BYTES + 1, 0);
        }
        if let Ok(header) = Header::read(&message) {
            prop_assert!(message.len() <= MAX_MESSAGE_BYTES);
            prop_assert_eq!(&header.write()[..], &message[..HEADER_BYTES]);
        }
    }

    /// Whatever headers a hostile end sends, the account never goes wrong: no overflow, and never more held than the window.
    #[test]
    fn no_end_is_misled(headers in prop::collection::vec((kind(), 0..70_u64, 0..70_u64, any::<bool>()), 0..300)) {
        let mut ledger = Ledger::default();
        let mut held = 0_u64;
        for (kind, number, taken, takes) in headers {
            if ledger.has_room() {
                ledger.send(Kind::Piece);
            }
            if ledger.receive(Header { kind, number, taken }).is_err() {
                break;
            }
            held += u64::from(kind == Kind::Piece);
            prop_assert!(held <= WINDOW);
            if takes && held > 0 {
                held -= 1;
                ledger.take();
            }
        }
    }

    #[test]
    fn honest_ends_agree_in_any_order(steps in prop::collection::vec(step(false), 0..2000)) {
        let mut world = World::default();
        for step in steps {
            prop_assert_eq!(world.step(step), Ok(()));
        }
        // And whatever happened, they get on: nobody waits for what the other thinks it has said.
        for _ in 0..4 * WINDOW {
            for end in 0..2 {
                for step in [Step::Deliver(end), Step::Take(end), Step::Send(end)] {
                    prop_assert_eq!(world.step(step), Ok(()));
                }
            }
        }
        prop_assert!(world.handed_on.iter().all(|pieces| *pieces > WINDOW), "{:?}", world.handed_on);
    }

    /// Not a piece behind one that is missing is handed on, and the next message of any kind says that it is missing.
    #[test]
    fn what_is_lost_is_noticed(steps in prop::collection::vec(step(true), 0..2000)) {
        let mut world = World::default();
        for step in steps {
            if world.step(step).is_err() {
                return Ok(());
            }
        }
        for end in 0..2 {
            while let Some((header, _)) = world.coming[end].pop_front() {
                if world.ends[end].receive(header).is_err() {
                    return Ok(());
                }
            }
            // An end in order, as the last message.
            let is_whole = world.held[end].iter().copied().eq(world.handed_on[end]..world.handed_on[end] + world.held[end].len() as u64);
            prop_assert!(is_whole);
            let last = world.ends[1 - end].send(Kind::End);
            let came = last.number;
            match world.ends[end].receive(last) {
                Ok(()) => prop_assert_eq!(came, world.sent[1 - end]),
                Err(broken) => prop_assert!(matches!(broken, Broken::OffSequence { .. }), "{}", broken),
            }
        }
    }
}

#[test]
fn what_no_honest_end_says_is_refused() {
    let at = |kind, number, taken| Header { kind, number, taken };
    let mut ledger = Ledger::default();
    assert_eq!(ledger.receive(at(Kind::Piece, 1, 0)), Err(Broken::OffSequence { expected: 0, found: 1 }));
    assert_eq!(
        ledger.receive(at(Kind::Piece, 0, 1)),
        Err(Broken::FalselyTaken { said: 1, before: 0, sent: 0 })
    );
    assert_eq!(ledger.receive(at(Kind::Taken, 0, 0)), Err(Broken::Idle));
    for number in 0..WINDOW {
        assert_eq!(ledger.receive(at(Kind::Piece, number, 0)), Ok(()));
    }
    assert_eq!(ledger.receive(at(Kind::Piece, WINDOW, 0)), Err(Broken::Overrun));
    assert_eq!(Header::read(b"GN"), Err(Broken::NoMessage));
    let mut message = at(Kind::Piece, 0, 0).write().to_vec();
    assert_eq!(Header::read(&message), Err(Broken::PieceSize(0)));
    message[2] = 9;
    assert_eq!(Header::read(&message), Err(Broken::OtherVersion(9)));
}
