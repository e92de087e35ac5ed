//! The life of a container as plain data: what it is doing and how it goes on.

use std::time::{Duration, SystemTime};

use orlop_proto::contract::time::rfc3339_nano;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::RestartPolicy;

/// Go's zero time, which stands for never.
pub const NEVER: &str = "0001-01-01T00:00:00Z";
/// The wait before the first restart.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait before a restart.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A container that ran this long starts with the first wait again.
const SETTLED: Duration = Duration::from_secs(10);

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub status: Status,
    /// Process number on the host; 0 when it does not run.
    pub pid: u32,
    /// Exit code, or 128 and the signal's number.
    pub exit_code: i64,
    /// Why it could not be started.
    pub error: String,
    /// When it last started.
    pub started_at: String,
    /// When it last ended.
    pub finished_at: String,
    /// Whether the kernel killed it for want of memory.
    pub oom_killed: bool,
    /// Whether its user stopped it, which some restart policies respect.
    pub stopped_by_user: bool,
    /// How often its policy started it again.
    pub restart_count: u64,
    /// What its health check says.
    pub health: Option<Value>,
}

/// What a container is doing, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started.
    #[default]
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Ended, and about to be started by its policy.
    Restarting,
    /// Being removed.
    Removing,
    /// Ended.
    Exited,
    /// Could not be removed.
    Dead,
}

impl Status {
    /// Every one.
    pub const ALL: [Status; 7] = [
        Status::Created,
        Status::Running,
        Status::Paused,
        Status::Restarting,
        Status::Removing,
        Status::Exited,
        Status::Dead,
    ];

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Removing => "removing",
            Status::Exited => "exited",
            Status::Dead => "dead",
        }
    }
}

impl Default for State {
    fn default() -> State {
        State {
            status: Status::Created,
            pid: 0,
            exit_code: 0,
            error: String::new(),
            started_at: NEVER.to_owned(),
            finished_at: NEVER.to_owned(),
            oom_killed: false,
            stopped_by_user: false,
            restart_count: 0,
            health: None,
        }
    }
}

impl State {
    /// Whether it has a process.
    pub fn is_running(&self) -> bool {
        matches!(self.status, Status::Running | Status::Paused)
    }

    /// Whether it runs or will, as `docker rm` and `docker start` see it.
    pub fn is_active(&self) -> bool {
        self.is_running() || self.status == Status::Restarting
    }

    /// It runs now.
    pub fn started(&mut self, pid: u32, at: SystemTime) {
        self.status = Status::Running;
        self.pid = pid;
        self.exit_code = 0;
        self.error.clear();
        self.started_at = rfc3339_nano(at);
        self.finished_at = NEVER.to_owned();
        self.oom_killed = false;
        self.stopped_by_user = false;
    }

    /// It ended.
    pub fn ended(&mut self, code: i64, at: SystemTime, restarting: bool) {
        self.status = if restarting { Status::Restarting } else { Status::Exited };
        self.pid = 0;
        self.exit_code = code;
        self.finished_at = rfc3339_nano(at);
    }

    /// The document `State` of the API.
    pub fn document(&self) -> Value {
        let mut document = serde_json::json!({
            "Status": self.status.word(),
            "Running": self.is_active(),
            "Paused": self.status == Status::Paused,
            "Restarting": self.status == Status::Restarting,
            "OOMKilled": self.oom_killed,
            "Dead": self.status == Status::Dead,
            "Pid": self.pid,
            "ExitCode": self.exit_code,
            "Error": self.error,
            "StartedAt": self.started_at,
            "FinishedAt": self.finished_at,
        });
        if let Some(health) = &self.health {
            document["Health"] = health.clone();
        }
        document
    }

    /// The text of `docker ps`: `Up 5 minutes`, `Exited (0) 2 hours ago`.
    pub fn summary(&self, now: SystemTime) -> String {
        let since = |text: &str| human(now.duration_since(parse(text).unwrap_or(now)).unwrap_or_default());
        match self.status {
            Status::Created => "Created".to_owned(),
            Status::Running => {
                let health = match self.health.as_ref().and_then(|health| health["Status"].as_str()) {
                    None | Some("none") => String::new(),
                    Some("starting") => " (health: starting)".to_owned(),
                    Some(word) => format!(" ({word})"),
                };
                format!("Up {}{health}", since(&self.started_at))
            }
            Status::Paused => format!("Up {} (Paused)", since(&self.started_at)),
            Status::Restarting => {
                format!("Restarting ({}) {} ago", self.exit_code, since(&self.finished_at))
            }
            Status::Removing => "Removal In Progress".to_owned(),
            Status::Exited => format!("Exited ({}) {} ago", self.exit_code, since(&self.finished_at)),
            Status::Dead => "Dead".to_owned(),
        }
    }
}

