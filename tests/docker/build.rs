//! `docker build` through the classic end point, beside Debian's dockerd: the same configurations, files and exit codes.

use std::io::Write;
use std::time::Duration;

use orlop_tests::{Cmd, Daemon, binaries, poll_until};

use super::side::{Line, Side, clients, compare};

/// What every line begins with: the context, and ways to build and to look at an image.
const WORDS: &str = r#"
    cd $dir/c
    build="$docker build --network none"
    show() {
        for part in '{{json .Config.Env}}' '{{json .Config.Cmd}}' '{{json .Config.Entrypoint}}' '{{.Config.User}}' \
            '{{.Config.WorkingDir}}' '{{json .Config.Labels}}' '{{json .Config.ExposedPorts}}' '{{json .Config.Volumes}}' \
            '{{.Config.StopSignal}}' '{{json .Config.Shell}}' '{{json .Config.Healthcheck}}' '{{json .Config.OnBuild}}' \
            '{{.Author}}' '{{len .RootFS.Layers}}'; do
            $docker inspect --type image --format "$part" $1
        done
    }
    list() { image=$1; shift; $run --rm --user 0 --entrypoint busybox $image find "$@" -exec stat -c '%n %a %u:%g %F' '{}' + | sort; }
"#;

/// The context.
const SETUP: &str = r#"
    mkdir -p $dir/c/sub/deep && cd $dir/c && echo one > a && echo two > sub/b && echo three > sub/deep/c &&
    ln -s a link && chmod 640 a && printf 'secret\n' > no.txt && printf 'no.*\n' > .dockerignore &&
    mkdir -p $dir/pack/in && echo packed > $dir/pack/in/p && chown -R 3:4 $dir/pack/in &&
    tar -C $dir/pack -cf plain.tar in && tar -C $dir/pack -czf zipped.tgz in
"#;

