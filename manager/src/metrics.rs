//! What the daemon counts and times, in the text format of OpenMetrics, which Prometheus reads.

use std::convert::Infallible;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;

/// Labels of a metric.
type Labels = Vec<(&'static str, String)>;

/// Media type of the answer.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is counted.
pub struct Metrics {
    registry: Mutex<Registry>,
    calls: Family<Labels, Histogram, fn() -> Histogram>,
    /// Calls that have no answer, or whose answer has not ended.
    pub calls_open: Gauge,
    /// Calls refused as there were too many.
    pub calls_refused: Counter,
    work: Family<Labels, Histogram, fn() -> Histogram>,
    collected: Family<Labels, Counter>,
    tasks: Gauge,
}

/// The metrics of this process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// From half a millisecond to eight seconds.
fn short() -> Histogram {
    Histogram::new([0.0005, 0.002, 0.008, 0.032, 0.128, 0.512, 2.048, 8.192])
}

/// From a hundredth of a second to ten minutes.
fn long() -> Histogram {
    Histogram::new([0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0])
}

impl Metrics {
    fn new() -> Metrics {
        let mut registry = Registry::with_prefix("orlopd");
        let calls: Family<Labels, Histogram, fn() -> Histogram> = Family::new_with_constructor(short);
        let work: Family<Labels, Histogram, fn() -> Histogram> = Family::new_with_constructor(long);
        let collected: Family<Labels, Counter> = Family::default();
        let (calls_open, calls_refused, tasks) = (Gauge::default(), Counter::default(), Gauge::default());
        let help = "Time to the answer of a call, by method and gRPC code";
        registry.register_with_unit("call_duration", help, Unit::Seconds, calls.clone());
        registry.register("calls_open", "Calls being answered", calls_open.clone());
        registry.register("calls_refused", "Calls refused as there were too many", calls_refused.clone());
        let help = "Time of a pull, an unpacking, a collection or a start, by kind and result";
        registry.register_with_unit("work_duration", help, Unit::Seconds, work.clone());
        registry.register(
            "collected",
            "Things that the garbage collection removed, by kind",
            collected.clone(),
        );
        registry.register("tasks", "Containers that have a task, each of which has a shim", tasks.clone());
        Metrics { registry: Mutex::new(registry), calls, calls_open, calls_refused, work, collected, tasks }
    }

    /// Notes the answer to a call.
    pub fn call(&self, method: &str, code: &str, elapsed: Duration) {
        let labels = vec![("method", method.to_owned()), ("code", code.to_owned())];
        self.calls.get_or_create(&labels).observe(elapsed.as_secs_f64());
    }

    /// Notes the end of something that takes long: `pull`, `unpack`, `collect`, `start`.
    pub fn work<T>(&self, kind: &'static str, result: &Result<T>, elapsed: Duration) {
        let result = if result.is_ok() { "ok" } else { "error" };
        let labels = vec![("kind", kind.to_owned()), ("result", result.to_owned())];
        self.work.get_or_create(&labels).observe(elapsed.as_secs_f64());
    }

    /// Notes what a garbage collection removed.
    pub fn collected(&self, kind: &'static str, count: usize) {
        self.collected.get_or_create(&vec![("kind", kind.to_owned())]).inc_by(count as u64);
    }

    /// Everything, as text.
    pub fn text(&self, tasks: usize) -> Result<String> {
        self.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        encode(&mut text, &registry)
            .map_err(|error| Error::because(Kind::Internal, "write", "metrics", error))?;
        Ok(text)
    }
}

/// Listens where metrics are asked for over HTTP.
pub async fn listen(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.context("listen on", address)
}

/// Serves the metrics to whoever connects.
pub async fn serve(listener: TcpListener, tasks: impl Fn() -> usize + Clone + Send + 'static) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "metrics: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let tasks = tasks.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let answer = answer(request.uri().path(), tasks());
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(async move {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "metrics");
            }
        });
    }
}

fn answer(path: &str, tasks: usize) -> Response<String> {
    let (status, kind, text) = match (path, METRICS.text(tasks)) {
        ("/metrics" | "/v1/metrics", Ok(text)) => (StatusCode::OK, MEDIA_TYPE, text),
        ("/metrics" | "/v1/metrics", Err(error)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n"))
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_work_are_counted_by_their_labels() {
        let metrics = Metrics::new();
        metrics.call("/x/Get", "0", Duration::from_millis(3));
        metrics.work::<()>("pull", &Err(Error::new(Kind::NotFound, "pull", "x")), Duration::from_secs(2));
        metrics.collected("content", 3);
        let text = metrics.text(7).unwrap();
        for line in [
            "orlopd_call_duration_seconds_count{method=\"/x/Get\",code=\"0\"} 1",
            "orlopd_work_duration_seconds_bucket{le=\"5.0\",kind=\"pull\",result=\"error\"} 1",
            "orlopd_collected_total{kind=\"content\"} 3",
            "orlopd_tasks 7",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
