//! The blocking read of a member, on a connection of its own.
//!
//! It lives in a task, never in a `fetch` that may be dropped: a read that is given up while the
//! server still waits would take entries that nobody gets.

use std::sync::Arc;

use mas_transport_core::backend::Waiter;
use mas_transport_core::{Error, ErrorKind, Event};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisError, Value};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

use crate::connection::{Connected, Wait};
use crate::decode::{self, Taken};
use crate::error::{is_answer, is_group_gone, map};
use crate::lease::Owner;
use crate::member::Member;

/// Most entries in one read: beyond it the server gains nothing.
const COUNT: usize = 500;
/// How often a read is preceded by a look for entries that were removed unread: once they are read
/// past, nobody can tell.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// How long until a read that was not waiting yet is asked again to end.
const UNBLOCK_AGAIN: Duration = Duration::from_millis(2);

/// How a connection came to its end.
enum End {
    Closing,
    Broken(Error),
}

/// Reads until the member closes, over as many connections as it takes.
pub(crate) async fn run(member: Arc<Member>) {
    let closing = member.closing.clone();
    let mut wait = Wait::new();
    let mut outage = false;
    let mut number = 0;
    loop {
        let dialled = closing.run_until_cancelled(member.shared.link.dial()).await;
        let end = match dialled {
            None => return,
            Some(Err(error)) => End::Broken(error),
            Some(Ok(Connected {
                connection,
                // Dropped after the connection was read for the last time.
                driver: _driver,
            })) => {
                number += 1;
                let owner = Owner::Reader(number);
                member.uses(owner);
                let end = read(&member, connection, owner, &mut outage, &mut wait).await;
                // Whatever the end was, an answer may have been on its way.
                member.lost_answer(owner);
                end
            }
        };
        match end {
            End::Closing => return,
            End::Broken(error) => {
                tracing::debug!(%error, topic = %member.topic, "the reading connection is gone");
                member.inbox.fail(error);
                outage = true;
            }
        }
        if closing
            .run_until_cancelled(sleep(wait.next()))
            .await
            .is_none()
        {
            return;
        }
    }
}

/// Reads on one connection.
async fn read(
    member: &Member,
    mut connection: MultiplexedConnection,
    owner: Owner,
    outage: &mut bool,
    wait: &mut Wait,
) -> End {
    let link = &member.link;
    let address = link.config.address();
    let bound = link.config.response_timeout;
    let mut ask = Cmd::new();
    ask.arg("CLIENT").arg("ID");
    let id = match timeout(bound, connection.send_packed_command(&ask)).await {
        Ok(Ok(value)) => decode::number(&value),
        // Not allowed: then a read ends by itself when the member closes.
        Ok(Err(error)) if is_answer(&error) => None,
        Ok(Err(error)) => return End::Broken(map("fetch", address, error)),
        Err(_) => return End::Broken(link.timed_out("fetch")),
    };
    if std::mem::take(outage) {
        link.reconnected();
        member.inbox.recovered();
        member.inbox.control(Event::Reconnected);
    }
    let consumer = member.consumer(owner);
    let mut next_check = Instant::now();
    loop {
        let wanted = async {
            member.swept.cancelled().await;
            member.inbox.wanted(Waiter::Reader, COUNT).await
        };
        let Some(count) = member.closing.run_until_cancelled(wanted).await else {
            return End::Closing;
        };
        let seen = member.joined();
        let asked = Instant::now();
        let mut commands = Pipeline::with_capacity(2);
        if asked >= next_check {
            next_check = asked + CHECK_EVERY;
            commands.add_command(member.check());
        }
        commands.add_command(command(member, &consumer, count));
        let reading = connection.send_packed_commands(&commands, 0, commands.len());
        let reading = timeout(member.block() + bound, reading);
        tokio::pin!(reading);
        let answer = tokio::select! {
            answer = &mut reading => answer,
            () = member.closing.cancelled() => tokio::select! {
                answer = &mut reading => answer,
                // Where that is not allowed, it ends by itself soon.
                () = unblock(member, id) => reading.await,
            },
        };
        let mut values = match answer {
            Ok(Ok(values)) => values,
            Ok(Err(error)) => return End::Broken(map("fetch", address, error)),
            Err(_) => return End::Broken(link.timed_out("fetch")),
        };
        let reply = values.pop().unwrap_or_default();
        if let Some(checked) = values.first() {
            member.checked(checked);
        }
        let trouble = match reply {
            Value::ServerError(error) => RedisError::from(error),
            reply => {
                let Some(entries) = decode::read_reply(reply) else {
                    let message = "the answer to a read has a form that is not known";
                    return End::Broken(member.error(ErrorKind::Broker, "fetch", message));
                };
                *wait = Wait::new();
                if !entries.is_empty() {
                    let first = |entry| Taken {
                        count: 1,
                        dead: false,
                        entry,
                    };
                    let entries = entries.into_iter().map(first);
                    member.admit(entries, owner, asked).await;
                }
                continue;
            }
        };
        // The server refused: it will not do so for ever, and asking at once would not help it.
        let failed = if is_group_gone(&trouble) {
            member.rejoin(seen).await.err()
        } else {
            Some(map("fetch", address, trouble))
        };
        if let Some(error) = failed {
            member.inbox.fail(error.with("topic", &member.topic));
        }
        if member
            .closing
            .run_until_cancelled(sleep(wait.next()))
            .await
            .is_none()
        {
            return End::Closing;
        }
    }
}

/// Ends the wait of a read at the server. It may not have come there yet, as it goes another way: so
/// until the server says that it was waiting.
async fn unblock(member: &Member, id: Option<i64>) {
    let Some(id) = id else { return };
    loop {
        let mut unblock = Cmd::new();
        unblock.arg("CLIENT").arg("UNBLOCK").arg(id);
        match member.link.command("close", unblock).await {
            Ok(answer) if decode::number(&answer) == Some(0) => sleep(UNBLOCK_AGAIN).await,
            _ => return,
        }
    }
}

fn command(member: &Member, consumer: &str, count: usize) -> Cmd {
    let block = u64::try_from(member.block().as_millis()).unwrap_or(u64::MAX);
    let mut command = Cmd::new();
    command
        .arg("XREADGROUP")
        .arg("GROUP")
        .arg(member.group.as_str())
        .arg(consumer)
        .arg("COUNT")
        .arg(count)
        // Zero would be for ever.
        .arg("BLOCK")
        .arg(block.max(1))
        .arg("STREAMS")
        .arg(member.keys.stream.as_str())
        .arg(">");
    command
}
