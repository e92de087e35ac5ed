//! A disk that remembers the order of everything written to it, to be looked at as a power cut at any moment would have left it.
//!
//! One file of a file system of its own (FUSE) under a loop device, so that any file system can be made on it. What the kernel
//! writes and when it asks for what was written to last (flush) is recorded in order. A disk may lose whatever came after the last
//! flush, in part or as a whole; [`Recorder::image`] makes what is left then.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::command::Cmd;
use crate::root::Root;

/// Something that the disk was asked for.
#[derive(Clone, Debug)]
enum Step {
    /// These bytes at this place.
    Write(u64, Arc<[u8]>),
    /// So many zeros at this place.
    Clear(u64, u64),
    /// Whatever was written must last.
    Flush,
}

#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    steps: Vec<Step>,
    is_recording: bool,
}

impl Disk {
    fn apply(bytes: &mut [u8], step: &Step) {
        let range = |at: u64, length: usize| at as usize..(at as usize + length).min(bytes.len());
        match step {
            Step::Write(at, data) => {
                let range = range(*at, data.len());
                let length = range.len();
                bytes[range].copy_from_slice(&data[..length]);
            }
            Step::Clear(at, length) => {
                let range = range(*at, *length as usize);
                bytes[range].fill(0);
            }
            Step::Flush => {}
        }
    }

    fn step(&mut self, step: Step) {
        Disk::apply(&mut self.bytes, &step);
        if self.is_recording {
            self.steps.push(step);
        }
    }
}

/// A recording disk with a file system, mounted below a root.
pub struct Recorder {
    disk: Arc<Mutex<Disk>>,
    /// The disk when the recording began.
    before: Vec<u8>,
    fuse: PathBuf,
    mounted: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Recorder {
    /// An ext4 file system of so many bytes, mounted at [`Recorder::path`]; everything from now on is recorded.
    ///
    /// # Panics
    /// Where the kernel has neither FUSE nor loop devices.
    pub fn start(root: &Root, size: usize) -> Recorder {
        let (fuse, mounted) = (root.join("recorder"), root.join("recorded"));
        fs::create_dir(&fuse).expect("making the place of the disk");
        fs::create_dir(&mounted).expect("making the place of the file system");
        let disk = Arc::new(Mutex::new(Disk { bytes: vec![0; size], ..Disk::default() }));
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("opening /dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("recorder"), &fuse, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
            .expect("mounting the disk");
        let server = {
            let disk = disk.clone();
            std::thread::spawn(move || serve(device, &disk))
        };
        let file = fuse.join("disk");
        Cmd::new("mkfs.ext4")
            .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&file)
            .run()
            .success();
        let before = {
            let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
            disk.is_recording = true;
            disk.bytes.clone()
        };
        Cmd::new("mount").args(["-o", "loop"]).arg(&file).arg(&mounted).run().success();
        Recorder { disk, before, fuse, mounted, server: Some(server) }
    }

    /// Where the file system is mounted.
    pub fn path(&self) -> &Path {
        &self.mounted
    }

    /// How much has been recorded: whatever is acknowledged now must be there in each image of this length or more.
    pub fn now(&self) -> usize {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).steps.len()
    }

    /// Ends the recording; the file system must not be in use any more.
    pub fn finish(&mut self) {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).is_recording = false;
        Cmd::new("umount").arg(&self.mounted).run().success();
        self.detach();
    }

    fn detach(&mut self) {
        let _ = umount2(&self.mounted, MntFlags::MNT_DETACH);
        let _ = umount2(&self.fuse, MntFlags::MNT_DETACH);
        if let Some(server) = self.server.take().filter(|_| !std::thread::panicking()) {
            // The last user of the device is the kernel's, which goes with the mounts.
            server.join().expect("the disk's server ends");
        }
    }

    /// The lengths at which a flush had just been answered.
    pub fn flushes(&self) -> Vec<usize> {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let is_flush = |(at, step): (usize, &Step)| matches!(step, Step::Flush).then_some(at + 1);
        disk.steps.iter().enumerate().filter_map(is_flush).collect()
    }

    /// Mounts [`Recorder::image`] at `place`.
    pub fn mount_image(&self, length: usize, stays: impl FnMut() -> bool, place: &Path) {
        // A file that others cannot find: a copy of the mount may live on in a mount namespace that some process had at that
        // moment, and mounting the same file again would show what that has.
        let file = place.with_extension("image");
        self.image(length, stays, &file);
        fs::create_dir(place).expect("making the place of an image");
        Cmd::new("mount").args(["-o", "loop"]).arg(&file).arg(place).run().success();
        fs::remove_file(&file).expect("removing an image");
    }

    /// Writes the disk as it is when the power goes after `length` steps: everything up to the last flush, and of what came after it
    /// each write of which `stays` says so.
    pub fn image(&self, length: usize, mut stays: impl FnMut() -> bool, file: &Path) {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = &disk.steps[..length];
        let flushed = steps.iter().rposition(|step| matches!(step, Step::Flush)).map_or(0, |at| at + 1);
        let mut bytes = self.before.clone();
        steps[..flushed].iter().for_each(|step| Disk::apply(&mut bytes, step));
        steps[flushed..].iter().filter(|_| stays()).for_each(|step| Disk::apply(&mut bytes, step));
        let out = File::create(file).expect("making an image");
        out.set_len(bytes.len() as u64).expect("making an image");
        const PIECE: usize = 64 << 10;
        for (index, piece) in
            bytes.chunks(PIECE).enumerate().filter(|(_, piece)| piece.iter().any(|byte| *byte != 0))
        {
            out.write_all_at(piece, (index * PIECE) as u64).expect("writing an image");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Operations of FUSE (linux/fuse.h), protocol 7.31.
mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const RELEASEDIR: u32 = 29;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
}

/// Length of a request's header, and of the part of a write before its data.
const HEADER: usize = 40;
const WRITE_HEADER: usize = 40;
/// Largest piece that the kernel writes at once.
const MAX_WRITE: u32 = 1 << 20;
/// Inodes of the directory and of the one file in it.
const DIRECTORY: u64 = 1;
const FILE: u64 = 2;
/// The page cache is left out: what is written is here.
const DIRECT_IO: u32 = 1;

/// Answers the kernel until the file system is unmounted.
fn serve(device: File, disk: &Mutex<Disk>) {
    let mut buffer = vec![0; HEADER + WRITE_HEADER + MAX_WRITE as usize];
    loop {
        let length = match (&device).read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT | libc::EAGAIN)) => {
                continue;
            }
            Err(error) => panic!("reading /dev/fuse: {error}"),
        };
        let request = Request { bytes: &buffer[..length] };
        let answer = match request.operation() {
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => continue,
            _ => request.answer(&mut disk.lock().unwrap_or_else(PoisonError::into_inner)),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-errno, Vec::new()),
        };
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend((16 + body.len() as u32).to_le_bytes());
        message.extend(error.to_le_bytes());
        message.extend(request.number(8).to_le_bytes());
        message.extend(body);
        // A request that was interrupted has nobody who waits.
        let _ = (&device).write(&message);
    }
}

