//! Every method, in the orders in which managers call them, and the events that follow.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_proto::any;
use orlop_proto::containerd::runc::v1::ProcessDetails;
use orlop_proto::containerd::task::{v2::*, v3};
use orlop_proto::containerd::types::Mount;
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::io::containerd::cgroups::v1::Metrics;
use orlop_proto::io::containerd::cgroups::v2;
use orlop_proto::kind::Kind;
use orlop_tests::{Root, binaries, host, poll_until};
use prost_types::Any;

use orlop_tests::shim::{DEADLINE, Fifos, Shim, action, runtime};

/// A container through its whole life, with an exec, on one runtime, by one package of the service.
fn whole_life(name: &str, service: &'static str) {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &runtime(name), |bundle| bundle.sh("sleep 1000"));
    shim.client.service = service;
    let id = shim.id.clone();
    let init = shim.create(&Fifos::default());
    assert_eq!(shim.status(""), Status::Created);
    assert_eq!(shim.start_process("").unwrap(), init);
    let state = shim.state("").unwrap();
    assert_eq!((state.status(), state.pid, state.id.as_str()), (Status::Running, init as u32, id.as_str()));

    shim.exec("e", "sleep 1000", &Fifos::default());
    assert_eq!(shim.status("e"), Status::Created);
    let exec = shim.start_process("e").unwrap();
    assert_eq!(shim.status("e"), Status::Running);
    let pids: PidsResponse = shim.client.call("Pids", &PidsRequest { id: id.clone() }).unwrap();
    let found = pids.processes.iter().find(|process| process.pid == exec as u32).expect("the exec is listed");
    let details: ProcessDetails = any::unpack(found.info.as_ref().expect("it is named")).unwrap();
    assert_eq!(details.exec_id, "e");
    assert!(pids.processes.iter().any(|process| process.pid == init as u32 && process.info.is_none()));

    poll_until(DEADLINE, "it is paused", || match shim.simple("Pause") {
        // runc gives up after a number of looks, which on a busy machine are over before the processes have stopped.
        Err(error) if name == "runc" && error.to_string().contains("unable to freeze") => false,
        other => other.map(|()| true).unwrap(),
    });
    assert_eq!((shim.status(""), shim.status("e")), (Status::Paused, Status::Paused));
    shim.simple("Resume").unwrap();
    assert_eq!(shim.status(""), Status::Running);

    let update = UpdateTaskRequest {
        id: id.clone(),
        resources: Some(Any {
            type_url: any::RESOURCES_URL.into(),
            value: br#"{"pids":{"limit":50}}"#.to_vec(),
        }),
        ..UpdateTaskRequest::default()
    };
    shim.client.call::<()>("Update", &update).unwrap();
    let stats: StatsResponse = shim.client.call("Stats", &StatsRequest { id: id.clone() }).unwrap();
    let stats = stats.stats.expect("figures");
    let (current, limit) = if host::cgroup_unified() {
        let pids = any::unpack::<v2::Metrics>(&stats).unwrap().pids.unwrap();
        (pids.current, pids.limit)
    } else {
        let pids = any::unpack::<Metrics>(&stats).unwrap().pids.unwrap();
        (pids.current, pids.limit)
    };
    assert!(current >= 2, "{current} processes");
    assert_eq!(limit, 50);

    shim.kill("e", Signal::SIGTERM).unwrap();
    assert_eq!(shim.wait("e"), 128 + Signal::SIGTERM as u32);
    assert_eq!(shim.delete("e").unwrap().pid, exec as u32);
    shim.kill("", Signal::SIGKILL).unwrap();
    assert_eq!(shim.wait(""), 137);
    assert_eq!(shim.status(""), Status::Stopped);
    assert_eq!(shim.kill("", Signal::SIGKILL).unwrap_err().kind(), Kind::NotFound);
    let deleted = shim.delete("").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (init as u32, 137));
    assert!(deleted.exited_at.is_some());
    assert_eq!(shim.state("").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(
        shim.events.until(&id, "delete 137"),
        [
            "create",
            "start",
            "exec-added e",
            "exec-started e",
            "paused",
            "resumed",
            "exit e 143",
            "exit init 137",
            "delete 137"
        ]
    );
    shim.shut_down();
    root.assert_clean();
}

#[test]
fn a_whole_life_through_runc() {
    whole_life("runc", task_ttrpc::SERVICE);
}

#[test]
fn a_whole_life_through_orlop() {
    whole_life("orlop", task_ttrpc::SERVICE);
}

#[test]
fn a_whole_life_by_version_3_of_the_service() {
    whole_life("orlop", v3::task_ttrpc::SERVICE);
}

