//! Pulls of images made of Debian's packages: containerd and orlopd by turns, each on a file system of its own.
//!
//! Each sample starts a daemon on a fresh ext4 in a preallocated file: an unpack pays for what the file system did
//! before, and removing pays most. `BENCH_PULLS` (3) samples of each; nothing is removed until all of an image's are
//! taken. The registry serves from the page cache. What was pulled is then pushed to another one that is empty.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use orlop_tests::image::Blob;
use orlop_tests::{
    Cmd, Compression, Containerd, Daemon, Image, Layer, Orlopd, Registry, Root, Variant, binaries,
};

use crate::{Plan, Samples, print_table};

/// A long time for one pull.
const DEADLINE: Duration = Duration::from_secs(600);
/// How many clients pull at once in the row of that name.
const CLIENTS: usize = 10;

/// An image, and how large a file system must be that holds it packed and unpacked.
struct Subject {
    title: &'static str,
    image: Image,
    disk: u64,
}

/// Who pulls, and pushes the image again to a registry that has nothing of it.
#[derive(Clone)]
struct Way {
    title: String,
    /// The newest containerd's directory of programs, in place of Debian's.
    newest: Option<PathBuf>,
    who: Who,
    snapshotter: &'static str,
    clients: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Who {
    /// containerd by its client.
    Containerd,
    /// orlopd by our client.
    Orlopctl,
    /// orlopd by containerd's client, which fetches by itself.
    Ctr,
}

/// What the newest containerd is best at: layers side by side, in parts.
const BEST: &str = "[plugins.\"io.containerd.transfer.v1.local\"]\nmax_concurrent_downloads = 4\n\
    max_concurrent_unpacks = 4\nconcurrent_layer_fetch_buffer = 8388608\n";

fn ways() -> Vec<Way> {
    let way = |title: &str, who, snapshotter, clients| {
        let title = title.to_owned();
        Way { title, newest: None, who, snapshotter, clients }
    };
    let mut ways = vec![
        way("containerd, ctr (overlayfs)", Who::Containerd, "overlayfs", 1),
        way("orlopd, orlopctl (overlayfs)", Who::Orlopctl, "overlayfs", 1),
        way("orlopd, ctr (overlayfs)", Who::Ctr, "overlayfs", 1),
        way("orlopd, orlopctl (erofs)", Who::Orlopctl, "erofs", 1),
        way("orlopd, ten orlopctl (overlayfs)", Who::Orlopctl, "overlayfs", CLIENTS),
    ];
    // Built by `make newest`.
    let built = fs::read_dir(binaries::target_dir().join("newest")).into_iter().flatten().flatten();
    let newest = built.map(|entry| entry.path()).find(|path| path.join("containerd").exists());
    if let Some(programs) = newest {
        let version = programs.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let row = way(&format!("containerd {version}, its best"), Who::Containerd, "overlayfs", 1);
        ways.push(Way { newest: Some(programs), ..row });
    }
    ways
}

/// Measures all images.
pub fn bench(_: Plan) {
    let rounds = std::env::var("BENCH_PULLS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let root = Root::new();
    let registry = Registry::start(&root);
    // One that knows nothing of the first one's blobs: nothing is mounted across.
    let other = Registry::start(&root);
    let ways = ways();
    println!("\nPulls: {rounds} samples of each, by turns, each on a fresh ext4; ratios to the first row");
    for make in [base_gzip, base_zstd, python, small_files, large_layer] {
        let subject = make();
        let name = subject.image.push(&registry, "subject", "1");
        let mut samples = vec![[Samples::default(), Samples::default()]; ways.len()];
        let mut peaks = vec![0; ways.len()];
        let mut disks = Vec::new();
        for _ in 0..rounds {
            for (way, (samples, peak)) in ways.iter().zip(samples.iter_mut().zip(&mut peaks)) {
                let disk = Disk::new(&root, subject.disk, disks.len());
                let remote = format!("{}/pushed-{}:1", other.address(), disks.len());
                let measured = measure(&root, &disk, way, &name, &remote);
                samples[0].add(measured.pull);
                if let Some(push) = measured.push {
                    samples[1].add(push);
                }
                *peak = measured.peak.max(*peak);
                disks.push(disk);
            }
        }
        // What was pushed is not kept: an image takes several times its size here already.
        drop(disks);
        let _ = fs::remove_dir_all(other.dir().join("data"));
        let packed: usize = subject.image.layers().iter().map(|layer| layer.bytes.len()).sum();
        let titles = ways.iter().map(|way| way.title.clone());
        let rows: Vec<_> = titles.zip(samples.into_iter().map(|samples| samples.to_vec())).collect();
        let title = format!("{}, {:.0} MB packed", subject.title, packed as f64 / 1e6);
        print_table(&title, &["pull", "push"], &rows);
        for (way, peak) in ways.iter().zip(peaks).filter(|(way, _)| way.who != Who::Containerd) {
            println!("{:34}{peak:>12} KiB above idle at most", way.title);
        }
    }
}

/// What one daemon took.
struct Measured {
    pull: Duration,
    /// Where one client was at work.
    push: Option<Duration>,
    /// By how much the daemon's memory grew at most, in KiB.
    peak: u64,
}

/// One pull on an empty daemon, and the push of what was pulled.
fn measure(root: &Root, disk: &Disk, way: &Way, name: &str, remote: &str) -> Measured {
    let mut variant = Variant { data: Some(disk.place.join("data")), ..Variant::default() };
    if let Some(programs) = &way.newest {
        variant.containerd = Some(programs.join("containerd"));
        variant.client = Some(programs.join("ctr"));
        variant.containerd_config = BEST.to_owned();
    }
    let timed = |clients: Vec<Cmd>| {
        let start = Instant::now();
        let clients: Vec<_> = clients.into_iter().map(|client| client.deadline(DEADLINE).spawn()).collect();
        clients.into_iter().for_each(|client| drop(client.wait(DEADLINE).success()));
        start.elapsed()
    };
    let pull = ["images", "pull", "--plain-http", "--snapshotter", way.snapshotter, name];
    let push = ["images", "push", "--plain-http", remote, name];
    if way.who == Who::Containerd {
        let mut daemon = Containerd::start_as(root, &variant);
        let pulled = timed(vec![daemon.ctr(pull)]);
        let pushed = timed(vec![daemon.ctr(push)]);
        daemon.stop();
        return Measured { pull: pulled, push: Some(pushed), peak: 0 };
    }
    let mut daemon = Orlopd::start_as(root, "", &variant);
    let idle = memory(&daemon, "VmRSS:");
    let call = |daemon: &Orlopd, words: [&str; 6]| match way.who {
        Who::Ctr => daemon.ctr(words),
        _ => daemon.orlopctl(words),
    };
    let pulled = timed((0..way.clients).map(|_| call(&daemon, pull)).collect());
    let pushed = (way.clients == 1).then(|| match way.who {
        Who::Ctr => timed(vec![daemon.ctr(push)]),
        _ => timed(vec![daemon.orlopctl(push)]),
    });
    let peak = memory(&daemon, "VmHWM:").saturating_sub(idle);
    daemon.stop();
    Measured { pull: pulled, push: pushed, peak }
}

/// A number from the daemon's status, in KiB.
fn memory(daemon: &Orlopd, field: &str) -> u64 {
    let status = daemon.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    let status = status.unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

/// A fresh ext4 in a preallocated file, unmounted and removed when dropped.
struct Disk {
    file: PathBuf,
    place: PathBuf,
}

impl Disk {
    fn new(root: &Root, size: u64, number: usize) -> Disk {
        let file = root.join(format!("disk-{number}"));
        let place = root.join(format!("place-{number}"));
        fs::create_dir_all(&place).expect("making a mount point");
        let run = |command: &mut Command| {
            let output = command.stdout(Stdio::null()).output().expect("starting a program");
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run(Command::new("fallocate").args(["-l", &size.to_string()]).arg(&file));
        run(Command::new("mkfs.ext4")
            .args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&file));
        run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&place));
        Disk { file, place }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Ignoring: what stays is below the suite's own directory.
        let _ = Command::new("umount").arg(&self.place).status();
        let _ = fs::remove_file(&self.file);
    }
}

/// The files of installed Debian packages, as GNU tar packs them.
fn packages(names: &str) -> Vec<u8> {
    let script = format!(
        "dpkg -L $(dpkg-query -W -f '${{db:Status-Abbrev}} ${{Package}} {names}\\n' | sed -n 's/^ii *\\([^ ]*\\) yes$/\\1/p') \
         2>/dev/null | grep '^/' | sort -u | sed 's|^/||; /^\\.$/d' | while IFS= read -r name; do \
         if [ -e \"/$name\" ] || [ -L \"/$name\" ]; then printf '%s\\n' \"$name\"; fi; done \
         | tar -C / --no-recursion --ignore-failed-read -cf - -T -"
    );
    let output =
        Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).output().expect("starting sh");
    assert!(output.stdout.len() > 1 << 20, "no packages: {script}");
    output.stdout
}

