//! An entry that is not a message, as bytes: the payload of its quarantine message.
//!
//! One byte for the version of this form (1), then for each field in order: the length of its name
//! and the name, the length of its value and the value. Lengths are 8 bytes, big-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The content type of this form.
pub const CONTENT_TYPE: &str = "application/x-mas-raw-entry";

const VERSION: u8 = 1;
const LENGTH: usize = size_of::<u64>();

/// Writes the fields of an entry as one run of bytes.
pub fn encode(fields: &[(Bytes, Bytes)]) -> Bytes {
    let size = |(name, value): &(Bytes, Bytes)| 2 * LENGTH + name.len() + value.len();
    let mut raw = BytesMut::with_capacity(1 + fields.iter().map(size).sum::<usize>());
    raw.put_u8(VERSION);
    for part in fields.iter().flat_map(|(name, value)| [name, value]) {
        raw.put_u64(part.len() as u64);
        raw.put_slice(part);
    }
    raw.freeze()
}

/// Reads them back, without copying; `None` when `raw` is not of this form.
pub fn decode(raw: &Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    let mut rest = raw.clone();
    if rest.try_get_u8().ok()? != VERSION {
        return None;
    }
    let mut fields = Vec::new();
    while rest.has_remaining() {
        fields.push((part(&mut rest)?, part(&mut rest)?));
    }
    Some(fields)
}

fn part(rest: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(rest.try_get_u64().ok()?).ok()?;
    (length <= rest.len()).then(|| rest.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_pinned() {
        let fields = [(Bytes::from("n"), Bytes::from(&b"\xff\0"[..]))];
        let raw = encode(&fields);
        assert_eq!(
            raw.as_ref(),
            b"\x01\0\0\0\0\0\0\0\x01n\0\0\0\0\0\0\0\x02\xff\0"
        );
        assert_eq!(decode(&raw).unwrap(), fields);
        assert_eq!(decode(&encode(&[])).unwrap(), []);
    }

    #[test]
    fn what_is_cut_short_or_of_another_version_is_refused() {
        let raw = encode(&[(Bytes::from("name"), Bytes::from("value"))]);
        for end in 0..raw.len() {
            // The version alone is an entry without fields.
            assert_eq!(decode(&raw.slice(..end)).is_some(), end == 1, "{end}");
        }
        assert!(decode(&Bytes::from(&b"\x02"[..])).is_none());
        assert!(decode(&Bytes::from([&[1][..], &[0xff; 16]].concat())).is_none());
    }
}
