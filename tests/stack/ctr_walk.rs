//! Every sub-command of `ctr` does its work on orlopd; `docs/ctr.md` is the list, which its help is held against.

use std::fs;
use std::path::Path;

use orlop_tests::{Cmd, Daemon, Image, Orlopd, Output, Registry, Root, Variant};

/// The list that people read.
const DOCUMENT: &str = include_str!("../../docs/ctr.md");

/// Which clients have a line's sub-command.
#[derive(Clone, Copy, PartialEq)]
pub enum Client {
    /// Debian's, of containerd 1.6.
    Debian,
    /// The newest.
    Newest,
}

/// The lines, in order: who has the sub-command, the exit code, the words. `$layer` and the like are filled in.
const LINES: &str = "
both 0 version
both 0 plugins list
both 0 plugins list -d
new 0 plugins inspect-runtime
new 0 info
new 0 deprecations list
both 0 oci spec
both 0 namespaces create other
both 0 namespaces label other a=b
both 0 namespaces list
both 0 namespaces remove other
both 0 leases create --id l1
both 0 leases list
both 0 leases delete l1
both 0 images import $archive
both 0 images list
both 0 images check
new 0 images inspect $image
new 0 images usage $image
both 0 images tag $image example.org/other:1
both 0 images label example.org/other:1 k=v
both 0 images push --plain-http $registry/pushed:1 $image
both 0 images pull --plain-http $registry/pushed:1
both 0 images export $directory/out.tar $image
both 0 images convert --oci $image example.org/converted:1
both 0 images mount $image $directory/mounted
both 0 images unmount --rm $directory/mounted
both 0 images delete example.org/other:1
both 0 content list
both 0 content fetch --plain-http $registry/pushed:1
both 0 content fetch-object --plain-http $registry/pushed:1
new 0 content fetch-blob --plain-http $registry/pushed:1 $layer
both 0 content ingest --expected-size 3 abc
both 0 content active
both 0 content get $layer
both 0 content label $layer a=b
both 0 content edit --editor $editor $manifest
both 0 content push-object --plain-http $registry/object:1 $layer
both 0 content delete $layer
both 0 content prune references
both 0 images import $archive
both 0 snapshots prepare k1
both 0 snapshots label k1 containerd.io/gc.root=1
both 0 snapshots mounts $directory/mounted k1
both 0 snapshots commit c1 k1
both 0 snapshots label c1 containerd.io/gc.root=1
both 0 snapshots view v1 c1
both 0 snapshots list
both 0 snapshots tree
both 0 snapshots usage
both 0 snapshots info c1
both 0 snapshots delete v1
both 0 snapshots diff c1
both 0 snapshots unpack $manifest
both 0 run --rm $image r1 echo hi
both 0 run -d --null-io $image r2 sleep 1000
both 0 containers list
both 0 containers info r2
both 0 containers label r2 a=b
both 0 containers checkpoint r2 example.org/checkpoint:1
both 0 tasks list
both 0 tasks metrics r2
both 0 tasks exec --exec-id e r2 echo in
both 0 tasks ps r2
both 0 tasks pause r2
both 0 tasks resume r2
both 137 tasks attach r2
both 0 tasks kill -s KILL r2
both 0 tasks delete -f r2
both 0 tasks start -d --null-io r2
both 0 tasks kill -s KILL r2
both 0 tasks delete -f r2
both 0 containers delete r2
both 0 containers create $image r3 echo x
both 0 tasks start r3
both 0 containers delete r3
new 0 sandboxes run $directory/pod.json sb1
new 0 sandboxes list
new 0 sandboxes info sb1
new 0 sandboxes remove --force sb1
both 137 events
both 0 install --replace --path $directory/installed $image
new 0 images prune --all
";

/// Sub-commands that no line has; the document says why.
const WITHOUT: [&str; 7] = [
    "containers restore",
    "tasks checkpoint",
    "images build-erofs-cache",
    "pprof",
    "shim",
    // A line's name in the help, and what people type.
    "snapshots remove",
    "run",
];

/// The sub-commands that a client's help lists, each with the words that lead to it.
fn leaves(client: &Path, path: &[&str]) -> Vec<String> {
    let help = Cmd::new(client).args(path).arg("--help").run().success().stdout;
    let commands = help.lines().skip_while(|line| !line.starts_with("COMMANDS")).skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .filter_map(|line| line.split([' ', ',']).find(|word| !word.is_empty()))
        .filter(|word| !matches!(*word, "help" | "h") && !word.ends_with(':'))
        .collect();
    if commands.is_empty() {
        return vec![path.join(" ")];
    }
    commands.into_iter().flat_map(|command| leaves(client, &[path, &[command]].concat())).collect()
}

