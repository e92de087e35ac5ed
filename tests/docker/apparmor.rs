//! AppArmor as under dockerd. The kernel decides what is looked at: without AppArmor that nothing is said and nothing changes, with it
//! (in the virtual machine of `make test-vm`) that containers are confined, and by what.

use std::fs;
use std::path::Path;

use orlop_tests::{Cmd, binaries};

use super::side::{Side, compare};

const DEFAULT: &str = "docker-default";
const KERNEL: &str = "/sys/kernel/security/apparmor";

/// Lines of which the kernel has no part.
const WITHOUT: &[(i32, &str)] = &[
    (1, "$docker info --format '{{json .SecurityOptions}}' | grep apparmor"),
    (
        0,
        "$run --name cc --security-opt apparmor=no-such bb echo ran; $docker inspect --format '[{{.AppArmorProfile}}]' cc; \
         $docker rm cc",
    ),
    (
        0,
        "$docker create --name cc --security-opt apparmor=no-such bb >/dev/null; \
         $docker inspect --format '[{{.AppArmorProfile}}]' cc; $docker rm cc",
    ),
    (0, "$run --name cc bb true; $docker inspect --format '[{{.AppArmorProfile}}]' cc; $docker rm cc"),
];

/// Lines that the kernel confines, and what they say. `PROFILE` is one that the test has loaded. Debian's dockerd gave the same answers in
/// that machine, where its start alone takes minutes.
const WITH: &[(i32, &str, &str)] = &[
    (0, "$docker info --format '{{json .SecurityOptions}}' | grep -o name=apparmor", "name=apparmor"),
    (0, "$run --rm bb cat /proc/self/attr/current", "docker-default (enforce)"),
    (0, "$run --rm --privileged bb cat /proc/self/attr/current", "unconfined"),
    (0, "$run --rm --security-opt apparmor=unconfined bb cat /proc/self/attr/current", "unconfined"),
    (0, "$run --rm --security-opt apparmor=PROFILE bb cat /proc/self/attr/current", "PROFILE (enforce)"),
    (
        0,
        "$run --rm --privileged --security-opt apparmor=PROFILE bb cat /proc/self/attr/current",
        "PROFILE (enforce)",
    ),
    (
        0,
        "$run --rm --user 5 --cap-drop ALL --security-opt no-new-privileges bb cat /proc/self/attr/current",
        "docker-default (enforce)",
    ),
    (127, "$run --rm --security-opt apparmor=no-such bb true", ""),
    (
        0,
        "$run --detach --name cc bb sleep 1000 >/dev/null; $docker exec cc cat /proc/self/attr/current; \
         $docker exec --privileged cc cat /proc/self/attr/current; $docker exec cc sh -c 'sleep 100 & kill $!; wait $!; echo $?'; \
         $docker inspect --format '{{.AppArmorProfile}}' cc; $docker stop -t 1 cc; $docker rm cc",
        "docker-default (enforce)\ndocker-default (enforce)\n143\ndocker-default\ncc\ncc",
    ),
    (
        0,
        "$docker create --name cc --security-opt apparmor=PROFILE bb true >/dev/null; \
         $docker inspect --format '{{.AppArmorProfile}}' cc; $docker rm cc; \
         $docker create --name cc bb true >/dev/null; $docker inspect --format '[{{.AppArmorProfile}}]' cc; $docker rm cc; \
         $run --name cc --privileged bb true; $docker inspect --format '{{.AppArmorProfile}}' cc; $docker rm cc",
        "PROFILE\ncc\n[]\ncc\nunconfined\ncc",
    ),
    (
        7,
        "$run --detach --name cc bb sh -c 'trap \"exit 7\" TERM; while :; do sleep 0.1; done' >/dev/null; \
         $docker stop -t 60 cc; code=$($docker wait cc); $docker rm cc; exit $code",
        "cc\ncc",
    ),
    (
        3,
        "$run --rm --cap-add SYS_ADMIN bb sh -c 'mkdir /m; mount -t tmpfs none /m 2>/dev/null || exit 3'",
        "",
    ),
    (
        0,
        "$run --rm --cap-add SYS_ADMIN --security-opt apparmor=unconfined bb sh -c 'mkdir /m; mount -t tmpfs none /m'",
        "",
    ),
    (
        0,
        "printf 'FROM bb\\nRUN cat /proc/self/attr/current\\n' | $docker build --network none --no-cache - | grep docker-default",
        "docker-default (enforce)",
    ),
];

