//! Images, from a registry on loopback and from archives.

use orlop_tests::image::Image;
use orlop_tests::{Daemon, Registry};

use super::side::{Line, Side, clients, compare};

/// Lines that say and do the same on dockerd.
const LINES: &[Line] = &[
    (0, "$docker images --format '{{.Repository}} {{.Tag}}'"),
    (0, "$docker images --quiet --no-trunc"),
    (0, "$docker tag bb other:1; $docker images --format '{{.Repository}} {{.Tag}}' | sort"),
    (
        0,
        "$docker images --quiet --no-trunc --filter reference='oth*'; $docker images --quiet --filter reference=nope",
    ),
    (
        0,
        "$docker inspect --type image --format '{{.Id}} {{json .Config.Cmd}} {{.Architecture}} {{json .RootFS.Layers}}' bb",
    ),
    (0, "$docker rmi other:1"),
    (1, "$docker rmi other:1"),
    (
        0,
        "$docker save bb > $dir/saved.tar; $docker rmi bb | grep -c Untagged; $docker load -q -i $dir/saved.tar",
    ),
    (0, "$docker history --no-trunc --format '{{.CreatedBy}}' bb"),
    (0, "$run --name uses bb true; $docker rmi bb; test $? = 1 && echo refused; $docker rm uses"),
    (0, "$docker image prune --force"),
    (
        0,
        "mkdir -p $dir/t/etc && echo x > $dir/t/etc/x && tar -C $dir/t -c . | $docker import --message said --change 'CMD [\"a\"]' --change 'ENV A=1' - \
         made:1 | cut -c1-7; $docker inspect --format '{{json .Config.Cmd}} {{json .Config.Env}} {{len .RootFS.Layers}}' made:1; $docker history --format \
         '{{.Comment}}' made:1; $docker create --name made made:1 >/dev/null && $docker cp made:/etc/x - | tar xO; $docker rm made; $docker rmi made:1 | grep -c \
         Untagged",
    ),
    (1, "echo garbage | $docker import - garbage; $docker inspect garbage"),
    (0, "$docker run --rm --network none $($docker images --quiet bb) echo by its number"),
];

#[test]
fn images_do_as_under_dockerd() {
    let debian = clients().pop().expect("a client");
    let (ours, reference) = (Side::orlopd_for(debian.clone()), Side::dockerd(debian));
    compare(&ours, &reference, LINES);
    ours.finish();
    reference.finish();
}

#[test]
fn images_are_pulled_and_pushed() {
    let side = Side::orlopd();
    let registry = Registry::start(&side.root);
    Image::two_layers().push(&registry, "two", "1");
    let name = format!("{}/two", registry.address());
    let said = side.says(&format!("$docker pull {name}:1"));
    assert!(said.contains(&format!("Status: Downloaded newer image for {name}:1")), "{said}");
    assert!(said.contains("Pull complete") && said.contains("Digest: sha256:"), "{said}");
    let said = side.says(&format!("$docker pull {name}:1"));
    assert!(said.contains(&format!("Status: Image is up to date for {name}:1")), "{said}");
    let out = side.run(&format!("$docker pull {name}:nope"));
    assert!(out.stderr.contains("manifest unknown"), "{}", out.stderr);
    let out = side.run("$docker pull 127.0.0.1:1/nope");
    assert!(out.code() != 0 && out.stderr.contains("refused"), "{}", out.stderr);
    side.says(&format!("$docker tag {name}:1 {name}:2 && $docker push {name}:2"));
    side.says(&format!("$docker rmi {name}:1 {name}:2"));
    side.says(&format!("$run --rm {name}:2 true"));
    drop(registry);
    side.finish();
}

#[test]
fn an_image_whose_name_a_pull_takes_keeps_its_others() {
    let side = Side::orlopd();
    let registry = Registry::start(&side.root);
    let name = format!("{}/two:1", registry.address());
    let pull = |image: Image| {
        image.push(&registry, "two", "1");
        side.says(&format!("$docker pull {name}"));
    };
    let nameless = || side.says("$docker images --quiet --filter dangling=true").lines().count();
    pull(Image::two_layers());
    pull(Image::busybox());
    assert_eq!(nameless(), 1);
    side.says("$docker image prune --force");
    pull(Image::two_layers());
    side.says(&format!("$docker tag {name} other && $docker image prune --force"));
    pull(Image::busybox());
    assert_eq!(nameless(), 0);
    assert!(side.says("$docker rmi other").contains("Deleted: "));
    drop(registry);
    side.finish();
}

#[test]
fn an_image_whose_name_is_taken_by_the_containerd_api_is_kept() {
    let mut side = Side::orlopd();
    side.says(
        "tar -C $dir -c busybox.tar | $docker import - other && $run --detach --name held bb sleep 1000",
    );
    let old = side.says("$docker images --quiet --no-trunc bb");
    let names = ["docker.io/library/other:latest", "docker.io/library/bb:latest"];
    let tag = ["--namespace", "moby", "images", "tag", "--force"].iter().chain(&names);
    side.manager().orlopctl(tag).run().success();
    assert_eq!(side.says("$docker images --quiet bb"), side.says("$docker images --quiet other"));
    assert_eq!(side.says("$docker images --quiet --no-trunc --filter dangling=true"), old);
    side.says(
        "$docker commit held again && $run --rm again true && $docker rmi again && $docker rm --force held",
    );
    // Neither is it old enough for this, nor for a day.
    side.says("$docker image prune --force --filter until=2020-01-02T03:04:05Z");
    side.says("$docker container prune --force --filter until=24h && $docker network prune --force --filter until=1h30m");
    side.says("$docker image prune --force --filter until=1ms");
    assert_eq!(side.says("$docker images --quiet --filter dangling=true"), "");
    side.finish();
}

#[test]
fn other_platforms_are_parts_of_an_image() {
    let side = Side::orlopd();
    let registry = Registry::start(&side.root);
    let images = [Image::two_layers(), Image::two_layers().architecture("arm64")];
    Image::push_index(&images, false, &registry, "many", "1");
    let name = format!("{}/many:1", registry.address());
    side.says(&format!("$docker pull --platform linux/arm64 {name}"));
    let shown = format!("$docker inspect --format '{{{{.Architecture}}}}' {name}");
    assert_eq!(side.says(&shown), "arm64");
    assert_eq!(side.says("$docker images --format '{{.Tag}}' --filter reference='*many*'"), "1");
    let parts = |wanted: &str| {
        let line = format!(
            "curl --silent --unix-socket $dir/docker.sock 'http://d/images/{name}/json?manifests=1' | grep -o '\"Available\":{wanted}' | wc -l"
        );
        side.says(&line)
    };
    assert_eq!((parts("true"), parts("false")), ("1".to_owned(), "1".to_owned()));
    side.says(&format!("$docker pull {name}"));
    assert_eq!(side.says(&shown), "amd64", "this machine's comes first");
    assert_eq!(parts("true"), "2");
    side.says(&format!("$docker save --output $dir/many.tar {name}"));
    assert_eq!(side.says("tar -xOf $dir/many.tar manifest.json | grep -o Config | wc -l"), "1");
    for image in &images {
        let blob = image.digest().replace(':', "/");
        side.says(&format!("tar -tf $dir/many.tar blobs/{blob}"));
    }
    side.says(&format!("$docker rmi {name}; $docker load --input $dir/many.tar; $run --rm {name} true"));
    drop(registry);
    side.finish();
}