/// What every Debian has.
fn base() -> Vec<u8> {
    packages("${Essential}")
}

fn base_gzip() -> Subject {
    let image = Image::new().blob(Blob::from_tar(base(), Compression::Gzip));
    Subject { title: "Essential packages, one gzip layer", image, disk: 1 << 30 }
}

fn base_zstd() -> Subject {
    let image = Image::new().blob(Blob::from_tar(base(), Compression::Zstd));
    Subject { title: "Essential packages, one zstd layer", image, disk: 1 << 30 }
}

fn python() -> Subject {
    let mut packed = Command::new("sh");
    packed.args([
        "-c",
        "cd / && tar -cf - usr/lib/python3* usr/share/doc usr/share/perl* usr/lib/git-core 2>/dev/null",
    ]);
    let layer = packed.output().expect("starting tar").stdout;
    let mut app = Layer::new();
    for n in 0..500 {
        app = app.file(&format!("srv/app/{}/{n}.py", n % 20), text(n, 4000).as_bytes(), 0o644);
    }
    let image = Image::new()
        .blob(Blob::from_tar(base(), Compression::Gzip))
        .blob(Blob::from_tar(layer, Compression::Gzip))
        .layer(app);
    Subject {
        title: "The same with interpreters, documents and an application, three gzip layers",
        image,
        disk: 2 << 30,
    }
}

