use super::*;

const CONNECTION: u64 = 1;

fn call(stream: u32) -> Call {
    Call { connection: CONNECTION, stream, deadline: None }
}

fn exit(status: u32) -> Exit {
    Exit { status, at: SystemTime::UNIX_EPOCH }
}

fn pid(pid: i32) -> Result<Report> {
    Ok(Report { pid: Some(pid), ..Report::default() })
}

fn done() -> Result<Report> {
    Ok(Report::default())
}

fn failure() -> Result<Report> {
    Err(Error::exactly(Kind::Unknown, "runtime failed"))
}

/// Effects in a form that reads well in a comparison.
fn show(effects: &[Effect]) -> Vec<String> {
    effects
        .iter()
        .map(|effect| match effect {
            Effect::Reply(call, Ok(Reply::Empty)) => format!("{}: ok", call.stream),
            Effect::Reply(call, Ok(Reply::Pid(pid))) => format!("{}: pid {pid}", call.stream),
            Effect::Reply(call, Ok(Reply::Waited(exit))) => format!("{}: exit {}", call.stream, exit.status),
            Effect::Reply(call, Ok(Reply::Deleted { pid, exit })) => {
                format!("{}: deleted {pid} exit {:?}", call.stream, exit.map(|exit| exit.status))
            }
            Effect::Reply(call, Ok(Reply::State(snapshot))) => {
                format!("{}: {} {}", call.stream, snapshot.id, snapshot.state.name())
            }
            Effect::Reply(call, Err(error)) => format!("{}: {error}", call.stream),
            Effect::Publish(Event::Exit { exec, exit, .. }) => format!("event exit {exec:?} {}", exit.status),
            Effect::Publish(event) => format!("event {event:?}"),
            Effect::Run(job, _) => format!("run {job:?}"),
            Effect::Watch(pid) => format!("watch {pid}"),
            Effect::Record(pid, exit) => format!("record {pid} {}", exit.status),
            Effect::Release { exec } => format!("release {exec:?}"),
            Effect::Signal(call, pid, signal) => format!("{}: signal {pid} {signal}", call.stream),
            other => format!("{other:?}"),
        })
        .collect()
}

/// A machine under test.
struct Machine(Task);

impl Machine {
    fn creating() -> Machine {
        let creation = Creation { id: "c".into(), bundle: "/b".into(), ..Creation::default() };
        let (task, effects) = Task::create(call(1), creation);
        assert_eq!(show(&effects), ["run Create"]);
        Machine(task)
    }

    fn created() -> Machine {
        let mut machine = Machine::creating();
        assert_eq!(
            machine.finish(Job::Create, pid(10)),
            ["1: pid 10", "event Create { pid: 10 }", "watch 10"]
        );
        machine
    }

    fn running() -> Machine {
        let mut machine = Machine::created();
        assert_eq!(machine.ask(2, start("")), ["run Start { exec: \"\" }"]);
        assert_eq!(machine.finish(job_start(""), done()), ["event Start { pid: 10 }", "2: pid 10"]);
        machine
    }

    /// With an exec "e" that runs as 20.
    fn with_exec() -> Machine {
        let mut machine = Machine::running();
        machine.add_exec("e");
        machine.ask(4, start("e"));
        let shown = machine.finish(job_start("e"), pid(20));
        assert_eq!(shown, ["event ExecStarted { exec: \"e\", pid: 20 }", "4: pid 20"]);
        machine
    }

    fn add_exec(&mut self, exec: &str) {
        let command = Command::Exec { exec: exec.into(), stdio: Stdio::default(), spec: b"{}".to_vec() };
        let shown = self.ask(3, command);
        assert_eq!(shown, [format!("event ExecAdded {{ exec: {exec:?} }}"), "3: ok".to_owned()]);
    }

    fn ask(&mut self, stream: u32, command: Command) -> Vec<String> {
        show(&self.0.step(Input::Request(call(stream), command)))
    }

    fn finish(&mut self, job: Job, result: Result<Report>) -> Vec<String> {
        show(&self.0.step(Input::Finished(job, result)))
    }

    fn exits(&mut self, pid: i32, status: u32) -> Vec<String> {
        show(&self.0.step(Input::Exited(pid, exit(status))))
    }
}

