//! The ring on a disk: bounds, crashes, compressing, reading back and on.

use std::time::{Duration, Instant};

use flate2::read::GzDecoder;

use super::*;
use crate::domain::Timestamp;

fn record(text: &str) -> LogRecord {
    LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", text)
}

fn open(directory: &Path, segment_bytes: u64, segments: usize) -> io::Result<Ring> {
    Ring::open(directory, segment_bytes, segments, &Compressor::start()?)
}

fn back(directory: &Path, until: Position) -> Vec<String> {
    let mut texts = Vec::new();
    read_back(directory, until, |_, line| {
        texts.push(serde_json::from_slice::<LogRecord>(line).unwrap().text);
        true
    })
    .unwrap();
    texts
}

/// Waits until all closed files are compressed.
fn compressed(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let is_done = || {
        let all = sequences(directory).unwrap();
        let (_, closed) = all.split_last().unwrap();
        let of = |sequence: &u64| (segment_path(directory, *sequence), compressed_path(directory, *sequence));
        closed.iter().map(of).all(|(plain, compressed)| !plain.exists() && compressed.exists())
    };
    while !is_done() {
        assert!(Instant::now() < deadline, "they are not compressed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn bytes_on_disk(directory: &Path) -> u64 {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn the_ring_keeps_the_newest_within_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = open(dir.path(), 1000, 3).unwrap();
    for n in 0..500 {
        ring.append(&record(&n.to_string())).unwrap();
        if n % 7 == 0 {
            ring.flush().unwrap();
        }
    }
    ring.flush().unwrap();
    compressed(dir.path());
    assert!(bytes_on_disk(dir.path()) <= 3000);
    let texts = back(dir.path(), ring.position());
    assert!(texts.len() > 20, "{}", texts.len());
    let newest: Vec<String> = (0..500).rev().take(texts.len()).map(|n| n.to_string()).collect();
    assert_eq!(texts, newest);
    assert!(has_rotated(dir.path()));
}

#[test]
fn a_torn_line_is_cut_off_and_writing_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = open(dir.path(), 1 << 20, 2).unwrap();
    ring.append(&record("whole")).unwrap();
    ring.append(&record("torn")).unwrap();
    ring.flush().unwrap();
    let path = segment_path(dir.path(), 1);
    let bytes = fs::read(&path).unwrap();
    let first = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for cut in first..bytes.len() {
        fs::write(&path, &bytes[..cut]).unwrap();
        let mut ring = open(dir.path(), 1 << 20, 2).unwrap();
        ring.append(&record("after")).unwrap();
        ring.flush().unwrap();
        assert_eq!(back(dir.path(), ring.position()), ["after", "whole"], "cut at {cut}");
    }
}

#[test]
fn reading_back_crosses_blocks_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = open(dir.path(), 300_000, 8).unwrap();
    let texts: Vec<String> = (0..400).map(|n| format!("{n}-{}", "x".repeat((n * 37) % 5000))).collect();
    for text in &texts {
        ring.append(&record(text)).unwrap();
    }
    ring.flush().unwrap();
    let read = back(dir.path(), ring.position());
    assert_eq!(read, texts.iter().rev().cloned().collect::<Vec<_>>());
    // What comes after a position is not seen from it.
    let before = ring.position();
    ring.append(&record("later")).unwrap();
    ring.flush().unwrap();
    assert_eq!(back(dir.path(), before), read);
}

#[test]
fn a_record_larger_than_a_file_is_kept_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = open(dir.path(), 100, 2).unwrap();
    for text in ["a".repeat(300), "b".repeat(300)] {
        ring.append(&record(&text)).unwrap();
    }
    ring.flush().unwrap();
    assert_eq!(back(dir.path(), ring.position()).len(), 2);
}

