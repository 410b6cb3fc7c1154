//! What stands in the metadata of a committed offset. Kafka keeps one position per group and
//! partition; what is settled above it, and what happened to the entries that are not, goes into
//! the text that it keeps beside the position.
//!
//! # Format
//!
//! `mas1.` and then bytes in Base64 (URL-safe alphabet, no padding). A *number* is an unsigned
//! LEB128: seven bits a byte, the lowest first, the high bit set on all but the last byte, below
//! 2^64. Offsets are relative to the committed position, which is itself never settled. In this
//! order, with nothing after it:
//!
//! 1. number: the lease of the group in milliseconds.
//! 2. number `reach`: the entries below this offset may have been fetched by the owner of the
//!    partition. 0: it has given them up and holds none.
//! 3. number `B`, then `B` bytes, a bitmap: bit `k` (0 is the lowest) of byte `i` is set if the
//!    offset `1 + 8 * i + k` is settled.
//! 4. number `R`, then `R` times two numbers, for the offsets from `1 + 8 * B` on: how many are
//!    open, then how many after them are settled (at least 1). All others are open. A writer uses
//!    `B = 0`, or a bitmap for the first 16,384 offsets, whichever is shorter.
//! 5. number `N`, how many entries have a note. If it is not 0: number `base`, the earliest due
//!    time among them (0 if none has one), then for each of them, by offset:
//!    * number: the offset; from the second on, how many offsets lie between it and the one before;
//!    * number: 4 times the attempts made (below 2^32), plus 2 if there is a due time, plus 1 if
//!      its last holder died or let its lease lapse;
//!    * number, if there is a due time: its distance from `base`. Due times are milliseconds since
//!      1970, and before them the entry is not handed out.
//!
//! Metadata with another beginning is that of another program, and says nothing; `mas` with another
//! number is a later version of this one, and its position must not be used without it.

use std::ops::Range;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// The longest text. The broker's own limit (`offset.metadata.max.bytes`) is 4,096 by default.
pub(crate) const LIMIT: usize = 4_000;

/// The most offsets between the position and the next one to fetch: whatever is settled among
/// them, and [`SURE`] notes, fit.
pub(crate) const SPAN: u64 = 16_384;

/// So many notes always fit. Of ordinary ones, two or three times as many do.
pub(crate) const SURE: usize = 64;

/// Due times are cut to this (the year 19809), so that a note has a bounded length.
pub(crate) const LATEST: u64 = (1 << 49) - 1;

/// What the notes may take (section 5): the rest is for the longest form of all else, so that
/// what is settled later never drives a note out.
pub(crate) const NOTES_ROOM: usize = ROOM - 2 * NUMBER - (2 + BITMAP) - (1 + 2 + NUMBER);

const PREFIX: &str = "mas1.";

/// How many bytes fit into the text.
const ROOM: usize = (LIMIT - PREFIX.len()) * 3 / 4;

/// The longest number.
const NUMBER: usize = 10;

/// The longest bitmap.
const BITMAP: usize = 2_048;
const _: () = assert!(SPAN == 8 * BITMAP as u64);

/// What happened to an entry before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
    /// Attempts that count.
    pub(crate) made: u32,
    /// The last holder died or let its lease lapse.
    pub(crate) reclaimed: bool,
    /// Unix milliseconds before which it must not be handed out.
    pub(crate) due: Option<u64>,
}

/// The state of a group in one partition, beside the committed position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Of the group, in whole milliseconds.
    pub(crate) lease: Duration,
    /// The offsets from the position to this (exclusive) may have been fetched by the owner; 0 if
    /// it gave up cleanly.
    pub(crate) reach: u64,
    /// Relative to the position; sorted, disjoint, not touching, none with 0 in it.
    pub(crate) settled: Vec<Range<u64>>,
    /// Relative to the position; sorted, no offset twice.
    pub(crate) notes: Vec<(u64, Past)>,
}

impl Mark {
    /// The text, if it is not longer than [`LIMIT`].
    pub(crate) fn encode(&self) -> Option<String> {
        let settled = self.settled.iter().cloned();
        let notes = self.notes.iter().copied();
        let (text, left_out) = write(self.lease, self.reach, settled, notes);
        (left_out.is_none() && text.len() <= LIMIT).then_some(text)
    }