/// Dockerfiles, each with what is looked at afterwards.
const LINES: &[Line] = &[
    (
        0,
        "printf 'FROM bb\nENV A=1 B=\"x y\"\nENV C old  form\nLABEL k=\"v w\" l=m\nEXPOSE 80 90-91/udp\nUSER 5:6\nWORKDIR /w\n\
         WORKDIR d\nVOLUME [\"/v\"]\nSTOPSIGNAL SIGINT\nSHELL [\"/bin/sh\", \"-ec\"]\nCMD echo $A\nENTRYPOINT [\"/bin/sh\"]\nCMD [\"-c\", \
         \"echo hi\"]\nHEALTHCHECK --interval=5s --retries=2 CMD true\nONBUILD RUN echo never\nMAINTAINER me\n' | $build -t conf - \
         >/dev/null; show conf",
    ),
    (
        0,
        "printf 'FROM bb\nCOPY a /x\nCOPY a link sub /d/\nCOPY sub /s\nCOPY *.tgz no.* /glob/\nCOPY --chown=7:8 sub /o\nWORKDIR /w\nCOPY a .\nCOPY \
         a r/e/l\nADD plain.tar /p\nADD zipped.tgz /z/\n' > D; $build -t files -f D . >/dev/null; list files /x /d /s /glob /o /w /p /z",
    ),
    (
        0,
        "printf 'ARG V=latest\nFROM bb AS one\nARG V\nARG W=w\nENV E=${W:-no}${N:-none}${W:+set}\nRUN echo $V $W $E > /args\nFROM one AS \
         two\nRUN echo two >> /args\nFROM bb:$V\nCOPY --from=two /args /args\nCOPY --from=0 /args /first\n' | $build -t multi \
         --build-arg W=given - >/dev/null; $run --rm multi cat /args /first; show multi",
    ),
    (
        0,
        "printf 'FROM bb AS x\nRUN touch /x\nFROM bb AS y\nRUN false\n' | $build -t target --target x - >/dev/null; $run --rm target ls /x",
    ),
    (3, "printf 'FROM bb\nRUN echo out; exit 3\n' | $build -t fails - >/dev/null"),
    (0, "$docker images --quiet fails"),
    (1, "printf 'FROM bb\nNOPE x\n' | $build -"),
    (1, "printf 'FROM bb\nCOPY nope /\n' > D; $build -f D . >/dev/null"),
    (1, "printf 'FROM bb\nCOPY ../../etc/passwd /\n' > D; $build -f D . >/dev/null"),
    (1, "printf 'FROM bb\nCOPY no.txt /\n' > D; $build -f D . >/dev/null"),
    (1, "printf 'FROM bb\nCOPY a sub /f\n' > D; $build -f D . >/dev/null"),
    (1, "printf 'FROM bb\nRUN a\n' | $build --target nope -"),
    (1, "$build -f nope ."),
    (1, "printf 'FROM bb\nRUN [\"/nope\"]\n' | $build - >/dev/null"),
    (
        0,
        "printf 'FROM bb\nRUN --mount=type=cache,target=/x true\n' | $build - >/dev/null; test $? = 1 && echo refused",
    ),
    (
        0,
        "printf 'FROM bb\nRUN rm /bin/sleep && mkdir -p /n/m && busybox chmod 1777 /n && busybox ln -s m /n/l && busybox chown 9:9 /n/m\nUSER 3\nRUN id -u; \
         pwd > /tmp/pwd || true\n' | $build -t changes - >/dev/null; $run --rm --user 0 changes stat -c '%a %u:%g %N' /n /n/m /n/l; $run --rm changes \
         ls /bin/sleep; $run --rm changes id -u",
    ),
    (
        0,
        "printf 'FROM bb\nONBUILD ARG T=t\nONBUILD RUN echo $T > /triggered\nONBUILD COPY a /\n' | $build -t trigger - >/dev/null; printf 'FROM \
         trigger\nRUN cat /triggered\n' > D; $build -t triggered -f D . | grep -E '^# Exec|^t$'; $docker inspect -f '{{json .Config.OnBuild}}' triggered",
    ),
    (
        0,
        "printf 'FROM scratch AS s\nCOPY a /only\nCMD [\"x\"]\nFROM bb\nCOPY --from=s / /all/\n' > D; $build -t whole -f D . >/dev/null; list whole /all",
    ),
    (
        0,
        "printf 'FROM bb\nRUN echo 1 > /1\nCOPY a /a\nRUN echo 2 > /2\n' > D; $build -t cached -f D . >/dev/null; $build -t cached -f D . | grep -c 'Using \
         cache'; touch a; $build -f D . | grep -c 'Using cache'; echo changed > a; $build -f D . | grep -c 'Using cache'; $build --no-cache -f D . | grep \
         -c 'Using cache'; echo one > a",
    ),
    (
        0,
        "printf 'FROM bb\nARG A=1\nRUN echo $A\n' > D; $build -f D . >/dev/null; $build -f D . | grep -c 'Using cache'; $build --build-arg A=2 -f D . | \
         grep -c 'Using cache'; $build --build-arg NOPE=2 -f D . | grep Warning",
    ),
    (
        0,
        "printf 'FROM bb\nRUN true\n' | $build --label a=b --label 'c=d e' -t labelled - >/dev/null; show labelled",
    ),
    (
        0,
        "printf 'FROM bb\nCOPY no.txt /n\n' > D; tar c D no.txt .dockerignore | $build -q -f D - | cut -c1-7",
    ),
    (
        0,
        "printf 'FROM bb\nENV C=1\nRUN echo c > /c\n' > D; $build -t source -f D . >/dev/null; $build --cache-from source -f D . | \
         grep -c 'Using cache'",
    ),
    (
        0,
        "printf 'FROM bb\nCMD q\n' | $build -q -t quiet - | cut -c1-7; $docker run --rm --network none quiet true",
    ),
    (
        0,
        "$build -q -t tarred - < plain.tar; test $? = 1 && echo none; tar c D a sub | $build -q -f D - | cut -c1-7",
    ),
    (
        0,
        "printf 'FROM bb\nRUN grep -c here /etc/hosts; cat /proc/self/limits | grep -o \"Max open files *[0-9]*\"\n' | $build --no-cache --add-host here:1.2.3.4 --ulimit nofile=123:456 - | grep -E '^1$|Max'",
    ),
    (0, "printf '# escape=`\nFROM bb\nRUN echo a`\nb\n' | $build - | grep ^ab"),
    (
        0,
        "printf 'FROM bb AS p\nRUN touch /keep; echo x >> /etc/hosts\nFROM bb\nCOPY --from=p / /all/\n' | $build -t places - >/dev/null; list places /all/keep \
         /all/etc /all/dev /all/proc /all/sys | grep -v bin",
    ),
    (0, "$docker ps -aq | wc -l; $docker images --filter dangling=true -q | wc -l"),
    (
        0,
        "$run --name made bb touch /made; $docker commit --change 'ENV A=1' --change 'CMD [\"a\"]' --change 'EXPOSE 5' --change 'WORKDIR /q' made changed >/dev/null; show \
         changed; $docker commit --change 'RUN x' made; test $? = 1 && echo refused; $docker rm made",
    ),
];

