//! Stream processors: programs that turn layers of other media types (encrypted ones, say) into ones that are unpacked here,
//! as containerd's `stream_processors` do. A program reads the layer on its standard input and writes the other one.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::media::{self, Form, Role};
use crate::config::StreamProcessor;

/// Variable that tells a program the media type of what it reads.
const MEDIA_TYPE: &str = "STREAM_PROCESSOR_MEDIATYPE";
/// The most programs that one layer goes through.
const MAX_CHAIN: usize = 8;
/// The most that is kept of what a program complains, in bytes.
const MAX_COMPLAINT: u64 = 4 << 10;

/// The configured programs, by name.
#[derive(Clone, Default)]
pub struct Processors {
    configured: BTreeMap<String, StreamProcessor>,
}

impl Processors {
    /// These programs; of several that take a media type the first by name does.
    pub fn new(configured: BTreeMap<String, StreamProcessor>) -> Processors {
        Processors { configured }
    }

    fn of(&self, media_type: &str) -> Option<(&str, &StreamProcessor)> {
        let media_type = media::bare(media_type);
        let found =
            self.configured.iter().find(|(_, one)| one.accepts.iter().any(|type_| type_ == media_type));
        found.map(|(name, one)| (name.as_str(), one))
    }

    /// Whether a blob can be unpacked as a layer, by itself or after programs.
    pub fn is_layer(&self, media_type: &str) -> bool {
        self.layer_type(media_type).is_some()
    }

    /// What the layer holds that comes of a blob.
    pub fn form(&self, media_type: &str) -> Form {
        media::form(self.layer_type(media_type).unwrap_or_default())
    }

    /// The media type of the layer that comes of a blob, if one does.
    fn layer_type<'a>(&'a self, media_type: &'a str) -> Option<&'a str> {
        let mut media_type = media_type;
        for _ in 0..=MAX_CHAIN {
            if media::role(media_type) == Role::Layer {
                return Some(media_type);
            }
            media_type = &self.of(media_type)?.1.returns;
        }
        None
    }

    /// The layer that comes of a blob; the blob itself where it is one. Starts the programs; reading blocks.
    ///
    /// # Errors
    ///
    /// When a program cannot be started. What it complains about comes as the error of reading.
    pub fn layer(&self, media_type: &str, input: Box<dyn Read + Send>) -> Result<Box<dyn Read + Send>> {
        let (mut media_type, mut layer) = (media_type, input);
        for _ in 0..MAX_CHAIN {
            if media::role(media_type) == Role::Layer {
                break;
            }
            let Some((name, one)) = self.of(media_type) else { break };
            layer = Box::new(Running::start(name, one, media_type, layer)?);
            media_type = &one.returns;
        }
        Ok(layer)
    }
}

/// A program at work: what it writes. Dropped, it is ended.
struct Running {
    name: String,
    child: Child,
    output: ChildStdout,
    /// Gives the program its input, and ends with it.
    feeder: Option<JoinHandle<io::Result<()>>>,
    /// Keeps what it complains about.
    listener: Option<JoinHandle<String>>,
}

