//! Traces: each call's span, and those of the work that it causes, go to a collector by OTLP where one is configured.
//!
//! The standard environment variables say where and how (OpenTelemetry, "OTLP exporter configuration", "SDK environment
//! variables"); `[tracing]` in the configuration says it where they do not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tokio::runtime::Handle;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::config::{self, TracingProtocol};

/// Variables that name a collector, of which the first is for traces alone.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Variables that name the protocol.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
/// What a service is called that nobody named.
const SERVICE: &str = "orlopd";
/// Where OTLP over HTTP takes traces.
const HTTP_PATH: &str = "/v1/traces";
/// How long the last spans may take at the end.
const LAST: Duration = Duration::from_secs(2);
/// How long a connection to the collector may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Whether spans are sent.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// Whether spans are sent: only then is there any use in what they alone have.
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// Sends spans to a collector for as long as it lives.
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts sending where a collector is configured. The calls to it are made by the given runtime.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for an address or a protocol that cannot be.
    pub fn start(config: &config::Tracing, runtime: &Handle) -> Result<Option<Traces>> {
        let variable = |names: [&str; 2]| {
            names.into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        };
        let is_off = |name, value| std::env::var(name).is_ok_and(|found| found.eq_ignore_ascii_case(value));
        if is_off("OTEL_SDK_DISABLED", "true") || is_off("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        let named = variable(ENDPOINTS);
        if named.is_none() && config.endpoint.is_none() {
            return Ok(None);
        }
        let protocol = match variable(PROTOCOLS).as_deref() {
            None => config.protocol,
            Some("http/protobuf") => TracingProtocol::Http,
            Some("grpc") => TracingProtocol::Grpc,
            Some(other) => {
                let why = format!("{other:?} is neither \"http/protobuf\" nor \"grpc\"");
                return Err(Error::because(Kind::InvalidArgument, "start", "traces", why));
            }
        };
        // What the environment says, the exporter reads by itself.
        let endpoint = config.endpoint.clone().filter(|_| named.is_none());
        let _entered = runtime.enter();
        let exporter = match protocol {
            TracingProtocol::Http => {
                let builder = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
                let builder = builder.with_http_client(Client::new(runtime)?);
                match endpoint {
                    Some(endpoint) => builder.with_endpoint(http_endpoint(&endpoint)).build(),
                    None => builder.build(),
                }
            }
            TracingProtocol::Grpc => {
                let builder = SpanExporter::builder().with_tonic();
                match endpoint {
                    Some(endpoint) => builder.with_endpoint(endpoint).build(),
                    None => builder.build(),
                }
            }
        };
        let invalid = |error| Error::because(Kind::InvalidArgument, "start", "traces", error);
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource =
                resource.with_service_name(config.service_name.clone().unwrap_or_else(|| SERVICE.to_owned()));
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter.map_err(invalid)?)
            .build();
        IS_ON.store(true, Ordering::Relaxed);
        Ok(Some(Traces { provider }))
    }

    /// What spans become spans of.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer(SERVICE)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// The address for traces at a collector's address without a path.
fn http_endpoint(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    match rest.trim_end_matches('/').contains('/') {
        true => address.to_owned(),
        false => format!("{}{HTTP_PATH}", address.trim_end_matches('/')),
    }
}

/// Makes a caller's span, if its headers name one, the parent of ours (W3C Trace Context).
pub fn follow(span: &Span, headers: &http::HeaderMap) {
    if headers.contains_key("traceparent") {
        // Ignoring: nobody may be listening for spans.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&HeaderExtractor(headers)));
    }
}

/// Carries what is sent over HTTP, on the daemon's own threads.
#[derive(Clone, Debug)]
struct Client {
    http: reqwest::Client,
    runtime: Handle,
}

impl Client {
    fn new(runtime: &Handle) -> Result<Client> {
        // reqwest is built without a provider of its own. An error means that one is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || reqwest::Client::builder().connect_timeout(CONNECT);
        let http = match builder().build() {
            // A machine without certificates of its own can still speak plain HTTP.
            Err(_) => builder().tls_certs_only([]).build(),
            built => built,
        };
        let http = http.map_err(|error| Error::because(Kind::Unavailable, "set up", "TLS", error))?;
        Ok(Client { http, runtime: runtime.clone() })
    }
}

#[tonic::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let response = http.execute(request.try_into()?).await?;
            let status = response.status();
            let mut answer = http::Response::builder().status(status);
            if let Some(headers) = answer.headers_mut() {
                headers.extend(response.headers().clone());
            }
            Ok(answer.body(response.bytes().await?)?)
        });
        sent.await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_path_is_a_collectors() {
        for (given, used) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://traces.example.com/own/place", "https://traces.example.com/own/place"),
        ] {
            assert_eq!(http_endpoint(given), used);
        }
    }
}
