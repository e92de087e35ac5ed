//! Containers of a user who is not root: ids mapped by the kernel's rules or by newuidmap, with and without a cgroup.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use orlop_tests::{Bundle, Cmd, Output, binaries, host};
use serde_json::json;

use crate::support::Runtime;

/// A user that no machine has, and the ids lent to it.
const USER: u32 = 54321;
const LENT: u32 = 2_000_000;

/// A user with a runtime, a bundle and a directory for its state.
struct User {
    runtime: Runtime,
    binary: PathBuf,
    bundle: Bundle,
}

impl User {
    fn new(runtime: Runtime, binary: PathBuf) -> User {
        let directory = runtime.root.path();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        let home = directory.join("home");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(USER), Some(USER)).unwrap();
        let text = |file: &str| fs::read_to_string(file).unwrap_or_default();
        fs::write(
            directory.join("passwd"),
            format!("{}tester:x:{USER}:{USER}::/:/bin/sh\n", text("/etc/passwd")),
        )
        .unwrap();
        for name in ["subuid", "subgid"] {
            fs::write(directory.join(name), format!("tester:{LENT}:65536\n")).unwrap();
        }
        let bundle = runtime.sh("true").edit(|config| {
            let map = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
            config["linux"]["uidMappings"] = map.clone();
            config["linux"]["gidMappings"] = map;
            config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
            config["linux"].as_object_mut().unwrap().remove("resources");
            config["linux"]["namespaces"] =
                json!(["pid", "ipc", "uts", "mount", "user", "cgroup"].map(|kind| json!({ "type": kind })));
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != "/sys" && mount["destination"] != "/sys/fs/cgroup");
            for mount in mounts {
                if let Some(options) = mount["options"].as_array_mut() {
                    options.retain(|option| option != "gid=5");
                }
            }
            let sys = json!({"destination": "/sys", "type": "none", "source": "/sys",
                             "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
            config["mounts"].as_array_mut().unwrap().push(sys);
        });
        User { runtime, binary, bundle: bundle.save() }
    }

    fn orlop() -> User {
        User::new(Runtime::new(), binaries::orlop())
    }

    fn sh(mut self, script: &str) -> User {
        self.bundle = self.bundle.sh(script).save();
        self
    }

    fn edit(mut self, change: impl FnOnce(&mut serde_json::Value)) -> User {
        self.bundle = self.bundle.edit(change).save();
        self
    }

    /// A script of the user's own, where `$RUNTIME` is the runtime and `$BUNDLE` the bundle.
    fn script(&self, script: &str) -> Output {
        self.script_after("true", script)
    }

    /// A script of the user's own, after something that root does.
    fn script_after(&self, before: &str, script: &str) -> Output {
        let root = self.runtime.root.path();
        let become_user = format!(
            "{before} && mount --bind {0}/passwd /etc/passwd && mount --bind {0}/subuid /etc/subuid && mount --bind {0}/subgid /etc/subgid &&
             exec setpriv --reuid={USER} --regid={USER} --clear-groups sh -c \"$0\"",
            root.display()
        );
        for name in ["subuid", "subgid"] {
            // A place to mount it on.
            let path = Path::new("/etc").join(name);
            assert!(path.exists(), "{} comes with Debian's passwd and uidmap", path.display());
        }
        Cmd::new(binaries::system("unshare"))
            .args(["--mount", "--propagation", "private", "sh", "-c", &become_user, script])
            .env("RUNTIME", &self.binary)
            .env("BUNDLE", self.bundle.path())
            .env("XDG_RUNTIME_DIR", root.join("home"))
            .without_env("USER")
            .run()
    }

    fn run(&self) -> Output {
        self.script("exec $RUNTIME run --bundle $BUNDLE c1")
    }

    fn assert_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.runtime.root.join("home"))
            .unwrap()
            .flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "state is left: {left:?}");
        self.runtime.assert_clean();
    }
}

/// What a container shows of its user, the same as in runc.
#[test]
fn a_user_runs_a_container_without_a_cgroup() {
    let script = "id; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups /proc/self/cgroup; grep Cap /proc/self/status
                  stat -c '%u:%g %a' / /bin/busybox /dev/null /proc/1; touch /made; hostname; exit 7";
    let outputs: Vec<_> = [binaries::orlop(), binaries::system("runc")]
        .into_iter()
        .map(|binary| {
            let user = User::new(Runtime::new(), binary).sh(script);
            let out = user.run();
            assert_eq!(out.code(), 7, "{out}");
            let made = fs::metadata(user.bundle.rootfs("/made"));
            // The root file system belongs to root, whom this user is not outside.
            assert!(made.is_err(), "{out}");
            user.assert_clean();
            out.stdout
        })
        .collect();
    assert!(outputs[0].contains("uid=0(root) gid=0(root)"), "{}", outputs[0]);
    assert!(outputs[0].contains("deny"), "{}", outputs[0]);
    assert_eq!(outputs[0], outputs[1]);
}

