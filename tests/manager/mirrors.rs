//! Where registries are reached: mirrors, client certificates, headers, proxies and credentials, as hosts.toml and docker's
//! configuration say.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use orlop_proto::containerd::services::content::v1 as content;
use orlop_tests::{
    Authority, Daemon, Deed, Front, Guard, Image, Orlopd, PASSWORD, Registry, Root, TokenServer, USER,
    Variant,
};

use crate::client::Client;
use crate::ctl::DEADLINE;

/// An orlopd that reads hosts from `certs.d` below the root.
fn orlopd(root: &Root, env: &[(&str, &str)]) -> Orlopd {
    let config = format!("[registry]\nconfig_path = {:?}\nstall_timeout = 5\n", root.join("certs.d"));
    let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Orlopd::start_as(root, &config, &Variant { env, ..Variant::default() })
}

fn hosts(root: &Root, host: &str, text: &str) {
    let directory = root.join("certs.d").join(host);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("hosts.toml"), text).unwrap();
}

/// Pulls with our client, and removes what was pulled.
fn pull_and_remove(orlopd: &Orlopd, name: &str) {
    orlopd.orlopctl(["images", "pull", name]).deadline(DEADLINE).run().success();
    assert_eq!(orlopd.orlopctl(["images", "check", "-q"]).run().success().stdout, format!("{name}\n"));
    orlopd.orlopctl(["images", "rm", "--sync", name]).deadline(DEADLINE).run().success();
}

#[test]
fn a_mirror_serves_before_the_registry_and_the_registry_where_it_cannot() {
    let root = Root::new();
    let mut origin = Registry::start(&root);
    Image::two_layers().push(&origin, "library/two", "1");
    // Requests are for the mirror's content of docker.io, as containerd asks.
    let (mut mirror, mut orlopd) = (Registry::mirror(&root, origin.address()), orlopd(&root, &[]));
    let front = Front::start("127.0.0.1", mirror.address(), |_, _| Deed::Forward);
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", origin.address(), front.address());
    hosts(&root, "docker.io", &text);
    pull_and_remove(&orlopd, "docker.io/library/two:1");
    let seen = front.seen();
    assert!(seen.iter().all(|request| request.target.contains("ns=docker.io")), "{seen:?}");
    assert!(front.count("GET", "/blobs/") >= 2 && front.count("HEAD", "/manifests/1") == 1, "{seen:?}");
    // What the mirror asked the registry for, it has, and needs the registry no more.
    origin.stop();
    pull_and_remove(&orlopd, "docker.io/library/two:1");
    mirror.stop();

    // A mirror that is down, has nothing, fails, breaks off, or sends something else: the registry serves.
    let origin = Registry::start(&root);
    Image::two_layers().push(&origin, "library/two", "1");
    let deeds = [
        Deed::Answer(404, Vec::new(), Vec::new()),
        Deed::Answer(503, Vec::new(), Vec::new()),
        Deed::Answer(403, Vec::new(), b"{}".to_vec()),
        Deed::Cut(300),
        Deed::Corrupt,
    ];
    for deed in deeds {
        let shown = format!("{deed:?}");
        let bad =
            Front::start("127.0.0.1", origin.address(), move |request, _| match request.method.as_str() {
                // The tag's digest comes from the mirror; all else is bad.
                "HEAD" if matches!(deed, Deed::Corrupt) => Deed::Forward,
                _ => deed.clone(),
            });
        let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", origin.address(), bad.address());
        hosts(&root, "docker.io", &text);
        println!("{shown}");
        pull_and_remove(&orlopd, "docker.io/library/two:1");
        assert!(!bad.seen().is_empty());
    }
    let text = format!("server = \"http://{}\"\n[host.\"http://127.0.0.1:1\"]\n", origin.address());
    hosts(&root, "docker.io", &text);
    pull_and_remove(&orlopd, "docker.io/library/two:1");

    // One that may not say what a tag means is asked for content alone, and none of them takes a push.
    let front = Front::start("127.0.0.1", origin.address(), |_, _| Deed::Forward);
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        origin.address(),
        front.address()
    );
    hosts(&root, "docker.io", &text);
    orlopd.orlopctl(["images", "pull", "docker.io/library/two:1"]).deadline(DEADLINE).run().success();
    orlopd.orlopctl(["images", "tag", "docker.io/library/two:1", "docker.io/other/two:1"]).run().success();
    orlopd.orlopctl(["images", "push", "docker.io/other/two:1"]).deadline(DEADLINE).run().success();
    assert!(
        front.seen().iter().all(|request| !request.target.contains("/manifests/1")),
        "{:?}",
        front.seen()
    );
    assert_eq!(front.count("PUT", "") + front.count("POST", ""), 0);
    orlopd.stop();
}

