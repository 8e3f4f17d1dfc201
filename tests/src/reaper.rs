//! Ends what a test run started, however the run itself ends.
//!
//! A shell waits on a pipe from this process. It has been told of every server process and container; when the pipe
//! closes (the run finished, was interrupted or was killed) it ends those that are left.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock},
};

const SCRIPT: &str = r#"
pids=" " containers=""
while read -r what id; do
  case $what in
    process) pids="$pids$id " ;;
    ended) pids="${pids%% $id *} ${pids#* $id }" ;;
    container) containers="$containers $id" ;;
  esac
done
[ -z "${pids## }" ] || kill -KILL $pids
[ -z "$containers" ] || docker rm --force --volumes $containers
"#;

fn tell(line: &str) {
    static PIPE: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    #[expect(clippy::zombie_processes, reason = "it outlives this process")]
    let pipe = PIPE.get_or_init(|| {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // so that an interrupt from the keyboard does not end it first
            .spawn()
            .expect("cannot start sh");
        Mutex::new(shell.stdin.take().expect("the pipe was asked for"))
    });
    let mut pipe = pipe.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    writeln!(pipe, "{line}").expect("the reaper is gone");
}

/// To be killed at the end of the run.
pub(crate) fn process_started(pid: u32) {
    tell(&format!("process {pid}"));
}

/// No longer to be killed: the number may come to belong to another process.
pub(crate) fn process_ended(pid: u32) {
    tell(&format!("ended {pid}"));
}

/// To be removed at the end of the run.
pub(crate) fn container_started(id: &str) {
    tell(&format!("container {id}"));
}
