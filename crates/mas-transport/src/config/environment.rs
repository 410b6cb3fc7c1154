//! What the environment says, and nearly says.

use super::Config;
use super::nearest::nearest;
use super::resolve::{Given, Layer, Resolver};
use super::settings::{Caution, Origin};
use super::table::COMMON;
use crate::registry::Backend;

/// A variable of the environment with which something is wrong, if it is one of the chosen backend's.
pub(super) struct Slip {
    /// As it stands in the environment.
    name: String,
    /// The setting that it is, or that may have been meant.
    meant: &'static str,
    kind: SlipKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlipKind {
    Misspelt,
    NotText,
}

impl Resolver {
    /// What is unknown in the environment is noticed only when it is near a known name: others may
    /// have variables that begin like ours.
    pub(super) fn environment(&mut self, config: &Config) -> Layer {
        let mut layer = Layer::new();
        for (name, raw) in &config.environment {
            let slip = |meant, kind| Slip {
                name: name.clone(),
                meant,
                kind,
            };
            match (self.adopt(name), raw) {
                (Some(name), Ok(raw)) => {
                    let (raw, origin) = (raw.clone(), Origin::Environment(name.to_owned()));
                    layer.insert(name, Given { raw, origin });
                }
                (Some(meant), Err(_)) => self.slips.push(slip(meant, SlipKind::NotText)),
                (None, _) => {
                    let Some((prefix, rest)) = name.split_once('_') else {
                        continue;
                    };
                    let known = self.known().filter_map(|variable| {
                        let (own, rest) = variable.name.split_once('_')?;
                        (own == prefix).then_some(rest)
                    });
                    let near = nearest(rest, known).map(|near| format!("{prefix}_{near}"));
                    if let Some(meant) = near.and_then(|near| self.find(&near)) {
                        self.slips.push(slip(meant, SlipKind::Misspelt));
                    }
                }
            }
        }
        layer
    }

    /// Only the settings of the backend that was chosen can be wrong. A misspelt one of another is
    /// told all the same, since that backend may be the one that was to be chosen.
    pub(super) fn slips(&mut self, chosen: Option<&Backend>) -> Vec<Caution> {
        let mut cautions = Vec::new();
        for Slip { name, meant, kind } in std::mem::take(&mut self.slips) {
            let own = chosen.into_iter().flat_map(|backend| &backend.variables);
            let counts = COMMON.iter().chain(own).any(|v| v.name == meant);
            let origin = Origin::Environment(name.clone());
            match (kind, counts) {
                (SlipKind::Misspelt, true) => self.unknown(name, origin, Some(meant)),
                (SlipKind::NotText, true) => self.problem(name, origin, "it is not UTF-8", None),
                (SlipKind::Misspelt, false) => {
                    let other = self.owner(meant).map_or("its backend", |b| b.scheme);
                    let what = format!(
                        "there is no such setting; did you mean {meant}? Neither has an effect \
                         while {other} is not the backend"
                    );
                    cautions.push(Caution {
                        name,
                        // What has an unknown name may be a secret.
                        value: None,
                        what,
                    });
                }
                (SlipKind::NotText, false) => {}
            }
        }
        cautions
    }
}
