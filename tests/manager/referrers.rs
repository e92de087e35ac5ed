//! What refers to an image: listed by the registry or under a tag, fetched with the image, and kept as long as it.

use std::fs;
use std::pin::pin;
use std::time::Duration;

use orlop_proto::containerd::types::transfer::OciRegistry;
use orlop_proto::orlop::admin::v1::{self as admin, admin_client::AdminClient};
use orlop_tests::image::digest;
use orlop_tests::{Daemon, Deed, Front, Image, Orlopd, PASSWORD, Registry, Root, USER, Variant, poll_until};
use serde_json::{Value, json};
use tonic::Status;

use crate::client::Client;
use crate::ctl::DEADLINE;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Something that refers to a manifest, at the registry.
struct Artifact {
    digest: String,
    /// As a list has it.
    listed: Value,
}

/// Puts text of a type beside an image, as something about one of its manifests.
fn put(registry: &Registry, name: &str, kind: &str, about: (&str, usize), text: &str) -> Artifact {
    let config = json!({"mediaType": EMPTY, "digest": registry.put_blob(name, b"{}"), "size": 2});
    let layer = registry.put_blob(name, text.as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": config,
        "layers": [{"mediaType": kind, "digest": layer, "size": text.len()}],
        "subject": {"mediaType": MANIFEST, "digest": about.0, "size": about.1},
    })
    .to_string();
    let digest = registry.put_manifest(name, &digest(manifest.as_bytes()), MANIFEST, manifest.as_bytes());
    let listed = json!({
        "mediaType": MANIFEST, "digest": digest, "size": manifest.len(), "artifactType": kind,
        "annotations": {"says": text},
    });
    Artifact { digest, listed }
}

fn list(artifacts: &[&Artifact]) -> Vec<u8> {
    let listed: Vec<&Value> = artifacts.iter().map(|artifact| &artifact.listed).collect();
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}).to_string().into_bytes()
}

/// Puts a list where registries without an interface for it have one.
fn put_list(registry: &Registry, name: &str, subject: &str, artifacts: &[&Artifact]) {
    registry.put_manifest(name, &subject.replace(':', "-"), INDEX, &list(artifacts));
}

fn referrers(daemon: &Orlopd, words: &[&str]) -> Vec<Value> {
    let words = [&["--format", "json", "images", "referrers"], words].concat();
    let output = daemon.orlopctl(words).deadline(DEADLINE).run().success().stdout;
    serde_json::from_str::<Value>(&output).unwrap().as_array().unwrap().clone()
}

fn digests(found: &[Value]) -> Vec<(&str, &str)> {
    found.iter().map(|one| (one["subject"].as_str().unwrap(), one["digest"].as_str().unwrap())).collect()
}

fn has(daemon: &Orlopd, digest: &str) -> bool {
    daemon.orlopctl(["content", "ls", "-q"]).run().success().stdout.contains(digest)
}

