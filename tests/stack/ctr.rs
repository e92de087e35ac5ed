//! Debian's `ctr` says the same on orlopd as on containerd: the same commands go to both, and what they print, complain about
//! and return is compared, with times, process ids and paths made equal first.

use orlop_tests::{Containerd, Daemon, Image, Orlopd, Output, Registry, Root, poll_until};

use crate::workload::{DEADLINE, status};

/// What one command answered.
#[derive(Debug, PartialEq)]
struct Answer {
    command: String,
    code: i32,
    stdout: Vec<String>,
    stderr: Vec<String>,
}

/// A daemon, and all its answers so far.
struct Session<'a, D> {
    daemon: &'a D,
    root: &'a Root,
    /// Texts to be replaced in every answer, such as paths and addresses.
    names: Vec<(String, &'static str)>,
    answers: Vec<Answer>,
}

impl<D: Daemon> Session<'_, D> {
    /// Runs a command and keeps its answer.
    fn ctr(&mut self, args: &[&str]) -> Output {
        let out = self.daemon.ctr(args).run();
        let command = args.join(" ");
        let answer = Answer {
            command: self.plain(&command),
            code: out.code(),
            stdout: self.lines(&out.stdout),
            stderr: self.lines(&out.stderr),
        };
        self.answers.push(answer);
        out
    }

    fn lines(&self, text: &str) -> Vec<String> {
        // How often progress is drawn depends on the machine's speed.
        let progress = |line: &&str| {
            line.contains("\u{1b}[")
                || line.starts_with("elapsed:")
                // What draws it is stopped with the pull, now and then between a question and its answer, and then says so.
                || line.ends_with("error=\"context canceled\"")
        };
        text.lines()
            .filter(|line| !progress(line))
            .map(|line| self.plain(line))
            .filter(|line| !line.is_empty())
            .collect()
    }

    /// A line without what differs from run to run.
    fn plain(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for (text, name) in &self.names {
            line = line.replace(text.as_str(), name);
        }
        line.split_whitespace().map(plain_word).collect::<Vec<_>>().join(" ")
    }
}

/// Times and durations become `TIME`; labels, which Go prints in any order, are sorted.
fn plain_word(word: &str) -> String {
    let bare = word.trim_matches(|c: char| "\",".contains(c));
    if bare.ends_with('s') && bare.trim_end_matches(['s', 'm', 'µ', 'n']).parse::<f64>().is_ok() {
        return "TIME".to_owned();
    }
    let word = without_stamps(word);
    let mut labels: Vec<&str> = word.split(',').collect();
    if labels.len() > 1 && labels.iter().all(|label| label.contains('=')) {
        labels.sort_unstable();
    }
    labels.join(",")
}

/// Replaces each RFC 3339 time.
fn without_stamps(word: &str) -> String {
    const SHAPE: &[u8] = b"dddd-dd-ddTdd:dd:dd";
    let bytes = word.as_bytes();
    let fits = |at: usize| {
        SHAPE
            .iter()
            .zip(&bytes[at..])
            .all(|(shape, byte)| if *shape == b'd' { byte.is_ascii_digit() } else { shape == byte })
    };
    let Some(start) = (0..(bytes.len() + 1).saturating_sub(SHAPE.len())).find(|at| fits(*at)) else {
        return word.to_owned();
    };
    let rest =
        word[start + SHAPE.len()..].trim_start_matches(|c: char| c.is_ascii_digit() || ".Z+:".contains(c));
    format!("{}TIME{}", &word[..start], without_stamps(rest))
}

/// Runs the same script on both daemons and compares.
fn same_on_both(script: impl Fn(&mut dyn Ctr, &Registry)) {
    let root = Root::new();
    let registry = Registry::start(&root);
    let theirs = {
        let mut containerd = Containerd::start(&root);
        let answers = session(&root, &registry, &containerd, &script);
        containerd.stop();
        answers
    };
    let ours = {
        let mut orlopd = Orlopd::start(&root);
        let answers = session(&root, &registry, &orlopd, &script);
        orlopd.stop();
        answers
    };
    let differences: Vec<String> = theirs
        .iter()
        .zip(&ours)
        .filter(|(theirs, ours)| theirs != ours)
        .map(|(theirs, ours)| format!("containerd {theirs:#?}\norlopd {ours:#?}"))
        .collect();
    assert_eq!(theirs.len(), ours.len());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    drop(registry);
    root.assert_clean();
}

