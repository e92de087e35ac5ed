//! What managers ask of a pod's shim, and how they configure one: the Sandbox service, both kinds of options, the owner of
//! the streams, the shim's own cgroup.

use std::fs;
use std::time::Duration;

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::containerd::runtime::sandbox::v1::sandbox_ttrpc as method;
use orlop_proto::containerd::runtime::sandbox::v1::*;
use orlop_proto::containerd::task::v2::ShutdownRequest;
use orlop_proto::error::Result;
use orlop_proto::kind::Kind;
use orlop_proto::runtime::v1::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use orlop_proto::runtimeoptions::v1::Options as General;
use orlop_tests::{Bundle, Cmd, Root, host, poll_until};
use prost::Message;
use prost_types::Any;

use orlop_tests::shim::{Client, Pending};
use orlop_tests::shim::{DEADLINE, Fifos, Shim, action, read_to_end, reader, runtime};

fn send(client: &mut Client, method: &'static str, message: &impl Message) -> Pending {
    client.send_as(method::SERVICE, method, message, Duration::ZERO)
}

fn call<R: Message + Default>(
    client: &mut Client,
    method: &'static str,
    message: &impl Message,
) -> Result<R> {
    let pending = send(client, method, message);
    client.receive(pending)
}

#[test]
fn a_sandbox_lives_as_long_as_its_shim() {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &runtime("orlop"), |bundle| bundle.sh("sleep 1000"));
    let pid = shim.pid();
    let id = || "pod".to_owned();
    let mut client = shim.connect();
    let unknown = call::<SandboxStatusResponse>(
        &mut client,
        method::SANDBOX_STATUS,
        &SandboxStatusRequest { sandbox_id: id(), verbose: false },
    );
    assert_eq!(unknown.unwrap_err().kind(), Kind::NotFound);
    let create = CreateSandboxRequest { sandbox_id: id(), ..Default::default() };
    call::<CreateSandboxResponse>(&mut client, method::CREATE_SANDBOX, &create).unwrap();
    let again = call::<CreateSandboxResponse>(&mut client, method::CREATE_SANDBOX, &create);
    assert_eq!(again.unwrap_err().kind(), Kind::AlreadyExists);
    let started: StartSandboxResponse =
        call(&mut client, method::START_SANDBOX, &StartSandboxRequest { sandbox_id: id() }).unwrap();
    assert_eq!(started.pid as i32, pid);
    let platform: PlatformResponse =
        call(&mut client, method::PLATFORM, &PlatformRequest { sandbox_id: id() }).unwrap();
    assert_eq!(platform.platform.unwrap().os, "linux");
    call::<PingResponse>(&mut client, method::PING_SANDBOX, &PingRequest { sandbox_id: id() }).unwrap();

    // The pod's containers are the Task service's.
    shim.run();
    let status = |client: &mut Client| -> SandboxStatusResponse {
        let request = SandboxStatusRequest { sandbox_id: id(), verbose: true };
        call(client, method::SANDBOX_STATUS, &request).unwrap()
    };
    assert_eq!(status(&mut client).state, "SANDBOX_READY");
    let waiting = send(&mut client, method::WAIT_SANDBOX, &WaitSandboxRequest { sandbox_id: id() });
    assert!(!client.has_answered(waiting));
    let stop = StopSandboxRequest { sandbox_id: id(), timeout_secs: 0 };
    call::<StopSandboxResponse>(&mut shim.connect(), method::STOP_SANDBOX, &stop).unwrap();
    let waited: WaitSandboxResponse = client.receive(waiting).unwrap();
    let told = status(&mut client);
    assert_eq!((told.state.as_str(), told.exited_at), ("SANDBOX_NOTREADY", waited.exited_at));
    // A container keeps the shim, whatever the sandbox is told.
    let end = ShutdownSandboxRequest { sandbox_id: id() };
    call::<ShutdownSandboxResponse>(&mut client, method::SHUTDOWN_SANDBOX, &end).unwrap();
    assert_eq!(shim.pid(), pid);
    shim.finish();
    root.assert_clean();
}

#[test]
fn a_sandbox_without_containers_ends_its_shim() {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &runtime("orlop"), |bundle| bundle);
    let pid = shim.pid();
    let end = ShutdownSandboxRequest { sandbox_id: "none".to_owned() };
    call::<ShutdownSandboxResponse>(&mut shim.client, method::SHUTDOWN_SANDBOX, &end).unwrap();
    poll_until(DEADLINE, "the shim ends", || !host::alive(pid));
    assert!(!shim.socket.exists());
    root.assert_clean();
}

