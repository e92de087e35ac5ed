//! `orlopctl plugins inspect-runtime`: what a shim says of itself.

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options as RuncOptions;
use orlop_proto::containerd::services::introspection::v1::PluginInfoRequest;
use orlop_proto::containerd::types::{RuntimeInfo, RuntimeRequest};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::runtimeoptions::v1::Options as ConfigOptions;
use prost_types::Any;
use serde_json::{Map, Value, json};

use super::Context;
use crate::cli::container::Runtime;
use crate::create::RUNC_RUNTIMES;
use crate::output;

/// The part of a server that runs tasks.
const TASKS: (&str, &str) = ("io.containerd.runtime.v2", "task");

pub async fn inspect(context: &Context<'_>, options: &Runtime) -> Result<()> {
    let request = RuntimeRequest { runtime_path: options.runtime.clone(), options: wanted(options)? };
    let request = PluginInfoRequest {
        r#type: TASKS.0.to_owned(),
        id: TASKS.1.to_owned(),
        options: Some(any::pack(&request)),
    };
    let answer = context.client.introspection().plugin_info(request).await?.into_inner();
    let extra = answer.extra.ok_or_else(|| {
        Error::because(Kind::Unimplemented, "inspect", &options.runtime, "the server tells nothing of it")
    })?;
    let info: RuntimeInfo = any::unpack(&extra)?;
    let version = info.version.unwrap_or_default();
    output::json(&json!({
        "Name": info.name,
        "Version": { "Version": version.version, "Revision": version.revision },
        "Options": info.options.as_ref().map(told),
        "Features": info.features.as_ref().map(told),
        "Annotations": (!info.annotations.is_empty()).then_some(info.annotations),
    }))
}

/// The options of a container with the same words.
fn wanted(options: &Runtime) -> Result<Option<Any>> {
    if RUNC_RUNTIMES.contains(&options.runtime.as_str()) {
        return Ok(Some(any::pack(&RuncOptions {
            binary_name: options.runc_binary.clone().unwrap_or_default(),
            root: options.runc_root.clone().unwrap_or_default(),
            systemd_cgroup: options.runc_systemd_cgroup,
            ..RuncOptions::default()
        })));
    }
    if options.runc_binary.is_some() || options.runc_systemd_cgroup {
        let reason = "specifying runc-binary and runc-systemd-cgroup is only supported for \
                      \"io.containerd.runc.v2\" runtime";
        return Err(Error::because(Kind::InvalidArgument, "--runc-binary", "", reason));
    }
    let config = options.runtime_config_path.as_ref();
    Ok(config.map(|path| any::pack(&ConfigOptions { config_path: path.clone(), ..ConfigOptions::default() })))
}

/// What is within, as Go prints it: options without what is empty, and what is JSON as it is.
fn told(value: &Any) -> Value {
    let Ok(options) = any::unpack::<RuncOptions>(value) else {
        return serde_json::from_slice(&value.value).unwrap_or(Value::Null);
    };
    let all = json!({
        "no_pivot_root": options.no_pivot_root,
        "no_new_keyring": options.no_new_keyring,
        "shim_cgroup": options.shim_cgroup,
        "io_uid": options.io_uid,
        "io_gid": options.io_gid,
        "binary_name": options.binary_name,
        "root": options.root,
        "systemd_cgroup": options.systemd_cgroup,
        "criu_image_path": options.criu_image_path,
        "criu_work_path": options.criu_work_path,
        "task_api_address": options.task_api_address,
        "task_api_version": options.task_api_version,
    });
    let is_set = |value: &Value| *value != json!(0) && *value != json!("") && *value != json!(false);
    let members: Map<String, Value> = match all {
        Value::Object(all) => all.into_iter().filter(|(_, value)| is_set(value)).collect(),
        _ => Map::new(),
    };
    Value::Object(members)
}
