"""What the scenarios share: a Berth of their own in a temporary directory, users, apps, pushes, and a table.

A scenario is a file NAME.py whose second line is `# chaos: what it does`; it calls `main(scenario)`, and `scenario(chaos)` gets a
`Chaos`: arguments, random numbers from the seed, and what is to be cleaned up. Everything that it makes is gone afterwards.
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEADLINE = 120

# How an app tells whose answer it is, in Python: `App.mark` is in every answer.
MARK = "' of {BERTH_TENANT}/{BERTH_APP}/{BERTH_ENV}'.format(**os.environ)"
# Answers with its release. No dependencies: a push takes about a second.
SERVER = """import http.server, os
class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = ('release ' + os.environ['BERTH_RELEASE'] + ' VERSION' + MARK).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(('', int(os.environ['PORT'])), Page).serve_forever()
""".replace("MARK", MARK)


def say(text):
    print(text, flush=True)


def eventually(what, condition, deadline=DEADLINE, pause=0.05):
    """Asks `condition` until it gives something that is true; seconds."""
    end = time.monotonic() + deadline
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline} s")
        time.sleep(pause)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def percentile(values, percent):
    values = sorted(values)
    return values[min(len(values) - 1, len(values) * percent // 100)] if values else float("nan")


def table(heads, rows):
    """Prints rows below heads, in columns."""
    cells = [[str(cell) for cell in row] for row in [heads, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


class Finished:
    """What a command printed, its exit status and how long it took."""

    def __init__(self, words, status, out, err, seconds):
        self.words, self.status, self.out, self.err, self.seconds = words, status, out, err, seconds

    def ok(self):
        if self.status != 0:
            raise AssertionError(f"{' '.join(map(str, self.words))} ended with {self.status}:\n{self.all()}")
        return self

    def all(self):
        return self.out + self.err

    def json(self):
        return json.loads(self.out)


# The commands that `run` waits for at the moment, in whatever thread.
RUNNING = set()


def kill_group(process):
    """Kills a process that leads a session of its own, with all that it has started there."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(words, timeout=DEADLINE, stdin=None, **options):
    """Runs a command to its end; one that takes too long is killed and counts as status 124, and none outlives an interruption."""
    began = time.monotonic()
    process = subprocess.Popen(
        list(map(str, words)), stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True, **options)
    RUNNING.add(process)
    try:
        out, err = process.communicate(stdin, timeout)
        status = process.returncode
    except subprocess.TimeoutExpired:
        kill_group(process)
        out, err = process.communicate()
        status, err = 124, err + f"\n(killed after {timeout} s)"
    except BaseException:
        kill_group(process)
        process.wait()
        raise
    finally:
        RUNNING.discard(process)
    return Finished(words, status, out, err, time.monotonic() - began)


