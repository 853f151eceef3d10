//! What is remembered and what is forgotten, in memory and on disk, and how it is answered.

use std::fs;

use super::*;

fn limits(environments: usize, memory: usize) -> HistoryLimits {
    HistoryLimits { environments, memory }
}

fn record(history: &mut History, env: &EnvRef, ticks: std::ops::Range<u32>, point: impl Fn(u32) -> Point) {
    for tick in ticks {
        history.record(env, tick, point(tick));
        history.advance(tick);
    }
}

/// Numbers that look like noise and are the same each time.
fn noise(seed: u32) -> u32 {
    let mut mixed = seed.wrapping_mul(0x9e37_79b9) ^ 0x55aa_33cc;
    for _ in 0..3 {
        mixed ^= mixed << 13;
        mixed ^= mixed >> 17;
        mixed ^= mixed << 5;
    }
    mixed
}

#[test]
fn a_day_is_kept_and_no_more() {
    let mut history = History::new(limits(10, 1 << 30));
    let end = START + KEPT + 1000;
    record(&mut history, &shop(), START..end, |tick| answered(tick - START));
    let points = history.recall(&shop(), 0, u32::MAX).points(0, u32::MAX);
    assert!((KEPT as usize..=KEPT as usize + 60).contains(&points.len()), "{}", points.len());
    assert!(points.is_sorted_by_key(|(tick, _)| *tick) && points.last().unwrap().0 == end - 1);
    assert!(points.iter().all(|(tick, point)| point.requests.unwrap().classes[1] == tick - START));
    // Whoever has been idle for a day takes no room.
    record(&mut history, &shop(), end..end + KEPT + 100, |_| Point::default());
    assert_eq!((history.environments().count(), history.bytes()), (0, 0));
    history.record(&shop(), end + 2 * KEPT, Point { replicas: Some(Replicas::default()), ..Point::default() });
    assert_eq!(history.environments().count(), 0, "nothing to tell is nothing to keep");
}

#[test]
fn a_day_takes_this_much_memory() {
    let of = |point: &dyn Fn(u32) -> Point| {
        let mut history = History::new(limits(10, 1 << 30));
        record(&mut history, &shop(), START..START + KEPT, point);
        let points = history.recall(&shop(), 0, u32::MAX).points(0, u32::MAX);
        assert_eq!(points.len(), KEPT as usize, "a part of the day is missing");
        history.bytes()
    };
    let quiet = of(&|_| Point { requests: Some(Requests::default()), ..answered(0) });
    assert!(quiet < 32 << 10, "{quiet} bytes of one that runs and is asked nothing");
    // A hundred requests a second, most of them in a few buckets.
    let usual = of(&|tick| noisy(tick, 1000, 5));
    assert!(usual < 160 << 10, "{usual} bytes of a usual one");
    // A thousand a second of all latencies, with as many answers of each class.
    let busiest = of(&|tick| noisy(tick, 10_000, LATENCY_BUCKETS));
    assert!(busiest < 256 << 10, "{busiest} bytes of the busiest");
    println!("a day takes {quiet} bytes when quiet, {usual} usually, {busiest} at the most");
}

/// So many requests, give or take as many as chance would, in so many buckets.
fn noisy(tick: u32, requests: u32, buckets: usize) -> Point {
    let mut number = tick.wrapping_mul(64);
    let mut about = |middle: u32| {
        number += 1;
        let spread = f64::from(middle).sqrt() * 4.0;
        (f64::from(middle) + spread * (f64::from(noise(number)) / f64::from(u32::MAX) - 0.5)).max(0.0) as u32
    };
    let mut latency = [0; LATENCY_BUCKETS];
    latency[..buckets].iter_mut().for_each(|bucket| *bucket = about(requests / buckets as u32));
    let classes = std::array::from_fn(|class| if class == 1 || buckets > 5 { about(requests) } else { 0 });
    let (bytes, under_way) = (u64::from(about(requests)) * 5000, about(20));
    let requests = Requests { classes, latency, bytes, under_way };
    let used = Used {
        cpu_millis: about(900),
        memory: (200 << 20) + u64::from(about(1000)) * 4096,
        received: u64::from(about(10_000)) * 700,
        sent: u64::from(about(10_000)) * 5000,
    };
    Point { requests: Some(requests), used: Some(used), replicas: Some(Replicas { wanted: 4, ready: 4, crashes: 0 }) }
}

