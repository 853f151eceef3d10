//! The server's end.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Backend,
    protocol::{CHUNK, MAX_LINE, ToClient, ToServer, decode, encode, line},
};
use crate::{
    commands::{Caller, CommandIo, Control, Door},
    domain::UserName,
    receive::{HookRequest, Verdict},
};

/// Connections at once; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 256;
/// Time for a client to say what it wants.
const FIRST_LINE: Duration = Duration::from_secs(10);
/// Messages that may wait for a slow client.
const WAITING: usize = 64;
/// How long open connections may go on after the server was told to stop.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Who a host command is done by, in records and events.
const HOST_USER: &str = "host";

/// The control socket, listening.
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    backend: Arc<dyn Backend>,
}

impl ControlServer {
    /// Listens on `path` (`DATA/control.sock`). A socket there is replaced only when nobody answers on it.
    pub async fn bind(path: &Path, backend: Arc<dyn Backend>) -> io::Result<Self> {
        let context = |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        let shown = path.display();
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(ErrorKind::AlreadyExists, format!("{shown} is there, and is no socket")));
            }
            Ok(_) => match UnixStream::connect(path).await {
                Ok(_) => {
                    let text = format!("another server answers on {shown}; only one may use a data directory");
                    return Err(io::Error::new(ErrorKind::AddrInUse, text));
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(context(format!("the old socket {shown} cannot be removed")))?;
                }
                Err(error) => return Err(context(format!("the socket {shown} is there and cannot be tried"))(error)),
            },
            Err(_) => {}
        }
        // Bound in a directory of our own, so that nobody can connect before the mode is right.
        let parent = path.parent().unwrap_or(Path::new("."));
        let aside = match tempfile::Builder::new().prefix(".control-").tempdir_in(parent) {
            Ok(aside) => Some(aside),
            // A directory takes room, and a socket none; in one that nobody else may enter, it is as safe.
            Err(error) if error.kind() == ErrorKind::StorageFull && is_private(parent) => None,
            Err(error) => return Err(context(format!("{shown}"))(error)),
        };
        let fresh = match &aside {
            Some(aside) => aside.path().join("s"),
            None => parent.join(format!(".tmp-control-{:08x}", rand::random::<u32>())),
        };
        let listener =
            UnixListener::bind(&fresh).map_err(context(format!("the control socket {shown} cannot be made")))?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        fs::rename(&fresh, path).map_err(context(format!("the control socket {shown} cannot be made")))?;
        Ok(Self { listener, path: path.to_owned(), backend })
    }

    /// Serves until `shutdown`; then running requests may finish within a grace time. The socket is removed.
    pub async fn run(self, shutdown: CancellationToken) {
        let (tasks, places) = (TaskTracker::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        let stop = CancellationToken::new();
        loop {
            let place = tokio::select! {
                () = shutdown.cancelled() => break,
                place = places.clone().acquire_owned() => place,
            };
            // The semaphore is never closed.
            let Ok(place) = place else { break };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (backend, stop) = (self.backend.clone(), stop.clone());
                    tasks.spawn(async move {
                        tokio::select! {
                            () = serve(stream, backend, place) => {}
                            () = stop.cancelled() => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the control socket could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the control socket could not be removed");
        }
        tasks.close();
        if timeout(SHUTDOWN_GRACE, tasks.wait()).await.is_err() {
            stop.cancel();
            tasks.wait().await;
        }
    }
}

async fn serve(stream: UnixStream, backend: Arc<dyn Backend>, _place: OwnedSemaphorePermit) {
    if let Err(error) = check_peer(&stream) {
        return tracing::warn!(%error, "a connection to the control socket was refused");
    }
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let first = timeout(FIRST_LINE, read_message(&mut reader)).await;
    let served = match first {
        Ok(Ok(Some(ToServer::PreReceive(request)))) => hook(request, reader, writer, backend).await,
        Ok(Ok(Some(ToServer::Command { argv }))) => command(argv, reader, writer, backend).await,
        Ok(Ok(Some(ToServer::Snapshot))) => answer(backend.snapshot().await, &mut writer).await,
        Ok(Ok(Some(ToServer::Hold))) => hold(reader, writer, backend).await,
        Ok(Ok(Some(ToServer::Check { repair }))) => answer(backend.check(repair).await, &mut writer).await,
        Ok(Ok(Some(ToServer::Status))) => answer(backend.status().await, &mut writer).await,
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::new(ErrorKind::TimedOut, "it said nothing")),
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the control socket broke off");
    }
}

/// How long a backup may keep collections away.
const LONGEST_HOLD: Duration = Duration::from_secs(6 * 3600);

/// Whether nobody but its owner, who is us, may enter the directory.
fn is_private(directory: &Path) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    fs::metadata(directory).is_ok_and(|found| found.mode() & 0o077 == 0 && found.uid() == own)
}

/// The socket's mode keeps others out; this also holds when the directory was opened up by accident.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let (peer, own) = (stream.peer_cred()?.uid(), nix::unistd::geteuid().as_raw());
    if peer == own || peer == 0 {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::PermissionDenied, format!("the peer is user {peer}, not {own}")))
}

