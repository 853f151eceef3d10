//! Logs and builds' output as programs ask for them, and the options of `logs`.

use futures::StreamExt;

use super::*;
use crate::logs::{LogFilter, LogItem, LogQuery};

fn text(item: &LogItem) -> String {
    match item {
        LogItem::Record(entry) => entry.text.clone(),
        other => format!("{other:?}"),
    }
}

async fn say(world: &World, source: &str, process: &str, text: &str) {
    let mut record = LogRecord::berth(Timestamp::now(), process, text);
    record.source = source.parse().unwrap();
    record.replica = process.strip_prefix("web.").map(|index| format!("replica-{index}"));
    world.logs.append_when_ready(&shop(), record).await;
    world.logs.flush().await;
}

#[tokio::test]
async fn logs_are_chosen_by_what_is_asked() {
    let world = World::new().await;
    for (source, process, text) in [
        ("app", "web.2", "[WARN] low on memory"),
        ("app", "web.3", "ERROR: Disk FULL"),
        ("router", "router", "at=error status=503"),
        ("berth", "deploy", "v3 is live"),
    ] {
        say(&world, source, process, text).await;
    }
    for (options, lines) in [
        ("--process web", vec!["hello \u{1b}[2J", "[WARN] low on memory", "ERROR: Disk FULL"]),
        ("--replica replica-2", vec!["[WARN] low on memory"]),
        ("--source router", vec!["at=error status=503"]),
        ("--level warn", vec!["[WARN] low on memory", "ERROR: Disk FULL", "at=error status=503"]),
        ("--level fatal", vec![]),
        ("--search full", vec![]),
        ("--search full -i", vec!["ERROR: Disk FULL"]),
        ("--stream stderr", vec![]),
        ("--since 10m -n 1", vec!["v3 is live"]),
        ("--until 10m", vec![]),
        ("--since 10m --until 2100-01-01T00:00:00Z --level error --source app", vec!["ERROR: Disk FULL"]),
    ] {
        let said = world.run("vera", &format!("logs acme/shop/dev --json {options}")).await.ok().stdout;
        let found: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(found.iter().map(|line| line["text"].as_str().unwrap()).collect::<Vec<_>>(), lines, "{options}");
    }
    world.run("vera", "logs acme/shop/dev --since 1m --until 2m").await.fails(2, "is not before");
    world.run("vera", &format!("logs acme/shop/dev --search {}", "x".repeat(257))).await.fails(2, "256 bytes");
    // From a line on.
    let first = world.run("vera", "logs acme/shop/dev --json").await.ok().stdout;
    let first: serde_json::Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    let cursor = first["cursor"].as_str().unwrap();
    let said = world.run("vera", &format!("logs acme/shop/dev -n 2 --after {cursor}")).await.ok().stdout;
    assert!(said.lines().count() == 2 && said.contains("low on memory") && said.contains("FULL"), "{said}");
    let said = world.run("vera", "logs acme/shop/dev --after 1-2-3 -n 1").await.ok();
    assert!(said.stderr.contains("not kept any more") && said.stdout.contains("hello"), "{said:?}");
}