#[test]
fn what_refers_to_an_image_comes_with_it_and_goes_with_it() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let images = [Image::two_layers(), Image::two_layers().architecture("arm64")];
    let name = Image::push_index(&images, false, &registry, "two", "1");
    let answer = registry.request("GET", "/v2/two/manifests/1", &[("Accept", INDEX)], &[]);
    let (index, size) = (digest(&answer.body), answer.body.len());
    let (own, other) = (images[0].digest(), images[1].digest());
    let signature = put(&registry, "two", "application/vnd.test.signature", (&index, size), "signed");
    let parts = put(&registry, "two", "application/vnd.test.parts", (&own, 1), "all parts");
    let elsewhere = put(&registry, "two", "application/vnd.test.parts", (&other, 1), "other parts");
    put_list(&registry, "two", &index, &[&signature]);
    put_list(&registry, "two", &own, &[&parts]);
    put_list(&registry, "two", &other, &[&elsewhere]);
    let mut daemon = Orlopd::start(&root);

    let found = referrers(&daemon, &[&name]);
    let expected = [(index.as_str(), signature.digest.as_str()), (&own, &parts.digest)];
    assert_eq!(digests(&found), expected);
    assert_eq!(found[0]["artifact_type"], "application/vnd.test.signature");
    assert_eq!(found[0]["annotations"]["says"], "signed");
    let found = referrers(&daemon, &["--platform", "linux/arm64", &name]);
    assert_eq!(digests(&found)[1], (other.as_str(), elsewhere.digest.as_str()));
    assert_eq!(referrers(&daemon, &["--all-platforms", &name]).len(), 3);
    let found = referrers(&daemon, &["--artifact-type", "application/vnd.test.parts", &name]);
    assert_eq!(digests(&found), [(own.as_str(), parts.digest.as_str())]);
    let table = daemon.orlopctl(["images", "referrers", &name]).run().success().stdout;
    assert!(table.contains(&format!("{} application/vnd.test.signature ", signature.digest)), "{table}");
    // Nothing was stored.
    assert_eq!(daemon.orlopctl(["content", "ls", "-q"]).run().success().stdout, "");

    daemon.orlopctl(["images", "pull", &name]).deadline(DEADLINE).run().success();
    assert!(!has(&daemon, &signature.digest));
    daemon.orlopctl(["images", "pull", "--referrers", &name]).deadline(DEADLINE).run().success();
    daemon.orlopctl(["gc"]).run().success();
    for one in [&signature.digest, &digest(b"signed"), &parts.digest, &digest(b"all parts")] {
        assert!(has(&daemon, one), "{one}");
    }
    assert!(!has(&daemon, &elsewhere.digest));
    daemon.orlopctl(["fsck"]).run().success();
    daemon.orlopctl(["images", "rm", "--sync", &name]).deadline(DEADLINE).run().success();
    assert_eq!(daemon.orlopctl(["content", "ls", "-q"]).run().success().stdout, "");
    daemon.stop();
}

#[test]
fn a_registry_lists_referrers_page_by_page() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let image = Image::two_layers();
    image.push(&registry, "two", "1");
    let subject = image.digest();
    let all: Vec<Artifact> = ["one", "two", "three"]
        .iter()
        .map(|text| put(&registry, "two", &format!("application/vnd.test.{text}"), (&subject, 1), text))
        .collect();
    let pages: Vec<Vec<u8>> = all.iter().map(|artifact| list(&[artifact])).collect();
    let path = format!("/v2/two/referrers/{subject}");
    let front = Front::start("127.0.0.1", registry.address(), move |request, _| {
        let Some(rest) = request.target.strip_prefix(path.as_str()) else { return Deed::Forward };
        if request.header("authorization").is_none() {
            let challenge = ("WWW-Authenticate", "Basic realm=\"x\"".to_owned());
            return Deed::Answer(401, vec![challenge], Vec::new());
        }
        let page = rest.rsplit_once("page=").map_or(0, |(_, page)| page.parse::<usize>().unwrap());
        let mut headers = vec![("Content-Type", INDEX.to_owned())];
        if page + 1 < pages.len() {
            // The way on may be said as a whole address; whom it names is not asked.
            let link = format!("<http://registry.invalid{path}?page={}>; rel=\"next\"", page + 1);
            headers.push(("Link", link));
        }
        Deed::Answer(200, headers, pages[page].clone())
    });
    let name = format!("{}/two:1", front.address());
    let user = format!("{USER}:{PASSWORD}");
    let mut daemon = Orlopd::start(&root);
    let found = referrers(&daemon, &["--user", &user, &name]);
    let expected: Vec<(&str, &str)> =
        all.iter().map(|artifact| (subject.as_str(), artifact.digest.as_str())).collect();
    assert_eq!(digests(&found), expected);
    // A filter is the registry's to know, and ours.
    let found = referrers(&daemon, &["--user", &user, "--artifact-type", "application/vnd.test.two", &name]);
    assert_eq!(digests(&found), expected[1..2]);
    // Once more with the password.
    assert_eq!(front.count("GET", "artifactType=application%2Fvnd.test.two"), 2);
    // Nothing is asked of the tag.
    assert_eq!(front.count("GET", &subject.replace(':', "-")), 0);
    daemon.stop();
}