fn start(exec: &str) -> Command {
    Command::Start { exec: exec.into() }
}

fn delete(exec: &str) -> Command {
    Command::Delete { exec: exec.into() }
}

fn wait(exec: &str) -> Command {
    Command::Wait { exec: exec.into() }
}

fn state(exec: &str) -> Command {
    Command::State { exec: exec.into() }
}

fn kill(exec: &str, signal: i32) -> Command {
    Command::Kill { exec: exec.into(), signal, all: false }
}

fn job_start(exec: &str) -> Job {
    Job::Start { exec: exec.into() }
}

fn drain(exec: &str) -> Job {
    Job::Drain { exec: exec.into() }
}

#[test]
fn a_whole_life() {
    let mut machine = Machine::running();
    assert!(machine.ask(5, wait("")).is_empty());
    assert_eq!(machine.ask(6, state("")), ["6: c running"]);
    assert_eq!(machine.exits(10, 7), ["record 10 7", "event exit \"\" 7", "5: exit 7"]);
    assert_eq!(machine.ask(7, wait("")), ["7: exit 7"]);
    assert_eq!(machine.ask(8, state("")), ["8: c stopped"]);
    assert_eq!(machine.ask(9, delete("")), ["run Delete"]);
    assert_eq!(machine.finish(Job::Delete, done()), ["run Drain { exec: \"\" }"]);
    assert_eq!(machine.finish(drain(""), done()), ["run Unmount"]);
    let shown = machine.finish(Job::Unmount, done());
    assert!(shown[0].starts_with("event Delete { pid: 10"));
    assert_eq!(shown[1..], ["9: deleted 10 exit Some(7)", "release \"\"", "Forget"]);
}

#[test]
fn before_it_is_created_a_container_does_not_exist() {
    let mut machine = Machine::creating();
    for command in [start(""), state(""), wait(""), kill("", 9), delete(""), Command::Pids] {
        assert_eq!(machine.ask(2, command), ["2: container not created: not found"]);
    }
}

#[test]
fn a_failed_creation_is_undone_before_it_is_told() {
    for (job, images) in [(Job::Prepare, "/i"), (Job::Create, "")] {
        let creation = Creation { id: "c".into(), images: images.into(), ..Creation::default() };
        let (task, _) = Task::create(call(1), creation);
        let mut machine = Machine(task);
        assert_eq!(machine.finish(job, failure()), ["run Undo"]);
        assert_eq!(machine.finish(Job::Undo, done()), ["1: runtime failed", "release \"\"", "Forget"]);
    }
    let mut machine = Machine::creating();
    machine.finish(Job::Create, failure());
    let undo = Err(Error::exactly(Kind::Unknown, "still mounted"));
    assert_eq!(
        machine.finish(Job::Undo, undo)[0],
        "1: runtime failed: cleaning up failed too: still mounted"
    );
}

#[test]
fn a_runtime_that_leaves_no_pid_file_has_failed() {
    let mut machine = Machine::creating();
    assert_eq!(machine.finish(Job::Create, done()), ["run Undo"]);
    let shown = machine.finish(Job::Undo, done());
    assert_eq!(shown[0], "1: OCI runtime create failed: it left no pid file");
}

#[test]
fn an_exit_during_start_is_published_after_it() {
    let mut machine = Machine::created();
    machine.ask(2, start(""));
    assert!(machine.exits(10, 3).is_empty());
    assert_eq!(
        machine.finish(job_start(""), done()),
        ["event Start { pid: 10 }", "2: pid 10", "record 10 3", "event exit \"\" 3"]
    );
}

#[test]
fn an_exit_before_start_makes_starting_impossible() {
    let mut machine = Machine::created();
    assert_eq!(machine.exits(10, 137), ["record 10 137", "event exit \"\" 137"]);
    assert_eq!(machine.ask(2, start("")), ["2: cannot start a stopped process: failed precondition"]);
}