#[test]
fn events_carry_what_managers_need() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "exit 0");
    shim.run();
    shim.wait("");
    shim.delete("").unwrap();
    shim.events.until(&shim.id, "delete 0");
    for envelope in shim.events.envelopes() {
        assert_eq!(envelope.namespace, root.tag());
        assert!(envelope.timestamp.is_some());
        let url = envelope.event.expect("an event").type_url;
        assert!(url.starts_with("containerd.events.Task"), "a bare name: {url}");
    }
    shim.shut_down();
    root.assert_clean();
}

#[test]
fn version_3_of_the_service_is_the_same() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "exit 4");
    shim.run();
    let request = v3::WaitRequest { id: shim.id.clone(), exec_id: String::new() };
    let pending = shim.client.send_as("containerd.task.v3.Task", "Wait", &request, Duration::ZERO);
    assert_eq!(shim.client.receive::<v3::WaitResponse>(pending).unwrap().exit_status, 4);
    shim.finish();
    root.assert_clean();
}

/// The four things that happen to a process, in every order that makes sense: the exit code is the same.
#[test]
fn exit_codes_are_known_in_any_order() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    let id = shim.id.clone();
    shim.run();
    // Waited for before it starts.
    shim.exec("a", "exit 11", &Fifos::default());
    let early = shim.send_wait("a");
    shim.start_process("a").unwrap();
    assert_eq!(shim.client.receive::<WaitResponse>(early).unwrap().exit_status, 11);
    // Waited for long after it ended.
    shim.exec("b", "exit 12", &Fifos::default());
    shim.start_process("b").unwrap();
    shim.events.contain(&id, "exit b 12");
    assert_eq!((shim.wait("b"), shim.wait("b")), (12, 12));
    // Deleted without anybody waiting.
    shim.exec("c", "exit 13", &Fifos::default());
    shim.start_process("c").unwrap();
    shim.events.contain(&id, "exit c 13");
    assert_eq!(shim.delete("c").unwrap().exit_status, 13);
    // Deleted while it runs: refused, and nothing is lost.
    shim.exec("d", "sleep 1000", &Fifos::default());
    shim.start_process("d").unwrap();
    assert_eq!(shim.delete("d").unwrap_err().kind(), Kind::FailedPrecondition);
    shim.kill("d", Signal::SIGUSR1).unwrap();
    assert_eq!(shim.wait("d"), 128 + Signal::SIGUSR1 as u32);
    // Never started.
    shim.exec("f", "exit 14", &Fifos::default());
    shim.delete("f").unwrap();
    assert_eq!(shim.state("f").unwrap_err().kind(), Kind::NotFound);
    // Ended by the end of its container, whose exit comes last.
    shim.exec("g", "sleep 1000", &Fifos::default());
    shim.start_process("g").unwrap();
    let (of_exec, of_init) = (shim.send_wait("g"), shim.send_wait(""));
    shim.kill("", Signal::SIGKILL).unwrap();
    assert_eq!(shim.client.receive::<WaitResponse>(of_exec).unwrap().exit_status, 137);
    assert_eq!(shim.client.receive::<WaitResponse>(of_init).unwrap().exit_status, 137);
    let events = shim.events.until(&id, "exit init 137");
    assert_eq!(events[events.len() - 2], "exit g 137");
    shim.finish();
    root.assert_clean();
}

#[test]
fn processes_that_end_before_start_returns_are_not_lost() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    let id = shim.id.clone();
    shim.run();
    for round in 0..10 {
        let exec = format!("e{round}");
        shim.exec(&exec, &format!("exit {round}"), &Fifos::default());
        shim.start_process(&exec).unwrap();
        assert_eq!(shim.wait(&exec), round);
        shim.events.contain(&id, &format!("exit {exec} {round}"));
        let events = shim.events.of(&id);
        let at = |event: String| events.iter().position(|one| *one == event).expect("it was published");
        assert!(at(format!("exec-started {exec}")) < at(format!("exit {exec} {round}")), "{events:?}");
        shim.delete(&exec).unwrap();
    }
    shim.finish();
    root.assert_clean();
}

#[test]
fn hundreds_of_execs_at_once() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    shim.run();
    let names: Vec<String> = (0..300).map(|number| format!("e{number}")).collect();
    for name in &names {
        shim.exec(name, &format!("exit $(({} % 256))", &name[1..]), &Fifos::default());
    }
    let id = shim.id.clone();
    let starts: Vec<_> = names
        .iter()
        .map(|name| shim.client.send("Start", &StartRequest { id: id.clone(), exec_id: name.clone() }))
        .collect();
    let waits: Vec<_> = names.iter().map(|name| shim.send_wait(name)).collect();
    for start in starts {
        shim.client.receive::<StartResponse>(start).expect("Start");
    }
    for (number, wait) in waits.into_iter().enumerate() {
        assert_eq!(shim.client.receive::<WaitResponse>(wait).unwrap().exit_status, number as u32 % 256);
    }
    shim.finish();
    root.assert_clean();
}

