//! Registries that want to know who is asking, mirrors, and what registries say without a pull.

use std::io::{Read, Write};
use std::net::TcpListener;

use orlop_tests::{Authority, Guard, Image, PASSWORD, Registry, TokenServer, USER, binaries};

use super::side::{Side, clients};

/// Logs in to a registry behind a guard, pushes, pulls and asks, logs out, and is refused.
fn comes_and_goes(client: std::path::PathBuf, guard: &Guard) {
    let side = Side::orlopd_for(client);
    let open = Registry::start(&side.root);
    let directory = side.root.join("authority");
    std::fs::create_dir(&directory).expect("making a directory");
    let authority = Authority::new(&directory);
    let tokens = TokenServer::start(&authority);
    let closed = open.guarded(&side.root, &authority, guard, &tokens);
    let host = closed.address();
    let login = |password: &str| {
        side.run(&format!("echo {password:?} | $docker login --username {USER} --password-stdin {host}"))
    };
    let out = login("wrong");
    assert!(out.code() != 0 && !out.stdout.contains("Succeeded"), "{out}");
    let out = side.run(&format!("$docker tag bb {host}/app:1; $docker push {host}/app:1"));
    assert_ne!(out.code(), 0, "{out}");
    let out = login(PASSWORD);
    assert!(out.code() == 0 && out.stdout.contains("Login Succeeded"), "{out}");
    side.says(&format!("$docker push {host}/app:1 && $docker rmi {host}/app:1 && $docker pull {host}/app:1"));
    side.says(&format!("$run --rm {host}/app:1 true && $docker rmi {host}/app:1"));
    let out = side.run(&format!("$docker logout {host} && $docker pull {host}/app:1"));
    assert_ne!(out.code(), 0, "{out}");
    drop((open, closed, tokens));
    side.finish();
}

#[test]
fn a_user_with_a_password_comes_and_goes() {
    for client in clients() {
        comes_and_goes(client, &Guard::Password);
    }
}

#[test]
fn a_user_with_a_token_comes_and_goes() {
    comes_and_goes(binaries::system("docker"), &Guard::Token);
}

#[test]
fn a_registry_is_asked_without_a_pull() {
    let side = Side::orlopd();
    let registry = Registry::start(&side.root);
    let images = [Image::two_layers(), Image::two_layers().architecture("arm64")];
    Image::push_index(&images, false, &registry, "many", "1");
    Image::two_layers().push(&registry, "one", "1");
    let curl = |name: &str| {
        let host = registry.address();
        side.run(&format!(
            "curl --silent --unix-socket $dir/docker.sock http://d/distribution/{host}/{name}/json"
        ))
        .stdout
    };
    let many = curl("many:1");
    assert!(many.contains("arm64") && many.contains("amd64"), "{many}");
    let one = curl("one:1");
    assert!(one.contains("amd64") && !one.contains("arm64"), "{one}");
    assert!(curl("none:1").contains("manifest unknown"));
    drop(registry);
    side.finish();
}

#[test]
fn a_mirror_is_asked_first() {
    let registry_root = orlop_tests::Root::new();
    let registry = Registry::start(&registry_root);
    Image::two_layers().push(&registry, "library/mirrored", "1");
    let text = format!(r#"{{"registry-mirrors": ["http://{}"]}}"#, registry.address());
    let root = orlop_tests::Root::new();
    let path = root.join("daemon.json");
    std::fs::write(&path, text).expect("writing daemon.json");
    let side = Side::orlopd_on_host(root, binaries::system("docker"), &format!("daemon_json = {path:?}\n"));
    let said = side.says("$docker pull mirrored:1 && $run --rm mirrored:1 true; $docker images --format '{{.Repository}}' mirrored");
    assert!(said.contains("Downloaded newer image for mirrored:1") && said.ends_with("mirrored"), "{said}");
    assert_eq!(
        side.says("$docker info --format '{{.RegistryConfig.Mirrors}}'"),
        format!("[http://{}]", registry.address())
    );
    drop(registry);
    side.finish();
    registry_root.assert_clean();
}

#[test]
fn a_registry_is_searched() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for stream in listener.incoming().map_while(Result::ok).take(2) {
            let mut stream = stream;
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let line =
                String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or_default().to_owned();
            asked.push(line);
            let body = r#"{"num_results": 2, "results": [{"name": "a/word", "description": "one", "star_count": 5},
                {"name": "b/word", "description": null, "star_count": 1, "is_official": true}]}"#;
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            // A client that goes away misses it.
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
        asked
    });
    let side = Side::orlopd();
    let line = format!("$docker search --format '{{{{.Name}}}} {{{{.StarCount}}}}' {address}/word");
    assert_eq!(side.says(&line), "a/word 5\nb/word 1");
    let line = format!("$docker search --filter stars=2 --limit 7 --format '{{{{.Name}}}}' {address}/word");
    assert_eq!(side.says(&line), "a/word");
    let asked = server.join().expect("the server");
    assert!(asked[0].contains("/v1/search?q=word&n=25") && asked[1].contains("n=7"), "{asked:?}");
    let out = side.run("$docker search 127.0.0.1:1/word");
    assert!(out.code() != 0 && out.stderr.contains("refused"), "{out}");
    side.finish();
}
