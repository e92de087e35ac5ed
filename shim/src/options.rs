//! The options with which a manager configures the runtime: containerd's own message for runc, or the general one, which
//! carries the same settings as TOML, in itself or in a file, as containerd's CRI does for runtimes other than runc.

use std::fs;

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::runtimeoptions::v1::Options as General;
use prost_types::Any;

/// The options in a request, which may be absent; those of other runtimes mean the defaults.
///
/// # Errors
///
/// `InvalidArgument` for options that cannot be understood; those of reading the file that they name.
pub fn read(any: Option<&Any>) -> Result<Options> {
    match any {
        Some(any) if any::is::<Options>(any) => any::unpack(any),
        Some(any) if any::is::<General>(any) => {
            let General { config_path, config_body, .. } = any::unpack(any)?;
            let text = match (config_body.is_empty(), config_path.is_empty()) {
                (false, _) => config_body,
                (true, false) => fs::read(&config_path).context("read", &config_path)?,
                (true, true) => return Ok(Options::default()),
            };
            let text = String::from_utf8(text)
                .map_err(|_| Error::because(Kind::InvalidArgument, "decode", "the options", "not text"))?;
            parse(&text)
        }
        _ => Ok(Options::default()),
    }
}

/// Whether these are options that [`read`] understands.
pub fn known(any: &Any) -> bool {
    any::is::<Options>(any) || any::is::<General>(any)
}

/// A setting's value, of the three kinds that options have.
#[derive(Debug, PartialEq)]
enum Value {
    Text(String),
    Number(u32),
    Truth(bool),
}

/// Reads settings of the names that containerd's configuration has for them, one per line. Those that the shim does not
/// know are another's business.
fn parse(text: &str) -> Result<Options> {
    let mut options = Options::default();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // What belongs to a table is no setting of the runtime.
        if line.starts_with('[') {
            break;
        }
        let wrong = || {
            let reason = format!("cannot read {line:?}");
            Error::because(Kind::InvalidArgument, "decode", "the options", reason)
        };
        let (name, value) = line.split_once('=').ok_or_else(wrong)?;
        let name = name.trim().trim_matches(['"', '\'']);
        let setting: Setting = match name {
            "BinaryName" => Setting::Text(&mut options.binary_name),
            "Root" => Setting::Text(&mut options.root),
            "ShimCgroup" => Setting::Text(&mut options.shim_cgroup),
            "CriuPath" => Setting::Text(&mut options.criu_path),
            "CriuImagePath" => Setting::Text(&mut options.criu_image_path),
            "CriuWorkPath" => Setting::Text(&mut options.criu_work_path),
            "SystemdCgroup" => Setting::Truth(&mut options.systemd_cgroup),
            "NoPivotRoot" => Setting::Truth(&mut options.no_pivot_root),
            "NoNewKeyring" => Setting::Truth(&mut options.no_new_keyring),
            "IoUid" => Setting::Number(&mut options.io_uid),
            "IoGid" => Setting::Number(&mut options.io_gid),
            _ => continue,
        };
        match (setting, read_value(value.trim()).ok_or_else(wrong)?) {
            (Setting::Text(place), Value::Text(text)) => *place = text,
            (Setting::Truth(place), Value::Truth(truth)) => *place = truth,
            (Setting::Number(place), Value::Number(number)) => *place = number,
            _ => return Err(wrong()),
        }
    }
    Ok(options)
}

/// Where a setting goes, which says of what kind it must be.
enum Setting<'a> {
    Text(&'a mut String),
    Truth(&'a mut bool),
    Number(&'a mut u32),
}

/// Reads a TOML value on one line, with or without a comment after it.
fn read_value(text: &str) -> Option<Value> {
    let (value, rest) = match text.chars().next()? {
        // Without escapes.
        '\'' => text[1..].split_once('\'').map(|(text, rest)| (Value::Text(text.to_owned()), rest))?,
        // A basic string is JSON's, but for \U and \e, which no path has.
        '"' => {
            let mut values = serde_json::Deserializer::from_str(text).into_iter::<String>();
            let value = values.next()?.ok()?;
            (Value::Text(value), text.get(values.byte_offset()..)?)
        }
        _ => {
            let end = text.find([' ', '\t', '#']).unwrap_or(text.len());
            let (word, rest) = text.split_at(end);
            let value = match word {
                "true" => Value::Truth(true),
                "false" => Value::Truth(false),
                number => Value::Number(number.replace('_', "").parse().ok()?),
            };
            (value, rest)
        }
    };
    let rest = rest.trim_start();
    (rest.is_empty() || rest.starts_with('#')).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn general(body: &str, path: &str) -> Any {
        any::pack(&General {
            config_body: body.as_bytes().to_vec(),
            config_path: path.to_owned(),
            ..General::default()
        })
    }

    #[test]
    fn runcs_own_and_nothing_and_others() {
        let ours = any::pack(&Options { binary_name: "crun".into(), ..Options::default() });
        assert_eq!(read(Some(&ours)).unwrap().binary_name, "crun");
        let other = Any { type_url: "kata.options".into(), value: vec![1, 2] };
        assert_eq!(read(Some(&other)).unwrap(), Options::default());
        assert_eq!(read(None).unwrap(), Options::default());
        assert_eq!(read(Some(&general("", ""))).unwrap(), Options::default());
    }

    #[test]
    fn settings_as_containerds_cri_writes_them() {
        let text = "BinaryName = '/usr/bin/or lop' # ours\n\n# a comment\nRoot = \"/r\\u00e9\"\nSystemdCgroup = true\n\
                    IoUid = 1_000\nShimCgroup=\"/s\"\nUnknown = [1, 2]\n[table]\nNoPivotRoot = true\n";
        let wanted = Options {
            binary_name: "/usr/bin/or lop".into(),
            root: "/ré".into(),
            systemd_cgroup: true,
            io_uid: 1000,
            shim_cgroup: "/s".into(),
            ..Options::default()
        };
        assert_eq!(read(Some(&general(text, "/not/read"))).unwrap(), wanted);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        assert_eq!(read(Some(&general("", file.path().to_str().unwrap()))).unwrap(), wanted);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, named) in [
            ("BinaryName", "BinaryName"),
            ("BinaryName = crun", "BinaryName = crun"),
            ("BinaryName = 'crun' x", "crun"),
            ("BinaryName = \"crun", "crun"),
            ("SystemdCgroup = 'true'", "SystemdCgroup"),
            ("IoUid = -1", "IoUid"),
        ] {
            let error = read(Some(&general(text, ""))).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{text}");
            assert!(error.to_string().contains(named), "{error}");
        }
        assert_eq!(read(Some(&general("", "/no/such"))).unwrap_err().kind(), Kind::NotFound);
    }
}
