//! `orlopctl tasks`.

use std::path::Path;

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::ProcessDetails;
use orlop_proto::containerd::services::tasks::v1::*;
use orlop_proto::containerd::types::Metric;
use orlop_proto::containerd::v1::types::{Process as Record, Status};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec::{Accounts, merge_env};
use prost_types::Any;
use serde_json::{Value, json};

use super::run::{Connection, Start, start};
use super::{Context, checkpoint, containers, network};
use crate::cli::tasks::{Exec, Tasks};
use crate::metrics::Usage;
use crate::output::{self, Gap, Table};
use crate::process::Process;
use crate::stdio::{Paths, Streams};
use crate::terminal::Raw;
use crate::{create, mounts, signals, stdio};

const SIGKILL: u32 = 9;

pub async fn execute(context: &Context<'_>, verb: Tasks) -> Result<u32> {
    let mut service = context.client.tasks();
    match verb {
        Tasks::Attach { container } => attach(context, container).await,
        Tasks::Checkpoint { exit, image_path, work_path, container } => {
            checkpoint::task(context, &container, checkpoint::Options { exit, image_path, work_path })
                .await?;
            Ok(0)
        }
        Tasks::Delete { force, exec_id, containers } => delete(context, force, exec_id, containers).await,
        Tasks::Exec(options) => exec(context, options).await,
        Tasks::List { quiet } => list(context, quiet).await,
        Tasks::Kill { signal, exec_id, all, container } => {
            kill(context, signal, exec_id, all, container).await?;
            Ok(0)
        }
        Tasks::Metrics { container } => metrics(context, container).await,
        Tasks::Pause { container } => {
            service.pause(PauseTaskRequest { container_id: container }).await?;
            Ok(0)
        }
        Tasks::Ps { container } => ps(context, container).await,
        Tasks::Resume { container } => {
            service.resume(ResumeTaskRequest { container_id: container }).await?;
            Ok(0)
        }
        Tasks::Start { stdio, pid_file, detach, no_pivot, container } => {
            let spec = containers::spec_json(&containers::get(context, &container).await?)?;
            let tty = spec["process"]["terminal"].as_bool().unwrap_or(false);
            let pid_file = pid_file.as_deref();
            let options = Start { pid_file, no_pivot, ..Start::new(&stdio, tty, detach) };
            start(context, &container, options).await
        }
        Tasks::Wait { exec_id, container } => {
            let process = process(context, container, exec_id);
            let code = process.wait().await?;
            output::print(&format!("{code}\n"))?;
            Ok(0)
        }
    }
}

fn process(context: &Context<'_>, container: String, exec: Option<String>) -> Process {
    Process { client: context.client.clone(), container, exec: exec.unwrap_or_default() }
}

async fn record(context: &Context<'_>, process: &Process) -> Result<Record> {
    let request = GetRequest { container_id: process.container.clone(), exec_id: process.exec.clone() };
    let response = context.client.tasks().get(request).await?.into_inner();
    response.process.ok_or_else(|| Error::new(Kind::NotFound, "task", format!("{:?}", process.container)))
}

fn paths(record: &Record) -> Paths {
    Paths {
        stdin: record.stdin.clone(),
        stdout: record.stdout.clone(),
        stderr: record.stderr.clone(),
        terminal: record.terminal,
    }
}

async fn attach(context: &Context<'_>, container: String) -> Result<u32> {
    let process = process(context, container, None);
    let record = record(context, &process).await?;
    let mut paths = paths(&record);
    for path in [&mut paths.stdin, &mut paths.stdout, &mut paths.stderr] {
        if path.contains("://") {
            // A log is written by the shim; there is nothing to connect to.
            path.clear();
        }
    }
    let watch = process.watch()?;
    let _raw = if record.terminal { Raw::enter()? } else { None };
    let mut streams = Streams::open(&paths)?;
    streams.opened();
    let code = process.attend(watch, &mut streams, record.terminal).await?;
    process.delete().await?;
    stdio::remove_below(&context.fifo_directory(), &paths);
    network::leave(context, &process.container, None).await?;
    Ok(code)
}

