//! The same command lines on us and on Debian's runc: the same output, exit code and error text, up to the programs' names.

use std::fs;

use orlop_tests::{Bundle, Output};
use serde_json::{Value, json};

use super::support::Runtime;

/// Containers in each status, named after it.
struct Fleet {
    runtime: Runtime,
}

impl Fleet {
    fn start(runtime: Runtime) -> Fleet {
        let bundle = |name: &str, args: &[&str]| {
            let id = runtime.root.cgroups_path(name);
            Bundle::new(&runtime.root, name)
                .args(args.iter().copied())
                .edit(|config| config["linux"]["cgroupsPath"] = json!(id))
                .save()
        };
        for name in ["running", "paused"] {
            runtime.detach(&bundle(name, &["sleep", "1000"]), name);
        }
        runtime.create(&bundle("created", &["sleep", "1000"]), "created");
        runtime.detach(&bundle("stopped", &["true"]), "stopped");
        runtime.wait_for("stopped", "stopped");
        runtime.call(&["pause", "paused"]).success();
        Fleet { runtime }
    }

    /// Runs a line, in which DIR is the directory of the bundles and what follows ` < ` goes to standard input.
    fn run(&self, line: &str) -> Output {
        let dir = self.runtime.root.path().display().to_string();
        let (words, input) = line.split_once(" < ").unwrap_or((line, ""));
        let words =
            words.split(' ').map(|word| if word == "''" { String::new() } else { word.replace("DIR", &dir) });
        self.runtime.cmd().args(words).input(input).run()
    }

    /// What of the answer must be the same: exit code, output, and the message of the error.
    fn answer(&self, line: &str) -> (i32, String, String) {
        let out = self.run(line);
        let message = out.stderr.lines().rfind(|line| line.contains("level=error")).unwrap_or_default();
        let message = message.split_once("msg=").map_or(message, |(_, message)| message);
        // A usage is worded by each program for itself; what was wrong in it is the error's message.
        let output = if out.stdout.starts_with("Incorrect Usage") { "" } else { &out.stdout };
        (out.code(), self.plain(output), self.plain(message))
    }

    fn plain(&self, text: &str) -> String {
        let mut text = text.replace(&self.runtime.root.path().display().to_string(), "DIR");
        for id in ["running", "paused", "created"] {
            let pid = self.runtime.state(id)["pid"].to_string();
            text = text.replace(&pid, "PID");
        }
        let text = text.replace(self.runtime.root.tag(), "TAG").replace("orlop", "runc");
        // What share of a processor ps(1) has seen differs from one moment to the next, and the minute of the start, too.
        let text = text.lines().map(without_moment).collect::<Vec<_>>().join("\n");
        match text.find("/runc: ") {
            // The name by which the program was called.
            Some(at) => format!("\"{}", &text[at + 1..]),
            None => text,
        }
    }

    fn end(self) {
        self.runtime.call(&["resume", "paused"]).success();
        for id in ["running", "paused", "created", "stopped"] {
            self.runtime.call(&["delete", "--force", id]).success();
        }
        // runc gives up removing a cgroup after a few attempts, which a slow machine needs, and says nothing.
        if !self.runtime.is_reference() {
            self.runtime.assert_clean();
        }
    }
}

/// A line of `ps -ef` about a container's process, without its fourth and fifth columns.
fn without_moment(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["root", "PID", parent, share, _, ..] if share.parse::<u32>().is_ok() => {
            format!("root PID {parent} {}", words[5..].join(" "))
        }
        _ => line.to_owned(),
    }
}

fn compare(lines: &str) {
    let ours = Fleet::start(Runtime::new());
    let theirs = Fleet::start(Runtime::reference());
    let mut differences = Vec::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (our, their) = (ours.answer(line), theirs.answer(line));
        if our != their {
            differences.push(format!("{line}\n  runc: {their:?}\n  we:   {our:?}"));
        }
    }
    ours.end();
    theirs.end();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn verbs_answer_alike_in_every_status() {
    compare(
        "state nosuch
        state ../x
        start running
        start nosuch
        start stopped
        start paused
        kill nosuch
        kill stopped
        kill stopped 9
        kill running FOO
        kill running 0
        kill running CONT
        kill running SIGCONT
        kill running cont
        kill --all running 0
        delete running
        delete paused
        delete nosuch
        delete -f nosuch
        delete --force=false running
        pause stopped
        pause nosuch
        resume running
        resume stopped
        resume nosuch
        ps nosuch
        ps stopped
        ps running
        ps running -o comm
        ps running -o nosuch
        ps -f json running
        ps --format json stopped
        ps -f yaml running
        list -q
        list -f yaml
        events --stats nosuch
        events --stats stopped
        events --interval 0s running
        events --interval -5s running
        spec -b /nosuch
        checkpoint nosuch
        checkpoint created
        checkpoint stopped
        checkpoint --page-server x running
        checkpoint --empty-ns foo running
        restore --empty-ns foo x",
    );
}

