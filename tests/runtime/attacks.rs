//! Attacks on the host from inside a container: each fails as the product is built, and works in a test build with the
//! one guard against it switched off, which proves that it is this guard that holds.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use orlop_tests::{Bundle, Cmd, Output, Root, binaries, poll_until};
use serde_json::json;

/// The test build, whose guards `ORLOP_TEST_OFF` switches off: `ORLOP_SWITCHES`, or built here.
pub(super) fn switchable() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(path) = std::env::var_os("ORLOP_SWITCHES") {
            return path.into();
        }
        let target = binaries::target_dir().join("test-switches");
        Cmd::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "orlop", "--features", "test-switches", "--target-dir"])
            .arg(&target)
            .cwd(binaries::source_root())
            .deadline(Duration::from_secs(900))
            .run()
            .success();
        target.join("debug/orlop")
    })
}

/// The program to attack: the product, or the test build without one guard.
fn attacked(guard: &str, is_on: bool) -> Cmd {
    if is_on { Cmd::new(binaries::orlop()) } else { Cmd::new(switchable()).env("ORLOP_TEST_OFF", guard) }
}

fn run(root: &Root, bundle: &Bundle, guard: &str, is_on: bool) -> Output {
    attacked(guard, is_on)
        .arg("--root")
        .arg(root.join("state"))
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg(root.tag())
        .run()
}

/// Runs an attack with the guard on and off; `attack` tells whether it got through.
fn guard_holds(guard: &str, attack: impl Fn(&Root, bool) -> bool) {
    let root = Root::new();
    assert!(!attack(&root, true), "the attack works although the guard {guard:?} is on");
    drop(root);
    let root = Root::new();
    assert!(attack(&root, false), "the attack fails even without the guard {guard:?}");
}

