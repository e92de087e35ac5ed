//! {orlop, runc, crun} × {containerd-shim-orlop-v1, containerd-shim-runc-v2} × {orlopd, containerd}: each runs the same
//! containers for the same client. A row that fails while its neighbours pass points at the piece that differs.
//!
//! The client asks for `io.containerd.runc.v2`, as it does by default, and names the runtime by `--runc-binary`. Under orlopd
//! the table `[runtimes]` chooses the shim; under containerd, which finds a shim by its file name, ours is put into `PATH`
//! under the name of the shim that it replaces.

use orlop_tests::{Containerd, Orlopd, Root, Variant, binaries};

use crate::workload::{exercise, import_image};

#[derive(Clone, Copy)]
enum Manager {
    Orlopd,
    Containerd,
}

#[derive(Clone, Copy, PartialEq)]
enum Shim {
    Ours,
    Runc,
}

fn check(runtime: &str, shim: Shim, manager: Manager) {
    let root = Root::new();
    let program = if runtime == "orlop" { binaries::orlop() } else { binaries::system(runtime) };
    let theirs = "containerd-shim-runc-v2";
    let mut variant = Variant { hide_unified: runtime == "crun", ..Variant::default() };
    let flags = ["--runc-binary", program.to_str().expect("paths here are UTF-8")];
    match manager {
        Manager::Containerd => {
            if shim == Shim::Ours {
                variant.links.push((binaries::shim(), theirs.to_owned()));
            }
            let mut containerd = Containerd::start_as(&root, &variant);
            let image = import_image(&root, &containerd);
            exercise(&root, &containerd, &image, &flags);
            containerd.stop();
        }
        Manager::Orlopd => {
            let config = match shim {
                Shim::Ours => String::new(),
                Shim::Runc => {
                    format!("[runtimes.\"io.containerd.runc.v2\"]\nshim = {:?}\n", binaries::system(theirs))
                }
            };
            let mut orlopd = Orlopd::start_as(&root, &config, &variant);
            let image = import_image(&root, &orlopd);
            exercise(&root, &orlopd, &image, &flags);
            orlopd.stop();
        }
    }
    root.assert_clean();
}

macro_rules! matrix {
    ($($name:ident: $runtime:literal, $shim:ident, $manager:ident;)*) => {
        $(#[test]
        fn $name() {
            check($runtime, Shim::$shim, Manager::$manager);
        })*
    };
}

matrix! {
    orlop_under_our_shim_under_orlopd: "orlop", Ours, Orlopd;
    runc_under_our_shim_under_orlopd: "runc", Ours, Orlopd;
    crun_under_our_shim_under_orlopd: "crun", Ours, Orlopd;
    orlop_under_shim_runc_v2_under_orlopd: "orlop", Runc, Orlopd;
    runc_under_shim_runc_v2_under_orlopd: "runc", Runc, Orlopd;
    crun_under_shim_runc_v2_under_orlopd: "crun", Runc, Orlopd;
    orlop_under_our_shim_under_containerd: "orlop", Ours, Containerd;
    runc_under_our_shim_under_containerd: "runc", Ours, Containerd;
    crun_under_our_shim_under_containerd: "crun", Ours, Containerd;
    orlop_under_shim_runc_v2_under_containerd: "orlop", Runc, Containerd;
    runc_under_shim_runc_v2_under_containerd: "runc", Runc, Containerd;
    crun_under_shim_runc_v2_under_containerd: "crun", Runc, Containerd;
}
