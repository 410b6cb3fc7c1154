//! Where payloads come from.

use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::PathBuf;
use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::output::tell;

/// Most lines, and most bytes of them, that are passed on together.
const CHUNK_LINES: usize = 256;
const CHUNK_BYTES: usize = 256 * 1024;
/// Most such chunks that wait: reading stops while the broker is slower than the input.
const CHUNKS: usize = 4;

/// Where payloads come from.
#[derive(Debug)]
pub(super) enum Input {
    /// Arguments.
    Given(Vec<String>),
    /// Lines of the standard input.
    Lines,
    /// The whole of a file; of the standard input without a path.
    Whole(Option<PathBuf>),
}

/// One payload, and where it stands in the input; the first is 1.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) payload: Payload,
}

/// A payload as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Payload {
    Bytes(Bytes),
    /// It has more bytes than can be published; they are not kept.
    TooLong,
}

/// Entries as they are read; an error ends them.
pub(super) type Entries = mpsc::Receiver<io::Result<Vec<Entry>>>;

impl Input {
    /// What the arguments say.
    pub(super) fn choose(payload: Vec<String>, file: Option<PathBuf>) -> Result<Self, Failure> {
        let dash = |text: &String| text == "-";
        match file {
            Some(path) if path.as_os_str() == "-" => Ok(Self::Whole(None)),
            Some(path) => Ok(Self::Whole(Some(path))),
            None if payload.is_empty() => Ok(Self::Lines),
            None if payload.iter().any(dash) && payload.len() == 1 => Ok(Self::Lines),
            None if payload.iter().any(dash) => Err(Failure::new(
                "the payload - stands for the lines of the standard input, and stands alone",
            )),
            None => Ok(Self::Given(payload)),
        }
    }

    /// Whether there may be more than one message.
    pub(super) fn is_many(&self) -> bool {
        match self {
            Self::Given(payloads) => payloads.len() != 1,
            Self::Lines => true,
            Self::Whole(_) => false,
        }
    }

    /// What an entry is called.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Self::Given(_) => "payload",
            Self::Lines => "line",
            Self::Whole(_) => "file",
        }
    }

    /// Begins to read, on a thread of its own: a read cannot be called off, and must not keep the
    /// process from ending. Payloads over `limit` bytes are cut off.
    pub(super) fn read(self, limit: usize) -> Entries {
        let (tell, entries) = mpsc::channel(CHUNKS);
        thread::spawn(move || {
            let result = match self {
                Self::Given(payloads) => given(payloads, &tell),
                Self::Lines => {
                    let stdin = io::stdin();
                    if stdin.is_terminal() {
                        tell!("mas pub: each line is a message; Ctrl-D ends");
                    }
                    // Not the locked one: its buffer is smaller.
                    lines(
                        BufReader::with_capacity(CHUNK_BYTES, stdin.lock()),
                        limit,
                        &tell,
                    )
                }
                Self::Whole(path) => whole(path, limit, &tell),
            };
            if let Err(error) = result {
                // A receiver that is gone has ended by itself.
                let _ = tell.blocking_send(Err(error));
            }
        });
        entries
    }
}

type Tell = mpsc::Sender<io::Result<Vec<Entry>>>;

fn given(payloads: Vec<String>, tell: &Tell) -> io::Result<()> {
    let entry = |(payload, number): (String, u64)| Entry {
        number,
        payload: Payload::Bytes(payload.into()),
    };
    let entries = payloads.into_iter().zip(1..).map(entry).collect();
    let _ = tell.blocking_send(Ok(entries));
    Ok(())
}

fn whole(path: Option<PathBuf>, limit: usize, tell: &Tell) -> io::Result<()> {
    let most = limit as u64 + 1;
    let mut bytes = Vec::new();
    match path {
        None => io::stdin().lock().take(most).read_to_end(&mut bytes)?,
        Some(path) => std::fs::File::open(&path)
            .and_then(|file| file.take(most).read_to_end(&mut bytes))
            .map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?,
    };
    let payload = match bytes.len() > limit {
        true => Payload::TooLong,
        false => Payload::Bytes(bytes.into()),
    };
    let _ = tell.blocking_send(Ok(vec![Entry { number: 1, payload }]));
    Ok(())
}

/// Passes lines on, as many together as are at hand, and at once when the input pauses.
fn lines<R: Read>(mut input: BufReader<R>, limit: usize, tell: &Tell) -> io::Result<()> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    for number in 1.. {
        let payload = line(&mut input, limit)?;
        let end = payload.is_none();
        if let Some(payload) = payload {
            if let Payload::Bytes(line) = &payload {
                bytes += line.len();
            }
            chunk.push(Entry { number, payload });
        }
        let full = chunk.len() >= CHUNK_LINES || bytes >= CHUNK_BYTES;
        let pause = full || end || !input.buffer().contains(&b'\n');
        if pause && !chunk.is_empty() {
            bytes = 0;
            if tell.blocking_send(Ok(std::mem::take(&mut chunk))).is_err() {
                return Ok(());
            }
        }
        if end {
            return Ok(());
        }
    }
    Ok(())
}

/// The next line without its line feed, which the last one may lack; `None` at the end.
fn line(input: &mut impl BufRead, limit: usize) -> io::Result<Option<Payload>> {
    let mut line = Vec::new();
    let mut length = 0;
    let mut begun = false;
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() && !begun {
            return Ok(None);
        }
        begun = true;
        let feed = buffer.iter().position(|b| *b == b'\n');
        let part = &buffer[..feed.unwrap_or(buffer.len())];
        length += part.len();
        if length <= limit {
            line.extend_from_slice(part);
        }
        let end = feed.is_some() || buffer.is_empty();
        let used = part.len() + usize::from(feed.is_some());
        input.consume(used);
        if end {
            return Ok(Some(match length > limit {
                true => Payload::TooLong,
                false => Payload::Bytes(line.into()),
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], capacity: usize, limit: usize) -> Vec<Payload> {
        let mut input = BufReader::with_capacity(capacity, text);
        std::iter::from_fn(|| line(&mut input, limit).unwrap()).collect()
    }

    fn bytes(text: &'static str) -> Payload {
        Payload::Bytes(Bytes::from(text))
    }

    #[test]
    fn lines_are_told_apart_whatever_the_buffer() {
        for capacity in [1, 2, 3, 64] {
            let lines = read(b"a\n\nbcd\r\ne", capacity, 100);
            assert_eq!(lines, [bytes("a"), bytes(""), bytes("bcd\r"), bytes("e")]);
            assert_eq!(read(b"", capacity, 100), []);
            assert_eq!(read(b"\n", capacity, 100), [bytes("")]);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_not_kept_and_the_next_one_is() {
        for capacity in [1, 3, 64] {
            let lines = read(b"12345\n1234\n123456789", capacity, 4);
            assert_eq!(lines, [Payload::TooLong, bytes("1234"), Payload::TooLong]);
        }
    }

    #[test]
    fn lines_are_passed_on_when_the_input_pauses() {
        let (tell, mut entries) = mpsc::channel(10);
        let first: &[u8] = b"a\nb\n";
        let input = BufReader::with_capacity(64, first.chain(&b"c"[..]));
        lines(input, 100, &tell).unwrap();
        drop(tell);
        let chunks: Vec<Vec<u64>> = std::iter::from_fn(|| entries.blocking_recv())
            .map(|chunk| chunk.unwrap().iter().map(|entry| entry.number).collect())
            .collect();
        assert_eq!(chunks, [vec![1, 2], vec![3]]);
    }
}