#[test]
fn a_mirror_that_sends_wrong_bytes_is_left() {
    let root = Root::new();
    let origin = Registry::start(&root);
    let image = Image::two_layers();
    image.push(&origin, "library/two", "1");
    let mut orlopd = orlopd(&root, &[]);
    for (wrong_layers, snapshotter) in [(false, "overlayfs"), (true, "overlayfs"), (true, "erofs")] {
        let layers: Vec<String> = image.layers().iter().map(|layer| layer.digest.clone()).collect();
        // Its manifests are right, so that it is the one to be asked for blobs.
        let bad = Front::start("127.0.0.1", origin.address(), move |request, _| {
            let is_layer = layers.iter().any(|layer| request.target.contains(layer.as_str()));
            match request.target.contains("/blobs/") && is_layer == wrong_layers {
                true => Deed::Corrupt,
                false => Deed::Forward,
            }
        });
        let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", origin.address(), bad.address());
        hosts(&root, "docker.io", &text);
        let name = "docker.io/library/two:1";
        let pull = ["images", "pull", "--snapshotter", snapshotter, name];
        let pulled = orlopd.orlopctl(pull).deadline(DEADLINE).run().success();
        assert!(pulled.stderr.contains("asking elsewhere"), "{pulled}");
        let run = ["run", "--rm", "--snapshotter", snapshotter, name, "c", "cat", "/etc/changed"];
        assert_eq!(orlopd.orlopctl(run).run().success().stdout, "two\n");
        // The configuration comes first, and the layers side by side: nothing is asked for twice.
        let asked = bad.count("GET", "/blobs/");
        let most = if wrong_layers { 1 + image.layers().len() } else { 1 };
        assert!(asked > usize::from(wrong_layers) && asked <= most, "{:?}", bad.seen());
        orlopd.orlopctl(["images", "rm", "--sync", name]).deadline(DEADLINE).run().success();
    }
    orlopd.stop();
}

#[test]
fn a_start_that_is_none_is_fetched_again_and_nobody_blamed() {
    let root = Root::new();
    let origin = Registry::start(&root);
    let image = Image::two_layers();
    let name = image.push(&origin, "two", "1");
    let mut orlopd = orlopd(&root, &[]);
    let client = Client::new(orlopd.address(), orlopd.namespace());
    // What an earlier pull left, from whoever it had it: a start of each layer, and one that is as long as the whole.
    for (layer, share) in image.layers().iter().zip([2, 1]) {
        let wrong = vec![b'x'; layer.bytes.len() / share];
        let write = content::WriteContentRequest {
            action: content::WriteAction::Write.into(),
            r#ref: format!("layer-{}", layer.digest),
            total: layer.bytes.len() as i64,
            expected: layer.digest.clone(),
            data: wrong.into(),
            ..Default::default()
        };
        client.write(vec![write]).unwrap();
    }
    let pulled = orlopd.orlopctl(["images", "pull", &name]).deadline(DEADLINE).run().success();
    assert!(pulled.stderr.contains("fetching it from the start"), "{pulled}");
    let run = ["run", "--rm", &name, "c", "cat", "/etc/changed"];
    assert_eq!(orlopd.orlopctl(run).run().success().stdout, "two\n");
    orlopd.stop();
}

