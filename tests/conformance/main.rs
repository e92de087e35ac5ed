//! Foreign suites: the validation programs of github.com/opencontainers/runtime-tools, driving our runtime and, in the same run,
//! the references on this machine, runc and crun.
//!
//! `make conformance` fetches them through Go's module proxy and builds them, so it needs Go 1.24 or newer and a network; `make
//! test` leaves them out and says so. What a reference passes, ours must pass; `expected.toml` gives the cause of everything else
//! that fails, and a listed program that passes must be taken off.

mod judge;
mod runtimes;
mod suite;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use orlop_tests::Root;

use runtimes::Runtime;

/// Programs at work at once: most of what they do is wait.
const WORKERS: usize = 4;

/// Programs that share the names of their cgroups and so cannot run beside each other.
const SHARED_CGROUPS: [&str; 3] = ["linux_cgroups_", "delete_resources", "delete_only_create_resources"];

#[test]
fn runtime_tools() {
    if std::env::var_os("ORLOP_CONFORMANCE").is_none() {
        println!("not run: the foreign suites; `make conformance` runs them");
        return;
    }
    let causes: BTreeMap<String, BTreeMap<String, String>> =
        toml::from_str(include_str!("expected.toml")).expect("expected.toml is well formed");
    let directory = suite::build();
    let programs = suite::programs(&directory);
    let root = Root::new();
    let runtimes = runtimes::all(&root);
    let problems: Vec<_> = runtimes.iter().map(|runtime| run_all(runtime, &directory, &programs)).collect();

    let names: Vec<_> = runtimes.iter().map(|runtime| runtime.name).collect();
    println!("{:36}{}", "program", names.iter().map(|name| format!("{name:8}")).collect::<String>());
    let mut wrong = Vec::new();
    for program in &programs {
        let outcomes: Vec<_> = problems.iter().map(|all| all[program].as_ref()).collect();
        let cell =
            |problem: &Option<&String>| format!("{:8}", if problem.is_none() { "pass" } else { "fail" });
        let cause = |section: &str| causes.get(section).and_then(|all| all.get(program)).map(String::as_str);
        let (nobody, specification) = (cause("nobody"), cause("specification"));
        let said = nobody.or(specification).unwrap_or_default();
        println!("{program:36}{}{said}", outcomes.iter().map(cell).collect::<String>());
        let (ours, references) = outcomes.split_first().expect("ours is the first");
        let passes_elsewhere = references.iter().any(Option::is_none);
        match ours {
            None if nobody.or(specification).is_some() => {
                wrong.push(format!("{program} passes: take it off expected.toml"));
            }
            Some(problem) if passes_elsewhere && specification.is_none() => {
                wrong.push(format!("a reference passes {program}, orlop does not:\n{problem}"));
            }
            Some(problem) if nobody.or(specification).is_none() => {
                wrong.push(format!("{program} fails, and expected.toml has no cause:\n{problem}"));
            }
            _ => {}
        }
    }
    for (runtime, all) in runtimes.iter().zip(&problems) {
        let passed = all.values().filter(|problem| problem.is_none()).count();
        println!("{} passes {passed} of {}", runtime.name, programs.len());
    }
    let listed = causes.values().flat_map(BTreeMap::keys);
    wrong.extend(
        listed.filter(|name| !programs.contains(name)).map(|name| format!("there is no program {name}")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs every program on a runtime; tells for each what is wrong, if anything.
fn run_all(runtime: &Runtime, directory: &Path, programs: &[String]) -> BTreeMap<String, Option<String>> {
    let shared = |name: &&String| SHARED_CGROUPS.iter().any(|prefix| name.starts_with(prefix));
    let (in_turn, others): (Vec<&String>, Vec<&String>) = programs.iter().partition(shared);
    let waiting = Mutex::new(others);
    let found = Mutex::new(BTreeMap::new());
    let run = |name: &String| {
        let problem = judge::problem(&runtime.run(directory, name));
        found.lock().expect("no worker panics with the lock").insert(name.clone(), problem);
    };
    let next = || waiting.lock().expect("no worker panics with the lock").pop();
    thread::scope(|scope| {
        scope.spawn(|| in_turn.iter().for_each(|name| run(name)));
        for _ in 1..WORKERS {
            scope.spawn(|| std::iter::from_fn(next).for_each(run));
        }
    });
    found.into_inner().expect("no worker panics with the lock")
}