/// What a script may do, whichever daemon answers.
trait Ctr {
    fn ctr(&mut self, args: &[&str]) -> Output;
    fn wait_for(&mut self, container: &str, wanted: &str);
    fn file(&self, name: &str) -> String;
    fn namespace(&self) -> String;
    /// Keeps a list for comparison that no single command printed.
    fn note(&mut self, what: &str, lines: Vec<String>);
    fn events(&mut self, script: &mut dyn FnMut(&mut dyn Ctr));
}

impl<D: Daemon> Ctr for Session<'_, D> {
    fn ctr(&mut self, args: &[&str]) -> Output {
        Session::ctr(self, args)
    }

    fn wait_for(&mut self, container: &str, wanted: &str) {
        poll_until(DEADLINE, &format!("{container} is {wanted}"), || {
            status(self.daemon, container) == wanted
        });
    }

    fn file(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }

    fn namespace(&self) -> String {
        self.daemon.namespace().to_owned()
    }

    fn note(&mut self, what: &str, lines: Vec<String>) {
        self.answers.push(Answer { command: what.to_owned(), code: 0, stdout: lines, stderr: Vec::new() });
    }

    fn events(&mut self, script: &mut dyn FnMut(&mut dyn Ctr)) {
        let listener = self.daemon.ctr(["events"]).spawn();
        // The subscription is there once an event comes through: namespaces are made until one does.
        let mut number = 0;
        poll_until(DEADLINE, "the first event", || {
            number += 1;
            let name = format!("probe-{number}");
            self.daemon.ctr(["namespaces", "create", &name]).run().success();
            self.daemon.ctr(["namespaces", "rm", &name]).run().success();
            listener.stdout().contains("/namespaces/")
        });
        script(self);
        self.daemon.ctr(["namespaces", "create", "the-end"]).run().success();
        poll_until(DEADLINE, "the last event", || listener.stdout().contains("the-end"));
        let topics: Vec<String> = listener
            .stdout()
            .lines()
            .filter(|line| !line.contains("/namespaces/"))
            .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned))
            .collect();
        self.daemon.ctr(["namespaces", "rm", "the-end"]).run().success();
        self.note("events", topics);
    }
}

fn session<D: Daemon>(
    root: &Root,
    registry: &Registry,
    daemon: &D,
    script: &impl Fn(&mut dyn Ctr, &Registry),
) -> Vec<Answer> {
    let directory = daemon.address().parent().expect("a socket lies in a directory").display().to_string();
    let names = vec![
        // The runtime names itself in its errors.
        ("orlop create failed".to_owned(), "runc create failed"),
        (directory, "DAEMON"),
        (root.path().display().to_string(), "ROOT"),
        (root.tag().to_owned(), "NAMESPACE"),
        (registry.address().to_owned(), "REGISTRY"),
    ];
    let mut session = Session { daemon, root, names, answers: Vec::new() };
    script(&mut session, registry);
    session.answers
}

#[test]
fn images_content_and_snapshots() {
    same_on_both(|ctr, registry| {
        let reference = Image::two_layers().push(registry, "two", "1");
        let pull = ctr.ctr(&["images", "pull", "--plain-http", &reference]);
        assert!(pull.status.success(), "{pull}");
        ctr.ctr(&["images", "ls"]).success();
        ctr.ctr(&["images", "ls", "-q"]).success();
        ctr.ctr(&["images", "check"]).success();
        let archive = ctr.file("export.tar");
        ctr.ctr(&["images", "export", &archive, &reference]).success();
        ctr.ctr(&["images", "tag", &reference, "example.org/other:1"]).success();
        ctr.ctr(&["images", "label", "example.org/other:1", "a=b"]).success();
        ctr.ctr(&["images", "ls", "name==example.org/other:1"]).success();
        ctr.ctr(&["images", "rm", "--sync", &reference]).success();
        ctr.ctr(&["images", "rm", "--sync", "example.org/other:1"]).success();
        ctr.ctr(&["images", "ls", "-q"]).success();
        ctr.ctr(&["content", "ls", "-q"]).success();
        ctr.ctr(&["snapshots", "ls"]).success();
        ctr.ctr(&["images", "import", &archive]).success();
        ctr.ctr(&["images", "ls"]).success();
        std::fs::remove_file(&archive).unwrap();
    });
}