/// CVE-2019-5736: an entrypoint `#!/proc/self/exe` runs the runtime's binary inside the container, where another process
/// gets hold of it and overwrites it.
#[test]
fn the_runtimes_own_binary_cannot_be_overwritten() {
    guard_holds("seal", |root, is_on| {
        let source = if is_on { binaries::orlop() } else { switchable().to_owned() };
        let (victim, other) = (root.join("victim"), root.join("other"));
        fs::copy(&source, &victim).unwrap();
        fs::copy(&source, &other).unwrap();
        let mut bundle = Bundle::new(root, "b").args(["sleep", "1000"]);
        // A developer's build is not static: it finds its libraries in the container.
        for library in ["/lib", "/lib64", "/usr/lib"].into_iter().filter(|path| Path::new(path).exists()) {
            bundle =
                bundle.mount(json!({"destination": library, "source": library, "options": ["rbind", "ro"]}));
        }
        let bundle = bundle.save();
        // In the container the runtime's binary is made to wait for the state of a container that is a FIFO.
        fs::create_dir_all(bundle.rootfs("/run/orlop/x")).unwrap();
        mkfifo(&bundle.rootfs("/run/orlop/x/state.json"), Mode::S_IRWXU).unwrap();
        fs::write(bundle.rootfs("/entry"), "#!/proc/self/exe --log\n").unwrap();
        fs::set_permissions(bundle.rootfs("/entry"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let call = |program: &Path| {
            let call = Cmd::new(program).arg("--root").arg(root.join("state"));
            if is_on { call } else { call.env("ORLOP_TEST_OFF", "seal") }
        };
        call(&other).args(["run", "--detach", "--bundle"]).arg(bundle.path()).arg(root.tag()).run().success();
        call(&victim).args(["exec", "--detach", root.tag(), "/entry", "state", "x"]).run().success();
        let script = "
            victim=$(grep -l '^/proc/self/exe' /proc/[0-9]*/cmdline | head -n1); victim=${victim%/cmdline}
            exec 3<$victim/exe
            echo >/run/orlop/x/state.json
            while [ -d $victim ]; do sleep 0.05; done
            echo overwritten >/proc/self/fd/3";
        call(&other).args(["exec", root.tag(), "sh", "-c", script]).run();
        call(&other).args(["delete", "--force", root.tag()]).run().success();
        fs::read(&victim).unwrap().starts_with(b"overwritten")
    });
}

/// CVE-2024-21626, first half: a descriptor that the runtime's caller left open reaches the container.
#[test]
fn descriptors_of_the_caller_do_not_reach_the_container() {
    guard_holds("descriptors", |root, is_on| {
        fs::write(root.join("secret"), "host's own").unwrap();
        let bundle = Bundle::new(root, "b").sh("cat /proc/self/fd/9/secret").save();
        leaking(root, &bundle, "descriptors", is_on).stdout.contains("host's own")
    });
}

/// CVE-2024-21626, second half: a working directory that leads out of the container through such a descriptor.
#[test]
fn the_working_directory_lies_in_the_container() {
    guard_holds("cwd", |root, is_on| {
        fs::write(root.join("secret"), "host's own").unwrap();
        let bundle = Bundle::new(root, "b")
            .sh("cat ./secret")
            .edit(|config| config["process"]["cwd"] = json!("/proc/self/fd/9"))
            .save();
        let output = leaking(root, &bundle, "cwd", is_on);
        if is_on {
            assert!(output.stderr.contains("outside of container"), "{output:?}");
        }
        output.stdout.contains("host's own")
    });
}

/// Runs a bundle with descriptor 9 open on the test's directory.
fn leaking(root: &Root, bundle: &Bundle, guard: &str, is_on: bool) -> Output {
    let program = if is_on { binaries::orlop() } else { switchable().to_owned() };
    let call = Cmd::new("sh").args(["-c", "exec 9<\"$0\" \"$@\""]).arg(root.path()).arg(program);
    let call = if is_on { call } else { call.env("ORLOP_TEST_OFF", guard) };
    call.arg("--root")
        .arg(root.join("state"))
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg(root.tag())
        .run()
}

/// CVE-2026-41579: an image whose `/dev` is a link has device nodes made outside of the root file system.
#[test]
fn device_nodes_stay_in_the_root_file_system() {
    guard_holds("rootfs-paths", |root, is_on| {
        let outside = root.join("outside");
        fs::create_dir(&outside).unwrap();
        let bundle = Bundle::new(root, "b").args(["true"]);
        fs::remove_dir(bundle.rootfs("/dev")).unwrap();
        symlink(&outside, bundle.rootfs("/dev")).unwrap();
        let bundle = bundle
            .edit(|config| {
                let mounts = config["mounts"].as_array_mut().unwrap();
                mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
            })
            .save();
        run(root, &bundle, "rootfs-paths", is_on);
        fs::read_dir(&outside).unwrap().next().is_some()
    });
}

/// CVE-2021-30465: a link in the image leads a mount's destination out of the root file system.
#[test]
fn mount_points_stay_in_the_root_file_system() {
    guard_holds("rootfs-paths", |root, is_on| {
        let outside = root.join("outside");
        fs::create_dir(&outside).unwrap();
        let bundle = Bundle::new(root, "b").args(["true"]);
        symlink(&outside, bundle.rootfs("/link")).unwrap();
        let bundle =
            bundle.mount(json!({"destination": "/link/made", "type": "tmpfs", "source": "tmpfs"})).save();
        run(root, &bundle, "rootfs-paths", is_on);
        outside.join("made").exists()
    });
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: with `/proc` a link, procfs is mounted where nobody masks it.
#[test]
fn procfs_goes_on_an_ordinary_directory() {
    guard_holds("kernel-interface", |root, is_on| {
        let bundle = Bundle::new(root, "b").sh("test -L /proc && cat /elsewhere/self/comm");
        fs::remove_dir(bundle.rootfs("/proc")).unwrap();
        fs::create_dir(bundle.rootfs("/elsewhere")).unwrap();
        symlink("elsewhere", bundle.rootfs("/proc")).unwrap();
        let output = run(root, &bundle.save(), "kernel-interface", is_on);
        if is_on {
            assert!(output.stderr.contains("must be mounted on ordinary directory"), "{output:?}");
        }
        output.stdout.contains("cat")
    });
}

/// CVE-2019-16884: a mount over procfs gives the runtime, and everybody in the container, forged kernel files.
#[test]
fn nothing_is_mounted_over_procfs() {
    guard_holds("proc-mounts", |root, is_on| {
        let forged = root.join("forged");
        fs::create_dir(&forged).unwrap();
        fs::write(forged.join("forged"), "").unwrap();
        let bundle = Bundle::new(root, "b")
            .sh("ls /proc/sys")
            .mount(json!({"destination": "/proc/sys", "source": forged, "options": ["rbind"]}))
            .save();
        let output = run(root, &bundle, "proc-mounts", is_on);
        if is_on {
            assert!(output.stderr.contains("cannot be mounted because it is inside /proc"), "{output:?}");
        }
        output.stdout.contains("forged")
    });
}

/// CVE-2025-52881: what the runtime writes for the container goes to a file of the image's choice.
#[test]
fn sysctls_are_written_to_the_kernel() {
    guard_holds("private-proc", |root, is_on| {
        let forged = root.join("forged");
        fs::write(&forged, "untouched").unwrap();
        // A file of procfs that may be covered, and that a sysctl of the same name would be written to.
        let bundle = Bundle::new(root, "b")
            .args(["true"])
            .mount(json!({"destination": "/proc/net/dev", "source": forged, "options": ["bind"]}))
            .edit(|config| config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"}))
            .edit(|config| {
                // procfs itself comes from a directory that the image prepared, as a volume could be.
                config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/proc");
                config["mounts"].as_array_mut().unwrap().pop();
                config["linux"].as_object_mut().unwrap().remove("maskedPaths");
                config["linux"].as_object_mut().unwrap().remove("readonlyPaths");
            });
        let fake = bundle.rootfs("/proc/sys/net/ipv4");
        fs::create_dir_all(&fake).unwrap();
        fs::write(fake.join("ip_forward"), "untouched").unwrap();
        run(root, &bundle.save(), "private-proc", is_on);
        fs::read_to_string(fake.join("ip_forward")).unwrap().starts_with('1')
    });
}

/// CVE-2025-31133: the image's own `/dev/null` is mounted over a path that was to be hidden.
#[test]
fn masks_are_the_null_device() {
    guard_holds("null-device", |root, is_on| {
        let dev = root.join("dev");
        fs::create_dir(&dev).unwrap();
        symlink("/chosen", dev.join("null")).unwrap();
        let bundle = Bundle::new(root, "b").sh("cat /hidden");
        fs::write(bundle.rootfs("/hidden"), "hidden").unwrap();
        fs::write(bundle.rootfs("/chosen"), "chosen").unwrap();
        let bundle = bundle
            .edit(|config| {
                let mounts = config["mounts"].as_array_mut().unwrap();
                mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
                mounts.push(json!({"destination": "/dev", "source": dev, "options": ["rbind"]}));
                config["linux"]["maskedPaths"] = json!(["/hidden"]);
            })
            .save();
        let output = run(root, &bundle, "null-device", is_on);
        assert!(!output.stdout.contains("hidden"), "{output:?}");
        output.stdout.contains("chosen")
    });
}

/// CVE-2023-28642: `/proc` is a link to files that the image prepared, and the AppArmor label goes into one of them, so that
/// the container runs without its profile.
#[test]
fn labels_are_written_to_the_kernel() {
    let attack = |root: &Root, off: &str| {
        let bundle = Bundle::new(root, "b").sh("echo unconfined").edit(|config| {
            config["process"]["apparmorProfile"] = json!("confined");
            config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/proc");
            config["linux"].as_object_mut().unwrap().remove("maskedPaths");
            config["linux"].as_object_mut().unwrap().remove("readonlyPaths");
        });
        fs::remove_dir(bundle.rootfs("/proc")).unwrap();
        symlink("elsewhere", bundle.rootfs("/proc")).unwrap();
        let forged = bundle.rootfs("/elsewhere/1/attr");
        fs::create_dir_all(&forged).unwrap();
        fs::write(forged.join("exec"), "").unwrap();
        // This kernel need not have AppArmor: what counts is where the label goes.
        let output = run(root, &bundle.save(), &format!("apparmor-probe{off}"), false);
        assert!(!output.status.success() || !off.is_empty(), "{output:?}");
        output.stdout.contains("unconfined") && fs::read(forged.join("exec")).unwrap() == b"exec confined"
    };
    assert!(!attack(&Root::new(), ""));
    assert!(attack(&Root::new(), ",private-proc"));
}

/// CVE-2022-29162: a capability that `exec --cap` gives is inheritable, and a file of the image makes it any user's.
#[test]
fn capabilities_of_an_exec_are_not_inheritable() {
    guard_holds("inheritable", |root, is_on| {
        let bundle = Bundle::new(root, "b")
            .args(["sleep", "1000"])
            .edit(|config| config["process"]["noNewPrivileges"] = json!(false))
            .save();
        let file = bundle.rootfs("/bin/busybox-gain");
        fs::copy(bundle.rootfs("/bin/busybox"), &file).unwrap();
        // capabilities(7): version 2, effective, CAP_NET_RAW inheritable.
        let value = "0x0100000200000000002000000000000000000000";
        Cmd::new(binaries::system("setfattr"))
            .args(["-n", "security.capability", "-v", value])
            .arg(&file)
            .run()
            .success();
        let call = || attacked("inheritable", is_on).arg("--root").arg(root.join("state"));
        call().args(["run", "--detach", "--bundle"]).arg(bundle.path()).arg(root.tag()).run().success();
        let exec = ["exec", "--cap", "CAP_NET_RAW", "--user", "1000:1000", root.tag()];
        let program = ["/bin/busybox-gain", "grep", "CapEff", "/proc/self/status"];
        let output = call().args(exec).args(program).run().success();
        call().args(["delete", "--force", root.tag()]).run().success();
        output.stdout.contains("0000000000002000")
    });
}

/// CVE-2023-25809: a user namespace's root owns groups on the host, and reaches them below a read-only `/sys`, or in
/// what is shown of the hierarchies themselves.
#[test]
fn hierarchies_are_read_only_where_the_configuration_says_so() {
    for mount in [
        json!({"destination": "/sys", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]}),
    ] {
        guard_holds("cgroup-readonly", |root, is_on| {
            let script = format!(
                "for dir in /sys/fs/cgroup /sys/fs/cgroup/pids $(find /sys/fs/cgroup -path '*/{}/b'); do
                    mkdir $dir/made 2>/dev/null && echo made
                done",
                root.tag()
            );
            let bundle = Bundle::new(root, "b").sh(&script).edit(|config| {
                let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.retain(|namespace| namespace["type"] != "cgroup");
                namespaces.push(json!({"type": "user"}));
                let own = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
                config["linux"]["uidMappings"] = own.clone();
                config["linux"]["gidMappings"] = own;
                let mounts = config["mounts"].as_array_mut().unwrap();
                let below = mount["destination"].as_str().unwrap();
                mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with(below));
                mounts.push(mount.clone());
            });
            run(root, &bundle.save(), "cgroup-readonly", is_on).stdout.contains("made")
        });
    }
}

/// CVE-2024-45310: somebody who shares a volume swaps a directory for a link while the runtime makes a mount point in it.
#[test]
fn mount_points_stay_in_the_root_file_system_whoever_races() {
    guard_holds("descriptor-walk", |root, is_on| {
        let (volume, outside) = (root.join("volume"), root.join("outside"));
        fs::create_dir_all(volume.join("a")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, volume.join("b")).unwrap();
        let bundle = Bundle::new(root, "b")
            .args(["true"])
            .mount(json!({"destination": "/volume", "source": volume, "options": ["rbind"]}))
            .mount(json!({"destination": "/volume/a/deep/made", "type": "tmpfs", "source": "tmpfs"}))
            .save();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let (a, b) = (volume.join("a"), volume.join("b"));
                while !over.load(Ordering::Relaxed) {
                    renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).unwrap();
                }
            });
            let tries = if is_on { 25 } else { 500 };
            let escaped = (0..tries).any(|_| {
                run(root, &bundle, "descriptor-walk", is_on);
                outside.join("deep").exists()
            });
            over.store(true, Ordering::Relaxed);
            escaped
        })
    });
}

