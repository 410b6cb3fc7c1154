//! The messages of one topic: a log that is appended to, and an index of it.
//!
//! A record is the number of a message, the length of its entry (both 8 bytes, big-endian), and the
//! entry as [`raw`] writes it. A length of all ones says that the message is gone.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BufMut as _, Bytes};
use mas_transport_core::codec::raw;

/// Names and values, as the codec has them.
pub(crate) type Fields = Vec<(Bytes, Bytes)>;

const HEAD: usize = 16;
const GONE: u64 = u64::MAX;
/// A log is written anew when more than half of it, and at least this, is of no use.
const GARBAGE: u64 = 1024 * 1024;

/// What the index knows of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    /// Where its entry stands in the log, and how long it is there.
    at: u64,
    length: usize,
    /// Its size, as the pumps count it; after a restart the length, which is a little more.
    pub(crate) bytes: usize,
    /// How many groups have not settled it.
    pub(crate) owed: usize,
}

#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    log: File,
    /// How long the log is, up to its last whole record.
    end: u64,
    pub(crate) kept: BTreeMap<u64, Kept>,
    pub(crate) bytes: usize,
    /// The number of the next message; never used twice while a group remembers it.
    pub(crate) next: u64,
}

impl Store {
    /// Reads the log in the directory of a topic. A record that a crash cut short was never
    /// confirmed, and goes.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let mut log = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("log"))?;
        let mut text = Vec::new();
        log.read_to_end(&mut text)?;
        let mut store = Self {
            dir: dir.to_owned(),
            log,
            end: 0,
            kept: BTreeMap::new(),
            bytes: 0,
            next: 1,
        };
        let mut rest = text.as_slice();
        while rest.remaining() >= HEAD {
            let (number, length) = (rest.get_u64(), rest.get_u64());
            let at = store.end + HEAD as u64;
            if length == GONE {
                store.forget(number);
                store.end = at;
            } else if let Some(length) = usize::try_from(length).ok().filter(|l| *l <= rest.len()) {
                rest.advance(length);
                store.end = at + length as u64;
                store.remember(number, at, length, length, 0);
            } else {
                break;
            }
            store.next = store.next.max(number + 1);
        }
        store.log.set_len(store.end)?;
        Ok(store)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn remember(&mut self, number: u64, at: u64, length: usize, bytes: usize, owed: usize) {
        let kept = Kept {
            at,
            length,
            bytes,
            owed,
        };
        self.kept.insert(number, kept);
        self.bytes += bytes;
    }

    fn forget(&mut self, number: u64) {
        if let Some(kept) = self.kept.remove(&number) {
            self.bytes -= kept.bytes;
        }
    }

    /// Appends to the log, wholly or not at all.
    fn write(&mut self, record: &[u8]) -> io::Result<()> {
        self.log.seek(SeekFrom::Start(self.end))?;
        if let Err(e) = self.log.write_all(record) {
            self.log.set_len(self.end)?;
            return Err(e);
        }
        self.end += record.len() as u64;
        Ok(())
    }

    /// Appends a message that so many groups have to settle.
    pub(crate) fn append(&mut self, fields: &Fields, bytes: usize, owed: usize) -> io::Result<u64> {
        let (number, entry) = (self.next, raw::encode(fields));
        let mut record = Vec::with_capacity(HEAD + entry.len());
        record.put_u64(number);
        record.put_u64(entry.len() as u64);
        record.put_slice(&entry);
        let at = self.end + HEAD as u64;
        self.write(&record)?;
        self.next += 1;
        self.remember(number, at, entry.len(), bytes, owed);
        Ok(number)
    }

    /// The message as it was written. What is none of ours comes as one nameless field.
    pub(crate) fn read(&mut self, number: u64) -> io::Result<Fields> {
        let kept = self.kept.get(&number).ok_or(io::ErrorKind::NotFound)?;
        let mut entry = vec![0; kept.length];
        self.log.seek(SeekFrom::Start(kept.at))?;
        self.log.read_exact(&mut entry)?;
        let entry = Bytes::from(entry);
        Ok(raw::decode(&entry).unwrap_or_else(|| vec![(Bytes::new(), entry)]))
    }