/// State below `XDG_RUNTIME_DIR`; every verb on a container whose processes nobody counts.
#[test]
fn a_users_container_lives_and_ends() {
    let user = User::orlop().sh("sleep 1000");
    let out = user.script(
        "$RUNTIME run -d --bundle $BUNDLE c1 </dev/null >/dev/null 2>&1 || exit 10
         test -d $XDG_RUNTIME_DIR/orlop/c1 || exit 11
         $RUNTIME list -q
         $RUNTIME exec c1 sh -c 'id -u; hostname; test \"$(cat /proc/1/comm)\" = sleep || cat /proc/1/cmdline; exit 3'; echo exec $?
         $RUNTIME exec -t c1 tty; echo terminal $?
         $RUNTIME ps c1 2>&1; echo ps $?
         $RUNTIME pause c1 2>&1; echo pause $?
         $RUNTIME update --pids-limit 10 c1 2>&1; echo update $?
         $RUNTIME kill c1 KILL; echo kill $?
         until $RUNTIME state c1 | grep -q stopped; do sleep 0.01; done
         $RUNTIME delete c1; echo delete $?",
    );
    for expected in [
        "c1\n0\norlop\n",
        "exec 3\n",
        "terminal 0\n",
        "ps 1\n",
        "pause 1\n",
        "update 1\n",
        "kill 0\n",
        "delete 0\n",
    ] {
        assert!(out.stdout.contains(expected), "no {expected:?} in {out}");
    }
    assert!(out.stdout.contains("cannot set pids limit: container could not join or create cgroup"), "{out}");
    user.assert_clean();
}

/// Several maps, by the set-user-id helpers: other users and supplementary groups.
#[test]
fn lent_ids_are_mapped() {
    let many = |config: &mut serde_json::Value| {
        let map = json!([{"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": LENT, "size": 65536}]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [2000]});
    };
    let user = User::orlop().sh("id; cat /proc/self/uid_map").edit(many);
    let out = user.run().success();
    assert!(out.stdout.contains("uid=1000(user) gid=1000(user) groups=2000(extra)"), "{out}");
    let lines: Vec<Vec<_>> = out.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(lines.contains(&vec!["1", &LENT.to_string(), "65536"]), "{out}");
    user.assert_clean();
}

/// Ids that were not lent: one error that names the map, and nothing is left.
#[test]
fn ids_that_were_not_lent_are_refused() {
    let user = User::orlop().edit(|config| {
        config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    });
    let out = user.run();
    assert_eq!(out.code(), 1, "{out}");
    assert!(out.stderr.contains("map ids 0 0 1: newuidmap: uid range"), "{out}");
    user.assert_clean();
    let user = User::orlop().edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "user");
        config["linux"].as_object_mut().unwrap().remove("uidMappings");
        config["linux"].as_object_mut().unwrap().remove("gidMappings");
    });
    let out = user.run();
    assert!(out.stderr.contains("rootless container requires user namespaces"), "{out}");
    user.assert_clean();
}

/// Without a cgroup a limit cannot hold, and a container that asks for one does not start.
#[test]
fn a_limit_needs_a_cgroup() {
    let limit =
        |config: &mut serde_json::Value| config["linux"]["resources"] = json!({"pids": {"limit": 20}});
    let user = User::orlop().edit(limit);
    let out = user.run();
    assert_eq!(out.code(), 1, "{out}");
    assert!(out.stderr.contains("cannot set pids limit: container could not join or create cgroup"), "{out}");
    user.assert_clean();
    // A cgroup that somebody names is to be had or the container does not start.
    let path = "/orlop-not-ours/c1";
    let user = User::orlop().edit(|config| config["linux"]["cgroupsPath"] = json!(path));
    let out = user.run();
    assert!(out.stderr.contains("make cgroup") && out.stderr.contains("ermission denied"), "{out}");
    user.assert_clean();
}

/// A cgroup that was delegated to the user has limits that hold, can be paused and tells its processes.
#[test]
fn a_delegated_cgroup_is_used() {
    let user = User::orlop().sh("sleep 1000");
    let path = user.runtime.root.cgroups_path("delegated");
    let delegated = Delegated::new(&path);
    let user = user.edit(|config| {
        config["linux"]["cgroupsPath"] = json!(format!("{path}/c1"));
        config["linux"]["resources"] = json!({"pids": {"limit": 20}});
    });
    let script = format!(
        "$RUNTIME run -d --bundle $BUNDLE c1 </dev/null >/dev/null || exit 10
         cat {}
         $RUNTIME exec c1 sh -c 'i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done' 2>&1; echo exec $?
         $RUNTIME ps -f json c1 | grep -c '[0-9]'
         $RUNTIME pause c1 && $RUNTIME state c1 | grep -o paused; $RUNTIME resume c1
         $RUNTIME update --pids-limit 30 c1; echo update $?
         $RUNTIME delete --force c1; echo delete $?",
        delegated.file("pids", "c1/pids.max").display(),
    );
    let out = user.script_after(&delegated.enter(), &script);
    let expected =
        "20\nsh: can't fork: Resource temporarily unavailable\nexec 2\n1\npaused\nupdate 0\ndelete 0\n";
    assert!(out.stdout == expected, "{out}");
    drop(delegated);
    user.assert_clean();
}