#[test]
fn a_start_that_fails_with_the_process_dead_tells_both() {
    let mut machine = Machine::created();
    machine.ask(2, start(""));
    machine.exits(10, 1);
    assert_eq!(
        machine.finish(job_start(""), failure()),
        ["2: runtime failed", "record 10 1", "event exit \"\" 1"]
    );
    assert_eq!(machine.ask(3, wait("")), ["3: exit 1"]);
}

#[test]
fn an_exec_that_cannot_start_keeps_nobody_waiting() {
    let mut machine = Machine::running();
    machine.add_exec("e");
    assert!(machine.ask(4, wait("e")).is_empty());
    machine.ask(5, start("e"));
    assert_eq!(
        machine.finish(job_start("e"), failure()),
        ["5: runtime failed", "4: exit 255", "release \"e\""]
    );
    assert_eq!(machine.ask(6, delete("e")), ["run Drain { exec: \"e\" }"]);
    assert_eq!(machine.finish(drain("e"), done()), ["6: deleted 0 exit Some(255)", "release \"e\""]);
    assert_eq!(machine.ask(7, state("e")), ["7: process does not exist e: not found"]);
}

#[test]
fn execs_exit_before_their_container() {
    let mut machine = Machine::with_exec();
    assert!(machine.exits(10, 137).is_empty(), "the container's exit waits");
    assert_eq!(machine.ask(5, state("")), ["5: c running"]);
    assert_eq!(
        machine.ask(6, start("e")),
        ["6: container c init process is not running: failed precondition"]
    );
    assert_eq!(machine.exits(20, 9), ["event exit \"e\" 9", "record 10 137", "event exit \"\" 137"]);
}

#[test]
fn an_exec_being_started_holds_the_containers_exit_back_too() {
    let mut machine = Machine::running();
    machine.add_exec("e");
    machine.ask(4, start("e"));
    assert!(machine.exits(10, 0).is_empty());
    // The runtime names a process that has ended meanwhile: the reaper hands its exit in next.
    assert_eq!(
        machine.finish(job_start("e"), pid(20)),
        ["event ExecStarted { exec: \"e\", pid: 20 }", "4: pid 20"]
    );
    assert_eq!(machine.exits(20, 1), ["event exit \"e\" 1", "record 10 0", "event exit \"\" 0"]);

    let mut machine = Machine::running();
    machine.add_exec("e");
    machine.ask(4, start("e"));
    machine.exits(10, 0);
    assert_eq!(
        machine.finish(job_start("e"), failure()),
        ["4: runtime failed", "release \"e\"", "record 10 0", "event exit \"\" 0"]
    );
}

#[test]
fn with_a_shared_pid_namespace_the_rest_is_killed_first() {
    let mut machine = Machine::creating();
    machine.finish(Job::Create, Ok(Report { pid: Some(10), shares_pids: true }));
    machine.ask(2, start(""));
    machine.finish(job_start(""), done());
    assert_eq!(machine.exits(10, 0), ["run KillRest"]);
    assert_eq!(machine.finish(Job::KillRest, failure()), ["record 10 0", "event exit \"\" 0"]);
}

#[test]
fn one_job_at_a_time_and_the_rest_in_order() {
    let mut machine = Machine::created();
    machine.ask(2, start(""));
    assert!(machine.ask(3, kill("", 15)).is_empty());
    assert!(machine.ask(4, Command::Pause).is_empty());
    assert!(machine.ask(5, delete("")).is_empty());
    let job = Job::Kill { signal: 15, all: false };
    assert_eq!(
        machine.finish(job_start(""), done()),
        ["event Start { pid: 10 }", "2: pid 10", &format!("run {job:?}")]
    );
    assert_eq!(machine.finish(job, done()), ["3: ok", "run Pause"]);
    assert_eq!(
        machine.finish(Job::Pause, done()),
        ["event Paused", "4: ok", "5: cannot delete a paused process: failed precondition"]
    );
}

