//! `git fast-import` (git-fast-import(1)): contents in, one commit out, all of it in one pack.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    ImportError,
    archive::{Imported, Sink},
};
use crate::git::{Git, full_id, limits};

/// How much of what git says for itself is read, bytes.
const SAID: u64 = 4096;
/// How much is handed to git at once, bytes.
const CHUNK: usize = 64 * 1024;

/// A git process; killed with all it has started when it is dropped before it has ended.
pub struct Process {
    child: Child,
    group: Option<Pid>,
    /// Where it says what is wrong.
    said: PathBuf,
}

impl Process {
    /// Starts it within the limits of a process that works for a client.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, said: PathBuf) -> io::Result<Self> {
        command.stderr(File::create(&said)?);
        let child = command.spawn()?;
        let process = Self { group: i32::try_from(child.id()).ok().map(Pid::from_raw), child, said };
        if let Some(group) = process.group {
            limits::confine(group)?;
        }
        Ok(process)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What it has said, when it has failed.
    pub fn wait(&mut self) -> io::Result<Result<(), String>> {
        let status = self.child.wait()?;
        self.group = None;
        if status.success() {
            return Ok(Ok(()));
        }
        let mut said = Vec::new();
        File::open(&self.said)?.take(SAID).read_to_end(&mut said)?;
        Ok(Err(format!("{status}: {}", String::from_utf8_lossy(&said).trim())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // Gone already is as good.
            let _ = killpg(group, Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// The author of a commit, and what it says.
pub struct Signature<'s> {
    pub name: &'s str,
    pub email: &'s str,
    /// Seconds since 1970, UTC.
    pub seconds: i64,
    pub message: &'s str,
}

/// A `git fast-import` under way.
pub struct FastImport {
    process: Process,
    input: BufWriter<ChildStdin>,
    blobs: u64,
    /// It has stopped reading: whatever fails now is its fault.
    deaf: bool,
}

impl FastImport {
    /// Into the bare repository `scratch`, leaving out what is in packs of `known`, an object directory.
    ///
    /// # Errors
    /// When git cannot be started.
    pub fn start(git: &Git, scratch: &Path, known: &Path) -> io::Result<Self> {
        // One pack, however few objects there are; nothing that could be halves of something.
        let words =
            ["-c", "fastimport.unpackLimit=0", "fast-import", "--quiet", "--done", "--depth=0", "--date-format=raw"];
        let mut command = git.command(&words).into_std();
        command.env("GIT_DIR", scratch).env("GIT_ALTERNATE_OBJECT_DIRECTORIES", known);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(command, scratch.join("said-by-fast-import"))?;
        let input = process.child.stdin.take().ok_or_else(|| io::Error::other("git was started without pipes"))?;
        Ok(Self { process, input: BufWriter::with_capacity(CHUNK, input), blobs: 0, deaf: false })
    }

    /// Why the archive could not be read to its end: because of the archive (`error`), or since git has given up.
    pub fn why(mut self, error: ImportError) -> ImportError {
        if !self.deaf {
            return error;
        }
        drop(self.input);
        match self.process.wait() {
            Ok(Err(said)) => gave_up(&said),
            Ok(Ok(())) => error,
            Err(error) => error.into(),
        }
    }

    /// Writes the commit of these files, and returns its id once all is on disk.
    ///
    /// # Errors
    /// [`ImportError::Platform`].
    pub fn commit(mut self, files: &[Imported], signature: &Signature<'_>) -> Result<String, ImportError> {
        let written = self.write_commit(files, signature);
        drop(self.input);
        let mut id = String::new();
        let read = match self.process.child.stdout.take() {
            Some(output) => output.take(SAID).read_to_string(&mut id).map(drop),
            None => Ok(()),
        };
        self.process.wait()?.map_err(|said| gave_up(&said))?;
        written.and(read)?;
        full_id(id.trim()).map_err(|error| ImportError::Platform(error.to_string()))?;
        Ok(id.trim().to_owned())
    }

    fn write_commit(&mut self, files: &[Imported], signature: &Signature<'_>) -> io::Result<()> {
        let commit = self.blobs + 1;
        let Signature { name, email, seconds, message } = signature;
        let input = &mut self.input;
        write!(input, "commit refs/heads/source\nmark :{commit}\n")?;
        for role in ["author", "committer"] {
            writeln!(input, "{role} {name} <{email}> {seconds} +0000")?;
        }
        writeln!(input, "data {}\n{message}", message.len())?;
        for Imported { path, mode, blob } in files {
            write!(input, "M {} :{blob} ", mode.as_str())?;
            quote(input, path)?;
            input.write_all(b"\n")?;
        }
        write!(input, "get-mark :{commit}\ndone\n")?;
        input.flush()
    }
}

impl Sink for FastImport {
    fn blob(&mut self, size: u64, content: &mut dyn Read) -> io::Result<u64> {
        self.blobs += 1;
        let head = format!("blob\nmark :{}\ndata {size}\n", self.blobs);
        self.write(head.as_bytes())?;
        let (mut left, mut chunk) = (size, vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))]);
        while left > 0 {
            let wanted = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let length = content.read(&mut chunk[..wanted])?;
            if length == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it breaks off in a file"));
            }
            self.write(&chunk[..length])?;
            left -= length as u64;
        }
        self.write(b"\n")?;
        Ok(self.blobs)
    }
}

