//! The writer by itself.

use super::*;

fn env() -> EnvRef {
    "acme/shop/dev".parse().unwrap()
}

#[test]
fn followers_of_a_quiet_log_leave_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let compressor = Compressor::start().unwrap();
    let mut writer = Writer::new(directory.path().to_owned(), LogLimits::default(), Arc::default(), compressor);
    let (_, stays) = writer.follow(env(), LogFilter::all()).unwrap();
    for _ in 0..100 {
        writer.follow(env(), LogFilter::all()).unwrap();
    }
    // The one that stays, and the last one that is gone.
    assert_eq!(writer.feeds[&env()].len(), 2);
    drop(stays);
}
