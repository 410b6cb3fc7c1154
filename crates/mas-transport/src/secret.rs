//! What must not be printed.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A password or the like: printed as `***`, wiped from memory when it is dropped. It has no
/// `Display` and is not serialised; reading it takes a call that can be searched for.
///
/// ```
/// let secret = mas_transport::Secret::from("hush");
/// assert_eq!(format!("{secret:?}"), "***");
/// assert_eq!(secret.expose(), "hush");
/// ```
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// The secret itself, to be handed to the broker's client and nowhere else.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// What stands for a secret.
pub(crate) const HIDDEN: &str = "***";

/// Whether what stands where a port belongs is no number, in any of several hosts.
pub(crate) fn has_odd_port(hosts: &str) -> bool {
    let port = |host: &str| match host.rsplit_once(']') {
        Some((_, behind)) => behind.strip_prefix(':').map(str::to_owned),
        None => host.split_once(':').map(|(_, port)| port.to_owned()),
    };
    let odd = |port: String| !port.bytes().all(|byte| byte.is_ascii_digit());
    hosts.split(',').filter_map(port).any(odd)
}

/// An address or URL without its credentials: what stands before the last `@` may hold some, and so
/// may the options. What is no URL and holds an `@` is shown from there on.
pub(crate) fn without_credentials(text: &str) -> String {
    let (text, options) = match text.split_once('?') {
        Some((text, options)) => (text, Some(options)),
        None => (text, None),
    };
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('@') => (format!("{scheme}://"), rest),
        _ => (String::new(), text),
    };
    // A password may hold anything, an unescaped slash or question mark too.
    let tail = options.is_some_and(|options| options.contains('@'));
    let mut shown = match rest.rsplit_once('@') {
        _ if tail => return format!("{scheme}{HIDDEN}"),
        Some((credentials, place)) => {
            let user = match credentials.split_once(':') {
                // Of several servers: what is in front of the first @ may be a token.
                Some((user, _)) if !user.contains('@') => format!("{user}:{HIDDEN}"),
                // A lone word may be a token.
                _ => HIDDEN.to_owned(),
            };
            format!("{scheme}{user}@{place}")
        }
        // Somebody forgot the host, and this is a name and a password.
        None if rest.split('/').next().is_some_and(has_odd_port) => format!("{scheme}{HIDDEN}"),
        None => format!("{scheme}{rest}"),
    };
    if let Some(options) = options {
        let options = options
            .split('&')
            .map(|option| match option.split_once('=') {
                Some((name, _)) if is_secret_name(name) => format!("{name}={HIDDEN}"),
                _ => option.to_owned(),
            });
        shown.push('?');
        shown.push_str(&options.collect::<Vec<_>>().join("&"));
    }
    shown
}

/// Whether a name sounds like that of a secret: what is misspelt is no less of one.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pas", "pwd", "secret", "token", "auth", "cred", "key"]
        .iter()
        .any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_cut_out_of_addresses() {
        for (given, shown) in [
            ("redis://h:1/0", "redis://h:1/0"),
            ("redis://ann:hush@h:1/0", "redis://ann:***@h:1/0"),
            ("redis://:hush@h", "redis://:***@h"),
            ("redis://hush@h", "redis://***@h"),
            ("redis://ann:hu@sh@h", "redis://ann:***@h"),
            ("redis://ann:hu/sh@h", "redis://ann:***@h"),
            ("redis://ann:hu?sh@h", "redis://***"),
            ("ann:hush@h:1", "ann:***@h:1"),
            ("redis//ann:hush@h", "redis//ann:***@h"),
            (
                "redis://h?password=hush&db=1",
                "redis://h?password=***&db=1",
            ),
            ("redis://h?pasword=hush", "redis://h?pasword=***"),
            ("nats://hush@h:1,nats://hush@i:1", "nats://***@i:1"),
            ("nats://ann:hush@h:1,nats://bob:hush@i", "nats://ann:***@i"),
            ("nats://h:1,nats://ann:hush@i", "nats://h:***@i"),
        ] {
            assert_eq!(without_credentials(given), shown);
        }
    }
}
