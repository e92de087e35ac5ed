//! Health checks: a program in the container that says from time to time whether it is well.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use orlop_proto::contract::time::rfc3339_nano;
use serde_json::{Value, json};

use super::Container;
use super::config::Healthcheck;
use super::exec::{Exec, Request};
use crate::docker::Engine;

/// How much of a check's output is kept, in bytes.
const OUTPUT: usize = 4096;
/// How many checks are kept.
const KEPT: usize = 5;

/// Times of a check, with the defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u64,
}

fn times(check: &Healthcheck) -> Times {
    let or = |nanoseconds: i64, default: u64| match u64::try_from(nanoseconds) {
        Ok(0) | Err(_) => Duration::from_secs(default),
        Ok(nanoseconds) => Duration::from_nanos(nanoseconds),
    };
    Times {
        interval: or(check.interval, 30),
        timeout: or(check.timeout, 30),
        start_period: or(check.start_period, 0),
        start_interval: or(check.start_interval, 5),
        retries: u64::try_from(check.retries).ok().filter(|&retries| retries > 0).unwrap_or(3),
    }
}

/// The words of a check; nothing where there is none.
fn words(check: &Healthcheck, shell: Option<&[String]>) -> Option<Vec<String>> {
    match check.test.split_first() {
        Some((kind, rest)) if kind == "CMD" && !rest.is_empty() => Some(rest.to_vec()),
        Some((kind, rest)) if kind == "CMD-SHELL" && !rest.is_empty() => {
            let default = ["/bin/sh".to_owned(), "-c".to_owned()];
            let mut words = shell.filter(|shell| !shell.is_empty()).unwrap_or(&default).to_vec();
            words.push(rest.join(" "));
            Some(words)
        }
        _ => None,
    }
}

/// What is known of a container's health as it starts; nothing where it has no check.
pub fn first(check: Option<&Healthcheck>) -> Option<Value> {
    words(check?, None)?;
    Some(json!({ "Status": "starting", "FailingStreak": 0, "Log": [] }))
}

/// What is known once it has ended.
pub fn last(mut health: Value) -> Value {
    if health["Status"] == "starting" || health["Status"] == "healthy" {
        health["Status"] = json!("unhealthy");
    }
    health
}

/// What a check changes.
fn after(mut health: Value, result: Value, code: i64, in_start_period: bool, retries: u64) -> Value {
    let streak = health["FailingStreak"].as_u64().unwrap_or(0);
    if code == 0 {
        health["FailingStreak"] = json!(0);
        health["Status"] = json!("healthy");
    } else if !(in_start_period && health["Status"] == "starting") {
        health["FailingStreak"] = json!(streak + 1);
        if streak + 1 >= retries {
            health["Status"] = json!("unhealthy");
        }
    }
    if let Some(log) = health["Log"].as_array_mut() {
        log.push(result);
        if log.len() > KEPT {
            log.remove(0);
        }
    }
    health
}

