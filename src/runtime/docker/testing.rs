//! An engine's socket that answers as a test says.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use bollard::{API_DEFAULT_VERSION, Docker};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

use super::{container::Recipe, engine::Engine, names::Names, settings::DockerSettings};

/// Done, and nothing to say.
pub const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";

/// An answer with this body.
pub fn json(body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// A client of an engine that is to be at `socket`, where a socket is left that nobody serves.
pub fn engine(socket: &Path) -> Arc<Engine> {
    // The client wants to see a socket when it is made.
    drop(UnixListener::bind(socket).unwrap());
    let docker = Docker::connect_with_unix(&socket.display().to_string(), 20, API_DEFAULT_VERSION).unwrap();
    let settings = DockerSettings::new("127.0.0.1:5000", "one");
    let names = Names::new("berth", "one", "this-boot".to_owned());
    Arc::new(Engine::new(docker, Recipe { settings, names, cores: 1, open_files: 1024 }))
}

/// What is asked of the socket, and its answers.
pub struct Answers {
    asked: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Answers {
    /// Serves the socket, which must not be there. `answer` is given the request line; nothing: the connection is broken off.
    pub fn serve(socket: &Path, answer: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let heard = asked.clone();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let Some(request) = request_line(&mut stream).await else { continue };
                let answer = answer(&request);
                heard.lock().unwrap().push(request);
                if let Some(answer) = answer {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        Self { asked, server }
    }

    /// The request lines so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// Reads a whole request: a connection that is closed before that would look broken to whoever sends it.
async fn request_line(stream: &mut UnixStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    head.lines().next().map(str::to_owned)
}