#[test]
fn a_registry_that_lets_in_by_certificate() {
    let root = Root::new();
    let directory = root.join("certificates");
    fs::create_dir(&directory).unwrap();
    let authority = Authority::new(&directory);
    let plain = Registry::start(&root);
    let secure = plain.for_known_clients(&root, &authority);
    let mut orlopd = orlopd(&root, &[]);
    let name = Image::two_layers().push(&plain, "two", "1").replace(plain.address(), secure.address());
    let (certificate, key) = authority.client();
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let ca = authority.certificate().display().to_string();
    let server = format!("server = \"https://{}\"\nca = {ca:?}\n", secure.address());
    hosts(&root, secure.address(), &server);
    let refused = orlopd.orlopctl(["images", "pull", &name]).deadline(DEADLINE).run().failure();
    assert!(refused.stderr.contains(secure.address()), "{refused}");

    hosts(&root, secure.address(), &format!("{server}client = [[{certificate:?}, {key:?}]]\n"));
    pull_and_remove(&orlopd, &name);
    // Everything went over HTTP/2, which TLS lets both sides agree on.
    let log = secure.access_log();
    assert!(log.iter().any(|line| line.contains("GET /v2/two/blobs/")), "{log:?}");
    assert!(
        log.iter().filter(|line| line.contains("/v2/two/")).all(|line| line.contains("HTTP/2.0")),
        "{log:?}"
    );

    let both = root.join("both.pem");
    fs::write(&both, [fs::read(&certificate).unwrap(), fs::read(&key).unwrap()].concat()).unwrap();
    hosts(&root, secure.address(), &format!("{server}client = {both:?}\n"));
    pull_and_remove(&orlopd, &name);

    // Of several, the one whose authority the registry trusts, wherever it stands.
    let directory = root.join("strangers");
    fs::create_dir(&directory).unwrap();
    let stranger = Authority::named(&directory, "another authority");
    let (unknown, unknown_key) = stranger.client();
    let (unknown, unknown_key) = (unknown.display().to_string(), unknown_key.display().to_string());
    let of_stranger = format!("[{unknown:?}, {unknown_key:?}]");
    hosts(&root, secure.address(), &format!("{server}client = [{of_stranger}]\n"));
    let refused = orlopd.orlopctl(["images", "pull", &name]).deadline(DEADLINE).run().failure();
    assert!(refused.stderr.contains(secure.address()), "{refused}");
    for order in [format!("[{of_stranger}, {both:?}]"), format!("[{both:?}, {of_stranger}]")] {
        hosts(&root, secure.address(), &format!("{server}client = {order}\n"));
        pull_and_remove(&orlopd, &name);
    }

    // As docker lays it out, and as flags.
    let place = root.join("certs.d").join(secure.address());
    fs::remove_file(place.join("hosts.toml")).unwrap();
    let pairs = [
        (&ca, "ca.crt"),
        (&unknown, "a.cert"),
        (&unknown_key, "a.key"),
        (&certificate, "client.cert"),
        (&key, "client.key"),
    ];
    for (from, to) in pairs {
        fs::copy(from, place.join(to)).unwrap();
    }
    pull_and_remove(&orlopd, &name);
    fs::remove_dir_all(&place).unwrap();
    let flags = ["--tlscacert", &ca, "--tlscert", &certificate, "--tlskey", &key];
    let words = [&["images", "pull"][..], &flags, &[&name]].concat();
    orlopd.orlopctl(words).deadline(DEADLINE).run().success();
    orlopd.stop();
}

#[test]
fn headers_go_to_the_host_that_they_are_for_and_credentials_nowhere_else() {
    let root = Root::new();
    let registry = Registry::start(&root);
    Image::two_layers().push(&registry, "two", "1");
    // Another host, by name and by address; and one on the same address, which another port makes another host.
    let strangers = ["localhost", "127.0.0.2", "127.0.0.1"]
        .map(|host| Front::start(host, registry.address(), |_, _| Deed::Forward));
    for stranger in &strangers {
        let target = stranger.address().to_owned();
        let front = Front::start("127.0.0.1", registry.address(), move |request, _| {
            if request.header("authorization").is_none() {
                let challenge = ("WWW-Authenticate", "Basic realm=\"x\"".to_owned());
                return Deed::Answer(401, vec![challenge], Vec::new());
            }
            match request.target.contains("/blobs/") && request.method == "GET" {
                true => {
                    let location = ("Location", format!("http://{target}{}", request.target));
                    Deed::Answer(307, vec![location], Vec::new())
                }
                false => Deed::Forward,
            }
        });
        let mut orlopd = orlopd(&root, &[]);
        let text = format!(
            "server = \"http://{0}\"\n[host.\"http://{0}\"]\n[host.\"http://{0}\".header]\nX-Secret = \"swordfish\"\n",
            front.address()
        );
        hosts(&root, front.address(), &text);
        let name = format!("{}/two:1", front.address());
        let user = format!("{USER}:{PASSWORD}");
        orlopd.orlopctl(["images", "pull", "--user", &user, &name]).deadline(DEADLINE).run().success();
        let own = front.seen();
        assert!(own.iter().all(|request| request.header("x-secret") == Some("swordfish")), "{own:?}");
        let seen = stranger.seen();
        assert!(seen.len() >= 3, "{seen:?}");
        for request in &seen {
            assert_eq!(request.header("authorization"), None, "{request:?}");
            assert_eq!(request.header("x-secret"), None, "{request:?}");
        }
        orlopd.stop();
    }
}

