//! What a manager tells a shim that it starts, on stdin: the runtime's options as an Any, or, from containerd 2.3 on,
//! BootstrapParams that hold them; and how it wants to be answered.

use std::io::Read;
use std::path::PathBuf;

use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::containerd::runtime::bootstrap::v1::{BootstrapParams, LogLevel};
use orlop_proto::error::{Context, Result};
use prost::Message;
use prost_types::Any;

use crate::cli::Arguments;
use crate::options;

/// The version of the protocol from which on the answer is JSON.
const JSON_SINCE: u32 = 3;
/// More than this is no honest input.
const LIMIT: u64 = 10 << 20;

/// What the manager told.
#[derive(Debug, Default, PartialEq)]
pub struct Params {
    /// The runtime's options.
    pub options: Options,
    /// Where sockets are to lie, if not at the usual place.
    pub socket_directory: Option<PathBuf>,
    /// Log more.
    pub debug: bool,
    /// The answer is JSON, not a plain address.
    pub answer_in_json: bool,
}

/// Reads stdin to its end.
pub fn read_stdin() -> Result<Vec<u8>> {
    let mut input = Vec::new();
    std::io::stdin().take(LIMIT).read_to_end(&mut input).context("read", "stdin")?;
    Ok(input)
}

/// Understands what the manager told; `newest` is the newest protocol version that it says it speaks.
pub fn parse(input: &[u8], arguments: &Arguments, newest: Option<&str>) -> Params {
    let newest = newest.and_then(|text| text.parse().ok()).unwrap_or(0);
    let answer_in_json = newest >= JSON_SINCE;
    if let Ok(params) = BootstrapParams::decode(input)
        // Both messages begin with a string; only one names the container.
        && !params.instance_id.is_empty()
        && (&params.instance_id, &params.namespace) == (&arguments.id, &arguments.namespace)
    {
        let given = params.extensions.iter().filter_map(|extension| extension.value.as_ref());
        return Params {
            // What cannot be understood is told by Create.
            options: given
                .filter(|any| options::known(any))
                .find_map(|any| options::read(Some(any)).ok())
                .unwrap_or_default(),
            socket_directory: params.socket_dir.filter(|dir| !dir.is_empty()).map(PathBuf::from),
            debug: arguments.debug || params.log_level <= LogLevel::Debug as i32,
            answer_in_json: true,
        };
    }
    let options = Any::decode(input).ok().and_then(|any| options::read(Some(&any)).ok()).unwrap_or_default();
    Params { options, socket_directory: None, debug: arguments.debug, answer_in_json }
}

#[cfg(test)]
mod tests {
    use orlop_proto::any;
    use orlop_proto::containerd::runtime::bootstrap::v1::Extension;

    use super::*;

    fn arguments() -> Arguments {
        Arguments { id: "c".into(), namespace: "ns".into(), ..Arguments::default() }
    }

    fn options() -> Options {
        Options { binary_name: "crun".into(), shim_cgroup: "/x".into(), ..Options::default() }
    }

    #[test]
    fn containerd_1_tells_the_options_alone() {
        let input = any::pack(&options()).encode_to_vec();
        let params = parse(&input, &arguments(), Some("2"));
        assert_eq!((params.options, params.answer_in_json), (options(), false));
        assert!(parse(&input, &arguments(), Some("3")).answer_in_json);
    }

    #[test]
    fn nothing_and_garbage_mean_the_defaults() {
        assert_eq!(parse(b"", &arguments(), None), Params::default());
        assert_eq!(parse(&[0xff; 9], &arguments(), Some("x")), Params::default());
    }

    #[test]
    fn newer_managers_tell_all() {
        let params = BootstrapParams {
            instance_id: "c".into(),
            namespace: "ns".into(),
            log_level: LogLevel::Debug as i32,
            extensions: vec![Extension { value: Some(any::pack(&options())) }],
            socket_dir: Some("/s".into()),
            ..BootstrapParams::default()
        };
        let params = parse(&params.encode_to_vec(), &arguments(), Some("2"));
        let wanted = Params {
            options: options(),
            socket_directory: Some("/s".into()),
            debug: true,
            answer_in_json: true,
        };
        assert_eq!(params, wanted);
    }
}
