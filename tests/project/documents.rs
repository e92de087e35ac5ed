//! Documents promise only what is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use orlop_tests::{Cmd, binaries};

fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut queue = vec![binaries::source_root().join("docs")];
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(&dir).expect("listing docs") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                queue.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        found.push(binaries::source_root().join(name));
    }
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[track_caller]
fn none(found: Vec<String>) {
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_promise_has_a_number_of_its_own_and_a_test_that_exists() {
    let root = binaries::source_root();
    let text = read(&root.join("docs/SPECIFICATION.md"));
    let mut numbers = BTreeSet::new();
    let mut wrong = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| no.")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, _, test] = cells[..] else {
            wrong.push(format!("not three cells: {line}"));
            continue;
        };
        if !numbers.insert(number) {
            wrong.push(format!("{number} is there twice"));
        }
        // A cell names files in backticks, each perhaps with `::test` behind it.
        let named: Vec<&str> = test.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            wrong.push(format!("{number} names no test"));
        }
        for name in named {
            let (file, function) =
                name.split_once("::").map_or((name, None), |(file, function)| (file, Some(function)));
            let Ok(source) = fs::read_to_string(root.join(file)) else {
                wrong.push(format!("{number}: no file {file}"));
                continue;
            };
            let function = function.map(|path| path.rsplit("::").next().unwrap_or(path));
            if function.is_some_and(|function| !source.contains(&format!("fn {function}("))) {
                wrong.push(format!("{number}: no test {name}"));
            }
        }
    }
    assert!(!numbers.is_empty(), "no row found");
    none(wrong);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for document in documents() {
        let text = read(&document);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let local = !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:");
            if local && !document.parent().expect("a document lies in a directory").join(file).exists() {
                wrong.push(format!("{}: {target}", document.display()));
            }
        }
    }
    none(wrong);
}

#[test]
fn every_make_target_that_a_document_names_exists() {
    let out =
        Cmd::new("make").args(["--no-print-directory", "help"]).cwd(binaries::source_root()).run().success();
    let targets: BTreeSet<&str> = out
        .stdout
        .lines()
        .filter_map(|line| line.trim().strip_prefix("make ")?.split_whitespace().next())
        .collect();
    for wanted in
        "setup build demo test test-vm lint unit integration conformance bench fuzz soak proto install clean"
            .split(' ')
    {
        assert!(targets.contains(wanted), "make help does not list {wanted}");
    }
    let mut wrong = Vec::new();
    for document in documents() {
        for code in read(&document).split('`').skip(1).step_by(2).filter(|code| code.starts_with("make ")) {
            let named = code.split_whitespace().nth(1).unwrap_or_default();
            if !targets.contains(named) && !named.contains('=') {
                wrong.push(format!("{}: {code}", document.display()));
            }
        }
    }
    none(wrong);
}

#[test]
fn the_readme_starts_with_the_two_commands() {
    let text = read(&binaries::source_root().join("README.md"));
    let first: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("make ") || line.starts_with("sudo make "))
        .take(2)
        .collect();
    assert!(
        first.len() == 2 && first[0].contains("make demo") && first[1].contains("make test"),
        "{first:?}"
    );
}

#[test]
fn no_document_names_a_path_of_somebodys_machine() {
    let marks = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/.")];
    let mut wrong = Vec::new();
    for document in documents() {
        for (n, line) in read(&document).lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                wrong.push(format!("{}:{}: {line}", document.display(), n + 1));
            }
        }
    }
    none(wrong);
}
