//! The suite on this backend: a directory for each trial, under a paused clock.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use conformance_tests::harnesses::Net;
use conformance_tests::layers::Intercept;
use conformance_tests::{Ability, Broker, Failure, Harness, Setup, Timing, Verdict};
use mas_transport_core::{Group, Namespace, Result, Topic, Transport};
use mas_transport_files::{FilesBroker, Options};

#[derive(Debug)]
struct Files;

#[async_trait]
impl Harness for Files {
    fn name(&self) -> &str {
        "files"
    }

    fn timing(&self) -> Timing {
        Timing::paused()
    }

    fn abilities(&self) -> &[Ability] {
        &[
            Ability::Inject,
            Ability::DropGroup,
            Ability::Trim,
            Ability::Fill,
            Ability::Block,
            Ability::Kill,
            Ability::Cut,
            Ability::LoseConfirms,
            Ability::Crash,
        ]
    }

    async fn broker(&self, setup: &Setup) -> std::result::Result<Arc<dyn Broker>, Failure> {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(setup.namespace.as_str());
        // A bound that trials can reach: they publish 10,000 messages at most.
        let options = Options {
            max_topic_messages: 10_000,
            ..Options::default()
        };
        let faulty = [Ability::Cut, Ability::LoseConfirms];
        Ok(Arc::new(InFiles {
            broker: FilesBroker::open(&directory, options)?,
            directory,
            namespace: setup.namespace.clone(),
            net: setup
                .needs
                .iter()
                .any(|n| faulty.contains(n))
                .then(Net::new),
        }))
    }
}

#[derive(Debug)]
struct InFiles {
    broker: FilesBroker,
    directory: PathBuf,
    namespace: Namespace,
    net: Option<Arc<Net>>,
}

impl InFiles {
    fn net(&self) -> std::result::Result<&Net, Failure> {
        let missing = "the trial does not name the ability among its needs";
        self.net.as_deref().ok_or_else(|| missing.into())
    }
}

#[async_trait]
impl Broker for InFiles {
    async fn connect(&self) -> Result<Arc<dyn Transport>> {
        let transport = self.broker.connect(self.namespace.clone())?;
        Ok(match &self.net {
            Some(net) => Intercept::layer(transport, Arc::clone(net) as _),
            None => transport,
        })
    }

    async fn inject(&self, topic: &Topic, fields: Vec<(Bytes, Bytes)>) -> Verdict {
        Ok(self.broker.inject(&self.namespace, topic, &fields)?)
    }

    async fn drop_group(&self, topic: &Topic, group: &Group) -> Verdict {
        Ok(self.broker.forget(&self.namespace, topic, group)?)
    }

    async fn trim(&self, topic: &Topic, remove: u64) -> Verdict {
        let removed = self.broker.trim(&self.namespace, topic, remove)?;
        if removed == remove {
            return Ok(());
        }
        Err(format!("{removed} of {remove} messages could be removed").into())
    }

    async fn fill(&self, full: bool) -> Verdict {
        self.broker.set_quota(if full { 0 } else { u64::MAX });
        Ok(())
    }

    async fn block(&self, _topic: &Topic, blocked: bool) -> Verdict {
        self.fill(blocked).await
    }

    async fn kill(&self) -> Verdict {
        self.broker.stop();
        Ok(())
    }

    async fn start(&self) -> Verdict {
        self.broker.start();
        Ok(())
    }

    async fn cut(&self) -> Verdict {
        self.net()?.cut();
        Ok(())
    }

    async fn lose_confirms(&self, count: u64) -> Verdict {
        self.net()?.lose_confirms(count);
        Ok(())
    }

    async fn end(&self) {
        if let Err(e) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("{} could not be removed: {e}", self.directory.display());
        }
    }
}

fn main() -> ExitCode {
    conformance_tests::main(vec![Arc::new(Files)])
}
