//! Registries that fail: connections that break at any byte, refusals for a while, limits, wrong bytes, slow ones. A pull or push
//! either succeeds or says in one line what is wrong; nothing half-done gets a name.
//!
//! `make soak` sets `ORLOP_CUTS`: so many cuts at random offsets, and one at every boundary of a record.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop_tests::image::digest;
use orlop_tests::{Compression, Cutter, Daemon, Deed, Front, Image, Layer, Orlopd, Registry, Root};

use crate::ctl::DEADLINE;

/// Bytes that do not compress, always the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..length).map(|_| random.next() as u8).collect()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }
}

/// An image of two small layers.
fn image() -> Image {
    let file = |name: &str, seed| Layer::new().file(name, &noise(seed, 60_000), 0o644);
    Image::new().layer(file("one", 11)).layer(file("two", 12).compressed(Compression::Zstd))
}

/// Where to cut: a sample, or as much as asked for.
fn cuts(seed: u64, total: u64, records: &[u64]) -> Vec<u64> {
    let wanted = std::env::var("ORLOP_CUTS").ok().and_then(|text| text.parse::<usize>().ok());
    let mut random = Random(seed);
    let mut cuts: Vec<u64> = (0..wanted.unwrap_or(8)).map(|_| random.next() % total).collect();
    match wanted {
        Some(_) => cuts.extend(records.iter().filter(|record| **record < total)),
        // The first and the last, and two between.
        None => {
            cuts.extend(records.iter().step_by((records.len() / 3).max(1)).filter(|record| **record < total))
        }
    }
    cuts
}

fn remove(orlopd: &Orlopd, names: &[&str]) {
    orlopd
        .orlopctl(["images", "rm", "--sync"])
        .args(names.iter().copied())
        .deadline(DEADLINE)
        .run()
        .success();
    orlopd.orlopctl(["gc"]).run().success();
    assert_eq!(orlopd.orlopctl(["content", "ls", "-q"]).run().success().stdout, "");
}

#[test]
fn a_pull_survives_a_cut_at_any_byte() {
    const SEED: u64 = 0x5eed_0001;
    let root = Root::new();
    let registry = Registry::start(&root);
    let image = image();
    let cutter = Cutter::start(registry.address());
    let mut orlopd = Orlopd::start(&root);
    let name = image.push(&registry, "two", "1").replace(registry.address(), cutter.address());
    let pull = || orlopd.orlopctl(["images", "pull", "--plain-http", &name]).deadline(DEADLINE).run();
    pull().success();
    let records = cutter.records();
    let total = *records.last().unwrap();
    remove(&orlopd, &[&name]);
    for cut in cuts(SEED, total, &records) {
        println!("seed {SEED:#x}, cut at {cut} of {total}");
        cutter.cut_at(cut);
        pull().success();
        // The daemon checks digests as it fetches; that it has all of them is what counts here.
        let stored = orlopd.orlopctl(["content", "ls", "-q"]).run().success().stdout;
        for blob in image.layers().iter().map(|layer| &layer.digest).chain([&image.digest()]) {
            assert!(stored.contains(blob.as_str()), "{blob} is missing: {stored}");
        }
        assert_eq!(orlopd.orlopctl(["images", "check", "-q"]).run().success().stdout, format!("{name}\n"));
        remove(&orlopd, &[&name]);
    }
    orlopd.stop();
}

#[test]
fn a_push_survives_a_cut_at_any_byte() {
    const SEED: u64 = 0x5eed_0002;
    let root = Root::new();
    let registry = Registry::start(&root);
    let image = image();
    let cutter = Cutter::start(registry.address());
    let mut orlopd = Orlopd::start(&root);
    let archive = root.join("image.tar");
    image.oci_archive(&archive, "example.org/x:1");
    orlopd.orlopctl(["images", "import"]).arg(&archive).run().success();
    // To a new repository each time: nothing is there, and nothing is taken over from another.
    let push = |n: usize| {
        let target = format!("{}/pushed{n}:1", cutter.address());
        let words = ["images", "push", "--plain-http", &target, "example.org/x:1"];
        orlopd.orlopctl(words).deadline(DEADLINE).run().success();
        let got = registry.request(
            "GET",
            &format!("/v2/pushed{n}/manifests/1"),
            &[("Accept", image.manifest_type())],
            &[],
        );
        assert_eq!(digest(&got.body), image.digest());
        for layer in image.layers() {
            let got = registry.request("GET", &format!("/v2/pushed{n}/blobs/{}", layer.digest), &[], &[]);
            assert_eq!(digest(&got.body), layer.digest);
        }
    };
    push(0);
    let records = cutter.records();
    let total = *records.last().unwrap();
    for (n, cut) in cuts(SEED, total, &records).into_iter().enumerate() {
        println!("seed {SEED:#x}, cut at {cut} of {total}");
        cutter.cut_at(cut);
        push(n + 1);
    }
    orlopd.stop();
}

