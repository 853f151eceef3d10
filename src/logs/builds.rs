//! Build logs: the bytes that the pusher was sent, one file per build.
//!
//! `build-N.live` while the build runs, `build-N.log` when it has finished; so a restarted server, and whoever follows across the restart,
//! knows which it is. A log that would grow beyond its limit keeps its beginning and its end.

mod writer;

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use anyhow::Context;
use bytes::Bytes;
use futures::Stream;
use tokio::sync::watch;

pub use self::writer::BuildLogWriter;
use super::service::env_directory;
use crate::domain::{BuildNumber, EnvRef};

/// What is kept of the end of a log that is too long, and where last lines are looked for, in bytes.
const TAIL: usize = 64 * 1024;
/// What a follower reads at a time, in bytes.
const BLOCK: u64 = 64 * 1024;

/// Collections take the logs that nothing keeps; should there be none for long, this many times what is to be kept is the bound.
const BETWEEN_COLLECTIONS: usize = 20;

type Key = (EnvRef, BuildNumber);

/// How far a log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    length: u64,
    finished: bool,
    /// The environment was removed.
    gone: bool,
}

/// Every build log that someone writes or follows.
#[derive(Debug)]
pub(super) struct Builds {
    root: PathBuf,
    limit: u64,
    kept: usize,
    live: Mutex<HashMap<Key, Weak<watch::Sender<Progress>>>>,
}

impl Builds {
    pub(super) fn new(root: PathBuf, limit: u64, kept: usize) -> Self {
        Self { root, limit, kept: kept.max(1), live: Mutex::default() }
    }

    fn paths(&self, env: &EnvRef, build: BuildNumber) -> Paths {
        Paths::new(&env_directory(&self.root, env), build.0)
    }

    /// The file of a build's log, if there is one.
    pub(super) fn find(&self, env: &EnvRef, build: BuildNumber) -> Option<PathBuf> {
        let paths = self.paths(env, build);
        [paths.finished, paths.live].into_iter().find(|path| path.exists())
    }

    /// The progress that writer and followers of one build share.
    fn progress(&self, env: &EnvRef, build: BuildNumber) -> Arc<watch::Sender<Progress>> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|_, progress| progress.strong_count() > 0);
        let key = (env.clone(), build);
        if let Some(progress) = live.get(&key).and_then(Weak::upgrade) {
            return progress;
        }
        let paths = self.paths(env, build);
        let length = |path: &Path| fs::metadata(path).map(|metadata| metadata.len());
        let progress = match length(&paths.finished) {
            Ok(length) => Progress { length, finished: true, gone: false },
            Err(_) => Progress { length: length(&paths.live).unwrap_or(0), ..Progress::default() },
        };
        let progress = Arc::new(watch::Sender::new(progress));
        live.insert(key, Arc::downgrade(&progress));
        progress
    }

    /// Ends whoever follows a build of the environment.
    pub(super) fn forget(&self, env: &EnvRef) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|key, progress| {
            if key.0 != *env {
                return true;
            }
            if let Some(progress) = progress.upgrade() {
                progress.send_modify(|progress| progress.gone = true);
            }
            false
        });
    }

    pub(super) fn writer(&self, env: &EnvRef, build: BuildNumber) -> anyhow::Result<BuildLogWriter> {
        let directory = env_directory(&self.root, env);
        let paths = self.paths(env, build);
        let open = || -> io::Result<(File, u64)> {
            fs::create_dir_all(&directory)?;
            remove_old(&directory, build, self.kept.saturating_mul(BETWEEN_COLLECTIONS))?;
            if paths.finished.exists() {
                // It was thought to be finished, and goes on.
                fs::rename(&paths.finished, &paths.live)?;
            }
            let file = OpenOptions::new().create(true).append(true).open(&paths.live)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().with_context(|| format!("the log of build {build} of {env} cannot be opened"))?;
        let progress = self.progress(env, build);
        progress.send_replace(Progress { length, finished: false, gone: false });
        let head_limit = self.limit.saturating_sub(TAIL as u64);
        Ok(BuildLogWriter {
            paths,
            file,
            length,
            head_limit,
            tail: VecDeque::new(),
            left_out: 0,
            failed: false,
            progress,
        })
    }

    pub(super) fn follow(
        &self,
        env: &EnvRef,
        build: BuildNumber,
        offset: u64,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let progress = self.progress(env, build);
        let reader = Reader { paths: self.paths(env, build), receiver: progress.subscribe(), _keep: progress, offset };
        futures::stream::try_unfold(reader, async |mut reader| Ok(reader.next().await?.map(|bytes| (bytes, reader))))
    }
}

