//! `containerd.services.tasks.v1.Tasks`.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::join_all;
use orlop_proto::any;
use orlop_proto::containerd::runc::v1::{CheckpointOptions, Options};
use orlop_proto::containerd::services::tasks::v1 as proto;
use orlop_proto::containerd::task::v2::{StateResponse, UpdateTaskRequest};
use orlop_proto::containerd::types::Metric;
use orlop_proto::containerd::v1::types::{Process, Status as TaskStatus};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tonic::{Request, Response, Status};

use crate::filter::Filter;
use crate::request::RequestContext;
use crate::store::containers::Containers;
use crate::task::{Create, Exit, Stdio, Supervisor, Task};

/// Serves the tasks.
pub struct TasksService {
    /// What is to be run.
    pub containers: Containers,
    /// What runs.
    pub supervisor: Supervisor,
}

impl TasksService {
    /// The task of a container; a container that does not exist is told apart from one that does not run.
    async fn task<T>(&self, request: &Request<T>, id: &str) -> Result<Arc<Task>> {
        let context = RequestContext::of(request)?;
        match self.supervisor.get(&context.namespace, id).await {
            Ok(task) => Ok(task),
            Err(error) => Err(self.containers.get(&context, id).await.err().unwrap_or(error)),
        }
    }
}

fn process(id: &str, state: StateResponse) -> Process {
    Process {
        id: id.to_owned(),
        pid: state.pid,
        status: state.status,
        stdin: state.stdin,
        stdout: state.stdout,
        stderr: state.stderr,
        terminal: state.terminal,
        exit_status: state.exit_status,
        exited_at: state.exited_at,
        ..Default::default()
    }
}

fn deleted(id: String, exit: Exit) -> proto::DeleteResponse {
    proto::DeleteResponse { id, pid: exit.pid, exit_status: exit.status, exited_at: exit.at }
}

/// A task of which nothing but the name can be told.
fn unknown(id: &str) -> Process {
    Process { id: id.to_owned(), status: TaskStatus::Unknown as i32, ..Default::default() }
}