#[test]
fn content_by_digest() {
    same_on_both(|ctr, registry| {
        let image = Image::two_layers();
        let reference = image.push(registry, "two", "1");
        ctr.ctr(&["content", "fetch", "--plain-http", &reference]).success();
        ctr.ctr(&["content", "ls", "-q"]).success();
        let digest = image.digest();
        ctr.ctr(&["content", "get", &digest]).success();
        ctr.ctr(&["content", "label", &digest, "some=label"]).success();
        ctr.ctr(&["content", "ls", "-q", "labels.some==label"]).success();
        ctr.ctr(&["content", "rm", &digest]);
        ctr.ctr(&["content", "get", &digest]).failure();
        ctr.ctr(&["content", "active"]).success();
    });
}

#[test]
fn snapshots_by_hand() {
    same_on_both(|ctr, registry| {
        let reference = Image::two_layers().push(registry, "two", "1");
        ctr.ctr(&["images", "pull", "--plain-http", &reference]).success();
        let parent = {
            let list = ctr.ctr(&["snapshots", "ls"]).success();
            let row = list
                .stdout
                .lines()
                .skip(1)
                .map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
            row.into_iter().find(|row| row.len() == 3).expect("a snapshot with a parent")[0].clone()
        };
        ctr.ctr(&["snapshots", "tree"]).success();
        ctr.ctr(&["snapshots", "prepare", "work", &parent]).success();
        ctr.ctr(&["snapshots", "prepare", "work", &parent]).failure();
        // Nothing keeps a view that ctr makes from the collector, so only the making of it is compared.
        ctr.ctr(&["snapshots", "view", "look", &parent]).success();
        ctr.ctr(&["snapshots", "commit", "done", "work"]).success();
        ctr.ctr(&["snapshots", "label", "done", "a=b"]).success();
        ctr.ctr(&["snapshots", "rm", &parent]).failure();
        ctr.ctr(&["snapshots", "rm", "done"]).success();
        ctr.ctr(&["snapshots", "info", "nosuch"]).failure();
        ctr.ctr(&["snapshots", "prepare", "x", "nosuch"]).failure();
    });
}

#[test]
fn namespaces_and_leases() {
    same_on_both(|ctr, registry| {
        ctr.ctr(&["namespaces", "create", "one", "a=b"]).success();
        ctr.ctr(&["namespaces", "create", "one"]).failure();
        ctr.ctr(&["namespaces", "label", "one", "c=d"]).success();
        ctr.ctr(&["namespaces", "ls"]).success();
        ctr.ctr(&["namespaces", "rm", "one"]).success();
        ctr.ctr(&["namespaces", "rm", "one"]);
        ctr.ctr(&["namespaces", "label", "nosuch", "c=d"]);
        ctr.ctr(&["namespaces", "create", "bad/name"]).failure();
        ctr.ctr(&["-n", "bad/name", "images", "ls"]);
        let reference = Image::two_layers().push(registry, "two", "1");
        ctr.ctr(&["images", "pull", "--plain-http", &reference]).success();
        let namespace = ctr.namespace();
        ctr.ctr(&["namespaces", "rm", &namespace]).failure();
        ctr.ctr(&["leases", "create", "--id", "l1", "--expires", "1h"]).success();
        ctr.ctr(&["leases", "ls", "-q"]).success();
        ctr.ctr(&["leases", "rm", "l1"]).success();
        ctr.ctr(&["leases", "ls", "-q"]).success();
    });
}

