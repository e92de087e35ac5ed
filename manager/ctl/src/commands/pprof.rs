//! `orlopctl pprof`: profiles over HTTP on a unix socket, where Go's programs serve them.

use std::path::Path;

use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::Context;
use crate::cli::shim::{Pprof, Profile};
use crate::output;

/// The longest refusal that is shown.
const REFUSAL: usize = 1 << 10;

pub async fn execute(context: &Context<'_>, options: &Pprof) -> Result<()> {
    let beside = || context.global.address().with_file_name("debug.sock");
    let socket = options.debug_socket.clone().unwrap_or_else(beside);
    fetch(&socket, &options.profile).await
}

/// Where a profile is served.
fn place(profile: &Profile) -> String {
    let (name, query) = match profile {
        Profile::Block { form } => ("block", format!("debug={}", form.debug)),
        Profile::Goroutines { debug } => ("goroutine", format!("debug={debug}")),
        Profile::Heap { form } => ("heap", format!("debug={}", form.debug)),
        Profile::Threadcreate { form } => ("threadcreate", format!("debug={}", form.debug)),
        Profile::Processor { seconds, form } => {
            ("profile", format!("seconds={}&debug={}", seconds.as_secs_f64(), form.debug))
        }
        Profile::Trace { seconds, form } => {
            ("trace", format!("seconds={}&debug={}", seconds.as_secs_f64(), form.debug))
        }
    };
    format!("/debug/pprof/{name}?{query}")
}

/// Writes a profile to standard output.
///
/// # Errors
///
/// Those of the connection, and what the other side refuses with.
pub async fn fetch(socket: &Path, profile: &Profile) -> Result<()> {
    let shown = socket.display().to_string();
    let mut stream = UnixStream::connect(socket).await.context("connect to", &shown)?;
    // Of version 1.0 an answer ends with the connection, and has no parts.
    let request = format!("GET {} HTTP/1.0\r\nHost: .\r\n\r\n", place(profile));
    stream.write_all(request.as_bytes()).await.context("ask", &shown)?;
    let mut answer = BufReader::new(stream);
    let mut status = String::new();
    answer.read_line(&mut status).await.context("read from", &shown)?;
    let mut header = String::new();
    while answer.read_line(&mut header).await.context("read from", &shown)? > 2 {
        header.clear();
    }
    let status = status.trim_end().split_once(' ').map_or("", |(_, status)| status);
    if !status.starts_with("200") {
        let mut why = Vec::new();
        answer.take(REFUSAL as u64).read_to_end(&mut why).await.context("read from", &shown)?;
        let why = String::from_utf8_lossy(&why).trim().replace('\n', " ");
        let text = format!("http get failed with status: {status}: {why}");
        return Err(Error::exactly(Kind::Unavailable, text.trim_end_matches([':', ' ']).to_owned()));
    }
    let mut part = vec![0; 64 << 10];
    loop {
        match answer.read(&mut part).await.context("read from", &shown)? {
            0 => return Ok(()),
            length => output::bytes(&part[..length])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::shim::Form;

    #[test]
    fn profiles_have_gos_addresses() {
        let form = || Form { debug: 0 };
        let profile = Profile::Processor { seconds: Duration::from_millis(1500), form: form() };
        assert_eq!(place(&profile), "/debug/pprof/profile?seconds=1.5&debug=0");
        let trace = Profile::Trace { seconds: Duration::from_secs(5), form: form() };
        assert_eq!(place(&trace), "/debug/pprof/trace?seconds=5&debug=0");
        assert_eq!(place(&Profile::Goroutines { debug: 2 }), "/debug/pprof/goroutine?debug=2");
    }
}