#[test]
fn who_was_idle_for_longest_goes_first() {
    let names: Vec<EnvRef> = (0..5).map(|number| env(&format!("acme/shop/env{number}"))).collect();
    let mut history = History::new(limits(3, 1 << 30));
    for (number, name) in names.iter().enumerate() {
        history.record(name, START + number as u32, answered(1));
    }
    history.advance(START + 5);
    let mut kept: Vec<_> = history.environments().cloned().collect();
    kept.sort();
    assert_eq!(kept, names[2..]);
    // The same when it is memory that is short.
    let mut history = History::new(limits(100, 4 << 10));
    for (number, name) in names.iter().enumerate() {
        let from = START + 5 * number as u32;
        record(&mut history, name, from..from + 5, |_| answered(1));
    }
    assert!(history.bytes() <= 4 << 10 && history.environments().any(|env| env == &names[4]));
    assert!(!history.environments().any(|env| env == &names[0]));
}

#[test]
fn a_clock_that_is_set_back_begins_again_there() {
    let mut history = History::new(limits(3, 1 << 30));
    record(&mut history, &shop(), START + 1000..START + 1100, |_| answered(1));
    record(&mut history, &shop(), START..START + 100, |_| answered(2));
    let points = history.recall(&shop(), 0, u32::MAX).points(0, u32::MAX);
    assert_eq!((points.len(), points[0].0, points[99].0), (100, START, START + 99));
}

#[test]
fn steps_add_up_and_gaps_are_null() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = Metrics::new(settings(directory.path()));
    for tick in START..START + 60 {
        // Ten ticks without the router, ten of which nothing is known.
        let offset = tick - START;
        let point = match offset {
            20..30 => Point { requests: None, ..answered(0) },
            30..40 => continue,
            50 => Point { replicas: Some(Replicas { wanted: 4, ready: 1, crashes: 2 }), ..answered(10) },
            _ => answered(10),
        };
        metrics.record(&shop(), tick, point);
    }
    let query = |from, to, step| MetricsQuery { from: Some(at(from)), to: Some(at(to)), step };
    let view = metrics.history(&shop(), &query(START, START + 60, Some(100)), at(START + 60)).unwrap();
    assert_eq!((view.step, view.from, view.to), (100, at(START), at(START + 60)));
    let some = |values: [f64; 3]| [Some(values[0]), Some(values[1]), None, None, Some(values[2]), Some(values[2])];
    assert_eq!(view.series.requests, some([100.0, 100.0, 100.0]));
    assert_eq!(view.series.requests_per_second, some([1.0, 1.0, 1.0]));
    assert_eq!(view.series.cpu_cores, [Some(0.5), Some(0.5), Some(0.5), None, Some(0.5), Some(0.5)]);
    assert_eq!(view.series.crashes[5], Some(2.0));
    assert_eq!((view.series.replicas_wanted[5], view.series.replicas_ready[5]), (Some(4.0), Some(1.0)));
    assert_eq!((view.total.requests, view.total.p50_ms, view.total.error_share), (Some(400.0), Some(15.0), Some(0.0)));
    assert_eq!(view.now.requests, Some(60.0));
    // Of the minute's points, one had too few replicas; the newest says what is now.
    for (tick, ready) in [(START + 60, 1), (START + 61, 4)] {
        let replicas = Some(Replicas { wanted: 4, ready, crashes: 0 });
        metrics.record(&shop(), tick, Point { replicas, ..answered(10) });
    }
    let late = metrics.history(&shop(), &query(START + 60, START + 62, Some(400)), at(START + 62)).unwrap();
    assert_eq!((late.now.replicas_wanted, late.now.replicas_ready), (Some(4.0), Some(4.0)));
    assert_eq!((late.total.replicas_wanted, late.total.replicas_ready), (Some(4.0), Some(1.0)));
    assert_eq!(view.series.at.len(), 6);
    let text = serde_json::to_value(&view).unwrap();
    assert!(text["series"]["requests"][2].is_null(), "{text}");
    assert_eq!(serde_json::from_value::<MetricsView>(text).unwrap(), view);
    // Nobody else's, and nothing of a time that is not kept.
    let none = metrics.history(&env("acme/shop/prod"), &query(START, START + 60, None), at(START + 60)).unwrap();
    assert!(none.total == Step::default() && none.series.requests.iter().all(Option::is_none));
    for wrong in [query(START + 60, START, None), query(START, START + 60, Some(0)), query(1, 2, None)] {
        assert!(metrics.history(&shop(), &wrong, at(START + 60)).is_err(), "{wrong:?}");
    }
    // Without being told otherwise, an hour in at most 360 steps.
    let usual = metrics.history(&shop(), &MetricsQuery::default(), at(START + 360)).unwrap();
    assert_eq!((usual.step, usual.series.at.len()), (10, 360));
    let day = MetricsQuery { from: Some(at(0)), ..MetricsQuery::default() };
    let day = metrics.history(&shop(), &day, at(START + 360)).unwrap();
    assert_eq!((day.step, day.series.at.len()), (240, 360));
}

