//! `orlopctl events`, `version`, `info` and `plugins`.

use orlop_proto::containerd::services::events::v1::SubscribeRequest;
use orlop_proto::containerd::services::introspection::v1::{Plugin, PluginsRequest};
use orlop_proto::containerd::types::Envelope;
use orlop_proto::error::Result;
use orlop_proto::orlop::admin::v1::InfoRequest;
use serde_json::{Value, json};
use tonic::Code;

use super::Context;
use crate::cli::plugins::Plugins;
use crate::output::{self, Gap, Table};

pub async fn events(context: &Context<'_>, filters: Vec<String>) -> Result<()> {
    let mut stream = context.client.events().subscribe(SubscribeRequest { filters }).await?.into_inner();
    while let Some(envelope) = stream.message().await? {
        output::print(&event_line(&envelope, context.json()))?;
    }
    Ok(())
}

/// One event on one line.
fn event_line(envelope: &Envelope, json: bool) -> String {
    let event = envelope.event.clone().unwrap_or_default();
    let content = crate::events::json(&event);
    if !json {
        let content = content.map_or_else(|| event.type_url.clone(), |content| content.to_string());
        let time = output::go_time(&envelope.timestamp);
        return format!("{time} {} {} {content}\n", envelope.namespace, envelope.topic);
    }
    let line = json!({
        "timestamp": output::timestamp(&envelope.timestamp),
        "namespace": envelope.namespace,
        "topic": envelope.topic,
        "type": event.type_url,
        "event": content,
    });
    format!("{line}\n")
}

pub async fn version(context: &Context<'_>) -> Result<()> {
    let client = json!({ "version": env!("CARGO_PKG_VERSION"), "revision": revision() });
    let server = context.client.version().version(()).await?.into_inner();
    let about = context.client.introspection().server(()).await?.into_inner();
    if context.json() {
        let server = json!({ "version": server.version, "revision": server.revision, "uuid": about.uuid });
        return output::json(&json!({ "client": client, "server": server }));
    }
    output::print(&format!(
        "Client:\n  Version:  {}\n  Revision: {}\n\nServer:\n  Version:  {}\n  Revision: {}\n  UUID: {}\n",
        env!("CARGO_PKG_VERSION"),
        revision(),
        server.version,
        server.revision,
        about.uuid
    ))
}

/// The commit this was built from, where the build says it.
fn revision() -> &'static str {
    option_env!("ORLOP_REVISION").unwrap_or("unknown")
}

pub async fn info(context: &Context<'_>) -> Result<()> {
    let about = context.client.introspection().server(()).await?.into_inner();
    let server = json!({ "uuid": about.uuid, "pid": about.pid, "pidns": about.pidns });
    let more = match context.client.admin().info(InfoRequest {}).await {
        Ok(more) => more.into_inner(),
        // Another server of the same API.
        Err(status) if status.code() == Code::Unimplemented => {
            return output::json(&json!({ "server": server }));
        }
        Err(status) => return Err(status.into()),
    };
    output::json(&json!({
        "server": server,
        "version": more.version,
        "startedAt": output::timestamp(&more.started_at),
        "root": more.root,
        "state": more.state,
        "address": more.address,
        "metrics": more.metrics_address,
        "snapshotters": more.snapshotters,
        "runtimes": more.runtimes,
        "counts": {
            "namespaces": more.namespaces,
            "images": more.images,
            "containers": more.containers,
            "tasks": more.tasks,
            "snapshots": more.snapshots,
            "blobs": more.blobs,
            "leases": more.leases,
        },
        "disk": { "size": more.disk_size, "free": more.disk_free },
    }))
}

/// What the server warns of; nothing where there is nothing.
pub async fn deprecations(context: &Context<'_>) -> Result<()> {
    let warnings = context.client.introspection().server(()).await?.into_inner().deprecations;
    if warnings.is_empty() {
        return Ok(());
    }
    if context.json() {
        let rows = warnings.iter().map(|warning| {
            json!({
                "id": warning.id,
                "message": warning.message,
                "lastOccurrence": output::timestamp(&warning.last_occurrence),
            })
        });
        return output::json(&rows.collect());
    }
    let mut table = Table::new(Gap::Spaces(4), &["ID", "LAST OCCURRENCE", "MESSAGE"]);
    for warning in warnings {
        table.open([warning.id, output::timestamp(&warning.last_occurrence), warning.message]);
    }
    table.print()
}

