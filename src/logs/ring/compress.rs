//! Compressing closed files of rings, one after another, in a thread of its own: who writes lines does not wait for it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use flate2::{Compression, write::GzEncoder};

use super::{PREFIX, UNFINISHED, compressed_path, remove, segment_path};

/// Closed files that wait. What finds no place is asked for again when its ring rotates next.
const WAITING: usize = 256;

struct Closed {
    directory: PathBuf,
    sequence: u64,
}

/// The handle to the thread, which ends with the last one.
#[derive(Debug, Clone)]
pub(in crate::logs) struct Compressor {
    queue: SyncSender<Closed>,
    files: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.sequence, self.directory.display())
    }
}

impl Compressor {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(in crate::logs) fn start() -> io::Result<Self> {
        let (queue, closed) = sync_channel(WAITING);
        let files = Arc::<Mutex<()>>::default();
        let of_thread = files.clone();
        std::thread::Builder::new().name("logs-gzip".to_owned()).spawn(move || run(&closed, &of_thread))?;
        Ok(Self { queue, files })
    }

    /// Has a closed file compressed when there is time.
    pub(super) fn compress(&self, directory: &Path, sequence: u64) {
        // Full: the ring asks again. Gone: the file stays as it is, which is as good.
        let _ = self.queue.try_send(Closed { directory: directory.to_owned(), sequence });
    }

    /// While it is held, no file of a ring is made or replaced by compressing. Never held for long: compressing itself goes on meanwhile.
    pub(in crate::logs) fn files(&self) -> MutexGuard<'_, ()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(closed: &Receiver<Closed>, files: &Mutex<()>) {
    while let Ok(Closed { directory, sequence }) = closed.recv() {
        if let Err(error) = compress(&directory, sequence, files) {
            // It stays as it is; the next rotation tries again.
            tracing::warn!(%error, directory = %directory.display(), "a closed log file cannot be compressed");
        }
    }
}

/// Puts a compressed file in the place of a closed one, whole and synced; nothing to do when that has been done, or when the file is gone.
fn compress(directory: &Path, sequence: u64, files: &Mutex<()>) -> io::Result<()> {
    let lock = || files.lock().unwrap_or_else(PoisonError::into_inner);
    let plain = segment_path(directory, sequence);
    let unfinished = directory.join(format!("{PREFIX}{sequence}{UNFINISHED}"));
    let (mut input, output) = {
        let _files = lock();
        let input = match File::open(&plain) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        (input, File::create(&unfinished)?)
    };
    let written = (|| {
        let mut output = GzEncoder::new(output, Compression::fast());
        io::copy(&mut input, &mut output)?;
        output.finish()?.sync_all()
    })();
    let _files = lock();
    if written.is_err() || !plain.exists() {
        remove(&unfinished)?;
        return written;
    }
    match fs::rename(&unfinished, compressed_path(directory, sequence)) {
        // The ring was opened anew meanwhile, and cleared up.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::remove_file(plain),
    }
}