#[test]
fn quantiles_are_between_the_bounds() {
    let mut buckets = [0_u64; LATENCY_BUCKETS];
    assert_eq!(query::quantile(&buckets, 0.5), None);
    (buckets[3], buckets[6]) = (90, 10);
    assert_eq!(query::quantile(&buckets, 0.45), Some(7.5));
    assert_eq!(query::quantile(&buckets, 0.95), Some(75.0));
    buckets[LATENCY_BUCKETS - 1] = 1000;
    assert_eq!(query::quantile(&buckets, 0.99), Some(30_000.0));
}

/// Records ticks as a server does that is stopped in order afterwards.
fn serve(metrics: &Metrics, ticks: std::ops::Range<u32>) {
    for tick in ticks.clone() {
        metrics.record(&shop(), tick, answered(tick - START + 1));
        metrics.lock().advance(tick);
        let fresh = metrics.lock().take_fresh();
        metrics.write(tick, fresh);
    }
    let rest = metrics.lock().take_all();
    metrics.write(ticks.end, rest);
}

fn files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(directory.join("metrics")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_restart_forgets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut from = START;
    // Within a block, over its end, over an hour's end.
    for end in [START + 7, START + 40, START + 400] {
        let metrics = Metrics::new(settings(directory.path()));
        metrics.load(from);
        serve(&metrics, from..end);
        let points = all(&metrics, &shop());
        let want: Vec<_> = (START..end).map(|tick| (tick, answered(tick - START + 1))).collect();
        let classes = |points: &[(u32, Point)]| -> Vec<_> {
            points.iter().map(|(tick, point)| (*tick, point.requests.map(|requests| requests.classes))).collect()
        };
        assert_eq!(classes(&points), classes(&want));
        from = end;
    }
    assert_eq!(files(directory.path()).len(), 2);
    // What is older than a day is not taken back, and removed.
    let late = Metrics::new(settings(directory.path()));
    late.load(START + 2 * KEPT);
    assert_eq!((all(&late, &shop()).len(), files(directory.path()).len()), (0, 0));
}

#[test]
fn a_torn_file_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    serve(&Metrics::new(settings(directory.path())), START..START + 90);
    let path = files(directory.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let mut counts = std::collections::BTreeSet::new();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let metrics = Metrics::new(settings(directory.path()));
        metrics.load(START + 90);
        counts.insert(all(&metrics, &shop()).len());
        // What is written after it is found.
        serve(&metrics, START + 90..START + 92);
        let again = Metrics::new(settings(directory.path()));
        again.load(START + 92);
        let last = all(&again, &shop()).last().map(|(tick, _)| *tick);
        assert_eq!(last, Some(START + 91), "cut at {length}");
    }
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [0, 30, 60]);
    // A bit that has tipped over ends what is believed.
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let metrics = Metrics::new(settings(directory.path()));
    metrics.load(START + 90);
    assert_eq!(all(&metrics, &shop()).len(), 30);
    // Something else altogether is no metrics.
    fs::write(&path, b"something else").unwrap();
    Metrics::new(settings(directory.path())).load(START + 90);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_forgotten_stays_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let now = sampler::tick_now();
    let metrics = Metrics::new(settings(directory.path()));
    for tick in now - 100..now {
        metrics.record(&shop(), tick, answered(1));
        metrics.lock().advance(tick);
    }
    let blocks = metrics.lock().take_all();
    metrics.write(now, blocks);
    metrics.forget(&shop()).await;
    assert!(all(&metrics, &shop()).is_empty());
    let next = Metrics::new(settings(directory.path()));
    next.load(now);
    assert!(all(&next, &shop()).is_empty());
}

#[test]
fn files_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings(directory.path());
    settings.limits.memory = 64 << 10;
    let metrics = Metrics::new(settings);
    for tick in START..START + 6000 {
        metrics.record(&shop(), tick, noisy(tick, 100_000, LATENCY_BUCKETS));
        metrics.lock().advance(tick);
        let fresh = metrics.lock().take_fresh();
        metrics.write(tick, fresh);
    }
    let size: u64 = files(directory.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(size <= 128 << 10, "{size} bytes");
    assert!(metrics.lock().bytes() <= 64 << 10);
}