#[test]
fn builds_do_as_under_dockerd() {
    let debian = clients().pop().expect("a client");
    let (ours, reference) = (Side::orlopd_for(debian.clone()), Side::dockerd(debian));
    for side in [&ours, &reference] {
        std::fs::write(side.root.join("words"), WORDS).expect("writing words");
        side.says(SETUP);
    }
    let lines: Vec<(i32, String)> =
        LINES.iter().map(|(code, line)| (*code, format!(". $dir/words; {line}"))).collect();
    let table: Vec<(i32, &str)> = lines.iter().map(|(code, line)| (*code, line.as_str())).collect();
    compare(&ours, &reference, &table);
    ours.finish();
    reference.finish();
}

/// An archive with a name as it stands, whatever it says.
fn entry(archive: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, link: &str, data: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.set_cksum();
    archive.append(&header, data).expect("writing an archive");
}

#[test]
fn a_hostile_context_stays_inside() {
    use tar::EntryType::{Link, Regular, Symlink};

    let side = Side::orlopd();
    let outside = side.root.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    let way = outside.display().to_string();
    assert!(way.len() < 100, "a link's target fits a header");
    let dockerfile = b"FROM bb\nCOPY . /c\nCOPY way /d\n";
    for hostile in [
        ("../../../../outside/evil", Regular, String::new()),
        ("way/evil", Regular, String::new()),
        ("way/../../outside/evil", Regular, String::new()),
        ("hard", Link, format!("{way}/secret")),
        ("/outside/evil", Regular, String::new()),
    ] {
        let mut archive = tar::Builder::new(Vec::new());
        entry(&mut archive, "Dockerfile", Regular, "", dockerfile);
        entry(&mut archive, "way", Symlink, &way, b"");
        let (name, kind, link) = hostile;
        entry(&mut archive, name, kind, &link, if kind == Regular { b"evil" } else { b"" });
        let path = side.root.join("hostile.tar");
        std::fs::File::create(&path).unwrap().write_all(&archive.into_inner().unwrap()).unwrap();
        // Built or refused, as the name leads to something inside or to nothing.
        let out = side.run("$docker build --tag hostile - < $dir/hostile.tar");
        assert!(!out.stdout.contains("secret"), "{out}");
        assert!(!outside.join("evil").exists(), "{name}: {out}");
        if out.code() == 0 {
            let found = side.run("$run --rm hostile busybox grep -r secret /c /d");
            assert_eq!(found.stdout, "", "{name}");
        }
    }
    assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    assert_eq!(side.says("$run --rm bb echo alive"), "alive");
    side.finish();
}

