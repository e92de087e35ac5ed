//! Root file systems that the shim mounts from an image in a file.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_proto::containerd::task::v2::*;
use orlop_proto::containerd::types::Mount;
use orlop_tests::shim::{DEADLINE, Fifos, Shim};
use orlop_tests::{Cmd, Root, binaries, host, poll_until};

/// An image of the bundle's root file system, which is empty afterwards.
fn image(root: &Root, shim: &Shim) -> PathBuf {
    let (image, rootfs) = (root.join("image.ext4"), shim.bundle.rootfs(""));
    Cmd::new(binaries::system("mke2fs"))
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&rootfs)
        .arg(&image)
        .arg("16m")
        .run()
        .success();
    fs::remove_dir_all(&rootfs).unwrap();
    fs::create_dir(&rootfs).unwrap();
    image
}

fn looped(image: &Path, words: &[&str]) -> Vec<Mount> {
    let options = words.iter().map(|word| (*word).to_owned()).collect();
    let source = image.display().to_string();
    vec![Mount { r#type: "ext4".into(), source, target: String::new(), options }]
}

/// The loop devices that a file is behind.
fn devices_of(image: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.path());
    let behind = |device: &PathBuf| {
        fs::read_to_string(device.join("loop/backing_file"))
            .is_ok_and(|text| text.trim() == image.to_str().unwrap())
    };
    devices.filter(behind).collect()
}

#[test]
fn an_image_is_mounted_by_a_loop_device_that_goes_with_it() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "touch /written && sleep 1000");
    let image = image(&root, &shim);
    let mut request = shim.create_request(&Fifos::default());
    for words in [["loop", "nosuchoption"], ["loop", "ro"], ["rw", "loop"]] {
        request.rootfs = looped(&image, &words);
        let created = shim.client.call::<CreateTaskResponse>("Create", &request);
        if words[1] == "nosuchoption" {
            let error = created.unwrap_err();
            assert!(error.to_string().contains("mount ext4"), "{error}");
        } else {
            created.unwrap();
            assert_eq!(devices_of(&image).len(), 1);
            shim.start_process("").unwrap();
            if words[1] == "ro" {
                assert_eq!(shim.wait(""), 1, "it cannot write");
            } else {
                let written = || host::mounts().iter().any(|mount| mount.target.join("written").exists());
                poll_until(DEADLINE, "it writes", written);
                shim.kill("", Signal::SIGKILL).unwrap();
                shim.wait("");
            }
            shim.delete("").unwrap();
        }
        poll_until(DEADLINE, "the device is detached", || devices_of(&image).is_empty());
    }
    shim.shut_down();
    root.assert_clean();
}

#[test]
fn a_loop_device_goes_with_a_killed_shim_too() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    let image = image(&root, &shim);
    let mut request = shim.create_request(&Fifos::default());
    request.rootfs = looped(&image, &["loop"]);
    shim.client.call::<CreateTaskResponse>("Create", &request).unwrap();
    let pid = shim.pid();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    poll_until(DEADLINE, "the shim is gone", || !host::alive(pid));
    shim.delete_action();
    poll_until(DEADLINE, "the device is detached", || devices_of(&image).is_empty());
    drop(shim);
    root.assert_clean();
}
