//! Proves that `proto/gen` is what `proto/schema` generates.
//!
//! `make proto` runs this test with `ORLOP_PROTO_WRITE=1`, which writes the generated files instead of comparing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use prost_build::{Service, ServiceGenerator};
use prost_types::FileDescriptorSet;

/// The schema of the gRPC API as gRPC's reflection hands it out.
const DESCRIPTORS: &str = "descriptors.bin";

/// Packages whose services travel over ttrpc, and what travels inside of their messages: they get a table of names instead of
/// gRPC stubs.
const TTRPC_PACKAGES: &[&str] = &[
    "containerd.task.v2",
    "containerd.task.v3",
    "containerd.runtime.sandbox.v1",
    "containerd.services.events.ttrpc.v1",
    "runtime.v1",
];

struct Services {
    grpc: Box<dyn ServiceGenerator>,
}

impl ServiceGenerator for Services {
    fn generate(&mut self, service: Service, buffer: &mut String) {
        if TTRPC_PACKAGES.contains(&service.package.as_str()) {
            buffer.push_str(&format!(
                "/// Full service name and method names of the ttrpc service.\npub mod {}_ttrpc {{\n",
                service.name.to_lowercase()
            ));
            buffer.push_str(&format!(
                "    pub const SERVICE: &str = \"{}.{}\";\n",
                service.package, service.proto_name
            ));
            for method in &service.methods {
                buffer.push_str(&format!(
                    "    pub const {}: &str = \"{}\";\n",
                    method.name.to_uppercase(),
                    method.proto_name
                ));
            }
            buffer.push_str("}\n");
        } else {
            self.grpc.generate(service, buffer);
        }
    }

    fn finalize(&mut self, buffer: &mut String) {
        self.grpc.finalize(buffer);
    }

    fn finalize_package(&mut self, package: &str, buffer: &mut String) {
        self.grpc.finalize_package(package, buffer);
    }
}

fn schema_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("read the schema directory") {
        let path = entry.expect("directory entry").path();
        if path.is_dir() {
            schema_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "proto") {
            found.push(path);
        }
    }
}

fn generate(schema: &Path, out: &Path) {
    let mut files = Vec::new();
    schema_files(schema, &mut files);
    files.sort();
    let descriptors = protox::compile(&files, [schema]).expect("compile the schema");
    let reflected = descriptors.file.iter().filter(|file| !TTRPC_PACKAGES.contains(&file.package())).cloned();
    let mut reflected = FileDescriptorSet { file: reflected.collect() };
    reflected.file.iter_mut().for_each(|file| file.source_code_info = None);
    fs::write(out.join(DESCRIPTORS), reflected.encode_to_vec()).expect("write the descriptors");

    let grpc = tonic_prost_build::configure()
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .service_generator();
    let mut config = prost_build::Config::new();
    config
        .out_dir(out)
        .include_file("mod.rs")
        .bytes([".containerd.services.content.v1"])
        .enable_type_names()
        .disable_comments(["."])
        // Events and metrics are shown to people and scripts as JSON.
        .type_attribute(".containerd.events", "#[derive(serde::Serialize)]")
        .type_attribute(".containerd.services.images.v1.ImageCreate", "#[derive(serde::Serialize)]")
        .type_attribute(".containerd.services.images.v1.ImageUpdate", "#[derive(serde::Serialize)]")
        .type_attribute(".containerd.services.images.v1.ImageDelete", "#[derive(serde::Serialize)]")
        .type_attribute(".containerd.types.Mount", "#[derive(serde::Serialize)]")
        .type_attribute(".io.containerd.cgroups", "#[derive(serde::Serialize)]")
        .field_attribute(
            ".containerd.events.ContainerCreate.Runtime.options",
            "#[serde(serialize_with = \"crate::any::any_json\")]",
        )
        .service_generator(Box::new(Services { grpc }));
    for exit in ["TaskExit", "TaskDelete", "SandboxExit"] {
        config.field_attribute(
            format!(".containerd.events.{exit}.exited_at"),
            "#[serde(serialize_with = \"crate::any::timestamp_json\")]",
        );
    }
    config.compile_fds(descriptors).expect("generate");
}

fn read_all(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .expect("read generated directory")
        .map(|entry| {
            let path = entry.expect("directory entry").path();
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("read generated file"))
        })
        .collect()
}

#[test]
fn generated_code_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().expect("temporary directory");
    generate(&root.join("schema"), out.path());
    let fresh = read_all(out.path());
    let checked_in = root.join("gen");
    if std::env::var_os("ORLOP_PROTO_WRITE").is_some() {
        fs::remove_dir_all(&checked_in).ok();
        fs::create_dir_all(&checked_in).expect("create gen");
        for (name, text) in &fresh {
            fs::write(checked_in.join(name), text).expect("write generated file");
        }
        return;
    }
    let old = read_all(&checked_in);
    let stale: Vec<_> =
        fresh.keys().chain(old.keys()).filter(|name| fresh.get(*name) != old.get(*name)).collect();
    assert!(stale.is_empty(), "stale generated files, run `make proto`: {stale:?}");
}
