//! A world in memory, whose scripts know the suite's commands.

use std::{sync::Arc, time::Duration};

use berth::{
    domain::ImageRef,
    runtime::{
        Listener, Source,
        fake::{Behaviour, FakeCommand, FakeRuntime, JobContext, Script},
    },
};
use tokio::io::AsyncReadExt;

use super::support::World;

fn script(command: &str) -> Script {
    let mut script = Script { stop_delay: Duration::from_millis(50), ..Script::default() };
    match command {
        "exec sleep 3600" => {
            let command = |takes, code, output: &str| FakeCommand { takes, code, output: output.to_owned() };
            let sleep = command(Duration::from_secs(60), 0, "");
            let known = [
                ("echo $GREETING $BERTH_REPLICA; exit 3", command(Duration::ZERO, 3, "hello 1\n")),
                ("yes | head -c 20000; true", command(Duration::ZERO, 0, &"y\n".repeat(10_000))),
                ("sleep 60", sleep),
            ];
            script.commands = known.map(|(name, command)| (name.to_owned(), command)).into();
        }
        "trap '' TERM; echo stubborn; while :; do sleep 1; done" => {
            script.stop_delay = Duration::MAX;
            script.lines = vec![(Source::Stdout, "stubborn".to_owned())];
        }
        "while :; do (sleep 30 &); done" => script.refused = 500,
        "exit 3" => script.ends = Some((Duration::from_millis(20), 3)),
        "echo one; echo two >&2; exec sleep 3600" => {
            script.lines = vec![(Source::Stdout, "one".to_owned()), (Source::Stderr, "two".to_owned())];
        }
        "exec httpd -f -p 127.0.0.1:5000" => {
            script.listens = vec![Listener { address: "127.0.0.1".parse().unwrap(), port: 5000 }];
        }
        other => panic!("no script for {other:?}"),
    }
    script
}

async fn run(mut job: JobContext) -> i64 {
    let argv: Vec<&str> = job.spec.argv.iter().map(String::as_str).collect();
    match argv[..] {
        ["sleep", _] => std::future::pending().await,
        ["sh", "-c", "echo out; echo err >&2; exit 7"] => {
            job.print(Source::Stdout, "out\n").await;
            job.print(Source::Stderr, "err\n").await;
            7
        }
        ["sh", "-c", "cat in/a > out; exit 0"] => {
            let content = job.read("/app/in/a").expect("uploaded");
            job.write("/app/out", content);
            0
        }
        ["cat"] => {
            let mut stdin = job.stdin.take().expect("standard input");
            let mut buffer = vec![0; 1 << 16];
            loop {
                match stdin.read(&mut buffer).await {
                    Ok(0) | Err(_) => return 0,
                    Ok(read) => job.print(Source::Stdout, buffer[..read].to_vec()).await,
                }
            }
        }
        ["sh", "-c", "exit 4"] => 4,
        ["sh", "-c", "yes | head -c 20000000"] => {
            for _ in 0..200 {
                job.print(Source::Stdout, vec![b'y'; 100_000]).await;
            }
            0
        }
        _ => panic!("no script for {argv:?}"),
    }
}

pub fn start() -> World {
    let image = |digit: &str| ImageRef {
        repository: "berth/contract/app".to_owned(),
        digest: format!("sha256:{}", digit.repeat(64)).parse().unwrap(),
    };
    let behaviour = Behaviour::default().replicas(|set, _| script(&set.command)).jobs(|job| Box::pin(run(job)));
    let runtime = FakeRuntime::new(behaviour);
    runtime.lose_image(&image("0"));
    World { restarted: Arc::new(runtime.restarted()), runtime: Arc::new(runtime), image: image("1") }
}