#[test]
fn what_fails_for_a_while_is_asked_again_and_waits_are_told() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let name = image().push(&registry, "two", "1");
    let mut orlopd = Orlopd::start(&root);
    for (status, headers, told) in [
        (429, vec![("Retry-After", "1".to_owned())], true),
        (503, vec![("Retry-After", "1".to_owned())], true),
        (500, Vec::new(), false),
        (502, Vec::new(), false),
    ] {
        // Every kind of request fails once.
        let front = Front::start("127.0.0.1", registry.address(), move |request, before| {
            let is_same =
                |old: &orlop_tests::Request| (&old.method, &old.target) == (&request.method, &request.target);
            match before.iter().any(is_same) {
                true => Deed::Forward,
                false => Deed::Answer(status, headers.clone(), Vec::new()),
            }
        });
        let name = name.replace(registry.address(), front.address());
        let out =
            orlopd.orlopctl(["images", "pull", "--plain-http", &name]).deadline(DEADLINE).run().success();
        let expected = format!("{} answered {status}", front.address());
        assert_eq!(out.stderr.contains(&expected), told, "{out}");
        if told {
            assert!(out.stderr.contains("waiting 1 s"), "{out}");
        }
        let target = format!("{}/pushed{status}:1", front.address());
        orlopd
            .orlopctl(["images", "push", "--plain-http", &target, &name])
            .deadline(DEADLINE)
            .run()
            .success();
        remove(&orlopd, &[&name]);
    }
    orlopd.stop();
}

#[test]
fn a_limit_is_told_with_what_is_left_and_when_to_come_back() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let name = image().push(&registry, "two", "1");
    let mut orlopd = Orlopd::start(&root);
    let headers = vec![
        ("Retry-After", "7200".to_owned()),
        ("RateLimit-Limit", "100;w=21600".to_owned()),
        ("RateLimit-Remaining", "0;w=21600".to_owned()),
    ];
    let body =
        br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
    let front =
        Front::start("127.0.0.1", registry.address(), move |request, _| match request.method.as_str() {
            // The answer to HEAD has no body, that to GET has.
            "GET" => Deed::Answer(429, headers.clone(), body.to_vec()),
            _ => Deed::Forward,
        });
    let limited = name.replace(registry.address(), front.address());
    let out =
        orlopd.orlopctl(["images", "pull", "--plain-http", &limited]).deadline(DEADLINE).run().failure();
    let said = "the registry answered 429 Too Many Requests: You have reached your pull rate limit. \
        (0 of 100 pulls are left in 6 h; try again in 2 h)";
    assert!(out.stderr.contains(said), "{out}");
    assert_eq!(front.count("GET", ""), 1, "{:?}", front.seen());
    orlopd.stop();
}

#[test]
fn wrong_bytes_are_refused_and_slow_ones_awaited() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let name = image().push(&registry, "two", "1");
    let mut orlopd = Orlopd::start_with(&root, "[registry]\nstall_timeout = 2\n");
    for part in ["/blobs/", "/manifests/sha256"] {
        let front = Front::start("127.0.0.1", registry.address(), move |request, _| {
            let is_hit = request.method == "GET" && request.target.contains(part);
            if is_hit { Deed::Corrupt } else { Deed::Forward }
        });
        let name = name.replace(registry.address(), front.address());
        let out =
            orlopd.orlopctl(["images", "pull", "--plain-http", &name]).deadline(DEADLINE).run().failure();
        assert_eq!(out.stderr.lines().filter(|line| line.starts_with("orlopctl: ")).count(), 1, "{out}");
        assert!(out.stderr.contains("sha256:"), "{out}");
        orlopd.orlopctl(["gc"]).run().success();
        assert_eq!(orlopd.orlopctl(["images", "ls", "-q"]).run().success().stdout, "");
        assert_eq!(orlopd.orlopctl(["content", "ls", "-q"]).run().success().stdout, "");
    }
    // Slow, though never as long without a byte as counts as hanging.
    let drip = Front::start("127.0.0.1", registry.address(), |request, _| {
        match request.target.contains("/blobs/") {
            true => Deed::Drip(20_000, Duration::from_millis(300)),
            false => Deed::Forward,
        }
    });
    let slow = name.replace(registry.address(), drip.address());
    orlopd.orlopctl(["images", "pull", "--plain-http", &slow]).deadline(DEADLINE).run().success();
    remove(&orlopd, &[&slow]);
    // And one that hangs, as a registry and as a mirror.
    let hang = Front::start("127.0.0.1", registry.address(), |request, _| {
        match request.target.contains("/blobs/") {
            true => Deed::Hang,
            false => Deed::Forward,
        }
    });
    let hung = name.replace(registry.address(), hang.address());
    let out = orlopd.orlopctl(["images", "pull", "--plain-http", &hung]).deadline(DEADLINE).run().failure();
    assert!(out.stderr.contains("does not answer"), "{out}");
    let hosts = root.join("hosts");
    std::fs::create_dir_all(hosts.join("registry.example")).unwrap();
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", registry.address(), hang.address());
    std::fs::write(hosts.join("registry.example/hosts.toml"), text).unwrap();
    let words = ["images", "pull", "--hosts-dir", &hosts.display().to_string(), "registry.example/two:1"];
    orlopd.orlopctl(words).deadline(DEADLINE).run().success();
    orlopd.stop();
}

