//! What callers of a runtime do, as tables of shell lines: each is run on runc and on orlop, and must say and do the same.

use std::path::PathBuf;

use orlop_tests::{Cmd, Output, Root, binaries, busybox_rootfs};

/// A line of a table: the exit code that it must have, and what the shell is given. It finds the variables of its caller, and
/// `ours` is true on orlop.
pub type Line = (i32, &'static str);

/// What a line did, in words that do not depend on the runtime.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

/// The runtimes that a table is run on.
pub struct Side {
    /// `orlop` or `runc`.
    pub name: &'static str,
    /// Its directory below the test's root.
    pub root: Root,
    variables: Vec<(&'static str, String)>,
}

impl Side {
    /// A runtime with a root of its own.
    pub fn new(name: &'static str) -> Side {
        let root = Root::new();
        let variables = vec![("tag", root.tag().to_owned()), ("dir", root.path().display().to_string())];
        Side { name, root, variables }
    }

    /// The runtime's binary.
    pub fn binary(&self) -> PathBuf {
        if self.name == "orlop" { binaries::orlop() } else { binaries::system(self.name) }
    }

    /// Adds a variable that the lines find.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.push((name, value.into()));
    }

    /// Runs a line.
    pub fn run(&self, line: &str) -> Output {
        let mut call = Cmd::new("/bin/sh").args(["-c", line]);
        for (name, value) in &self.variables {
            call = call.env(name, value);
        }
        call.run()
    }

    /// Makes an archive of a small root file system.
    pub fn archive(&self) -> PathBuf {
        let (rootfs, archive) = (self.root.join("rootfs"), self.root.join("rootfs.tar"));
        busybox_rootfs(&rootfs);
        let mut tar = tar::Builder::new(std::fs::File::create(&archive).expect("an archive"));
        tar.follow_symlinks(false);
        tar.append_dir_all(".", &rootfs).expect("the root file system in the archive");
        tar.finish().expect("the archive's end");
        archive
    }

    fn answer(&self, line: &str) -> Answer {
        let out = self.run(&heard(line));
        let plain = |text: &str| {
            let binary = self.binary();
            let text = text.replace(&*binary.to_string_lossy(), "RUNTIME").replace(self.root.tag(), "TAG");
            text.replace(&format!("{} create failed", self.name), "create failed")
        };
        // Times differ.
        let stderr = plain(&out.stderr);
        let words = stderr.split_inclusive([' ', '\n']).filter(|word| !word.starts_with("time="));
        Answer { code: out.code(), stdout: plain(&out.stdout), stderr: words.collect() }
    }
}

/// The line, with a container that waits for a word from its caller first: one that writes and ends before conmon has accepted its
/// caller's connection has written for nobody.
fn heard(line: &str) -> String {
    let (run, shell) = ("$run --rm ", " sh -c '");
    if !line.starts_with(run) || !line.contains(shell) {
        return line.to_owned();
    }
    let line = line.replacen(run, "$run --rm --interactive ", 1).replacen(shell, " sh -c 'read word; ", 1);
    format!("echo go | {line}")
}

/// Runs the lines on both sides, side by side in time too, and compares.
///
/// # Panics
/// With every line that differs, or that ends with another code than the table says.
pub fn compare(ours: &Side, reference: &Side, table: &[Line]) {
    let all = |side: &Side| table.iter().map(|(_, line)| side.answer(line)).collect::<Vec<_>>();
    let (first, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| all(reference));
        (all(ours), other.join().expect("the reference's side"))
    });
    let mut wrong = Vec::new();
    for (((code, line), answer), expected) in table.iter().zip(first).zip(other) {
        if answer != expected || answer.code != *code {
            wrong.push(format!("{line}\n  expected code {code}\n  orlop {answer:?}\n  runc  {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
