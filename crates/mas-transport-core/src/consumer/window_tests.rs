use super::*;
use crate::{Message, Topic};

const LEASE: Duration = Duration::from_secs(30);

fn window(messages: usize) -> Window {
    Window::new(messages, 1 << 20, LEASE, 3, true)
}

fn raw(slot: u32, now: Instant) -> RawDelivery {
    let topic = Topic::new("t").unwrap();
    RawDelivery {
        token: Token {
            slot,
            generation: 0,
        },
        message: Message::assemble(topic, slot.to_string(), Vec::new().into()),
        position: Position {
            major: 0,
            minor: slot.into(),
        },
        attempt: 1,
        deadline: now + LEASE,
        begin: false,
        reclaimed: false,
    }
}

fn again(slot: u32, attempt: u32, reclaimed: bool, now: Instant) -> RawDelivery {
    RawDelivery {
        attempt,
        begin: true,
        reclaimed,
        ..raw(slot, now)
    }
}

fn taken(window: &mut Window, now: Instant) -> Option<u32> {
    match window.take(now) {
        Taken::Delivery(raw) => Some(raw.token.slot),
        Taken::Nothing => None,
        Taken::Begin(token) => panic!("{token:?} is to begin"),
    }
}

fn begin(window: &mut Window, now: Instant) -> Option<Token> {
    match window.take(now) {
        Taken::Begin(token) => Some(token),
        Taken::Nothing => None,
        Taken::Delivery(raw) => panic!("{raw:?} is handed out"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_used_until_its_settlement_is_confirmed() {
    let now = Instant::now();
    let mut w = window(2);
    assert_eq!(w.want().messages, 2);
    w.buffer(raw(0, now));
    w.buffer(raw(1, now));
    assert_eq!(w.want().messages, 0);
    assert_eq!(taken(&mut w, now), Some(0));
    let token = raw(0, now).token;
    assert!(w.settle(token, now).is_ok());
    assert_eq!(w.want().messages, 0, "the broker has not answered yet");
    w.release(token);
    assert_eq!(w.want().messages, 1);
    assert!(w.settle(token, now).is_err(), "settled once");
}

#[tokio::test(start_paused = true)]
async fn no_more_is_begun_than_is_waited_for() {
    let now = Instant::now();
    let mut w = window(10);
    for slot in 0..3 {
        w.buffer(again(slot, 2, false, now));
    }
    assert_eq!(begin(&mut w, now), None, "nobody waits");
    w.wait(1);
    let first = begin(&mut w, now).unwrap();
    assert_eq!(begin(&mut w, now), None, "one waits, one is being begun");
    w.begun(first, Some(now + LEASE));
    assert_eq!(taken(&mut w, now), Some(first.slot));
    assert_ne!(begin(&mut w, now).unwrap(), first);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_begun_is_not_handed_out() {
    let now = Instant::now();
    let mut w = window(10);
    w.buffer(again(0, 2, true, now));
    w.buffer(raw(1, now));
    w.wait(1);
    let token = begin(&mut w, now).unwrap();
    w.begun(token, None);
    assert_eq!(taken(&mut w, now), Some(1));
    assert_eq!(w.want().messages, 9);
}

#[tokio::test(start_paused = true)]
async fn a_suspect_on_its_last_attempt_runs_alone() {
    let now = Instant::now();
    let mut w = window(10);
    w.buffer(raw(0, now));
    assert_eq!(taken(&mut w, now), Some(0));
    w.buffer(again(1, 3, true, now));
    w.buffer(raw(2, now));
    w.wait(5);
    assert_eq!(
        begin(&mut w, now),
        None,
        "something is with the application"
    );
    assert!(w.settle(raw(0, now).token, now).is_ok());
    let suspect = begin(&mut w, now).unwrap();
    assert_eq!(begin(&mut w, now), None);
    w.begun(suspect, Some(now + LEASE));
    assert_eq!(taken(&mut w, now), Some(1));
    assert_eq!(taken(&mut w, now), None, "the suspect is alone");
    assert!(w.settle(suspect, now).is_ok());
    assert_eq!(taken(&mut w, now), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_nacked_message_on_its_last_attempt_does_not() {
    let now = Instant::now();
    let mut w = window(10);
    w.buffer(again(1, 3, false, now));
    w.buffer(raw(2, now));
    w.wait(2);
    let token = begin(&mut w, now).unwrap();
    w.begun(token, Some(now + LEASE));
    assert_eq!(taken(&mut w, now), Some(1));
    assert_eq!(taken(&mut w, now), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_handler_gives_up_the_share_of_its_member() {
    let now = Instant::now();
    let mut w = window(10);
    w.buffer(raw(0, now));
    w.buffer(raw(1, now));
    assert_eq!(taken(&mut w, now), Some(0));
    let late = now + LEASE;
    assert_eq!(w.lapse(now).len(), 0);
    assert_eq!(w.lapse(late).len(), 1);
    assert_eq!(w.lapse(late).len(), 0, "told once");
    assert!(w.hangs());
    assert_eq!(w.want().messages, 0);
    assert_eq!(w.empty().len(), 1);
    w.release(raw(1, now).token);
    let lost = w.settle(raw(0, now).token, late).unwrap_err();
    assert_eq!(lost.map(|l| l.position), Some(raw(0, now).position));
    assert!(!w.hangs());
    assert_eq!(w.want().messages, 10);
}

#[tokio::test(start_paused = true)]
async fn the_buffer_is_extended_at_half_lease_and_an_extension_that_fails_drops_it() {
    let now = Instant::now();
    let mut w = window(10);
    w.buffer(raw(0, now));
    w.buffer(raw(1, now));
    assert_eq!(w.next_due(), Some(now + LEASE / 2));
    assert!(w.due_for_extension(now).is_empty());
    let half = now + LEASE / 2;
    let due = w.due_for_extension(half);
    assert_eq!(due.len(), 2);
    assert!(w.due_for_extension(half).is_empty(), "it is on the way");
    assert_eq!(w.next_due(), None);
    w.extended(due[0].0, Some(half + LEASE));
    w.extended(due[1].0, None);
    assert_eq!(w.next_due(), Some(half + LEASE / 2));
    assert_eq!(taken(&mut w, now + LEASE), Some(due[0].0.slot));
    assert_eq!(taken(&mut w, now + LEASE), None);
}

#[tokio::test(start_paused = true)]
async fn what_stands_behind_extended_deliveries_is_extended_in_time() {
    let now = Instant::now();
    let mut w = window(10);
    w.buffer(raw(0, now));
    let later = now + LEASE * 4 / 10;
    w.buffer(raw(1, later));
    let half = now + LEASE / 2;
    let due = w.due_for_extension(half);
    assert_eq!(due.len(), 1);
    w.extended(due[0].0, Some(half + LEASE));
    assert_eq!(w.next_due(), Some(later + LEASE / 2));
    let due = w.due_for_extension(later + LEASE / 2);
    assert_eq!(due, [(raw(1, later).token, later + LEASE)]);
    assert_eq!(w.next_due(), Some(half + LEASE / 2));
    assert_eq!(w.empty().len(), 2);
    assert_eq!(w.next_due(), None);
}

#[tokio::test(start_paused = true)]
async fn what_lapsed_in_the_buffer_is_not_handed_out() {
    let now = Instant::now();
    let mut w = window(10);
    w.buffer(raw(0, now));
    assert_eq!(taken(&mut w, now + LEASE), None);
    assert!(w.is_idle());
}

#[tokio::test(start_paused = true)]
async fn an_extended_delivery_is_held_to_its_new_deadline() {
    let now = Instant::now();
    let mut w = window(10);
    w.buffer(raw(0, now));
    assert_eq!(taken(&mut w, now), Some(0));
    let token = raw(0, now).token;
    w.extended(token, Some(now + LEASE * 2));
    assert!(w.lapse(now + LEASE).is_empty());
    assert_eq!(w.deadline(token), Some(now + LEASE * 2));
    assert!(w.settle(token, now + LEASE).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_revocation_takes_the_buffer_and_ends_what_is_held() {
    let now = Instant::now();
    let mut w = window(10);
    for slot in 0..3 {
        w.buffer(raw(slot, now));
    }
    assert_eq!(taken(&mut w, now), Some(0));
    let tokens: Vec<_> = (0..3).map(|s| raw(s, now).token).collect();
    let until = now + Duration::from_secs(1);
    assert_eq!(w.revoking(&tokens[..2], until), [tokens[1]]);
    assert_eq!(w.deadline(tokens[0]), Some(until));
    w.release(tokens[1]);
    assert_eq!(w.revoke(&tokens, now), [raw(0, now).position]);
    assert!(w.settle(tokens[0], now).is_err());
    assert!(w.is_idle());
    assert_eq!(taken(&mut w, now), None);
}

#[tokio::test(start_paused = true)]
async fn bookkeeping_stays_small_while_one_delivery_is_kept_for_long() {
    let now = Instant::now();
    let mut w = window(1000);
    for slot in 0..100_000 {
        w.buffer(raw(slot, now));
        assert_eq!(taken(&mut w, now), Some(slot));
        if slot > 0 {
            let token = raw(slot, now).token;
            assert!(w.settle(token, now).is_ok());
            w.release(token);
        }
    }
    assert!(w.expiry.len() < 100, "{}", w.expiry.len());
    assert_eq!(w.leases.len(), 1);
}
