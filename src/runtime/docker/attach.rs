//! Attaching to a job's standard streams.
//!
//! The client library guesses from the first byte of each read whether a stream is framed, which loses a terminal's output that begins
//! with a control character, and it collects whole frames. Whether there is a terminal is known here, so this speaks the upgrade
//! itself (Docker Engine API, "Attach to a container") and hands bytes on as they come. Nothing is read from the engine before somebody
//! asks for output, so a slow reader slows the job down.

use std::{path::Path, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_util::codec::{Decoder, FramedRead};

use crate::runtime::{Output, RuntimeError, Source};

/// Longest answer head that is taken from the engine.
const MAX_HEAD: usize = 16 << 10;
/// How much output is read at once.
const CHUNK: usize = 32 << 10;
/// The keys that detach a terminal, which the engine does not let anybody turn off. It holds back what begins like them, so they begin
/// with a key that hardly anybody uses (Ctrl-^), not with its default Ctrl-P, and go on as nobody types.
const DETACH_KEYS: &str = "ctrl-%5E,ctrl-@,ctrl-%5E,ctrl-_";
/// How long the engine may take to attach.
const DEADLINE: Duration = Duration::from_secs(60);

/// Both directions of an attached container.
#[derive(Debug)]
pub struct Attached {
    pub output: FramedRead<OwnedReadHalf, Demux>,
    /// Shutting it down gives the container an end of file.
    pub input: OwnedWriteHalf,
}

/// Attaches to a container that has not been started, so that no output is lost.
pub async fn attach(
    socket: &Path,
    version: &str,
    id: &str,
    terminal: bool,
    stdin: bool,
) -> Result<Attached, RuntimeError> {
    let work = async {
        let mut stream = UnixStream::connect(socket).await?;
        let stdin = if stdin { "&stdin=1" } else { "" };
        let request = format!(
            "POST /v{version}/containers/{id}/attach?stream=1&stdout=1&stderr=1{stdin}&detachKeys={DETACH_KEYS} HTTP/1.1\r\n\
             Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut received = BytesMut::with_capacity(CHUNK);
        let head = loop {
            if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break received.split_to(end + 4);
            }
            if received.len() > MAX_HEAD || stream.read_buf(&mut received).await? == 0 {
                break received.split();
            }
        };
        std::io::Result::Ok((stream, head, received))
    };
    let (stream, head, rest) = tokio::time::timeout(DEADLINE, work)
        .await
        .map_err(|_| RuntimeError::Unavailable(format!("attaching to container {id}: no answer")))?
        .map_err(|error| RuntimeError::Unavailable(format!("attaching to container {id}: {error}")))?;
    let status = head.get(..12).unwrap_or_default();
    if !matches!(status, b"HTTP/1.1 101" | b"HTTP/1.1 200") {
        let text = String::from_utf8_lossy(&head).into_owned() + &String::from_utf8_lossy(&rest);
        return Err(RuntimeError::Refused(format!("attaching to container {id}: the engine refused: {text:?}")));
    }
    let (reader, input) = stream.into_split();
    let mut output = FramedRead::with_capacity(reader, Demux { terminal, left: None }, CHUNK);
    output.read_buffer_mut().extend_from_slice(&rest);
    Ok(Attached { output, input })
}

/// The output as chunks, until the container has ended.
pub fn chunks(
    output: FramedRead<OwnedReadHalf, Demux>,
) -> impl Stream<Item = Result<Output, RuntimeError>> + Send + 'static {
    output.map(|chunk| chunk.map_err(|error| RuntimeError::Unavailable(format!("the job's output broke off: {error}"))))
}

/// Takes the engine's framing apart: eight bytes (stream number, three zeros, length) before each piece. A terminal's stream is not framed.
#[derive(Debug)]
pub struct Demux {
    terminal: bool,
    /// The frame being handed on: its stream, and how many bytes are still to come.
    left: Option<(Source, usize)>,
}

impl Decoder for Demux {
    type Item = Output;
    type Error = std::io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> std::io::Result<Option<Output>> {
        if self.terminal {
            let bytes = buffer.split().freeze();
            return Ok(some_output(Source::Stdout, bytes));
        }
        loop {
            let Some((source, left)) = self.left else {
                let Some(header) = buffer.first_chunk::<8>() else { return Ok(None) };
                let source = match header[0] {
                    0 | 1 => Source::Stdout,
                    2 | 3 => Source::Stderr,
                    other => return Err(std::io::Error::other(format!("stream number {other} is not known"))),
                };
                let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                buffer.advance(8);
                self.left = Some((source, length as usize));
                continue;
            };
            let bytes = buffer.split_to(left.min(buffer.len())).freeze();
            self.left = Some((source, left - bytes.len())).filter(|(_, left)| *left > 0);
            if !bytes.is_empty() || self.left.is_some() {
                return Ok(some_output(source, bytes));
            }
        }
    }

    fn decode_eof(&mut self, buffer: &mut BytesMut) -> std::io::Result<Option<Output>> {
        match self.decode(buffer)? {
            None if !buffer.is_empty() || self.left.is_some() => Err(std::io::ErrorKind::UnexpectedEof.into()),
            other => Ok(other),
        }
    }
}

fn some_output(source: Source, bytes: Bytes) -> Option<Output> {
    if bytes.is_empty() { None } else { Some(Output { source, bytes }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(terminal: bool, input: &[u8], step: usize) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
        let mut demux = Demux { terminal, left: None };
        let (mut buffer, mut out, mut err) = (BytesMut::new(), Vec::new(), Vec::new());
        let mut add = |chunk: Output| match chunk.source {
            Source::Stdout => out.extend(chunk.bytes),
            Source::Stderr => err.extend(chunk.bytes),
        };
        for piece in input.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(chunk) = demux.decode(&mut buffer)? {
                add(chunk);
            }
        }
        while let Some(chunk) = demux.decode_eof(&mut buffer)? {
            add(chunk);
        }
        Ok((out, err))
    }

    #[test]
    fn frames_however_they_are_cut() {
        let input = b"\x01\0\0\0\0\0\0\x05hello\x02\0\0\0\0\0\0\x03err\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x01!";
        for step in 1..=input.len() {
            assert_eq!(feed(false, input, step).unwrap(), (b"hello!".to_vec(), b"err".to_vec()), "step {step}");
        }
        assert!(feed(false, &input[..10], 3).is_err(), "a frame cut short is an error");
        assert!(feed(false, &input[..4], 3).is_err(), "a header cut short is an error");
        assert!(feed(false, b"\x09\0\0\0\0\0\0\x01!", 9).is_err());
    }

    #[tokio::test]
    async fn a_terminal_keeps_its_ctrl_p() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("engine.sock");
        let engine = tokio::net::UnixListener::bind(&socket).unwrap();
        let answer = async {
            let (mut stream, _) = engine.accept().await.unwrap();
            let mut request = BytesMut::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 101 UPGRADED\r\n\r\n$ ").await.unwrap();
            String::from_utf8_lossy(&request).into_owned()
        };
        let (attached, request) = tokio::join!(attach(&socket, "1.44", "c1", true, true), answer);
        assert!(request.contains("&stdin=1&detachKeys=ctrl-%5E,ctrl-@,"), "{request}");
        assert_eq!(attached.unwrap().output.next().await.unwrap().unwrap().bytes, "$ ");
    }

    #[test]
    fn a_terminal_is_not_framed() {
        let input = b"\x01\x02\0prompt> ";
        assert_eq!(feed(true, input, 2).unwrap(), (input.to_vec(), Vec::new()));
    }
}
