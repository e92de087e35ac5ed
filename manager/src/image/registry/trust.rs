//! Mirrors of Docker's own registry, and registries that need not prove who they are, as a daemon.json lists them.

use std::net::IpAddr;

use ipnet::IpNet;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::hosts::{Capabilities, Endpoint};
use crate::image::reference::{DEFAULT_DOMAIN, Reference};

/// Mirrors, and registries that are trusted unseen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Mirrors of Docker's own registry (`http://HOST[:PORT][/PATH]`), in the order in which they are asked.
    pub mirrors: Vec<String>,
    /// Registries (`HOST[:PORT]` or `ADDRESS/LENGTH`).
    pub insecure: Vec<String>,
}

impl Trust {
    /// The places of a registry with these taken into account.
    pub(super) fn applied(&self, reference: &Reference, endpoints: Vec<Endpoint>) -> Result<Vec<Endpoint>> {
        let mut all = Vec::new();
        if reference.domain() == DEFAULT_DOMAIN {
            for mirror in &self.mirrors {
                let invalid =
                    || Error::because(Kind::InvalidArgument, "use mirror", mirror, "it is no address");
                let (scheme, rest) = mirror.split_once("://").ok_or_else(invalid)?;
                let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                let path = if path.is_empty() { "/v2".to_owned() } else { format!("/{path}/v2") };
                let capabilities = Capabilities { push: false, ..Capabilities::ALL };
                let skip_verify = self.is_insecure(host);
                all.push(Endpoint { capabilities, skip_verify, ..Endpoint::new(scheme, host, path) });
            }
        }
        let has_plain: Vec<String> =
            endpoints.iter().filter(|one| one.scheme == "http").map(|one| one.host.clone()).collect();
        for endpoint in endpoints {
            if endpoint.scheme != "https" || !self.is_insecure(&endpoint.host) {
                all.push(endpoint);
                continue;
            }
            let plain = Endpoint { scheme: "http".to_owned(), ..endpoint.clone() };
            all.push(Endpoint { skip_verify: true, ..endpoint });
            if !has_plain.contains(&plain.host) {
                all.push(plain);
            }
        }
        Ok(all)
    }

    /// Whether a registry is on the list, by its name or by its address.
    fn is_insecure(&self, host: &str) -> bool {
        let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name);
        let address: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
        let is_meant = |listed: &String| {
            let within =
                || listed.parse::<IpNet>().ok().zip(address).is_some_and(|(net, at)| net.contains(&at));
            listed == host || within()
        };
        self.insecure.iter().any(is_meant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(trust: &Trust, name: &str, host: &str) -> Vec<(String, bool, bool)> {
        let endpoint = Endpoint::new("https", host, "/v2".to_owned());
        let all = trust.applied(&Reference::parse(name).unwrap(), vec![endpoint]).unwrap();
        let shown = |place: Endpoint| {
            let url = format!("{}://{}{}", place.scheme, place.host, place.path);
            (url, place.skip_verify, place.capabilities.push)
        };
        all.into_iter().map(shown).collect()
    }

    #[test]
    fn mirrors_come_first_and_take_no_uploads() {
        let trust = Trust { mirrors: vec!["http://m.example:5000".into()], insecure: Vec::new() };
        let found = places(&trust, "busybox", "registry-1.docker.io");
        assert_eq!(found[0], ("http://m.example:5000/v2".to_owned(), false, false));
        assert_eq!(found[1].0, "https://registry-1.docker.io/v2");
        assert_eq!(places(&trust, "r.example/x", "r.example").len(), 1);
    }

    #[test]
    fn what_is_listed_may_be_anybody() {
        let insecure = ["r.example:5000", "10.0.0.0/8", "fd00::/8"].map(str::to_owned).to_vec();
        let trust = Trust { mirrors: Vec::new(), insecure };
        for host in ["r.example:5000", "10.1.2.3:5000", "10.1.2.3", "[fd00::1]:5000", "[fd00::1]"] {
            let found = places(&trust, &format!("{host}/x"), host);
            assert_eq!(found.len(), 2, "{host}");
            assert!(found[0].1 && found[1].0.starts_with("http://"), "{host}");
        }
        assert_eq!(places(&trust, "r.example/x", "r.example").len(), 1);
        assert_eq!(places(&trust, "11.1.2.3/x", "11.1.2.3").len(), 1);
    }
}
