//! What a confined thread cannot do, and layers that would get out if nothing but it held them.
//!
//! The test program runs itself, with guards switched off by `ORLOP_TEST_OFF`: `names` are those of the code (names are
//! cleaned, directories opened within the root), `confinement` those of this module.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use tar::EntryType;

use super::super::tests::Layer;
use super::super::{Target, Whiteouts, apply};
use super::*;

const ATTACKED: &str = "ORLOP_TEST_ATTACKED";
const LINKED: &str = "ORLOP_TEST_LINKED";

/// Layers that lead out of `PLACE/root` to `PLACE/outside`, each by another way.
fn attacks(outside: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let outside = outside.to_str().unwrap();
    let at = |name: &str| format!("{outside}/{name}");
    vec![
        ("a name with ..", Layer::new().file("../outside/made", b"x").end()),
        ("an absolute name", Layer::new().file(&at("made"), b"x").end()),
        (
            "a symbolic link",
            Layer::new().link(EntryType::Symlink, "link", outside).file("link/made", b"x").end(),
        ),
        ("a directory", Layer::new().directory("../outside/made/").end()),
        ("a device", Layer::new().add(EntryType::Fifo, "../outside/made", b"", |_| {}).end()),
        ("a file that is replaced", Layer::new().link(EntryType::Symlink, "../outside/victim", "x").end()),
        ("a hard link", Layer::new().link(EntryType::Link, "own", &at("victim")).end()),
        ("a whiteout", Layer::new().file("../outside/.wh.hidden", b"").end()),
    ]
}

fn apply_at(root: &Path, layer: &[u8]) -> Result<()> {
    let target = Target {
        root: OwnedFd::from(File::open(root).unwrap()),
        lowers: Vec::new(),
        whiteouts: Whiteouts::Overlay { userxattr: false },
    };
    apply(layer, target).map(drop)
}

/// What is outside: names, contents, modes, and how many names a file has.
fn state(outside: &Path) -> Vec<String> {
    let mut lines: Vec<String> = fs::read_dir(outside)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let found = fs::symlink_metadata(entry.path()).unwrap();
            let (mode, links, time) = (found.mode(), found.nlink(), found.mtime());
            format!("{:?} {mode:o} {links} {time}", entry.file_name())
        })
        .collect();
    lines.sort();
    lines
}

/// The part that runs in a process of its own, which has a place to attack.
#[test]
fn attacker() {
    let Some(place) = std::env::var_os(ATTACKED) else { return };
    let place = Path::new(&place);
    let (root, outside) = (place.join("root"), place.join("outside"));
    // The harness begins a line.
    println!();
    for (way, layer) in attacks(&outside) {
        let _ = fs::remove_dir_all(&root);
        let _ = fs::remove_dir_all(&outside);
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("victim"), b"precious").unwrap();
        fs::set_permissions(outside.join("victim"), fs::Permissions::from_mode(0o600)).unwrap();
        let before = state(&outside);
        let result = apply_at(&root, &layer);
        let verdict = if state(&outside) == before { "held" } else { "escaped" };
        println!("{verdict}: {way}: {:?}", result.err().map(|error| error.to_string()));
    }
}

/// Runs one of these tests in a process of its own, by a program or directly; what it prints.
fn run_alone(test: &str, mut by: Command, variable: (&str, &Path)) -> String {
    let name = format!("{}::{test}", module_path!());
    let output = by
        .args([name.split_once("::").unwrap().1, "--exact", "--nocapture", "--test-threads=1"])
        .env(variable.0, variable.1)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn attack(off: &str) -> Vec<String> {
    let place = tempfile::tempdir().unwrap();
    let mut own = Command::new(std::env::current_exe().unwrap());
    own.env("ORLOP_TEST_OFF", off);
    run_alone("attacker", own, (ATTACKED, place.path()))
        .lines()
        .filter(|line| line.starts_with("held: ") || line.starts_with("escaped: "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn layers_stay_in_the_root_by_the_kernel_alone() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: needs root");
        return;
    }
    let count = attacks(Path::new("/outside")).len();
    for off in ["", "names"] {
        let lines = attack(off);
        assert_eq!(lines.len(), count, "{lines:#?}");
        assert!(lines.iter().all(|line| line.starts_with("held: ")), "without {off:?}: {lines:#?}");
    }
    // Otherwise the attacks would show nothing.
    let lines = attack("names,confinement");
    assert!(lines.iter().all(|line| line.starts_with("escaped: ")), "{lines:#?}");
}

/// Applies a layer in which a hard link leads from one directory to another.
fn apply_linked(place: &Path) {
    let root = place.join("root");
    fs::create_dir(&root).unwrap();
    let layer = Layer::new().directory("a/").file("a/file", b"x").directory("b/");
    apply_at(&root, &layer.link(EntryType::Link, "b/link", "a/file").end()).unwrap();
    assert_eq!(fs::metadata(root.join("b/link")).unwrap().nlink(), 2);
}

/// The part that runs where the kernel seems to have the first Landlock.
#[test]
fn linker() {
    if let Some(place) = std::env::var_os(LINKED) {
        apply_linked(Path::new(&place));
    }
}

#[test]
fn a_landlock_that_knows_no_links_between_directories_is_not_asked() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: needs root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let trace = place.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "trace=landlock_create_ruleset"]);
    // What it answers when it is asked for its version.
    strace.args(["-e", "inject=landlock_create_ruleset:retval=1", "-o"]).arg(&trace);
    strace.arg(std::env::current_exe().unwrap());
    run_alone("linker", strace, (LINKED, place.path()));
    let calls = fs::read_to_string(&trace).unwrap();
    assert!(calls.contains("(INJECTED)"), "{calls}");
    // Threads that ask at the same moment have their answers on lines of their own.
    let mut asked = calls.lines().filter(|line| line.contains("landlock_create_ruleset("));
    assert!(asked.all(|line| line.contains("LANDLOCK_CREATE_RULESET_VERSION")), "{calls}");
}