#[test]
fn pause_and_resume_follow_the_state() {
    let mut machine = Machine::running();
    assert_eq!(
        machine.ask(3, Command::Resume),
        ["3: cannot resume a running container: failed precondition"]
    );
    machine.ask(4, Command::Pause);
    assert_eq!(machine.ask(5, state("")), ["5: c pausing"]);
    machine.finish(Job::Pause, done());
    assert_eq!(machine.ask(6, state("")), ["6: c paused"]);
    let exec = Command::Exec { exec: "e".into(), stdio: Stdio::default(), spec: Vec::new() };
    assert_eq!(machine.ask(7, exec), ["7: cannot exec in a paused state"]);
    assert_eq!(machine.ask(8, Command::Resume), ["run Resume"]);
    assert_eq!(machine.finish(Job::Resume, failure()), ["8: runtime failed"]);
    assert_eq!(machine.ask(9, state("")), ["9: c paused"]);
    machine.ask(10, Command::Resume);
    assert_eq!(machine.finish(Job::Resume, done()), ["event Resumed", "10: ok"]);
}

#[test]
fn a_paused_containers_execs_are_paused() {
    let mut machine = Machine::with_exec();
    machine.ask(5, Command::Pause);
    machine.finish(Job::Pause, done());
    assert_eq!(machine.ask(6, state("e")), ["6: e paused"]);
}

#[test]
fn signals_find_only_the_living() {
    let mut machine = Machine::with_exec();
    assert_eq!(machine.ask(5, kill("e", 10)), ["5: signal 20 10"]);
    machine.exits(20, 0);
    assert_eq!(machine.ask(6, kill("e", 10)), ["6: process already finished: not found"]);
    machine.add_exec("f");
    assert_eq!(machine.ask(7, kill("f", 9)), ["7: process not created: failed precondition"]);
    machine.ask(8, kill("", 9));
    // It ended while the runtime was looking for it.
    machine.exits(10, 0);
    assert_eq!(
        machine.finish(Job::Kill { signal: 9, all: false }, failure()),
        ["8: process already finished: not found"]
    );
    assert_eq!(machine.ask(9, kill("", 9)), ["9: process already finished: not found"]);
}

#[test]
fn deleting_a_container_that_never_started_waits_for_its_exit() {
    let mut machine = Machine::created();
    assert!(machine.ask(2, wait("")).is_empty());
    machine.ask(3, delete(""));
    machine.finish(Job::Delete, done());
    machine.finish(drain(""), done());
    assert!(machine.finish(Job::Unmount, done()).is_empty());
    let shown = machine.exits(10, 137);
    assert_eq!(shown[..3], ["record 10 137", "event exit \"\" 137", "2: exit 137"]);
    assert_eq!(shown[4..], ["3: deleted 10 exit Some(137)", "release \"\"", "Forget"]);
}

#[test]
fn a_deletion_that_fails_can_be_asked_for_again() {
    let mut machine = Machine::running();
    machine.exits(10, 0);
    machine.ask(3, delete(""));
    assert_eq!(machine.finish(Job::Delete, failure()), ["3: runtime failed"]);
    machine.ask(4, delete(""));
    machine.finish(Job::Delete, done());
    machine.finish(drain(""), done());
    assert_eq!(machine.finish(Job::Unmount, failure()), ["4: runtime failed"]);
    assert_eq!(machine.ask(5, delete("")), ["run Delete"]);
}

#[test]
fn what_runs_cannot_be_deleted() {
    let mut machine = Machine::with_exec();
    assert_eq!(machine.ask(5, delete("")), ["5: cannot delete a running process: failed precondition"]);
    assert_eq!(machine.ask(6, delete("e")), ["6: cannot delete a running process: failed precondition"]);
}

#[test]
fn deleting_the_container_answers_everyone() {
    let mut machine = Machine::running();
    machine.add_exec("e");
    assert!(machine.ask(4, wait("e")).is_empty());
    machine.exits(10, 0);
    machine.ask(5, delete(""));
    assert!(machine.ask(6, kill("", 9)).is_empty());
    machine.finish(Job::Delete, done());
    machine.finish(drain(""), done());
    let shown = machine.finish(Job::Unmount, done());
    assert!(shown.contains(&"4: process was deleted: not found".to_owned()));
    assert!(shown.contains(&"6: process was deleted: not found".to_owned()));
    assert!(shown.contains(&"release \"e\"".to_owned()));
}