/// Its containers join the namespaces of the process that the sandbox names.
#[test]
fn a_sandbox_is_in_the_network_that_it_was_made_for() {
    let root = Root::new();
    let other = Cmd::new("unshare").args(["--net", "sh", "-c", "echo ready; exec sleep 1000"]).spawn();
    poll_until(DEADLINE, "the network is there", || other.stdout().starts_with("ready"));
    let mut shim = Shim::start_with(&root, "c", &runtime("orlop"), |bundle| bundle);
    let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let create = |path: String| CreateSandboxRequest {
        sandbox_id: "pod".into(),
        netns_path: path,
        ..CreateSandboxRequest::default()
    };
    let refused =
        call::<CreateSandboxResponse>(&mut shim.client, method::CREATE_SANDBOX, &create("/no/such".into()));
    assert!(refused.unwrap_err().to_string().contains("open network namespace /no/such"));
    let request = create(format!("/proc/{}/ns/net", other.pid()));
    call::<CreateSandboxResponse>(&mut shim.client, method::CREATE_SANDBOX, &request).unwrap();
    let start = StartSandboxRequest { sandbox_id: "pod".into() };
    let started: StartSandboxResponse = call(&mut shim.client, method::START_SANDBOX, &start).unwrap();
    assert_eq!(network(started.pid as i32), network(other.pid()));
    assert_ne!(network(started.pid as i32), network(std::process::id() as i32));
    shim.run();
    shim.finish();
    drop(other);
    root.assert_clean();
}

/// As containerd's CRI asks for it.
#[test]
fn a_pod_has_a_host_name_and_ipc_of_its_own() {
    let root = Root::new();
    let other = Cmd::new("unshare").args(["--net", "sh", "-c", "echo ready; exec sleep 1000"]).spawn();
    poll_until(DEADLINE, "the network is there", || other.stdout().starts_with("ready"));
    let mut shim = Shim::start_with(&root, "c", &runtime("orlop"), |bundle| bundle);
    let create = |pid: NamespaceMode| {
        let options = NamespaceOption {
            network: NamespaceMode::Pod as i32,
            pid: pid as i32,
            ipc: NamespaceMode::Pod as i32,
        };
        let linux = LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(options) }),
            sysctls: [("kernel.shmmax".to_owned(), "8192".to_owned())].into(),
        };
        let config = PodSandboxConfig { hostname: "pod-1".to_owned(), linux: Some(linux) };
        CreateSandboxRequest {
            sandbox_id: "pod".into(),
            netns_path: format!("/proc/{}/ns/net", other.pid()),
            options: Some(any::pack(&config)),
            ..CreateSandboxRequest::default()
        }
    };
    let namespace = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let (pid, own) = (shim.pid(), std::process::id() as i32);
    let shared = create(NamespaceMode::Pod);
    let refused =
        call::<CreateSandboxResponse>(&mut shim.client, method::CREATE_SANDBOX, &shared).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unimplemented, "{refused}");
    assert_eq!(namespace(pid, "net"), namespace(own, "net"));
    let request = create(NamespaceMode::Container);
    call::<CreateSandboxResponse>(&mut shim.client, method::CREATE_SANDBOX, &request).unwrap();
    for kind in ["net", "uts", "ipc"] {
        assert_ne!(namespace(pid, kind), namespace(own, kind), "{kind}");
    }
    let script = "hostname; cat /proc/sys/kernel/shmmax";
    let pid = pid.to_string();
    let inside = Cmd::new("nsenter").args(["-t", &pid, "--uts", "--ipc", "sh", "-c", script]).run().success();
    assert_eq!(inside.stdout, "pod-1\n8192\n");
    shim.run();
    shim.finish();
    drop(other);
    root.assert_clean();
}

