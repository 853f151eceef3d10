//! The client's end: blocking, and without a runtime, since a hook has milliseconds.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, bail};

use super::protocol::{CHUNK, MAX_LINE, ToClient, ToServer, decode, encode, line};
use crate::receive::{HookRequest, MAX_UPDATES, Update};

/// Push options that are looked at (`GIT_PUSH_OPTION_COUNT`, githooks(5)).
const MAX_OPTIONS: usize = 100;

/// `berth hook pre-receive`: asks the server about the push that git's hook was started for; the exit status is git's to act on.
pub fn hook() -> Result<u8> {
    let variable = |name: &str| {
        env::var(name).with_context(|| format!("{name} is not set; this command is for git's hooks, not for people"))
    };
    let socket = PathBuf::from(variable("BERTH_CONTROL")?);
    let request = HookRequest {
        token: variable("BERTH_PUSH")?,
        quarantine: env::var_os("GIT_QUARANTINE_PATH").map(PathBuf::from),
        updates: read_updates(io::stdin().lock())?,
        options: push_options(),
    };
    let mut stream = connect(&socket)?;
    stream.write_all(&line(&ToServer::PreReceive(request))?)?;
    relay(stream)
}

/// Runs a command of Berth's on the server that listens on `socket`, with `stdin` as its input; returns its exit status.
pub fn run(socket: &Path, argv: Vec<String>, stdin: impl Read + Send + 'static) -> Result<u8> {
    let mut stream = connect(socket)?;
    stream.write_all(&line(&ToServer::Command { argv })?)?;
    let input = stream.try_clone().context("the connection cannot be shared")?;
    // It ends with the process: nobody can interrupt a read of a terminal.
    thread::spawn(move || forward(stdin, input));
    relay(stream)
}

/// All records of the server that listens on `socket`; `None` when none does.
pub fn snapshot(socket: &Path) -> Result<Option<Vec<u8>>> {
    ask(socket, &ToServer::Snapshot)
}

/// Keeps the server's collections away for as long as the connection lasts; `None` when there is no server.
pub fn hold(socket: &Path) -> Result<Option<UnixStream>> {
    let Ok(mut stream) = UnixStream::connect(socket) else { return Ok(None) };
    stream.write_all(&line(&ToServer::Hold)?)?;
    let kept = stream.try_clone().context("the connection cannot be shared")?;
    let mut complaint = Vec::new();
    match relay_to(stream, &mut io::sink(), &mut complaint)? {
        0 => Ok(Some(kept)),
        _ => bail!("no backup can be taken now: {}", String::from_utf8_lossy(&complaint).trim()),
    }
}

/// What the server that listens on `socket` says of its records, as JSON; `None` when none does.
pub fn check(socket: &Path, repair: bool) -> Result<Option<Vec<u8>>> {
    ask(socket, &ToServer::Check { repair })
}

/// What the server that listens on `socket` lacks, as JSON.
///
/// # Errors
/// When none does, or it does not say.
pub fn status(socket: &Path) -> Result<Vec<u8>> {
    match ask(socket, &ToServer::Status)? {
        Some(answer) => Ok(answer),
        // Nobody listens: connecting says it best.
        None => connect(socket).and_then(|_| bail!("the server is just starting; ask again")),
    }
}

fn ask(socket: &Path, question: &ToServer) -> Result<Option<Vec<u8>>> {
    match UnixStream::connect(socket) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        // Says it better.
        _ => {}
    }
    let mut stream = connect(socket)?;
    stream.write_all(&line(question)?)?;
    let (mut answer, mut complaint) = (Vec::new(), Vec::new());
    match relay_to(stream, &mut answer, &mut complaint)? {
        0 => Ok(Some(answer)),
        _ => bail!("the server could not answer: {}", String::from_utf8_lossy(&complaint).trim()),
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "is `berth serve` running, with this data directory?"
            }
            io::ErrorKind::PermissionDenied => "run it as the user that `berth serve` runs as, or with sudo",
            _ => "see the server's log",
        };
        anyhow::anyhow!("the server cannot be reached at {}: {error}; {why}", socket.display())
    })
}

fn read_updates(input: impl BufRead) -> Result<Vec<Update>> {
    let mut input = input.take(MAX_LINE as u64 / 2);
    let (mut updates, mut text) = (Vec::new(), String::new());
    // One more than is allowed is enough for the refusal; what is not read here is not accepted either.
    while updates.len() <= MAX_UPDATES && input.read_line(&mut text).context("git gave no list of refs")? > 0 {
        if input.limit() == 0 {
            bail!("the push changes more refs than can be looked at; push fewer at once");
        }
        let line = text.trim_end_matches('\n');
        let update = Update::parse(line).with_context(|| format!("git gave a line that is no ref update: {line:?}"))?;
        updates.push(update);
        text.clear();
    }
    if updates.is_empty() {
        bail!("git gave an empty list of refs");
    }
    Ok(updates)
}

fn push_options() -> Vec<String> {
    let count = env::var("GIT_PUSH_OPTION_COUNT").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    let option = |index| env::var(format!("GIT_PUSH_OPTION_{index}")).unwrap_or_default();
    (0..count).take(MAX_OPTIONS).map(option).collect()
}

/// Copies input to the server until either ends.
fn forward(mut from: impl Read, mut to: UnixStream) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let message = match from.read(&mut buffer) {
            Ok(0) => ToServer::Eof,
            Ok(length) => ToServer::Stdin(encode(&buffer[..length])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // As good as its end; the command says what it lacks.
            Err(_) => ToServer::Eof,
        };
        let is_last = matches!(message, ToServer::Eof);
        let sent = line(&message).and_then(|line| to.write_all(&line));
        if is_last || sent.is_err() {
            return;
        }
    }
}

/// Prints what the server says until it says how it ended.
fn relay(stream: UnixStream) -> Result<u8> {
    relay_to(stream, &mut io::stdout(), &mut io::stderr())
}

fn relay_to(stream: UnixStream, output: &mut impl Write, errors: &mut impl Write) -> Result<u8> {
    let mut lines = BufReader::new(stream);
    let mut text = Vec::new();
    loop {
        text.clear();
        let length = (&mut lines).take(MAX_LINE as u64).read_until(b'\n', &mut text).context("the server is gone")?;
        if length == 0 || text.last() != Some(&b'\n') {
            bail!("the server went away before it answered; see its log");
        }
        match serde_json::from_slice(&text).context("the server is of another version; restart it")? {
            ToClient::Stdout(bytes) => print(output, &decode(&bytes)?)?,
            ToClient::Stderr(bytes) => print(errors, &decode(&bytes)?)?,
            ToClient::Exit(status) => return Ok(status),
        }
    }
}

fn print(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("nobody reads the output any more")
}