struct Request<'a> {
    bytes: &'a [u8],
}

impl Request<'_> {
    fn small(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn number(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    fn operation(&self) -> u32 {
        self.small(4)
    }

    fn node(&self) -> u64 {
        self.number(16)
    }

    fn answer(&self, disk: &mut Disk) -> Result<Vec<u8>, i32> {
        let body = HEADER;
        match self.operation() {
            op::INIT => Ok(init()),
            op::LOOKUP if self.bytes[body..].starts_with(b"disk\0") => {
                let mut entry = Vec::new();
                // Node, generation, and for how long the kernel may believe name and attributes.
                [FILE, 0, u64::MAX >> 1, u64::MAX >> 1]
                    .iter()
                    .for_each(|word| entry.extend(word.to_le_bytes()));
                entry.extend([0; 8]);
                entry.extend(attributes(FILE, disk.bytes.len()));
                Ok(entry)
            }
            op::LOOKUP => Err(libc::ENOENT),
            op::GETATTR | op::SETATTR => {
                let mut answer = (u64::MAX >> 1).to_le_bytes().to_vec();
                answer.extend([0; 8]);
                answer.extend(attributes(self.node(), disk.bytes.len()));
                Ok(answer)
            }
            op::OPEN => Ok([&[0; 8][..], &DIRECT_IO.to_le_bytes(), &[0; 4]].concat()),
            op::OPENDIR => Ok(vec![0; 16]),
            op::READ => {
                let (at, length) = (self.number(body + 8) as usize, self.small(body + 16) as usize);
                let end = (at + length).min(disk.bytes.len());
                Ok(disk.bytes.get(at..end).unwrap_or_default().to_vec())
            }
            op::WRITE => {
                let (at, length) = (self.number(body + 8), self.small(body + 16));
                let data = &self.bytes[body + WRITE_HEADER..][..length as usize];
                if at + u64::from(length) > disk.bytes.len() as u64 {
                    return Err(libc::ENOSPC);
                }
                disk.step(Step::Write(at, data.into()));
                Ok([length.to_le_bytes(), [0; 4]].concat())
            }
            op::FSYNC => {
                disk.step(Step::Flush);
                Ok(Vec::new())
            }
            op::FALLOCATE => {
                let (at, length) = (self.number(body + 8), self.number(body + 16));
                disk.step(Step::Clear(at, length));
                Ok(Vec::new())
            }
            op::STATFS => Ok(vec![0; 80]),
            op::FLUSH | op::RELEASE | op::RELEASEDIR => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        }
    }
}

/// Protocol 7.31, and nothing optional.
fn init() -> Vec<u8> {
    let mut answer = Vec::new();
    for word in [7_u32, 31, 128 << 10, 0] {
        answer.extend(word.to_le_bytes());
    }
    // Background requests, their threshold; the largest write; granularity of times; the most pages at once.
    answer.extend([16, 0, 12, 0]);
    answer.extend(MAX_WRITE.to_le_bytes());
    answer.extend(1_u32.to_le_bytes());
    answer.resize(64, 0);
    answer
}

fn attributes(node: u64, size: usize) -> Vec<u8> {
    let is_file = node != DIRECTORY;
    let mut answer = Vec::new();
    let blocks = size as u64 / 512;
    for word in [node, if is_file { size as u64 } else { 0 }, if is_file { blocks } else { 0 }, 0, 0, 0] {
        answer.extend(word.to_le_bytes());
    }
    let mode = if is_file { libc::S_IFREG | 0o600 } else { libc::S_IFDIR | 0o700 };
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        answer.extend(u32::to_le_bytes(word));
    }
    answer
}
