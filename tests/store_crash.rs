//! Power loss: what the store acknowledged is there afterwards.
//!
//! The store lives on a file system of its own in an image file. What that file holds at some moment, without what the kernel
//! still has in memory, is what a power cut at that moment would leave. (A disk's own cache is not part of it: a write counts as durable once
//! the kernel has handed it on, so a flush of the device that is missing is not seen here.) Several such images are taken while writers work.
//!
//! Each writer makes transactions that put records, put others again and delete old ones, one after another, each a function of its number. So
//! what a writer's keys must hold after any of them is known, and the checker compares all of it: the transactions that were acknowledged, all of
//! each, at most followed by some that were not, and nothing else. Needs root, for mounting. `scripts/chaos power-loss` does the same at some
//! hundred random moments, with this binary's [`writer`] and [`checker`].

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use berth::store::{Kv, RedbKv, Write};

const RUNS: u64 = 4;
const IMAGE_BYTES: u64 = 96 << 20;
/// Names the directory in which the writer (this same test binary) works.
const WRITER_DIRECTORY: &str = "BERTH_TEST_CRASH_DIRECTORY";
/// Names the store to be checked, and a file with what was acknowledged, a number on each line.
const CHECK_DIRECTORY: &str = "BERTH_TEST_CRASH_CHECK";
const CHECK_ACKNOWLEDGED: &str = "BERTH_TEST_CRASH_ACKNOWLEDGED";
/// Writers at once, so that commits share syncs.
const WRITERS: u64 = 8;
/// So many transactions later, a writer deletes the record that it made, but for one in [`KEPT`].
const YOUNG: u64 = 64;
const KEPT: u64 = 8;
/// Pairs of records that each writer puts again and again, both in one transaction.
const PAIRS: u64 = 16;

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

/// The writer of a transaction's number, and which of its transactions it is.
fn origin(number: u64) -> (u64, u64) {
    (number % WRITERS, number / WRITERS)
}

fn head(writer: u64) -> String {
    format!("w{writer}/head")
}

/// What a writer's keys hold.
type Records = BTreeMap<String, Vec<u8>>;

/// A transaction: a record of its own, both of a pair of records, the number of the newest transaction; and the end of an old record.
fn transaction(number: u64) -> Vec<Write> {
    let (writer, turn) = origin(number);
    let key = |turn: u64| format!("w{writer}/record/{turn:08}");
    let mut writes = vec![
        Write::Put(key(turn), value(number)),
        Write::Put(format!("w{writer}/pair/{}/left", turn % PAIRS), number.to_be_bytes().to_vec()),
        Write::Put(format!("w{writer}/pair/{}/right", turn % PAIRS), number.to_be_bytes().to_vec()),
        Write::Put(head(writer), number.to_be_bytes().to_vec()),
    ];
    if let Some(old) = turn.checked_sub(YOUNG).filter(|old| old % KEPT != 0) {
        writes.push(Write::Delete(key(old)));
    }
    writes
}

/// What a writer's keys hold after its transactions up to `newest`, and no further.
fn held(newest: u64) -> Records {
    let (writer, turns) = origin(newest);
    let mut held = BTreeMap::new();
    for write in (0..=turns).flat_map(|turn| transaction(turn * WRITERS + writer)) {
        match write {
            Write::Put(key, value) => drop(held.insert(key, value)),
            Write::Delete(key) => drop(held.remove(&key)),
        }
    }
    held
}

/// The number, then bytes of it: values of many sizes; now and then one that the database keeps in a file of its own.
fn value(number: u64) -> Vec<u8> {
    let length = if number % 43 == 42 { 150_000 } else { (number * 37 % 2000) as usize };
    let mut value = number.to_be_bytes().to_vec();
    value.resize(8 + length, (number % 251) as u8);
    value
}

