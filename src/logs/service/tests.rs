//! The writer by itself.

use futures::StreamExt;

use super::*;
use crate::logs::LogItem;

fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

fn writer() -> (tempfile::TempDir, Writer) {
    let directory = tempfile::tempdir().unwrap();
    let (limits, compressor) = (LogLimits::default(), Compressor::start().unwrap());
    let writer = Writer::new(directory.path().to_owned(), limits, Arc::default(), compressor);
    (directory, writer)
}

fn line(text: &str) -> LogRecord {
    LogRecord::berth(Timestamp::UNIX_EPOCH, "web.1", text)
}

#[test]
fn followers_of_a_quiet_log_leave_nothing_behind() {
    let (_directory, mut writer) = writer();
    let (_, stays) = writer.follow(env(), LogFilter::all()).unwrap();
    for _ in 0..100 {
        writer.follow(env(), LogFilter::all()).unwrap();
    }
    // The one that stays, and the last one that is gone.
    assert_eq!(writer.feeds[&env()].len(), 2);
    drop(stays);
}

#[test]
fn what_a_full_disk_does_not_take_is_counted_and_told_of_once_it_does() {
    let (directory, mut writer) = writer();
    let files = env_directory(directory.path(), &env());
    fs::create_dir_all(&files).unwrap();
    let segment = files.join("log.1");
    // Every write to it finds no space left.
    std::os::unix::fs::symlink("/dev/full", &segment).unwrap();
    let (_, follower) = writer.follow(env(), LogFilter::all()).unwrap();
    for text in ["a", "b", "c"] {
        writer.append(&env(), line(text));
    }
    writer.flush();
    assert_eq!(writer.dropped.total(), 3);
    // The notice finds no space either.
    writer.tell_dropped();
    writer.append(&env(), line("d"));
    writer.mark(&env()).unwrap_err();
    writer.tell_dropped();
    assert_eq!(writer.dropped.total(), 4, "a notice is no line that anybody misses");
    fs::remove_file(&segment).unwrap();
    writer.append(&env(), line("e"));
    writer.flush();
    writer.tell_dropped();
    let kept = fs::read_to_string(&segment).unwrap();
    let kept: Vec<LogRecord> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts: Vec<&str> = kept.iter().map(|record| record.text.as_str()).collect();
    assert!(matches!(texts[..], ["e", notice] if notice.starts_with("4 lines dropped")), "{texts:?}");
    assert_eq!(writer.dropped.total(), 4);
    drop(writer);
    let followed: Vec<LogItem> = futures::executor::block_on(follower.into_stream().collect());
    assert_eq!(followed.len(), 6, "{followed:?}");
}

/// A log that cannot even be opened, and one that is removed with what was to be said of it.
#[test]
fn a_log_without_a_place_loses_one_line_at_a_time() {
    let (directory, mut writer) = writer();
    let in_its_way = directory.path().join("acme");
    fs::write(&in_its_way, "").unwrap();
    for text in ["a", "b"] {
        writer.append(&env(), line(text));
        writer.flush();
    }
    writer.tell_dropped();
    assert_eq!(writer.dropped.total(), 2);
    fs::remove_file(&in_its_way).unwrap();
    writer.remove(&env()).unwrap();
    writer.tell_dropped();
    assert!(!in_its_way.exists(), "a removed environment has a log again");
}
