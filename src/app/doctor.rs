//! `berth doctor`: does this host have what Berth needs? Looks, changes nothing.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use bollard::Docker;

use super::{
    check::{MendState, Problem},
    cli::Place,
    config::Config,
    data_dir::DataDir,
};
use crate::{
    control::client,
    disk::{DiskFloor, human},
    runtime::docker::instance_tag,
    store::open_store,
};

/// The oldest git that knows every setting that Berth relies on (`safe.bareRepository`).
const OLDEST_GIT: (u32, u32) = (2, 38);

/// What a check found.
enum Finding {
    Good(String),
    /// It works, but; and what to do.
    Doubtful(String, String),
    /// It will not work; and what to do.
    Bad(String, String),
}
use Finding::{Bad, Doubtful, Good};

/// Looks at everything and says what it found; fails when something will not work.
pub(super) fn run(place: &Place, repair: bool) -> anyhow::Result<ExitCode> {
    let config = place.load()?;
    let findings = [
        ("engine", engine(&config)),
        ("git", git()),
        ("registry", registry(&config)),
        ("stacks", stacks(&config)),
        ("data directory", data_directory(&config)),
        ("disk", disk(&config)),
        ("packet filter", packet_filter(&config)),
        ("certificates", certificates(&config)),
        ("server", server(&config)),
    ];
    let mut bad = 0;
    for (name, finding) in findings {
        let (mark, text, advice) = match finding {
            Good(text) => ("ok  ", text, None),
            Doubtful(text, advice) => ("warn", text, Some(advice)),
            Bad(text, advice) => ("FAIL", text, Some(advice)),
        };
        bad += usize::from(mark == "FAIL");
        println!("{mark}  {name:<15} {text}");
        if let Some(advice) = advice {
            println!("      {:<15} → {advice}", "");
        }
    }
    bad += records(&config, repair);
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the records fit what is there, and what was mended; the number of things that are left.
fn records(config: &Config, repair: bool) -> usize {
    let name = "records";
    let answer = client::check(&config.control_socket(), repair);
    let problems: Vec<Problem> =
        match answer.and_then(|answer| Ok(answer.map(|json| serde_json::from_slice(&json)).transpose()?)) {
            Ok(Some(problems)) => problems,
            Ok(None) => return stopped_store(config, name),
            Err(error) => {
                println!("FAIL  {name:<15} {error:#}");
                return 1;
            }
        };
    if problems.is_empty() {
        println!("ok    {name:<15} they fit the repositories, the registry and the engine");
    }
    problems.iter().for_each(|problem| print!("{}", told(problem, repair, name)));
    let left = problems.iter().filter(|problem| !problem.is_mended()).count();
    if repair && !problems.is_empty() {
        let mark = if left == 0 { "ok  " } else { "FAIL" };
        println!("{mark}  {name:<15} {} repaired, {left} not repaired", problems.len() - left);
    }
    left
}

/// What is wrong, what a repair has done about it (or would do), and what is left to do.
fn told(problem: &Problem, repair: bool, name: &str) -> String {
    let mut steps = Vec::new();
    let how = problem.how.as_deref();
    match (&problem.state, how) {
        (MendState::Mended, Some(how)) => steps.push(format!("repaired: {how}")),
        (MendState::Failed(error), Some(how)) => steps.push(format!("not repaired: to {how} failed: {error}")),
        (MendState::Back, Some(how)) => {
            steps.push(format!("not repaired: {how} did not help, or it came back at once"))
        }
        (_, Some(how)) if repair => {
            steps.push(format!("not repaired: it came to light at the end; repair again ({how})"))
        }
        (_, Some(how)) => steps.push(format!("`berth doctor --repair` would {how}")),
        (_, None) if repair => steps.push("not repaired: berth cannot do this by itself".to_owned()),
        (_, None) => {}
    }
    steps.extend(problem.next.as_ref().map(|next| match how {
        Some(_) => format!("then: {next}"),
        None => format!("next: {next}"),
    }));
    // As wide as the marks of the other checks with the two spaces after them.
    let mark = if problem.is_mended() { "done  " } else { "FAIL  " };
    let mut text = format!("{mark}{name:<15} {}\n", problem.what);
    steps.iter().for_each(|step| text.push_str(&format!("      {:<15} → {step}\n", "")));
    text
}

/// Without a server: whether the store is whole.
fn stopped_store(config: &Config, name: &str) -> usize {
    if !config.data_dir.join("store").exists() {
        println!("ok    {name:<15} none yet");
        return 0;
    }
    let opened = DataDir::open(&config.data_dir).and_then(|data| open_store(&data.join("store")));
    match opened {
        Ok(_) => {
            println!("ok    {name:<15} whole; start berth serve to have them compared with what is there");
            0
        }
        Err(error) => {
            println!("FAIL  {name:<15} {error:#}");
            1
        }
    }
}

/// The first line that a program prints about its version.
fn version_of(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

fn engine(config: &Config) -> Finding {
    let socket = config.runtime.socket.display().to_string();
    let look = async {
        let docker = Docker::connect_with_unix(&socket, 10, bollard::API_DEFAULT_VERSION)?.negotiate_version().await?;
        docker.info().await
    };
    let info = tokio::runtime::Runtime::new().map_err(|error| error.to_string());
    match info.and_then(|runtime| runtime.block_on(look).map_err(|error| error.to_string())) {
        Err(error) => Bad(
            format!("no engine answers at {socket}: {error}"),
            "start it: scripts/setup, or systemctl start docker".into(),
        ),
        Ok(info) => {
            let version = info.server_version.unwrap_or_default();
            if info.memory_limit.unwrap_or(false) && info.cpu_cfs_quota.unwrap_or(false) {
                Good(format!("Docker {version}"))
            } else {
                Doubtful(
                    format!("Docker {version} cannot limit memory or CPU"),
                    "enable the cgroup controllers memory and cpu".into(),
                )
            }
        }
    }
}

fn git() -> Finding {
    let Some(version) = version_of("git", "--version") else {
        return Bad("not installed".into(), "apt-get install git".into());
    };
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= OLDEST_GIT {
        Good(version)
    } else {
        Bad(version, format!("git {}.{} or newer is needed", OLDEST_GIT.0, OLDEST_GIT.1))
    }
}

fn registry(config: &Config) -> Finding {
    let address = &config.registry.address;
    if !config.registry.managed {
        return Good(format!("{address}, not managed by Berth"));
    }
    match version_of("docker-registry", "--version") {
        Some(version) => Good(format!("{version}, managed, at {address}")),
        None => Bad(
            "docker-registry is not installed".into(),
            "apt-get install docker-registry, or name another registry with registry.managed: false".into(),
        ),
    }
}

fn stacks(config: &Config) -> Finding {
    let file = config.data_dir.join("stacks/current.json");
    if file.exists() {
        Good(format!("described in {}", file.display()))
    } else {
        Bad(
            "the stack images are not there".into(),
            format!("scripts/stacks {}", config.data_dir.join("stacks").display()),
        )
    }
}

fn data_directory(config: &Config) -> Finding {
    let directory = &config.data_dir;
    let writable = |path: &Path| nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok();
    let existing = directory.ancestors().find(|path| path.exists());
    match existing {
        Some(path) if writable(path) => Good(directory.display().to_string()),
        _ => Bad(
            format!("{} cannot be written to by this user", directory.display()),
            "run as root, or name another one with --data-dir".into(),
        ),
    }
}

/// The floor of free space, at the data directory, whatever is mounted in it, and the engine.
fn disk(config: &Config) -> Finding {
    let Some(data) = config.data_dir.ancestors().find(|path| path.exists()) else { return Good("unknown".into()) };
    let socket = config.runtime.socket.display().to_string();
    let root = async { Docker::connect_with_unix(&socket, 10, bollard::API_DEFAULT_VERSION)?.info().await };
    let root = tokio::runtime::Runtime::new().ok().and_then(|runtime| runtime.block_on(root).ok()?.docker_root_dir);
    let mut places = super::room::places(data);
    places.extend(root.map(PathBuf::from));
    let floor = DiskFloor::new(places, config.disk.min_free.0);
    let free = floor.look().into_iter().map(|place| format!("{} free at {}", human(place.free), place.path.display()));
    let text = free.collect::<Vec<_>>().join(", ");
    match floor.check() {
        Err(no_room) => Bad(
            text,
            format!("{} are needed or pushes are refused: run `berth gc`, or make room", human(no_room.needed)),
        ),
        Ok(()) if floor.is_low() => {
            Doubtful(text, "run `berth gc`, or make room: images and caches need several GiB".into())
        }
        Ok(()) => Good(text),
    }
}

/// What keeps containers from this host's own ports: the tool, the right to use it and, when a server runs here, its rules.
fn packet_filter(config: &Config) -> Finding {
    let consequence = "else containers can reach this host's own ports";
    let Some(version) = version_of("iptables", "--version") else {
        let advice = format!("apt-get install iptables, {consequence}");
        return Doubtful("iptables is not installed".into(), advice);
    };
    if !nix::unistd::geteuid().is_root() {
        return Doubtful(version, format!("run `berth serve` as root, {consequence}"));
    }
    if !is_running(config) {
        return Good(version);
    }
    let Ok(instance) = std::fs::read_to_string(config.data_dir.join("instance")) else { return Good(version) };
    let tag = instance_tag(instance.trim());
    let (bridges, chain) = (format!("bth-{tag}-+"), format!("BERTH-{}-IN", tag.to_ascii_uppercase()));
    let rule = ["-w", "10", "-C", "INPUT", "-i", &bridges, "-j", &chain];
    match Command::new("iptables").args(rule).output() {
        Ok(output) if output.status.success() => Good(format!("{version}; the server's rules are in place")),
        _ => Bad(
            format!("the rules of the running server are not in place (chain {chain})"),
            "its log says why; it tries again at the next deployment or restart, until then containers can reach this host's own ports"
                .into(),
        ),
    }
}

fn certificates(config: &Config) -> Finding {
    let bundle = &config.builds.ca_bundle;
    if bundle.as_os_str().is_empty() {
        return Good("builds trust the stack's own".into());
    }
    if bundle.is_file() {
        return Good(format!("builds trust {}", bundle.display()));
    }
    Doubtful(
        format!("{} does not exist", bundle.display()),
        "apt-get install ca-certificates, or set builds.ca_bundle".into(),
    )
}

fn is_running(config: &Config) -> bool {
    client::run(&config.control_socket(), vec!["whoami".into()], std::io::empty()).is_ok()
}

/// Runs already, or its ports are free.
fn server(config: &Config) -> Finding {
    if is_running(config) {
        return Good("running".into());
    }
    let taken = |address: &&SocketAddr| TcpListener::bind(address).is_err();
    let taken: Vec<String> = config.ssh.listen.iter().filter(taken).map(SocketAddr::to_string).collect();
    if taken.is_empty() {
        return Good("not running; its ports are free".into());
    }
    Bad(
        format!("not running, and {} cannot be listened on", taken.join(", ")),
        "end what listens there, or change ssh.listen".into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_clear_what_was_repaired_and_what_was_not() {
        let problem = |state, how: Option<&str>, next: Option<&str>| Problem {
            what: "a repository is missing".to_owned(),
            how: how.map(str::to_owned),
            state,
            next: next.map(str::to_owned),
        };
        let make = Some("make an empty one");
        for (problem, repair, want) in [
            (
                problem(MendState::Found, make, Some("push again")),
                false,
                "FAIL  records  W → `berth doctor --repair` would make an empty one → then: push again",
            ),
            (
                problem(MendState::Mended, make, Some("push again")),
                true,
                "done records W → repaired: make an empty one → then: push again",
            ),
            (problem(MendState::Mended, make, None), true, "done records W → repaired: make an empty one"),
            (
                problem(MendState::Failed("no room".into()), make, None),
                true,
                "FAIL  records  W → not repaired: to make an empty one failed: no room",
            ),
            (
                problem(MendState::Back, make, None),
                true,
                "FAIL  records  W → not repaired: make an empty one did not help, or it came back at once",
            ),
            (
                problem(MendState::Found, make, None),
                true,
                "FAIL  records  W → not repaired: it came to light at the end; repair again (make an empty one)",
            ),
            (
                problem(MendState::Found, None, Some("push it")),
                true,
                "FAIL  records  W → not repaired: berth cannot do this by itself → next: push it",
            ),
            (problem(MendState::Found, None, Some("push it")), false, "FAIL  records  W → next: push it"),
        ] {
            let text = told(&problem, repair, "records").replace("a repository is missing", "W");
            let words: Vec<&str> = text.split_whitespace().collect();
            assert_eq!(words.join(" "), want.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
}
