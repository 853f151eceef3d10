use async_trait::async_trait;

use super::*;
use crate::control::client;

struct Echo;

#[async_trait]
impl Backend for Echo {
    async fn pre_receive(&self, _: HookRequest, _: mpsc::Sender<Bytes>) -> Verdict {
        Verdict::Reject
    }
    async fn run(&self, caller: Caller, argv: Vec<String>, mut io: CommandIo) -> u8 {
        assert_eq!((caller.operator, caller.door), (true, Door::Host));
        let mut input = String::new();
        io.stdin.read_to_string(&mut input).await.unwrap();
        io.stdout.write_all(format!("{argv:?} {}", input.len()).as_bytes()).await.unwrap();
        u8::try_from(argv.len()).unwrap()
    }
}

fn start(path: &Path) -> (CancellationToken, tokio::task::JoinHandle<()>, impl Future<Output = io::Result<()>>) {
    let stop = CancellationToken::new();
    let (stopped, path) = (stop.clone(), path.to_owned());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        match ControlServer::bind(&path, Arc::new(Echo)).await {
            Ok(server) => {
                sender.send(Ok(())).unwrap();
                server.run(stopped).await;
            }
            Err(error) => sender.send(Err(error)).unwrap(),
        }
    });
    (stop, task, async move { receiver.await.unwrap() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_command_has_input_and_status() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let (stop, task, ready) = start(&path);
    ready.await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let input = io::Cursor::new(vec![b'x'; 300_000]);
    let socket = path.clone();
    let run = move || client::run(&socket, vec!["upload-key".into(), "alice".into()], input);
    assert_eq!(tokio::task::spawn_blocking(run).await.unwrap().unwrap(), 2);
    stop.cancel();
    task.await.unwrap();
    assert!(!path.exists());
    let error = client::run(&path, vec![], io::empty()).unwrap_err().to_string();
    assert!(error.contains("is `berth serve` running"), "{error}");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (stop, task, ready) = start(&path);
    ready.await.unwrap();
    let (_, _, second) = start(&path);
    assert_eq!(second.await.unwrap_err().kind(), ErrorKind::AddrInUse);
    stop.cancel();
    task.await.unwrap();
    fs::write(&path, "a file").unwrap();
    let (_, _, third) = start(&path);
    assert!(third.await.unwrap_err().to_string().contains("no socket"));
}

#[tokio::test]
async fn junk_and_endless_lines_are_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let (stop, task, ready) = start(&path);
    ready.await.unwrap();
    for junk in [b"junk\n".as_slice(), b"{\"shell\":{}}\n", b"\"eof\"\n", b"{\"command\":{\"argv\":[],\"uid\":0}}\n"] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(junk).await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good as an end of file.
        let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer, b"", "{}", String::from_utf8_lossy(junk));
    }
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let endless = vec![b'a'; MAX_LINE + 1];
    assert!(stream.write_all(&endless).await.is_err() || stream.read_u8().await.is_err());
    stop.cancel();
    task.await.unwrap();
}
