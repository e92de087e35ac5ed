//! The API as it describes itself.

use orlop_tests::{Daemon, Orlopd, Root};
use tokio_stream::StreamExt;
use tonic::Request;

use crate::client::Client;

macro_rules! told {
    ($version:ident, $client:expr, $question:ident($text:expr)) => {{
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::{ServerReflectionRequest, server_reflection_response};
        let question = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::$question($text.to_owned())),
        };
        let answer = $client
            .call(async |channel| {
                let questions = Request::new(tokio_stream::once(question));
                let answers = ServerReflectionClient::new(channel).server_reflection_info(questions).await?;
                let first = answers.into_inner().next().await.expect("an answer")?;
                Ok(tonic::Response::new(first))
            })
            .unwrap();
        match answer.message_response.unwrap() {
            server_reflection_response::MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
            }
            server_reflection_response::MessageResponse::FileDescriptorResponse(files) => files
                .file_descriptor_proto
                .iter()
                .map(|file| String::from_utf8_lossy(file).into_owned())
                .collect(),
            other => panic!("{other:?}"),
        }
    }};
}

#[test]
fn tools_learn_the_api_from_the_daemon() {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let client = Client::new(daemon.address(), daemon.namespace());
    let services: Vec<String> = told!(v1, client, ListServices(""));
    assert_eq!(
        services.iter().filter(|name| name.starts_with("containerd.services.")).count(),
        16,
        "{services:?}"
    );
    let older: Vec<String> = told!(v1alpha, client, ListServices(""));
    assert!(older.contains(&"containerd.services.tasks.v1.Tasks".to_owned()), "{older:?}");
    let files: Vec<String> = told!(v1, client, FileContainingSymbol("containerd.services.images.v1.Images"));
    assert!(files.iter().any(|file| file.contains("ListImagesRequest")), "{files:?}");
}
