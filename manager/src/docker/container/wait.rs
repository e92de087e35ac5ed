//! `POST /containers/ID/wait`.

use std::sync::Arc;

use serde_json::json;

use super::Container;
use crate::docker::failure::{Failure, Result};
use crate::docker::message::{self, Reply};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    NotRunning,
    NextExit,
    Removed,
}

/// Answers at once that it waits, and later how the container ended.
///
/// # Errors
///
/// 400 for a condition that is none.
pub fn wait(container: Arc<Container>, condition: Option<&str>) -> Result<Reply> {
    let condition = match condition.unwrap_or_default() {
        "" | "not-running" => Condition::NotRunning,
        "next-exit" => Condition::NextExit,
        "removed" => Condition::Removed,
        other => return Err(Failure::invalid(format!("invalid condition: {other:?}"))),
    };
    let mut milestones = container.milestones.subscribe();
    let exits = milestones.borrow_and_update().exits;
    let (reply, client) = message::channel("application/json");
    tokio::spawn(async move {
        let is_running = container.with(|record| record.state.is_active());
        let stored = container.with(|record| record.state.exit_code);
        let ended = async {
            let found = match condition {
                Condition::NotRunning if !is_running => return stored,
                Condition::NotRunning | Condition::NextExit => {
                    milestones.wait_for(|now| now.exits > exits || now.removed).await
                }
                Condition::Removed => milestones.wait_for(|now| now.removed).await,
            };
            found.map_or(stored, |now| if now.exits > 0 { now.code } else { stored })
        };
        tokio::select! {
            code = ended => {
                // Ignoring: the client may be gone.
                let _ = client.send(Ok(message::line(&json!({ "StatusCode": code })))).await;
            }
            () = client.closed() => {}
        }
    });
    Ok(reply)
}
