//! Entries as another program writes them: fields of the wire format as the headers and the value of a
//! record.

use bytes::Bytes;
use mas_transport_core::codec::fields;
use mas_transport_core::{Position, Topic};

type Fields = Vec<(Bytes, Bytes)>;

const DATA: &[u8] = b"data";
/// The key of a record, as it stands in quarantine.
const KEY: &[u8] = b"key";
/// A field of a trial: the record has this key. Records without it have none.
const WITH_KEY: &[u8] = b"\0record key";
/// A field of a trial: the record has a header of this name, and no value to it.
const WITHOUT_VALUE: &[u8] = b"\0header without a value";
/// With more headers the client does not tell of any.
const MOST_HEADERS: usize = 100_000;
/// Behind so many headers whose name is no text, no header is read.
const MOST_UNREADABLE: usize = 16;

/// A record.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Option<Bytes>,
    pub(super) headers: Vec<(Bytes, Option<Bytes>)>,
    pub(super) value: Option<Bytes>,
}

impl Entry {
    /// These fields: the first `data` is the value, without which there is none; the others are
    /// headers, in their order.
    pub(super) fn new(fields: Fields) -> Self {
        let mut entry = Self::default();
        for (name, value) in fields {
            if name == DATA && entry.value.is_none() {
                entry.value = Some(value);
            } else if name == WITH_KEY {
                entry.key = Some(value);
            } else if name == WITHOUT_VALUE {
                entry.headers.push((value, None));
            } else {
                entry.headers.push((name, Some(value)));
            }
        }
        entry
    }

    /// What the client lets its users see: names end at a NUL, and those that are no text are not to
    /// be had. `data` comes last, and what has no value is empty. And how many headers are hidden.
    fn seen(&self) -> (Fields, usize) {
        let (mut seen, mut hidden) = (Vec::new(), 0);
        if self.headers.len() <= MOST_HEADERS {
            for (name, value) in &self.headers {
                let end = name.iter().position(|b| *b == 0);
                let name = name.slice(..end.unwrap_or(name.len()));
                if hidden == MOST_UNREADABLE {
                    break;
                }
                match std::str::from_utf8(&name) {
                    Ok(_) => seen.push((name, value.clone().unwrap_or_default())),
                    Err(_) => hidden += 1,
                }
            }
        }
        let value = self.value.clone().unwrap_or_default();
        seen.push((Bytes::from_static(DATA), value));
        (seen, hidden)
    }

    /// What stands in quarantine when it is no message.
    pub(super) fn quarantined(&self) -> Fields {
        let key = self.key.clone();
        let key = key.map(|key| (Bytes::from_static(KEY), key));
        key.into_iter().chain(self.seen().0).collect()
    }

    /// Whether it is read as a message.
    pub(super) fn is_read(&self, topic: &Topic) -> bool {
        let (seen, hidden) = self.seen();
        // One that cannot be seen could be any.
        hidden == 0 && fields::decode(topic, Position::default(), seen).is_ok()
    }
}

/// Records that are no messages, of kinds that only this backend has.
pub(super) fn garbage() -> Vec<(&'static str, Fields)> {
    let event: [(&[u8], &[u8]); 5] = [
        (b"ce_specversion", b"1.0"),
        (b"ce_id", b"1"),
        (b"ce_source", b"s"),
        (b"ce_type", b"t"),
        (DATA, b"d"),
    ];
    let without = |names: &[&[u8]], more: &[(&'static [u8], &'static [u8])]| -> Fields {
        let rest = event.iter().filter(|(name, _)| !names.contains(name));
        let all = rest.chain(more);
        all.map(|(n, v)| (Bytes::from_static(n), Bytes::from_static(v)))
            .collect()
    };
    let with = |more: &[(&'static [u8], &'static [u8])]| without(&[], more);
    let mut many = vec![(Bytes::from_static(b"\xff"), Bytes::new()); MOST_HEADERS];
    many.push((Bytes::from_static(DATA), Bytes::new()));
    vec![
        ("as many headers as can be, all of them hidden", many),
        (
            "an event with a header whose name is not UTF-8",
            with(&[(b"\xff\xfe", b"v")]),
        ),
        (
            "such a header without a value",
            with(&[(WITHOUT_VALUE, b"\xff\xfe")]),
        ),
        (
            "half a character and nothing else",
            without(&[DATA], &[(b"\xc3", b"")]),
        ),
        (
            "an event whose id has no value",
            without(&[b"ce_id"], &[(WITHOUT_VALUE, b"ce_id")]),
        ),
        (
            "an event with two ids, one of them without a value",
            with(&[(WITHOUT_VALUE, b"ce_id")]),
        ),
        (
            "an event with two ids, one of them behind a NUL",
            with(&[(b"ce_id\0x", b"2")]),
        ),
        (
            "an event without an id and without a value",
            without(&[b"ce_id", DATA], &[]),
        ),
        (
            "an event without an id, under a key that is not UTF-8",
            without(&[b"ce_id"], &[(WITH_KEY, b"\xff\0\xfe")]),
        ),
        (
            "an event without an id, under an empty key",
            without(&[b"ce_id"], &[(WITH_KEY, b"")]),
        ),
        (
            "a header that is called data",
            without(&[], &[(DATA, b"more")]),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&'static [u8], &'static [u8])]) -> Fields {
        let all = list.iter();
        all.map(|(n, v)| (Bytes::from_static(n), Bytes::from_static(v)))
            .collect()
    }

    #[test]
    fn fields_become_a_record() {
        let entry = Entry::new(fields(&[
            (b"a", b"1"),
            (DATA, b"x"),
            (WITHOUT_VALUE, b"b"),
            (DATA, b"y"),
            (WITH_KEY, b"k"),
        ]));
        let headers: [(&[u8], Option<&[u8]>); 3] =
            [(b"a", Some(b"1")), (b"b", None), (DATA, Some(b"y"))];
        let headers = headers.map(|(n, v)| (Bytes::from(n), v.map(Bytes::from)));
        assert_eq!(entry.headers, headers);
        assert_eq!(entry.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(entry.value.as_deref(), Some(&b"x"[..]));
        let kept = fields(&[
            (KEY, b"k"),
            (b"a", b"1"),
            (b"b", b""),
            (DATA, b"y"),
            (DATA, b"x"),
        ]);
        assert_eq!(entry.quarantined(), kept);
        assert_eq!(Entry::new(fields(&[(b"a", b"1")])).value, None);
    }

    #[test]
    fn garbage_is_not_read_and_odd_records_are() {
        let topic = Topic::new("t").unwrap();
        for (what, fields) in garbage() {
            assert!(!Entry::new(fields).is_read(&topic), "{what}");
        }
        for odd in [
            fields(&[]),
            fields(&[(b"x", b"\xff"), (b"x", b"")]),
            fields(&[(WITHOUT_VALUE, b"x"), (WITH_KEY, b"\xff")]),
            fields(&[(b"a\0\xff", b"v")]),
        ] {
            assert!(Entry::new(odd.clone()).is_read(&topic), "{odd:?}");
        }
        let many = vec![(Bytes::from_static(b"\xff"), Bytes::new()); MOST_HEADERS + 1];
        assert!(Entry::new(many).is_read(&topic));
    }
}
