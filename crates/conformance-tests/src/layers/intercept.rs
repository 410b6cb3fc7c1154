//! A layer whose every call goes through hooks.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use mas_transport_core::{
    Admin, Confirm, Connections, Event, Fetch, Group, Health, Lag, Message, Outcome, ReadSpec,
    Result, Settle, Settled, Source, Subscription, Token, Topic, TopicSpec, Transport,
    TransportInfo, Want,
};
use tokio::time::Instant;

/// A member as the hooks see it.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Which one it is; no other member of this process has the same number.
    pub number: u32,
    /// What it subscribed to.
    pub subscription: Subscription,
    /// The settling half below the hooks.
    pub settle: Arc<dyn Settle>,
}

static JOINED: AtomicU32 = AtomicU32::new(0);

/// What a layer does around each call. Every method forwards unless it is overridden; `next` is
/// what lies below. State goes into the implementing type, behind a lock.
#[async_trait]
pub trait Hooks: Debug + Send + Sync + 'static {
    /// Around [`Transport::info`].
    fn info(&self, info: Arc<TransportInfo>) -> Arc<TransportInfo> {
        info
    }

    /// Around [`Transport::publish`].
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        next.publish(batch, deadline).await
    }

    /// Around [`Transport::subscribe`]. The source that this returns is wrapped afterwards.
    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        next.subscribe(subscription).await
    }

    /// Around [`Transport::read`].
    async fn read(&self, next: &Arc<dyn Transport>, spec: &ReadSpec) -> Result<Box<dyn Fetch>> {
        next.read(spec).await
    }

    /// Around [`Transport::close`].
    async fn close(&self, next: &Arc<dyn Transport>, deadline: Instant) -> Result<()> {
        next.close(deadline).await
    }

    /// Around [`Fetch::fetch`]. What is pushed to `out` is what the caller gets.
    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let _ = member;
        next.fetch(want, out).await
    }

    /// Around [`Settle::settle`].
    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let _ = member;
        next.settle(batch).await
    }

    /// Around [`Settle::close`].
    async fn settle_close(
        &self,
        next: &Arc<dyn Settle>,
        member: &Joined,
        deadline: Instant,
    ) -> Result<()> {
        let _ = member;
        next.close(deadline).await
    }

    /// When the receiving half of a member is dropped.
    fn fetch_dropped(&self, fetch: Box<dyn Fetch>, member: &Joined) {
        let _ = member;
        drop(fetch);
    }

    /// Around [`Admin::declare`].
    async fn declare(&self, next: &dyn Admin, spec: &TopicSpec) -> Result<()> {
        next.declare(spec).await
    }

    /// Around [`Admin::topics`].
    async fn topics(&self, next: &dyn Admin) -> Result<Vec<Topic>> {
        next.topics().await
    }

    /// Around [`Admin::groups`].
    async fn groups(&self, next: &dyn Admin, topic: &Topic) -> Result<Vec<Group>> {
        next.groups(topic).await
    }

    /// Around [`Admin::lag`].
    async fn lag(&self, next: &dyn Admin, topic: &Topic, group: &Group) -> Result<Lag> {
        next.lag(topic, group).await
    }

    /// Around [`Admin::purge`].
    async fn purge(&self, next: &dyn Admin, topic: &Topic) -> Result<u64> {
        next.purge(topic).await
    }

    /// Around [`Admin::health`].
    async fn health(&self, next: &dyn Admin) -> Result<Health> {
        next.health().await
    }

    /// Around [`Admin::pause`].
    async fn pause(
        &self,
        next: &dyn Admin,
        topic: &Topic,
        group: &Group,
        paused: bool,
    ) -> Result<()> {
        next.pause(topic, group, paused).await
    }
}

/// Hooks that change nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct PassThrough;

impl Hooks for PassThrough {}

/// A transport with hooks around it.
#[derive(Debug)]
pub struct Intercept {
    next: Arc<dyn Transport>,
    hooks: Arc<dyn Hooks>,
}

impl Intercept {
    /// Puts `hooks` around `next`.
    pub fn layer(next: Arc<dyn Transport>, hooks: Arc<dyn Hooks>) -> Arc<dyn Transport> {
        Arc::new(Self { next, hooks })
    }
}

#[async_trait]
impl Transport for Intercept {
    fn info(&self) -> Arc<TransportInfo> {
        self.hooks.info(self.next.info())
    }

    async fn publish(&self, batch: Vec<Message>, deadline: Instant) -> Confirm {
        self.hooks.publish(&self.next, batch, deadline).await
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Source> {
        let source = self.hooks.subscribe(&self.next, subscription).await?;
        let member = Joined {
            number: JOINED.fetch_add(1, Ordering::Relaxed),
            subscription: subscription.clone(),
            settle: Arc::clone(&source.settle),
        };
        Ok(Source {
            fetch: Box::new(FetchHalf {
                next: Some(source.fetch),
                hooks: Arc::clone(&self.hooks),
                member: member.clone(),
            }),
            settle: Arc::new(SettleHalf {
                next: source.settle,
                hooks: Arc::clone(&self.hooks),
                member,
            }),
        })
    }

    async fn read(&self, spec: &ReadSpec) -> Result<Box<dyn Fetch>> {
        self.hooks.read(&self.next, spec).await
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    fn connections(&self) -> Option<Connections> {
        self.next.connections()
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.next.native()
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        self.hooks.close(&self.next, deadline).await
    }
}

#[async_trait]
impl Admin for Intercept {
    async fn declare(&self, spec: &TopicSpec) -> Result<()> {
        self.hooks.declare(self.next.admin(), spec).await
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.hooks.topics(self.next.admin()).await
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<Group>> {
        self.hooks.groups(self.next.admin(), topic).await
    }

    async fn lag(&self, topic: &Topic, group: &Group) -> Result<Lag> {
        self.hooks.lag(self.next.admin(), topic, group).await
    }

    async fn purge(&self, topic: &Topic) -> Result<u64> {
        self.hooks.purge(self.next.admin(), topic).await
    }

    async fn health(&self) -> Result<Health> {
        self.hooks.health(self.next.admin()).await
    }

    async fn pause(&self, topic: &Topic, group: &Group, paused: bool) -> Result<()> {
        let next = self.next.admin();
        self.hooks.pause(next, topic, group, paused).await
    }
}

#[derive(Debug)]
struct FetchHalf {
    next: Option<Box<dyn Fetch>>,
    hooks: Arc<dyn Hooks>,
    member: Joined,
}

#[async_trait]
impl Fetch for FetchHalf {
    async fn fetch(&mut self, want: Want, out: &mut Vec<Event>) -> Result<()> {
        match &mut self.next {
            Some(next) => {
                self.hooks
                    .fetch(next.as_mut(), &self.member, want, out)
                    .await
            }
            None => Ok(()),
        }
    }
}

impl Drop for FetchHalf {
    fn drop(&mut self) {
        if let Some(next) = self.next.take() {
            self.hooks.fetch_dropped(next, &self.member);
        }
    }
}

#[derive(Debug)]
struct SettleHalf {
    next: Arc<dyn Settle>,
    hooks: Arc<dyn Hooks>,
    member: Joined,
}

#[async_trait]
impl Settle for SettleHalf {
    async fn settle(&self, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>> {
        self.hooks.settle(&self.next, &self.member, batch).await
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        self.hooks
            .settle_close(&self.next, &self.member, deadline)
            .await
    }
}
