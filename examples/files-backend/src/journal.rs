//! The file of a group: a line for each thing that happened to it, the last one about a message
//! counts. Times are milliseconds since 1970, because they outlive the process.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mas_transport_core::clock::now_utc;
use tokio::time::Instant;

/// A wait beyond this is as good as for ever.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    utc: SystemTime,
}

impl Now {
    pub(crate) fn read() -> Self {
        Self {
            instant: Instant::now(),
            utc: now_utc(),
        }
    }

    /// Rounded up: what is read back is never early.
    fn to_ms(self, at: Instant) -> u128 {
        let utc = self.utc + at.saturating_duration_since(self.instant);
        let since = utc.duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap_or_default().as_micros().div_ceil(1000)
    }

    fn at_ms(self, ms: u64) -> Instant {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        self.after(at.duration_since(self.utc).unwrap_or_default())
    }

    pub(crate) fn after(self, delay: Duration) -> Instant {
        self.instant + delay.min(FAR)
    }
}

/// What happened to a message before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
    /// Attempts that count.
    pub(crate) made: u32,
    /// Its last holder died or let its lease lapse.
    pub(crate) reclaimed: bool,
}

/// A message in the hands of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) generation: u32,
    pub(crate) member: u64,
    pub(crate) past: Past,
    /// Whether the attempt counts if the member dies now.
    pub(crate) counted: bool,
    pub(crate) deadline: Instant,
}

/// Where a message is that the group has fetched once and not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Held(Lease),
    /// It comes back, at this time.
    Back(Past, Instant),
}

/// A line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Lease(Duration),
    /// The next message that nobody has fetched, and the generation of the next lease.
    Cursor(u64, u32),
    /// How many lost messages have not been told of.
    Lost(u64),
    At(u64, Place),
    Settled(u64),
}

impl Line {
    fn write(self, now: Now, out: &mut String) {
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Lease(lease) => writeln!(out, "lease {}", lease.as_millis()),
            Self::Cursor(next, generation) => writeln!(out, "cursor {next} {generation}"),
            Self::Lost(lost) => writeln!(out, "lost {lost}"),
            Self::At(number, Place::Held(l)) => writeln!(
                out,
                "held {number} {} {} {} {} {} {}",
                l.generation,
                l.member,
                l.past.made,
                u8::from(l.past.reclaimed),
                u8::from(l.counted),
                now.to_ms(l.deadline),
            ),
            Self::At(number, Place::Back(past, due)) => writeln!(
                out,
                "back {number} {} {} {}",
                past.made,
                u8::from(past.reclaimed),
                now.to_ms(due),
            ),
            Self::Settled(number) => writeln!(out, "settled {number}"),
        };
    }

    fn parse(now: Now, line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let numbers: Option<Vec<u64>> = words.map(|w| w.parse().ok()).collect();
        let small = |n: u64| u32::try_from(n).ok();
        Some(match (kind, numbers?.as_slice()) {
            ("lease", &[ms]) => Self::Lease(Duration::from_millis(ms)),
            ("cursor", &[next, generation]) => Self::Cursor(next, small(generation)?),
            ("lost", &[lost]) => Self::Lost(lost),
            ("held", &[number, generation, member, made, reclaimed, counted, ms]) => {
                let lease = Lease {
                    generation: small(generation)?,
                    member,
                    past: Past {
                        made: small(made)?,
                        reclaimed: reclaimed == 1,
                    },
                    counted: counted == 1,
                    deadline: now.at_ms(ms),
                };
                Self::At(number, Place::Held(lease))
            }
            ("back", &[number, made, reclaimed, ms]) => {
                let past = Past {
                    made: small(made)?,
                    reclaimed: reclaimed == 1,
                };
                Self::At(number, Place::Back(past, now.at_ms(ms)))
            }
            ("settled", &[number]) => Self::Settled(number),
            _ => return None,
        })
    }
}

#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// How long the file is, up to the last line that was written wholly.
    length: u64,
    lines: usize,
    pending: String,
}

impl Journal {
    /// Opens the file, and says what it holds. A line that a crash cut short did not happen: its
    /// effect was never confirmed.
    pub(crate) fn open(path: &Path, now: Now) -> io::Result<(Self, Vec<Line>)> {
        let text = fs::read_to_string(path).or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(e),
        })?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines: Vec<Line> = whole.lines().filter_map(|l| Line::parse(now, l)).collect();
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let length = whole.len() as u64 + u64::from(!whole.is_empty());
        file.set_len(length)?;
        let journal = Self {
            path: path.to_owned(),
            file,
            length,
            lines: lines.len(),
            pending: String::new(),
        };
        Ok((journal, lines))
    }

    /// Notes a line, for the next [`Journal::flush`].
    pub(crate) fn note(&mut self, now: Now, line: Line) {
        line.write(now, &mut self.pending);
        self.lines += 1;
    }

    /// Writes what was noted. What could not be written is written with the next lines.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if let Err(e) = self.file.write_all(self.pending.as_bytes()) {
            self.file.set_len(self.length)?;
            return Err(e);
        }
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Whether a file with so many lines of state could be that much shorter.
    pub(crate) fn is_long(&self, state: usize) -> bool {
        self.lines > 1000 + 4 * state
    }

    /// Replaces the file by these lines.
    pub(crate) fn rewrite(&mut self, now: Now, state: &[Line]) -> io::Result<()> {
        let mut text = String::new();
        for line in state {
            line.write(now, &mut text);
        }
        let unfinished = self.path.with_file_name("unfinished");
        fs::write(&unfinished, &text)?;
        fs::rename(&unfinished, &self.path)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.length = text.len() as u64;
        self.lines = state.len();
        self.pending.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_written_is_read_and_a_cut_line_is_not() {
        let path = std::env::temp_dir().join(format!("journal-{}", std::process::id()));
        let now = Now::read();
        let past = Past {
            made: 2,
            reclaimed: true,
        };
        let lease = Lease {
            generation: 7,
            member: 3,
            past,
            counted: false,
            deadline: now.at_ms(u64::try_from(now.to_ms(now.instant)).unwrap() + 500),
        };
        let lines = [
            Line::Lease(Duration::from_secs(30)),
            Line::Cursor(5, 8),
            Line::Lost(1),
            Line::At(4, Place::Held(lease)),
            Line::At(3, Place::Back(past, lease.deadline)),
            Line::Settled(2),
        ];
        let (mut journal, before) = Journal::open(&path, now).unwrap();
        assert_eq!(before, []);
        for line in lines {
            journal.note(now, line);
        }
        journal.flush().unwrap();
        assert_eq!(Journal::open(&path, now).unwrap().1, lines);

        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 1]).unwrap();
        let (mut journal, read) = Journal::open(&path, now).unwrap();
        assert_eq!(read, lines[..5]);
        // What comes next stands on a line of its own.
        journal.note(now, Line::Settled(9));
        journal.flush().unwrap();
        let read = Journal::open(&path, now).unwrap().1;
        assert_eq!(read.last(), Some(&Line::Settled(9)));
        fs::remove_file(path).unwrap();
    }
}