fn small_files() -> Subject {
    let mut layer = Layer::new();
    for n in 0..40_000 {
        if n % 20 == 0 {
            layer = layer.dir(&format!("many/{}", n / 20), 0o755);
        }
        layer =
            layer.file(&format!("many/{}/{n}", n / 20), text(n, 500 + n * 7919 % 12_000).as_bytes(), 0o644);
    }
    Subject { title: "40,000 small files, one gzip layer", image: Image::new().layer(layer), disk: 2 << 30 }
}

fn large_layer() -> Subject {
    let base = base();
    let mut file = Vec::with_capacity(1 << 30);
    while file.len() < 1 << 30 {
        let length = base.len().min((1 << 30) - file.len());
        file.extend_from_slice(&base[..length]);
    }
    let mut layer = Layer::new();
    for (n, piece) in file.chunks(128 << 20).enumerate() {
        layer = layer.file(&format!("large/{n}"), piece, 0o644);
    }
    Subject { title: "One gzip layer of 1 GiB", image: Image::new().layer(layer), disk: 5 << 29 }
}

/// Words that compress about as programs do.
fn text(seed: usize, length: usize) -> String {
    let mut text = Vec::with_capacity(length);
    let mut state = seed as u32 | 1;
    while text.len() < length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let _ = write!(text, "{:x} value_{} = ", state >> 12, state >> 28);
    }
    text.truncate(length);
    String::from_utf8_lossy(&text).into_owned()
}
