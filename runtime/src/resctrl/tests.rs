//! The calls that are made, on a directory in resctrl's place: no machine of the project's has the real one.

use super::*;
use serde_json::json;

/// A directory that looks like a mounted resctrl file system, gone when dropped.
struct Fake(PathBuf);

impl Fake {
    fn new(name: &str) -> Fake {
        let path = std::env::temp_dir().join(format!("orlop-resctrl-{}-{name}", std::process::id()));
        for below in ["info/L3", "info/MB", "mon_groups"] {
            fs::create_dir_all(path.join(below)).unwrap();
        }
        Fake(path)
    }

    fn class(&self, name: &str, schemata: &str) {
        fs::create_dir_all(self.0.join(name).join("mon_groups")).unwrap();
        fs::write(self.0.join(name).join("schemata"), schemata).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.join(path)).unwrap_or_default()
    }

    fn plan(&self, rdt: serde_json::Value) -> Result<Plan> {
        let text = rdt.to_string();
        plan(&serde_json::from_str(&text).unwrap(), "c1", self.0.clone())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn without_a_name_the_class_is_the_containers_own() {
    let fake = Fake::new("own");
    let groups =
        fake.plan(json!({"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20", "schemata": ["L2:0=3"]}));
    let groups = groups.unwrap().enter(7).unwrap();
    assert_eq!(fake.read("c1/schemata"), "L3:0=f\nMB:0=20\nL2:0=3\n");
    assert_eq!(fake.read("c1/tasks"), "7");
    // Files in resctrl go with their directory.
    for file in ["schemata", "tasks"] {
        fs::remove_file(fake.0.join("c1").join(file)).unwrap();
    }
    groups.remove().unwrap();
    assert!(!fake.0.join("c1").exists());
    groups.remove().unwrap();
}

#[test]
fn a_named_class_stays_and_its_monitoring_group_goes() {
    let fake = Fake::new("named");
    fake.class("guaranteed", "L3:0=000ff;1=00f0f\nMB:0= 20;1=100\n");
    let rdt = json!({"closID": "guaranteed", "l3CacheSchema": "L3:1=f0f;0=FF", "memBwSchema": "MB:0=20",
        "enableMonitoring": true});
    let groups = fake.plan(rdt).unwrap().enter(7).unwrap();
    assert_eq!(groups.class, fake.0.join("guaranteed"));
    assert_eq!(fake.read("guaranteed/tasks") + &fake.read("guaranteed/mon_groups/c1/tasks"), "77");
    // The next process of the container.
    groups.enter(8).unwrap();
    assert_eq!(fake.read("guaranteed/tasks") + &fake.read("guaranteed/mon_groups/c1/tasks"), "88");
    fs::remove_file(fake.0.join("guaranteed/mon_groups/c1/tasks")).unwrap();
    groups.remove().unwrap();
    assert!(fake.0.join("guaranteed/tasks").exists() && !fake.0.join("guaranteed/mon_groups/c1").exists());
}

#[test]
fn a_class_that_is_named_alone_must_exist() {
    let fake = Fake::new("alone");
    let text = fake.plan(json!({"closID": "gold"})).unwrap_err().to_string();
    assert!(text.contains("must be there already"), "{text}");
    fake.class("gold", "L3:0=f\n");
    fake.plan(json!({"closID": "gold"})).unwrap().enter(7).unwrap();
    // Nobody asked for schemata.
    assert_eq!(fake.read("gold/schemata"), "L3:0=f\n");
    fake.plan(json!({"closID": "/"})).unwrap().enter(9).unwrap();
    assert_eq!(fake.read("tasks"), "9");
}

#[test]
fn what_cannot_be_is_refused() {
    let fake = Fake::new("refused");
    fake.class("gold", "L3:0=f\n");
    for (rdt, words) in [
        (json!({"closID": ".."}), "invalid intelRdt.ClosID"),
        (json!({"closID": "a/b"}), "invalid intelRdt.ClosID"),
        (json!({"memBwSchema": "L3:0=1"}), "does not start"),
        (json!({"l3CacheSchema": "L3:0=1\nMB:0=1"}), "several lines"),
        (json!({"closID": "gold", "l3CacheSchema": "L3:0=7"}), "does not have \"L3:0=7\""),
    ] {
        let text = fake.plan(rdt.clone()).unwrap_err().to_string();
        assert!(text.contains(words), "{rdt}: {text}");
    }
    fs::remove_dir(fake.0.join("info/L3")).unwrap();
    let text = fake.plan(json!({"l3CacheSchema": "L3:0=1"})).unwrap_err().to_string();
    assert!(text.contains("Intel RDT/CAT is not enabled"), "{text}");
}

#[test]
fn a_failure_leaves_nothing_and_says_what_the_kernel_says() {
    let fake = Fake::new("failure");
    fs::remove_dir(fake.0.join("mon_groups")).unwrap();
    fs::write(fake.0.join("info/last_cmd_status"), "out of RMIDs\n").unwrap();
    // A class that is new has no directory for monitoring groups here.
    let text = fake.plan(json!({"enableMonitoring": true})).unwrap().enter(7).unwrap_err().to_string();
    assert!(text.starts_with("intelRdt: create ") && text.ends_with("out of RMIDs"), "{text}");
    assert!(!fake.0.join("c1").exists());
}

#[test]
fn the_usual_place_comes_first() {
    let line = |at: &str, kind: &str| format!("30 20 0:1 / {at} rw - {kind} none rw\n");
    let table = line("/a", "proc") + &line("/b", "resctrl") + &line("/sys/fs/resctrl", "resctrl");
    assert_eq!(find(&table), Some("/sys/fs/resctrl".into()));
    assert_eq!(find(&line("/b", "resctrl")), Some("/b".into()));
    assert_eq!(find(&line("/a", "proc")), None);
}