#[test]
fn orphans_of_the_container_are_reaped() {
    let root = Root::new();
    // Without a pid namespace of its own, what is orphaned in the container becomes the shim's.
    let script = "for i in $(seq 50); do (sh -c 'true &' &); done; sleep 1000";
    let mut shim = Shim::start_with(&root, "c", &runtime("runc"), |bundle| {
        bundle.sh(script).edit(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        })
    });
    shim.run();
    let pid = shim.pid();
    let zombies = || {
        let of_shim = |task: &&host::Task| task.parent == pid && task.state == 'Z';
        host::processes().iter().filter(of_shim).count()
    };
    shim.exec("e", "sleep 1000 & exit 3", &Fifos::default());
    shim.start_process("e").unwrap();
    assert_eq!(shim.wait("e"), 3);
    poll_until(DEADLINE, "no zombie is left", || zombies() == 0);
    // Its background process ends with the container.
    shim.finish();
    root.assert_clean();
}

#[test]
fn double_forks_stay_in_their_container() {
    for name in ["orlop", "runc"] {
        let root = Root::new();
        // Twice forked, with a session of its own: an orphan belongs to the container's init, which reaps it.
        let daemon = "(setsid sh -c 'sleep 1000 & echo $! >/tmp/pid' &)";
        let mut shim =
            Shim::start_with(&root, "c", &runtime(name), |bundle| bundle.sh("while :; do sleep 0.05; done"));
        let init = shim.run();
        shim.exec("e", &format!("{daemon}; exit 3"), &Fifos::default());
        shim.start_process("e").unwrap();
        assert_eq!(shim.wait("e"), 3, "{name}");
        let file = shim.bundle.rootfs("tmp/pid");
        poll_until(DEADLINE, "the daemon runs", || {
            std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))
        });
        let pids: PidsResponse = shim.client.call("Pids", &PidsRequest { id: shim.id.clone() }).unwrap();
        let others: Vec<u32> =
            pids.processes.iter().map(|one| one.pid).filter(|pid| *pid != init as u32).collect();
        assert!(!others.is_empty());
        shim.kill("", Signal::SIGKILL).unwrap();
        assert_eq!(shim.wait(""), 137);
        poll_until(DEADLINE, "the daemon ends with its container", || {
            others.iter().all(|pid| !host::alive(*pid as i32))
        });
        shim.finish();
        root.assert_clean();
    }
}

#[test]
fn a_container_that_forks_as_fast_as_it_can_is_waited_for_and_killed() {
    for (name, own_pids) in [("orlop", true), ("runc", true), ("orlop", false)] {
        let root = Root::new();
        // With `command eval` a shell goes on when it cannot fork: it must not end before it is killed.
        let script = "f() { while :; do command eval '(true & true &)' 2>/dev/null; done; }; \
                      for i in 1 2 3 4; do command eval 'f &'; done; f";
        let mut shim = Shim::start_with(&root, "c", &runtime(name), |bundle| {
            bundle.sh(script).edit(|config| {
                config["linux"]["resources"]["pids"] = serde_json::json!({"limit": 60});
                if !own_pids {
                    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
                    namespaces.retain(|namespace| namespace["type"] != "pid");
                }
            })
        });
        shim.run();
        let pid = shim.pid();
        for _ in 0..20 {
            assert_eq!(shim.status(""), Status::Running);
            shim.client.call::<PidsResponse>("Pids", &PidsRequest { id: shim.id.clone() }).unwrap();
        }
        shim.simple("Pause").unwrap();
        shim.simple("Resume").unwrap();
        let all = KillRequest { id: shim.id.clone(), signal: 9, all: true, ..KillRequest::default() };
        shim.client.call::<()>("Kill", &all).unwrap();
        assert_eq!(shim.wait(""), 137, "{name}");
        let children = || host::processes().into_iter().filter(|task| task.parent == pid).count();
        poll_until(DEADLINE, "the shim has reaped all", || children() == 0);
        shim.finish();
        root.assert_clean();
    }
}

#[test]
fn a_manager_that_comes_back_finds_everything() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    let init = shim.run();
    shim.exec("e", "sleep 0.2; exit 5", &Fifos::default());
    shim.start_process("e").unwrap();
    shim.send_wait("e");
    shim.send_wait("");
    // The manager dies with its requests unanswered.
    shim.client = shim.connect();
    assert_eq!(shim.wait("e"), 5);
    let request = ConnectRequest { id: shim.id.clone() };
    let response: ConnectResponse = shim.client.call("Connect", &request).unwrap();
    assert_eq!(response.task_pid, init as u32);
    shim.finish();
    root.assert_clean();
}