#[test]
fn closed_files_are_compressed_and_read_alike() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = open(dir.path(), 20_000, 4).unwrap();
    let mut middle = None;
    for n in 0..4000 {
        ring.append(&record(&format!("line {n}"))).unwrap();
        if n == 3500 {
            ring.flush().unwrap();
            middle = Some(ring.position());
        }
    }
    ring.flush().unwrap();
    let (all, early) = (back(dir.path(), ring.position()), back(dir.path(), middle.unwrap()));
    assert_eq!(all[..3], ["line 3999", "line 3998", "line 3997"]);
    // A place in a file that was closed and compressed since.
    assert_eq!(early[..2], ["line 3500", "line 3499"]);
    let names = |suffix: &str| {
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(suffix)).count()
    };
    compressed(dir.path());
    assert_eq!(names(".gz"), 3);
    assert!(bytes_on_disk(dir.path()) < 40_000, "{}", bytes_on_disk(dir.path()));
    // What a crash in the middle of it leaves: a half, and a whole one beside its original.
    let oldest = sequences(dir.path()).unwrap()[0];
    let mut plain = Vec::new();
    GzDecoder::new(File::open(compressed_path(dir.path(), oldest)).unwrap()).read_to_end(&mut plain).unwrap();
    fs::write(segment_path(dir.path(), oldest), plain).unwrap();
    fs::write(dir.path().join("log.7.gz.new"), "half").unwrap();
    assert_eq!(back(dir.path(), ring.position()), all);
    let ring = open(dir.path(), 20_000, 4).unwrap();
    assert_eq!((names(".gz"), names(".new")), (2, 0));
    assert_eq!(back(dir.path(), ring.position()), all);
}

/// The texts after a place, and where reading stopped.
fn forward(directory: &Path, from: Position, until: Position, most: usize) -> (Vec<String>, Stopped) {
    let mut texts = Vec::new();
    let stopped = read_range(directory, from, until, |_, line| {
        texts.push(serde_json::from_slice::<LogRecord>(line).unwrap().text);
        texts.len() < most
    });
    (texts, stopped.unwrap())
}

#[test]
fn reading_goes_on_after_any_line_as_long_as_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = open(dir.path(), 2000, 4).unwrap();
    let mut cursors = Vec::new();
    for n in 0..200 {
        cursors.push(ring.append(&record(&n.to_string())).unwrap());
    }
    ring.flush().unwrap();
    let until = ring.position();
    assert_eq!(cursors.last().unwrap().position, until);
    for compressing_is_over in [false, true] {
        if compressing_is_over {
            compressed(dir.path());
        }
        let (there, all) = forward(dir.path(), Position::START, until, usize::MAX);
        assert!(there.len() > 40 && all == Stopped { position: until, gap: true }, "{all:?}");
        let oldest = 200 - there.len();
        for (n, cursor) in cursors.iter().enumerate() {
            assert_eq!(has(dir.path(), *cursor).unwrap(), n >= oldest, "{n}");
            if n >= oldest {
                let (rest, stopped) = forward(dir.path(), cursor.position, until, 7);
                assert_eq!(rest, (n + 1..200).take(7).map(|n| n.to_string()).collect::<Vec<_>>());
                assert!(!stopped.gap && stopped.position == cursors[(n + 7).min(199)].position, "{n} {stopped:?}");
            }
        }
        // Back and forth, lines have the same places.
        let mut places = Vec::new();
        read_back(dir.path(), until, |position, line| {
            places.push(LogCursor::after(position, line));
            true
        })
        .unwrap();
        places.reverse();
        assert_eq!(places, cursors[oldest..]);
    }
    // Another line in its place, and beyond the end.
    let last = cursors.last().unwrap();
    assert!(!has(dir.path(), LogCursor::after(last.position, b"other")).unwrap());
    for offset in [0, 1, last.position.offset + 1, u64::MAX] {
        let nowhere = Position { offset, ..last.position };
        assert!(!has(dir.path(), LogCursor::after(nowhere, b"")).unwrap(), "{offset}");
    }
    let (none, _) = forward(dir.path(), until, until, 9);
    assert!(none.is_empty());
}

#[test]
fn nothing_was_ever_logged() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("none");
    let end = Position { sequence: 9, offset: 9 };
    assert!(forward(&nowhere, Position::START, end, 9).0.is_empty());
    assert!(!has(&nowhere, LogCursor::after(end, b"")).unwrap());
    assert!(back(&nowhere, Position { sequence: 9, offset: 9 }).is_empty());
    assert!(!has_rotated(&nowhere));
}