/// The two names of a log.
#[derive(Debug, Clone)]
struct Paths {
    live: PathBuf,
    finished: PathBuf,
}

impl Paths {
    fn new(directory: &Path, build: u64) -> Self {
        let path = |suffix: &str| directory.join(format!("build-{build}.{suffix}"));
        Self { live: path("live"), finished: path("log") }
    }
}

/// The finished logs of an environment, with their bytes.
pub(super) fn finished(directory: &Path) -> io::Result<Vec<(BuildNumber, u64)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("build-")?.strip_suffix(".log")?.parse().ok());
        if let Some(number) = number {
            found.push((BuildNumber(number), entry.metadata().map_or(0, |metadata| metadata.len())));
        }
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn remove_finished(directory: &Path, build: BuildNumber) -> io::Result<()> {
    match fs::remove_file(Paths::new(directory, build.0).finished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the oldest logs, so that `kept` remain with the one of `build`.
fn remove_old(directory: &Path, build: BuildNumber, kept: usize) -> io::Result<()> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_prefix("build-")?.strip_suffix(".log")?.parse::<u64>().ok());
        numbers.extend(number.filter(|number| *number != build.0));
    }
    numbers.sort_unstable();
    for old in &numbers[..numbers.len().saturating_sub(kept.saturating_sub(1))] {
        fs::remove_file(Paths::new(directory, *old).finished)?;
    }
    Ok(())
}

/// Reads a log as it grows.
struct Reader {
    paths: Paths,
    receiver: watch::Receiver<Progress>,
    /// Keeps the progress shared while nobody writes.
    _keep: Arc<watch::Sender<Progress>>,
    offset: u64,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let offset = self.offset;
        // Fails only without a sender, and this holds one.
        let ready =
            self.receiver.wait_for(|progress| progress.length > offset || progress.finished || progress.gone).await;
        let Some(progress) = ready.ok().map(|progress| *progress) else { return Ok(None) };
        if progress.gone || progress.length <= offset {
            return Ok(None);
        }
        let paths = self.paths.clone();
        let wanted = (progress.length - offset).min(BLOCK);
        let bytes =
            tokio::task::spawn_blocking(move || read_at(&paths, offset, wanted)).await.map_err(io::Error::other)??;
        self.offset += bytes.len() as u64;
        Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

fn read_at(paths: &Paths, offset: u64, wanted: u64) -> io::Result<Bytes> {
    // Renamed when it is finished, which may be just now.
    let mut file =
        File::open(&paths.live).or_else(|_| File::open(&paths.finished)).or_else(|_| File::open(&paths.live))?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::with_capacity(wanted as usize);
    file.take(wanted).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

/// The last lines of a file, as far as they lie in its last 64 KiB.
pub(super) fn last_lines(path: &Path, count: usize) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL as u64).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> = text.lines().collect();
    if start > 0 && !lines.is_empty() {
        // Its beginning lies before.
        lines.remove(0);
    }
    Ok(lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt, TryStreamExt};

    use super::*;

    fn env() -> EnvRef {
        "acme/shop/dev".parse().unwrap()
    }

    fn builds(dir: &tempfile::TempDir, limit: u64, kept: usize) -> Builds {
        Builds::new(dir.path().to_owned(), limit, kept)
    }

