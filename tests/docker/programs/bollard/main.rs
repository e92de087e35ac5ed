//! What users of bollard do: a container's life, its output, a program in it, an image from a Dockerfile, a volume, events.

use std::collections::HashMap;

use bollard::Docker;
use bollard::body_full;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, EventMessage, HostConfig, VolumeCreateRequest};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, BuildImageOptionsBuilder, CreateContainerOptionsBuilder, EventsOptionsBuilder,
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions, RemoveVolumeOptions,
};
use futures_util::{StreamExt, TryStreamExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let docker = Docker::connect_with_defaults()?.negotiate_version().await?;
    docker.ping().await?;

    // An image from a Dockerfile, in a context that is an archive.
    let context = std::fs::read(std::env::args().nth(1).ok_or("an archive")?)?;
    let options = BuildImageOptionsBuilder::default().t("bollard-built").rm(true).build();
    let said: Vec<_> =
        docker.build_image(options, None, Some(body_full(context.into()))).try_collect().await?;
    assert!(said.iter().any(|line| line.stream.as_deref().is_some_and(|text| text.contains("Successfully built"))));

    // A volume, and a container with it that answers what it is asked.
    let volume = VolumeCreateRequest { name: Some("bollard-data".to_owned()), ..Default::default() };
    docker.create_volume(volume).await?;
    let body = ContainerCreateBody {
        image: Some("bollard-built".to_owned()),
        cmd: Some(["sh", "-c", "while read word; do echo got $word | tee -a /data/words; done; exit 3"].map(str::to_owned).to_vec()),
        open_stdin: Some(true),
        stdin_once: Some(true),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        host_config: Some(HostConfig {
            binds: Some(vec!["bollard-data:/data".to_owned()]),
            network_mode: Some("none".to_owned()),
            ..Default::default()
        }),
        labels: Some(HashMap::from([("made-by".to_owned(), "bollard".to_owned())])),
        ..Default::default()
    };
    let name = CreateContainerOptionsBuilder::default().name("asks").build();
    let id = docker.create_container(Some(name), body).await?.id;
    let options = AttachContainerOptionsBuilder::default().stdin(true).stdout(true).stream(true).build();
    let mut attached = docker.attach_container(&id, Some(options)).await?;
    docker.start_container(&id, None).await?;
    use tokio::io::AsyncWriteExt;
    attached.input.write_all(b"one\n").await?;
    let answer = attached.output.next().await.ok_or("an answer")??;
    assert!(matches!(&answer, LogOutput::StdOut { message } if message.as_ref() == b"got one\n"), "{answer:?}");

    // A program in it.
    let exec = CreateExecOptions {
        cmd: Some(vec!["sh", "-c", "cat /data/words; echo wrong >&2; exit 4"]),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..Default::default()
    };
    let exec = docker.create_exec(&id, exec).await?.id;
    let StartExecResults::Attached { output, .. } = docker.start_exec(&exec, None).await? else {
        return Err("not attached".into());
    };
    let mut heard: Vec<String> = output.map_ok(|piece| format!("{piece:?}")).try_collect().await?;
    heard.sort();
    assert!(heard.len() == 2 && heard[0].starts_with("StdErr") && heard[1].starts_with("StdOut"), "{heard:?}");
    assert_eq!(docker.inspect_exec(&exec).await?.exit_code, Some(4));

    // Its end, which is the end of its input; bollard tells an exit code as an error.
    attached.input.shutdown().await?;
    let ended = docker.wait_container(&id, None).try_collect::<Vec<_>>().await;
    assert!(matches!(ended, Err(Error::DockerContainerWaitError { code: 3, .. })), "{ended:?}");
    let logs = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
    let logs: Vec<LogOutput> = docker.logs(&id, Some(logs)).try_collect().await?;
    assert_eq!(logs.iter().map(ToString::to_string).collect::<String>(), "got one\n");
    docker.remove_container(&id, Some(RemoveContainerOptionsBuilder::default().v(true).build())).await?;
    let gone = docker.inspect_container(&id, None).await;
    assert!(matches!(gone, Err(Error::DockerResponseServerError { status_code: 404, .. })), "{gone:?}");
    docker.remove_volume("bollard-data", None::<RemoveVolumeOptions>).await?;
    docker.remove_image("bollard-built", None::<RemoveImageOptions>, None).await?;

    // All of that was told.
    let filters = HashMap::from([("container", vec!["asks"])]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() + 1;
    let options = EventsOptionsBuilder::default().since("0").until(&now.to_string()).filters(&filters).build();
    let told: Vec<EventMessage> = docker.events(Some(options)).try_collect().await?;
    let told: Vec<String> = told.into_iter().filter_map(|event| event.action).collect();
    for action in ["create", "attach", "start", "die", "destroy"] {
        assert!(told.iter().any(|told| told == action), "{action}: {told:?}");
    }
    println!("done");
    Ok(())
}
