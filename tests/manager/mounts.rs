//! The mounts service: mounts that the daemon makes for clients, by name.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_proto::containerd::services::mounts::v1 as mounts;
use orlop_proto::containerd::services::mounts::v1::mounts_client::MountsClient;
use orlop_proto::containerd::types::{ActivationInfo, Mount};
use orlop_tests::{Cmd, Daemon, Image, Orlopd, Root, poll_until};
use tokio_stream::StreamExt;
use tonic::{Code, Status};

use crate::client::Client;

fn mount(kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Mount {
    let options = options.iter().map(|&option| option.to_owned()).collect();
    let source = source.as_ref().display().to_string();
    Mount { r#type: kind.to_owned(), source, options, ..Mount::default() }
}

struct Stage {
    root: Root,
    daemon: Orlopd,
    client: Client,
}

impl Stage {
    fn new() -> Stage {
        let root = Root::new();
        let daemon = Orlopd::start(&root);
        let client = Client::new(daemon.address(), daemon.namespace());
        Stage { root, daemon, client }
    }

    fn restart(&mut self) {
        self.daemon.kill();
        self.daemon.restart();
        self.client = Client::new(self.daemon.address(), self.daemon.namespace());
    }

    fn activate(&self, name: &str, mounts: Vec<Mount>, temporary: bool) -> Result<ActivationInfo, Status> {
        self.activate_with(name, mounts, temporary, &[])
    }

    fn activate_with(
        &self,
        name: &str,
        mounts: Vec<Mount>,
        temporary: bool,
        labels: &[(&str, &str)],
    ) -> Result<ActivationInfo, Status> {
        activate(&self.client, name, mounts, temporary, labels)
    }

    fn deactivate(&self, name: &str) -> Result<(), Status> {
        let request = mounts::DeactivateRequest { name: name.to_owned() };
        self.client
            .call(async |channel| MountsClient::new(channel).deactivate(self.client.request(request)).await)
    }

    fn info(&self, name: &str) -> Result<ActivationInfo, Status> {
        let request = mounts::InfoRequest { name: name.to_owned() };
        let answer = self
            .client
            .call(async |channel| MountsClient::new(channel).info(self.client.request(request)).await)?;
        Ok(answer.info.expect("an answer has an activation"))
    }

    fn names(&self, filters: &[&str]) -> Vec<String> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let listed = self.client.call(async |channel| {
            let request = self.client.request(mounts::ListRequest { filters });
            let mut messages = MountsClient::new(channel).list(request).await?.into_inner();
            let mut names = Vec::new();
            while let Some(message) = messages.next().await {
                names.extend(message?.info.map(|info| info.name));
            }
            Ok(tonic::Response::new(names))
        });
        listed.expect("a list")
    }

    /// What is mounted below the daemon's state directory for activations.
    fn mounted(&self) -> Vec<String> {
        let below = self.daemon.state().join("mounts").display().to_string();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| point.starts_with(&below)).map(str::to_owned).collect()
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

fn activate(
    client: &Client,
    name: &str,
    mounts: Vec<Mount>,
    temporary: bool,
    labels: &[(&str, &str)],
) -> Result<ActivationInfo, Status> {
    let labels: HashMap<String, String> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let request = mounts::ActivateRequest { name: name.to_owned(), mounts, labels, temporary };
    let answer =
        client.call(async |channel| MountsClient::new(channel).activate(client.request(request)).await)?;
    Ok(answer.info.expect("an answer has an activation"))
}

fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.expect_err("refused").code()
}

/// The file behind a loop device; nothing where it has none.
fn backing(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?.to_str()?;
    let text = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(text.trim().into())
}

#[test]
fn mounts_are_made_named_listed_and_undone() {
    let mut stage = Stage::new();
    stage.client.create_lease("l").unwrap();
    stage.client = Client::new(stage.daemon.address(), stage.daemon.namespace()).with_lease("l");
    let (lower, upper, work) = (stage.directory("lower"), stage.directory("upper"), stage.directory("work"));
    fs::write(lower.join("file"), "below").unwrap();

    // What a client can mount by itself is left to it.
    assert_eq!(
        code(stage.activate("plain", vec![mount("bind", &lower, &["rbind"])], false)),
        Code::Unimplemented
    );
    assert_eq!(code(stage.activate("", vec![mount("loop", &lower, &[])], false)), Code::InvalidArgument);
    assert_eq!(code(stage.info("plain")), Code::NotFound);
    assert_eq!(code(stage.deactivate("plain")), Code::NotFound);

    let overlay = format!("lowerdir={}", lower.display());
    let (upper_option, work_option) =
        (format!("upperdir={}", upper.display()), format!("workdir={}", work.display()));
    let overlay = mount("overlay", "overlay", &[&overlay, &upper_option, &work_option]);
    let labels = [("colour", "red")];
    let made = stage.activate_with("temporary", vec![overlay], true, &labels).unwrap();
    let [active] = &made.active[..] else { panic!("{made:?}") };
    let [bind] = &made.system[..] else { panic!("{made:?}") };
    assert_eq!((bind.r#type.as_str(), &bind.source), ("bind", &active.mount_point));
    assert_eq!(fs::read_to_string(Path::new(&active.mount_point).join("file")).unwrap(), "below");
    fs::write(Path::new(&active.mount_point).join("new"), "").unwrap();
    assert!(upper.join("new").exists() && active.mounted_at.is_some());
    assert_eq!(stage.info("temporary").unwrap(), made);
    let again = stage.activate("temporary", vec![mount("tmpfs", "tmpfs", &[])], true);
    assert_eq!(code(again), Code::AlreadyExists);

    // A later mount is told where an earlier one is.
    let source = "{{ mount 0 }}/inner";
    let made = stage
        .activate(
            "formatted",
            vec![mount("bind", &lower, &["rbind"]), mount("format/bind", source, &["ro", "rbind"])],
            false,
        )
        .unwrap();
    assert_eq!(made.system[0].source, format!("{}/inner", made.active[0].mount_point));
    assert_eq!((made.system[0].r#type.as_str(), made.system.len()), ("bind", 1));

    assert_eq!(stage.names(&[]), ["formatted", "temporary"]);
    assert_eq!(stage.names(&["labels.colour==red"]), ["temporary"]);
    assert_eq!(stage.names(&["name==formatted"]), ["formatted"]);
    assert_eq!(stage.mounted().len(), 2);

    // They outlive the daemon.
    stage.restart();
    assert_eq!(stage.names(&[]), ["formatted", "temporary"]);
    assert_eq!(stage.mounted().len(), 2);
    for name in ["temporary", "formatted"] {
        stage.deactivate(name).unwrap();
    }
    assert_eq!((stage.mounted(), stage.names(&[])), (vec![], vec![]));
    stage.daemon.stop();
    stage.root.assert_clean();
}

#[test]
fn a_mount_that_fails_leaves_nothing() {
    let mut stage = Stage::new();
    let directory = stage.directory("directory");
    let good = mount("bind", &directory, &["rbind"]);
    for bad in [
        mount("bind", "/no/such/directory", &["rbind"]),
        mount("no-such-file-system", "x", &[]),
        mount("loop", "/no/such/file", &[]),
        mount("format/bind", "{{ mount 7 }}", &["rbind"]),
        mount("mkdir/bind", &directory, &["X-containerd.mkdir.path=/etc/no-such-directory"]),
        mount("mkfs/ext4", "/etc/no-such-image", &["X-containerd.mkfs.size=1m"]),
    ] {
        let error = stage.activate("bad", vec![good.clone(), bad.clone()], true).unwrap_err();
        assert!(!error.message().is_empty(), "{bad:?}");
        assert_eq!(code(stage.info("bad")), Code::NotFound);
        assert!(stage.mounted().is_empty(), "{bad:?}: {error}");
    }
    assert!(!Path::new("/etc/no-such-directory").exists() && !Path::new("/etc/no-such-image").exists());
    let left: Vec<_> = fs::read_dir(stage.daemon.state().join("mounts")).unwrap().flatten().collect();
    assert_eq!(left.iter().filter(|entry| entry.path().is_dir()).count(), 0, "{left:?}");
    stage.daemon.stop();
    stage.root.assert_clean();
}

#[test]
fn a_file_becomes_a_device_with_a_file_system() {
    let mut stage = Stage::new();
    // Held by its label's snapshot.
    let image = stage.daemon.root().join("scratch.img");
    let data = "X-containerd.mkdir.path={{ mount 1 }}/data:750";
    let size = ["X-containerd.mkfs.size=4m", "X-containerd.mkfs.fs=ext4"];
    let leased = || Client::new(stage.daemon.address(), stage.daemon.namespace()).with_lease("l");
    stage.client.create_lease("l").unwrap();
    leased().prepare("native", "keeper", "").unwrap();
    let set = vec![
        mount("mkfs/loop", &image, &size),
        mount("format/ext4", "{{ mount 0 }}", &[]),
        mount("format/mkdir/bind", "{{ mount 1 }}/data", &["rw", "rbind", data]),
    ];
    let labels = [("containerd.io/gc.bref.snapshot.native", "keeper")];
    let made = stage.activate_with("disk", set, false, &labels).unwrap();
    let device = fs::read_link(&made.active[0].mount_point).unwrap();
    assert_eq!(backing(&device), Some(image.clone()));
    let data = PathBuf::from(&made.system[0].source);
    assert!(data.is_dir() && data.ends_with("data"));
    fs::write(data.join("kept"), "kept").unwrap();
    stage.restart();
    assert_eq!(fs::read_to_string(data.join("kept")).unwrap(), "kept");

    // What the snapshot keeps goes with it.
    let collect = |stage: &Stage| {
        Cmd::new(orlop_tests::binaries::orlopctl())
            .arg("--address")
            .arg(stage.daemon.address())
            .args(["--namespace", stage.daemon.namespace(), "gc"])
            .run()
            .success()
    };
    collect(&stage);
    assert_eq!(stage.names(&[]), ["disk"]);
    stage.client.delete_lease("l").unwrap();
    collect(&stage);
    assert_eq!((stage.mounted(), stage.names(&[])), (vec![], vec![]));
    poll_until(Duration::from_secs(10), "the device is free", || backing(&device) != Some(image.clone()));
    stage.daemon.stop();
    stage.root.assert_clean();
}

#[test]
fn no_mount_outlives_the_machine_and_what_it_showed_stays() {
    let mut stage = Stage::new();
    let (source, image) = (stage.directory("source"), stage.daemon.root().join("disk.img"));
    fs::write(source.join("file"), "kept").unwrap();
    stage.client.create_lease("l").unwrap();
    stage.client = Client::new(stage.daemon.address(), stage.daemon.namespace()).with_lease("l");
    stage.activate("bind", vec![mount("bind", &source, &["rbind"])], true).unwrap();
    let set = vec![mount("mkfs/loop", &image, &["X-containerd.mkfs.size=4m"])];
    let device = stage.activate("device", set, false).unwrap();
    let device = fs::read_link(&device.active[0].mount_point).unwrap();

    // Without a word of when they were made they count as another boot's, though they are still there.
    fs::remove_file(stage.daemon.state().join("mounts/boot")).unwrap();
    stage.restart();
    assert_eq!((stage.mounted(), stage.names(&[])), (vec![], vec![]));
    assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "kept");
    // By then somebody else may have the device.
    assert_eq!(backing(&device), Some(image));
    Cmd::new("losetup").arg("-d").arg(&device).run().success();
    stage.daemon.stop();
    stage.root.assert_clean();
}

#[test]
fn a_container_runs_on_what_the_daemon_mounts_and_keeps_it() {
    let mut stage = Stage::new();
    let archive = stage.root.join("image.tar");
    Image::busybox().oci_archive(&archive, "registry.test/busybox:1");
    let daemon = &stage.daemon;
    daemon.ctr(["images", "import"]).arg(&archive).run().success();
    daemon.ctr(["run", "-d", "registry.test/busybox:1", "c", "sh", "-c", "exit 0"]).run().success();
    poll_until(Duration::from_secs(20), "it has ended", || {
        daemon.ctr(["tasks", "ls"]).run().success().stdout.contains("STOPPED")
    });
    daemon.ctr(["tasks", "rm", "c"]).run().success();

    // The same root file system, by a mount that no shim knows.
    let rootfs = stage.client.call(async |channel| {
        use orlop_proto::containerd::services::snapshots::v1 as snapshots;
        let request = snapshots::MountsRequest { snapshotter: "overlayfs".to_owned(), key: "c".to_owned() };
        let mut client = snapshots::snapshots_client::SnapshotsClient::new(channel);
        client.mounts(stage.client.request(request)).await
    });
    let overlay = rootfs.unwrap().mounts;
    let set = [overlay, vec![mount("format/bind", "{{ mount 0 }}", &["rw", "rbind"])]].concat();
    let create = |stage: &Stage| {
        use orlop_proto::containerd::services::tasks::v1 as tasks;
        let request = tasks::CreateTaskRequest {
            container_id: "c".to_owned(),
            rootfs: set.clone(),
            ..tasks::CreateTaskRequest::default()
        };
        stage.client.call(async |channel| {
            tasks::tasks_client::TasksClient::new(channel).create(stage.client.request(request)).await
        })
    };
    create(&stage).unwrap();
    assert_eq!(stage.names(&["labels.\"containerd.io/gc.bref.container\"==c"]), ["c"]);
    assert_eq!(stage.mounted().len(), 1);
    let start = stage.client.call(async |channel| {
        use orlop_proto::containerd::services::tasks::v1 as tasks;
        let request = tasks::StartRequest { container_id: "c".to_owned(), ..tasks::StartRequest::default() };
        tasks::tasks_client::TasksClient::new(channel).start(stage.client.request(request)).await
    });
    start.unwrap();
    stage.restart();
    assert_eq!(stage.mounted().len(), 1);
    stage.daemon.ctr(["tasks", "rm", "--force", "c"]).run().success();
    assert_eq!((stage.mounted(), stage.names(&[])), (vec![], vec![]));
    stage.daemon.ctr(["containers", "rm", "c"]).run().success();
    stage.daemon.stop();
    stage.root.assert_clean();
}