impl FastImport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.write_all(bytes).inspect_err(|_| self.deaf = true)
    }
}

/// It says so of a path that git refuses and that was not refused before.
const INVALID_PATH: &str = "nvalid path";

fn gave_up(said: &str) -> ImportError {
    match said.lines().find(|line| line.contains(INVALID_PATH)) {
        Some(line) => ImportError::Fsck(line.trim_start_matches("fatal: ").to_owned()),
        None => ImportError::Platform(format!("git fast-import ended with {said}")),
    }
}

/// A path as git-fast-import(1) takes any ("c-style quoted string").
fn quote(to: &mut impl Write, path: &[u8]) -> io::Result<()> {
    to.write_all(b"\"")?;
    for byte in path {
        match byte {
            b'"' | b'\\' => to.write_all(&[b'\\', *byte])?,
            b' '..=b'~' => to.write_all(&[*byte])?,
            _ => write!(to, "\\{byte:03o}")?,
        }
    }
    to.write_all(b"\"")
}

/// Takes the pack of `scratch`, if it has one, into `quarantine` as a push's is taken: git looks at every object, and syncs.
///
/// # Errors
/// [`ImportError::Fsck`] when git does not take it.
pub fn index(git: &Git, scratch: &Path, repository: &Path, quarantine: &Path) -> Result<(), ImportError> {
    let is_pack = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "pack");
    let packs = fs::read_dir(scratch.join("objects/pack"))?.collect::<io::Result<Vec<_>>>()?;
    for pack in packs.into_iter().map(|entry| entry.path()).filter(is_pack) {
        let mut command = git.command(&["index-pack", "--stdin", "--strict"]).into_std();
        command.env("GIT_DIR", repository).env("GIT_OBJECT_DIRECTORY", quarantine);
        command.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", repository.join("objects"));
        command.stdin(File::open(&pack)?).stdout(Stdio::null());
        let mut process = Process::start(command, scratch.join("said-by-index-pack"))?;
        if let Err(said) = process.wait()? {
            return Err(match complaints(&said) {
                complaints if complaints.is_empty() => {
                    ImportError::Platform(format!("git index-pack ended with {said}"))
                }
                complaints => ImportError::Fsck(complaints),
            });
        }
    }
    Ok(())
}

/// What git's fsck has to say: `error: object ID: treeNotSorted: not properly sorted`.
fn complaints(said: &str) -> String {
    let lines = said.lines().filter_map(|line| {
        let (_, object) = line.split_once("error: object ")?;
        object.split_once(": ").map(|(_, complaint)| complaint)
    });
    lines.take(5).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_can_be_written() {
        let mut text = Vec::new();
        quote(&mut text, b"a \"b\\\n\xc3\xa4").unwrap();
        assert_eq!(text, br#""a \"b\\\012\303\244""#);
    }

    #[test]
    fn what_fsck_says_is_told() {
        let said = "exit status: 128: error: object 42365238639cd5043313d8d717b2ebf419032c37: gitmodulesSymlink: .gitmodules is a \
                    symbolic link\nfatal: fsck error in packed object";
        assert_eq!(complaints(said), "gitmodulesSymlink: .gitmodules is a symbolic link");
        assert_eq!(complaints("fatal: out of memory"), "");
    }
}