async fn read_message(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<ToServer>> {
    let mut text = Vec::new();
    let length = reader.take(MAX_LINE as u64).read_until(b'\n', &mut text).await?;
    if length == 0 {
        return Ok(None);
    }
    if text.last() != Some(&b'\n') {
        return Err(io::Error::new(ErrorKind::InvalidData, "a message is cut off or too long"));
    }
    Ok(Some(serde_json::from_slice(&text)?))
}

async fn hook(
    request: HookRequest,
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    backend: Arc<dyn Backend>,
) -> io::Result<()> {
    let (output, mut waiting) = mpsc::channel::<Bytes>(WAITING);
    let judge = backend.pre_receive(request, output);
    let relay = async {
        while let Some(bytes) = waiting.recv().await {
            for chunk in bytes.chunks(CHUNK) {
                writer.write_all(&line(&ToClient::Stdout(encode(chunk)))?).await?;
            }
        }
        Ok::<(), io::Error>(())
    };
    let both = async { tokio::join!(judge, relay) };
    let (verdict, relayed) = tokio::select! {
        done = both => done,
        // The hook says nothing more; that it goes away is all that can come.
        _ = read_message(&mut reader) => return Ok(()),
    };
    relayed?;
    let status = if verdict == Verdict::Accept { 0 } else { 1 };
    writer.write_all(&line(&ToClient::Exit(status))?).await
}

/// Holds until the client goes away, which it does whenever its process ends.
async fn hold(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    backend: Arc<dyn Backend>,
) -> io::Result<()> {
    let (held, said) = match backend.hold().await {
        Ok(held) => (Some(held), Ok(Vec::new())),
        Err(error) => (None, Err(error)),
    };
    answer(said, &mut writer).await?;
    if held.is_some() {
        // Both halves stay open; a client that is stuck does not keep collections away for ever.
        let _ = timeout(LONGEST_HOLD, read_message(&mut reader)).await;
    }
    Ok(())
}

/// Sends a whole answer.
async fn answer(found: anyhow::Result<Vec<u8>>, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    let status = match found {
        Ok(bytes) => {
            for chunk in bytes.chunks(CHUNK) {
                writer.write_all(&line(&ToClient::Stdout(encode(chunk)))?).await?;
            }
            0
        }
        Err(error) => {
            writer.write_all(&line(&ToClient::Stderr(encode(format!("{error:#}\n").as_bytes())))?).await?;
            1
        }
    };
    writer.write_all(&line(&ToClient::Exit(status))?).await
}

async fn command(
    argv: Vec<String>,
    reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    backend: Arc<dyn Backend>,
) -> io::Result<()> {
    let user: UserName = HOST_USER.parse().map_err(io::Error::other)?;
    let caller = Caller { user, operator: true, door: Door::Host, rights: None, trace: None };
    let (stdin, input) = duplex(CHUNK);
    let ((stdout, output), (stderr, errors)) = (duplex(CHUNK), duplex(CHUNK));
    let (control, controls) = mpsc::channel(4);
    let (messages, mut waiting) = mpsc::channel(WAITING);
    let io = CommandIo::new(input, stdout, stderr, controls);
    let run = backend.run(caller, argv, io);
    let feed = feed(reader, stdin, control);
    let forward = async {
        tokio::join!(collect(output, messages.clone(), ToClient::Stdout), collect(errors, messages, ToClient::Stderr));
    };
    let write = async move {
        while let Some(message) = waiting.recv().await {
            writer.write_all(&line(&message)?).await?;
        }
        Ok::<_, io::Error>(writer)
    };
    tokio::pin!(feed);
    let work = async { tokio::join!(run, forward, write) };
    tokio::pin!(work);
    let (status, (), written) = tokio::select! {
        done = &mut work => done,
        // The client is gone, and the command has been told.
        () = &mut feed => match timeout(SHUTDOWN_GRACE, work).await {
            Ok(done) => done,
            Err(_) => return Ok(()),
        },
    };
    written?.write_all(&line(&ToClient::Exit(status))?).await
}

/// Client to command, until the client is gone.
async fn feed(mut reader: BufReader<OwnedReadHalf>, stdin: DuplexStream, control: mpsc::Sender<Control>) {
    let mut stdin = Some(stdin);
    loop {
        match read_message(&mut reader).await {
            Ok(Some(ToServer::Stdin(text))) => {
                let Ok(bytes) = decode(&text) else { break };
                if let Some(open) = &mut stdin
                    && open.write_all(&bytes).await.is_err()
                {
                    // The command has read all it wanted.
                    stdin = None;
                }
            }
            Ok(Some(ToServer::Eof)) => stdin = None,
            Ok(Some(ToServer::Interrupt)) => {
                // A full queue has one in it already.
                let _ = control.try_send(Control::Signal("INT".to_owned()));
            }
            _ => break,
        }
    }
    let _ = control.try_send(Control::Hangup);
}

async fn collect(mut from: DuplexStream, to: mpsc::Sender<ToClient>, message: fn(String) -> ToClient) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 || to.send(message(encode(&buffer[..length]))).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
