//! The end points below `/containers`.

use std::time::Duration;

use http::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::config::CreateBody;
use super::exec::{self, content_type};
use super::logs::Wanted;
use super::operate::PRUNE_FILTERS;
use super::stream::{self, Left, Wishes};
use super::{logs, wait};
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::filters::Filters;
use crate::docker::message::{self, Channel, Query, Reply, Request};
use crate::docker::route::page_not_found;
use crate::docker::system::moment;

/// Answers a request.
pub async fn answer(engine: Engine, request: Request) -> Result<Reply> {
    let path = request.path.clone();
    let segments: Vec<&str> = path.iter().skip(1).map(String::as_str).collect();
    let query = request.query.clone();
    let name = segments.first().copied().unwrap_or_default();
    let container = || engine.containers.get(name);
    let timeout = || query.number::<i64>("t");
    match (request.method.clone(), segments.as_slice()) {
        (Method::GET, ["json"]) => Ok(message::ok(&engine.list_containers(&query).await?)),
        (Method::POST, ["create"]) => {
            let body: CreateBody = request.json().await?;
            let created = engine.create_container(query.get("name"), body).await?;
            Ok(message::json(StatusCode::CREATED, &created))
        }
        (Method::POST, ["prune"]) => {
            let filters = Filters::parse(query.get("filters"), &PRUNE_FILTERS)?;
            Ok(message::ok(&engine.prune_containers(&filters).await?))
        }
        (Method::GET, [_, "json"]) => {
            Ok(message::ok(&engine.inspect_container(&*container()?, query.flag("size")).await))
        }
        (Method::GET, [_, "top"]) => {
            Ok(message::ok(&engine.top(&container()?, query.filled("ps_args").unwrap_or("-ef")).await?))
        }
        (Method::GET, [_, "logs"]) => logs(container()?, &request),
        (Method::GET, [_, "changes"]) => Ok(message::ok(&engine.changes(&*container()?).await?)),
        (Method::GET, [_, "export"]) => engine.export_container(&*container()?).await,
        (Method::GET, [_, "stats"]) => {
            engine
                .stats(
                    container()?,
                    query.get("stream").is_none() || query.flag("stream"),
                    query.flag("one-shot"),
                )
                .await
        }
        (Method::GET | Method::HEAD | Method::PUT, [_, "archive"]) => {
            let container = container()?;
            engine.archive(container, request).await
        }
        (Method::POST, [_, "start"]) => {
            engine.start_container(&container()?).await?;
            Ok(message::no_content())
        }
        (Method::POST, [_, "stop"]) => {
            engine.stop_container(&container()?, timeout()?, query.get("signal")).await?;
            Ok(message::no_content())
        }
        (Method::POST, [_, "restart"]) => {
            engine.restart_container(&container()?, timeout()?, query.get("signal")).await?;
            Ok(message::no_content())
        }
        (Method::POST, [_, "kill"]) => {
            engine.kill_container(&container()?, query.get("signal")).await?;
            Ok(message::no_content())
        }
        (Method::POST, [_, "pause"]) => {
            engine.freeze_container(&container()?, true).await?;
            Ok(message::no_content())
        }
        (Method::POST, [_, "unpause"]) => {
            engine.freeze_container(&container()?, false).await?;
            Ok(message::no_content())
        }
        (Method::POST, [_, "rename"]) => {
            engine.rename_container(&container()?, query.get("name").unwrap_or_default()).await?;
            Ok(message::no_content())
        }
        (Method::POST, [_, "update"]) => {
            let container = container()?;
            let body: Value = request.json().await?;
            engine.update_container(&container, body).await?;
            Ok(message::ok(&json!({ "Warnings": [] })))
        }
        (Method::POST, [_, "wait"]) => wait::wait(container()?, query.get("condition")),
        (Method::POST, [_, "resize"]) => engine.resize(&*container()?, "", &query).await,
        (Method::POST, [_, "attach"]) => attach(&engine, container()?, request),
        (Method::POST, [_, "exec"]) => {
            let container = container()?;
            let body: exec::Request = request.json().await?;
            let exec = engine.add_exec(&container, body)?;
            Ok(message::json(StatusCode::CREATED, &json!({ "Id": exec.id })))
        }
        (Method::DELETE, [_]) => {
            let container = container()?;
            if query.flag("link") {
                return Err(Failure::invalid("links of names are not supported"));
            }
            engine.remove_container(&container, query.flag("force"), query.flag("v")).await?;
            Ok(message::no_content())
        }
        _ => Err(page_not_found()),
    }
}

