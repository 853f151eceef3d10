//! The pump between a client and a git process that speaks the wire protocol.
//!
//! Nothing is gathered: bytes wait in git's pipes or with the client. When this process dies, its git processes see their pipes close
//! and end by themselves; when a [`serve`] call is dropped, their whole process group is killed.

use std::{io, os::fd::AsFd, process::ExitStatus};

use bytes::{Bytes, BytesMut};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{ChildStdin, Command},
    sync::mpsc,
};

use super::{idle::Idle, limits};

/// Size asked for git's input pipe, in bytes: fewer wake-ups per megabyte. The kernel may refuse; then it is 64 KiB.
const INPUT_PIPE: i32 = 1024 * 1024;
/// How much of git's output is read at once, in bytes.
const OUTPUT_CHUNK: usize = 64 * 1024;

/// A piece of output for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Out(Bytes),
    Err(Bytes),
}

/// The client's side: what it sends, and where its output goes. The channel is bounded; a slow client slows git.
pub struct WireIo {
    pub stdin: Box<dyn AsyncBufRead + Send + Unpin>,
    pub output: mpsc::Sender<Frame>,
}

/// What is done when the client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenGone {
    /// Kill git.
    Kill,
    /// Let git finish what it has, and drop its output.
    Finish,
}

/// How it went.
#[derive(Debug)]
pub struct Served {
    pub status: ExitStatus,
    /// Bytes that the client sent.
    pub received: u64,
}

/// The part of a client's `GIT_PROTOCOL` that is passed on: a version that git knows. Anything else is dropped, as git would.
pub fn protocol(value: &str) -> Option<&'static str> {
    let mut parts = value.split(':').filter_map(|part| match part {
        "version=0" => Some("version=0"),
        "version=1" => Some("version=1"),
        "version=2" => Some("version=2"),
        _ => None,
    });
    if value.len() > 256 { None } else { parts.next() }
}

/// Whether the first bytes of a push say that it comes from a shallow clone (gitprotocol-pack(5): `shallow` lines come first).
pub fn is_shallow_push(first: &[u8]) -> bool {
    first.get(4..12) == Some(b"shallow ")
}

/// Kills a process group when it is dropped, unless the leader has been waited for.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Gone already is as good.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs a git process made by [`super::Git::serve`] for a client until it ends. `on_first` sees the first bytes the client sends.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] when nothing moved for as long as `idle` lets it; [`io::ErrorKind::BrokenPipe`] when the client is gone
/// and git was to be killed then.
pub async fn serve(
    mut command: Command,
    io: WireIo,
    when_gone: WhenGone,
    idle: &Idle,
    on_first: impl FnOnce(&[u8]) + Send,
) -> io::Result<Served> {
    let mut child = command.spawn()?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    if let Some(process) = group.0 {
        // Before it gets anything to read from the client.
        limits::confine(process)?;
    }
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
        return Err(io::Error::other("git was started without pipes"));
    };
    // Only for speed; see INPUT_PIPE.
    let _ = fcntl(stdin.as_fd(), FcntlArg::F_SETPIPE_SZ(INPUT_PIPE));
    let mut received = 0;
    let output = io.output.clone();
    let relay = async {
        let (out, err) = tokio::join!(
            drain(stdout, &output, Frame::Out, when_gone, idle),
            drain(stderr, &io.output, Frame::Err, when_gone, idle)
        );
        out.and(err)
    };
    let feed = async {
        feed(io.stdin, stdin, &mut received, idle, on_first).await;
        // git may end without having read everything, and the client may keep its end open: only the output says when it is over.
        std::future::pending().await
    };
    let relayed = tokio::select! {
        biased;
        relayed = relay => relayed,
        never = feed => never,
        () = idle.expired() => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was sent or received for too long")),
    };
    relayed?;
    let status = child.wait().await?;
    group.0 = None;
    Ok(Served { status, received })
}

/// Client to git. An input that breaks off closes git's input, so that git notices.
async fn feed(
    mut from: Box<dyn AsyncBufRead + Send + Unpin>,
    mut to: ChildStdin,
    received: &mut u64,
    idle: &Idle,
    on_first: impl FnOnce(&[u8]) + Send,
) {
    let mut on_first = Some(on_first);
    while let Ok(chunk) = from.fill_buf().await {
        if chunk.is_empty() {
            break;
        }
        if let Some(look) = on_first.take() {
            look(chunk);
        }
        // git has closed its input: it has said why, or will, on its output.
        let Ok(length) = to.write(chunk).await else { break };
        from.consume(length);
        *received += length as u64;
        idle.moved();
    }
}

/// git to client.
async fn drain(
    mut from: impl AsyncRead + Unpin,
    to: &mpsc::Sender<Frame>,
    frame: fn(Bytes) -> Frame,
    when_gone: WhenGone,
    idle: &Idle,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(OUTPUT_CHUNK);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let gone = to.send(frame(buffer.split().freeze())).await.is_err();
        idle.moved();
        if gone && when_gone == WhenGone::Kill {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Stdio, time::Duration};

    use super::*;

    #[test]
    fn only_known_protocol_versions_pass() {
        let table = [
            ("version=2", Some("version=2")),
            ("version=1", Some("version=1")),
            ("version=0", Some("version=0")),
            ("foo:version=2", Some("version=2")),
            ("version=3", None),
            ("", None),
            ("version=2\nX=1", None),
            ("version=2;rm -rf /", None),
            ("$(id)", None),
        ];
        for (value, want) in table {
            assert_eq!(protocol(value), want, "{value:?}");
        }
        assert_eq!(protocol(&format!("{}version=2", "a:".repeat(200))), None);
    }

    #[tokio::test]
    async fn git_and_what_it_starts_are_limited_before_they_read() {
        let mut command = Command::new("sh");
        command.args(["-c", "read -r line; cat /proc/self/limits /proc/self/oom_score_adj"]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (output, mut frames) = mpsc::channel(64);
        let io = WireIo { stdin: Box::new(&b"go\n"[..]), output };
        let served = serve(command, io, WhenGone::Kill, &Idle::new(Duration::from_secs(60)), |_| {}).await.unwrap();
        assert!(served.status.success());
        let mut said = Vec::new();
        while let Some(Frame::Out(bytes)) = frames.recv().await {
            said.extend_from_slice(&bytes);
        }
        let said = String::from_utf8(said).unwrap();
        let line = |name: &str| said.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace();
        assert_eq!(line("Max address space").nth(3), Some("2147483648"), "{said}");
        assert_eq!(line("Max cpu time").nth(3), Some("900"), "{said}");
        assert!(said.ends_with("\n500\n"), "{said}");
    }

    #[test]
    fn shallow_pushes_begin_so() {
        assert!(is_shallow_push(b"0035shallow 0123456789012345678901234567890123456789"));
        assert!(!is_shallow_push(b"00b40000000000000000000000000000000000000000 01"));
        assert!(!is_shallow_push(b"0000"));
    }
}
