//! The standard output, written from a thread of its own: a write cannot be called off, and must
//! not keep Ctrl-C from being seen.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::thread;

use tokio::sync::{mpsc, oneshot};

use crate::failure::Failure;

/// What became of one write.
#[derive(Debug)]
pub(super) struct Written {
    /// So many bytes were taken by the system.
    pub(super) bytes: usize,
    /// Why the rest was not.
    pub(super) error: Option<io::Error>,
}

/// The standard output, without a buffer of ours: what is written is flushed.
#[derive(Debug)]
pub(super) struct Writer(mpsc::Sender<(Vec<u8>, oneshot::Sender<Written>)>);

impl Writer {
    /// Opens it.
    pub(super) fn open() -> Result<Self, Failure> {
        let out = stdout().map_err(|error| {
            Failure::new(format!("cannot write to the standard output: {error}"))
        })?;
        Ok(Self::start(out))
    }

    fn start(mut out: impl Write + Send + 'static) -> Self {
        let (tell, mut told) = mpsc::channel::<(Vec<u8>, oneshot::Sender<Written>)>(1);
        thread::spawn(move || {
            while let Some((bytes, done)) = told.blocking_recv() {
                // Who does not wait for it any more has ended.
                let _ = done.send(write(&mut out, &bytes));
            }
        });
        Self(tell)
    }

    /// Writes all, or as much as can be written.
    pub(super) async fn write(&self, bytes: Vec<u8>) -> Written {
        let (done, written) = oneshot::channel();
        let sent = self.0.send((bytes, done)).await.is_ok();
        match written.await {
            Ok(written) if sent => written,
            _ => Written {
                bytes: 0,
                error: Some(io::Error::other("the thread that writes has ended")),
            },
        }
    }
}

fn write(out: &mut impl Write, bytes: &[u8]) -> Written {
    let mut done = 0;
    let error = loop {
        if done == bytes.len() {
            break out.flush().err();
        }
        match out.write(&bytes[done..]) {
            Ok(0) => break Some(ErrorKind::WriteZero.into()),
            Ok(more) => done += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Some(error),
        }
    };
    Written { bytes: done, error }
}

#[cfg(unix)]
fn stdout() -> io::Result<File> {
    use std::os::fd::AsFd;

    io::stdout().as_fd().try_clone_to_owned().map(File::from)
}

#[cfg(windows)]
fn stdout() -> io::Result<File> {
    use std::os::windows::io::AsHandle;

    io::stdout()
        .as_handle()
        .try_clone_to_owned()
        .map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes at a time, and so many in all.
    struct Reluctant(usize);

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let taken = bytes.len().min(3).min(self.0);
            self.0 -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_was_taken_before_a_failure_is_told() {
        let writer = Writer::start(Reluctant(10));
        let written = writer.write(b"1234567".to_vec()).await;
        assert!(written.bytes == 7 && written.error.is_none());
        let written = writer.write(b"1234567".to_vec()).await;
        assert_eq!(written.bytes, 3);
        assert_eq!(written.error.unwrap().kind(), ErrorKind::BrokenPipe);
    }
}
