use proptest::prelude::*;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn utc(text: &str) -> Schedule {
    Schedule::parse(text, Schedule::UTC).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn moments(schedule: &Schedule, from: &str, count: usize) -> Vec<String> {
    let mut moment = at(from);
    let mut out = Vec::new();
    for _ in 0..count {
        let Some(next) = schedule.next_after(moment) else { break };
        out.push(next.to_string());
        moment = next;
    }
    out
}

fn decided(text: &str, overlap: Overlap, considered: &str, running: bool, now: &str) -> Decision {
    let job = Standing { schedule: &utc(text), overlap, considered: at(considered), running };
    decide(&job, at(now), HOUR)
}

#[test]
fn schedules_and_what_is_none() {
    for (text, want) in [
        ("*/5 * * * *", "2026-03-01T10:05:00Z"),
        ("0 4 * * *", "2026-03-02T04:00:00Z"),
        ("30 9 * * MON-FRI", "2026-03-02T09:30:00Z"),
        ("0 0 1 1 *", "2027-01-01T00:00:00Z"),
        ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
        ("@hourly", "2026-03-01T11:00:00Z"),
        ("@midnight", "2026-03-02T00:00:00Z"),
        ("  @weekly ", "2026-03-08T00:00:00Z"),
    ] {
        assert_eq!(moments(&utc(text), "2026-03-01T10:02:03.5Z", 1), [want], "{text}");
    }
    for (text, message) in [
        ("", "0 fields"),
        ("* * * *", "4 fields"),
        ("0 * * * * *", "none for seconds"),
        ("* * * * * * *", "none for seconds"),
        ("60 * * * *", "is not a schedule"),
        ("* 24 * * *", "is not a schedule"),
        ("*/0 * * * *", "is not a schedule"),
        ("a * * * *", "is not a schedule"),
        ("5-1 * * * *", "is not a schedule"),
        ("0 0 30 2 *", "never comes"),
        ("@reboot", "is not a time"),
        ("@fortnightly", "short forms"),
        ("* * * * * ; rm", "fields"),
    ] {
        let error = Schedule::parse(text, Schedule::UTC).unwrap_err().to_string();
        assert!(error.contains(message), "{text:?}: {error}");
    }
    assert!(Schedule::parse(&"1,".repeat(200), Schedule::UTC).is_err());
    for zone in ["Europe/Nowhere", "../etc/passwd", "/etc/localtime", "", "Europe/Berlin\0"] {
        assert!(Schedule::zone(zone).is_err(), "{zone:?} was taken");
    }
}

#[test]
fn a_time_zone_with_summer_time() {
    let berlin = Schedule::parse("30 2 * * *", "Europe/Berlin").unwrap();
    // The night without 2:30 still has its run; the night with two of them has one.
    let spring = moments(&berlin, "2026-03-28T00:00:00Z", 3);
    assert_eq!(spring, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
    let autumn = moments(&berlin, "2026-10-24T00:00:00Z", 3);
    assert_eq!(autumn, ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
}

#[test]
fn due_jobs_start_and_overlap_as_their_policy_says() {
    let due = |overlap, running| {
        decided("0 * * * *", overlap, "2026-01-01T09:00:00Z", running, "2026-01-01T10:00:01Z").action
    };
    let moment = at("2026-01-01T10:00:00Z");
    for overlap in [Overlap::Skip, Overlap::Replace, Overlap::Allow] {
        assert_eq!(due(overlap, false), Action::Start { at: moment, replace: false });
    }
    assert_eq!(due(Overlap::Skip, true), Action::Skip { at: moment });
    assert_eq!(due(Overlap::Replace, true), Action::Start { at: moment, replace: true });
    assert_eq!(due(Overlap::Allow, true), Action::Start { at: moment, replace: false });
    let early = decided("0 * * * *", Overlap::Skip, "2026-01-01T09:00:00Z", false, "2026-01-01T09:59:59Z");
    assert_eq!((early.action, early.next), (Action::Wait, Some(moment)));
}

#[test]
fn what_was_missed_is_caught_up_once_or_told_of() {
    // Down for a day: of 1440 moments one run.
    let late = decided("* * * * *", Overlap::Skip, "2026-01-01T00:00:00Z", false, "2026-01-02T00:00:30Z");
    assert_eq!(late.action, Action::Start { at: at("2026-01-02T00:00:00Z"), replace: false });
    assert_eq!(late.considered, at("2026-01-02T00:00:00Z"));
    // A daily job that was due two hours ago is too late by an hour.
    let missed = decided("0 3 * * *", Overlap::Skip, "2026-01-01T03:00:00Z", false, "2026-01-03T05:00:00Z");
    let (first, last) = (at("2026-01-02T03:00:00Z"), at("2026-01-03T03:00:00Z"));
    assert_eq!((missed.action, missed.next), (Action::Miss { first, last }, Some(at("2026-01-04T03:00:00Z"))));
}

#[test]
fn clocks_that_are_set() {
    // Back by less than it would wait anyway: nothing runs twice.
    let back = decided("0 3 * * *", Overlap::Skip, "2026-01-02T03:00:00Z", false, "2026-01-02T02:00:00Z");
    assert_eq!((back.action, back.next), (Action::Wait, Some(at("2026-01-03T03:00:00Z"))));
    // Back by ten years: it goes on from there.
    let back = decided("* * * * *", Overlap::Skip, "2026-01-02T03:00:00Z", false, "2016-01-02T02:00:30Z");
    assert_eq!((back.action, back.considered), (Action::Rewind, at("2016-01-02T02:00:30Z")));
    assert_eq!(back.next, Some(at("2016-01-02T02:01:00Z")));
    // Forward by ten years: one run, not five million.
    let forward = decided("* * * * *", Overlap::Skip, "2026-01-02T03:00:00Z", false, "2036-01-02T03:00:59Z");
    assert_eq!(forward.action, Action::Start { at: at("2036-01-02T03:00:00Z"), replace: false });
    // A step is noticed within a minute, however far off the next run is.
    assert_eq!(pause(Some(at("2026-02-01T00:00:00Z")), at("2026-01-01T00:00:00Z")), MINUTE);
    assert_eq!(pause(Some(at("2026-01-01T00:00:05Z")), at("2026-01-01T00:00:00Z")), Duration::from_secs(5));
}

/// What happens to a job.
#[derive(Debug, Clone, Copy)]
enum Happening {
    /// So many seconds pass, in which nobody looks.
    Pass(u32),
    /// The clock is set, by seconds.
    Set(i64),
    /// The run under way ends.
    End,
}

fn happening() -> impl Strategy<Value = Happening> {
    const DAY: i64 = 86_400;
    prop_oneof![
        4 => (0u32..200).prop_map(Happening::Pass),
        2 => (0u32..400_000).prop_map(Happening::Pass),
        1 => prop_oneof![Just(DAY), Just(-DAY), Just(3650 * DAY), Just(-3650 * DAY), -7200..7200i64].prop_map(Happening::Set),
        2 => Just(Happening::End),
    ]
}

/// Schedules and the longest time between two of their moments.
const SCHEDULES: [(&str, Duration); 5] = [
    ("* * * * *", MINUTE),
    ("*/7 9-17 * * *", Duration::from_secs(86_400)),
    ("@hourly", HOUR),
    ("0 3 * * *", Duration::from_secs(86_400)),
    ("15 4 * * MON", Duration::from_secs(7 * 86_400)),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn no_storm_no_double_run_no_standstill(
        which in 0..SCHEDULES.len(),
        overlap in prop_oneof![Just(Overlap::Skip), Just(Overlap::Replace), Just(Overlap::Allow)],
        start in 1_600_000_000i64..1_800_000_000,
        happenings in prop::collection::vec(happening(), 1..8),
    ) {
        let (text, longest) = SCHEDULES[which];
        let schedule = utc(text);
        let mut now = Timestamp::from_second(start).unwrap();
        let (mut considered, mut running, mut newest) = (now, false, None);
        for happening in happenings {
            match happening {
                Happening::Pass(seconds) => now += Duration::from_secs(u64::from(seconds)),
                Happening::Set(seconds) => now = Timestamp::from_second(now.as_second() + seconds).unwrap(),
                Happening::End => running = false,
            }
            let job = Standing { schedule: &schedule, overlap, considered, running };
            let decision = decide(&job, now, HOUR);
            match decision.action {
                Action::Start { at, replace } => {
                    prop_assert!(at <= now && gap(at, now) <= HOUR, "{at} at {now}");
                    prop_assert!(newest.is_none_or(|newest| at > newest), "{at} again, after {newest:?}");
                    prop_assert!(!running || replace || overlap == Overlap::Allow, "two at once");
                    (running, newest) = (true, Some(at));
                }
                Action::Skip { at } => prop_assert!(running && overlap == Overlap::Skip && at <= now),
                Action::Miss { first, last } => prop_assert!(first <= last && gap(last, now) > HOUR),
                // Only a clock that was set back further than anything waits for may bring moments again.
                Action::Rewind => {
                    prop_assert!(gap(now, considered) >= MINUTE.min(longest));
                    newest = None;
                }
                Action::Wait => {}
            }
            considered = decision.considered;
            let again = decide(&Standing { considered, running, ..job }, now, HOUR);
            prop_assert_eq!(again.action, Action::Wait, "decided anew at the same moment");
        }
        // Whatever has happened, it goes on.
        let from = now;
        for _ in 0..3 {
            let decision = decide(&Standing { schedule: &schedule, overlap, considered, running: false }, now, HOUR);
            considered = decision.considered;
            if matches!(decision.action, Action::Start { .. }) {
                prop_assert!(gap(from, now) <= longest * 2 + HOLD, "it took from {from} to {now}");
                return Ok(());
            }
            now = decision.next.unwrap();
        }
        prop_assert!(false, "nothing is started any more");
    }

    #[test]
    fn no_text_makes_it_panic(text in "[@0-9A-Za-z*/,#?+ -]{0,40}|\\PC{0,30}", zone in "\\PC{0,20}") {
        let _ = Schedule::parse(&text, Schedule::UTC);
        let _ = Schedule::zone(&zone);
    }
}
