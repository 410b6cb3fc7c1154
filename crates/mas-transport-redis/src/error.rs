//! What the server's and the client's errors mean in the contract's terms.

use std::borrow::Cow;

use mas_transport_core::{Error, ErrorKind};
use redis::{RedisError, ServerErrorKind};

use crate::BACKEND;

/// An error of the client or the server, in an operation on `address`. Whether the operation may
/// have taken effect is the caller's to add for errors of the connection; an error that the server
/// answered means that nothing happened.
pub(crate) fn map(operation: &'static str, address: &str, error: RedisError) -> Error {
    let (kind, message) = match denied(&error) {
        Some(message) => (ErrorKind::Unauthorized, message),
        None => {
            let (kind, message) = classify(&error);
            (kind, message.into())
        }
    };
    Error::new(kind, operation, message)
        .on(BACKEND)
        .with("address", address)
        .because(error)
}

const REFUSED: &str = "the server refuses this user and password: the user is unknown or disabled, or the password is wrong";

/// What of commands with subcommands is needed: Redis 6.2 says which command it refused, and not which
/// subcommand. All of one is more than the least rule has.
const SUBCOMMANDS: [(&str, &str); 5] = [
    ("client", "+client|id +client|unblock"),
    ("config", "+config|get"),
    ("script", "+script|load"),
    ("xgroup", "+xgroup|create +xgroup|setid +xgroup|delconsumer"),
    ("xinfo", "+xinfo|stream +xinfo|groups +xinfo|consumers"),
];

/// What the user has to be allowed, where that is what is missing.
fn denied(error: &RedisError) -> Option<Cow<'static, str>> {
    let detail = error.detail().unwrap_or_default();
    let in_script = detail.contains("executing the script can't");
    // Newer ones (seen on Redis 8.2 and Valkey 9.1) name the command, and no code.
    let names_it = detail.contains("ACL failure in script");
    if error.code() != Some("NOPERM") && !in_script && !names_it {
        return None;
    }
    Some(if detail.contains("channel") {
        "the user may not use the channels of this library: grant it &mas:* (ACL SETUSER)".into()
    } else if detail.contains("key") {
        "the user may not use the keys of this library: grant it ~mas:* (ACL SETUSER)".into()
    } else if let Some(command) = detail.split('\'').nth(1).filter(|_| !in_script) {
        let name = command.to_uppercase().replace('|', " ");
        let unnamed = detail.contains("or its subcommand");
        let ours = SUBCOMMANDS.iter().filter(|_| unnamed);
        let words = match ours
            .filter(|(of, _)| *of == command)
            .map(|(_, w)| *w)
            .next()
        {
            Some(words) => words.to_owned(),
            None => format!("+{command}"),
        };
        format!("the user may not run {name}: grant it {words} (ACL SETUSER)").into()
    } else {
        "the user may not run a command of a script: grant it those that the documentation of \
         mas-transport-redis lists (ACL SETUSER)"
            .into()
    })
}

fn classify(error: &RedisError) -> (ErrorKind, &'static str) {
    let detail = error.detail().unwrap_or_default();
    let code = match error.code().unwrap_or_default() {
        // Before 7.0 a script's error stands behind the script's name and line.
        script if script.starts_with("@user_script") => {
            let told = detail.split_once(": -").map(|(_, told)| told);
            told.and_then(|told| told.split(' ').next())
                .unwrap_or_default()
        }
        code => code,
    };
    match code {
        "NOAUTH" => {
            return (
                ErrorKind::Unauthorized,
                "the server asks for a user and a password: set them",
            );
        }
        "WRONGPASS" => {
            return (ErrorKind::Unauthorized, REFUSED);
        }
        "OOM" => {
            return (
                ErrorKind::Full,
                "the server has reached its maxmemory: raise it, or let consumers catch up, then publish again",
            );
        }
        "TOPICFULL" => {
            return (
                ErrorKind::Full,
                "the topic has reached stream_max_len: let consumers settle, or raise it",
            );
        }
        // The server forgot its scripts in the middle of a batch.
        "NOSCRIPT" => {
            return (
                ErrorKind::Unavailable,
                "the server has forgotten its scripts",
            );
        }
        "LOADING" => {
            return (
                ErrorKind::Unavailable,
                "the server is still loading its data",
            );
        }
        "MISCONF" => {
            return (
                ErrorKind::Unavailable,
                "the server takes no writes because it cannot save to its disk",
            );
        }
        "READONLY" => {
            return (
                ErrorKind::Unavailable,
                "the server is a read-only replica: connect to the primary",
            );
        }
        "BUSY" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" | "NOREPLICAS" => {
            return (ErrorKind::Unavailable, "the server cannot take this now");
        }
        "WRONGTYPE" => {
            return (
                ErrorKind::Conflict,
                "a key of this topic holds something that is not a stream of this library",
            );
        }
        "NOGROUP" | "UNBLOCKED" => {
            return (
                ErrorKind::NotFound,
                "the topic or the group does not exist any more",
            );
        }
        _ => {}
    }
    match error.kind() {
        redis::ErrorKind::AuthenticationFailed => (ErrorKind::Unauthorized, REFUSED),
        redis::ErrorKind::Io if error.is_timeout() => {
            (ErrorKind::Timeout, "the server did not answer in time")
        }
        redis::ErrorKind::Io if error.is_connection_refusal() => {
            (ErrorKind::Unavailable, "the server cannot be reached")
        }
        // The system's resolver has no kind of error of its own.
        redis::ErrorKind::Io if error.to_string().contains("failed to lookup address") => {
            (ErrorKind::Unavailable, "the host name is not known")
        }
        redis::ErrorKind::Io | redis::ErrorKind::Parse => {
            (ErrorKind::Unavailable, "the connection broke")
        }
        redis::ErrorKind::RESP3NotSupported => (
            ErrorKind::Unsupported,
            "the server does not speak RESP3: Redis 6.2 or later, or Valkey, is needed",
        ),
        redis::ErrorKind::InvalidClientConfig => {
            (ErrorKind::InvalidArgument, "the address cannot be used")
        }
        redis::ErrorKind::Server(ServerErrorKind::ResponseError)
            if detail.contains("max number of clients") =>
        {
            (
                ErrorKind::Unavailable,
                "the server has its maximum of clients: raise maxclients or close some",
            )
        }
        _ => (ErrorKind::Broker, "the server refused"),
    }
}

