//! An engine for the real `docker`: orlopd, or Debian's dockerd, each with everything that it writes below a root of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_tests::image::Image;
use orlop_tests::{Cmd, Orlopd, Output, Process, Root, Variant, binaries, poll_until};

/// A line of a table: the exit code that it must have, and what the shell is given. It finds `$docker`, `$run` (without a
/// network) and `$dir`.
pub type Line = (i32, &'static str);

/// A line that makes the application of the introduction to Docker in `$dir/app`: a page, a program that serves it, a Dockerfile.
pub const APPLICATION: &str = "mkdir -p $dir/app/src && cd $dir/app && echo 'You have no todo items yet!' > src/index.html && \
                           printf 'exec busybox httpd -f -p 3000 -h /app/src\n' > serve.sh && printf 'FROM bb\nWORKDIR /app\nCOPY . .\nRUN \
                           busybox cp serve.sh /usr-serve\nCMD [\"sh\", \"serve.sh\"]\nEXPOSE 3000\n' > Dockerfile";

/// Which engine.
enum Daemon {
    Orlopd(Box<Orlopd>),
    Dockerd(Option<Process>),
}

/// An engine.
pub struct Side {
    /// Its root.
    pub root: Root,
    daemon: Daemon,
    docker: PathBuf,
    /// Keeps the network namespace that the engine has for itself.
    host: Option<Process>,
}

impl Side {
    /// orlopd, called by the `docker` that comes first in PATH.
    pub fn orlopd() -> Side {
        Side::orlopd_for(binaries::system("docker"))
    }

    /// orlopd, called by this client.
    pub fn orlopd_for(docker: PathBuf) -> Side {
        Side::orlopd_in(Root::new(), docker, None, "")
    }

    /// orlopd on a host of its own as far as the network goes: what it makes there is nobody else's.
    pub fn orlopd_alone(docker: PathBuf) -> Side {
        let root = Root::new();
        let host = own_host(&root);
        Side::orlopd_in(root, docker, Some(host), "")
    }

    /// orlopd on a host of its own, with a daemon.json of which `$dir` is the root.
    pub fn orlopd_with(docker: PathBuf, daemon_json: &str) -> Side {
        let root = Root::new();
        let host = own_host(&root);
        let path = root.join("daemon.json");
        let text = daemon_json.replace("$dir", &root.path().display().to_string());
        std::fs::write(&path, text).expect("writing daemon.json");
        Side::orlopd_in(root, docker, Some(host), &format!("daemon_json = {path:?}\n"))
    }

    /// orlopd on a host of its own, as far as accounts go too, with this `userns-remap`.
    pub fn orlopd_remapped(docker: PathBuf, setting: &str) -> Side {
        let root = Root::new();
        let host = own_host_with(&root, Some(&own_etc(&root)));
        let path = root.join("daemon.json");
        std::fs::write(&path, remapped(setting)).expect("writing daemon.json");
        let namespace = |kind: &str| Some(format!("/proc/{}/ns/{kind}", host.pid()).into());
        let variant = Variant { network: namespace("net"), mounts: namespace("mnt"), ..Variant::default() };
        Side::orlopd_as(root, docker, Some(host), &format!("daemon_json = {path:?}\n"), variant)
    }

    /// orlopd on a host of its own, which passes BuildKit's clients on to `$dir/buildkit.sock`.
    pub fn orlopd_with_buildkit(docker: PathBuf) -> Side {
        let root = Root::new();
        let host = own_host(&root);
        let address = format!("unix://{}", root.join("buildkit.sock").display());
        Side::orlopd_in(root, docker, Some(host), &format!("buildkit = {address:?}\n"))
    }

    /// orlopd with more lines in its configuration, below a root that has something in it already.
    pub fn orlopd_on_host(root: Root, docker: PathBuf, more: &str) -> Side {
        Side::orlopd_in(root, docker, None, more)
    }

    /// orlopd that keeps what outlives a reboot in a directory of its own.
    pub fn orlopd_on_disk(root: Root, docker: PathBuf, data: &Path) -> Side {
        let variant = Variant { data: Some(data.to_owned()), ..Variant::default() };
        Side::orlopd_as(root, docker, None, "", variant)
    }

    fn orlopd_in(root: Root, docker: PathBuf, host: Option<Process>, more: &str) -> Side {
        let network = host.as_ref().map(|host| format!("/proc/{}/ns/net", host.pid()).into());
        Side::orlopd_as(root, docker, host, more, Variant { network, ..Variant::default() })
    }

    fn orlopd_as(root: Root, docker: PathBuf, host: Option<Process>, more: &str, variant: Variant) -> Side {
        let config = format!(
            "[docker]\naddress = {:?}\ncgroup_parent = {:?}\n{more}",
            root.join("docker.sock"),
            format!("/{}", root.tag())
        );
        let daemon = Daemon::Orlopd(Box::new(Orlopd::start_as(&root, &config, &variant)));
        Side { root, daemon, docker, host }.with_image()
    }

    /// Debian's dockerd, in a network namespace of its own, called by Debian's client.
    pub fn dockerd(docker: PathBuf) -> Side {
        Side::dockerd_with(
            docker,
            &["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"],
        )
    }

    /// The same with its networks.
    pub fn dockerd_alone(docker: PathBuf) -> Side {
        Side::dockerd_with(docker, &[])
    }

    fn dockerd_with(docker: PathBuf, flags: &[&str]) -> Side {
        let root = Root::new();
        let host = own_host(&root);
        Side::dockerd_on(root, host, docker, "{}", flags)
    }

    /// The same, as far as accounts go too, with this `userns-remap`.
    pub fn dockerd_remapped(docker: PathBuf, setting: &str) -> Side {
        let root = Root::new();
        let host = own_host_with(&root, Some(&own_etc(&root)));
        Side::dockerd_on(root, host, docker, &remapped(setting), &[])
    }

    fn dockerd_on(root: Root, host: Process, docker: PathBuf, daemon_json: &str, flags: &[&str]) -> Side {
        let path = |name: &str| root.join(name).display().to_string();
        std::fs::write(root.join("daemon.json"), daemon_json).expect("writing daemon.json");
        let process = Cmd::new(binaries::system("nsenter"))
            .args(["net", "mnt"].map(|kind| {
                let option = if kind == "net" { "net" } else { "mount" };
                format!("--{option}=/proc/{}/ns/{kind}", host.pid())
            }))
            .arg(binaries::system("dockerd"))
            .args([
                "--config-file",
                &path("daemon.json"),
                "--data-root",
                &path("data"),
                "--exec-root",
                &path("exec"),
            ])
            .args(["--pidfile", &path("pid"), "--host", &format!("unix://{}", path("docker.sock"))])
            .args(flags)
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", &format!("--cgroup-parent=/{}", root.tag())])
            // A root without CAP_SYS_RESOURCE cannot have docker's own limits.
            .args(["--default-ulimit", "nproc=4096:4096", "--default-ulimit", "nofile=1024:1024"])
            .spawn();
        let side = Side { root, daemon: Daemon::Dockerd(Some(process)), docker, host: Some(host) };
        poll_until(Duration::from_secs(30), "dockerd answers", || {
            side.run("$docker version").status.success()
        });
        side.with_image()
    }

    fn with_image(self) -> Side {
        let archive = self.root.join("busybox.tar");
        Image::busybox().docker_archive(&archive, "bb:latest");
        self.run("$docker load --quiet --input $dir/busybox.tar").success();
        self
    }

    /// Our manager.
    ///
    /// # Panics
    /// On the reference.
    pub fn manager(&mut self) -> &mut Orlopd {
        match &mut self.daemon {
            Daemon::Orlopd(orlopd) => orlopd,
            Daemon::Dockerd(_) => panic!("the reference has no orlopd"),
        }
    }

    /// A call of the client.
    pub fn docker(&self, args: &[&str]) -> Cmd {
        // By flags: a terminal's program gets no variables.
        Cmd::new(&self.docker)
            .arg(format!("--host=unix://{}", self.root.join("docker.sock").display()))
            .arg(format!("--config={}", self.root.join("client").display()))
            .args(args)
    }

    /// Runs a line in a shell.
    pub fn run(&self, line: &str) -> Output {
        self.shell(line).run()
    }

    /// A shell with a line.
    pub fn shell(&self, line: &str) -> Cmd {
        let docker = self.docker.display().to_string();
        Cmd::new("/bin/sh")
            .args(["-c", line])
            .env("DOCKER_HOST", format!("unix://{}", self.root.join("docker.sock").display()))
            .env("DOCKER_CONFIG", self.root.join("client"))
            .env("DOCKER_BUILDKIT", "0")
            .env("dir", self.root.path())
            .env("tag", self.root.tag())
            .env("host", self.host.as_ref().map_or(String::new(), |host| host.pid().to_string()))
            .env("run", format!("{docker} run --network none"))
            .env("docker", docker)
    }

    /// Runs a line that must succeed, and returns what it says, without the last line end.
    #[track_caller]
    pub fn says(&self, line: &str) -> String {
        let out = self.run(line);
        assert_eq!(out.code(), 0, "{line}: {out}");
        out.stdout.trim_end().to_owned()
    }

    /// Removes all containers, stops the engine, and sees that nothing is left.
    #[track_caller]
    pub fn finish(mut self) {
        self.stop();
        self.root.assert_clean();
    }

    /// The same for an engine on a disk of its own, which goes when the engine has stopped.
    #[track_caller]
    pub fn finish_on_disk(mut self, disk: &Path) {
        self.stop();
        nix::mount::umount2(disk, nix::mount::MntFlags::MNT_DETACH).expect("taking the disk away");
        self.root.assert_clean();
    }

    fn stop(&mut self) {
        self.run("$docker rm --force --volumes $($docker ps --all --quiet)");
        match &mut self.daemon {
            Daemon::Orlopd(orlopd) => drop(orlopd.stop()),
            Daemon::Dockerd(process) => {
                if let Some(process) = process.take() {
                    process.signal(Signal::SIGTERM);
                    process.wait(Duration::from_secs(30));
                }
                // It leaves the network namespace that it ran in mounted. Ignoring: without networks it made no such mount.
                let _ = nix::mount::umount(&self.root.join("exec/netns/default"));
            }
        }
        if let Some(host) = self.host.take() {
            host.signal(Signal::SIGKILL);
            host.wait(Duration::from_secs(30));
        }
    }
}

/// A daemon.json with this `userns-remap`.
fn remapped(setting: &str) -> String {
    format!("{{\"userns-remap\": {setting:?}}}")
}

/// A copy of `/etc` with an account `remapper` that has subordinate users and groups, a group `remapgrp`, and none of `dockremap`.
fn own_etc(root: &Root) -> PathBuf {
    let etc = root.join("etc");
    let script = "cp -a /etc \"$0\" && cd \"$0\" && sed -i /^dockremap:/d passwd shadow group gshadow && \
                  echo 'remapper:x:7001:7002::/:/bin/false' >> passwd && \
                  printf 'remapgrp:x:7002:\nremapper:x:7001:\n' >> group && \
                  echo remapper:200000:65536 > subuid && echo 7001:300000:65536 > subgid";
    Cmd::new("sh").args(["-c", script]).arg(&etc).run().success();
    etc
}

/// A process in a network namespace of its own, which has a loopback device and nothing else.
fn own_host(root: &Root) -> Process {
    own_host_with(root, None)
}

/// The same with a directory in the place of `/etc`, in a mount namespace of its own.
fn own_host_with(root: &Root, etc: Option<&Path>) -> Process {
    let ready = root.join("host-is-ready");
    let script = "{ [ -z \"$1\" ] || mount --bind \"$1\" /etc; } && ip link set lo up && touch \"$0\" && exec sleep 100000";
    let flags: &[&str] = if etc.is_some() { &["--net", "--mount"] } else { &["--net"] };
    let process = Cmd::new(binaries::system("unshare"))
        .args(flags)
        .args(["sh", "-c", script])
        .arg(&ready)
        .args(etc)
        .spawn();
    poll_until(Duration::from_secs(30), "a network namespace", || ready.exists());
    process
}

/// Runs lines on ours and on the reference, and compares exit codes and standard output; what goes to standard error are
/// sentences, which differ from one version of dockerd to the next.
///
/// # Panics
/// With every line that differs.
pub fn compare(ours: &Side, reference: &Side, table: &[(i32, &str)]) {
    let all = |side: &Side| table.iter().map(|(_, line)| side.run(line)).collect::<Vec<_>>();
    let (first, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| all(reference));
        (all(ours), other.join().expect("the reference's side"))
    });
    let plain = |side: &Side, text: &str| text.replace(side.root.tag(), "TAG");
    let mut wrong = Vec::new();
    for (((code, line), answer), expected) in table.iter().zip(first).zip(other) {
        let is_same = plain(ours, &answer.stdout) == plain(reference, &expected.stdout);
        if !is_same || answer.code() != *code || expected.code() != *code {
            wrong.push(format!("{line}\n  expected code {code}\n  orlopd  {answer}\n  dockerd {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The clients: the one that comes first in PATH, and Debian's where it is another.
pub fn clients() -> Vec<PathBuf> {
    let first = binaries::system("docker");
    let debian = PathBuf::from("/usr/bin/docker");
    if first == debian || !debian.exists() { vec![first] } else { vec![first, debian] }
}