fn attach(engine: &Engine, container: std::sync::Arc<super::Container>, request: Request) -> Result<Reply> {
    let query = &request.query;
    let (tty, opens_stdin, once) =
        container.with(|record| (record.config.tty, record.config.open_stdin, record.config.stdin_once));
    if container.with(|record| record.state.status) == super::state::Status::Paused {
        return Err(Failure::conflict(format!(
            "container {} is paused, unpause the container before attach",
            container.id
        )));
    }
    let is_streamed = query.flag("stream");
    let wishes = Wishes {
        stdin: is_streamed && query.flag("stdin") && opens_stdin,
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        raw: tty,
        closes_stdin: once && !tty,
        detach: stream::detach_keys(query.get("detachKeys"))?,
    };
    // Without a terminal bytes are bytes.
    let wishes = Wishes { detach: if tty { wishes.detach } else { Vec::new() }, ..wishes };
    let kind = content_type(request.version, tty);
    let heard = container.output.listen();
    let with_past = query.flag("logs");
    let past = Wanted { stdout: wishes.stdout, stderr: wishes.stderr, ..Wanted::default() };
    if !request.wants_upgrade() {
        let (reply, sender) = message::channel(kind);
        tokio::spawn(async move {
            let mut heard = heard;
            while let Some((channel, data)) = heard.recv().await {
                let is_wanted = if channel == Channel::Stdout { wishes.stdout } else { wishes.stderr };
                let data = if wishes.raw { data } else { message::frame(channel, &data) };
                if is_wanted && sender.send(Ok(data)).await.is_err() {
                    return;
                }
            }
        });
        return Ok(reply);
    }
    engine.container_event(&container, "attach", &[]);
    let engine = engine.clone();
    tokio::spawn(async move {
        let Ok(connection) = request.upgrade.await else { return };
        let mut client = TokioIo::new(connection);
        if with_past && replay(&container, past, wishes.raw, &mut client).await.is_err() {
            return;
        }
        if !is_streamed {
            return;
        }
        let (supervisor, namespace, id) =
            (engine.parts.supervisor.clone(), engine.context.namespace.clone(), container.id.clone());
        let output = container.output.clone();
        let close = async move || {
            if let Ok(task) = supervisor.get(&namespace, &id).await {
                // Ignoring: it may have ended.
                let _ = task.close_stdin("").await;
            }
        };
        let left = stream::connect(client, &output, heard, wishes, close).await;
        if left == Left::Detached {
            engine.container_event(&container, "detach", &[]);
        }
    });
    Ok(message::upgraded(kind))
}

/// Tells an attached client what was logged before.
async fn replay(
    container: &super::Container,
    wanted: Wanted,
    is_raw: bool,
    client: &mut message::Connection,
) -> std::io::Result<()> {
    use tokio::io::AsyncWriteExt;
    let mut reader = container.log.reader(None);
    loop {
        let Ok((next, entries)) = reader.next().await else { return Ok(()) };
        if entries.is_empty() {
            return Ok(());
        }
        reader = next;
        for entry in entries.iter().filter(|entry| wanted.accepts(entry)) {
            client.write_all(&shown(entry, is_raw, false)).await?;
        }
    }
}

/// An entry as clients get it.
fn shown(entry: &logs::Entry, is_raw: bool, with_time: bool) -> bytes::Bytes {
    let mut text = String::new();
    if with_time {
        text.push_str(&padded(&entry.time));
        text.push(' ');
    }
    text.push_str(&entry.log);
    let channel = if entry.stream == "stderr" { Channel::Stderr } else { Channel::Stdout };
    if is_raw { text.into() } else { message::frame(channel, text.as_bytes()) }
}

/// A time with all nine digits, so that columns align.
fn padded(time: &str) -> String {
    let plain = time.trim_end_matches('Z');
    let (seconds, fraction) = plain.split_once('.').unwrap_or((plain, ""));
    format!("{seconds}.{fraction:0<9}Z")
}

fn tail(query: &Query) -> Option<usize> {
    // As dockerd: what is no number means all.
    query.filled("tail").and_then(|text| text.parse().ok())
}

fn logs(container: std::sync::Arc<super::Container>, request: &Request) -> Result<Reply> {
    let query = &request.query;
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        return Err(Failure::invalid("Bad parameters: you must choose at least one stream"));
    }
    if container.log.path().is_none() {
        return Err(Failure::new(
            StatusCode::NOT_IMPLEMENTED,
            "configured logging driver does not support reading",
        ));
    }
    let not_zero = |text: &&str| *text != "0";
    let since = query.filled("since").filter(not_zero).map(moment).transpose()?;
    let until = query.filled("until").filter(not_zero).map(moment).transpose()?;
    let wanted = Wanted { stdout, stderr, since, until };
    let (follow, with_time) = (query.flag("follow"), query.flag("timestamps"));
    let tty = container.with(|record| record.config.tty);
    let (reply, client) = message::channel(content_type(request.version, tty));
    let mut milestones = container.milestones.subscribe();
    milestones.borrow_and_update();
    let is_running = container.with(|record| record.state.is_active());
    let mut reader = container.log.reader(tail(query));
    tokio::spawn(async move {
        let mut is_last = !follow || !is_running;
        loop {
            let entries;
            match reader.next().await {
                Ok(read) => (reader, entries) = read,
                Err(failure) => {
                    let _ = client.send(Err(std::io::Error::other(failure.message))).await;
                    return;
                }
            }
            let is_end = entries.is_empty();
            for entry in entries {
                if wanted.is_past(&entry) {
                    return;
                }
                if wanted.accepts(&entry) && client.send(Ok(shown(&entry, tty, with_time))).await.is_err() {
                    return;
                }
            }
            if !is_end {
                continue;
            }
            if is_last {
                return;
            }
            let until_now = async {
                match until
                    .map(|until| until.duration_since(std::time::SystemTime::now()).unwrap_or(Duration::ZERO))
                {
                    Some(rest) => tokio::time::sleep(rest).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = reader.wait() => {}
                _ = milestones.changed() => is_last = !container.with(|record| record.state.is_active()),
                () = client.closed() => return,
                () = until_now => is_last = true,
            }
        }
    });
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_align() {
        assert_eq!(padded("2026-01-01T00:00:00Z"), "2026-01-01T00:00:00.000000000Z");
        assert_eq!(padded("2026-01-01T00:00:00.12Z"), "2026-01-01T00:00:00.120000000Z");
    }

    #[test]
    fn a_tail_is_a_number_or_all() {
        assert_eq!(tail(&Query::parse("tail=5")), Some(5));
        assert_eq!(tail(&Query::parse("tail=all")), None);
        assert_eq!(tail(&Query::parse("")), None);
    }
}
