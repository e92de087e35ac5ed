//! `RUN`: a container whose files become a layer.

use std::sync::Arc;

use serde_json::json;

use super::change::words;
use super::dockerfile::Run;
use super::files::make_directories;
use super::output::{Broken, Console, short};
use super::stage::{Build, State};
use crate::docker::container::Container;
use crate::docker::container::config::{Config, CreateBody, Healthcheck};
use crate::docker::failure::Failure;
use crate::docker::message::Channel;

/// Where a script of a here-document is in the container.
const SCRIPTS: &str = "/dev/pipes";
/// Before and after what comes from standard error: clients show it in red.
const RED: (&str, &str) = ("\u{1b}[91m", "\u{1b}[0m");

/// A command with what its here-documents make of it.
enum Script {
    /// Words to run.
    Words(Vec<String>),
    /// A script with an interpreter of its own: its name and its text.
    File(String, String),
}

/// What is run.
fn script(run: &Run, config: &Config) -> Script {
    let Some(first) = run.heredocs.first() else { return Script::Words(words(&run.line, config)) };
    let text = run.line.words.first().cloned().unwrap_or_default();
    let mut line = run.line.clone();
    let is_bare = text.trim_start_matches(|letter: char| letter.is_ascii_digit()).starts_with("<<")
        && text.split_whitespace().count() <= 2
        && run.heredocs.len() == 1
        && !text.contains(['|', '>', ';', '&']);
    if is_bare {
        let content = first.text();
        if content.starts_with("#!") {
            return Script::File(first.name.clone(), content);
        }
        line.words = vec![content];
    } else {
        // The shell reads its here-documents itself.
        let documents = run.heredocs.iter().map(|heredoc| format!("\n{}{}", heredoc.content, heredoc.name));
        line.words = vec![std::iter::once(text).chain(documents).collect()];
    }
    Script::Words(words(&line, config))
}

impl Build {
    /// Runs a command and makes a layer of what it changed.
    pub(super) async fn run(&self, state: &mut State, run: &Run, console: &Console) -> Result<(), Broken> {
        let config = state.draft.config.clone();
        let (command, file) = match script(run, &config) {
            Script::Words(words) => (words, None),
            Script::File(name, text) => (vec![format!("{SCRIPTS}/{name}")], Some((name, text))),
        };
        let visible = state.arguments.visible(&config.env);
        let mut said: Vec<String> = state.arguments.counting(&visible);
        said.extend(command.iter().cloned());
        // The text of a script counts, not its name.
        let mut counted = said.clone();
        counted.extend(file.as_ref().map(|(_, text)| text.clone()));
        let (said, counted) = (said.join(" "), counted.join(" "));
        if self.take_cached(state, &said, &counted, console).await? {
            return Ok(());
        }
        let mut host = self.wishes.host.clone();
        if let Some((name, text)) = &file {
            let directory = self.work.join(&format!("scripts-{}", crate::docker::container::fresh_id()?));
            let path = directory.join(name);
            write_script(&directory, &path, text)?;
            host.binds.push(format!("{}:{SCRIPTS}/{name}:ro", path.display()));
        }
        let config = Config {
            env: config.env.iter().chain(&visible).cloned().collect(),
            cmd: Some(command.clone()),
            // Ours alone: the image's entry point has no part in it.
            entrypoint: Some(vec![String::new()]),
            healthcheck: Some(Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() }),
            image: state.found.id.clone(),
            attach_stdout: true,
            attach_stderr: true,
            ..config
        };
        let body = CreateBody { config, host_config: host, is_step: true, ..CreateBody::default() };
        let created = self.engine.create_container_of(&state.found, None, body).await?;
        let container = self.engine.containers.get(&created.id)?;
        console.say(format!(" ---> Running in {}\n", short(&container.id))).await;
        let done = self.run_container(&container, &command, console).await;
        let done = match done {
            Ok(()) => self.commit(state, &container.id, &said, &counted).await,
            Err(broken) => Err(broken),
        };
        let removes = match &done {
            Ok(()) => self.wishes.removes,
            Err(_) => self.wishes.always_removes || self.stop.is_cancelled(),
        };
        if removes {
            self.engine.remove_container(&container, true, true).await?;
            console.say(format!(" ---> Removed intermediate container {}\n", short(&container.id))).await;
        } else {
            // It is the client's from here on.
            self.engine.change(&container, |record| record.is_step = false).await?;
        }
        done
    }

    /// Runs a container to its end.
    async fn run_container(
        &self,
        container: &Arc<Container>,
        command: &[String],
        console: &Console,
    ) -> Result<(), Broken> {
        let mut heard = container.output.listen();
        let mut milestones = container.milestones.subscribe();
        let output = console.clone();
        let telling = tokio::spawn(async move {
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            while let Some((channel, data)) = heard.recv().await {
                let is_error = channel == Channel::Stderr;
                let held = if is_error { &mut stderr } else { &mut stdout };
                held.extend_from_slice(&data);
                let text = whole_letters(held);
                if !text.is_empty() {
                    output.say(if is_error { format!("{}{text}{}", RED.0, RED.1) } else { text }).await;
                }
            }
        });
        let ended = async {
            self.engine.start_container(container).await?;
            let ended = milestones.wait_for(|now| now.exits > 0 || now.removed).await;
            let code = ended.map_err(|error| Failure::internal(error.to_string()))?.code;
            Ok::<_, Failure>(code)
        };
        let code = tokio::select! {
            code = ended => code,
            () = self.stop.cancelled() => Err(Failure::internal("Build cancelled")),
        };
        // When it was given up, the container goes on until it is removed.
        if code.is_ok() {
            // Ignoring: what could not be told is not told.
            let _ = telling.await;
        } else {
            telling.abort();
        }
        match code? {
            0 => Ok(()),
            code => {
                let text = format!("The command '{}' returned a non-zero code: {code}", command.join(" "));
                Err(Broken { failure: Failure::internal(text), code: Some(code) })
            }
        }
    }

    /// Makes the directory of `WORKDIR`.
    pub(super) async fn work_directory(
        &self,
        state: &mut State,
        said: String,
        console: &Console,
    ) -> Result<(), Broken> {
        let said = state.nop(&said, " ");
        if self.take_cached(state, &said, &said, console).await? {
            return Ok(());
        }
        let path = state.draft.config.working_dir.clone();
        self.change_files(state, &said, &said, move |root| make_directories(&root, &path, (0, 0)).map(drop))
            .await
    }
}

