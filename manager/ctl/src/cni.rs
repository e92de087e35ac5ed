//! Networks by plugins (https://www.cni.dev/docs/spec/), asked as containerd's client asks them: one network, its interface `eth0`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The interface in the container.
const INTERFACE: &str = "eth0";
/// How names of configuration files end.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];
/// The first version whose plugins are told on removal what came of the addition.
const WITH_RESULT: (u32, u32) = (0, 4);

/// A network, as a file configures it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    name: String,
    /// Version of the specification that the plugins are spoken to in.
    version: Option<String>,
    /// Configuration of each plugin, in the order of their work.
    plugins: Vec<Map<String, Value>>,
    /// Where the plugins' programs are.
    directories: Vec<PathBuf>,
}

/// A container that is in a network; kept with it, since what is taken away must be what was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    network: Network,
    container: String,
    /// What the last plugin answered.
    result: Option<Value>,
}

impl Network {
    /// The network of the first file in a directory that configures one, by name.
    ///
    /// # Errors
    ///
    /// `NotFound` without such a file; those of reading and parsing it.
    pub fn load(configurations: &Path, directories: &[PathBuf]) -> Result<Network> {
        let shown = || configurations.display().to_string();
        let mut files = Vec::new();
        for entry in fs::read_dir(configurations).context("read", shown())? {
            let path = entry.context("read", shown())?.path();
            if path.extension().is_some_and(|ending| ENDINGS.iter().any(|one| *one == ending)) {
                files.push(path);
            }
        }
        files.sort();
        for file in files {
            let shown = file.display().to_string();
            let text = fs::read(&file).context("read", &shown)?;
            let parsed = serde_json::from_slice(&text).map_err(|error| error.to_string());
            let network = parsed.and_then(|document| Network::parse(document, directories));
            match network.map_err(|why| Error::because(Kind::InvalidArgument, "parse", shown, why))? {
                Some(network) => return Ok(network),
                None => continue,
            }
        }
        Err(Error::because(Kind::NotFound, "network", shown(), "no file there configures one"))
    }

    /// A network from a list of plugins, or from a single one's configuration; none without plugins.
    fn parse(
        document: Map<String, Value>,
        directories: &[PathBuf],
    ) -> std::result::Result<Option<Network>, String> {
        let text = |key: &str| document.get(key).and_then(Value::as_str).map(str::to_owned);
        let (name, version) = (text("name").ok_or("it has no name")?, text("cniVersion"));
        let plugins = match document.get("plugins") {
            Some(plugins) => serde_json::from_value(plugins.clone()).map_err(|error| error.to_string())?,
            None => vec![document],
        };
        let is_file_name = |kind: &str| !kind.is_empty() && !kind.contains('/');
        for plugin in &plugins {
            let kind = plugin.get("type").and_then(Value::as_str).filter(|kind| is_file_name(kind));
            kind.ok_or("a plugin has no type that is a program's name")?;
        }
        let network = Network { name, version, plugins, directories: directories.to_vec() };
        Ok((!network.plugins.is_empty()).then_some(network))
    }

    /// Takes a container in, by the path of its network namespace. Blocks.
    ///
    /// # Errors
    ///
    /// Those of the plugins, in their words; what earlier ones made is taken away.
    pub fn join(&self, container: &str, namespace: &Path) -> Result<Joined> {
        let mut joined = Joined { network: self.clone(), container: container.to_owned(), result: None };
        for plugin in &self.plugins {
            match joined.ask("ADD", plugin, Some(namespace)) {
                Ok(result) => joined.result = result,
                Err(error) => {
                    // The first error is the one to tell.
                    let _ = joined.leave(Some(namespace));
                    return Err(error);
                }
            }
        }
        Ok(joined)
    }

    /// What a plugin reads.
    fn input(&self, plugin: &Map<String, Value>, result: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        input.insert("name".to_owned(), self.name.clone().into());
        if let Some(version) = &self.version {
            input.insert("cniVersion".to_owned(), version.clone().into());
        }
        if let Some(result) = result {
            input.insert("prevResult".to_owned(), result.clone());
        }
        input.into()
    }

    fn takes_result(&self) -> bool {
        let mut parts =
            self.version.as_deref().unwrap_or_default().split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= WITH_RESULT
    }
}

impl Joined {
    /// Takes the container out; its namespace may be gone by now. Blocks.
    ///
    /// # Errors
    ///
    /// The first of the plugins', all of which are asked.
    pub fn leave(&self, namespace: Option<&Path>) -> Result<()> {
        let plugins = self.network.plugins.iter().rev();
        plugins.map(|plugin| self.ask("DEL", plugin, namespace).map(drop)).fold(Ok(()), Result::and)
    }