#[tonic::async_trait]
impl proto::tasks_server::Tasks for TasksService {
    async fn create(
        &self,
        request: Request<proto::CreateTaskRequest>,
    ) -> Result<Response<proto::CreateTaskResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let request = request.into_inner();
        let container = self.containers.get(&context, &request.container_id).await?;
        if request.checkpoint.is_some() {
            return Err(Error::new(Kind::Unimplemented, "restoring a checkpoint from content", "").into());
        }
        // Options that come with the task replace the container's.
        let own = request.options.filter(|options| !options.value.is_empty());
        let runtime = match request.runtime_path.is_empty() {
            true => container.runtime.name,
            false => request.runtime_path,
        };
        let options = own.or(container.runtime.options);
        let images = match &options {
            Some(any) if any::is::<Options>(any) => any::unpack::<Options>(any)?.criu_image_path,
            _ => String::new(),
        };
        let create = Create {
            id: container.id,
            spec: container.spec.unwrap_or_default().value,
            runtime,
            options,
            rootfs: request.rootfs,
            stdio: Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            images,
            sandbox: container.sandbox,
        };
        let container_id = create.id.clone();
        let pid = self.supervisor.create(&context.namespace, create).await?;
        Ok(Response::new(proto::CreateTaskResponse { container_id, pid }))
    }

    async fn start(
        &self,
        request: Request<proto::StartRequest>,
    ) -> Result<Response<proto::StartResponse>, Status> {
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let pid = task.start(&request.get_ref().exec_id).await?;
        Ok(Response::new(proto::StartResponse { pid }))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteTaskRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let id = &request.get_ref().container_id;
        self.task(&request, id).await?;
        let exit = self.supervisor.delete(&context.namespace, id).await?;
        Ok(Response::new(deleted(String::new(), exit)))
    }

    async fn delete_process(
        &self,
        request: Request<proto::DeleteProcessRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let exec = request.into_inner().exec_id;
        let exit = task.delete_process(&exec).await?;
        Ok(Response::new(deleted(exec, exit)))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let exec = &request.get_ref().exec_id;
        let state = task.state(exec).await?;
        let id = if exec.is_empty() { task.id() } else { exec };
        Ok(Response::new(proto::GetResponse { process: Some(process(id, state)) }))
    }

    async fn list(
        &self,
        request: Request<proto::ListTasksRequest>,
    ) -> Result<Response<proto::ListTasksResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let tasks = self.supervisor.list(&context.namespace).await;
        let states = join_all(tasks.iter().map(|task| task.state_soon())).await;
        let listed = tasks.iter().zip(states).filter_map(|(task, state)| match state {
            Ok(state) => Some(process(task.id(), state)),
            // A deaf shim still has its container; one that has gone has none.
            Err(error) if error.kind() == Kind::DeadlineExceeded => Some(unknown(task.id())),
            Err(_) => None,
        });
        Ok(Response::new(proto::ListTasksResponse { tasks: listed.collect() }))
    }

    async fn kill(&self, request: Request<proto::KillRequest>) -> Result<Response<()>, Status> {
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let proto::KillRequest { exec_id, signal, all, .. } = request.get_ref();
        task.kill(exec_id, *signal, *all).await?;
        Ok(Response::new(()))
    }

    async fn exec(&self, request: Request<proto::ExecProcessRequest>) -> Result<Response<()>, Status> {
        if request.get_ref().exec_id.is_empty() {
            return Err(Status::invalid_argument("exec id cannot be empty"));
        }
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let proto::ExecProcessRequest { exec_id, stdin, stdout, stderr, terminal, spec, .. } =
            request.into_inner();
        task.exec(&exec_id, Stdio { stdin, stdout, stderr, terminal }, spec).await?;
        Ok(Response::new(()))
    }

    async fn resize_pty(&self, request: Request<proto::ResizePtyRequest>) -> Result<Response<()>, Status> {
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let proto::ResizePtyRequest { exec_id, width, height, .. } = request.get_ref();
        task.resize(exec_id, *width, *height).await?;
        Ok(Response::new(()))
    }

    async fn close_io(&self, request: Request<proto::CloseIoRequest>) -> Result<Response<()>, Status> {
        let task = self.task(&request, &request.get_ref().container_id).await?;
        if request.get_ref().stdin {
            task.close_stdin(&request.get_ref().exec_id).await?;
        }
        Ok(Response::new(()))
    }

    async fn pause(&self, request: Request<proto::PauseTaskRequest>) -> Result<Response<()>, Status> {
        self.task(&request, &request.get_ref().container_id).await?.pause().await?;
        Ok(Response::new(()))
    }

    async fn resume(&self, request: Request<proto::ResumeTaskRequest>) -> Result<Response<()>, Status> {
        self.task(&request, &request.get_ref().container_id).await?.resume().await?;
        Ok(Response::new(()))
    }

    async fn list_pids(
        &self,
        request: Request<proto::ListPidsRequest>,
    ) -> Result<Response<proto::ListPidsResponse>, Status> {
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let processes = task.pids().await?.processes;
        Ok(Response::new(proto::ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<proto::CheckpointTaskRequest>,
    ) -> Result<Response<proto::CheckpointTaskResponse>, Status> {
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let options = request.into_inner().options;
        let path = match &options {
            Some(any) if any::is::<CheckpointOptions>(any) => {
                any::unpack::<CheckpointOptions>(any)?.image_path
            }
            _ => String::new(),
        };
        if path.is_empty() {
            return Err(Error::new(Kind::Unimplemented, "checkpointing a task into content", "").into());
        }
        task.checkpoint(&path, options).await?;
        // What lies in a directory of the client's is not content.
        Ok(Response::new(proto::CheckpointTaskResponse::default()))
    }

    async fn update(&self, request: Request<proto::UpdateTaskRequest>) -> Result<Response<()>, Status> {
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let proto::UpdateTaskRequest { container_id: id, resources, annotations } = request.into_inner();
        task.update(UpdateTaskRequest { id, resources, annotations }).await?;
        Ok(Response::new(()))
    }

    async fn metrics(
        &self,
        request: Request<proto::MetricsRequest>,
    ) -> Result<Response<proto::MetricsResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let filter = Filter::parse(&request.get_ref().filters)?;
        let mut tasks = self.supervisor.list(&context.namespace).await;
        tasks.retain(|task| {
            filter.matches(&|path: &[&str]| match path {
                ["id", ..] => Some(task.id().to_owned()),
                ["namespace", ..] => Some(task.namespace().to_owned()),
                _ => None,
            })
        });
        let metrics = join_all(tasks.iter().map(|task| async move {
            let timestamp = Some(SystemTime::now().into());
            match task.stats().await {
                Ok(data) => Some(Metric { timestamp, id: task.id().to_owned(), data }),
                Err(error) => {
                    tracing::debug!(id = task.id(), "collect metrics: {error}");
                    None
                }
            }
        }));
        Ok(Response::new(proto::MetricsResponse { metrics: metrics.await.into_iter().flatten().collect() }))
    }

    async fn wait(
        &self,
        request: Request<proto::WaitRequest>,
    ) -> Result<Response<proto::WaitResponse>, Status> {
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let exit = task.wait(&request.get_ref().exec_id).await?;
        Ok(Response::new(proto::WaitResponse { exit_status: exit.status, exited_at: exit.at }))
    }
}
