//! The registry's program as a child process that does not outlive this one.

use std::{
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::sync::oneshot;

/// How long it may take to end after SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// The longest line of its log that is passed on, bytes.
const LONGEST_LINE: u64 = 2000;

/// The child process, looked after by a thread of its own: the kernel sends the parent-death signal when the thread that made the child
/// ends, so that must be one which lives as long as the child.
pub(super) struct Process {
    /// Its number.
    pub(super) pid: Pid,
    ended: oneshot::Receiver<ExitStatus>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts the registry's program. When this process dies, `death` is sent to it.
    pub(super) async fn spawn(program: &Path, words: [&OsStr; 2], death: Signal, stdin: Stdio) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(words).env_clear().stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped());
        // Debian's package puts it in /usr/bin; nothing else of the environment concerns it, and OTEL or REGISTRY_* would.
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").process_group(0);
        let parent = Pid::this();
        // SAFETY: prctl and getppid are async-signal-safe, and nothing is allocated between fork and exec.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(death).map_err(io::Error::from)?;
                // It could have died before it was asked to tell.
                if Pid::parent() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
            });
        }
        let (started, pid) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new().name("registry".to_owned()).spawn(move || {
            let child = command.spawn();
            match child {
                Ok(mut child) => {
                    // A receiver that is gone changes nothing: the child is waited for all the same.
                    let _ = started.send(Ok(Pid::from_raw(child.id().cast_signed())));
                    relay_log(&mut child);
                    if let Ok(status) = child.wait() {
                        let _ = end.send(status);
                    }
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        let pid = pid.await?.with_context(|| {
            format!("cannot start {} (install it with: apt-get install docker-registry)", program.display())
        })?;
        Ok(Self { pid, ended, status: None })
    }

    /// Waits for the end; may be asked again.
    pub(super) async fn ended(&mut self) -> String {
        if self.status.is_none() {
            self.status = (&mut self.ended).await.ok();
        }
        self.status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string())
    }

    /// Whether it has ended as it should.
    pub(super) fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// SIGTERM, then SIGKILL; returns when it has ended.
    pub(super) async fn stop(&mut self) {
        for (signal, grace) in [(Signal::SIGTERM, STOP_GRACE), (Signal::SIGKILL, STOP_GRACE)] {
            if self.status.is_some() || kill(self.pid, signal).is_err() {
                return;
            }
            if tokio::time::timeout(grace, self.ended()).await.is_ok() {
                return;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only a child that has not been waited for: the number may be another's by now.
        if self.status.is_none() && matches!(self.ended.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            // It may have ended this very moment.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

/// Passes the registry's messages on to Berth's own log, until it closes its standard error.
fn relay_log(child: &mut Child) {
    let Some(stderr) = child.stderr.take() else { return };
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line), Ok(length) if length > 0) {
        tracing::warn!(target: "berth::registry", "{}", String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a killed server would be: another process that starts one, and is then killed.
    #[test]
    fn it_dies_with_the_process_that_made_it() {
        const AS_PARENT: &str = "BERTH_TEST_REGISTRY_PARENT";
        if let Some(file) = std::env::var_os(AS_PARENT) {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let words = [OsStr::new("600"), OsStr::new("1")];
                let process =
                    Process::spawn(Path::new("/bin/sleep"), words, Signal::SIGKILL, Stdio::null()).await.unwrap();
                std::fs::write(file, process.pid.to_string()).unwrap();
                std::future::pending::<()>().await;
            });
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let mut parent = Command::new(std::env::current_exe().unwrap());
        parent
            .args(["--exact", "registry::process::tests::it_dies_with_the_process_that_made_it"])
            .env(AS_PARENT, &file);
        let mut parent = parent.stdout(Stdio::null()).spawn().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let wait = |done: &dyn Fn() -> bool| {
            while !done() {
                assert!(std::time::Instant::now() < deadline, "not in time");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let child = || std::fs::read_to_string(&file).ok().and_then(|text| text.parse::<i32>().ok());
        wait(&|| child().is_some());
        let child = Pid::from_raw(child().unwrap());
        assert!(kill(child, None).is_ok());
        parent.kill().unwrap();
        parent.wait().unwrap();
        // Gone, or dead and waiting for whoever takes in orphans.
        let state = |pid: Pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        wait(&|| state(child).is_empty() || state(child).contains(") Z "));
    }
}