impl Engine {
    /// Checks a running container until it ends.
    pub(super) fn watch_health(&self, container: &Arc<Container>) {
        let record = container.record();
        let Some(check) = record.config.healthcheck.clone() else { return };
        let Some(words) = words(&check, record.config.shell.as_deref()) else { return };
        let (engine, container, times) = (self.clone(), container.clone(), times(&check));
        tokio::spawn(async move {
            let mut milestones = container.milestones.subscribe();
            let begun = SystemTime::now();
            loop {
                let in_start_period = begun.elapsed().is_ok_and(|since| since < times.start_period);
                let is_starting = container.with(|record| {
                    record.state.health.as_ref().is_some_and(|health| health["Status"] == "starting")
                });
                let wait = if in_start_period && is_starting { times.start_interval } else { times.interval };
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = milestones.changed() => return,
                }
                if !container.with(|record| record.state.status == super::state::Status::Running) {
                    continue;
                }
                engine.check_health(&container, &words, times, in_start_period).await;
            }
        });
    }

    async fn check_health(
        &self,
        container: &Arc<Container>,
        words: &[String],
        times: Times,
        in_start_period: bool,
    ) {
        let start = rfc3339_nano(SystemTime::now());
        let (code, output) = match self.probe(container, words, times.timeout).await {
            Ok(found) => found,
            Err(text) => (-1, text),
        };
        let result = json!({
            "Start": start,
            "End": rfc3339_nano(SystemTime::now()),
            "ExitCode": code,
            "Output": output,
        });
        let changed = self
            .change(container, |record| {
                let before = record.state.health.take()?;
                let old = before["Status"].clone();
                let health = after(before, result, code, in_start_period, times.retries);
                let new = health["Status"].clone();
                record.state.health = Some(health);
                (old != new).then(|| new.as_str().unwrap_or_default().to_owned())
            })
            .await;
        match changed {
            Ok(Some(status)) => self.container_event(container, &format!("health_status: {status}"), &[]),
            Ok(None) => {}
            Err(failure) => tracing::warn!(id = container.id, "{}", failure.message),
        }
    }

    /// Runs a check; returns its exit code and output.
    async fn probe(
        &self,
        container: &Arc<Container>,
        words: &[String],
        timeout: Duration,
    ) -> Result<(i64, String), String> {
        let request =
            Request { cmd: words.to_vec(), attach_stdout: true, attach_stderr: true, ..Request::default() };
        let exec: Arc<Exec> = self.add_exec(container, request).map_err(|failure| failure.message)?;
        let mut heard = exec.output.listen();
        self.start_exec(&exec).await.map_err(|failure| failure.message)?;
        let mut output = Vec::new();
        let read = async {
            while let Some((_, data)) = heard.recv().await {
                let room = OUTPUT.saturating_sub(output.len());
                output.extend_from_slice(&data[..data.len().min(room)]);
            }
            exec.ended().await
        };
        match tokio::time::timeout(timeout, read).await {
            Ok(code) => Ok((code, String::from_utf8_lossy(&output).into_owned())),
            Err(_) => {
                self.kill_exec(&exec).await;
                Err(format!("Health check exceeded timeout ({}s)", timeout.as_secs()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(test: &[&str]) -> Healthcheck {
        Healthcheck { test: test.iter().map(|&word| word.to_owned()).collect(), ..Healthcheck::default() }
    }

    #[test]
    fn a_check_is_words_or_a_line() {
        assert_eq!(words(&check(&["CMD", "a", "b"]), None).unwrap(), ["a", "b"]);
        assert_eq!(words(&check(&["CMD-SHELL", "a b"]), None).unwrap(), ["/bin/sh", "-c", "a b"]);
        assert_eq!(words(&check(&["NONE"]), None), None);
        assert!(first(Some(&check(&[]))).is_none() && first(None).is_none());
    }

    #[test]
    fn failures_in_a_row_count() {
        let mut health = first(Some(&check(&["CMD", "a"]))).unwrap();
        health = after(health, json!({}), 1, true, 2);
        assert_eq!(health["FailingStreak"], 0, "not in the start period");
        health = after(health, json!({}), 1, false, 2);
        assert_eq!(health["Status"], "starting");
        health = after(health, json!({}), 1, false, 2);
        assert_eq!(health["Status"], "unhealthy");
        health = after(health, json!({}), 0, false, 2);
        assert_eq!((&health["Status"], &health["FailingStreak"]), (&json!("healthy"), &json!(0)));
        assert_eq!(last(health)["Status"], "unhealthy");
    }

    #[test]
    fn times_have_defaults() {
        let found = times(&Healthcheck { interval: 1_000_000, ..Healthcheck::default() });
        assert_eq!(
            (found.interval, found.timeout, found.retries),
            (Duration::from_millis(1), Duration::from_secs(30), 3)
        );
    }
}
