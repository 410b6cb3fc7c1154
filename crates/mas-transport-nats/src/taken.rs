//! What a pull brought, and what of it this member knows already.

use std::collections::{HashMap, HashSet};

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use crate::member::Place;

/// What every acknowledgement's subject begins with.
pub(crate) const ACK: &str = "$JS.ACK.";

/// An entry that was pulled.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) sequence: u64,
    /// How often the server sent it.
    pub(crate) delivered: u64,
    pub(crate) reply: Subject,
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) payload: Bytes,
}

impl Taken {
    /// Reads a message of a pull, which leaves nothing of it; `None` when it is one of the server's own.
    pub(crate) fn read(message: &mut async_nats::Message) -> Option<Self> {
        let (delivered, sequence) = message.reply.as_deref().and_then(numbers)?;
        Some(Self {
            sequence,
            delivered,
            reply: message.reply.take()?,
            headers: message.headers.take(),
            payload: std::mem::take(&mut message.payload),
        })
    }
}

/// How often an entry was sent, and its place in the stream, as the subject of its settlement says.
fn numbers(reply: &str) -> Option<(u64, u64)> {
    let tokens = reply.strip_prefix(ACK)?;
    // stream, consumer, delivered, sequence, the consumer's sequence, time, pending; in the second
    // version behind a domain and an account, and before a token.
    let behind = match tokens.split('.').count() {
        7 => 2,
        9.. => 4,
        _ => return None,
    };
    let mut tokens = tokens.split('.').skip(behind);
    Some((tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?))
}

/// When an entry was stored, in nanoseconds, as the subject of its settlement says.
fn stored_at(reply: &str) -> Option<u64> {
    let tokens = reply.split('.').count();
    let at = if tokens == 9 { 7 } else { 9 };
    reply.split('.').nth(at)?.parse().ok()
}

/// Sorts what came into what is news and what this member settled before, whose settlement is to be
/// said again; what it holds (`held`) is in neither.
///
/// Servers before 2.10 take back the last entry that they sent, whether or not it is settled, when what they
/// send again meets a pull that has just ended (see [`crate::pulls`]); the next pull gets it once more. What
/// another member has of it is not known here: there it is a duplicate.
pub(crate) fn sort(
    entries: Vec<Taken>,
    place: &mut Place,
    held: &HashSet<u64>,
) -> (Vec<Taken>, Vec<Taken>) {
    let count = entries.len() as u64;
    // Of one that came more than once, the last is what the server remembers.
    let mut latest = HashMap::with_capacity(entries.len());
    for entry in &entries {
        let delivered = latest.entry(entry.sequence).or_insert(entry.delivered);
        *delivered = entry.delivered.max(*delivered);
    }
    let (mut news, mut settled) = (Vec::with_capacity(entries.len()), Vec::new());
    place.sort_in();
    let mut newest = place.newest;
    for entry in entries {
        let sequence = entry.sequence;
        let time = stored_at(&entry.reply).unwrap_or(u64::MAX);
        newest = newest.max(time);
        // What was stored later than all that came may be of a stream that was made again; and what the
        // server counts as sent again has been nacked, or its lease has ended.
        let back = time <= place.newest && entry.delivered == 1;
        if back && (sequence <= place.floor || place.settled.contains(sequence)) {
            settled.push(entry);
        } else if latest.get(&sequence) == Some(&entry.delivered)
            && !(back && held.contains(&sequence))
        {
            latest.remove(&sequence);
            news.push(entry);
        }
    }
    place.newest = newest;
    // The server counts them as sent to somebody.
    place.received += count - news.len() as u64;
    (news, settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry that was stored at `time` and is sent for the time `delivered`.
    fn entry(sequence: u64, delivered: u64, time: u64) -> Taken {
        let reply = format!("{ACK}orders.billing.{delivered}.{sequence}.1.{time}.0");
        let mut message = async_nats::Message {
            subject: "mas.orders".into(),
            reply: Some(reply.into()),
            payload: Bytes::new(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        };
        Taken::read(&mut message).unwrap()
    }

    /// One that held up to 10 in its hands, of which the newest was stored at 100, and settled to 5, and 7.
    fn place() -> Place {
        Place {
            floor: 5,
            newest: 100,
            fresh: vec![7],
            ..Place::default()
        }
    }

    /// What is news and what is settled, by sequence and how often each was sent.
    fn sorted(place: &mut Place, held: &[u64], entries: Vec<Taken>) -> [Vec<(u64, u64)>; 2] {
        let (news, settled) = sort(entries, place, &held.iter().copied().collect());
        [news, settled].map(|l| l.iter().map(|e| (e.sequence, e.delivered)).collect())
    }

    #[test]
    fn replies_of_both_versions_are_read() {
        let old = "$JS.ACK.orders.billing.2.17.40.1700000000000000123.5";
        let new = "$JS.ACK.hub.account.orders.billing.2.17.40.1700000000000000123.5.token";
        for reply in [old, new] {
            assert_eq!(numbers(reply), Some((2, 17)), "{reply}");
            assert_eq!(stored_at(reply), Some(1_700_000_000_000_000_123), "{reply}");
        }
        for strange in ["", "_INBOX.a.b", "$JS.ACK.", "$JS.ACK.a.b.x.17.40.1.5"] {
            assert_eq!(numbers(strange), None, "{strange}");
        }
    }

    #[test]
    fn what_is_new_is_news_and_makes_the_place_newer() {
        let mut place = place();
        let came = vec![entry(11, 1, 101), entry(12, 1, 102)];
        assert_eq!(
            sorted(&mut place, &[6], came),
            [vec![(11, 1), (12, 1)], vec![]]
        );
        assert_eq!((place.newest, place.received), (102, 0));
    }

    #[test]
    fn what_is_settled_or_held_is_left_out() {
        let mut place = place();
        let came = [3, 6, 7, 8].map(|sequence| entry(sequence, 1, sequence * 10));
        let [news, settled] = sorted(&mut place, &[6], came.into());
        assert_eq!(news, [(8, 1)], "nobody here has it");
        assert_eq!(settled, [(3, 1), (7, 1)]);
        assert_eq!((place.newest, place.received), (100, 3));
    }

    #[test]
    fn what_the_server_counts_as_sent_again_is_news() {
        let came = [3, 6, 7].map(|sequence| entry(sequence, 2, sequence * 10));
        let [news, settled] = sorted(&mut place(), &[6], came.into());
        assert_eq!((news, settled), (vec![(3, 2), (6, 2), (7, 2)], vec![]));
    }

    #[test]
    fn a_stream_that_was_made_again_begins_with_numbers_that_are_known() {
        let came = vec![entry(1, 1, 200), entry(6, 1, 201)];
        let [news, settled] = sorted(&mut place(), &[6], came);
        assert_eq!((news, settled), (vec![(1, 1), (6, 1)], vec![]));
    }

    #[test]
    fn of_what_came_twice_the_later_counts() {
        let came = vec![entry(11, 1, 101), entry(11, 2, 101), entry(12, 1, 102)];
        let again = vec![entry(12, 1, 102), entry(11, 2, 101)];
        let mut place = place();
        let [news, settled] = sorted(&mut place, &[], came.into_iter().chain(again).collect());
        assert_eq!((news, settled), (vec![(11, 2), (12, 1)], vec![]));
        assert_eq!(place.received, 3);
    }
}