#[test]
fn stages_run_side_by_side() {
    let side = Side::orlopd_alone(clients().swap_remove(0));
    // Each waits for the other, on the loopback device that they share.
    let said = side.says(
        "printf 'FROM bb AS hears\nRUN busybox nc -l -p 7777 > /heard\nFROM bb AS says\nRUN until echo met | busybox nc 127.0.0.1 7777; do \
         sleep 0.05; done\nFROM bb\nCOPY --from=hears /heard /heard\nRUN cat /heard\n' | timeout 60 $docker build --network host -",
    );
    let steps: Vec<&str> = said.lines().filter(|line| line.starts_with("Step ")).collect();
    assert!(steps.is_sorted_by_key(|step| {
        step.split([' ', '/']).nth(1).and_then(|number| number.parse::<u32>().ok())
    }));
    assert!(said.contains("\nmet\n"), "{said}");
    side.finish();
}

#[test]
fn what_a_build_leaves_is_its_images() {
    let mut side = Side::orlopd();
    let files = side.manager().root().join("docker/build");
    let is_clean = |side: &mut Side| {
        let address = side.manager().address().to_owned();
        let list = |what: &[&str]| {
            let ctr = Cmd::new(binaries::system("ctr")).arg("-a").arg(&address);
            ctr.args(["-n", "moby"]).args(what).run().success().stdout
        };
        let names = list(&["snapshots", "list"]);
        let is_empty = std::fs::read_dir(&files).map_or(true, |mut entries| entries.next().is_none());
        is_empty
            && list(&["leases", "list", "--quiet"]).is_empty()
            && !names.contains("build-")
            && !names.contains("-before")
    };
    let waits = "printf 'FROM bb\nCOPY a /a\nRUN touch /b; echo waiting; while :; do :; done\n' > $dir/D; echo a > $dir/a; exec \
                 $docker build --network none --file $dir/D $dir";
    let started = |side: &Side| {
        let mut client = side.shell(waits).spawn();
        poll_until(Duration::from_secs(30), "the step runs", || {
            side.says("$docker ps --quiet").lines().count() == 1
        });
        client.end();
    };
    // Given up by the client.
    started(&side);
    poll_until(Duration::from_secs(30), "the end of the build", || {
        side.says("$docker ps --all --quiet").is_empty() && is_clean(&mut side)
    });
    // Failed: the container of the step stays, as under dockerd, unless it was asked for otherwise.
    side.run("printf 'FROM bb\nRUN false\n' | $docker build --network none -");
    assert_eq!(side.says("$docker ps --all --quiet").lines().count(), 1);
    side.says("$docker rm $($docker ps --all --quiet)");
    side.run("printf 'FROM bb\nRUN false\n' | $docker build --network none --force-rm -");
    assert_eq!(side.says("$docker ps --all --quiet"), "");
    poll_until(Duration::from_secs(30), "the end of the build", || is_clean(&mut side));
    // Lost with its daemon.
    let mut client = side.shell(waits).spawn();
    poll_until(Duration::from_secs(30), "the step runs", || {
        side.says("$docker ps --quiet").lines().count() == 1
    });
    side.manager().kill();
    side.manager().restart();
    client.end();
    poll_until(Duration::from_secs(30), "the end of what the build left", || {
        side.says("$docker ps --all --quiet").is_empty() && is_clean(&mut side)
    });
    // The container of a step that failed is the client's, and stays.
    side.run("printf 'FROM bb\nRUN false\n' | $docker build --network none -");
    side.manager().kill();
    side.manager().restart();
    assert_eq!(side.says("$docker ps --all --format '{{.Status}}' | cut -d ' ' -f1-2"), "Exited (1)");
    side.says("$docker rm $($docker ps --all --quiet)");
    // What steps made goes with the last that was built of it.
    side.says("printf 'FROM bb\nENV A=1\nENV B=2\n' | $docker build --tag made -");
    side.says("$docker image prune --force && $docker rmi made && $docker image prune --force");
    assert_eq!(side.says("$docker images --all --quiet").lines().count(), 1);
    side.finish();
}