fn write_script(directory: &std::path::Path, path: &std::path::Path, text: &str) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;

    use orlop_proto::error::Context;
    let name = || path.display().to_string();
    std::fs::create_dir_all(directory).context("create", name())?;
    std::fs::write(path, text).context("write", name())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .context("change mode of", name())?;
    Ok(())
}

/// Takes the letters that are complete; the start of one waits for its rest.
fn whole_letters(held: &mut Vec<u8>) -> String {
    let complete = match std::str::from_utf8(held) {
        Ok(_) => held.len(),
        // No more bytes can make a letter of what is wrong in the middle.
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => held.len(),
    };
    let text = String::from_utf8_lossy(&held[..complete]).into_owned();
    held.drain(..complete);
    text
}

/// A step in an image's history.
pub fn history_step(said: &str, author: &str, created: &str) -> serde_json::Value {
    let mut step = json!({ "created": created, "created_by": said });
    if !author.is_empty() {
        step["author"] = json!(author);
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::build::dockerfile::{Command, instructions};

    fn run(text: &str) -> Script {
        let steps = instructions(text).unwrap();
        let Command::Run(run) = &steps[0].command else { panic!("{steps:?}") };
        script(run, &Config::default())
    }

    fn words_of(text: &str) -> Vec<String> {
        match run(text) {
            Script::Words(words) => words,
            Script::File(name, _) => panic!("{name}"),
        }
    }

    #[test]
    fn here_documents_are_scripts_or_the_shells_own() {
        assert_eq!(words_of("RUN a b"), ["/bin/sh", "-c", "a b"]);
        assert_eq!(words_of("RUN [\"a\", \"b\"]"), ["a", "b"]);
        assert_eq!(words_of("RUN <<-E\n\ta\n\tb\nE"), ["/bin/sh", "-c", "a\nb\n"]);
        assert_eq!(words_of("RUN cat <<E > /f\na\nE"), ["/bin/sh", "-c", "cat <<E > /f\na\nE"]);
        let Script::File(name, text) = run("RUN <<E\n#!/bin/x\na\nE") else { panic!() };
        assert_eq!((name.as_str(), text.as_str()), ("E", "#!/bin/x\na\n"));
    }

    #[test]
    fn letters_wait_for_their_rest() {
        let mut held = b"a\xc3".to_vec();
        assert_eq!(whole_letters(&mut held), "a");
        held.push(0xa9);
        assert_eq!(whole_letters(&mut held), "é");
        held.extend_from_slice(b"\xffb");
        assert_eq!(whole_letters(&mut held), "\u{fffd}b");
    }
}