pub async fn plugins(context: &Context<'_>, verb: Plugins) -> Result<()> {
    let (quiet, detailed, filters) = match verb {
        Plugins::List { quiet, detailed, filters } => (quiet, detailed, filters),
        Plugins::InspectRuntime(options) => return super::runtime::inspect(context, &options).await,
    };
    let plugins =
        context.client.introspection().plugins(PluginsRequest { filters }).await?.into_inner().plugins;
    if quiet {
        let ids: String = plugins.iter().map(|plugin| format!("{}\n", plugin.id)).collect();
        return output::print(&ids);
    }
    if context.json() {
        return output::json(&plugins.iter().map(plugin_json).collect());
    }
    if detailed {
        return output::print(&plugins.iter().map(plugin_text).collect::<String>());
    }
    let mut table = Table::new(Gap::Spaces(4), &["TYPE", "ID", "PLATFORMS", "STATUS"]);
    for plugin in &plugins {
        let platforms = match platforms(plugin) {
            platforms if platforms.is_empty() => "-".to_owned(),
            platforms => platforms,
        };
        table.closed([plugin.r#type.clone(), plugin.id.clone(), platforms, status(plugin).to_owned()]);
    }
    table.print()
}

fn platforms(plugin: &Plugin) -> String {
    let name = |platform: &orlop_proto::containerd::types::Platform| match platform.variant.as_str() {
        "" => format!("{}/{}", platform.os, platform.architecture),
        variant => format!("{}/{}/{variant}", platform.os, platform.architecture),
    };
    plugin.platforms.iter().map(name).collect::<Vec<_>>().join(",")
}

fn status(plugin: &Plugin) -> &'static str {
    match &plugin.init_err {
        None => "ok",
        Some(error) if error.code == Code::Unimplemented as i32 => "skip",
        Some(_) => "error",
    }
}

fn plugin_json(plugin: &Plugin) -> Value {
    json!({
        "type": plugin.r#type,
        "id": plugin.id,
        "platforms": platforms(plugin),
        "status": status(plugin),
        "requires": plugin.requires,
        "exports": plugin.exports,
        "capabilities": plugin.capabilities,
        "error": plugin.init_err.as_ref().map(|error| &error.message),
    })
}

/// All about a plugin, in paragraphs.
fn plugin_text(plugin: &Plugin) -> String {
    let mut text = format!("Type:          {}\nID:            {}\n", plugin.r#type, plugin.id);
    let mut list = |head: &str, items: Vec<String>| {
        if !items.is_empty() {
            text.push_str(&format!("{head}\n"));
            text.extend(items.iter().map(|item| format!("               {item}\n")));
        }
    };
    list("Requires:", plugin.requires.clone());
    if !plugin.platforms.is_empty() {
        list("Platforms:", vec![platforms(plugin)]);
    }
    let mut exports: Vec<String> =
        plugin.exports.iter().map(|(key, value)| format!("{key}={value}")).collect();
    exports.sort();
    list("Exports:", exports);
    list("Capabilities:", plugin.capabilities.clone());
    if let Some(error) = &plugin.init_err {
        list("Error:", vec![format!("{}: {}", error.code, error.message)]);
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_proto::any;
    use orlop_proto::containerd::events::TaskOom;

    #[test]
    fn an_event_is_one_line() {
        let envelope = Envelope {
            namespace: "n".into(),
            topic: "/tasks/oom".into(),
            event: Some(any::pack(&TaskOom { container_id: "c".into() })),
            ..Envelope::default()
        };
        let line = event_line(&envelope, false);
        assert!(line.ends_with(" n /tasks/oom {\"container_id\":\"c\"}\n"), "{line}");
        let parsed: Value = serde_json::from_str(&event_line(&envelope, true)).unwrap();
        assert_eq!(parsed["event"]["container_id"], "c");
    }
}