    const ONE: BuildNumber = BuildNumber(1);

    fn read(builds: &Builds, build: BuildNumber) -> Vec<u8> {
        fs::read(builds.find(&env(), build).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_follower_gets_everything_even_across_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = builds(&dir, 1 << 20, 5);
        let mut before = Box::pin(first.follow(&env(), ONE, 0));
        assert!(before.next().now_or_never().is_none(), "the build has not begun");
        let mut writer = first.writer(&env(), ONE).unwrap();
        writer.write(b"-----> one\n");
        assert_eq!(before.next().await.unwrap().unwrap(), "-----> one\n");
        drop(writer);
        // Another process takes it up.
        let second = builds(&dir, 1 << 20, 5);
        let after = second.follow(&env(), ONE, 0);
        let mut writer = second.writer(&env(), ONE).unwrap();
        let collect = tokio::spawn(after.try_collect::<Vec<Bytes>>());
        for n in 0..1000 {
            writer.write(format!("line {n}\n").as_bytes());
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        writer.finish().unwrap();
        let all = collect.await.unwrap().unwrap().concat();
        assert_eq!(all, read(&second, ONE));
        assert!(all.starts_with(b"-----> one\nline 0\n") && all.ends_with(b"line 999\n"));
        let late = second.follow(&env(), ONE, 0).try_collect::<Vec<Bytes>>().await.unwrap().concat();
        assert_eq!(late, all);
        let rest = second.follow(&env(), ONE, 11).try_collect::<Vec<Bytes>>().await.unwrap().concat();
        assert_eq!(rest, all[11..]);
        let beyond = second.follow(&env(), ONE, 1 << 30).try_collect::<Vec<Bytes>>().await.unwrap();
        assert!(beyond.is_empty());
    }

    #[test]
    fn a_log_that_is_too_long_keeps_its_beginning_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 200 * 1024;
        let builds = builds(&dir, limit, 5);
        let mut writer = builds.writer(&env(), ONE).unwrap();
        (0..100_000).for_each(|n| writer.write(format!("line {n}\n").as_bytes()));
        writer.finish().unwrap();
        let text = String::from_utf8(read(&builds, ONE)).unwrap();
        assert!(text.len() as u64 <= limit + 200, "{}", text.len());
        assert!(
            text.starts_with("line 0\n")
                && text.ends_with("line 99999\n")
                && text.contains("bytes of this log were left out")
        );
        let path = builds.find(&env(), ONE).unwrap();
        assert_eq!(last_lines(&path, 2).unwrap(), ["line 99998", "line 99999"]);
        assert!(last_lines(&path, usize::MAX).unwrap().iter().all(|line| line.starts_with("line ")));
    }

    #[test]
    fn a_log_within_its_limit_is_kept_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let builds = builds(&dir, 100 * 1024, 5);
        let bytes: Vec<u8> = (0..100 * 1024).map(|n| (n * 31 % 251) as u8).collect();
        let mut writer = builds.writer(&env(), ONE).unwrap();
        bytes.chunks(777).for_each(|chunk| writer.write(chunk));
        writer.finish().unwrap();
        assert!(read(&builds, ONE) == bytes);
    }

    #[test]
    fn there_is_a_bound_also_without_collections() {
        let dir = tempfile::tempdir().unwrap();
        let builds = builds(&dir, 1 << 20, 1);
        for n in 1..=30 {
            builds.writer(&env(), BuildNumber(n)).unwrap().finish().unwrap();
        }
        let there: Vec<u64> = (1..=30).filter(|n| builds.find(&env(), BuildNumber(*n)).is_some()).collect();
        assert_eq!(there, (11..=30).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_removed_environment_ends_its_followers() {
        let dir = tempfile::tempdir().unwrap();
        let builds = builds(&dir, 1 << 20, 3);
        let follow = builds.follow(&env(), ONE, 0);
        builds.forget(&env());
        assert!(follow.try_collect::<Vec<_>>().await.unwrap().is_empty());
    }
}