/// An image with one layer of 40 MiB, large enough to be fetched and sent in parts.
fn large() -> Image {
    let layer = Layer::new().file("large", &noise(7, 40 << 20), 0o644).compressed(Compression::None);
    Image::new().layer(layer)
}

#[test]
fn a_large_blob_comes_in_parts_at_once_and_goes_on_after_a_kill() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let name = large().push(&registry, "large", "1");
    let is_slow = std::sync::Arc::new(AtomicBool::new(true));
    let slow = is_slow.clone();
    let front = Front::start("127.0.0.1", registry.address(), move |request, _| {
        // Two parts come quickly; the others only when all may.
        let is_early = |range: &str| range.starts_with("bytes=0-") || range.starts_with("bytes=4194304-");
        match request.header("range").is_some_and(|range| !is_early(range)) && slow.load(Ordering::Relaxed) {
            true => Deed::Hang,
            false => Deed::Forward,
        }
    });
    let name = name.replace(registry.address(), front.address());
    let mut orlopd = Orlopd::start(&root);
    let pull = orlopd.orlopctl(["images", "pull", "--plain-http", &name]).deadline(DEADLINE).spawn();
    let parts = || -> Vec<String> {
        front.seen().iter().filter_map(|seen| seen.header("range").map(str::to_owned)).collect()
    };
    // More than one waits at the same time.
    orlop_tests::poll_until(DEADLINE, "several parts are asked for", || parts().len() >= 4);
    let ingested = || orlopd.orlopctl(["content", "active", "--format", "json"]).run().success().stdout;
    orlop_tests::poll_until(DEADLINE, "two parts are written", || ingested().contains("8388608"));
    orlopd.kill();
    pull.wait(DEADLINE);
    is_slow.store(false, Ordering::Relaxed);
    orlopd.restart();
    let before = parts().len();
    orlopd.orlopctl(["images", "pull", "--plain-http", &name]).deadline(DEADLINE).run().success();
    let asked = parts()[before..].to_vec();
    assert!(asked.iter().all(|range| !range.starts_with("bytes=0-")), "{asked:?}");
    orlopd.orlopctl(["images", "rm", "--sync", &name]).run().success();

    // One that knows no ranges sends all of it, once.
    let plain = Front::start("127.0.0.1", registry.address(), |_, _| Deed::Forward);
    let name = name.replace(front.address(), plain.address());
    let config = "[registry]\nranges = 0\n";
    let mut other = Orlopd::start_with(&root, config);
    other.orlopctl(["images", "pull", "--plain-http", &name]).deadline(DEADLINE).run().success();
    assert!(plain.seen().iter().all(|seen| seen.header("range").is_none()));
    other.stop();
    orlopd.stop();
}

/// A manager that has an image with a large layer.
fn with_large(root: &Root) -> (Orlopd, Image) {
    let archive = root.join("image.tar");
    let image = large();
    image.oci_archive(&archive, "example.org/large:1");
    let orlopd = Orlopd::start(root);
    orlopd.orlopctl(["images", "import"]).arg(&archive).deadline(DEADLINE).run().success();
    (orlopd, image)
}