    /// Reads a text; none if it is not one of ours.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people.
    pub(crate) fn decode(text: &str) -> Result<Option<Self>, String> {
        let Some((version, text)) = version_of(text) else {
            return Ok(None);
        };
        if version != "1" {
            return Err(format!("unknown version {version:.20}"));
        }
        if PREFIX.len() + text.len() > LIMIT {
            return Err("longer than it may be".to_owned());
        }
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|error| format!("not Base64: {error}"))?;
        let mut reader = Reader(&bytes);
        let mark = Self {
            lease: Duration::from_millis(reader.number()?),
            reach: reader.number()?,
            settled: reader.settled()?,
            notes: reader.notes()?,
        };
        match reader.0 {
            [] => Ok(Some(mark)),
            rest => Err(format!("{} bytes too many", rest.len())),
        }
    }
}

/// Of one of our texts, the version and the rest.
fn version_of(text: &str) -> Option<(&str, &str)> {
    let (version, rest) = text.strip_prefix("mas")?.split_once('.')?;
    let digits = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    digits.then_some((version, rest))
}

/// The text of a mark. What is settled far above the position and does not fit is left out: then
/// the second value is where that begins. It fits if all lies within [`SPAN`], or all but one run,
/// and the notes take no more than [`NOTES_ROOM`]; with longer notes the text may come out too long.
pub(crate) fn write(
    lease: Duration,
    reach: u64,
    settled: impl Iterator<Item = Range<u64>> + Clone,
    notes: impl Iterator<Item = (u64, Past)> + Clone,
) -> (String, Option<u64>) {
    let mut bytes = Vec::with_capacity(64);
    put(
        &mut bytes,
        u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
    );
    put(&mut bytes, reach);
    let used = bytes.len() + notes_len(notes.clone());
    let left_out = put_settled(&mut bytes, settled, ROOM.saturating_sub(used));
    put_notes(&mut bytes, notes);
    let mut text = String::with_capacity(PREFIX.len() + bytes.len().div_ceil(3) * 4);
    text.push_str(PREFIX);
    BASE64_URL_SAFE_NO_PAD.encode_string(&bytes, &mut text);
    (text, left_out)
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn len(number: u64) -> usize {
    (64 - (number | 1).leading_zeros()).div_ceil(7) as usize
}

/// Section 4, from an offset on.
struct Runs {
    room: usize,
    count: u64,
    bytes: Vec<u8>,
    /// Where the next run is counted from.
    at: u64,
    /// Where that begins which did not fit.
    left_out: Option<u64>,
}

impl Runs {
    fn new(at: u64, room: usize) -> Self {
        Self {
            room,
            count: 0,
            bytes: Vec::new(),
            at,
            left_out: None,
        }
    }

    /// Adds what of a run lies behind the others; false if it does not fit.
    fn add(&mut self, run: &Range<u64>) -> bool {
        let start = run.start.max(self.at);
        if self.left_out.is_some() || start >= run.end {
            return self.left_out.is_none();
        }
        let (open, settled) = (start - self.at, run.end - start);
        if len(self.count + 1) + self.bytes.len() + len(open) + len(settled) > self.room {
            self.left_out = Some(start);
            return false;
        }
        put(&mut self.bytes, open);
        put(&mut self.bytes, settled);
        self.count += 1;
        self.at = run.end;
        true
    }

    fn len(&self) -> usize {
        len(self.count) + self.bytes.len()
    }

    fn put(&self, out: &mut Vec<u8>) {
        put(out, self.count);
        out.extend_from_slice(&self.bytes);
    }
}

/// Sections 3 and 4 in their shorter form, and where that begins which did not fit.
fn put_settled(
    out: &mut Vec<u8>,
    settled: impl Iterator<Item = Range<u64>> + Clone,
    room: usize,
) -> Option<u64> {
    let mut plain = Runs::new(1, room.saturating_sub(1));
    let all = settled.clone().all(|run| plain.add(&run));
    let mut bitmap = Vec::new();
    // What lies beyond the bitmap, once it is complete.
    let mut rest: Option<Runs> = None;
    for run in settled {
        if run.start <= SPAN {
            set(&mut bitmap, run.start - 1..(run.end - 1).min(SPAN));
        }
        // A bitmap alone is too long: no need to finish it.
        if all && bitmap.len() > plain.len() {
            break;
        }
        if run.end - 1 > SPAN {
            let bytes = bitmap.len();
            let new = || Runs::new(1 + 8 * bytes as u64, room.saturating_sub(2 + bytes));
            if !rest.get_or_insert_with(new).add(&run) {
                break;
            }
        }
    }
    let rest = rest.unwrap_or_else(|| Runs::new(0, 0));
    if all && plain.len() < len(bitmap.len() as u64) + bitmap.len() + rest.len() {
        put(out, 0);
        plain.put(out);
        return None;
    }
    put(out, bitmap.len() as u64);
    out.extend_from_slice(&bitmap);
    rest.put(out);
    rest.left_out
}

/// Sets the bits of a range, which is not below the last one set.
fn set(bitmap: &mut Vec<u8>, mut bits: Range<u64>) {
    while bits.start < bits.end {
        let end = bits.end.min((bits.start / 8 + 1) * 8);
        let mask = ((1u16 << (end - bits.start)) - 1) << (bits.start % 8);
        bitmap.resize((bits.start / 8 + 1) as usize, 0);
        if let Some(byte) = bitmap.last_mut() {
            *byte |= mask as u8;
        }
        bits.start = end;
    }
}

/// How long section 5 is.
pub(crate) fn notes_len(notes: impl Iterator<Item = (u64, Past)> + Clone) -> usize {
    let (mut total, mut count) = (0, 0);
    let base = base_of(notes.clone());
    let mut from = 0;
    for (offset, past) in notes {
        total += len(offset - from) + len(head_of(past));
        total += past.due.map_or(0, |due| len(due - base));
        from = offset.saturating_add(1);
        count += 1;
    }
    let base = if count == 0 { 0 } else { len(base) };
    len(count) + base + total
}

fn put_notes(out: &mut Vec<u8>, notes: impl Iterator<Item = (u64, Past)> + Clone) {
    let base = base_of(notes.clone());
    let count = notes.clone().count();
    put(out, count as u64);
    if count > 0 {
        put(out, base);
    }
    let mut from = 0;
    for (offset, past) in notes {
        put(out, offset - from);
        put(out, head_of(past));
        if let Some(due) = past.due {
            put(out, due - base);
        }
        from = offset.saturating_add(1);
    }
}

fn base_of(notes: impl Iterator<Item = (u64, Past)>) -> u64 {
    notes.filter_map(|(_, past)| past.due).min().unwrap_or(0)
}

fn head_of(past: Past) -> u64 {
    u64::from(past.made) << 2 | u64::from(past.due.is_some()) << 1 | u64::from(past.reclaimed)
}

/// What is not yet read. No count in it is believed beyond the bytes that are there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let (taken, rest) = usize::try_from(count)
            .ok()
            .and_then(|count| self.0.split_at_checked(count))
            .ok_or("ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0;
        for place in 0..NUMBER {
            let (byte, rest) = self.0.split_first().ok_or("ends too early")?;
            self.0 = rest;
            let (bits, shift) = (u64::from(byte & 0x7f), 7 * place);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number is too large".to_owned())
    }

    /// How many of two numbers each follow.
    fn count(&mut self) -> Result<u64, String> {
        let count = self.number()?;
        if count > self.0.len() as u64 / 2 {
            return Err("ends too early".to_owned());
        }
        Ok(count)
    }

    fn settled(&mut self) -> Result<Vec<Range<u64>>, String> {
        let mut settled = Vec::new();
        let bytes = self.number()?;
        let bitmap = self.take(bytes)?;
        let mut at = 1;
        for byte in bitmap {
            for bit in 0..8 {
                if byte >> bit & 1 == 1 {
                    join(&mut settled, at + bit..at + bit + 1);
                }
            }
            at += 8;
        }
        for _ in 0..self.count()? {
            let start = sum(at, self.number()?)?;
            at = sum(start, self.number()?)?;
            if start == at {
                return Err("an empty run".to_owned());
            }
            join(&mut settled, start..at);
        }
        Ok(settled)
    }

    fn notes(&mut self) -> Result<Vec<(u64, Past)>, String> {
        let count = self.count()?;
        let mut notes = Vec::with_capacity(count as usize);
        if count == 0 {
            return Ok(notes);
        }
        let base = self.number()?;
        let mut from = Some(0);
        for _ in 0..count {
            let offset = sum(from.ok_or(TOO_LARGE)?, self.number()?)?;
            let head = self.number()?;
            let due = match head & 2 {
                0 => None,
                _ => Some(sum(base, self.number()?)?),
            };
            let past = Past {
                made: u32::try_from(head >> 2).map_err(|_| TOO_LARGE)?,
                reclaimed: head & 1 == 1,
                due,
            };
            notes.push((offset, past));
            from = offset.checked_add(1);
        }
        Ok(notes)
    }
}

const TOO_LARGE: &str = "a number is too large";

fn sum(a: u64, b: u64) -> Result<u64, String> {
    a.checked_add(b).ok_or_else(|| TOO_LARGE.to_owned())
}

/// Adds a run behind the others.
fn join(settled: &mut Vec<Range<u64>>, run: Range<u64>) {
    match settled.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => settled.push(run),
    }
}