/// A container with a terminal whose `/dev` is the image's own.
fn with_image_dev(root: &Root, script: &str, devpts: &str) -> Bundle {
    let bundle = Bundle::new(root, "b").sh(script).edit(|config| {
        config["process"]["terminal"] = json!(true);
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        let options = ["newinstance", "ptmxmode=0666", "mode=0620"];
        mounts.push(json!({"destination": devpts, "type": "devpts", "source": "devpts", "options": options}));
    });
    fs::create_dir_all(bundle.rootfs("/dev/pts")).unwrap();
    bundle
}

/// CVE-2025-52565: under the terminal's path lies a link, and what it leads to becomes `/dev/console` before it is hidden.
#[test]
fn the_console_is_the_terminal() {
    guard_holds("terminal-descriptor", |root, is_on| {
        let script = "[ -c /dev/console ] || cat /dev/console";
        let bundle = with_image_dev(root, script, "/other")
            .edit(|config| config["linux"]["maskedPaths"] = json!(["/hidden"]));
        fs::write(bundle.rootfs("/hidden"), "hidden").unwrap();
        symlink("/other/ptmx", bundle.rootfs("/dev/pts/ptmx")).unwrap();
        symlink("/hidden", bundle.rootfs("/dev/pts/0")).unwrap();
        run(root, &bundle.save(), "terminal-descriptor", is_on).stdout.contains("hidden")
    });
}

