//! Rules on source text.

use std::fs;
use std::path::{Path, PathBuf};

use orlop_tests::{Cmd, binaries};

/// The files that git tracks (or would, once added) with this extension, but for generated ones.
fn tracked(extension: &str) -> Vec<PathBuf> {
    let root = binaries::source_root();
    let out = Cmd::new(binaries::system("git"))
        .args(["-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "--"])
        .arg(format!("*.{extension}"))
        .cwd(&root)
        .run()
        .success();
    let generated = |path: &&str| path.starts_with("proto/gen/");
    out.stdout
        .lines()
        .filter(|path| !generated(path))
        .map(PathBuf::from)
        .filter(|path| root.join(path).exists())
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(binaries::source_root().join(path)).expect("reading a source file")
}

/// The lines that are code: no blank ones, no comments, nothing after the start of an inline test module.
fn code_lines(text: &str) -> usize {
    let product = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    product.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

#[track_caller]
fn none(found: Vec<String>) {
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn unsafe_code_sits_in_one_place() {
    let allowed = Path::new("runtime/host/src/sys");
    // In pieces, or this file would accuse itself.
    let marks = [
        concat!("unsafe", " {"),
        concat!("unsafe", " fn"),
        concat!("unsafe", " impl"),
        concat!("unsafe", " extern"),
    ];
    let lint = concat!("allow(unsafe", "_code");
    let found = tracked("rs").into_iter().filter(|path| !path.starts_with(allowed)).flat_map(|path| {
        let text = read(&path);
        let lines: Vec<String> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| {
                let code = line.split("//").next().unwrap_or_default();
                code.contains(lint) || marks.iter().any(|mark| code.contains(mark))
            })
            .map(|(n, line)| format!("{}:{}: {}", path.display(), n + 1, line.trim()))
            .collect();
        lines
    });
    none(found.collect());
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let block = concat!("unsafe", " {");
    let mut found = Vec::new();
    for path in tracked("rs").into_iter().filter(|path| path.starts_with("runtime/host/src/sys")) {
        let text = read(&path);
        let lines: Vec<&str> = text.lines().collect();
        for (n, _) in lines
            .iter()
            .enumerate()
            .filter(|(_, line)| line.contains(block) && !line.trim().starts_with("//"))
        {
            let before = &lines[n.saturating_sub(8)..=n];
            if !before.iter().any(|line| line.contains("SAFETY:")) {
                found.push(format!("{}:{}: no SAFETY comment", path.display(), n + 1));
            }
        }
    }
    none(found);
}

#[test]
fn a_long_file_says_at_its_top_why_it_is_one() {
    // "About 500" leaves some room, so that a file is not torn for ten lines.
    let reasons = ["one file", "one thing", "one table", "one place"];
    let found = tracked("rs").into_iter().filter_map(|path| {
        let text = read(&path);
        let lines = code_lines(&text);
        let top: String = text.lines().take_while(|line| line.starts_with("//") || line.is_empty()).collect();
        let excused = lines <= 550 || reasons.iter().any(|reason| top.to_lowercase().contains(reason));
        (!excused)
            .then(|| format!("{}: {lines} lines of code and no reason for it at the top", path.display()))
    });
    none(found.collect());
}

#[test]
fn nothing_is_left_for_later_and_no_test_is_switched_off() {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[ig", "nore"),
    ];
    let found = tracked("rs").into_iter().flat_map(|path| {
        let text = read(&path);
        let lines: Vec<String> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| marks.iter().any(|mark| line.contains(mark)))
            .map(|(n, line)| format!("{}:{}: {}", path.display(), n + 1, line.trim()))
            .collect();
        lines
    });
    none(found.collect());
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let found = tracked("toml").into_iter().filter(|path| path.ends_with("Cargo.toml")).filter_map(|path| {
        let text = read(&path);
        let takes = text.contains("[workspace]") || text.contains("[lints]\nworkspace = true");
        (!takes).then(|| format!("{}: no [lints] workspace = true", path.display()))
    });
    none(found.collect());
}

#[test]
fn the_top_level_holds_what_it_should() {
    let expected = [
        ".ci",
        ".gitignore",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "Makefile",
        "README.md",
        "deny.toml",
        "docs",
        "manager",
        "proto",
        "runtime",
        "rust-toolchain.toml",
        "rustfmt.toml",
        "shim",
        "tests",
    ];
    let out = Cmd::new(binaries::system("git"))
        .args(["-c", "safe.directory=*", "ls-files"])
        .cwd(binaries::source_root())
        .run()
        .success();
    let top: std::collections::BTreeSet<&str> =
        out.stdout.lines().filter_map(|path| path.split('/').next()).collect();
    let unexpected: Vec<_> = top.iter().filter(|name| !expected.contains(name)).collect();
    assert!(unexpected.is_empty(), "not named in docs/decisions/0001-layout.md: {unexpected:?}");
}