/// Whether and after what wait a policy starts an ended container again.
///
/// `waits` is how many restarts in a row there were; `ran` how long the container ran.
pub fn restart_after(
    policy: &RestartPolicy,
    state: &State,
    code: i64,
    waits: u32,
    ran: Duration,
) -> Option<Duration> {
    let wanted = match policy.name.as_str() {
        "always" | "unless-stopped" => !state.stopped_by_user,
        "on-failure" => {
            let most = u64::try_from(policy.maximum_retry_count).unwrap_or(0);
            !state.stopped_by_user && code != 0 && (most == 0 || state.restart_count < most)
        }
        _ => false,
    };
    let waits = if ran >= SETTLED { 0 } else { waits };
    wanted.then(|| FIRST_WAIT.saturating_mul(2_u32.saturating_pow(waits.min(16))).min(LONGEST_WAIT))
}

/// Whether a container that does not run is started with the daemon.
pub fn starts_with_daemon(policy: &RestartPolicy, state: &State) -> bool {
    match policy.name.as_str() {
        "always" => state.status != Status::Created || state.stopped_by_user,
        "unless-stopped" => state.status != Status::Created && !state.stopped_by_user,
        "on-failure" => state.status == Status::Restarting,
        _ => false,
    }
}

/// A length of time in the words of docker's clients.
pub fn human(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours <= 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Reads a time of RFC 3339 in UTC, as they are written here; nothing for anything else and for never.
pub fn parse(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_once('T')?;
    let (clock, offset) = match rest.find(['Z', '+', '-']) {
        Some(at) => rest.split_at(at),
        None => (rest, "Z"),
    };
    let numbers =
        |text: &str, mark: char| -> Option<Vec<i64>> { text.split(mark).map(|n| n.parse().ok()).collect() };
    let [year, month, day] = numbers(date, '-')?.try_into().ok()?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let [hour, minute, second] = numbers(clock, ':')?.try_into().ok()?;
    let shift: i64 = match offset {
        "Z" => 0,
        _ => {
            let [hours, minutes] = numbers(offset.get(1..)?, ':')?.try_into().ok()?;
            (hours * 3600 + minutes * 60) * if offset.starts_with('-') { -1 } else { 1 }
        }
    };
    // Days since 1970 in the proleptic Gregorian calendar, counted from 1 March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - shift;
    let nanoseconds: u32 =
        if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").get(..9)?.parse().ok()? };
    Some(SystemTime::UNIX_EPOCH + Duration::new(u64::try_from(seconds).ok()?, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, most: i64) -> RestartPolicy {
        RestartPolicy { name: name.to_owned(), maximum_retry_count: most }
    }

    #[test]
    fn policies_decide() {
        let (state, stopped) = (State::default(), State { stopped_by_user: true, ..State::default() });
        let again = |policy: &RestartPolicy, state: &State, code| {
            restart_after(policy, state, code, 0, Duration::ZERO).is_some()
        };
        assert!(!again(&policy("", 0), &state, 1) && !again(&policy("no", 0), &state, 1));
        assert!(again(&policy("always", 0), &state, 0) && !again(&policy("always", 0), &stopped, 0));
        assert!(again(&policy("unless-stopped", 0), &state, 0));
        assert!(again(&policy("on-failure", 0), &state, 1) && !again(&policy("on-failure", 0), &state, 0));
        let twice = State { restart_count: 2, ..State::default() };
        assert!(!again(&policy("on-failure", 2), &twice, 1) && again(&policy("on-failure", 3), &twice, 1));
    }

    #[test]
    fn waits_grow_and_start_anew() {
        let wait = |waits, ran| {
            restart_after(&policy("always", 0), &State::default(), 1, waits, Duration::from_secs(ran))
                .unwrap()
        };
        assert_eq!(wait(0, 0), Duration::from_millis(100));
        assert_eq!(wait(3, 0), Duration::from_millis(800));
        assert_eq!(wait(40, 0), LONGEST_WAIT);
        assert_eq!(wait(3, 10), Duration::from_millis(100));
    }

    #[test]
    fn the_daemon_starts_what_its_user_did_not_stop() {
        let exited = State { status: Status::Exited, ..State::default() };
        let stopped = State { stopped_by_user: true, ..exited.clone() };
        assert!(starts_with_daemon(&policy("always", 0), &stopped));
        assert!(!starts_with_daemon(&policy("unless-stopped", 0), &stopped));
        assert!(starts_with_daemon(&policy("unless-stopped", 0), &exited));
        assert!(!starts_with_daemon(&policy("always", 0), &State::default()));
        assert!(!starts_with_daemon(&policy("on-failure", 0), &exited));
    }

    #[test]
    fn times_are_read_back() {
        for text in ["2026-11-25T22:30:20.5Z", "2000-02-29T00:00:00Z", "1970-01-01T00:00:00Z"] {
            assert_eq!(rfc3339_nano(parse(text).unwrap()), text);
        }
        assert_eq!(parse("2026-11-25T23:30:20+01:00"), parse("2026-11-25T22:30:20Z"));
        assert_eq!(parse(NEVER), None);
        assert_eq!(parse("x"), None);
    }

    #[test]
    fn lengths_are_human() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (5, "5 seconds"),
            (90, "About a minute"),
            (600, "10 minutes"),
            (4000, "About an hour"),
            (7200, "2 hours"),
            (3 * 86_400, "3 days"),
        ] {
            assert_eq!(human(Duration::from_secs(seconds)), text);
        }
    }
}