async fn exec(context: &Context<'_>, options: Exec) -> Result<u32> {
    let [container_id, arguments @ ..] = options.words.as_slice() else {
        return Err(Error::because(Kind::InvalidArgument, "exec", "", "container id must be provided"));
    };
    let container = containers::get(context, container_id).await?;
    let mut spec = containers::spec_json(&container)?;
    let accounts = match &options.user {
        None => Accounts::default(),
        Some(_) if container.snapshot_key.is_empty() => {
            mounts::accounts_below(Path::new(spec["root"]["path"].as_str().unwrap_or("/")))?
        }
        Some(_) => {
            let (snapshotter, key) = (&container.snapshotter, &container.snapshot_key);
            create::snapshot_accounts(context.client, context.global, snapshotter, key).await?
        }
    };
    let wanted = exec_process(spec["process"].take(), &options, arguments, &accounts)?;
    let value = serde_json::to_vec(&wanted)
        .map_err(|error| Error::because(Kind::Internal, "encode", "process", error))?;
    let mut stdio = Connection::open(context, &options.stdio, &options.exec_id, options.tty, options.detach)?;
    let _raw = if options.tty && !options.detach { Raw::enter()? } else { None };
    let paths = stdio.paths.clone();
    let request = ExecProcessRequest {
        container_id: container_id.clone(),
        stdin: paths.stdin,
        stdout: paths.stdout,
        stderr: paths.stderr,
        terminal: paths.terminal,
        spec: Some(Any { type_url: any::PROCESS_URL.to_owned(), value }),
        exec_id: options.exec_id.clone(),
    };
    if let Err(status) = context.client.tasks().exec(request).await {
        stdio.close();
        return Err(status.into());
    }
    let process = process(context, container_id.clone(), Some(options.exec_id.clone()));
    let started = async {
        let watch = (!options.detach).then(|| process.watch()).transpose()?;
        process.start().await?;
        Ok(watch)
    }
    .await;
    let watch = match started {
        Ok(watch) => watch,
        Err(error) => {
            // What went wrong before is what is reported.
            let _ = process.delete().await;
            stdio.close();
            return Err(error);
        }
    };
    stdio.opened();
    let Some(watch) = watch else { return Ok(0) };
    let code = process.attend(watch, &mut stdio.streams, options.tty).await;
    let deleted = process.delete().await;
    stdio.close();
    let code = code?;
    deleted?;
    Ok(code)
}

/// The container's process changed into the one to run. What is not changed is kept as it is, known to us or not.
fn exec_process(
    mut process: Value,
    options: &Exec,
    arguments: &[String],
    accounts: &Accounts,
) -> Result<Value> {
    process["args"] = arguments.into();
    process["terminal"] = options.tty.into();
    if let Some(directory) = &options.cwd {
        process["cwd"] = directory.clone().into();
    }
    let mut env: Vec<String> = serde_json::from_value(process["env"].take()).unwrap_or_default();
    if options.tty && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    process["env"] = merge_env(&env, &options.env).into();
    if let Some(user) = &options.user {
        let resolved = accounts.user(user)?;
        process["user"]["uid"] = resolved.uid.into();
        process["user"]["gid"] = resolved.gid.into();
        process["user"]["additionalGids"] = accounts.groups(&resolved.uid.to_string(), resolved.gid).into();
    }
    Ok(process)
}

async fn kill(
    context: &Context<'_>,
    signal: Option<String>,
    exec_id: Option<String>,
    all: bool,
    container: String,
) -> Result<()> {
    let number = match signal {
        Some(signal) => signals::parse(&signal)?,
        None => {
            let labels = containers::get(context, &container).await?.labels;
            signals::parse(labels.get(create::STOP_SIGNAL).map_or("SIGTERM", String::as_str))?
        }
    };
    process(context, container, exec_id).kill(number, all).await
}

async fn delete(
    context: &Context<'_>,
    force: bool,
    exec_id: Option<String>,
    containers: Vec<String>,
) -> Result<u32> {
    let mut failed = None;
    let mut last = 0;
    let is_exec = exec_id.is_some();
    for container in containers {
        match delete_one(context, force, process(context, container.clone(), exec_id.clone())).await {
            Ok(code) => {
                if code != 0 && !is_exec {
                    eprintln!("orlopctl: task {container} exited with code {code}");
                }
                last = code;
            }
            Err(error) => {
                // Every task is tried; what went wrong before the last failure is said here.
                if let Some(earlier) = failed.replace(error) {
                    eprintln!("orlopctl: {earlier}");
                }
            }
        }
    }
    match failed {
        Some(error) => Err(error),
        None if is_exec => Ok(last),
        None => Ok(0),
    }
}

async fn delete_one(context: &Context<'_>, force: bool, process: Process) -> Result<u32> {
    let record = record(context, &process).await?;
    if force && record.status != Status::Stopped as i32 {
        let exit = process.exit();
        match process.kill(SIGKILL, process.exec.is_empty()).await {
            Ok(()) => {
                exit.await.map_err(|error| {
                    Error::because(Kind::Internal, "wait for", &process.container, error)
                })??;
            }
            // It ended meanwhile, or never ran.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::FailedPrecondition) => exit.abort(),
            Err(error) => return Err(error),
        }
    }
    let code = process.delete().await?;
    stdio::remove_below(&context.fifo_directory(), &paths(&record));
    if process.exec.is_empty() {
        network::leave(context, &process.container, None).await?;
    }
    Ok(code)
}

