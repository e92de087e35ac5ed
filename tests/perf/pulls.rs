//! Pulls of images made of Debian's packages: containerd and orlopd by turns, each on a file system of its own.
//!
//! Each sample starts a daemon on a fresh ext4 in a preallocated file: an unpack pays for what the file system did
//! before, and removing pays most. `BENCH_PULLS` (3) samples of each; nothing is removed until all of an image's are
//! taken. The registry serves from the page cache.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use orlop_tests::image::Blob;
use orlop_tests::{Compression, Containerd, Daemon, Image, Layer, Orlopd, Registry, Root, Variant};

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

/// Who pulls how.
const WAYS: [&str; 5] = [
    "containerd, ctr (overlayfs)",
    "orlopd, orlopctl (overlayfs)",
    "orlopd, ctr (overlayfs)",
    "orlopd, orlopctl (erofs)",
    "orlopd, ten orlopctl (overlayfs)",
];

/// Measures all images.
pub fn bench(_: Plan) {
    let rounds = std::env::var("BENCH_PULLS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let root = Root::new();
    let registry = Registry::start(&root);
    println!("\nPulls: {rounds} samples of each, by turns, each on a fresh ext4; ratios to the first row");
    for make in [base_gzip, base_zstd, python, small_files, large_layer] {
        let subject = make();
        let name = subject.image.push(&registry, "subject", "1");
        let mut samples = vec![Samples::default(); WAYS.len()];
        let mut peaks = [0; WAYS.len()];
        let mut disks = Vec::new();
        for _ in 0..rounds {
            for (way, samples) in samples.iter_mut().enumerate() {
                let disk = Disk::new(&root, subject.disk, disks.len());
                let (elapsed, peak) = pull(&root, &disk, way, &name);
                samples.add(elapsed);
                peaks[way] = peaks[way].max(peak);
                disks.push(disk);
            }
        }
        let packed: usize = subject.image.layers().iter().map(|layer| layer.bytes.len()).sum();
        let rows: Vec<_> =
            WAYS.iter().map(|way| (*way).to_owned()).zip(samples.into_iter().map(|s| vec![s])).collect();
        print_table(&format!("{}, {:.0} MB packed", subject.title, packed as f64 / 1e6), &["pull"], &rows);
        for (way, peak) in WAYS.iter().zip(peaks).skip(1) {
            println!("{way:34}{peak:>12} KiB above idle at most");
        }
    }
}

/// One pull on an empty daemon: the time, and by how much the daemon's memory grew at most, in KiB.
fn pull(root: &Root, disk: &Disk, way: usize, name: &str) -> (Duration, u64) {
    let variant = Variant { data: Some(disk.place.join("data")), ..Variant::default() };
    if way == 0 {
        let mut daemon = Containerd::start_as(root, &variant);
        let start = Instant::now();
        daemon.ctr(["images", "pull", "--plain-http", name]).deadline(DEADLINE).run().success();
        let elapsed = start.elapsed();
        daemon.stop();
        return (elapsed, 0);
    }
    let mut daemon = Orlopd::start_as(root, "", &variant);
    let idle = memory(&daemon, "VmRSS:");
    let start = Instant::now();
    match way {
        2 => drop(daemon.ctr(["images", "pull", "--plain-http", name]).deadline(DEADLINE).run().success()),
        way => {
            let snapshotter = if way == 3 { "erofs" } else { "overlayfs" };
            let clients = if way == 4 { CLIENTS } else { 1 };
            let words = ["images", "pull", "--snapshotter", snapshotter, name];
            let clients: Vec<_> = (0..clients).map(|_| daemon.orlopctl(words).spawn()).collect();
            clients.into_iter().for_each(|client| drop(client.wait(DEADLINE).success()));
        }
    }
    let elapsed = start.elapsed();
    let peak = memory(&daemon, "VmHWM:").saturating_sub(idle);
    daemon.stop();
    (elapsed, peak)
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
