//! Order, filters, refusals, and what becomes of slow and gone subscribers.

use futures_util::{FutureExt, StreamExt};
use orlop_proto::any;
use orlop_proto::containerd::events::{ContainerUpdate, TaskCreate, TaskExit, TaskIo};

use super::*;

fn exit(container: &str) -> Any {
    any::pack(&TaskExit { container_id: container.into(), id: container.into(), ..Default::default() })
}

/// Namespace and topic of the events that wait now.
fn waiting(subscription: &mut Subscription) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(Some(envelope)) = subscription.next().now_or_never() {
        let envelope = envelope.unwrap();
        seen.push(format!("{} {}", envelope.namespace, envelope.topic));
    }
    seen
}

#[test]
fn chooses_by_namespace_topic_and_fields() {
    let exchange = Exchange::default();
    let mut all = exchange.subscribe::<&str>(&[]).unwrap();
    let mut docker = exchange.subscribe(&["namespace==moby,topic~=|^/tasks/|"]).unwrap();
    let mut one = exchange.subscribe(&["event.container_id==b", "event.io.terminal==true"]).unwrap();
    let mut labelled = exchange.subscribe(&["event.labels.a.b==c"]).unwrap();

    exchange.publish("default", "/tasks/exit", exit("a")).unwrap();
    exchange.publish("moby", "/tasks/exit", exit("b")).unwrap();
    let update = ContainerUpdate {
        id: "c".into(),
        labels: [("a.b".to_owned(), "c".to_owned())].into(),
        ..Default::default()
    };
    exchange.publish("moby", "/containers/update", any::pack(&update)).unwrap();
    let create =
        TaskCreate { io: Some(TaskIo { terminal: true, ..Default::default() }), ..Default::default() };
    exchange.publish("x", "/tasks/create", any::pack(&create)).unwrap();

    assert_eq!(waiting(&mut docker), ["moby /tasks/exit"]);
    assert_eq!(waiting(&mut one), ["moby /tasks/exit", "x /tasks/create"]);
    assert_eq!(waiting(&mut labelled), ["moby /containers/update"]);
    assert_eq!(
        waiting(&mut all),
        ["default /tasks/exit", "moby /tasks/exit", "moby /containers/update", "x /tasks/create"]
    );
}

#[test]
fn cuts_off_who_does_not_read_and_says_so() {
    let exchange = Exchange::default();
    let mut slow = exchange.subscribe_with::<&str>(&[], 3).unwrap();
    let mut other = exchange.subscribe::<&str>(&[]).unwrap();
    for _ in 0..5 {
        exchange.publish("default", "/tasks/exit", exit("a")).unwrap();
    }
    assert_eq!(waiting(&mut other).len(), 5);
    let mut seen = Vec::new();
    while let Some(item) = slow.next().now_or_never().expect("a stream that was cut off ends") {
        seen.push(item.map_err(|error| error.kind()));
    }
    assert_eq!(seen.len(), 4);
    assert_eq!(seen[3].as_ref().unwrap_err(), &Kind::ResourceExhausted);
}

#[test]
fn forgets_who_is_gone() {
    let exchange = Exchange::default();
    drop(exchange.subscribe::<&str>(&[]).unwrap());
    let _kept = exchange.subscribe::<&str>(&[]).unwrap();
    assert_eq!(exchange.subscribers.lock().unwrap().len(), 1);
}

#[test]
fn refuses_in_containerds_words() {
    let exchange = Exchange::default();
    let refusal =
        |namespace, topic| exchange.publish(namespace, topic, Any::default()).unwrap_err().to_string();
    assert_eq!(refusal("", "/a"), "failed publishing event: namespace is required: failed precondition");
    assert_eq!(refusal("default", "x/y"), r#"envelope topic "x/y": must start with '/': invalid argument"#);
    assert_eq!(refusal("default", ""), r#"envelope topic "": must not be empty: invalid argument"#);
    assert_eq!(
        refusal("default", "/"),
        r#"envelope topic "/": must have at least one component: invalid argument"#
    );
    assert_eq!(
        refusal("default", "/a//b"),
        r#"envelope topic "/a//b": failed validation on component "": identifier must not be empty: invalid argument"#
    );
    let unstamped = Envelope { namespace: "n".into(), topic: "/a".into(), ..Default::default() };
    assert_eq!(
        exchange.forward(unstamped).unwrap_err().to_string(),
        "timestamp must be set on forwarded event: invalid argument"
    );
    assert!(exchange.subscribe(&["a..b"]).is_err());
}

#[test]
fn large_events_that_nobody_reads_are_bounded_by_their_bytes() {
    let exchange = Exchange::default();
    let mut deaf = exchange.subscribe::<&str>(&[]).unwrap();
    let mut reader = exchange.subscribe::<&str>(&[]).unwrap();
    let large = || Any { type_url: "x/y".to_owned(), value: vec![0; BYTES / 4] };
    for _ in 0..8 {
        exchange.publish("default", "/made/up", large()).unwrap();
        assert_eq!(waiting(&mut reader).len(), 1);
    }
    let mut kept = 0;
    while let Some(Some(event)) = deaf.next().now_or_never() {
        match event {
            Ok(_) => kept += 1,
            Err(error) => assert_eq!(error.kind(), Kind::ResourceExhausted),
        }
    }
    assert_eq!(kept, 3);
}