/// CVE-2026-88264 of another runtime: the image's `/dev/console` is a link, and the terminal covers what it leads to.
#[test]
fn the_console_covers_nothing_else() {
    guard_holds("console-link", |root, is_on| {
        let bundle = with_image_dev(root, "[ ! -c /chosen ] || echo covered", "/dev/pts");
        fs::write(bundle.rootfs("/chosen"), "").unwrap();
        symlink("/chosen", bundle.rootfs("/dev/console")).unwrap();
        let output = run(root, &bundle.save(), "console-link", is_on);
        assert!(!is_on || output.stderr.contains("/dev/console"), "{output:?}");
        output.stdout.contains("covered")
    });
}

/// CVE-2026-30892 of another runtime: a user that `exec --user` cannot read becomes root.
#[test]
fn a_user_that_is_no_number_is_refused() {
    guard_holds("user-digits", |root, is_on| {
        let bundle = Bundle::new(root, "b").args(["sleep", "1000"]).save();
        let call = || attacked("user-digits", is_on).arg("--root").arg(root.join("state"));
        call().args(["run", "--detach", "--bundle"]).arg(bundle.path()).arg(root.tag()).run().success();
        let as_user = |user: &str| call().args(["exec", "--user", user, root.tag(), "id", "-u"]).run().stdout;
        assert_eq!((as_user("1").trim(), as_user("1:0").trim()), ("1", "1"));
        let users = ["user", "1000 ", " 1000", "+1000", "0x3e8", "1000x", "1e3", "1000:", "-1", "1,000"];
        let became_root = users.map(|user| as_user(user).trim() == "0");
        call().args(["delete", "--force", root.tag()]).run().success();
        became_root.contains(&true)
    });
}

