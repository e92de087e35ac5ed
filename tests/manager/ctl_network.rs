//! orlopctl run with networks by plugins, Debian's.

use std::fs;

use orlop_tests::{Daemon, Image, Orlopd, Root};
use serde_json::json;

use crate::ctl::{IMAGE, import};

struct Stage {
    root: Root,
    daemon: Orlopd,
}

impl Stage {
    /// A network between host and container alone, which leaves no rules and no bridge; a second plugin sets a parameter.
    fn new() -> Stage {
        let root = Root::new();
        let daemon = Orlopd::start(&root);
        import(&daemon, &root, &Image::busybox(), IMAGE);
        let addresses = json!({
            "type": "host-local",
            "ranges": [[{ "subnet": "10.213.7.0/29" }]],
            "dataDir": root.join("addresses"),
        });
        let network = json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "plugins": [
                { "type": "ptp", "ipam": addresses },
                { "type": "tuning", "sysctl": { "net.ipv4.conf.all.log_martians": "1" } },
            ],
        });
        fs::create_dir(root.join("networks")).unwrap();
        fs::write(root.join("networks/10-net.conflist"), network.to_string()).unwrap();
        Stage { root, daemon }
    }

    fn run(&self, words: &[&str]) -> orlop_tests::Output {
        let networks = self.root.join("networks").display().to_string();
        self.daemon.orlopctl(["run", "--cni", "--cni-conf-dir", &networks]).args(words).run()
    }

    /// The addresses that are given away, by the names of host-local's files.
    fn leases(&self) -> Vec<String> {
        let names = fs::read_dir(self.root.join("addresses/net")).into_iter().flatten();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("10.")).collect()
    }

    fn finish(mut self) {
        assert_eq!(self.leases(), Vec::<String>::new());
        self.daemon.stop();
        self.root.assert_clean();
    }
}

#[test]
fn a_network_by_plugins_lasts_as_long_as_its_task() {
    let stage = Stage::new();
    let script = "ip -4 addr show eth0; cat /proc/sys/net/ipv4/conf/all/log_martians";
    let seen = stage.run(&["--rm", IMAGE, "c", "sh", "-c", script]).success().stdout;
    assert!(seen.contains("inet 10.213.7.2/") && seen.ends_with("\n1\n"), "{seen}");
    assert_eq!(stage.leases(), Vec::<String>::new());

    stage.run(&["-d", "--null-io", IMAGE, "c", "sleep", "1000"]).success();
    let ctl = |words: &[&str]| stage.daemon.orlopctl(words).run().success().stdout;
    let seen = ctl(&["tasks", "exec", "--exec-id", "e", "c", "sh", "-c", "ip -4 addr show eth0"]);
    let lease = stage.leases().pop().expect("an address");
    assert!(seen.contains(&format!("inet {lease}/")), "{seen}");
    assert!(ctl(&["containers", "info", "c"]).contains("orlopctl.cni"));
    // What is taken away is what was made, whatever the file says by now.
    fs::remove_file(stage.root.join("networks/10-net.conflist")).unwrap();
    ctl(&["tasks", "rm", "--force", "c"]);
    assert_eq!(stage.leases(), Vec::<String>::new());
    assert!(!ctl(&["containers", "info", "c"]).contains("orlopctl.cni"));
    ctl(&["containers", "rm", "c"]);
    stage.finish();
}

#[test]
fn a_network_that_cannot_be_joined_leaves_nothing() {
    let stage = Stage::new();
    let list = stage.root.join("networks/10-net.conflist");
    let broken =
        fs::read_to_string(&list).unwrap().replace("net.ipv4.conf.all.log_martians", "no.such.parameter");
    fs::write(&list, broken).unwrap();
    let refused = stage.run(&["--rm", IMAGE, "c", "true"]).failure();
    assert!(refused.stderr.contains("ask plugin for network tuning:"), "{refused}");
    assert_eq!(refused.stderr.lines().filter(|line| line.starts_with("orlopctl:")).count(), 1, "{refused}");
    // Plugins would make their devices on the host, and take away what has their name.
    let refused = stage.run(&["--rm", "--net-host", IMAGE, "c", "true"]).failure();
    assert!(refused.stderr.contains("it is in the host's network"), "{refused}");
    fs::remove_file(list).unwrap();
    let refused = stage.run(&[IMAGE, "c", "true"]).failure();
    assert!(refused.stderr.contains("no file there configures one"), "{refused}");
    assert_eq!(stage.daemon.orlopctl(["containers", "ls", "-q"]).run().success().stdout, "");
    stage.finish();
}