/// What the engine's profile denies and allows where no path is masked and no mount is read-only.
const WRITES: &str = r#"
for path in sysrq-trigger timer_list irq/default_smp_affinity sys/kernel/core_pattern sys/kernel/sysrq sys/vm/swappiness \
    sys/net/ipv4/ip_default_ttl sys/kernel/shmmax sys/kernel/sem self/oom_score_adj; do
    [ -e /proc/$path ] || { echo "$path missing"; continue; }
    (: >>/proc/$path) 2>/dev/null && echo "$path open" || echo "$path denied"
done
cat /proc/kcore 2>&1 >/dev/null | grep -o 'Permission denied'
cat /sys/firmware/acpi/pm_profile 2>&1 >/dev/null | grep -o 'Permission denied'
"#;

const WRITTEN: &str = "sysrq-trigger denied
timer_list denied
irq/default_smp_affinity denied
sys/kernel/core_pattern denied
sys/kernel/sysrq denied
sys/vm/swappiness denied
sys/net/ipv4/ip_default_ttl denied
sys/kernel/shmmax open
sys/kernel/sem open
self/oom_score_adj open
Permission denied
Permission denied";

fn kernel_has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

fn is_loaded(name: &str) -> bool {
    let list = fs::read_to_string(Path::new(KERNEL).join("profiles")).expect("the kernel's list of profiles");
    list.lines().any(|line| line.starts_with(&format!("{name} (")))
}

fn unload(name: &str) {
    fs::write(Path::new(KERNEL).join(".remove"), name).expect("unloading a profile");
}

#[test]
fn containers_are_confined_where_the_kernel_can() {
    if !kernel_has_apparmor() {
        let (ours, reference) = (Side::orlopd(), Side::dockerd(binaries::system("docker")));
        compare(&ours, &reference, WITHOUT);
        ours.finish();
        reference.finish();
        return;
    }
    // Where others have it, it confines their containers and stays.
    let is_own = !is_loaded(DEFAULT);
    let mut ours = Side::orlopd();
    ours.says("$run --rm bb true");
    assert!(is_loaded(DEFAULT));
    assert!(!is_own || ours.manager().log().contains("AppArmor profile loaded"));
    let profile = format!("tested-{}", std::process::id());
    let text =
        format!("profile {profile} flags=(attach_disconnected) {{ file, capability, network, signal, }}\n");
    let parser = |action| Cmd::new(binaries::system("apparmor_parser")).args(["--skip-cache", action]);
    parser("--replace").input(text.as_str()).run().success();
    let mut wrong = Vec::new();
    let mut says = |code: i32, line: &str, expected: &str| {
        let out = ours.run(&line.replace("PROFILE", &profile));
        if (out.code(), out.stdout.trim_end()) != (code, &*expected.replace("PROFILE", &profile)) {
            wrong.push(format!("{line}\n  expected {code} and {expected:?}\n  {out}"));
        }
    };
    for (code, line, expected) in WITH {
        says(*code, line, expected);
    }
    fs::write(ours.root.join("writes"), WRITES).expect("writing a script");
    let open = "--security-opt systempaths=unconfined --cap-add ALL";
    says(0, &format!("$run --rm {open} --volume $dir/writes:/writes bb sh /writes"), WRITTEN);

    // What was unloaded meanwhile is loaded again, for a container and for a process that is added.
    let forget = || {
        if is_own {
            unload(DEFAULT)
        }
    };
    forget();
    let confined = "docker-default (enforce)";
    says(0, "$run --rm bb cat /proc/self/attr/current", confined);
    ours.says("$run --detach --name cc bb sleep 1000");
    forget();
    says(0, "$docker exec cc cat /proc/self/attr/current", confined);
    parser("--remove").input(text.as_str()).run().success();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    ours.finish();
    forget();
}