/// Whether the error says that stream or group is gone.
pub(crate) fn is_group_gone(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOGROUP" | "UNBLOCKED"))
}

/// Whether the server answered with this error, so that it is known that nothing happened.
pub(crate) fn is_answer(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        redis::ErrorKind::Server(_) | redis::ErrorKind::Extension
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(line: &str) -> ErrorKind {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        let error = value.extract_error().unwrap_err();
        let mapped = map("publish", "host:1", error);
        assert!(mapped.to_string().contains("address=host:1"));
        mapped.kind()
    }

    /// Redis 6.2 does not name them.
    #[test]
    fn subcommands_that_are_missing_are_those_of_the_least_rule() {
        let text = |command: &str| {
            let detail = format!(
                "this user has no permissions to run the '{command}' command or its subcommand"
            );
            let line = format!("-NOPERM {detail}\r\n");
            let value = redis::parse_redis_value(line.as_bytes()).unwrap();
            map("connect", "h", value.extract_error().unwrap_err()).to_string()
        };
        let reference = include_str!("lib.rs");
        let rule = reference.split("ACL SETUSER mas").nth(1).unwrap();
        let rule: Vec<&str> = rule
            .split("```")
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let parts = rule.iter().filter(|word| word.contains('|'));
        for word in parts {
            let (command, _) = word[1..].split_once('|').unwrap();
            assert!(text(command).contains(word), "{word}: {}", text(command));
        }
        for (_, words) in SUBCOMMANDS {
            for word in words.split(' ') {
                assert!(rule.contains(&word), "{word}");
            }
        }
        assert!(
            text("xadd").contains("grant it +xadd (ACL"),
            "{}",
            text("xadd")
        );
    }

    #[test]
    fn what_a_caller_can_do_about_it_decides_the_kind() {
        for (line, expected) in [
            ("NOAUTH Authentication required.", ErrorKind::Unauthorized),
            (
                "WRONGPASS invalid username-password pair",
                ErrorKind::Unauthorized,
            ),
            (
                "NOPERM this user has no permissions",
                ErrorKind::Unauthorized,
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                ErrorKind::Full,
            ),
            (
                "@user_script: 76: -OOM command not allowed when used memory > 'maxmemory'.",
                ErrorKind::Full,
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                ErrorKind::Unavailable,
            ),
            (
                "READONLY You can't write against a read only replica.",
                ErrorKind::Unavailable,
            ),
            (
                "BUSY Redis is busy running a script",
                ErrorKind::Unavailable,
            ),
            ("TOPICFULL it keeps 10 entries", ErrorKind::Full),
            (
                "NOSCRIPT No matching script. Please use EVAL.",
                ErrorKind::Unavailable,
            ),
            ("ERR max number of clients reached", ErrorKind::Unavailable),
            (
                "ERR ACL failure in script: User mas has no permissions to run the 'xlen' command script: \
                 fac4dc77e42fb32766c27ce5dc27bcd110ccc75c, on @user_script:8.",
                ErrorKind::Unauthorized,
            ),
            ("WRONGTYPE Operation against a key", ErrorKind::Conflict),
            ("NOGROUP No such key", ErrorKind::NotFound),
            ("ERR syntax error", ErrorKind::Broker),
            ("SOMETHING else", ErrorKind::Broker),
        ] {
            assert_eq!(kind(line), expected, "{line}");
        }
        let lookup =
            std::net::ToSocketAddrs::to_socket_addrs("no-such-host.invalid:1").unwrap_err();
        let unknown = map("connect", "h", RedisError::from(lookup));
        assert_eq!(unknown.kind(), ErrorKind::Unavailable);
        assert!(
            unknown.to_string().contains("the host name is not known"),
            "{unknown}"
        );
        let reset = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(map("publish", "h", reset).kind(), ErrorKind::Unavailable);
    }
}
