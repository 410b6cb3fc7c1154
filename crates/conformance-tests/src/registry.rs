//! What a trial is.

use std::time::Duration;

use futures::future::BoxFuture;
use mas_transport_core::Capabilities;

use crate::ctx::Ctx;
use crate::harness::{Ability, Verdict};

/// When a trial runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// On every push.
    Contract,
    /// On every push too; it kills, freezes or fills its broker.
    Faults,
    /// With `MAS_FULL=1`.
    Soak,
}

/// What a trial asks of capabilities: the words for people, and the question.
pub type Condition = (&'static str, fn(&Capabilities) -> bool);

/// A trial: the clause that it proves, and how.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TrialDef {
    /// The id of its clause.
    pub clause: &'static str,
    /// What it shows, in `snake_case`.
    pub name: &'static str,
    /// When it runs.
    pub tier: Tier,
    /// What the harness has to be able to do.
    pub needs: &'static [Ability],
    /// What the backend has to declare.
    pub when: Option<Condition>,
    /// It needs a server for itself.
    pub own: bool,
    /// Its limit of real time.
    pub limit: Duration,
    /// It is repeated over the seeds.
    pub seeded: bool,
    /// The trial itself.
    pub run: fn(Ctx) -> BoxFuture<'static, Verdict>,
}

impl TrialDef {
    /// A trial of the contract tier, repeated over the seeds, limited to 20 s. Made by [`trial!`].
    ///
    /// [`trial!`]: crate::trial
    pub const fn new(
        clause: &'static str,
        name: &'static str,
        run: fn(Ctx) -> BoxFuture<'static, Verdict>,
    ) -> Self {
        Self {
            clause,
            name,
            tier: Tier::Contract,
            needs: &[],
            when: None,
            own: false,
            limit: Duration::from_secs(20),
            seeded: true,
            run,
        }
    }

    /// Only where the harness can do this.
    #[must_use]
    pub const fn needs(mut self, abilities: &'static [Ability]) -> Self {
        self.needs = abilities;
        self
    }

    /// Only where the backend declares this; `why` says what is missing where it does not.
    #[must_use]
    pub const fn when(mut self, why: &'static str, declared: fn(&Capabilities) -> bool) -> Self {
        self.when = Some((why, declared));
        self
    }

    /// It gets a server for itself, and belongs to the faults.
    #[must_use]
    pub const fn own_server(mut self) -> Self {
        self.own = true;
        self.tier = Tier::Faults;
        self
    }

    /// Another tier.
    #[must_use]
    pub const fn tier(mut self, tier: Tier) -> Self {
        self.tier = tier;
        self
    }

    /// It is not repeated over the seeds: too large, or the seed changes nothing.
    #[must_use]
    pub const fn once(mut self) -> Self {
        self.seeded = false;
        self
    }

    /// Clause and name, as in the name of the test: `P1_a_receipt_means_stored`.
    pub fn id(&self) -> String {
        format!("{}_{}", self.clause, self.name)
    }
}

/// Makes a [`TrialDef`] of a clause and an `async fn(Ctx) -> Verdict`, named as the function.
#[macro_export]
macro_rules! trial {
    ($clause:ident, $function:ident) => {
        $crate::TrialDef::new(stringify!($clause), stringify!($function), |ctx| {
            ::std::boxed::Box::pin($function(ctx))
        })
    };
}