#[test]
fn lists_of_other_images_and_without_end_are_refused() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let image = Image::two_layers();
    let name = image.push(&registry, "two", "1");
    let mut daemon = Orlopd::start(&root);
    // No list is an empty list.
    assert_eq!(referrers(&daemon, &[&name]), Vec::<Value>::new());
    let other = digest(b"another");
    let stray = put(&registry, "two", "application/vnd.test.stray", (&other, 1), "stray");
    put_list(&registry, "two", &image.digest(), &[&stray]);
    let refused =
        daemon.orlopctl(["images", "pull", "--referrers", &name]).deadline(DEADLINE).run().failure();
    let why =
        format!("fetch referrer {}: the registry says that it refers to {}", stray.digest, image.digest());
    assert!(refused.stderr.contains(&why), "{refused}");
    // What it has was not fetched.
    assert_eq!(registry.requests("GET", &digest(b"stray")), 0);
    daemon.orlopctl(["gc"]).run().success();
    assert!(!has(&daemon, &stray.digest));

    let page = list(&[&stray]);
    let front = Front::start("127.0.0.1", registry.address(), move |request, _| {
        match request.target.contains("/referrers/") {
            true => {
                let link = ("Link", "<?again>; rel=\"next\"".to_owned());
                Deed::Answer(200, vec![("Content-Type", INDEX.to_owned()), link], page.clone())
            }
            false => Deed::Forward,
        }
    });
    let name = format!("{}/two:1", front.address());
    let refused = daemon.orlopctl(["images", "referrers", &name]).deadline(DEADLINE).run().failure();
    assert!(refused.stderr.contains("the list comes in more than 64 parts"), "{refused}");
    daemon.stop();
    let left: Vec<_> = fs::read_dir(daemon.root().join("ingest")).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_a_mirror_knows_nothing_of_or_has_wrong_comes_from_the_next_place() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let image = Image::two_layers();
    let name = image.push(&registry, "two", "1");
    let subject = image.digest();
    let signature = put(&registry, "two", "application/vnd.test.signature", (&subject, 1), "signed");
    put_list(&registry, "two", &subject, &[&signature]);
    let blob = digest(b"signed");
    let wrong = format!("/blobs/{blob}");
    // It makes lists of what it has itself, which is nothing.
    let mirror =
        Front::start("127.0.0.1", registry.address(), move |request, _| match request.target.as_str() {
            target if target.contains("/referrers/") => {
                Deed::Answer(200, vec![("Content-Type", INDEX.to_owned())], list(&[]))
            }
            target if target.contains(&wrong) => Deed::Corrupt,
            _ => Deed::Forward,
        });
    let place = root.join("certs.d").join(registry.address());
    fs::create_dir_all(&place).unwrap();
    let hosts =
        format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", registry.address(), mirror.address());
    fs::write(place.join("hosts.toml"), hosts).unwrap();
    let config = format!("[registry]\nconfig_path = {:?}\n", root.join("certs.d"));
    let mut daemon = Orlopd::start_as(&root, &config, &Variant::default());
    let found = referrers(&daemon, &[&name]);
    assert_eq!(digests(&found), [(subject.as_str(), signature.digest.as_str())]);
    assert_eq!(mirror.count("GET", "/referrers/"), 1);
    daemon.orlopctl(["images", "pull", "--referrers", &name]).deadline(DEADLINE).run().success();
    assert!(has(&daemon, &blob));
    assert_eq!(mirror.count("GET", &blob), 1);
    daemon.stop();
}

