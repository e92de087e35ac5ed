//! The end points below `/containers`.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::attach;
use super::config::CreateBody;
use super::exec::{self, content_type};
use super::logs::Wanted;
use super::operate::PRUNE_FILTERS;
use super::{logs, wait};
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::filters::Filters;
use crate::docker::image::wanted_platform;
use crate::docker::message::{self, Channel, Query, Reply, Request};
use crate::docker::moment;
use crate::docker::route::page_not_found;

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
            let platform = query.filled("platform").map(|text| wanted_platform(Some(text))).transpose()?;
            let created = engine.create_container(query.get("name"), platform, body).await?;
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
            let container =
                container().map_err(|failure| failure.within(&format!("cannot kill container: {name}")))?;
            engine.kill_container(&container, query.get("signal")).await?;
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
        (Method::POST, [_, "attach"]) => attach::attach(&engine, container()?, request),
        (Method::GET, [_, "attach", "ws"]) => attach::attach_by_web_socket(&engine, container()?, request),
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

/// An entry as clients get it.
pub(super) fn shown(entry: &logs::Entry, is_raw: bool, with_time: bool, with_details: bool) -> bytes::Bytes {
    let mut text = String::new();
    if with_time {
        text.push_str(&padded(&entry.time));
        text.push(' ');
    }
    if with_details {
        text.push_str(&details(&entry.attributes));
        text.push(' ');
    }
    text.push_str(&entry.log);
    let channel = if entry.stream == "stderr" { Channel::Stderr } else { Channel::Stdout };
    if is_raw { text.into() } else { message::frame(channel, text.as_bytes()) }
}

/// What options add to an entry: `name=value,…`, each as in a query.
fn details(attributes: &std::collections::BTreeMap<String, String>) -> String {
    let escape = |text: &String| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pairs = attributes.iter().map(|(name, value)| format!("{}={}", escape(name), escape(value)));
    pairs.collect::<Vec<_>>().join(",")
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
    let since = query.filled("since").filter(not_zero).map(moment::exact).transpose()?;
    let until = query.filled("until").filter(not_zero).map(moment::exact).transpose()?;
    let wanted = Wanted { stdout, stderr, since, until };
    let (follow, with_time, with_details) =
        (query.flag("follow"), query.flag("timestamps"), query.flag("details"));
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
                let text = || shown(&entry, tty, with_time, with_details);
                if wanted.accepts(&entry) && client.send(Ok(text())).await.is_err() {
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
    fn details_are_escaped() {
        let attributes = [("a b", "1"), ("c", "x,y")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(details(&attributes), "a+b=1,c=x%2Cy");
    }

    #[test]
    fn a_tail_is_a_number_or_all() {
        assert_eq!(tail(&Query::parse("tail=5")), Some(5));
        assert_eq!(tail(&Query::parse("tail=all")), None);
        assert_eq!(tail(&Query::parse("")), None);
    }
}
