//! A program that speaks the protocol by itself: what a client library would refuse to write.

use async_nats::ServerAddr;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::harness::{Failure, Verdict};

/// A connection. It answers no pings: it lives for one message.
pub(super) struct Wire(BufReader<TcpStream>);

impl Wire {
    /// Connects to a server that asks for no more than a user and a password.
    pub(super) async fn connect(server: &ServerAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect((server.host(), server.port())).await?;
        let mut wire = Self(BufReader::new(stream));
        let info = wire.line().await?;
        if !info.starts_with("INFO ") {
            return Err(format!("no NATS server: {info:?}").into());
        }
        // Null is nobody.
        let password = server.username().and(server.password());
        let options = serde_json::json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true,
            "lang": "rust", "version": "0", "name": "foreign",
            "user": server.username(), "pass": password,
        });
        wire.write(&[b"CONNECT ", options.to_string().as_bytes(), b"\r\n"])
            .await?;
        Ok(wire)
    }

    /// Publishes to a stream, with this block of headers as it is, and awaits its answer.
    pub(super) async fn publish(
        &mut self,
        subject: &str,
        headers: &[u8],
        payload: &[u8],
    ) -> Verdict {
        let inbox = format!("_INBOX.{:016x}", rand::random::<u64>());
        let (head, all) = (headers.len(), headers.len() + payload.len());
        let order = match head {
            0 => format!("SUB {inbox} 1\r\nPUB {subject} {inbox} {all}\r\n"),
            _ => format!("SUB {inbox} 1\r\nHPUB {subject} {inbox} {head} {all}\r\n"),
        };
        self.write(&[order.as_bytes(), headers, payload, b"\r\n"])
            .await?;
        loop {
            let line = self.line().await?;
            let mut words = line.split_whitespace();
            match words.next() {
                Some("PING") => self.write(&[b"PONG\r\n"]).await?,
                Some("MSG" | "HMSG") => {
                    let length = words.next_back().unwrap_or_default().parse()?;
                    let mut answer = vec![0; length];
                    self.0.read_exact(&mut answer).await?;
                    return stored(&String::from_utf8_lossy(&answer));
                }
                Some("-ERR") => return Err(format!("the server says {line:?}").into()),
                Some(_) => {}
                None => return Err("the server closed the connection".into()),
            }
        }
    }

    async fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        Ok(line)
    }

    async fn write(&mut self, parts: &[&[u8]]) -> Verdict {
        Ok(self.0.get_mut().write_all(&parts.concat()).await?)
    }
}

/// Whether the answer is that of a stream which has stored it.
fn stored(answer: &str) -> Verdict {
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(answer);
    match parsed {
        Ok(answer)
            if answer.get("error").is_none()
                && answer.get("seq").is_some_and(serde_json::Value::is_u64) =>
        {
            Ok(())
        }
        _ => Err(format!("the stream answered {answer:?}").into()),
    }
}
