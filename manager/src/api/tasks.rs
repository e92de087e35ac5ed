//! `containerd.services.tasks.v1.Tasks`.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::{BoxFuture, join_all};
use orlop_proto::any;
use orlop_proto::containerd::runc::v1::{CheckpointOptions, Options};
use orlop_proto::containerd::services::tasks::v1 as proto;
use orlop_proto::containerd::task::v2::{StateResponse, UpdateTaskRequest};
use orlop_proto::containerd::types::Metric;
use orlop_proto::containerd::v1::types::{Process, Status as TaskStatus};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tonic::{Request, Response, Status};

use super::convert;
use crate::external::sandboxer::Sandboxers;
use crate::filter::Filter;
use crate::image::ImageService;
use crate::request::RequestContext;
use crate::store::containers::Containers;
use crate::store::sandboxes::Sandboxes;
use crate::task::{Create, Exit, Images, Saved, Stdio, Supervisor, Task};

/// Serves the tasks.
pub struct TasksService {
    /// What is to be run.
    pub containers: Containers,
    /// The groups that it is in.
    pub sandboxes: Sandboxes,
    /// Programs that run such groups.
    pub sandboxers: Sandboxers,
    /// What runs.
    pub supervisor: Supervisor,
    /// Where saved tasks are.
    pub images: ImageService,
}

/// Annotation of a checkpoint that lies in a directory.
const RESTORE_FROM: &str = "RestoreFromPath";

/// A saved task in the content store.
struct Checkpoint {
    images: ImageService,
    context: RequestContext,
    media_type: String,
    digest: String,
}

impl Saved for Checkpoint {
    fn unpack<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, Result<()>> {
        let Checkpoint { images, context, media_type, digest } = self;
        Box::pin(images.restore_checkpoint(context, media_type, digest, directory))
    }
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

impl TasksService {
    /// Where an external controller's sandbox takes containers, and the version that is spoken there.
    async fn endpoint(&self, context: &RequestContext, sandbox: &str) -> Result<Option<(String, u32)>> {
        if sandbox.is_empty() {
            return Ok(None);
        }
        match self.sandboxes.get(context, sandbox).await {
            Ok(found) => self.sandboxers.endpoint(&context.namespace, &found.sandboxer, sandbox).await,
            // The client's own grouping.
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
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
        // Options that come with the task replace the container's.
        let own = request.options.filter(|options| !options.value.is_empty());
        let runtime = match request.runtime_path.is_empty() {
            true => container.runtime.name,
            false => request.runtime_path,
        };
        let options = own.or(container.runtime.options);
        let directory = match &options {
            Some(any) if any::is::<Options>(any) => any::unpack::<Options>(any)?.criu_image_path,
            _ => String::new(),
        };
        let images = match request.checkpoint {
            _ if !directory.is_empty() => Images::In(directory),
            None => Images::None,
            // As the CRI of containerd asks for it.
            Some(checkpoint) if checkpoint.annotations.contains_key(RESTORE_FROM) => {
                Images::In(checkpoint.annotations[RESTORE_FROM].clone())
            }
            Some(checkpoint) => Images::Saved(Arc::new(Checkpoint {
                images: self.images.clone(),
                context: context.clone(),
                media_type: checkpoint.media_type,
                digest: checkpoint.digest,
            })),
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
            endpoint: self.endpoint(&context, &container.sandbox).await?,
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
        let context = RequestContext::of(&request)?;
        let task = self.task(&request, &request.get_ref().container_id).await?;
        let options = request.into_inner().options;
        let path = match &options {
            Some(any) if any::is::<CheckpointOptions>(any) => {
                any::unpack::<CheckpointOptions>(any)?.image_path
            }
            _ => String::new(),
        };
        if !path.is_empty() {
            task.checkpoint(&path, options).await?;
            // What lies in a directory of the client's is not content.
            return Ok(Response::new(proto::CheckpointTaskResponse::default()));
        }
        let spec = self.containers.get(&context, task.id()).await?.spec.unwrap_or_default();
        let images = self.images.clone();
        // A client that goes away must not leave a directory half way.
        let work = tokio::spawn(async move {
            let directory = task.checkpoint_directory().await?;
            let saved = match task.checkpoint(&directory.path().display().to_string(), options).await {
                Ok(()) => images.save_checkpoint(&context, directory.path(), &spec).await,
                Err(error) => Err(error),
            };
            directory.remove().await?;
            saved
        });
        let saved = work.await.map_err(|error| Error::because(Kind::Internal, "save", "task", error))??;
        let descriptors = saved.into_iter().map(convert::descriptor).collect();
        Ok(Response::new(proto::CheckpointTaskResponse { descriptors }))
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