/// Runs each sub-command that a client has on an orlopd.
pub fn walk(which: Client, client: &Path) {
    let root = Root::new();
    let variant = Variant { client: Some(client.to_owned()), ..Variant::default() };
    // A view has no label that keeps it: a collection after another command's deletion would take it, as under containerd.
    let mut daemon = Orlopd::start_as(&root, "[gc]\nschedule_delay = 3600000\n", &variant);
    let registry = Registry::start(&root);
    let archive = root.join("image.tar");
    let image = Image::two_layers();
    image.oci_archive(&archive, "example.org/walk:1");
    let directory = root.join("walk");
    fs::create_dir_all(directory.join("mounted")).unwrap();
    fs::create_dir_all(directory.join("installed")).unwrap();
    fs::write(
        directory.join("pod.json"),
        r#"{"metadata":{"name":"p","namespace":"d","uid":"u","attempt":1},"log_directory":"/tmp"}"#,
    )
    .unwrap();
    let editor = directory.join("editor");
    fs::write(&editor, "#!/bin/sh\nsed s/schemaVersion/edited/ \"$1\" > \"$1.new\" && cat \"$1.new\" > \"$1\" && rm \"$1.new\"\n").unwrap();
    fs::set_permissions(&editor, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let run = |words: &[String]| -> Output {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        // What follows events or a container's output ends by force.
        if matches!(words[..], ["events"] | ["tasks", "attach", ..]) {
            let timeout =
                Cmd::new("timeout").args(["-s", "KILL", "1"]).arg(client).arg("-a").arg(daemon.address());
            return timeout.args(["-n", daemon.namespace()]).args(&words).run();
        }
        daemon.ctr(&words).input("abc").run()
    };
    let mut names = vec![
        ("$archive", archive.display().to_string()),
        ("$image", "example.org/walk:1".to_owned()),
        ("$registry", registry.address().to_owned()),
        ("$directory", directory.display().to_string()),
        ("$editor", editor.display().to_string()),
    ];
    let lines: Vec<Vec<&str>> =
        LINES.lines().filter(|line| !line.is_empty()).map(|line| line.split(' ').collect()).collect();
    let mut failures = String::new();
    for line in &lines {
        if line[0] == "new" && which == Client::Debian {
            continue;
        }
        let words: Vec<String> = line[2..]
            .iter()
            .map(|word| names.iter().fold((*word).to_owned(), |word, (name, text)| word.replace(name, text)))
            .collect();
        let out = run(&words);
        if out.code().to_string() != line[1] {
            failures += &format!("{}: {out}\n", words.join(" "));
        }
        if line[2..].starts_with(&["images", "import"]) && names.len() == 5 {
            names.extend(digests(&daemon));
        }
    }
    assert!(failures.is_empty(), "{failures}\n{}", daemon.log());

    for leaf in leaves(client, &[]) {
        let is_run = lines.iter().any(|line| line[2..].join(" ").starts_with(&leaf));
        let is_excepted = WITHOUT.iter().any(|without| leaf.starts_with(without));
        assert!(is_run || is_excepted, "no line has `ctr {leaf}`");
        let row = format!("| `{leaf}` |");
        let family = format!("| `{}` |", leaf.split(' ').next().unwrap());
        assert!(DOCUMENT.contains(&row) || DOCUMENT.contains(&family), "docs/ctr.md has no `{leaf}`");
    }
    daemon.stop();
    drop(registry);
    root.assert_clean();
}

/// The image's manifest and one of its layers.
fn digests(daemon: &Orlopd) -> Vec<(&'static str, String)> {
    let listed = daemon.ctr(["images", "ls", "name==example.org/walk:1"]).run().success().stdout;
    let word = listed.split_whitespace().find(|word| word.starts_with("sha256:"));
    let manifest = word.expect("the image has a digest").to_owned();
    let text = daemon.ctr(["content", "get", &manifest]).run().success().stdout;
    let read: serde_json::Value = serde_json::from_str(&text).unwrap();
    let layer = read["layers"][0]["digest"].as_str().unwrap().to_owned();
    vec![("$manifest", manifest), ("$layer", layer)]
}

#[test]
fn every_sub_command_of_debians_ctr_works() {
    walk(Client::Debian, &orlop_tests::binaries::system("ctr"));
}
