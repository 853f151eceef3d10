//! The commands of the contract over real ssh, and who may use them.

use std::{io::Write, process::Stdio};

use crate::{
    Case,
    platform::{DEADLINE, Platform, User, eventually, run},
    repository::Repository,
};

pub const CASES: &[Case] = &[
    ("keys", keys),
    ("members_and_roles", members_and_roles),
    ("config_changes_roll_out_without_a_build", config_changes_roll_out_without_a_build),
    ("run_gives_streams_and_exit_status", run_gives_streams_and_exit_status),
    ("cron_jobs_run_by_the_clock_and_by_hand", cron_jobs_run_by_the_clock_and_by_hand),
    ("domains_route", domains_route),
    ("logs_are_kept_across_deploys", logs_are_kept_across_deploys),
    ("restart_drops_no_request", restart_drops_no_request),
    ("destroying_leaves_nothing", destroying_leaves_nothing),
    ("exit_statuses_and_help", exit_statuses_and_help),
    ("the_router_explains_itself", the_router_explains_itself),
    ("doctor_finds_everything_in_place", doctor_finds_everything_in_place),
];

const SERVER: &str = "require('http').createServer((q, s) => { console.log('asked for', q.url); \
                      s.end(q.url === '/config' ? String(process.env.GREETING) : process.env.BERTH_RELEASE); }).listen(process.env.PORT);\n";

/// A deployed app: `TENANT/app`, its owner, its repository.
fn deployed(platform: &Platform) -> (String, User, Repository) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    repository.write("package.json", r#"{"name": "case", "version": "1.0.0", "engines": {"node": "22.x"}}"#);
    repository.write("server.js", SERVER);
    repository.commit("First");
    repository.push().ok();
    (app, user, repository)
}

fn dev_host(app: &str) -> String {
    let (tenant, app) = app.split_once('/').unwrap();
    format!("dev.{app}.{tenant}.localhost")
}

