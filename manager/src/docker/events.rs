//! What happened, as `docker events` tells it. The last events are kept, for those who ask for the past.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::broadcast;

use super::filters::Filters;

/// How many events are kept, as dockerd does.
const KEPT: usize = 256;
/// How many events may wait for one listener.
const QUEUE: usize = 1024;
/// The fields by which events can be filtered.
pub const FILTERS: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

/// Who or what an event is about.
#[derive(Clone, Debug, Serialize)]
pub struct Actor {
    /// Its name or number.
    #[serde(rename = "ID")]
    pub id: String,
    /// What is known of it.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

/// One event.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Action, for clients before API 1.22.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// Actor, for clients before API 1.22.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Image, for clients before API 1.22.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// Kind of the actor: `container`, `image`, `network`, `volume`.
    #[serde(rename = "Type")]
    pub kind: &'static str,
    /// What happened.
    #[serde(rename = "Action")]
    pub action: String,
    /// To whom.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// Always `local` without a swarm.
    pub scope: &'static str,
    /// Seconds since 1970.
    pub time: u64,
    /// Nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    pub time_nano: u64,
}

impl Event {
    /// Whether the filters choose this event.
    pub fn is_chosen(&self, filters: &Filters) -> bool {
        let attribute = |name: &str| self.actor.attributes.get(name).map(String::as_str).unwrap_or_default();
        let is_actor = |kind: &str| {
            filters.accepts(kind, |wanted| {
                self.kind == kind
                    && (self.actor.id == wanted
                        || attribute("name") == wanted
                        || (wanted.len() >= 12 && self.actor.id.starts_with(wanted)))
            })
        };
        let is_image = filters.accepts("image", |wanted| {
            let name = if self.kind == "image" { attribute("name") } else { attribute("image") };
            let untagged = |name: &str| name.rsplit_once(':').map(|(name, _)| name.to_owned());
            name == wanted
                || (self.kind == "image" && self.actor.id == wanted)
                || untagged(name).is_some_and(|name| name == wanted)
        });
        filters.accepts("event", |wanted| {
            self.action == wanted || self.action.split_once(':').is_some_and(|(action, _)| action == wanted)
        }) && filters.accepts("type", |wanted| self.kind == wanted)
            && filters.accepts("scope", |wanted| self.scope == wanted)
            && ["container", "network", "volume", "plugin", "daemon"].into_iter().all(is_actor)
            && is_image
            && filters.accepts_labels("label", &self.actor.attributes)
    }
}

/// Where events are told.
pub struct Bus {
    sender: broadcast::Sender<Event>,
    /// Held for an instant, while an event is told, so that the past and the future meet without a gap.
    past: Mutex<VecDeque<Event>>,
}

impl Default for Bus {
    fn default() -> Bus {
        Bus { sender: broadcast::channel(QUEUE).0, past: Mutex::default() }
    }
}

impl Bus {
    /// Tells an event of now.
    pub fn tell(&self, kind: &'static str, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let is_old = kind == "container" || kind == "image";
        let old = |text: &str| if is_old { text.to_owned() } else { String::new() };
        let image = if kind == "container" { attributes.get("image").cloned() } else { None };
        let event = Event {
            status: old(action),
            id: old(id),
            from: image.unwrap_or_default(),
            kind,
            action: action.to_owned(),
            actor: Actor { id: id.to_owned(), attributes },
            scope: "local",
            time: since.as_secs(),
            time_nano: since.as_nanos() as u64,
        };
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() == KEPT {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Ignoring: nobody need listen.
        let _ = self.sender.send(event);
    }

    /// The events that are kept, and those to come.
    pub fn listen(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        (past.iter().cloned().collect(), self.sender.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Event {
        let bus = Bus::default();
        let attributes = [("image", "busybox:1"), ("name", "web"), ("tier", "front")];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        bus.tell("container", "exec_create: sh", "0123456789abcdef", attributes);
        bus.listen().0.remove(0)
    }

    #[test]
    fn filters_choose() {
        let event = told();
        for (text, chosen) in [
            (r#"{}"#, true),
            (r#"{"container":["web"]}"#, true),
            (r#"{"container":["0123456789ab"]}"#, true),
            (r#"{"container":["other"]}"#, false),
            (r#"{"event":["exec_create"]}"#, true),
            (r#"{"event":["die"]}"#, false),
            (r#"{"image":["busybox"]}"#, true),
            (r#"{"type":["image"]}"#, false),
            (r#"{"label":["tier=front"]}"#, true),
            (r#"{"label":["tier=back"]}"#, false),
        ] {
            let filters = Filters::parse(Some(text), &FILTERS).unwrap();
            assert_eq!(event.is_chosen(&filters), chosen, "{text}");
        }
    }

    #[test]
    fn old_members_are_there_for_containers() {
        let text = serde_json::to_value(told()).unwrap();
        assert_eq!(text["from"], "busybox:1");
        assert_eq!(text["Actor"]["ID"], "0123456789abcdef");
    }

    #[test]
    fn only_the_last_are_kept() {
        let bus = Bus::default();
        for number in 0..KEPT + 5 {
            bus.tell("volume", "create", &number.to_string(), BTreeMap::new());
        }
        let (past, _) = bus.listen();
        assert_eq!(past.len(), KEPT);
        assert_eq!(past[0].actor.id, "5");
    }
}