/// podman as a user makes its own user namespace and calls the runtime as root of it.
#[test]
fn podman_of_a_user_runs_containers() {
    let outputs: Vec<_> = [binaries::orlop(), binaries::system("runc")]
        .into_iter()
        .map(|binary| {
            let user = User::new(Runtime::new(), binary);
            let owner = format!("{USER}:{USER}");
            Cmd::new("chown").args(["--recursive", &owner]).arg(user.bundle.rootfs("/")).run().success();
            let out = user.script(
                "export HOME=$XDG_RUNTIME_DIR/user TMPDIR=$XDG_RUNTIME_DIR/user; mkdir $HOME; cd $HOME
                 podman() { command podman --runtime $RUNTIME --cgroup-manager cgroupfs --events-backend none --storage-driver vfs \"$@\"; }
                 # A container that ended before conmon has accepted its caller's connection would have written for nobody.
                 echo go | podman run --interactive --name c1 --network none --hostname box --user 1000:1000 --rootfs $BUNDLE/rootfs \
                     sh -c 'read word; id; cat /proc/self/uid_map; hostname; exit 5'; echo run $?
                 podman run --detach --name c2 --network none --rootfs $BUNDLE/rootfs sleep 1000 >$HOME/id; echo detach $?
                 podman exec c2 sh -c 'id -u; exit 6'; echo exec $?
                 podman rm --force --time 0 c1 c2 >$HOME/ids; echo rm $?
                 podman system migrate; rm -rf $HOME $XDG_RUNTIME_DIR/*",
            );
            user.runtime.root.assert_clean();
            out.stdout
        })
        .collect();
    for expected in ["uid=1000(user) gid=1000(user)", "\nbox\nrun 5\ndetach 0\n0\nexec 6\nrm 0\n"] {
        assert!(outputs[0].contains(expected), "no {expected:?} in {}", outputs[0]);
    }
    assert_eq!(outputs[0], outputs[1]);
}

/// A directory in every hierarchy that belongs to the user, as an administrator or a service manager lends it.
struct Delegated {
    path: String,
}

impl Delegated {
    fn new(path: &str) -> Delegated {
        let delegated = Delegated { path: path.to_owned() };
        for directory in delegated.directories() {
            fs::create_dir_all(&directory).unwrap();
            for file in ["cgroup.procs", "tasks", "cgroup.subtree_control", "cgroup.threads"] {
                let _ = chown(directory.join(file), Some(USER), Some(USER));
            }
            chown(&directory, Some(USER), Some(USER)).unwrap();
            for (file, parents) in [("cpuset.cpus", "cpuset.cpus"), ("cpuset.mems", "cpuset.mems")] {
                inherit(&directory, file, parents);
            }
        }
        for caller in delegated.callers() {
            // Who lends a group hands controllers down to it; a hybrid host has none to hand.
            let parent = caller.ancestors().nth(2).unwrap();
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+pids");
            fs::create_dir(&caller).unwrap();
            chown(caller.join("cgroup.procs"), Some(USER), Some(USER)).unwrap();
        }
        delegated
    }

    /// On version 2 only who is inside may move processes about (cgroups(7), "Delegation containment"), and not from a group
    /// that has others below it.
    fn callers(&self) -> impl Iterator<Item = PathBuf> {
        let unified = |directory: &PathBuf| directory.join("cgroup.controllers").exists();
        self.directories().into_iter().filter(unified).map(|directory| directory.join("caller"))
    }

    fn directories(&self) -> Vec<PathBuf> {
        let inner = self.path.trim_start_matches('/');
        host::cgroup_hierarchies().into_iter().map(|hierarchy| hierarchy.join(inner)).collect()
    }

    fn file(&self, controller: &str, file: &str) -> PathBuf {
        let hierarchy = if host::cgroup_unified() { "" } else { controller };
        Path::new("/sys/fs/cgroup").join(hierarchy).join(self.path.trim_start_matches('/')).join(file)
    }

    /// What moves a shell inside.
    fn enter(&self) -> String {
        let moves = self.callers().map(|caller| format!("echo 0 >{}/cgroup.procs", caller.display()));
        std::iter::once("true".to_owned()).chain(moves).collect::<Vec<_>>().join(" && ")
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for directory in self.directories() {
            let _ = host::remove_cgroup(&directory);
            let _ = directory.parent().map(fs::remove_dir);
        }
    }
}

/// A cpuset of version 1 takes no process before it has processors and memory nodes.
fn inherit(directory: &Path, file: &str, parents: &str) {
    let path = directory.join(file);
    let Ok(text) = fs::read_to_string(&path) else { return };
    if text.trim().is_empty() {
        let parent = directory.parent().unwrap();
        inherit(parent, file, parents);
        let _ = fs::write(path, fs::read_to_string(parent.join(parents)).unwrap());
    }
}