#[test]
fn a_client_that_goes_leaves_no_lease() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let image = Image::two_layers();
    let name = image.push(&registry, "two", "1");
    let signature = put(&registry, "two", "application/vnd.test.signature", (&image.digest(), 1), "signed");
    put_list(&registry, "two", &image.digest(), &[&signature]);
    let blob = digest(b"signed");
    let wanted = blob.clone();
    let front = Front::start("127.0.0.1", registry.address(), move |request, _| {
        if request.target.contains(&wanted) { Deed::Hang } else { Deed::Forward }
    });
    let mut daemon = Orlopd::start(&root);
    daemon.orlopctl(["images", "pull", &name]).deadline(DEADLINE).run().success();
    let client = Client::new(daemon.address(), daemon.namespace());
    let reference = format!("{}/two:1", front.address());
    let image = Some(OciRegistry { reference, ..OciRegistry::default() });
    let request = client.request(admin::ReferrersRequest { image, fetch: true, ..Default::default() });
    let gone = client.call(async |channel| {
        let mut service = AdminClient::new(channel);
        let mut call = pin!(service.referrers(request));
        loop {
            match tokio::time::timeout(Duration::from_millis(20), call.as_mut()).await {
                Ok(answer) => return answer,
                Err(_) if front.count("GET", &blob) > 0 => return Err(Status::cancelled("gone")),
                Err(_) => {}
            }
        }
    });
    assert_eq!(gone.unwrap_err().message(), "gone");
    let leases = || daemon.orlopctl(["leases", "ls", "-q"]).run().success().stdout;
    assert_ne!(leases(), "");
    drop(client);
    poll_until(DEADLINE, "the lease ends", || leases().is_empty());
    daemon.stop();
}

#[test]
fn what_is_pushed_is_on_the_list_of_what_it_refers_to() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let subject = digest(b"somebody's image");
    let all = ["one", "two"]
        .map(|text| put(&registry, "from", &format!("application/vnd.test.{text}"), (&subject, 1), text));
    let mut daemon = Orlopd::start(&root);
    let push = |to: &str, artifact: &Artifact| {
        let local = format!("{}/from@{}", registry.address(), artifact.digest);
        daemon.orlopctl(["images", "pull", "--no-unpack", &local]).deadline(DEADLINE).run().success();
        daemon.orlopctl(["images", "push", to, &local]).deadline(DEADLINE).run().success();
    };
    let to = format!("{}/to", registry.address());
    push(&format!("{to}:one"), &all[0]);
    push(&format!("{to}:two"), &all[1]);
    push(&format!("{to}:again"), &all[0]);
    let target = format!("/v2/to/manifests/{}", subject.replace(':', "-"));
    let answer = registry.request("GET", &target, &[("Accept", INDEX)], &[]);
    let list: Value = serde_json::from_slice(&answer.body).unwrap();
    let mut expected = all.each_ref().map(|artifact| artifact.listed.clone());
    for listed in &mut expected {
        listed.as_object_mut().unwrap().remove("annotations");
    }
    assert_eq!(list["manifests"], json!(expected));

    // A registry that says that it keeps the list is believed.
    let keeper = subject.clone();
    let front = Front::start("127.0.0.1", registry.address(), move |request, _| {
        match request.method == "PUT" && request.target.contains("/manifests/") {
            true => Deed::Answer(201, vec![("OCI-Subject", keeper.clone())], Vec::new()),
            false => Deed::Forward,
        }
    });
    push(&format!("{}/keeper:one", front.address()), &all[0]);
    assert_eq!(front.count("PUT", "/manifests/"), 1);

    // Nothing takes the place of what is no list.
    registry.put_manifest("other", &subject.replace(':', "-"), MANIFEST, &no_list(&registry));
    let refused = daemon
        .orlopctl([
            "images",
            "push",
            &format!("{}/other:one", registry.address()),
            &format!("{}/from@{}", registry.address(), all[0].digest),
        ])
        .deadline(DEADLINE)
        .run()
        .failure();
    assert!(refused.stderr.contains("is not that of a list"), "{refused}");
    daemon.stop();
}

/// A manifest that is no list.
fn no_list(registry: &Registry) -> Vec<u8> {
    let config = json!({"mediaType": EMPTY, "digest": registry.put_blob("other", b"{}"), "size": 2});
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []})
        .to_string()
        .into_bytes()
}
