//! What a message of the run carries: who sent it, its number, its scheduled time, and a filler
//! whose every byte is checked on arrival.

use std::time::Duration;

/// The smallest payload, in bytes.
pub(crate) const MIN_PAYLOAD: usize = 20;

/// The head of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The agent that sent it.
    pub(crate) sender: u32,
    /// Its number between this sender and the recipient.
    pub(crate) seq: u64,
    /// When it was to be sent, from the start of the run.
    pub(crate) at: Duration,
}

impl Stamp {
    /// A payload of `len` bytes, at least [`MIN_PAYLOAD`].
    pub(crate) fn write(&self, len: usize) -> Vec<u8> {
        let mut payload = Vec::with_capacity(len.max(MIN_PAYLOAD));
        payload.extend_from_slice(&self.sender.to_le_bytes());
        payload.extend_from_slice(&self.seq.to_le_bytes());
        payload.extend_from_slice(&self.nanos().to_le_bytes());
        let filler = self.filler();
        while payload.len() < len {
            let rest = (len - payload.len()).min(filler.len());
            payload.extend_from_slice(&filler[..rest]);
        }
        payload
    }

    /// Reads a payload that should have `len` bytes; `None` when any byte of it is wrong.
    pub(crate) fn read(payload: &[u8], len: usize) -> Option<Self> {
        if payload.len() != len {
            return None;
        }
        let (sender, rest) = payload.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (nanos, rest) = rest.split_first_chunk()?;
        let stamp = Self {
            sender: u32::from_le_bytes(*sender),
            seq: u64::from_le_bytes(*seq),
            at: Duration::from_nanos(u64::from_le_bytes(*nanos)),
        };
        let filler = stamp.filler();
        rest.chunks(filler.len())
            .all(|chunk| chunk == &filler[..chunk.len()])
            .then_some(stamp)
    }

    /// Differs from message to message, so that mixed-up payloads are noticed.
    fn filler(&self) -> [u8; 8] {
        let mixed = (self.seq ^ u64::from(self.sender) << 40)
            .wrapping_add(self.nanos().wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (mixed ^ mixed >> 29)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
            .to_le_bytes()
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.at.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        sender: 7,
        seq: 123_456,
        at: Duration::from_micros(1_234_567),
    };

    #[test]
    fn a_payload_has_the_length_asked_for_and_reads_back() {
        for len in [MIN_PAYLOAD, 21, 28, 256, 4_099] {
            let payload = STAMP.write(len);
            assert_eq!(payload.len(), len);
            assert_eq!(Stamp::read(&payload, len), Some(STAMP));
        }
    }

    #[test]
    fn a_changed_or_cut_payload_is_noticed() {
        let payload = STAMP.write(256);
        assert_eq!(Stamp::read(&payload[..255], 256), None);
        assert_eq!(Stamp::read(&[], 256), None);
        for at in [0, 4, 12, 20, 100, 255] {
            let mut changed = payload.clone();
            changed[at] ^= 1;
            assert_eq!(Stamp::read(&changed, 256), None, "byte {at}");
        }
    }
}
