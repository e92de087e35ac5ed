//! The command line: containerd's shim flags in Go's style, one or two dashes, `-flag value` or `-flag=value`.

use std::ffi::OsString;

/// What the shim is asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// Log more.
    pub debug: bool,
    /// Print the version and end.
    pub version: bool,
    /// Print what this shim is, as protobuf, and end.
    pub info: bool,
    /// The containerd namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// The socket to serve, instead of an inherited one.
    pub socket: String,
    /// The bundle's directory, for `delete`.
    pub bundle: String,
    /// The manager's gRPC socket.
    pub address: String,
    /// `start`, `delete`, or nothing to serve.
    pub action: Option<String>,
}

/// Why there is nothing to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Help was asked for.
    Help,
    /// The command line is wrong, and how.
    Usage(String),
}

/// What `-help` prints.
pub const USAGE: &str = "Usage of containerd-shim-orlop-v1:
  -address string
    \tgrpc address back to main containerd
  -bundle string
    \tpath to the bundle if not workdir
  -debug
    \tenable debug output in logs
  -debug-socket string
    \taccepted and ignored
  -id string
    \tid of the task
  -info
    \tget the option protobuf from stdin, print the shim info protobuf to stdout, and exit
  -namespace string
    \tnamespace that owns the shim
  -publish-binary string
    \taccepted and ignored: events go to TTRPC_ADDRESS
  -socket string
    \tsocket path to serve
  -v, -version
    \tshow the shim version and exit
";

/// Reads the arguments after the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, Refusal> {
    let mut parsed = Arguments::default();
    let mut arguments = arguments.into_iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = arguments.next() {
        let Some(flag) = word.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            parsed.action = Some(word);
            break;
        };
        if flag == "-" {
            parsed.action = arguments.next();
            break;
        }
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if let Some(switch) = parsed.switch(name) {
            *switch = truth(name, value.as_deref())?;
        } else if let Some(text) = parsed.text(name) {
            *text = match value.or_else(|| arguments.next()) {
                Some(value) => value,
                None => return Err(Refusal::Usage(format!("flag needs an argument: -{name}"))),
            };
        } else if matches!(name, "publish-binary" | "debug-socket") {
            if value.or_else(|| arguments.next()).is_none() {
                return Err(Refusal::Usage(format!("flag needs an argument: -{name}")));
            }
        } else if matches!(name, "h" | "help") {
            return Err(Refusal::Help);
        } else {
            return Err(Refusal::Usage(format!("flag provided but not defined: -{name}")));
        }
    }
    Ok(parsed)
}

impl Arguments {
    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "debug" => &mut self.debug,
            "v" | "version" => &mut self.version,
            "info" => &mut self.info,
            _ => return None,
        })
    }

    fn text(&mut self, name: &str) -> Option<&mut String> {
        Some(match name {
            "namespace" => &mut self.namespace,
            "id" => &mut self.id,
            "socket" => &mut self.socket,
            "bundle" => &mut self.bundle,
            "address" => &mut self.address,
            _ => return None,
        })
    }
}

fn truth(name: &str, value: Option<&str>) -> Result<bool, Refusal> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => {
            Err(Refusal::Usage(format!("invalid boolean value {other:?} for -{name}: parse error")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Arguments, Refusal> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn reads_containerds_command_line() {
        let parsed =
            words("-namespace ns -address /a -publish-binary /c -id x -bundle=/b -debug start").unwrap();
        let wanted = Arguments {
            namespace: "ns".into(),
            address: "/a".into(),
            id: "x".into(),
            bundle: "/b".into(),
            debug: true,
            action: Some("start".into()),
            ..Arguments::default()
        };
        assert_eq!(parsed, wanted);
    }

    #[test]
    fn takes_two_dashes_and_values_of_switches() {
        let parsed = words("--debug=false --v -info=1 --id=y").unwrap();
        assert_eq!((parsed.debug, parsed.version, parsed.info, parsed.id.as_str()), (false, true, true, "y"));
        assert_eq!(words("-id x -- delete").unwrap().action.as_deref(), Some("delete"));
    }

    #[test]
    fn refuses_what_go_refuses() {
        assert_eq!(words("-x"), Err(Refusal::Usage("flag provided but not defined: -x".into())));
        assert_eq!(words("-id"), Err(Refusal::Usage("flag needs an argument: -id".into())));
        assert_eq!(words("-h"), Err(Refusal::Help));
        let error = "invalid boolean value \"maybe\" for -debug: parse error";
        assert_eq!(words("-debug=maybe"), Err(Refusal::Usage(error.into())));
    }
}