pub fn feed(platform: &Platform, user: &User, words: &[&str], input: &[u8]) -> (i32, String) {
    let mut command = platform.ssh_command(user, words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The command may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &*String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

fn cron_jobs_run_by_the_clock_and_by_hand(platform: &Platform) {
    let (app, user) = platform.new_app();
    let repository = Repository::new(platform, &user, &app);
    repository.write(
        "berth.yaml",
        "processes: {web: python3 -m http.server $PORT}\n\
         cron:\n\
        \x20 tick: {schedule: \"* * * * *\", command: 'echo ticked as $BERTH_PROCESS with $GREETING'}\n\
        \x20 yearly: {schedule: \"@yearly\", command: 'echo begun; echo oops >&2; exit 3', timeout: 30s}\n\
        \x20 long: {schedule: \"@yearly\", command: 'echo waiting; exec sleep 600'}\n",
    );
    repository.write("Procfile", "web: python3 -m http.server $PORT\n");
    repository.commit("First");
    repository.push().ok();
    let env = format!("{app}/dev");
    platform.ssh(&user, &["config", "set", &env, "GREETING=hello"]).ok();
    let listed = platform.ssh(&user, &["cron", "list", &env, "--json"]).ok().json();
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|job| job["job"].as_str().unwrap()).collect();
    assert_eq!(names, ["long", "tick", "yearly"]);

    let failed = platform.ssh(&user, &["cron", "run", &env, "yearly"]).refused(&["exited with status 3"]);
    assert!(failed.status == 1 && failed.all().contains("begun"), "{}", failed.all());
    let history = platform.ssh(&user, &["cron", "history", &env, "yearly", "--json"]).ok().json();
    assert_eq!((&history[0]["state"], &history[0]["exit"]), (&"failed".into(), &3.into()), "{history}");
    platform.ssh(&user, &["events"]).ok().says(&["cron.started", "cron.finished"]);

    platform.ssh(&user, &["cron", "run", &env, "long", "--detach"]).ok().says(&["began"]);
    let busy = platform.ssh(&user, &["cron", "run", &env, "long"]);
    assert_eq!(busy.status, 5, "{}", busy.all());

    eventually("a run by the clock", std::time::Duration::from_secs(180), || {
        let history = platform.ssh(&user, &["cron", "history", &env, "tick", "--json"]).ok().json();
        let ended = history.as_array().unwrap().iter().any(|run| run["state"] == "succeeded");
        ended.then_some(())
    });
    platform.ssh(&user, &["logs", &env, "--process", "cron.tick"]).ok().says(&["ticked as cron.tick with hello"]);
    // What still runs goes with its environment.
    platform.ssh(&user, &["envs", "destroy", &env, "--confirm", &env]).ok();
}

fn keys(platform: &Platform) {
    let operator = platform.operator();
    let (alice, bob) = (platform.unique("alice"), platform.unique("bob"));
    let new = platform.user_with_key(&alice);
    let public = std::fs::read(new.ssh_config.with_file_name("key.pub")).unwrap();
    let (status, text) = feed(platform, &operator, &["upload-key", &alice], &public);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("SHA256:"), "{text}");
    let (status, text) = feed(platform, &operator, &["upload-key", &alice], &public);
    assert!(status == 0 && text.contains("Already"), "{text}");
    let (status, text) = feed(platform, &operator, &["upload-key", &bob], &public);
    assert!(status == 5 && text.contains("belongs to another user"), "{status}: {text}");
    let (status, _) = feed(platform, &new, &["upload-key", &bob], &public);
    assert_eq!(status, 3, "a user who is no operator uploaded a key");
    let private = std::fs::read(new.ssh_config.with_file_name("key")).unwrap();
    let (status, text) = feed(platform, &operator, &["upload-key", &bob], &private);
    assert!(status == 2 && text.to_lowercase().contains("private key"), "{status}: {text}");
    let (status, _) = feed(platform, &operator, &["upload-key", &bob], b"junk\n");
    assert_eq!(status, 2);
    platform.ssh(&new, &["whoami"]).ok().says(&[&alice]);
    let listed = platform.ssh(&new, &["keys", "list", "--json"]).ok().json();
    let fingerprint = listed[0]["fingerprint"].as_str().unwrap().to_owned();
    platform.ssh(&new, &["keys", "remove", &fingerprint]).refused(&["only key"]);
    platform.ssh(&operator, &["keys", "remove", &fingerprint]).ok();
    assert_eq!(platform.ssh(&new, &["whoami"]).status, 255, "a removed key still gets in");
}

fn members_and_roles(platform: &Platform) {
    let (app, owner) = platform.new_app();
    let env = format!("{app}/dev");
    let tenant = app.split_once('/').unwrap().0;
    let viewer = platform.add_user(&platform.unique("viewer"));
    let stranger = platform.add_user(&platform.unique("stranger"));
    assert_eq!(platform.ssh(&viewer, &["ps", &env]).status, 4, "a stranger sees an environment");
    let invited = platform.ssh(&owner, &["tenants", "invite", tenant, "--role", "viewer", "--json"]).ok().json();
    let code = invited["code"].as_str().unwrap();
    platform.ssh(&viewer, &["tenants", "join", code]).ok();
    assert_eq!(platform.ssh(&stranger, &["tenants", "join", code]).status, 4, "an invitation was used twice");
    platform.ssh(&viewer, &["ps", &env]).ok();
    let refused = [
        vec!["config", "list", &env],
        vec!["config", "set", &env, "A=b"],
        vec!["scale", &env, "web=2"],
        vec!["restart", &env],
        vec!["rollback", &env],
        vec!["run", &env, "--", "true"],
        vec!["apps", "destroy", &app, "--confirm", &app],
        vec!["tenants", "invite", tenant],
        vec!["domains", "add", &env, "a.example.com"],
    ];
    for words in refused {
        assert_eq!(platform.ssh(&viewer, &words).status, 3, "a viewer may {words:?}");
        assert_eq!(platform.ssh(&stranger, &words).status, 4, "a stranger is told something by {words:?}");
    }
    let repository = Repository::new(platform, &viewer, &app);
    repository.write("index.html", "x");
    repository.commit("First");
    repository.push().refused(&["viewer"]);
    platform.ssh(&owner, &["tenants", "members", tenant, "--set", &format!("{}=developer", viewer.name)]).ok();
    repository.push().ok();
    platform.ssh(&owner, &["tenants", "members", tenant, "--remove", &owner.name]).refused(&["no owner"]);
}