#[test]
fn containers_and_tasks() {
    same_on_both(|ctr, registry| {
        let reference = Image::two_layers().push(registry, "two", "1");
        ctr.ctr(&["images", "pull", "--plain-http", &reference]).success();
        ctr.ctr(&["run", "--rm", &reference, "c1", "sh", "-c", "echo out; echo err >&2; exit 9"]);
        ctr.ctr(&[
            "run",
            "-d",
            "--null-io",
            "--env",
            "A=b",
            "--label",
            "l=v",
            &reference,
            "c2",
            "sleep",
            "1000",
        ])
        .success();
        ctr.ctr(&["run", "-d", "--null-io", &reference, "c2", "sleep", "1000"]).failure();
        ctr.ctr(&["containers", "ls"]).success();
        ctr.ctr(&["containers", "ls", "-q", "labels.l==v"]).success();
        ctr.ctr(&["containers", "info", "c2"]).success();
        ctr.ctr(&["tasks", "ls", "-q"]).success();
        ctr.ctr(&["tasks", "exec", "--exec-id", "e1", "c2", "sh", "-c", "echo $A; exit 4"]);
        ctr.ctr(&["tasks", "exec", "--exec-id", "e2", "c2", "no-such-program"]).failure();
        ctr.ctr(&["tasks", "delete", "c2"]).failure();
        ctr.ctr(&["containers", "rm", "c2"]).failure();
        ctr.ctr(&["tasks", "pause", "c2"]).success();
        ctr.ctr(&["tasks", "exec", "--exec-id", "e3", "c2", "true"]).failure();
        ctr.ctr(&["tasks", "resume", "c2"]).success();
        ctr.ctr(&["tasks", "kill", "c2", "--signal", "NOSUCH"]).failure();
        ctr.ctr(&["tasks", "kill", "-s", "KILL", "c2"]).success();
        ctr.wait_for("c2", "STOPPED");
        ctr.ctr(&["tasks", "kill", "c2"]).failure();
        ctr.ctr(&["tasks", "delete", "c2"]);
        ctr.ctr(&["containers", "rm", "c2"]).success();
        ctr.ctr(&["containers", "rm", "c2"]);
        ctr.ctr(&["containers", "info", "c2"]).failure();
        ctr.ctr(&["tasks", "kill", "c2"]).failure();
        ctr.ctr(&["tasks", "metrics", "c2"]).failure();
        ctr.ctr(&["run", "--rm", "example.org/no/such:image", "c3", "true"]).failure();
        ctr.ctr(&["run", "--rm", &reference, "c4", "no-such-program"]).failure();
        ctr.ctr(&["run", "--rm", "--runtime", "io.containerd.nosuch.v1", &reference, "c5", "true"]).failure();
        ctr.ctr(&["containers", "ls", "-q"]).success();
        ctr.ctr(&["snapshots", "ls"]).success();
    });
}

#[test]
fn events_in_their_order() {
    same_on_both(|ctr, registry| {
        let reference = Image::two_layers().push(registry, "two", "1");
        ctr.ctr(&["images", "pull", "--plain-http", &reference]).success();
        ctr.events(&mut |ctr| {
            ctr.ctr(&["run", "--null-io", "-d", &reference, "c1", "sleep", "1000"]).success();
            ctr.ctr(&["tasks", "exec", "--exec-id", "e1", "c1", "true"]).success();
            ctr.ctr(&["tasks", "pause", "c1"]).success();
            ctr.ctr(&["tasks", "resume", "c1"]).success();
            ctr.ctr(&["tasks", "kill", "-s", "KILL", "c1"]).success();
            ctr.wait_for("c1", "STOPPED");
            ctr.ctr(&["tasks", "delete", "c1"]).success();
            ctr.ctr(&["containers", "rm", "c1"]).success();
            ctr.ctr(&["images", "label", &reference, "a=b"]).success();
            ctr.ctr(&["images", "rm", &reference]).success();
        });
    });
}

#[test]
fn a_pull_that_cannot_work() {
    same_on_both(|ctr, registry| {
        let reference = Image::two_layers().push(registry, "two", "1");
        let missing = reference.replace(":1", "");
        ctr.ctr(&["images", "pull", "--plain-http", &format!("{}:nosuch", &missing[..missing.len()])])
            .failure();
        ctr.ctr(&["images", "pull", "--plain-http", "not a reference"]).failure();
        ctr.ctr(&["images", "ls", "-q"]).success();
        ctr.ctr(&["content", "ls", "-q"]).success();
    });
}

#[test]
fn times_and_durations_are_made_equal() {
    assert_eq!(plain_word("time=\"2026-11-21T01:37:57Z\""), "time=\"TIME\"");
    assert_eq!(plain_word("2023-01-02T03:04:05.678Z,"), "TIME,");
    assert_eq!(plain_word("12.5ms"), "TIME");
    assert_eq!(plain_word("seconds"), "seconds");
    assert_eq!(plain_word("b=2,a=1"), "a=1,b=2");
}