#[tokio::test]
async fn a_stream_goes_on_from_a_place_and_ends_with_the_membership() {
    let world = World::new().await;
    let vera = caller("vera");
    for who in ["stan", "vera"] {
        let asked = world.commands.log_tail(&caller(who), &shop(), LogQuery::default()).await;
        assert_eq!(asked.is_ok(), who == "vera");
        assert_eq!(world.commands.log_stream(&caller(who), &shop(), LogQuery::default()).await.is_ok(), who == "vera");
    }
    let tail = world.commands.log_tail(&vera, &shop(), LogQuery::default()).await.unwrap();
    let [LogItem::Record(entry)] = &tail[..] else { panic!("{tail:?}") };
    let query = |after| LogQuery { after, ..LogQuery::default() };
    let all = world.commands.log_stream(&vera, &shop(), query(None)).await.unwrap();
    let rest = world.commands.log_stream(&vera, &shop(), query(entry.cursor())).await.unwrap();
    let lost = world.commands.log_stream(&vera, &shop(), query(Some("1-1-1".parse().unwrap()))).await.unwrap();
    say(&world, "app", "web.1", "more").await;
    let hello = "hello \u{1b}[2J";
    let mut streams = Vec::new();
    for (stream, wanted) in
        [(all.boxed(), vec![hello, "more"]), (rest.boxed(), vec!["more"]), (lost.boxed(), vec!["Gap", hello, "more"])]
    {
        let mut stream = stream;
        for line in wanted {
            assert_eq!(text(&stream.next().await.unwrap().unwrap()), line);
        }
        streams.push(stream);
    }
    // A window that is over ends by itself.
    let until = Some(Timestamp::now());
    let window = LogQuery { filter: LogFilter { until, ..LogFilter::all() }, ..LogQuery::default() };
    let window = world.commands.log_stream(&vera, &shop(), window).await.unwrap();
    assert_eq!(window.count().await, 2);
    world.run("olga", "tenants members acme --remove vera").await.ok();
    for mut stream in streams {
        let last = tokio::time::timeout(Duration::from_secs(60), stream.next()).await.unwrap().unwrap();
        assert!(matches!(last, Err(CommandError::Denied(_))), "{last:?}");
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn too_many_followers_are_told_so() {
    let world = World::new().await;
    let acme: TenantName = "acme".parse().unwrap();
    let taken: Vec<_> =
        (0..follow::MAX_OF_TENANT).map(|_| world.commands.follow_places.try_take(&acme).unwrap()).collect();
    world.run("vera", "logs acme/shop/dev -f").await.fails(75, "end one of them first");
    drop(taken);
    let stream = world.commands.log_stream(&caller("vera"), &shop(), LogQuery::default()).await.unwrap();
    drop(stream);
}

#[tokio::test]
async fn a_builds_output_is_whole_or_from_any_of_its_lines_on() {
    let world = World::new().await;
    let vera = caller("vera");
    let mut writer = world.logs.build_writer(&shop(), BuildNumber(2)).unwrap();
    writer.write(b"\x1b]52;c;eA==\x07two\nthree");
    writer.finish().unwrap();
    let (build, lines) = world.commands.build_log(&vera, &shop(), None).await.unwrap();
    assert_eq!((build.number, lines.len()), (BuildNumber(2), 3));
    assert_eq!(lines[1].plain(), "^[]52;c;eA==^Gtwo");
    for (skipped, from) in [0].into_iter().chain(lines.iter().map(|line| line.offset)).enumerate() {
        let stream = world.commands.build_log_stream(&vera, &shop(), Some(BuildNumber(2)), from).await.unwrap();
        let items: Vec<BuildItem> = stream.map(Result::unwrap).collect().await;
        let (end, rest) = items.split_last().unwrap();
        assert_eq!(*end, BuildItem::Ended(Box::new(build.clone())));
        let wanted: Vec<_> = lines[skipped..].iter().cloned().map(BuildItem::Line).collect();
        assert_eq!(rest, wanted, "from {from}");
    }
    let shop = shop();
    let ask = |number, from| world.commands.build_log_stream(&vera, &shop, Some(BuildNumber(number)), from);
    assert!(matches!(ask(2, 1 << 20).await.err(), Some(CommandError::Usage(_))));
    assert!(matches!(ask(9, 0).await.err(), Some(CommandError::NotFound(_))));
    let refused = world.commands.build_log_stream(&caller("stan"), &shop, None, 0).await;
    assert!(matches!(refused.err(), Some(CommandError::NotFound(_))));
    // Its output is not kept; how it ended is.
    let items: Vec<BuildItem> = ask(1, 0).await.unwrap().map(Result::unwrap).collect().await;
    assert!(matches!(&items[..], [BuildItem::Ended(build)] if build.number == BuildNumber(1)), "{items:?}");
    assert!(matches!(
        world.commands.build_log(&vera, &shop, Some(BuildNumber(1))).await,
        Err(CommandError::NotFound(_))
    ));
}