    fn ask(
        &self,
        verb: &str,
        plugin: &Map<String, Value>,
        namespace: Option<&Path>,
    ) -> Result<Option<Value>> {
        let network = &self.network;
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let failed = |kind_: Kind, why: String| Error::because(kind_, "ask plugin for network", kind, why);
        let mut places = network.directories.iter().map(|directory| directory.join(kind));
        let program = places.find(|program| program.is_file());
        let program = program.ok_or_else(|| failed(Kind::NotFound, "there is no such program".to_owned()))?;
        let result = self.result.as_ref().filter(|_| verb == "ADD" || network.takes_result());
        let input = network.input(plugin, result).to_string();
        let mut child = Command::new(&program)
            .envs(self.environment(verb, namespace))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start", program.display().to_string())?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read says why.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().context("wait for", program.display().to_string())?;
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if output.status.success() {
            return Ok(answer);
        }
        let said = |key: &str| answer.as_ref().and_then(|answer| answer[key].as_str()).unwrap_or_default();
        let why = match (said("msg"), said("details")) {
            ("", _) => output.status.to_string(),
            (message, "") => message.to_owned(),
            (message, details) => format!("{message}; {details}"),
        };
        Err(failed(Kind::Unknown, why))
    }

    fn environment(&self, verb: &str, namespace: Option<&Path>) -> BTreeMap<&'static str, String> {
        let paths: Vec<String> =
            self.network.directories.iter().map(|path| path.display().to_string()).collect();
        BTreeMap::from([
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", self.container.clone()),
            ("CNI_NETNS", namespace.map(|path| path.display().to_string()).unwrap_or_default()),
            ("CNI_IFNAME", INTERFACE.to_owned()),
            ("CNI_PATH", paths.join(":")),
        ])
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A plugin that notes how it is asked, answers with its name, and refuses where a file says so.
    fn plugin(directory: &Path, name: &str) {
        let script = format!(
            "#!/bin/sh\necho \"{name} $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $(cat)\" >>{0}/calls\n\
             [ ! -e {0}/refuse-{name} ] || {{ echo '{{\"code\":7,\"msg\":\"no\",\"details\":\"room\"}}'; exit 1; }}\n\
             echo '{{\"by\":\"{name}\"}}'\n",
            directory.display()
        );
        fs::write(directory.join(name), script).unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn plugins_are_asked_in_order_and_back_with_what_came_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        plugin(path, "one");
        plugin(path, "two");
        let list = r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"one","k":1},{"type":"two"}]}"#;
        fs::write(path.join("10-first.conflist"), list).unwrap();
        fs::write(path.join("20-second.conf"), r#"{"name":"m","type":"three"}"#).unwrap();
        fs::write(path.join("00-empty.conflist"), r#"{"name":"e","plugins":[]}"#).unwrap();
        let network = Network::load(path, &[path.join("nowhere"), path.to_owned()]).unwrap();
        let joined = network.join("id", Path::new("/ns")).unwrap();
        assert_eq!(joined.result, Some(serde_json::json!({ "by": "two" })));
        joined.leave(None).unwrap();
        let calls = fs::read_to_string(path.join("calls")).unwrap();
        let expected = [
            r#"one ADD id /ns eth0 {"cniVersion":"1.0.0","k":1,"name":"n","type":"one"}"#,
            r#"two ADD id /ns eth0 {"cniVersion":"1.0.0","name":"n","prevResult":{"by":"one"},"type":"two"}"#,
            r#"two DEL id  eth0 {"cniVersion":"1.0.0","name":"n","prevResult":{"by":"two"},"type":"two"}"#,
            r#"one DEL id  eth0 {"cniVersion":"1.0.0","k":1,"name":"n","prevResult":{"by":"two"},"type":"one"}"#,
        ];
        assert_eq!(calls.lines().collect::<Vec<_>>(), expected);

        // What was made before a refusal is taken away.
        fs::remove_file(path.join("calls")).unwrap();
        fs::write(path.join("refuse-two"), "").unwrap();
        let error = network.join("id", Path::new("/ns")).unwrap_err().to_string();
        assert!(error.contains("two: no; room"), "{error}");
        let calls = fs::read_to_string(path.join("calls")).unwrap();
        let verbs: Vec<_> = calls.lines().map(|line| &line[..7]).collect();
        assert_eq!(verbs, ["one ADD", "two ADD", "two DEL", "one DEL"]);
    }

    #[test]
    fn older_plugins_and_broken_files() {
        let parse = |text: &str| Network::parse(serde_json::from_str(text).unwrap(), &[]);
        let old = parse(r#"{"name":"n","cniVersion":"0.3.1","type":"t"}"#).unwrap().unwrap();
        assert!(!old.takes_result());
        assert!(parse(r#"{"name":"n","cniVersion":"0.4.0","type":"t"}"#).unwrap().unwrap().takes_result());
        for bad in [r#"{"type":"t"}"#, r#"{"name":"n"}"#, r#"{"name":"n","type":"../t"}"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
