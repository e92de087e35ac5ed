//! `grpc.reflection.v1` and `v1alpha`: the API as it describes itself to tools such as grpcurl.
//!
//! The schema is decoded when somebody first asks: nothing of it stays in the memory of a daemon that nobody asks.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_reflection::server::Builder;
use tower::Service;
use tower::util::BoxCloneSyncService;

type Inner = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;
type Answer = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

fn descriptors<'a>() -> Builder<'a> {
    Builder::configure().register_encoded_file_descriptor_set(orlop_proto::DESCRIPTORS)
}

/// Answers with the reason why there is nothing to tell.
fn broken(error: impl std::fmt::Display) -> Inner {
    let text = format!("read the schema of the API: {error}");
    let answer = move |_| std::future::ready(Ok(tonic::Status::internal(text.clone()).into_http()));
    BoxCloneSyncService::new(tower::service_fn(answer))
}

macro_rules! reflection {
    ($(#[$docs:meta])* $name:ident, $service:literal, $build:ident) => {
        $(#[$docs])*
        #[derive(Clone, Default)]
        pub struct $name(Arc<OnceLock<Inner>>);

        impl NamedService for $name {
            const NAME: &'static str = $service;
        }

        impl Service<Request<Body>> for $name {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Answer;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: Request<Body>) -> Answer {
                let built = || match descriptors().$build() {
                    Ok(service) => BoxCloneSyncService::new(service),
                    Err(error) => broken(error),
                };
                // The server is ready at all times.
                let mut service = self.0.get_or_init(built).clone();
                Box::pin(async move { service.call(request).await })
            }
        }
    };
}

reflection!(
    /// Version 1.
    Reflection,
    "grpc.reflection.v1.ServerReflection",
    build_v1
);
reflection!(
    /// The version before, which older tools ask for.
    ReflectionAlpha,
    "grpc.reflection.v1alpha.ServerReflection",
    build_v1alpha
);