/// Not a test by itself: the writer, started by the test below in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer() {
    let Some(directory) = std::env::var_os(WRITER_DIRECTORY) else { return };
    let kv = Arc::new(RedbKv::open(Path::new(&directory)).unwrap());
    // Each has keys of its own.
    let writers = (0..WRITERS).map(|writer| {
        let kv = kv.clone();
        tokio::spawn(async move {
            for number in (writer..1_000_000).step_by(WRITERS as usize) {
                kv.commit(vec![], transaction(number)).await.unwrap();
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
    let found = compare(Path::new(&directory), list.lines().map(|line| line.parse().unwrap())).await;
    println!("compared {} transactions {} lost {}", found.records, found.transactions, found.wrong.len());
    assert!(found.wrong.is_empty(), "{}", found.wrong.join("\n"));
}

/// What came of a comparison.
#[derive(Default)]
struct Compared {
    /// Records that were compared with what they must hold, those that must be gone included.
    records: u64,
    /// Transactions that these records are the outcome of.
    transactions: u64,
    /// What is missing, damaged, only half there, or there though it should not be.
    wrong: Vec<String>,
}

/// Compares all that is in a store with what must be there, given the numbers that were acknowledged.
async fn compare(store: &Path, acknowledged: impl Iterator<Item = u64>) -> Compared {
    let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
    for number in acknowledged {
        let one = newest.entry(number % WRITERS).or_insert(number);
        *one = number.max(*one);
    }
    let kv = RedbKv::open(store).unwrap();
    let mut found = Compared::default();
    for writer in 0..WRITERS {
        let entries = kv.scan(&format!("w{writer}/")).await.unwrap();
        let there = entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
        compare_writer(writer, newest.get(&writer).copied(), &there, &mut found);
    }
    found
}

/// A writer's newest transaction may be one that was not acknowledged; whichever it is, it and all before it are there whole.
fn compare_writer(writer: u64, acknowledged: Option<u64>, there: &Records, found: &mut Compared) {
    let newest = there.get(&head(writer)).and_then(|bytes| Some(u64::from_be_bytes(bytes.as_slice().try_into().ok()?)));
    let Some(newest) = newest.filter(|number| number % WRITERS == writer) else {
        if acknowledged.is_some() || !there.is_empty() {
            found.wrong.push(format!("{acknowledged:?} was acknowledged, and {} records have no head", there.len()));
        }
        return;
    };
    if acknowledged.is_some_and(|number| newest < number) {
        found.wrong.push(format!("{acknowledged:?} was acknowledged, and the newest is {newest}"));
    }
    let held = held(newest);
    for (key, value) in &held {
        if there.get(key) != Some(value) {
            found.wrong.push(format!("{key} after {newest}: {:?} bytes", there.get(key).map(Vec::len)));
        }
    }
    for key in there.keys().filter(|key| !held.contains_key(*key)) {
        found.wrong.push(format!("{key} is there after {newest}, and should not be"));
    }
    let turns = origin(newest).1 + 1;
    let deleted = (0..turns.saturating_sub(YOUNG)).filter(|old| old % KEPT != 0).count() as u64;
    found.records += held.len() as u64 + deleted;
    found.transactions += turns;
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
        let found = runtime.block_on(compare(&mounted.0.join("store"), acknowledged.iter().copied()));
        assert!(found.wrong.is_empty(), "round {round}: {}", found.wrong.join("\n"));
        assert!(found.transactions >= acknowledged.len() as u64, "round {round}: only {} compared", found.transactions);
    }
}

/// What [`compare_writer`] must see: a transaction that is half there, a deleted record that is back, an acknowledged transaction that is gone.
#[test]
fn the_comparison_sees_what_is_wrong() {
    let newest = 200 * WRITERS + 3;
    let wrong = |acknowledged: u64, change: &dyn Fn(&mut Records)| {
        let mut there = held(newest);
        change(&mut there);
        let mut found = Compared::default();
        compare_writer(3, Some(acknowledged), &there, &mut found);
        found.wrong.len()
    };
    assert_eq!(wrong(newest, &|_| {}), 0);
    assert_eq!(wrong(newest - WRITERS, &|_| {}), 0, "one more than was acknowledged is no fault");
    assert_eq!(wrong(newest + WRITERS, &|_| {}), 1);
    assert_eq!(wrong(newest, &|there| drop(there.remove("w3/pair/8/right"))), 1);
    assert_eq!(wrong(newest, &|there| drop(there.remove("w3/record/00000008"))), 1);
    assert_eq!(wrong(newest, &|there| drop(there.insert("w3/record/00000009".into(), value(9 * WRITERS + 3)))), 1);
    assert_eq!(wrong(newest, &|there| drop(there.insert("w3/record/00000201".into(), vec![]))), 1);
    assert_eq!(wrong(newest, &|there| drop(there.remove("w3/head"))), 1);
}