/// CVE-2026-88265 of another runtime: the null device that a container has as its input is the host's, and is given to the
/// container's user, as the image has something else under that name.
#[test]
fn the_hosts_null_device_keeps_its_owner() {
    guard_holds("null-stream", |root, is_on| {
        let (null, dev) = (root.join("null"), root.join("dev"));
        mknod(&null, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
        fs::create_dir(&dev).unwrap();
        fs::write(dev.join("null"), "").unwrap();
        let bundle = Bundle::new(root, "b").args(["true"]).edit(|config| {
            config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            config["linux"].as_object_mut().unwrap().remove("maskedPaths");
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
            mounts.push(json!({"destination": "/dev", "source": dev, "options": ["rbind"]}));
        });
        let bundle = bundle.save();
        let input = fs::File::open(&null).unwrap();
        let state = root.join("state");
        attacked("null-stream", is_on)
            .args([
                "--root",
                state.to_str().unwrap(),
                "run",
                "--bundle",
                bundle.path().to_str().unwrap(),
                root.tag(),
            ])
            .with(|command| {
                command.stdin(input);
            })
            .keep_stdio()
            .run();
        fs::metadata(&null).unwrap().uid() == 1000
    });
}

/// Without the mount API, as under an old container engine's filter, the binary is sealed by a copy instead.
#[test]
fn the_fallback_without_the_mount_api_seals_too() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").args(["true"]).save();
    run(&root, &bundle, "mount-api", false).success();
    let bundle = Bundle::new(&root, "c").args(["sleep", "1000"]).save();
    let call = || attacked("mount-api", false).arg("--root").arg(root.join("state"));
    call().args(["create", "--bundle"]).arg(bundle.path()).arg(root.tag()).run().success();
    let state = call().args(["state", root.tag()]).run().success();
    let state: serde_json::Value = serde_json::from_str(&state.stdout).unwrap();
    let exe = fs::read_link(format!("/proc/{}/exe", state["pid"])).unwrap();
    assert!(exe.to_string_lossy().starts_with("/memfd:"), "{exe:?}");
    call().args(["delete", root.tag()]).run().success();
    let process = format!("/proc/{}/exe", state["pid"]);
    poll_until(Duration::from_secs(5), "the end of init", || fs::read_link(&process).is_err());
}