fn config_changes_roll_out_without_a_build(platform: &Platform) {
    let (app, user, _repository) = deployed(platform);
    let env = format!("{app}/dev");
    let value = "two lines\nwith \"quotes\", $HOME, `x` and ümläuts";
    let (status, text) = feed(platform, &user, &["config", "set", &env, "GREETING=-"], value.as_bytes());
    assert_eq!(status, 0, "{text}");
    assert_eq!(platform.get(&dev_host(&app), "/config").1, value);
    assert_eq!(platform.get(&dev_host(&app), "/").1, "v2");
    platform.ssh(&user, &["config", "get", &env, "GREETING"]).ok().says(&[value]);
    let (status, text) = feed(platform, &user, &["config", "set", &env, "GREETING=-"], value.as_bytes());
    assert!(status == 0 && text.contains("Nothing changed"), "{text}");
    let builds = platform.ssh(&user, &["builds", "list", &env, "--json"]).ok().json();
    assert_eq!(builds.as_array().unwrap().len(), 1, "a config change was built");
    platform.ssh(&user, &["config", "unset", &env, "GREETING"]).ok();
    assert_eq!(platform.get(&dev_host(&app), "/config").1, "undefined");
    platform.ssh(&user, &["config", "set", &env, "PORT=1"]).refused(&["PORT"]);
    platform.ssh(&user, &["config", "get", &env, "GREETINGS"]).refused(&["not set"]);
}

fn run_gives_streams_and_exit_status(platform: &Platform) {
    let (app, user, _repository) = deployed(platform);
    let env = format!("{app}/dev");
    let ran = platform.ssh(&user, &["run", &env, "--", "'echo out; echo err >&2; exit 42'"]);
    assert_eq!((ran.status, ran.stdout.trim(), ran.stderr.trim()), (42, "out", "err"));
    let (status, text) = feed(platform, &user, &["run", &env, "--", "cat"], b"through and back");
    assert_eq!((status, text.as_str()), (0, "through and back"));
    // The release's own Node, as its processes have it.
    platform.ssh(&user, &["run", &env, "--", "node", "-p", "process.version"]).ok().says(&["v22."]);
    let mut command = platform.ssh_command(&user, &["run", &env, "--", "tty"]);
    command.arg("").stdin(Stdio::null());
    let mut with_pty = std::process::Command::new("ssh");
    with_pty.arg("-tt").args(command.get_args().filter(|argument| !argument.is_empty()));
    crate::platform::run(&mut with_pty).ok().says(&["/dev/pts/"]);
}

fn domains_route(platform: &Platform) {
    let (app, user, _repository) = deployed(platform);
    let env = format!("{app}/dev");
    let domain = format!("{}.example.com", platform.unique("shop"));
    assert_eq!(platform.get(&domain, "/").0, 404);
    platform.ssh(&user, &["domains", "add", &env, &domain]).ok();
    eventually("the domain answers", DEADLINE, || (platform.get(&domain, "/").0 == 200).then_some(()));
    let (other, thief) = platform.new_app();
    platform.ssh(&thief, &["domains", "add", &format!("{other}/dev"), &domain]).refused(&["another environment"]);
    platform.ssh(&user, &["domains", "remove", &env, &domain]).ok();
    eventually("the domain is gone", DEADLINE, || (platform.get(&domain, "/").0 == 404).then_some(()));
}