#[test]
fn who_we_are_sent_to_cannot_ask_for_a_password() {
    let root = Root::new();
    let registry = Registry::start(&root);
    Image::two_layers().push(&registry, "two", "1");
    let thief =
        Front::start("127.0.0.2", registry.address(), |_, _| Deed::Answer(200, Vec::new(), b"{}".to_vec()));
    let realm = format!("Bearer realm=\"http://{}/token\"", thief.address());
    let middle = Front::start("127.0.0.2", registry.address(), move |_, _| {
        Deed::Answer(401, vec![("WWW-Authenticate", realm.clone())], Vec::new())
    });
    let target = middle.address().to_owned();
    let front =
        Front::start("127.0.0.1", registry.address(), move |request, _| match request.method.as_str() {
            "GET" if request.target.contains("/blobs/") => Deed::Answer(
                302,
                vec![("Location", format!("http://{target}{}", request.target))],
                Vec::new(),
            ),
            _ => Deed::Forward,
        });
    let mut orlopd = orlopd(&root, &[]);
    let name = format!("{}/two:1", front.address());
    let out = orlopd.orlopctl(["images", "pull", "--user", "a:b", &name]).deadline(DEADLINE).run().failure();
    assert!(out.stderr.contains("401"), "{out}");
    assert!(!middle.seen().is_empty());
    assert_eq!(thief.seen().len(), 0, "{:?}", thief.seen());
    orlopd.stop();
}

#[test]
fn a_mirror_never_learns_what_the_registry_was_told() {
    let root = Root::new();
    let registry = Registry::start(&root);
    Image::two_layers().push(&registry, "two", "1");
    let ask =
        |request: &orlop_tests::Request, _: &[orlop_tests::Request]| match request.header("authorization") {
            None => Deed::Answer(401, vec![("WWW-Authenticate", "Basic realm=\"x\"".to_owned())], Vec::new()),
            Some(_) => Deed::Forward,
        };
    let origin = Front::start("127.0.0.1", registry.address(), ask);
    // It has the manifests and not the layers, so that both serve one pull.
    let mirror = Front::start("127.0.0.1", registry.address(), |request, _| {
        match request.target.contains("/blobs/") {
            true => Deed::Answer(404, Vec::new(), Vec::new()),
            false => Deed::Forward,
        }
    });
    let mut orlopd = orlopd(&root, &[]);
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", origin.address(), mirror.address());
    hosts(&root, "registry.example", &text);
    let words = ["images", "pull", "--user", "a:b", "registry.example/two:1"];
    orlopd.orlopctl(words).deadline(DEADLINE).run().success();
    assert!(origin.seen().iter().any(|request| request.header("authorization").is_some()));
    assert!(
        mirror.seen().iter().all(|request| request.header("authorization").is_none()),
        "{:?}",
        mirror.seen()
    );
    orlopd.stop();
}

#[test]
fn proxies_of_the_environment_are_used() {
    let root = Root::new();
    let directory = root.join("certificates");
    fs::create_dir(&directory).unwrap();
    let authority = Authority::new(&directory);
    let tokens = TokenServer::start(&authority);
    let plain = Registry::start(&root);
    let secure = plain.guarded(&root, &authority, &Guard::Open, &tokens);
    Image::two_layers().push(&plain, "two", "1");
    let http = Front::start("127.0.0.1", plain.address(), |_, _| Deed::Forward);
    let https = Front::start("127.0.0.1", secure.address(), |_, _| Deed::Forward);
    let url = |front: &Front| format!("http://{}", front.address());
    let env = [("HTTP_PROXY", &*url(&http)), ("HTTPS_PROXY", &url(&https)), ("NO_PROXY", "direct.example")];
    let mut orlopd = orlopd(&root, &env);
    hosts(&root, "plain.example", "server = \"http://plain.example\"\n");
    hosts(&root, "secure.example", "server = \"https://secure.example\"\nskip_verify = true\n");
    hosts(&root, "direct.example", "server = \"http://direct.example\"\n");
    pull_and_remove(&orlopd, "plain.example/two:1");
    assert!(http.count("GET", "http://plain.example/v2/two/blobs/") >= 3, "{:?}", http.seen());
    pull_and_remove(&orlopd, "secure.example/two:1");
    assert!(https.count("CONNECT", "secure.example:443") >= 1, "{:?}", https.seen());
    let before = http.seen().len();
    // No name can be found here without a proxy; and loopback needs none.
    orlopd.orlopctl(["images", "pull", "direct.example/two:1"]).deadline(DEADLINE).run().failure();
    pull_and_remove(&orlopd, &format!("{}/two:1", plain.address()));
    assert_eq!(http.seen().len(), before);
    orlopd.stop();
}

