//! `ps`: the processes of a container.

use std::ffi::OsString;
use std::process::Command;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::{encode, print};
use crate::cli::Global;
use crate::container::Container;

/// Prints the processes: their ids as JSON, or those lines of ps(1), whose options runc's users know.
pub fn run(global: &Global, id: &str, format: &str, options: &[OsString]) -> Result<()> {
    let container = Container::open(&global.root, id)?;
    if container.cgroup_paths().is_empty() {
        let why = "a rootless container without a cgroup of its own cannot tell";
        return Err(Error::because(Kind::FailedPrecondition, "find processes of", id, why));
    }
    let pids = container.cgroup()?.pids()?;
    match format {
        "json" => {
            // Go's encoder writes a list that was never made as null.
            let mut text = if pids.is_empty() { b"null".to_vec() } else { encode(&pids)? };
            text.push(b'\n');
            print(&text)
        }
        "table" => {
            let default = [OsString::from("-ef")];
            let options = if options.is_empty() { &default } else { options };
            let output = Command::new("ps").args(options).output().context("execute", "ps")?;
            if !output.status.success() {
                let said = [output.stdout, output.stderr].concat();
                let why = format!("{}: {}", output.status, String::from_utf8_lossy(&said));
                return Err(Error::exactly(Kind::Unknown, why.replacen("exit status: ", "exit status ", 1)));
            }
            print(pick(&String::from_utf8_lossy(&output.stdout), &pids)?.as_bytes())
        }
        _ => Err(Error::exactly(Kind::InvalidArgument, "invalid format option")),
    }
}

/// The header and the lines of these processes.
fn pick(output: &str, pids: &[i32]) -> Result<String> {
    let mut lines = output.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| Error::exactly(Kind::InvalidArgument, "couldn't find PID field in ps output"))?;
    let mut picked = format!("{header}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|text| text.parse::<i32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            picked.push_str(line);
            picked.push('\n');
        }
    }
    Ok(picked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_by_the_pid_column() {
        let output = "UID PID CMD\nroot 7 a b\nroot 8 7\n";
        assert_eq!(pick(output, &[7]).unwrap(), "UID PID CMD\nroot 7 a b\n");
        pick("CMD\n", &[7]).unwrap_err();
    }
}