fn logs_are_kept_across_deploys(platform: &Platform) {
    let (app, user, _repository) = deployed(platform);
    let env = format!("{app}/dev");
    platform.get(&dev_host(&app), "/before");
    platform.ssh(&user, &["restart", &env]).ok();
    platform.get(&dev_host(&app), "/after");
    let logs = |words: &[&str]| platform.ssh(&user, &[&["logs", &env], words].concat()).ok().stdout;
    eventually("both lines", DEADLINE, || {
        let text = logs(&[]);
        (text.contains("asked for /before") && text.contains("asked for /after")).then_some(())
    });
    eventually("the router's lines", DEADLINE, || {
        logs(&["--process", "router"]).contains("path=\"/after\"").then_some(())
    });
    assert_eq!(logs(&["-n", "1"]).lines().count(), 1);
}

fn restart_drops_no_request(platform: &Platform) {
    let (app, user, _repository) = deployed(platform);
    let env = format!("{app}/dev");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut asked = 0;
            // Bounded, should the restart never end.
            while !stop.load(std::sync::atomic::Ordering::Relaxed) && asked < 20_000 {
                let (status, body) = platform.get(&dev_host(&app), "/");
                assert_eq!(status, 200, "request {asked}: {body}");
                asked += 1;
            }
            asked
        });
        let restarted = platform.ssh(&user, &["restart", &env]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(clients.join().unwrap() > 10);
        restarted.ok();
    });
}

fn destroying_leaves_nothing(platform: &Platform) {
    let (app, user, _repository) = deployed(platform);
    platform.ssh(&user, &["apps", "destroy", &app]).refused(&["--confirm"]);
    platform.ssh(&user, &["apps", "destroy", &app, "--confirm", &app]).ok();
    assert_eq!(platform.get(&dev_host(&app), "/").0, 404);
    let tenant = app.split_once('/').unwrap().0;
    let filter = format!("label=berth.tenant={tenant}");
    let left = crate::platform::run(std::process::Command::new("docker").args(["ps", "-aq", "--filter", &filter])).ok();
    assert_eq!(left.stdout, "");
    let repository = platform.data_dir().join("repositories").join(tenant).join("app/dev.git");
    assert!(!repository.exists());
    // The name is free again, and begins anew.
    platform.ssh(&user, &["apps", "create", &app]).ok();
    assert_eq!(
        platform.ssh(&user, &["builds", "list", &format!("{app}/dev"), "--json"]).ok().json(),
        serde_json::json!([])
    );
}

fn exit_statuses_and_help(platform: &Platform) {
    let (app, user) = platform.new_app();
    let status = |words: &[&str]| platform.ssh(&user, words).status;
    assert_eq!(status(&["help"]), 0);
    assert_eq!(status(&["aps", "list"]), 2);
    assert_eq!(status(&["restart", "nonsense"]), 2);
    assert_eq!(status(&["ps", "nobody/app/dev"]), 4);
    assert_eq!(status(&["apps", "create", &app]), 5);
    assert_eq!(status(&["tenants", "create", "mine"]), 3);
    let tenant = app.split_once('/').unwrap().0;
    platform.ssh(&user, &["ps", &format!("{tenant}/ap/dev")]).refused(&["did you mean", &format!("{app}/dev")]);
    platform.ssh(&user, &["apps:list"]).ok().says(&[&app]);
    // Without a command there is help instead of a shell.
    platform.ssh(&user, &[]).ok().says(&["Hello", "git push"]);
}

fn the_router_explains_itself(platform: &Platform) {
    let (app, _user) = platform.new_app();
    assert_eq!(platform.get("nobody.localhost", "/").0, 404);
    let page = eventually("the page of an environment without a release", DEADLINE, || {
        let (status, page) = platform.get(&dev_host(&app), "/");
        (status == 503).then_some(page)
    });
    assert!(page.contains("push"), "{page}");
}

fn doctor_finds_everything_in_place(platform: &Platform) {
    // A tenant's network brings the packet filter rules.
    platform.new_app();
    run(&mut platform.berth(&["doctor"])).ok().says(&["rules are in place", "Docker", "running"]);
}