    /// One group has settled these messages; nobody needs those that all have.
    pub(crate) fn settle(&mut self, numbers: &[u64]) {
        let mut gone = Vec::new();
        for number in numbers {
            if let Some(kept) = self.kept.get_mut(number) {
                kept.owed = kept.owed.saturating_sub(1);
                if kept.owed == 0 {
                    gone.push(*number);
                }
            }
        }
        self.remove(&gone);
    }

    /// Removes the oldest messages, settled or not; which ones.
    pub(crate) fn trim(&mut self, count: u64) -> Vec<u64> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let oldest: Vec<u64> = self.kept.keys().copied().take(count).collect();
        self.remove(&oldest);
        oldest
    }

    /// What cannot be written here comes again after a restart, to groups that are made later: no
    /// loss, so nothing to fail for.
    fn remove(&mut self, numbers: &[u64]) {
        let mut records = Vec::with_capacity(HEAD * numbers.len());
        for number in numbers {
            self.forget(*number);
            records.put_u64(*number);
            records.put_u64(GONE);
        }
        let _ = self.write(&records).and_then(|()| self.compact());
    }

    fn compact(&mut self) -> io::Result<()> {
        let used: usize = self.kept.values().map(|k| k.length + HEAD).sum();
        let garbage = self.end - used as u64;
        if garbage < GARBAGE || garbage < used as u64 {
            return Ok(());
        }
        let unfinished = self.dir.join("unfinished");
        let mut records = Vec::with_capacity(used + HEAD);
        for (number, kept) in &mut self.kept {
            let mut entry = vec![0; kept.length];
            self.log.seek(SeekFrom::Start(kept.at))?;
            self.log.read_exact(&mut entry)?;
            records.put_u64(*number);
            records.put_u64(entry.len() as u64);
            records.put_slice(&entry);
        }
        // The numbers go on where they were.
        records.put_u64(self.next - 1);
        records.put_u64(GONE);
        fs::write(&unfinished, &records)?;
        let log = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&unfinished)?;
        fs::rename(&unfinished, self.dir.join("log"))?;
        let mut at = 0;
        for kept in self.kept.values_mut() {
            kept.at = at + HEAD as u64;
            at = kept.at + kept.length as u64;
        }
        (self.log, self.end) = (log, records.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        vec![("data".into(), Bytes::from(text.to_owned()))]
    }

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_record_that_was_cut_short_is_gone_and_the_others_are_there() {
        let dir = directory("store-cut");
        let mut store = Store::open(&dir).unwrap();
        for text in ["one", "two", "three"] {
            store.append(&fields(text), 3, 1).unwrap();
        }
        store.settle(&[1]);
        store.append(&fields("four"), 4, 1).unwrap();
        store.log.set_len(store.end - 1).unwrap();
        let mut store = Store::open(&dir).unwrap();
        assert_eq!(store.kept.keys().copied().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(store.append(&fields("again"), 5, 1).unwrap(), 4);
        assert_eq!(store.read(4).unwrap(), fields("again"));
        assert_eq!(store.read(3).unwrap(), fields("three"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_log_does_not_grow_for_ever_and_loses_nothing_by_it() {
        let dir = directory("store-compact");
        let mut store = Store::open(&dir).unwrap();
        let kept = store.append(&fields("kept"), 4, 1).unwrap();
        let long = "x".repeat(100_000);
        for _ in 0..50 {
            let number = store.append(&fields(&long), long.len(), 1).unwrap();
            store.settle(&[number]);
        }
        assert!(fs::metadata(dir.join("log")).unwrap().len() < 3 * GARBAGE);
        let mut store = Store::open(&dir).unwrap();
        assert_eq!(store.read(kept).unwrap(), fields("kept"));
        assert_eq!((store.kept.len(), store.next), (1, 52));
        fs::remove_dir_all(dir).unwrap();
    }
}