/// A directory with a `config.json`, and in it a program that keeps credentials.
fn docker_config(directory: &Path, text: &str) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("config.json"), text).unwrap();
    let program = directory.join("docker-credential-keeper");
    let script = "#!/bin/sh\nread -r server\necho \"$1 $server\" >>\"$(dirname \"$0\")/asked\"\n\
        case $server in none*) echo 'credentials not found in native keychain'; exit 1;; esac\n\
        printf '{\"ServerURL\":\"%s\",\"Username\":\"orlop\",\"Secret\":\"open sesame\"}' \"$server\"\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn credentials_come_from_dockers_configuration_and_its_programs() {
    let root = Root::new();
    let directory = root.join("certificates");
    fs::create_dir(&directory).unwrap();
    let authority = Authority::new(&directory);
    let tokens = TokenServer::start(&authority);
    let plain = Registry::start(&root);
    let mut orlopd = orlopd(&root, &[]);
    for (guard, n) in [(Guard::Password, 0), (Guard::Token, 1)] {
        let guarded = plain.guarded(&root, &authority, &guard, &tokens);
        let host = guarded.address().to_owned();
        let ca = authority.certificate();
        hosts(&root, &host, &format!("server = \"https://{host}\"\nca = {ca:?}\n"));
        let name = Image::two_layers().push(&plain, "two", "1").replace(plain.address(), &host);
        let kept = root.join(format!("docker{n}"));
        let path = format!("{}:{}", kept.display(), std::env::var("PATH").unwrap_or_default());
        // "orlop:open sesame"
        let auth = "b3Jsb3A6b3BlbiBzZXNhbWU=";
        let texts = [
            (format!(r#"{{"auths": {{"{host}": {{"auth": "{auth}"}}}}}}"#), false),
            (format!(r#"{{"auths": {{"https://{host}/v1/": {{"auth": "{auth}"}}}}}}"#), false),
            (format!(r#"{{"credHelpers": {{"{host}": "keeper"}}}}"#), true),
            (r#"{"credsStore": "keeper"}"#.to_owned(), true),
        ];
        for (text, is_asked) in texts {
            docker_config(&kept, &text);
            let cmd =
                orlopd.orlopctl(["images", "pull", &name]).env("DOCKER_CONFIG", &kept).env("PATH", &path);
            cmd.deadline(DEADLINE).run().success();
            let asked = fs::read_to_string(kept.join("asked")).unwrap_or_default();
            assert_eq!(asked.contains(&format!("get {host}\n")), is_asked, "{text}: {asked}");
            // A push takes them too.
            let other = format!("{host}/other:1");
            orlopd.orlopctl(["images", "tag", "--force", &name, &other]).run().success();
            let cmd =
                orlopd.orlopctl(["images", "push", &other]).env("DOCKER_CONFIG", &kept).env("PATH", &path);
            cmd.deadline(DEADLINE).run().success();
            orlopd.orlopctl(["images", "rm", "--sync", &name, &other]).run().success();
        }
        docker_config(&kept, r#"{"credsStore": "absent"}"#);
        let cmd = orlopd.orlopctl(["images", "pull", &name]).env("DOCKER_CONFIG", &kept).env("PATH", &path);
        let out = cmd.deadline(DEADLINE).run().failure();
        assert!(
            out.stderr.contains("warning: run docker-credential-absent") && out.stderr.contains("401"),
            "{out}"
        );
    }
    orlopd.stop();
}
