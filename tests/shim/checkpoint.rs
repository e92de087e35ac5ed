//! Containers saved and brought back through the shim: by CRIU where it runs (`make test-vm` has such a kernel), and
//! everywhere by a runtime that keeps to the command line and starts anew in place of restoring.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;
use orlop_proto::any;
use orlop_proto::containerd::runc::v1::CheckpointOptions;
use orlop_proto::containerd::task::v2::CheckpointTaskRequest;
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::error::Result;
use orlop_proto::kind::Kind;
use orlop_tests::{Bundle, Root, host, poll_until, pretender};
use serde_json::json;

use orlop_tests::shim::{DEADLINE, Fifos, Shim, read_to_end, reader, runtime, writer};

use crate::streams;

fn checkpoint(shim: &mut Shim, images: &Path, exit: bool) -> Result<()> {
    save(shim, images, CheckpointOptions { exit, file_locks: true, ..CheckpointOptions::default() })
}

fn save(shim: &mut Shim, images: &Path, options: CheckpointOptions) -> Result<()> {
    let request = CheckpointTaskRequest {
        id: shim.id.clone(),
        path: images.display().to_string(),
        options: Some(any::pack(&options)),
    };
    shim.client.call("Checkpoint", &request)
}

#[test]
fn the_runtime_is_asked_to_save_and_to_restore() {
    let root = Root::new();
    let images = root.join("images");
    let program = pretender(&root);
    let mut shim = Shim::start_with(&root, "c", &program, |bundle| bundle.sh("echo ready; exec sleep 1000"));
    shim.create(&Fifos::default());
    let early = checkpoint(&mut shim, &images, false).unwrap_err();
    assert_eq!(early.kind(), Kind::FailedPrecondition, "{early}");
    shim.start_process("").unwrap();
    checkpoint(&mut shim, &images, false).unwrap();
    assert_eq!(shim.status(""), Status::Running);
    checkpoint(&mut shim, &images, true).unwrap();
    assert_eq!(shim.wait(""), 137);
    shim.delete("").unwrap();
    let saved = format!("checkpointed {}", images.display());
    let events = shim.events.until(&shim.id, "delete 137");
    assert_eq!(events.iter().filter(|event| **event == saved).count(), 2, "{events:?}");

    // The same shim takes the container back.
    let fifos = Fifos::output(&root, "c");
    let (stdout, _stderr) = (reader(&fifos.stdout), reader(&fifos.stderr));
    let mut request = shim.create_request(&fifos);
    request.checkpoint = images.display().to_string();
    let created: orlop_proto::containerd::task::v2::CreateTaskResponse =
        shim.client.call("Create", &request).unwrap();
    assert_eq!((created.pid, shim.status("")), (0, Status::Created));
    let pid = shim.start_process("").unwrap();
    assert!(pid > 0 && host::alive(pid));
    shim.exec("e", "exit 3", &Fifos::default());
    shim.start_process("e").unwrap();
    assert_eq!(shim.wait("e"), 3);
    shim.delete("e").unwrap();
    shim.kill("", Signal::SIGKILL).unwrap();
    assert_eq!(shim.wait(""), 137);
    shim.delete("").unwrap();
    assert_eq!(read_to_end(stdout), "ready\n");

    let (bundle, images) = (shim.bundle.path().display().to_string(), images.display().to_string());
    let id = shim.id.clone();
    let calls = fs::read_to_string(root.join("calls")).unwrap();
    let wanted = [
        format!(
            "checkpoint --image-path {images} --work-path {bundle}/criu --file-locks --leave-running {id}"
        ),
        format!("checkpoint --image-path {images} --work-path {bundle}/criu --file-locks {id}"),
        format!(
            "restore --image-path {images} --work-path {bundle}/criu --bundle {bundle} --detach --pid-file \
             {bundle}/init.pid --no-subreaper {id}"
        ),
    ];
    assert_eq!(calls.lines().collect::<Vec<_>>(), wanted);

    // One that is never started goes too.
    shim.client.call::<orlop_proto::containerd::task::v2::CreateTaskResponse>("Create", &request).unwrap();
    assert_eq!(shim.delete("").unwrap().pid, 0);
    shim.shut_down();
    root.assert_clean();
}

