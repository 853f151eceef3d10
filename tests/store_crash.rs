//! Power loss: what the store acknowledged is there afterwards.
//!
//! The store lives on a file system of its own in an image file. What that file holds at some moment, without what the kernel
//! still has in memory, is what a power cut at that moment would leave. Several such images are taken while a writer works, and in each
//! every write that was acknowledged before must be found. Needs root, for mounting.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use berth::store::{Kv, SledKv, Write};

const RUNS: u64 = 8;
const IMAGE_BYTES: u64 = 96 << 20;
/// Names the directory in which the writer (this same test binary) works.
const WRITER_DIRECTORY: &str = "BERTH_TEST_CRASH_DIRECTORY";

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
    format!("n/{number:08}")
}

/// Values of many sizes; now and then one that the database keeps in a file of its own.
fn value(number: u64) -> Vec<u8> {
    let length = if number % 40 == 39 { 150_000 } else { (number * 37 % 2000) as usize };
    vec![(number % 251) as u8; length]
}

/// Not a test by itself: the writer, started by the test below in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer() {
    let Some(directory) = std::env::var_os(WRITER_DIRECTORY) else { return };
    let kv = SledKv::open(Path::new(&directory)).unwrap();
    for number in 0..100_000 {
        kv.commit(vec![], vec![Write::Put(key(number), value(number))]).await.unwrap();
        println!("acknowledged {number}");
    }
}

/// Runs a writer until it has acknowledged `enough`, and takes the image at that moment. Returns the last number acknowledged
/// before.
fn crash(directory: &Path, enough: u64, crashed: &Path) -> u64 {
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
    let last = numbers.into_iter().find(|number| *number >= enough).expect("the writer ended early");
    // The image is taken while nothing writes, so that it is of one moment.
    let writer = nix::unistd::Pid::from_raw(process.0.id().try_into().unwrap());
    nix::sys::signal::kill(writer, nix::sys::signal::Signal::SIGSTOP).unwrap();
    fs::copy(&image, crashed).unwrap();
    last
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
        let last = crash(directory.path(), 20 + round * 67, &crashed);
        let mounted = Mounted::new(&crashed, directory.path().join("crashed"));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let kv = SledKv::open(&mounted.0.join("store")).unwrap();
            for number in 0..=last {
                let found = kv.get(&key(number)).await.unwrap();
                let found =
                    found.unwrap_or_else(|| panic!("round {round}: {number} of {last} acknowledged writes is lost"));
                assert!(found.value == value(number), "round {round}: {number} is damaged");
            }
        });
    }
}