#[test]
fn the_general_options_say_the_same_as_runcs() {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &runtime("orlop"), |bundle| bundle.sh("exit 5"));
    let mut request = shim.create_request(&Fifos::default());
    let text = format!("BinaryName = {:?}\nRoot = {:?}\n", runtime("runc"), root.join("elsewhere"));
    let general = |config_body: &str, config_path: String| {
        let config_body = config_body.as_bytes().to_vec();
        any::pack(&General { config_body, config_path, ..General::default() })
    };
    request.options = Some(general("BinaryName = 5", String::new()));
    let refused = shim.client.call::<()>("Create", &request).unwrap_err();
    assert_eq!(refused.kind(), Kind::InvalidArgument, "{refused}");
    let file = root.join("options.toml");
    fs::write(&file, text).unwrap();
    request.options = Some(general("", file.display().to_string()));
    shim.client.call::<orlop_proto::containerd::task::v2::CreateTaskResponse>("Create", &request).unwrap();
    assert!(root.join("elsewhere").join(root.tag()).join(&shim.id).exists(), "runc keeps its state there");
    shim.start_process("").unwrap();
    assert_eq!(shim.wait(""), 5);
    shim.delete("").unwrap();
    shim.shut_down();
    root.assert_clean();
}

#[test]
fn streams_belong_to_whom_the_options_say() {
    let script = "stat -L -c %u:%g /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2";
    // runc gives them to the container's user at last, who is root, and leaves the group.
    for (name, owner) in [("orlop", "1234:5678\n"), ("runc", "0:5678\n")] {
        let root = Root::new();
        let all = format!("{script}; sleep 1000");
        let mut shim = Shim::start_with(&root, "c", &runtime(name), |bundle| bundle.sh(&all));
        (shim.options.io_uid, shim.options.io_gid) = (1234, 5678);
        let of_init = Fifos::make(&root, "c");
        let (stdout, _stderr) = (reader(&of_init.stdout), reader(&of_init.stderr));
        shim.create(&of_init);
        shim.start_process("").unwrap();
        let of_exec = Fifos::make(&root, "e");
        let (exec_stdout, _stderr) = (reader(&of_exec.stdout), reader(&of_exec.stderr));
        shim.exec("e", script, &of_exec);
        shim.start_process("e").unwrap();
        assert_eq!(shim.wait("e"), 0);
        shim.delete("e").unwrap();
        shim.finish();
        for output in [stdout, exec_stdout] {
            assert_eq!(read_to_end(output), owner.repeat(3), "{name}");
        }
        root.assert_clean();
    }
}

/// Starts a shim whose options are given on standard input, as managers do, and shows where it runs.
fn cgroups_of_a_shim(root: &Root, name: &str, options: &Any) -> std::result::Result<String, String> {
    let bundle = Bundle::new(root, name).save();
    let start = action(&bundle, name, root.tag(), &root.join("none"))
        .arg("start")
        .input(options.encode_to_vec())
        .run();
    if start.code() != 0 {
        return Err(start.stderr);
    }
    let pid = fs::read_to_string(bundle.path().join("shim.pid")).unwrap();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let socket = start.stdout.trim().strip_prefix("unix://").unwrap().to_owned();
    Client::connect(socket.as_ref()).call::<()>("Shutdown", &ShutdownRequest::default()).unwrap();
    poll_until(DEADLINE, "the shim ends", || !host::alive(pid.trim().parse().unwrap()));
    Ok(groups)
}

#[test]
fn a_shim_joins_the_cgroup_that_the_options_name() {
    let root = Root::new();
    let group = format!("/{}/shims", root.tag());
    let hierarchies: Vec<_> = host::cgroup_hierarchies()
        .into_iter()
        .filter(|dir| dir.ends_with("pids") || dir.ends_with("unified"))
        .collect();
    let hierarchies = if hierarchies.is_empty() { host::cgroup_hierarchies() } else { hierarchies };
    for hierarchy in &hierarchies {
        fs::create_dir_all(hierarchy.join(&group[1..])).unwrap();
    }
    let options = Options { shim_cgroup: group.clone(), ..Options::default() };
    let general =
        General { config_body: format!("ShimCgroup = '{group}'").into_bytes(), ..General::default() };
    for (name, options) in [("a", any::pack(&options)), ("b", any::pack(&general))] {
        let groups = cgroups_of_a_shim(&root, name, &options).unwrap();
        let inside = groups.lines().filter(|line| line.ends_with(&group)).count();
        assert_eq!(inside, hierarchies.len(), "{groups}");
    }
    let missing = Options { shim_cgroup: format!("/{}/none", root.tag()), ..Options::default() };
    let refused = cgroups_of_a_shim(&root, "c", &any::pack(&missing)).unwrap_err();
    assert!(refused.contains("shim cgroup") && refused.contains("not found"), "{refused}");
    for hierarchy in &hierarchies {
        host::remove_cgroup(&hierarchy.join(&group[1..])).unwrap();
    }
    root.assert_clean();
}
