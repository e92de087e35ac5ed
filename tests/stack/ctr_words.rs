//! Every word of `ctr`'s help is one of orlopctl's: sub-commands, their other names, and options, each with a value or without.

use std::path::Path;

use orlop_tests::{Cmd, Output, binaries};

/// Sub-commands and options that orlopctl does not take, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    // Needs mkfs.erofs on the client's side; `images convert --erofs` makes such layers.
    ("images build-erofs-cache", ""),
    // Our writer of EROFS images has no settings.
    ("images convert", "--erofs-compressors"),
    ("images convert", "--erofs-mkfs-options"),
    // An option without a value here since before ctr had it with one.
    ("images convert", "--erofs"),
    // By `content prune references`, when everything is imported.
    ("images import", "--discard-unpacked-layers"),
    // Classes by names are those of a library of Kubernetes' node resources.
    ("run", "--blockio-config-file"),
    ("run", "--blockio-class"),
    ("containers create", "--blockio-config-file"),
    ("containers create", "--blockio-class"),
    // Mounts that only the server can make are made when the snapshot is asked for.
    ("snapshots mounts", "--temp"),
];

/// One option of a help.
struct Flag {
    /// `--quiet` and `-q`.
    names: Vec<String>,
    has_value: bool,
}

/// What a help says.
#[derive(Default)]
struct Help {
    /// Sub-commands, each with its other names.
    commands: Vec<Vec<String>>,
    flags: Vec<Flag>,
}

/// What orlopctl answers to words. It reaches no server in any case.
fn ours(words: &[&str]) -> Output {
    Cmd::new(binaries::orlopctl()).args(["--address", "/nowhere"]).args(words).run()
}

/// A line's words before what explains them: two blanks lie between.
fn head(line: &str) -> Vec<&str> {
    let head = line.trim_start().split("  ").next().unwrap_or_default();
    head.split([' ', ',']).filter(|word| !word.is_empty()).collect()
}

fn help(client: &Path, path: &[&str]) -> Help {
    let text = Cmd::new(client).args(path).arg("--help").run().success().stdout;
    let mut found = Help::default();
    let mut section = "";
    for line in text.lines() {
        if !line.starts_with(' ') {
            section = line;
        } else if section.starts_with("COMMANDS") && !line.trim_end().ends_with(':') {
            let names: Vec<String> = head(line).into_iter().map(str::to_owned).collect();
            if names.first().is_some_and(|name| name != "help" && name != "h") {
                found.commands.push(names);
            }
        } else if section.contains("OPTIONS") && line.trim_start().starts_with('-') {
            // Options of the whole program are listed again under each sub-command.
            if section.starts_with("GLOBAL") && !path.is_empty() {
                continue;
            }
            let words = head(line);
            let names = words.iter().filter(|word| word.starts_with('-')).map(|word| (*word).to_owned());
            let names: Vec<String> = names.collect();
            // `--label string [ --label string ]` is one option.
            let has_value = words.iter().any(|word| !word.starts_with('-') && *word != "[" && *word != "]");
            found.flags.push(Flag { names, has_value });
        }
    }
    found
}

fn is_excepted(path: &str, flag: &str) -> bool {
    EXCEPTIONS.iter().any(|(command, option)| {
        let is_below = path == *command || path.starts_with(&format!("{command} "));
        if option.is_empty() { is_below } else { path == *command && flag == *option }
    })
}

/// Notes what orlopctl does not know of a sub-command and of those below it.
fn compare(client: &Path, path: &[&str], unknown: &mut Vec<String>) {
    let shown = path.join(" ");
    if is_excepted(&shown, "") {
        return;
    }
    let help = help(client, path);
    for Flag { names, has_value } in help.flags {
        for name in names.iter().filter(|name| !is_excepted(&shown, name)) {
            let words = [path, &[name.as_str()]].concat();
            let is_known = if has_value {
                ours(&words).stderr.contains("a value is required")
            } else if matches!(name.as_str(), "--version" | "-v") {
                ours(&words).code() == 0
            } else {
                ours(&[&words[..], &["--help"]].concat()).code() == 0
            };
            if !is_known {
                unknown.push(format!("{shown} {name}"));
            }
        }
    }
    for names in help.commands {
        if is_excepted(&[path, &[names[0].as_str()]].concat().join(" "), "") {
            continue;
        }
        for name in &names {
            if ours(&[path, &[name.as_str(), "--help"]].concat()).code() != 0 {
                unknown.push([path, &[name.as_str()]].concat().join(" "));
            }
        }
        compare(client, &[path, &[names[0].as_str()]].concat(), unknown);
    }
}

/// Holds orlopctl against a client's help.
pub fn walk(client: &Path) {
    let mut unknown = Vec::new();
    compare(client, &[], &mut unknown);
    assert!(unknown.is_empty(), "orlopctl does not know:\n{}", unknown.join("\n"));
}

#[test]
fn orlopctl_knows_every_word_of_debians_ctr() {
    walk(&binaries::system("ctr"));
    // What clients of the newest kind may write after the sub-command, too.
    for words in [["images", "list", "--namespace"], ["tasks", "kill", "--timeout"]] {
        let asked = ours(&words);
        assert!(asked.stderr.contains("a value is required"), "{asked}");
    }
    let unknown = ours(&["images", "list", "--no-such", "--help"]);
    assert!(unknown.stderr.contains("unexpected argument"), "{unknown}");
}
