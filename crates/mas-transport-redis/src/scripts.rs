//! The server-side scripts.
//!
//! Each is loaded when a connection is made and called by its hash; a server that has forgotten
//! them (`SCRIPT FLUSH`) answers `NOSCRIPT` before anything happened, and the call is repeated with
//! the text.

use std::sync::LazyLock;

use redis::{Cmd, Pipeline, Script};

/// One script and its hash.
#[derive(Debug)]
pub(crate) struct Lua {
    text: &'static str,
    hash: String,
}

macro_rules! scripts {
    ($($name:ident $($file:literal)+;)*) => {
        $(pub(crate) static $name: LazyLock<Lua> =
            LazyLock::new(|| Lua::new(concat!($(include_str!($file)),+)));)*

        /// The commands that load every script.
        pub(crate) fn load_all() -> Pipeline {
            let mut pipeline = Pipeline::new();
            $(pipeline.cmd("SCRIPT").arg("LOAD").arg($name.text);)*
            pipeline
        }
    };
}

scripts! {
    APPEND "lua/trimming.lua" "lua/append.lua";
    BURY "lua/bury.lua";
    CHECK "lua/check.lua";
    DECLARE "lua/declare.lua";
    FENCE "lua/fence.lua";
    JOIN "lua/join.lua";
    LAG "lua/lag.lua";
    LEAVE "lua/leave.lua";
    PERMITTED "lua/permitted.lua";
    PURGE "lua/purge.lua";
    SETTLED "lua/settled.lua";
    SWEEP "lua/sweep.lua";
    TRIM "lua/trimming.lua" "lua/trim.lua";
}

impl Lua {
    fn new(text: &'static str) -> Self {
        Self {
            text,
            hash: Script::new(text).get_hash().to_owned(),
        }
    }

    /// A call by hash; the arguments are to follow.
    pub(crate) fn call(&self, keys: &[&str]) -> Cmd {
        Self::head("EVALSHA", &self.hash, keys)
    }

    /// The same call with the text instead of the hash.
    pub(crate) fn call_with_text(&self, call: &Cmd) -> Cmd {
        let mut cmd = Cmd::new();
        cmd.arg("EVAL").arg(self.text);
        for arg in call.args_iter().skip(2) {
            if let redis::Arg::Simple(bytes) = arg {
                cmd.arg(bytes);
            }
        }
        cmd
    }

    fn head(command: &str, script: &str, keys: &[&str]) -> Cmd {
        let mut cmd = Cmd::new();
        cmd.arg(command).arg(script).arg(keys.len());
        for key in keys {
            cmd.arg(*key);
        }
        cmd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_can_be_repeated_with_the_text() {
        let mut call = LEAVE.call(&["k1", "k2"]);
        call.arg("a").arg(b"\xff".as_slice());
        let text = LEAVE.call_with_text(&call);
        let args = |cmd: &Cmd| {
            cmd.args_iter()
                .map(|a| match a {
                    redis::Arg::Simple(bytes) => bytes.to_vec(),
                    _ => Vec::new(),
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(args(&call)[2..], args(&text)[2..]);
        assert_eq!(args(&text)[1], LEAVE.text.as_bytes());
        assert_eq!(load_all().len(), 13);
    }
}
