//! A program that speaks the protocol by itself: what a client library would refuse to write.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::entry::Entry;
use crate::harness::Failure;

/// A connection to a broker that asks nobody who they are.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    asked: i32,
}

impl Wire {
    pub(super) async fn connect(broker: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(broker).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, asked: 0 })
    }

    /// Writes one record, and returns the broker's error code: 0 is none.
    pub(super) async fn produce(
        &mut self,
        topic: &str,
        partition: i32,
        entry: &Entry,
    ) -> Result<i16, Failure> {
        self.asked += 1;
        let batch = batch(entry)?;
        // Produce (0) in version 3, from nobody in particular.
        let mut request = [0_i16.to_be_bytes(), 3_i16.to_be_bytes()].concat();
        request.extend(self.asked.to_be_bytes());
        request.extend((-1_i16).to_be_bytes());
        // Outside of transactions, confirmed by all replicas, within 10 s.
        request.extend((-1_i16).to_be_bytes());
        request.extend((-1_i16).to_be_bytes());
        request.extend(10_000_i32.to_be_bytes());
        // One topic, of it one partition.
        request.extend(1_i32.to_be_bytes());
        request.extend(i16::try_from(topic.len())?.to_be_bytes());
        request.extend(topic.as_bytes());
        request.extend(1_i32.to_be_bytes());
        request.extend(partition.to_be_bytes());
        request.extend(i32::try_from(batch.len())?.to_be_bytes());
        request.extend(batch);
        let length = i32::try_from(request.len())?.to_be_bytes();
        self.stream.write_all(&length).await?;
        self.stream.write_all(&request).await?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).await?;
        let mut answer = vec![0; u32::from_be_bytes(length).try_into()?];
        self.stream.read_exact(&mut answer).await?;
        // The request's number, one topic with its name, one partition with its number, the code.
        let at = 4 + 4 + 2 + topic.len() + 4 + 4;
        match (answer.get(..4), answer.get(at..at + 2)) {
            (Some(number), Some(code)) if number == self.asked.to_be_bytes() => {
                Ok(i16::from_be_bytes(code.try_into()?))
            }
            _ => Err(format!("the broker answered {:?}", answer.escape_ascii()).into()),
        }
    }
}

/// A batch of one record, in version 2 of the format.
fn batch(entry: &Entry) -> Result<Vec<u8>, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let now = i64::try_from(now.as_millis())?;
    let record = record(entry);
    // No attributes; the last offset is the first one; no producer of transactions.
    let mut checked = vec![0; 2 + 4];
    checked.extend(now.to_be_bytes());
    checked.extend(now.to_be_bytes());
    checked.extend((-1_i64).to_be_bytes());
    checked.extend((-1_i16).to_be_bytes());
    checked.extend((-1_i32).to_be_bytes());
    checked.extend(1_i32.to_be_bytes());
    varint(&mut checked, Some(record.len()));
    checked.extend(record);
    // Its offset is for the broker to give, and what follows is the length of the rest.
    let mut batch = vec![0; 8];
    batch.extend(i32::try_from(4 + 1 + 4 + checked.len())?.to_be_bytes());
    batch.extend((-1_i32).to_be_bytes());
    batch.push(2);
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    Ok(batch)
}

fn record(entry: &Entry) -> Vec<u8> {
    // No attributes; time and offset are those of the batch.
    let mut record = vec![0; 3];
    let put = |record: &mut Vec<u8>, bytes: Option<&[u8]>| {
        varint(record, bytes.map(<[u8]>::len));
        record.extend(bytes.unwrap_or_default());
    };
    put(&mut record, entry.key.as_deref());
    put(&mut record, entry.value.as_deref());
    varint(&mut record, Some(entry.headers.len()));
    for (name, value) in &entry.headers {
        put(&mut record, Some(name));
        put(&mut record, value.as_deref());
    }
    record
}

/// A length; null is -1.
fn varint(to: &mut Vec<u8>, length: Option<usize>) {
    // In zigzag: 0, -1, 1, -2, 2.
    let mut left = length.map_or(1, |length| (length as u64) << 1);
    while left >= 0x80 {
        to.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    to.push(left as u8);
}

/// Castagnoli's checksum.
fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    let table: [u32; 256] = std::array::from_fn(|at| (0..8).fold(at as u32, |crc, _| shift(crc)));
    !bytes.iter().fold(!0, |crc: u32, byte| {
        let at = usize::from(crc as u8 ^ byte);
        (crc >> 8) ^ table.get(at).copied().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn lengths_are_zigzag() {
        let written = |length| {
            let mut to = Vec::new();
            varint(&mut to, length);
            to
        };
        assert_eq!(written(None), [1]);
        assert_eq!(written(Some(0)), [0]);
        assert_eq!(written(Some(63)), [126]);
        assert_eq!(written(Some(64)), [0x80, 1]);
        assert_eq!(written(Some(1 << 20)), [0x80, 0x80, 0x80, 1]);
    }
}