#[test]
fn processes_are_executed_alike() {
    compare(
        "exec running true
        exec running false
        exec running echo -n hello --cwd /
        exec running nosuch
        exec running /nosuch
        exec running /tmp
        exec nosuch true
        exec stopped true
        exec paused true
        exec created echo hello
        exec -u 7 running id
        exec -u 7:8 running id
        exec --user 7:8 -g 9 -g 10 running id
        exec -g 9 --additional-gids 10 running id
        exec -g -1 running id
        exec --cwd /tmp running pwd
        exec --cwd tmp running pwd
        exec -e A=b -e PATH=/bin -e A=c running env
        exec --cap CAP_SYS_ADMIN running grep Cap /proc/self/status
        exec --cap CAP_NOSUCH running true
        exec --no-new-privs=false running grep NoNew /proc/self/status
        exec --no-new-privs running grep NoNew /proc/self/status
        exec --process-label foo running true
        exec -p /nosuch running
        exec -t -d running true
        exec --console-socket /x running true
        exec -d --console-socket /x running true
        exec --pid-file /nosuch/pid running true
        exec --pid-file DIR/pid running true
        exec --ignore-paused stopped true
        run --bundle /nosuch x
        run --bundle DIR x
        run --bundle DIR/running running
        create --bundle DIR/running running
        create --bundle DIR/running a/b
        --rootless maybe create --bundle DIR/running y",
    );
}