#[test]
fn a_large_blob_is_sent_at_once_or_in_chunks_as_the_registry_takes_it() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let (mut orlopd, image) = with_large(&root);
    let layer = image.layers()[0].bytes.len();
    // Requests of any size; none above 33 MiB.
    for (n, lengths) in [vec![], vec![32 << 20, layer - (32 << 20)]].into_iter().enumerate() {
        let front =
            Front::start("127.0.0.1", registry.address(), move |request, _| match request.method.as_str() {
                "PUT" if n == 1 && request.length() > 33 << 20 => Deed::Answer(413, Vec::new(), Vec::new()),
                _ => Deed::Forward,
            });
        let target = format!("{}/large{n}:1", front.address());
        let words = ["images", "push", "--plain-http", &target, "example.org/large:1"];
        orlopd.orlopctl(words).deadline(DEADLINE).run().success();
        let patches: Vec<usize> = front
            .seen()
            .iter()
            .filter(|seen| seen.method == "PATCH")
            .map(orlop_tests::Request::length)
            .collect();
        assert_eq!(patches, lengths);
        // Sent at once it is not sent otherwise.
        let whole = front.seen().iter().filter(|seen| seen.length() == layer).count();
        assert_eq!(whole, 1);
        let got =
            registry.request("GET", &format!("/v2/large{n}/blobs/{}", image.layers()[0].digest), &[], &[]);
        assert_eq!(digest(&got.body), image.layers()[0].digest);
        // A neighbour of the same registry is asked to give it: nothing is sent.
        let again = format!("{}/next{n}:1", front.address());
        orlopd.orlopctl(["images", "pull", "--plain-http", &target]).deadline(DEADLINE).run().success();
        orlopd
            .orlopctl(["images", "push", "--plain-http", &again, &target])
            .deadline(DEADLINE)
            .run()
            .success();
        assert!(front.count("POST", "mount=sha256") >= 2, "{:?}", front.seen().len());
        assert_eq!(front.count("PATCH", ""), lengths.len());
        // And what is there is not sent either.
        let posts = front.count("POST", "");
        orlopd
            .orlopctl(["images", "push", "--plain-http", &again, &target])
            .deadline(DEADLINE)
            .run()
            .success();
        assert_eq!(front.count("POST", ""), posts);
        orlopd.orlopctl(["images", "rm", &target]).run().success();
    }
    orlopd.stop();
}

#[test]
fn a_large_blob_that_breaks_off_is_gone_on_with_or_sent_again() {
    let root = Root::new();
    let (mut orlopd, image) = with_large(&root);
    let layer = image.layers()[0].bytes.len();
    // It fails with the whole blob, once, and has kept a mebibyte of it; one knows how to go on with that, and one does not.
    let rest = format!("{}-{}", 1 << 20, layer - 1);
    for goes_on in [true, false] {
        let front = Front::start("127.0.0.1", "127.0.0.1:1", move |request, before| {
            let at = vec![("Location", "/v2/large/blobs/uploads/1".to_owned())];
            let is_whole = |seen: &orlop_tests::Request| seen.method == "PUT" && seen.length() == layer;
            match request.method.as_str() {
                "HEAD" => Deed::Answer(404, Vec::new(), Vec::new()),
                "POST" => Deed::Answer(202, at, Vec::new()),
                "PUT" if is_whole(request) && !before.iter().any(is_whole) => {
                    Deed::Answer(503, Vec::new(), Vec::new())
                }
                "GET" => {
                    let range = ("Range", format!("0-{}", (1 << 20) - 1));
                    Deed::Answer(204, [at, vec![range]].concat(), Vec::new())
                }
                "PATCH" if goes_on => Deed::Answer(202, at, Vec::new()),
                "PATCH" => Deed::Answer(405, Vec::new(), Vec::new()),
                _ => Deed::Answer(201, Vec::new(), Vec::new()),
            }
        });
        let target = format!("{}/large:1", front.address());
        let words = ["images", "push", "--plain-http", &target, "example.org/large:1"];
        orlopd.orlopctl(words).deadline(DEADLINE).run().success();
        let seen = front.seen();
        let sent: Vec<(&str, Option<&str>, usize)> = seen
            .iter()
            .filter(|seen| seen.length() > 1 << 20)
            .map(|seen| (seen.method.as_str(), seen.header("content-range"), seen.length()))
            .collect();
        let whole = ("PUT", None, layer);
        let mut expected = vec![whole, ("PATCH", Some(rest.as_str()), layer - (1 << 20))];
        expected.extend((!goes_on).then_some(whole));
        assert_eq!(sent, expected);
    }
    orlopd.stop();
}

#[test]
fn a_registry_that_fails_for_a_while_gets_the_blob_when_it_is_back() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let (mut orlopd, image) = with_large(&root);
    let layer = image.layers()[0].bytes.len();
    let is_whole = move |request: &orlop_tests::Request| request.method == "PUT" && request.length() == layer;
    let front = Front::start("127.0.0.1", registry.address(), move |request, before| {
        match is_whole(request) && before.iter().filter(|seen| is_whole(seen)).count() < 4 {
            true => Deed::Answer(503, Vec::new(), Vec::new()),
            false => Deed::Forward,
        }
    });
    let target = format!("{}/large:1", front.address());
    let words = ["images", "push", "--plain-http", &target, "example.org/large:1"];
    orlopd.orlopctl(words).deadline(DEADLINE).run().success();
    let got = registry.request("GET", &format!("/v2/large/blobs/{}", image.layers()[0].digest), &[], &[]);
    assert_eq!(digest(&got.body), image.layers()[0].digest);
    orlopd.stop();
}
