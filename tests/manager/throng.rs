//! Many clients at once: nobody waits for ever and nobody sees another's half-done work.

use orlop_proto::containerd::services::containers::v1 as containers;
use orlop_tests::{Daemon, Orlopd, Root};

use crate::client::{Client, Put};

#[test]
fn ten_clients_create_and_delete_at_once() {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let socket = daemon.address();
    std::thread::scope(|scope| {
        for number in 0..10 {
            scope.spawn(move || {
                // Two clients share a namespace, and each blob is everybody's.
                let client = Client::new(socket, &format!("n{}", number / 2));
                for round in 0..6 {
                    let name = format!("c{number}-{round}");
                    client.create_lease(&name).unwrap();
                    let leased = Client::new(socket, &format!("n{}", number / 2)).with_lease(&name);
                    let bytes = format!("blob {round}");
                    let reference = format!("ref-{name}");
                    match leased.put(&Put { reference: &reference, ..Put::default() }, bytes.as_bytes(), 10) {
                        Ok(_) => {}
                        Err(error) => assert_eq!(error.code(), tonic::Code::AlreadyExists, "{error}"),
                    }
                    leased.prepare("overlayfs", &name, "").unwrap();
                    let container = containers::Container {
                        id: name.clone(),
                        runtime: Some(containers::container::Runtime { name: "r".into(), options: None }),
                        spec: Some(prost_types::Any::default()),
                        snapshotter: "overlayfs".into(),
                        snapshot_key: name.clone(),
                        ..Default::default()
                    };
                    client.create_container(container).unwrap();
                    assert_eq!(client.container(&name).unwrap().snapshot_key, name);
                    client.delete_container(&name).unwrap();
                    client.remove("overlayfs", &name).unwrap();
                    client.delete_lease(&name).unwrap();
                }
            });
        }
    });
    for number in 0..5 {
        let client = Client::new(socket, &format!("n{number}"));
        client.create_lease("last").unwrap();
        client.delete_lease("last").unwrap();
        assert!(client.digests().unwrap().is_empty());
        assert!(client.snapshots("overlayfs").unwrap().is_empty());
    }
    let blobs = std::fs::read_dir(daemon.root().join("content/blobs/sha256")).unwrap().count();
    assert_eq!(blobs, 0);
}
