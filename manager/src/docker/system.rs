//! `/_ping`, `/version`, `/info`, `/events` and `/system/df`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{CACHE_CONTROL, CONTENT_TYPE, PRAGMA};
use http::{HeaderValue, Method, StatusCode};
use orlop_proto::contract::time::rfc3339_nano;
use serde_json::{Value, json};

use super::container::state::Status;
use super::events::{Event, FILTERS};
use super::failure::Result;
use super::filters::Filters;
use super::message::{self, Reply, Request};
use super::route::{NEWEST, OLDEST, page_not_found, reads};
use super::settings::Settings;
use super::{Engine, host, moment};

/// The version that clients are told: that of the dockerd whose behaviour is followed, with ours as build metadata.
pub const VERSION: &str = concat!("28.5.2+orlop.", env!("CARGO_PKG_VERSION"));

/// Answers a request.
pub async fn answer(engine: Engine, request: Request) -> Result<Reply> {
    let segments = request.segments();
    match (&request.method, segments.as_slice()) {
        (method, ["_ping"]) if reads(method) => Ok(ping(&engine, method)),
        (&Method::GET, ["version"]) => Ok(message::ok(&version())),
        (&Method::GET, ["info"]) => Ok(message::ok(&info(&engine).await?)),
        (&Method::GET, ["events"]) => events(&engine, &request),
        (&Method::GET, ["system", "df"]) => Ok(message::ok(&engine.disk_usage(&request).await?)),
        _ => Err(page_not_found()),
    }
}

fn ping(engine: &Engine, method: &Method) -> Reply {
    let text = if method == Method::HEAD { "" } else { "OK" };
    let mut reply = message::bytes(StatusCode::OK, "text/plain; charset=utf-8", text);
    let headers = reply.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    // 1 is the classic builder, 2 BuildKit.
    let builder = if engine.parts.buildkit.is_some() { "2" } else { "1" };
    headers.insert("Builder-Version", HeaderValue::from_static(builder));
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
    let count = |is_one: fn(Status) -> bool| {
        let all = engine.containers.all().into_iter();
        all.filter(|container| is_one(container.with(|record| record.state.status))).count()
    };
    let settings = engine.settings();
    let mut runtimes = json!({ "io.containerd.runc.v2": { "path": "orlop" }, "runc": { "path": "orlop" } });
    for (name, runtime) in &settings.runtimes {
        runtimes[name] = match runtime.path.as_str() {
            "" => json!({ "runtimeType": runtime.runtime_type }),
            path => json!({ "path": path, "runtimeArgs": runtime.runtime_args }),
        };
    }
    let mut all = machine();
    let engine = json!({
        "SecurityOptions": host::security_options(engine.apparmor.machine.is_on, engine.parts.owners.is_some()),
        "ID": engine.parts.id,
        "Containers": count(|_| true),
        "ContainersRunning": count(|status| matches!(status, Status::Running | Status::Restarting)),
        "ContainersPaused": count(|status| status == Status::Paused),
        "ContainersStopped": count(|status| {
            !matches!(status, Status::Running | Status::Restarting | Status::Paused)
        }),
        "Images": images,
        "DockerRootDir": engine.parts.root.display().to_string(),
        "SystemTime": rfc3339_nano(SystemTime::now()),
        "NFd": host::open_descriptors(),
        "Labels": settings.labels,
        "LoggingDriver": settings.log_driver,
        "DefaultRuntime": settings.default_runtime,
        "Runtimes": runtimes,
        "CgroupDriver": if settings.systemd_cgroup { "systemd" } else { "cgroupfs" },
        "CDISpecDirs": settings.cdi,
        "InitBinary": if settings.init_path.is_empty() { "docker-init" } else { &settings.init_path },
        "RegistryConfig": registries(&settings),
        "Debug": tracing::enabled!(tracing::Level::DEBUG),
    });
    for part in [constant(), engine] {
        if let (Value::Object(all), Value::Object(part)) = (&mut all, part) {
            all.extend(part);
        }
    }
    Ok(all)
}

/// The registries that are reached in ways of their own.
fn registries(settings: &Settings) -> Value {
    let is_range = |text: &&String| text.parse::<ipnet::IpNet>().is_ok();
    let ranges = settings.insecure.iter().filter(is_range).map(String::as_str);
    let ranges: Vec<&str> = ranges.chain(["::1/128", "127.0.0.0/8"]).collect();
    let mut named = json!({
        "docker.io": { "Name": "docker.io", "Mirrors": settings.mirrors, "Secure": true, "Official": true },
    });
    for host in settings.insecure.iter().filter(|text| !is_range(text)) {
        named[host] = json!({ "Name": host, "Mirrors": [], "Secure": false, "Official": false });
    }
    json!({ "InsecureRegistryCIDRs": ranges, "IndexConfigs": named, "Mirrors": settings.mirrors })
}

/// What is so on this machine.
fn machine() -> Value {
    let cgroups = host::cgroup_version();
    json!({
        "OomKillDisable": cgroups == "1",
        "CgroupVersion": cgroups,
        "KernelVersion": host::kernel(),
        "OperatingSystem": host::operating_system(),
        "OSVersion": host::operating_system_version(),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "NCPU": host::processors(),
        "MemTotal": host::memory(),
        "Name": host::name(),
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
        "ServerVersion": VERSION,
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": false,
            "Error": "",
            "RemoteManagers": null,
        },
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
        (json!([]), &["Warnings"]),
        (json!(null), &["GenericResources"]),
        (commit, &["ContainerdCommit", "RuncCommit", "InitCommit"]),
    ] {
        for name in names {
            all[*name] = value.clone();
        }
    }
    all
}

fn events(engine: &Engine, request: &Request) -> Result<Reply> {
    let filters = Filters::parse(request.query.get("filters"), &FILTERS)?;
    let since = request.query.filled("since").map(moment::exact).transpose()?;
    let until = request.query.filled("until").map(moment::exact).transpose()?;
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