class Platform:
    """Control plane, router and registry on free loopback ports. `prefix` is put before each process (a namespace to enter)."""

    def __init__(self, chaos, name="berth", settings=None, prefix=(), data=None):
        self.chaos, self.directory = chaos, chaos.directory(name)
        self.data = pathlib.Path(data) if data else self.directory / "data"
        self.data.mkdir(exist_ok=True)
        self.berth, self.prefix, self.processes = chaos.berth, list(prefix), {}
        self.ssh_port, self.http_port, self.registry_port, self.api_port = (free_port() for _ in range(4))
        self.environment = dict(os.environ) | {
            "BERTH__SSH__LISTEN": f"['127.0.0.1:{self.ssh_port}']", "BERTH__SSH__HOST": "127.0.0.1",
            "BERTH__API__LISTEN": f"['127.0.0.1:{self.api_port}']",
            "BERTH__ROUTER__LISTEN": f"['127.0.0.1:{self.http_port}']",
            "BERTH__REGISTRY__ADDRESS": f"127.0.0.1:{self.registry_port}",
            "BERTH__DEPLOY__STOP_GRACE": "2s", "BERTH__DEPLOY__DRAIN_TIMEOUT": "5s",
        } | (settings or {})
        stacks = pathlib.Path(os.environ.get("BERTH_STACKS_DIR", ROOT / "target/stacks"))
        (self.data / "stacks").mkdir(exist_ok=True)
        for made in stacks.iterdir():
            link = self.data / "stacks" / made.name
            if made.is_file() and not link.exists():
                link.symlink_to(made)
        self.git_environment = self.environment | {
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_SSH_COMMAND": f"ssh -F {self.directory}/ssh_config",
            "GIT_AUTHOR_NAME": "chaos", "GIT_AUTHOR_EMAIL": "c@localhost", "GIT_COMMITTER_NAME": "chaos", "GIT_COMMITTER_EMAIL": "c@localhost"}
        chaos.finally_do(self.stop)

    # -- processes

    def words(self, *arguments):
        return [*self.prefix, self.berth, *arguments, "--data-dir", self.data, "--config", ROOT / "config/berth.yaml"]

    def host(self, *arguments, **options):
        """A `berth` command on the host."""
        return run(self.words(*arguments), env=self.environment, **options)

    def start(self, name, wait=True, extra=None):
        """Starts `serve` or `router`; `extra` variables for this process alone."""
        with open(self.log(name), "ab") as log:
            self.processes[name] = subprocess.Popen(
                list(map(str, self.words(name))), env=self.environment | (extra or {}), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if name == "serve" and wait:
            self.await_ready()

    def await_ready(self, deadline=DEADLINE):
        def ready():
            if not self.alive("serve"):
                raise AssertionError("berth serve ended:\n" + self.log("serve").read_text()[-3000:])
            return self.host("status", timeout=20).status == 0
        eventually("berth serve is ready", ready, deadline)

    def alive(self, name):
        process = self.processes.get(name)
        return process is not None and process.poll() is None

    def kill(self, name, how=signal.SIGKILL):
        """Ends a process and waits until it is gone; one that does not end in time is a failure."""
        status = self.chaos.end(self.processes[name], f"berth {name}", how)
        del self.processes[name]
        return status

    def log(self, name):
        return self.directory / f"{name}.log"

    def memory(self, name="serve", what="VmRSS"):
        """Bytes; `VmHWM` is the most there ever was."""
        for line in pathlib.Path(f"/proc/{self.processes[name].pid}/status").read_text().splitlines():
            if line.startswith(what + ":"):
                return int(line.split()[1]) * 1024
        return 0

    def begin(self, user="chaos"):
        """Starts everything, with a first user, who is an operator."""
        self.start("router")
        self.start("serve")
        key = self.directory / "key"
        if not key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key]).ok()
        self.write_ssh_config()
        self.host("upload-key", user, stdin=(self.directory / "key.pub").read_text()).ok()
        return self

    def write_ssh_config(self):
        proxy = f"  ProxyCommand {' '.join(map(str, self.prefix))} nc %h %p\n" if self.prefix else ""
        (self.directory / "ssh_config").write_text(
            f"Host berth\n  HostName 127.0.0.1\n  Port {self.ssh_port}\n  User berth\n  IdentityFile {self.directory}/key\n"
            "  IdentitiesOnly yes\n  IdentityAgent none\n  StrictHostKeyChecking accept-new\n  BatchMode yes\n  LogLevel ERROR\n"
            f"  ConnectTimeout 10\n  ServerAliveInterval 10\n  UserKnownHostsFile {self.directory}/known_hosts\n{proxy}")

    def instance(self):
        path = self.data / "instance"
        return path.read_text().strip() if path.exists() else None

    def stop(self):
        for name in list(self.processes):
            if self.alive(name):
                self.kill(name, signal.SIGTERM)
        if self.instance():
            torn = self.host("teardown", "--yes", timeout=300)
            self.chaos.check(torn.status == 0, f"teardown failed: {torn.all()}")

    # -- users

    def ssh(self, *words, timeout=DEADLINE, stdin=None):
        """A command over ssh."""
        return run(["ssh", "-F", self.directory / "ssh_config", "berth", *words], timeout=timeout, stdin=stdin)

    def app(self, name, **options):
        """A new app `TENANT/APP` (the tenant too, when it is new)."""
        tenant = name.split("/")[0]
        if self.ssh("tenants", "create", tenant).status not in (0, 5):
            raise AssertionError(f"no tenant {tenant}")
        self.ssh("apps", "create", name).ok()
        return App(self, name, **options)

    def get(self, host, path="/", timeout=10):
        """Status and body by the router, or an OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout)
        try:
            connection.request("GET", path, headers={"Host": host, "Accept": "text/plain"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def builds(self, env):
        return self.ssh("builds", "list", env, "--json").ok().json()

    def ps(self, env):
        return self.ssh("ps", env, "--json").ok().json()

    def settled(self, env):
        """What `ps` says of the environment once everything wanted is ready, else nothing."""
        found = self.ssh("ps", env, "--json")
        if found.status != 0:
            return None
        status = found.json()
        return status if status["settled"] else None

    # -- the engine

    def engine_objects(self, docker=("docker",)):
        """What of this instance is on the engine: {kind: [id]}."""
        label = f"label=berth.instance={self.instance()}"
        kinds = {"containers": ["ps", "-aq", "--no-trunc"], "networks": ["network", "ls", "-q"], "volumes": ["volume", "ls", "-q"]}
        return {kind: run([*docker, *words, "--filter", label]).ok().out.split() for kind, words in kinds.items()}


class App:
    """A repository with a tiny app, and where it is pushed to."""

    def __init__(self, platform, name, env="dev", files=None, manifest=None):
        self.platform, self.name, self.environment = platform, name, env
        self.env = f"{name}/{env}"
        # What every answer of it contains.
        self.mark = f" of {self.env}"
        tenant, app = name.split("/")
        self.host = f"{app}.{tenant}.localhost" if env == "prod" else f"{env}.{app}.{tenant}.localhost"
        self.path = platform.directory / "repositories" / name.replace("/", "-")
        self.path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.git("remote", "add", "paas", f"ssh://berth/{self.env}")
        self.version = 0
        files = files or {"server.py": SERVER, "Procfile": "web: python3 server.py\n"}
        self.files = files
        if manifest:
            self.write("berth.yaml", manifest)
        self.change()

    def git(self, *words, timeout=DEADLINE):
        return run(["git", "-C", self.path, *words], env=self.platform.git_environment, timeout=timeout).ok()

    def write(self, name, text):
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    def change(self):
        """A new commit with a new version; its id."""
        self.version += 1
        for name, text in self.files.items():
            self.write(name, text.replace("VERSION", f"version {self.version}"))
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", f"Version {self.version}")
        return self.git("rev-parse", "HEAD").out.strip()

    def push_words(self, *options):
        return ["git", "-C", str(self.path), "push", *[word for option in options for word in ("-o", option)], "paas", "main"]

    def push(self, *options, timeout=300):
        """A push that is waited for; the caller looks at its status."""
        return run(self.push_words(*options), env=self.platform.git_environment, timeout=timeout)

    def push_begin(self, *options):
        """A push that goes on by itself."""
        return subprocess.Popen(self.push_words(*options), env=self.platform.git_environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")

    def remote_commit(self):
        found = run(["git", "-C", self.path, "ls-remote", "paas", "refs/heads/main"], env=self.platform.git_environment)
        return found.out.split()[0] if found.status == 0 and found.out.strip() else None

    def get(self, path="/"):
        return self.platform.get(self.host, path)


class Chaos:
    """One run of a scenario: its arguments, its random numbers, what to clean up, what went wrong."""

    def __init__(self, name, arguments):
        self.name, self.arguments, self.seed = name, arguments, arguments.seed
        self.random = random.Random(arguments.seed)
        self.berth = pathlib.Path(arguments.berth).resolve()
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="berth-chaos."))
        self.cleanups, self.failures, self.figures = [], [], {}

    def runs(self, default):
        return self.arguments.runs or default

    def directory(self, name):
        path = self.work / name
        path.mkdir(exist_ok=True)
        return path

    def finally_do(self, action):
        """At the end, last first, whatever happens."""
        self.cleanups.append(action)

    def fail(self, text):
        """Something that Berth had promised did not hold."""
        self.failures.append(text)
        say(f" !  {text}")

    def check(self, holds, text):
        if not holds:
            self.fail(text)
        return holds

    def end(self, process, what, how=signal.SIGTERM, within=DEADLINE):
        """Signals a process and waits until it is gone; its status. One that is still there `within` seconds later is a failure, and is killed."""
        process.send_signal(how)
        try:
            return process.wait(within)
        except subprocess.TimeoutExpired:
            self.fail(f"{what} was still there {within} s after {signal.Signals(how).name}")
            process.kill()
            return process.wait(within)

    def clean_up(self):
        for action in reversed(self.cleanups):
            try:
                action()
            except BaseException as error:  # The rest is to be cleaned up all the same.
                self.fail(f"cleaning up: {error!r}")
        # What other threads are waiting for still.
        for process in list(RUNNING):
            kill_group(process)
        if self.arguments.keep and self.failures:
            say(f"kept: {self.work}")
        else:
            shutil.rmtree(self.work, ignore_errors=True)


def main(scenario, default_runs=1, arguments=None):
    """Runs `scenario(chaos)`, cleans up, prints the line of JSON, and ends the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--berth", default=str(ROOT / "target/release/berth"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=default_runs)
    parser.add_argument("--keep", action="store_true", help="keep the directory of a run with failures")
    for extra in arguments or []:
        parser.add_argument(*extra[:-1], **extra[-1])
    name = pathlib.Path(sys.argv[0]).stem
    chaos = Chaos(name, parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say(f"seed {chaos.seed}")
    try:
        scenario(chaos)
    except (KeyboardInterrupt, SystemExit):
        chaos.fail("interrupted")
    except Exception as error:
        if not isinstance(error, (AssertionError, OSError, subprocess.SubprocessError, ValueError, KeyError)):
            traceback.print_exc()
        chaos.fail(f"{type(error).__name__}: {error}")
    finally:
        # A handler that does nothing, not SIG_IGN: that would be inherited by what clean-up starts.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        chaos.clean_up()
    figures = {"name": name, "runs": chaos.figures.pop("runs", chaos.arguments.runs), "failures": len(chaos.failures), "seed": chaos.seed}
    say(json.dumps(figures | chaos.figures))
    sys.exit(1 if chaos.failures else 0)