async fn list(context: &Context<'_>, quiet: bool) -> Result<u32> {
    let mut tasks = context.client.tasks().list(ListTasksRequest::default()).await?.into_inner().tasks;
    tasks.sort_by(|one, other| one.id.cmp(&other.id));
    if quiet {
        output::print(&tasks.iter().map(|task| format!("{}\n", task.id)).collect::<String>())?;
        return Ok(0);
    }
    let status = |task: &Record| Status::try_from(task.status).unwrap_or(Status::Unknown).as_str_name();
    if context.json() {
        let rows = tasks.iter().map(|task| {
            json!({ "id": task.id, "pid": task.pid, "status": status(task), "exit_status": task.exit_status })
        });
        output::json(&rows.collect())?;
        return Ok(0);
    }
    let mut table = Table::new(Gap::Spaces(4), &["TASK", "PID", "STATUS"]);
    for task in &tasks {
        table.open([task.id.clone(), task.pid.to_string(), status(task).to_owned()]);
    }
    table.print()?;
    Ok(0)
}

async fn ps(context: &Context<'_>, container: String) -> Result<u32> {
    let request = ListPidsRequest { container_id: container };
    let processes = context.client.tasks().list_pids(request).await?.into_inner().processes;
    let exec = |info: &Option<Any>| {
        let details = info.as_ref().and_then(|info| any::unpack::<ProcessDetails>(info).ok());
        details.map(|details| details.exec_id)
    };
    if context.json() {
        let rows =
            processes.iter().map(|process| json!({ "pid": process.pid, "exec_id": exec(&process.info) }));
        output::json(&rows.collect())?;
        return Ok(0);
    }
    let mut table = Table::headless(Gap::Spaces(4));
    table.open(["PID", "INFO"].map(str::to_owned));
    for process in &processes {
        let info = exec(&process.info).map_or_else(|| "-".to_owned(), |id| format!("exec_id:{id:?}"));
        table.open([process.pid.to_string(), info]);
    }
    table.print()?;
    Ok(0)
}

async fn metrics(context: &Context<'_>, container: String) -> Result<u32> {
    let request = MetricsRequest { filters: vec![format!("id=={container}")] };
    let metrics = context.client.tasks().metrics(request).await?.into_inner().metrics;
    let Some(metric) = metrics.first() else {
        return Err(Error::new(Kind::NotFound, "no metrics of task", format!("{container:?}")));
    };
    let usage = Usage::of(metric)?;
    if context.json() {
        output::json(&usage.json()?)?;
    } else {
        print_usage(metric, &usage)?;
    }
    Ok(0)
}

fn print_usage(metric: &Metric, usage: &Usage) -> Result<()> {
    let mut head = Table::new(Gap::Spaces(4), &["ID", "TIMESTAMP"]);
    head.closed([metric.id.clone(), output::go_time(&metric.timestamp)]);
    let mut rows = Table::new(Gap::Spaces(4), &["METRIC", "VALUE"]);
    for (name, value) in usage.rows() {
        rows.closed([name.to_owned(), value]);
    }
    output::print(&format!("{}\n{}", head.render(), rows.render()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn an_exec_keeps_what_it_does_not_change() {
        let words = [
            "orlopctl",
            "tasks",
            "exec",
            "--exec-id",
            "e",
            "-t",
            "--user",
            "7:8",
            "--env",
            "A=2",
            "c",
            "ls",
            "-l",
        ];
        let cli = crate::cli::Cli::try_parse_from(words).unwrap();
        let crate::cli::Command::Tasks(Tasks::Exec(options)) = cli.command else { panic!("not exec") };
        assert_eq!(options.words, ["c", "ls", "-l"]);
        let process = json!({ "env": ["A=1"], "cwd": "/", "scheduler": { "policy": "SCHED_IDLE" } });
        let changed = exec_process(process, &options, &options.words[1..], &Accounts::default()).unwrap();
        assert_eq!(changed["scheduler"]["policy"], "SCHED_IDLE");
        assert_eq!(changed["env"], json!(["A=2", "TERM=xterm"]));
        assert_eq!(changed["args"], json!(["ls", "-l"]));
        assert_eq!(changed["user"]["uid"], 7);
        assert_eq!(changed["user"]["additionalGids"], json!([8]));
        assert_eq!(changed["terminal"], true);
    }
}
