//! `/_ping`, `/version`, `/info` and `/events`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{CACHE_CONTROL, CONTENT_TYPE, PRAGMA};
use http::{HeaderValue, Method, StatusCode};
use orlop_proto::contract::time::rfc3339_nano;
use serde_json::{Value, json};

use super::events::{Event, FILTERS};
use super::failure::{Failure, Result};
use super::filters::Filters;
use super::message::{self, Reply, Request};
use super::route::{NEWEST, OLDEST, page_not_found, reads};
use super::{Engine, host};

/// The version that clients are told: that of the dockerd whose behaviour is followed, with ours as build metadata.
pub const VERSION: &str = concat!("28.5.2+orlop.", env!("CARGO_PKG_VERSION"));

/// Answers a request.
pub async fn answer(engine: Engine, request: Request) -> Result<Reply> {
    let segments = request.segments();
    match (&request.method, segments.as_slice()) {
        (method, ["_ping"]) if reads(method) => Ok(ping(method)),
        (&Method::GET, ["version"]) => Ok(message::ok(&version())),
        (&Method::GET, ["info"]) => Ok(message::ok(&info(&engine).await?)),
        (&Method::GET, ["events"]) => events(&engine, &request),
        _ => Err(page_not_found()),
    }
}

fn ping(method: &Method) -> Reply {
    let text = if method == Method::HEAD { "" } else { "OK" };
    let mut reply = message::bytes(StatusCode::OK, "text/plain; charset=utf-8", text);
    let headers = reply.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    // 1 is the classic builder: there is no BuildKit in here.
    headers.insert("Builder-Version", HeaderValue::from_static("1"));
    headers.insert("Swarm", HeaderValue::from_static("inactive"));
    if method == Method::HEAD {
        headers.remove(CONTENT_TYPE);
    }
    reply
}

fn version() -> Value {
    let kernel = host::kernel();
    let details = json!({
        "ApiVersion": NEWEST.to_string(),
        "Arch": host::architecture(),
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "GoVersion": "",
        "KernelVersion": kernel,
        "MinAPIVersion": OLDEST.to_string(),
        "Os": "linux",
    });
    json!({
        "Platform": { "Name": "orlop" },
        "Components": [{ "Name": "Engine", "Version": VERSION, "Details": details }],
        "Version": VERSION,
        "ApiVersion": NEWEST.to_string(),
        "MinAPIVersion": OLDEST.to_string(),
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": host::architecture(),
        "KernelVersion": kernel,
        "BuildTime": "",
    })
}

async fn info(engine: &Engine) -> Result<Value> {
    let images = engine.parts.names.list(&engine.context, &[]).await?.len();
    let mut all = machine();
    let engine = json!({
        "ID": engine.parts.id,
        "Containers": 0,
        "ContainersRunning": 0,
        "ContainersPaused": 0,
        "ContainersStopped": 0,
        "Images": images,
        "DockerRootDir": engine.parts.root.display().to_string(),
        "SystemTime": rfc3339_nano(SystemTime::now()),
        "NFd": host::open_descriptors(),
        "Debug": tracing::enabled!(tracing::Level::DEBUG),
    });
    for part in [engine, constant()] {
        if let (Value::Object(all), Value::Object(part)) = (&mut all, part) {
            all.extend(part);
        }
    }
    Ok(all)
}

/// What is so on this machine.
fn machine() -> Value {
    let cgroups = host::cgroup_version();
    json!({
        "OomKillDisable": cgroups == "1",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": cgroups,
        "KernelVersion": host::kernel(),
        "OperatingSystem": host::operating_system(),
        "OSVersion": host::operating_system_version(),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "NCPU": host::processors(),
        "MemTotal": host::memory(),
        "Name": host::name(),
        "SecurityOptions": host::security_options(),
    })
}