#[test]
fn a_kernel_without_guards_unpacks_all_the_same() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: needs root");
        return;
    }
    let of_seccomp = libc::PR_GET_SECCOMP.unsigned_abs().into();
    let asks = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, of_seccomp).unwrap();
    let missing = BTreeMap::from([
        (libc::SYS_prctl, vec![SeccompRule::new(vec![asks]).unwrap()]),
        (libc::SYS_seccomp, Vec::new()),
        (libc::SYS_landlock_create_ruleset, Vec::new()),
    ]);
    let answer = SeccompAction::Errno(libc::EINVAL.unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(missing, SeccompAction::Allow, answer, architecture).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    let place = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        // The threads that unpack are this one's.
        let work = || {
            seccompiler::apply_filter(&program).unwrap();
            apply_linked(place.path());
        };
        scope.spawn(work).join().unwrap();
    });
}

/// Does something in a thread that has only what a task needs.
fn confined<T: Send>(root: Option<&OwnedFd>, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            match root {
                Some(root) => {
                    own_file_system_state(root).unwrap();
                    confine(Task::Files { root, lowers: &[] }).unwrap();
                }
                None => confine(Task::Compute).unwrap(),
            }
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_confined_thread_can_do_little_else() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("root")).unwrap();
    fs::write(place.path().join("secret"), b"x").unwrap();
    let root = OwnedFd::from(File::open(place.path().join("root")).unwrap());
    // Opened before, as the daemon's files are.
    let above = OwnedFd::from(File::open(place.path()).unwrap());
    let denied = |what: &str, result: io::Result<()>| {
        let error = result.expect_err(what);
        assert!(matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)), "{what}: {error}");
    };
    let io = |result: rustix::io::Result<()>| result.map_err(io::Error::from);
    confined(Some(&root), || {
        rustix::fs::mkdirat(&root, "own", Mode::RWXU).unwrap();
        let open = |flags| rustix::fs::openat(&above, "secret", flags, Mode::empty()).map(drop);
        denied("read", io(open(OFlags::RDONLY)));
        denied("write", io(open(OFlags::WRONLY)));
        denied("make", io(rustix::fs::mkdirat(&above, "made", Mode::RWXU)));
        denied("remove", io(rustix::fs::unlinkat(&above, "secret", AtFlags::empty())));
        denied("run", Command::new("/bin/true").status().map(drop));
        denied("leave the root", io(rustix::process::chroot(".")));
        let namespace = nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(io::Error::from);
        denied("leave the namespace", namespace);
        let kind = rustix::net::SocketType::STREAM;
        denied("connect", io(rustix::net::socket(rustix::net::AddressFamily::INET, kind, None).map(drop)));
        denied(
            "kill",
            io(rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::CONT)),
        );
    });
    let is_root = rustix::process::geteuid().is_root();
    confined(None, || {
        let open = |from: &OwnedFd, name: &str| {
            io(rustix::fs::openat(from, name, OFlags::RDONLY, Mode::empty()).map(drop))
        };
        denied("open", open(&root, "own"));
        denied("open by path", io(rustix::fs::open("/etc/passwd", OFlags::RDONLY, Mode::empty()).map(drop)));
        denied("make", io(rustix::fs::mkdirat(CWD, "made", Mode::RWXU)));
        if is_root {
            let left = rustix::thread::capabilities(None);
            // The call itself is one of those that are gone.
            assert!(left.is_err());
        }
    });
    // Nobody else lost anything.
    fs::read(place.path().join("secret")).unwrap();
    assert!(Command::new("/bin/true").status().unwrap().success());
}