#[test]
fn shutdown_waits_for_the_last_container() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    shim.run();
    let request = ShutdownRequest { id: shim.id.clone(), now: true };
    shim.client.call::<()>("Shutdown", &request).unwrap();
    assert_eq!(shim.status(""), Status::Running);
    shim.finish();
    root.assert_clean();
}

#[test]
fn the_shim_mounts_the_rootfs() {
    let root = Root::new();
    // The runtime starts where the shim is, wherever it went to mount.
    let (wrapper, places) = (root.join("wrapper"), root.join("places"));
    let runc = binaries::system("runc");
    let script = format!("#!/bin/sh\npwd >>{}\nexec {} \"$@\"\n", places.display(), runc.display());
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut shim =
        Shim::start_with(&root, "c", &wrapper, |bundle| bundle.sh("cat /layer; test -w / && touch /written"));
    // Far more layers than mount(2) takes as text.
    let lower = shim.bundle.path().with_file_name("lower");
    std::fs::rename(shim.bundle.rootfs(""), &lower).unwrap();
    std::fs::write(lower.join("layer"), "from a layer\n").unwrap();
    let mut layers = Vec::new();
    for number in 0..120 {
        let layer = root.join(format!("a-layer-with-a-rather-long-name-{number:03}"));
        std::fs::create_dir(&layer).unwrap();
        layers.push(layer.display().to_string());
    }
    layers.push(lower.display().to_string());
    for name in ["upper", "work"] {
        std::fs::create_dir(root.join(name)).unwrap();
    }
    let stdio = Fifos::output(&root, "c");
    let output = orlop_tests::shim::reader(&stdio.stdout);
    let mut request = shim.create_request(&stdio);
    request.rootfs = vec![Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options: vec![
            "index=off".into(),
            format!("workdir={}", root.join("work").display()),
            format!("upperdir={}", root.join("upper").display()),
            format!("lowerdir={}", layers.join(":")),
        ],
    }];
    shim.client.call::<CreateTaskResponse>("Create", &request).unwrap();
    shim.start_process("").unwrap();
    assert_eq!(shim.wait(""), 0);
    assert_eq!(orlop_tests::shim::read_to_end(output), "from a layer\n");
    assert!(root.join("upper/written").exists());
    shim.delete("").unwrap();
    assert!(!host::mounts().iter().any(|mount| mount.target.starts_with(shim.bundle.path())));
    let places = std::fs::read_to_string(places).unwrap();
    assert!(places.lines().all(|place| Path::new(place) == shim.bundle.path()), "{places}");
    shim.shut_down();
    root.assert_clean();
}

#[test]
fn containers_of_a_group_share_a_shim() {
    share("io.containerd.runc.v2.group");
}

#[test]
fn containers_of_cris_sandbox_share_a_shim() {
    share("io.kubernetes.cri.sandbox-id");
}

/// Two containers whose annotation says the same.
fn share(annotation: &str) {
    let root = Root::new();
    let group = |bundle: orlop_tests::Bundle| {
        bundle.sh("sleep 1000").edit(|config| {
            config["annotations"] = serde_json::json!({ annotation: "pod" });
        })
    };
    let mut shim = Shim::start_with(&root, "c", &runtime("runc"), group);
    shim.run();
    let second = group(orlop_tests::Bundle::new(&root, "d")).save();
    let id = format!("{}-d", root.tag());
    let output = action(&second, &id, root.tag(), shim.events.path()).arg("start").run().success();
    assert_eq!(output.stdout, format!("unix://{}", shim.socket.display()));
    let request = CreateTaskRequest {
        id: id.clone(),
        bundle: second.path().display().to_string(),
        options: Some(any::pack(&shim.options)),
        ..CreateTaskRequest::default()
    };
    shim.client.call::<CreateTaskResponse>("Create", &request).unwrap();
    shim.client
        .call::<StartResponse>("Start", &StartRequest { id: id.clone(), exec_id: String::new() })
        .unwrap();
    let kill = KillRequest { id: id.clone(), signal: 9, ..KillRequest::default() };
    shim.client.call::<()>("Kill", &kill).unwrap();
    let wait = WaitRequest { id: id.clone(), exec_id: String::new() };
    assert_eq!(shim.client.call::<WaitResponse>("Wait", &wait).unwrap().exit_status, 137);
    let delete = DeleteRequest { id, exec_id: String::new() };
    shim.client.call::<DeleteResponse>("Delete", &delete).unwrap();
    assert_eq!(shim.status(""), Status::Running, "the other is not touched");
    shim.finish();
    root.assert_clean();
}