#[test]
fn a_client_that_left_gets_no_answers() {
    let mut machine = Machine::created();
    machine.ask(2, start(""));
    machine.ask(3, wait(""));
    machine.ask(4, kill("", 9));
    assert!(show(&machine.0.step(Input::Disconnected(CONNECTION))).is_empty());
    // What was under way goes on and is published; what waited is not begun for nobody.
    assert_eq!(machine.finish(job_start(""), done()), ["event Start { pid: 10 }", "2: pid 10"]);
    assert_eq!(machine.exits(10, 0), ["record 10 0", "event exit \"\" 0"]);
}

#[test]
fn ids_of_execs_are_used_once() {
    let mut machine = Machine::with_exec();
    let again = Command::Exec { exec: "e".into(), stdio: Stdio::default(), spec: Vec::new() };
    assert_eq!(machine.ask(5, again.clone()), ["5: id e: already exists"]);
    machine.exits(20, 0);
    assert_eq!(machine.ask(6, again.clone()), ["6: id e: already exists"]);
    machine.ask(7, delete("e"));
    machine.finish(drain("e"), done());
    assert_eq!(machine.ask(8, again), ["event ExecAdded { exec: \"e\" }", "8: ok"]);
}

#[test]
fn exits_of_strangers_change_nothing() {
    let mut machine = Machine::with_exec();
    assert!(!machine.0.owns(99));
    assert!(machine.exits(99, 0).is_empty());
    machine.exits(20, 0);
    assert!(!machine.0.owns(20), "a pid that is used again is no exec's any more");
    assert!(machine.0.owns(10));
}

#[test]
fn lack_of_memory_is_published() {
    let mut machine = Machine::running();
    assert_eq!(show(&machine.0.step(Input::OutOfMemory)), ["event OutOfMemory"]);
}

fn checkpoint() -> Checkpoint {
    Checkpoint { images: "/i".into(), ..Checkpoint::default() }
}

#[test]
fn a_container_is_saved_while_it_runs_and_not_before() {
    let mut machine = Machine::created();
    let command = || Command::Checkpoint(checkpoint());
    assert_eq!(machine.ask(3, command()), ["3: cannot checkpoint a created container: failed precondition"]);
    let mut machine = Machine::running();
    let run = format!("run {:?}", Job::Checkpoint(checkpoint()));
    assert_eq!(machine.ask(3, command()), std::slice::from_ref(&run));
    // One at a time, as all that changes the container.
    assert_eq!(machine.ask(5, command()), Vec::<String>::new());
    let saved = machine.finish(Job::Checkpoint(checkpoint()), done());
    assert_eq!(saved, ["event Checkpointed { images: \"/i\" }", "3: ok", &run]);
    assert_eq!(machine.finish(Job::Checkpoint(checkpoint()), failure()), ["5: runtime failed"]);
}

/// A container that was saved, and is to be restored.
fn saved() -> Machine {
    let creation = Creation { id: "c".into(), images: "/i".into(), ..Creation::default() };
    let mut machine = Machine(Task::create(call(1), creation).0);
    assert_eq!(machine.finish(Job::Prepare, done()), ["event Create { pid: 0 }", "1: pid 0"]);
    machine
}

#[test]
fn a_saved_container_is_restored_when_it_is_started() {
    let mut machine = saved();
    assert_eq!(machine.ask(3, start("")), ["run Start { exec: \"\" }"]);
    let shown = machine.finish(job_start(""), pid(10));
    assert_eq!(shown, ["watch 10", "event Start { pid: 10 }", "3: pid 10"]);
    assert!(machine.0.owns(10));
    assert_eq!(machine.exits(10, 7), ["record 10 7", "event exit \"\" 7"]);
}

#[test]
fn a_saved_container_that_cannot_be_restored_is_deleted() {
    let mut machine = saved();
    machine.ask(3, start(""));
    assert_eq!(machine.finish(job_start(""), failure()), ["3: runtime failed"]);
    assert_eq!(machine.ask(5, delete("")), ["run Delete"]);
    machine.finish(Job::Delete, done());
    machine.finish(Job::Drain { exec: String::new() }, done());
    let shown = machine.finish(Job::Unmount, done());
    assert!(shown[0].starts_with("event Delete { pid: 0,"), "{shown:?}");
    assert_eq!(shown[1], "5: deleted 0 exit Some(0)");
}