#[test]
fn limits_are_updated_alike() {
    compare(
        "update nosuch
        update stopped
        update running
        update --pids-limit 20 running
        update --pids-limit x running
        update --pids-limit -1 running
        update --memory 64m running
        update --memory 12x running
        update --memory 1.5g running
        update --memory -1 running
        update --cpu-share 512 running
        update --cpu-share x running
        update --cpu-share -1 running
        update --cpu-quota x running
        update --cpu-quota 20000 running
        update --cpu-period 50000 running
        update --cpuset-cpus 0 running
        update --blkio-weight x running
        update --kernel-memory 1m running
        update --l3-cache-schema x running
        update --mem-bw-schema x running
        update -r /nosuch running
        update -r - running < {\"pids\":{\"limit\":30}}
        update --resources=- --pids-limit 50 running < {\"memory\":{\"limit\":50000000}}",
    );
}

#[test]
fn mistakes_are_told_alike() {
    compare(
        "nosuch
        state
        state a b
        state -x
        state --x=y running
        state ---x
        kill
        kill a b c
        list x
        spec x
        features x
        run
        run -b
        run -dt x
        run --preserve-fds x y
        run --detach=maybe x
        create
        update
        exec
        exec -g x running true
        events --interval 5 running
        events --interval x running
        --debug=maybe state x
        --nosuch state x
        --log-format yaml state x
        --log /nosuch/x state x",
    );
}

#[test]
fn flags_may_stand_where_runc_takes_them() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().save();
    let path = bundle.path().display().to_string();
    runtime.call(&["run", "c1", "--detach=true", "-bundle", &path]).success();
    let environment = runtime.call(&["exec", "-env=A=b", "c1", "env"]).success().stdout;
    assert!(environment.lines().any(|line| line == "A=b"), "{environment}");
    assert_eq!(runtime.call(&["list", "--quiet=true"]).success().stdout, "c1\n");
    for help in [&["--help"][..], &["help"], &["exec", "-h"], &["help", "exec"]] {
        assert!(runtime.call(help).success().stdout.starts_with("NAME:"), "{help:?}");
    }
    runtime.finish("c1");
}

/// The names of an object's members, and of those within, where the value is an object.
fn shape(value: &Value) -> Vec<String> {
    let Some(members) = value.as_object() else { return Vec::new() };
    let below = |(name, value): (&String, &Value)| {
        let below = shape(value).into_iter().map(|inner| format!("{name}.{inner}")).collect::<Vec<_>>();
        std::iter::once(name.clone()).chain(below).collect::<Vec<_>>()
    };
    members.iter().flat_map(below).collect()
}

#[test]
fn statistics_have_runcs_shape() {
    let statistics = |runtime: Runtime| {
        let bundle = runtime.sleeper().edit(|config| {
            config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
            config["linux"]["resources"]["pids"] = json!({"limit": 10});
        });
        runtime.detach(&bundle.save(), "c1");
        let out = runtime.call(&["events", "--stats", "c1"]).success();
        let event: Value = serde_json::from_str(&out.stdout).expect("one JSON object");
        runtime.finish("c1");
        event
    };
    let (ours, theirs) = (statistics(Runtime::new()), statistics(Runtime::reference()));
    assert_eq!((&ours["type"], &ours["id"]), (&json!("stats"), &json!("c1")));
    assert_eq!(ours["data"]["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!(ours["data"]["pids"], json!({"current": 1, "limit": 10}));
    for part in ["cpu.usage", "memory", "pids", "hugetlb"] {
        let part = |event: &Value| {
            let pointer = format!("/data/{}", part.replace('.', "/"));
            // Figures that happen to be zero are left out; pressure is newer than Debian's runc.
            let volatile = |name: &String| {
                ["raw", "max", "usage.usage", "cache", "psi"].iter().any(|one| name.contains(one))
            };
            let mut names = shape(event.pointer(&pointer).unwrap_or(&Value::Null));
            names.retain(|name| !volatile(name));
            names
        };
        assert_eq!(part(&ours), part(&theirs));
    }
}

#[test]
fn running_out_of_memory_is_an_event() {
    let runtime = Runtime::new();
    let script = "cat /dev/null; while ! [ -e /go ]; do sleep 0.05; done; x=x; while :; do x=$x$x; done";
    let bundle = runtime.sh(script).edit(|config| {
        config["linux"]["resources"]["memory"] = json!({"limit": 8 << 20, "swap": 8 << 20});
    });
    let bundle = bundle.save();
    runtime.detach(&bundle, "c1");
    let events = runtime.cmd().args(["events", "--interval", "50ms", "c1"]).spawn();
    orlop_tests::poll_until(super::support::PATIENCE, "statistics come", || {
        events.stdout().contains("stats")
    });
    fs::write(bundle.rootfs("go"), "").unwrap();
    orlop_tests::poll_until(super::support::PATIENCE, "the event comes", || {
        events
            .stdout()
            .lines()
            .any(|line| line == r#"{"id":"c1","type":"oom"}"# || line == r#"{"type":"oom","id":"c1"}"#)
    });
    runtime.wait_for("c1", "stopped");
    runtime.call(&["delete", "c1"]).success();
    // It ends by itself when the cgroup is gone.
    events.wait(super::support::PATIENCE).success();
    runtime.assert_clean();
}

#[test]
fn an_update_stays_in_the_state() {
    let runtime = Runtime::new();
    // runc keeps limits in a form of its own.
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime.sleeper().edit(|config| {
        config["linux"]["resources"]["cpu"] = json!({"period": 100_000, "quota": 50_000});
    });
    runtime.detach(&bundle.save(), "c1");
    let stored = || -> Value {
        let text = fs::read(runtime.state_dir().join("c1/state.json")).unwrap();
        let state: Value = serde_json::from_slice(&text).unwrap();
        state["config"]["spec"]["resources"].clone()
    };
    assert_eq!(stored()["cpu"], json!({"period": 100_000, "quota": 50_000}));
    runtime.call(&["update", "--cpu-quota", "25000", "--pids-limit", "9", "c1"]).success();
    assert_eq!(stored()["cpu"], json!({"period": 100_000, "quota": 25_000}));
    assert_eq!(stored()["pids"], json!({"limit": 9}));
    // A refused update changes nothing.
    runtime.call(&["update", "--cpuset-cpus", "4000", "c1"]).failure();
    assert_eq!(stored()["cpu"], json!({"period": 100_000, "quota": 25_000}));
    runtime.finish("c1");
}

#[test]
fn exec_enters_a_group_below_the_containers() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().save();
    runtime.detach(&bundle, "c1");
    let unified = orlop_tests::host::cgroup_unified();
    let group = super::support::cgroup_file(&bundle, "pids", "sub");
    fs::create_dir(&group).unwrap();
    let flag = if unified { "sub" } else { "pids:sub" };
    let out = runtime.call(&["exec", "--cgroup", flag, "c1", "cat", "/proc/self/cgroup"]).success();
    assert!(out.stdout.lines().any(|line| line.ends_with("/sub")), "{out}");
    for (flags, expected) in [
        (&["--cgroup", "nosuch:sub"][..], "unknown controller nosuch in SubCgroupPaths"),
        (&["--cgroup", "pids:nosuch"], "no such file or directory"),
    ] {
        let out = runtime.cmd().arg("exec").args(flags).args(["c1", "true"]).run();
        assert!(unified || (out.code() == 255 && out.stderr.contains(expected)), "{out}");
    }
    fs::remove_dir(&group).unwrap();
    runtime.finish("c1");
}