impl Running {
    fn start(
        name: &str,
        one: &StreamProcessor,
        media_type: &str,
        input: Box<dyn Read + Send>,
    ) -> Result<Running> {
        let program = || one.path.display().to_string();
        let mut command = Command::new(&one.path);
        command.args(&one.args);
        command.envs(one.env.iter().filter_map(|variable| variable.split_once('=')));
        command.env(MEDIA_TYPE, media::bare(media_type));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start stream processor", program())?;
        let missing = || Error::new(Kind::Internal, "start stream processor", program());
        let mut stdin = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let complaints = child.stderr.take().ok_or_else(missing)?;
        let mut input = input;
        let feeder = thread::spawn(move || match io::copy(&mut input, &mut stdin) {
            // A program that has read enough closes its end.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            copied => copied.map(drop),
        });
        let listener = thread::spawn(move || {
            let mut complaints = complaints;
            let mut text = Vec::new();
            // A torn pipe counts as the end.
            let _ = (&mut complaints).take(MAX_COMPLAINT).read_to_end(&mut text);
            let _ = io::copy(&mut complaints, &mut io::sink());
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        Ok(Running { name: name.to_owned(), child, output, feeder: Some(feeder), listener: Some(listener) })
    }

    /// Waits for the end; an error unless all went well.
    fn finish(&mut self) -> io::Result<()> {
        let Some(feeder) = self.feeder.take() else { return Ok(()) };
        let status = self.child.wait()?;
        let said = self.listener.take().and_then(|listener| listener.join().ok()).unwrap_or_default();
        let fed = feeder.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
        // What kept the input from coming is the cause of what the program complains about.
        fed?;
        match status.success() {
            true => Ok(()),
            false => {
                let text = format!("stream processor {}: {said}: {status}", self.name);
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }
}

impl Read for Running {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.output.read(buffer)? {
            0 if !buffer.is_empty() => self.finish().map(|()| 0),
            length => Ok(length),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is only reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(accepts: &str, returns: &str, script: &str) -> StreamProcessor {
        StreamProcessor {
            accepts: vec![accepts.to_owned()],
            returns: returns.to_owned(),
            path: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: vec!["KEY=k".to_owned()],
        }
    }

    fn processors() -> Processors {
        let type_ = |name: &str| format!("application/vnd.test.{name}");
        Processors::new(BTreeMap::from([
            ("outer".to_owned(), processor(&type_("outer"), &type_("inner"), "tr a-y b-z")),
            (
                "inner".to_owned(),
                processor(
                    &type_("inner"),
                    media::OCI_LAYER,
                    "tr a-y b-z; echo $KEY $STREAM_PROCESSOR_MEDIATYPE",
                ),
            ),
            (
                "broken".to_owned(),
                processor(&type_("broken"), media::OCI_LAYER, "head -c 1; echo no key >&2; exit 3"),
            ),
            ("round".to_owned(), processor(&type_("round"), &type_("round"), "cat")),
        ]))
    }

    fn read(name: &str, input: Vec<u8>) -> Result<String, String> {
        let media_type = format!("application/vnd.test.{name}; x=y");
        let mut layer = processors()
            .layer(&media_type, Box::new(io::Cursor::new(input)))
            .map_err(|error| error.to_string())?;
        let mut text = String::new();
        layer.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }

    #[test]
    fn programs_follow_each_other() {
        assert_eq!(read("outer", b"abc".to_vec()).unwrap(), "cdek application/vnd.test.inner\n");
        // More than pipes hold, read by nobody in between.
        let much = read("outer", vec![b'a'; 1 << 20]).unwrap();
        assert!(much.starts_with("ccc") && much.len() > 1 << 20);
        assert_eq!(read("other", b"abc".to_vec()).unwrap(), "abc");
    }

    #[test]
    fn a_program_that_fails_fails_the_layer() {
        let error = read("broken", vec![b'a'; 1 << 20]).unwrap_err();
        assert_eq!(error, "stream processor broken: no key: exit status: 3");
        let missing = StreamProcessor { path: "/no/such".into(), ..processor("t", media::OCI_LAYER, "") };
        let processors = Processors::new(BTreeMap::from([("m".to_owned(), missing)]));
        let error = processors.layer("t", Box::new(io::empty())).err().unwrap().to_string();
        assert_eq!(error, "start stream processor /no/such: no such file or directory");
    }

    #[test]
    fn layers_are_known() {
        let processors = processors();
        for (name, expected) in [("outer", true), ("inner", true), ("round", false), ("other", false)] {
            assert_eq!(processors.is_layer(&format!("application/vnd.test.{name}")), expected, "{name}");
        }
        assert!(processors.is_layer(media::OCI_LAYER_ZSTD));
    }
}
