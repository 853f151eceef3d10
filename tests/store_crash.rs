//! Power loss: what the store acknowledged is there afterwards.
//!
//! The store lives on a file system of its own in an image file. What that file holds at some moment, without what the kernel
//! still has in memory, is what a power cut at that moment would leave. Several such images are taken while writers work, and in each
//! every write that was acknowledged before must be found. Needs root, for mounting. `scripts/chaos power-loss` does the same at some
//! hundred random moments, with this binary's [`writer`] and [`checker`].

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use berth::store::{Kv, SledKv, Write};

const RUNS: u64 = 4;
const IMAGE_BYTES: u64 = 96 << 20;
/// Names the directory in which the writer (this same test binary) works.
const WRITER_DIRECTORY: &str = "BERTH_TEST_CRASH_DIRECTORY";
/// Names the store to be checked, and a file with what was acknowledged, a number on each line.
const CHECK_DIRECTORY: &str = "BERTH_TEST_CRASH_CHECK";
const CHECK_ACKNOWLEDGED: &str = "BERTH_TEST_CRASH_ACKNOWLEDGED";
/// Writers at once, so that commits share syncs; keys are written again and again.
const WRITERS: u64 = 8;
const KEYS: u64 = 512;

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// A mounted image, unmounted on drop.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&at));
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The writer process, ended on drop.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn key(number: u64) -> String {
    format!("n/{:08}", number % KEYS)
}

/// The number, then bytes of it: values of many sizes; now and then one that the database keeps in a file of its own.
fn value(number: u64) -> Vec<u8> {
    let length = if number % 40 == 39 { 150_000 } else { (number * 37 % 2000) as usize };
    let mut value = number.to_be_bytes().to_vec();
    value.resize(8 + length, (number % 251) as u8);
    value
}

/// Not a test by itself: the writer, started by the test below in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer() {
    let Some(directory) = std::env::var_os(WRITER_DIRECTORY) else { return };
    let kv = Arc::new(SledKv::open(Path::new(&directory)).unwrap());
    // Each has keys of its own, since the number of keys is a multiple of theirs.
    let writers = (0..WRITERS).map(|writer| {
        let kv = kv.clone();
        tokio::spawn(async move {
            for number in (writer..1_000_000).step_by(WRITERS as usize) {
                kv.commit(vec![], vec![Write::Put(key(number), value(number))]).await.unwrap();
                println!("acknowledged {number}");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

/// Not a test by itself: opens a store that a power cut left, and looks for what was acknowledged.
#[tokio::test]
async fn checker() {
    let Some(directory) = std::env::var_os(CHECK_DIRECTORY) else { return };
    let list = fs::read_to_string(std::env::var(CHECK_ACKNOWLEDGED).unwrap()).unwrap();
    let lost = lost(Path::new(&directory), list.lines().map(|line| line.parse().unwrap())).await;
    println!("lost {}", lost.len());
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}

/// What is missing or damaged of what was acknowledged.
async fn lost(store: &Path, acknowledged: impl Iterator<Item = u64>) -> Vec<String> {
    let mut newest = BTreeMap::new();
    for number in acknowledged {
        newest.entry(key(number)).and_modify(|newest: &mut u64| *newest = number.max(*newest)).or_insert(number);
    }
    let kv = SledKv::open(store).unwrap();
    let mut lost = Vec::new();
    for (key, number) in newest {
        let found = kv.get(&key).await.unwrap().map(|entry| entry.value).unwrap_or_default();
        let wrote = found.first_chunk().map(|number| u64::from_be_bytes(*number));
        // A later one may have come to the disk without being acknowledged.
        if wrote.is_none_or(|wrote| wrote < number || found != value(wrote)) {
            lost.push(format!("{number} was acknowledged and {key} holds {wrote:?}"));
        }
    }
    lost
}

/// Runs a writer until it has acknowledged `enough` writes, and takes the image at that moment. Returns what was acknowledged before.
fn crash(directory: &Path, enough: usize, crashed: &Path) -> Vec<u64> {
    let image = directory.join("live.img");
    fs::File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
    let live = Mounted::new(&image, directory.join("live"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "writer", "--nocapture"]).env(WRITER_DIRECTORY, live.0.join("store"));
    let mut process = Writer(command.stdout(Stdio::piped()).spawn().unwrap());
    let output = BufReader::new(process.0.stdout.take().unwrap());
    let number = |line: &str| line.split("acknowledged ").nth(1)?.trim().parse::<u64>().ok();
    let numbers = output.lines().map_while(Result::ok).filter_map(|line| number(&line));
    let acknowledged: Vec<u64> = numbers.take(enough).collect();
    assert_eq!(acknowledged.len(), enough, "the writer ended early");
    // The image is taken while nothing writes, so that it is of one moment.
    let writer = nix::unistd::Pid::from_raw(process.0.id().try_into().unwrap());
    nix::sys::signal::kill(writer, nix::sys::signal::Signal::SIGSTOP).unwrap();
    fs::copy(&image, crashed).unwrap();
    acknowledged
}

#[test]
fn acknowledged_writes_survive_a_power_loss() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("left out: mounting an image needs root");
        return;
    }
    for round in 0..RUNS {
        let directory = tempfile::tempdir().unwrap();
        let crashed = directory.path().join("crashed.img");
        let acknowledged = crash(directory.path(), 20 + round as usize * 211, &crashed);
        let mounted = Mounted::new(&crashed, directory.path().join("crashed"));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let lost = runtime.block_on(lost(&mounted.0.join("store"), acknowledged.into_iter()));
        assert!(lost.is_empty(), "round {round}: {}", lost.join("\n"));
    }
}