/// Counts, and shows how far it is.
const COUNTER: &str = "n=0; while [ ! -e /data/end ]; do n=$((n+1)); echo $n >/data/new; mv /data/new /data/count; sleep 0.05; done; exit 7";

fn counting(bundle: Bundle, data: &Path) -> Bundle {
    let data = json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind"]});
    in_the_hosts_network(bundle.sh(COUNTER).mount(data))
}

/// CRIU 3.17 fails on the network namespaces of newer kernels.
fn in_the_hosts_network(bundle: Bundle) -> Bundle {
    bundle.edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
    })
}

/// Held while CRIU restores: it binds a socket whose name is the same for every container, in the host's network.
static RESTORING: Mutex<()> = Mutex::new(());

#[test]
fn a_container_goes_on_where_it_was_or_is_left_alone() {
    let root = Root::new();
    let (data, images) = (root.join("data"), root.join("images"));
    fs::create_dir(&data).unwrap();
    let count =
        || fs::read_to_string(data.join("count")).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let mut shim = Shim::start_with(&root, "c", &runtime("orlop"), |bundle| counting(bundle, &data));
    shim.run();
    poll_until(DEADLINE, "it counts", || count() > Some(2));
    if !host::criu_works() {
        let refused = checkpoint(&mut shim, &images, true).unwrap_err();
        assert!(refused.to_string().contains("OCI runtime checkpoint failed"), "{refused}");
        assert_eq!(shim.status(""), Status::Running);
        shim.finish();
        root.assert_clean();
        return;
    }
    checkpoint(&mut shim, &images, true).unwrap();
    assert_eq!(shim.wait(""), 137);
    shim.delete("").unwrap();
    let before = count();
    let _alone = RESTORING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut request = shim.create_request(&Fifos::default());
    request.checkpoint = images.display().to_string();
    shim.client.call::<orlop_proto::containerd::task::v2::CreateTaskResponse>("Create", &request).unwrap();
    shim.start_process("").unwrap();
    poll_until(DEADLINE, "it goes on", || count() > before);
    fs::write(data.join("end"), "").unwrap();
    assert_eq!(shim.wait(""), 7);
    shim.delete("").unwrap();
    shim.shut_down();
    root.assert_clean();
}

/// Saves a container with a terminal, and brings it back with another one.
fn terminal(root: &Root, program: &Path) {
    let images = root.join("images");
    let mut shim =
        Shim::start_with(root, "c", program, |bundle| in_the_hosts_network(streams::asking(bundle)));
    let fifos = Fifos::terminal(root, "before");
    let out = reader(&fifos.stdout);
    shim.create(&fifos);
    shim.start_process("").unwrap();
    streams::sizes(&mut shim, writer(&fifos.stdin), out);
    let options = CheckpointOptions { exit: true, terminal: true, ..CheckpointOptions::default() };
    save(&mut shim, &images, options).unwrap();
    assert_eq!(shim.wait(""), 137);
    shim.delete("").unwrap();

    let fifos = Fifos::terminal(root, "after");
    let out = reader(&fifos.stdout);
    let mut request = shim.create_request(&fifos);
    request.checkpoint = images.display().to_string();
    shim.client.call::<orlop_proto::containerd::task::v2::CreateTaskResponse>("Create", &request).unwrap();
    shim.start_process("").unwrap();
    streams::sizes(&mut shim, writer(&fifos.stdin), out);
    shim.finish();
    root.assert_clean();
}

#[test]
fn a_restored_container_has_its_terminal() {
    let root = Root::new();
    terminal(&root, &pretender(&root));
    if host::criu_works() {
        let _alone = RESTORING.lock().unwrap_or_else(PoisonError::into_inner);
        terminal(&Root::new(), &runtime("orlop"));
    }
}
