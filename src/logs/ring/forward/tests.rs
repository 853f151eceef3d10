//! A ring is read on from where it was left, whatever became of it meanwhile.

use std::fs;

use super::{super::*, *};
use crate::domain::Timestamp;

fn open_ring(directory: &Path, segments: usize) -> Ring {
    Ring::open(directory, 20_000, segments, &Compressor::start().unwrap()).unwrap()
}

fn append(ring: &mut Ring, numbers: std::ops::Range<usize>) {
    for n in numbers {
        ring.append(&LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", n.to_string())).unwrap();
    }
    ring.flush().unwrap();
}

/// Everything from a place on: the lines by number, what was lost, and where it ends.
fn read_all(directory: &Path, mut from: DrainCursor) -> (Vec<usize>, u64, DrainCursor) {
    let (mut lines, mut lost) = (Vec::new(), 0);
    loop {
        let page = read_forward(directory, from, 1000).unwrap();
        lost += page.lost;
        lines.extend(page.records.iter().map(|(_, record)| record.text.parse::<usize>().unwrap()));
        if page.records.is_empty() && page.next == from {
            return (lines, lost, from);
        }
        from = page.next;
    }
}

#[test]
fn every_line_comes_once_over_files_compressed_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = read_forward(&dir.path().join("none"), DrainCursor::default(), 1000).unwrap();
    assert!(nothing.records.is_empty() && nothing.lost == 0);
    let mut ring = open_ring(dir.path(), 100);
    let (mut at, mut next) = (DrainCursor::default(), 0);
    for _ in 0..20 {
        append(&mut ring, next..next + 100);
        let (lines, lost, end) = read_all(dir.path(), at);
        assert_eq!((lines, lost), ((next..next + 100).collect(), 0));
        assert_eq!(end, cursor_at(dir.path(), ring.position()).unwrap());
        assert_eq!(end.line, next as u64 + 100);
        (at, next) = (end, next + 100);
    }
    // Every place that a page tells is one to go on from.
    let page = read_forward(dir.path(), DrainCursor::default(), 1000).unwrap();
    let (middle, record) = &page.records[50];
    assert_eq!((record.text.as_str(), middle.line), ("50", 51));
    let (lines, lost, _) = read_all(dir.path(), *middle);
    assert_eq!((lines, lost), ((51..next).collect(), 0));
}

#[test]
fn what_was_overwritten_is_counted_to_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = open_ring(dir.path(), 3);
    append(&mut ring, 0..150);
    let at = read_forward(dir.path(), DrainCursor::default(), 1000).unwrap().records[99].0;
    append(&mut ring, 150..5000);
    for _ in 0..2 {
        let (lines, lost, end) = read_all(dir.path(), at);
        assert!(lost > 1000 && !lines.is_empty());
        assert_eq!(lines, (100 + lost as usize..5000).collect::<Vec<_>>());
        assert_eq!(end.line, 5000);
        // The same after a restart.
        ring = open_ring(dir.path(), 3);
    }
    append(&mut ring, 5000..5001);
    assert_eq!(cursor_at(dir.path(), ring.position()).unwrap().line, 5001);
}

#[test]
fn a_ring_that_lost_its_end_is_read_from_where_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = open_ring(dir.path(), 3);
    append(&mut ring, 0..100);
    let (_, _, end) = read_all(dir.path(), DrainCursor::default());
    let path = segment_path(dir.path(), 1);
    let bytes = fs::read(&path).unwrap();
    for cut in [bytes.len() - 1, bytes.len() / 2, 0] {
        fs::write(&path, &bytes[..cut]).unwrap();
        let mut ring = open_ring(dir.path(), 3);
        ring.append(&LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", "7777")).unwrap();
        ring.flush().unwrap();
        let (lines, lost, _) = read_all(dir.path(), end);
        assert_eq!((lines.last(), lost), (Some(&7777), 0), "cut at {cut}");
    }
    // Removed, and begun anew.
    let beyond = DrainCursor { sequence: 9, offset: 77, line: 900 };
    let (lines, lost, end) = read_all(dir.path(), beyond);
    assert_eq!((lines, lost, end.line), (vec![7777], 0, 1));
}

#[test]
fn a_page_says_whether_there_is_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = Ring::open(dir.path(), 1 << 20, 100, &Compressor::start().unwrap()).unwrap();
    let long = LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", "x".repeat(1000));
    // What is on disk is a page and a half, then the first file and the next.
    for (lines, pages) in [(LONGEST_RECORD / 1000 * 3 / 2, [true, false]), (1000, [true, true])] {
        for _ in 0..lines {
            ring.append(&long).unwrap();
        }
        ring.flush().unwrap();
        let mut from = DrainCursor::default();
        let mut more = Vec::new();
        while more.last() != Some(&false) {
            let page = read_forward(dir.path(), from, 1000).unwrap();
            more.push(page.more);
            from = page.next;
        }
        assert_eq!(more[..2], pages);
        assert_eq!(from, cursor_at(dir.path(), ring.position()).unwrap());
    }
    assert!(ring.position().sequence > 1);
}