/// What is so everywhere.
fn constant() -> Value {
    let mut all = json!({
        "Driver": "overlayfs",
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "macvlan", "ipvlan", "null"],
            "Authorization": null,
            "Log": ["json-file", "local", "none"],
        },
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "IndexConfigs": {
                "docker.io": { "Name": "docker.io", "Mirrors": [], "Secure": true, "Official": true },
            },
            "Mirrors": null,
        },
        "ServerVersion": VERSION,
        "LoggingDriver": "json-file",
        "Runtimes": { "io.containerd.runc.v2": { "path": "orlop" }, "runc": { "path": "orlop" } },
        "DefaultRuntime": "runc",
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": false,
            "Error": "",
            "RemoteManagers": null,
        },
        "InitBinary": "docker-init",
    });
    let commit = json!({ "ID": "" });
    for (value, names) in [
        (
            json!(true),
            &["MemoryLimit", "SwapLimit", "CpuCfsPeriod", "CpuCfsQuota", "CPUShares", "CPUSet", "PidsLimit"]
                [..],
        ),
        (json!(true), &["IPv4Forwarding", "LiveRestoreEnabled"]),
        (json!(false), &["ExperimentalBuild"]),
        (json!(0), &["NGoroutines", "NEventsListener"]),
        (json!(""), &["HttpProxy", "HttpsProxy", "NoProxy", "Isolation"]),
        (json!([]), &["Labels", "CDISpecDirs", "Warnings"]),
        (json!(null), &["GenericResources"]),
        (commit, &["ContainerdCommit", "RuncCommit", "InitCommit"]),
    ] {
        for name in names {
            all[*name] = value.clone();
        }
    }
    all
}

/// A moment as clients give it: seconds since 1970, with a fraction.
///
/// # Errors
///
/// 400 for anything else.
pub fn moment(text: &str) -> Result<SystemTime> {
    let wrong = || Failure::invalid(format!("invalid value for time: {text:?}"));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = seconds.parse().map_err(|_| wrong())?;
    let nanoseconds: u32 = match fraction.len() {
        0 => 0,
        1..=9 => format!("{fraction:0<9}").parse().map_err(|_| wrong())?,
        _ => return Err(wrong()),
    };
    Ok(UNIX_EPOCH + Duration::new(seconds, nanoseconds))
}

fn events(engine: &Engine, request: &Request) -> Result<Reply> {
    let filters = Filters::parse(request.query.get("filters"), &FILTERS)?;
    let since = request.query.filled("since").map(moment).transpose()?;
    let until = request.query.filled("until").map(moment).transpose()?;
    let (past, mut coming) = engine.events.listen();
    let (reply, sender) = message::channel("application/json");
    let at = |event: &Event| UNIX_EPOCH + Duration::from_nanos(event.time_nano);
    tokio::spawn(async move {
        let is_wanted =
            |event: &Event| event.is_chosen(&filters) && until.is_none_or(|until| at(event) <= until);
        let asked = past.into_iter().filter(|event| since.is_some_and(|since| at(event) >= since));
        for event in asked.filter(|event| is_wanted(event)) {
            if sender.send(Ok(message::line(&event))).await.is_err() {
                return;
            }
        }
        let end = async {
            match until.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default()) {
                Some(rest) => tokio::time::sleep(rest).await,
                None => std::future::pending().await,
            }
        };
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                () = sender.closed() => return,
                event = coming.recv() => match event {
                    Ok(event) if is_wanted(&event) => {
                        if sender.send(Ok(message::line(&event))).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    // One that is too slow is cut off rather than told half.
                    Err(_) => return,
                },
            }
        }
    });
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_fractions() {
        assert_eq!(moment("5").unwrap(), UNIX_EPOCH + Duration::from_secs(5));
        assert_eq!(moment("5.25").unwrap(), UNIX_EPOCH + Duration::from_millis(5250));
        assert_eq!(moment("5.000000001").unwrap(), UNIX_EPOCH + Duration::new(5, 1));
        for wrong in ["", "x", "-1", "5.x", "5.0000000001"] {
            assert_eq!(moment(wrong).unwrap_err().status, 400, "{wrong}");
        }
    }
}
