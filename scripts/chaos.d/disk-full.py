#!/usr/bin/env python3
# chaos: the disk of the store, of the repositories, of the engine is full in turn: apps go on, pushes are refused, and all recovers
"""A small disk is filled while one build runs and others wait: first below the floor, at which Berth refuses by itself, then to the last block. A
failure: a push or `redeploy` that is not refused with the reason; a command that changes something and neither does it nor says within
COMMAND seconds why not; a replica that is not replaced; a request that fails; a server that ends by itself or does not start on a full store; after there is room again, a build
without an end or a reason, one that was refused or cancelled and is deployed all the same (also after a restart), lost config, a branch that was
moved, a repository that `git fsck` does not like."""

import ctypes
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

from harness import SERVER, Platform, eventually, main, run, say, table
from steady_load import Load

SMALL = 400 << 20
MIN_FREE = "64Mi"
MANIFEST = "processes: {web: {command: python3 server.py, replicas: 2}}\n"
# One build at a time, so that others wait.
SETTINGS = {"BERTH__DISK__MIN_FREE": MIN_FREE, "BERTH__BUILDS__CONCURRENCY": "1"}
# A command may take so long to say that the disk is full, in seconds, and it says one of these.
COMMAND = 10
FULL = ("too little room on disk", "could not read or write its records", "no space left on device")
# So long a build takes at least, in seconds, and so long it may take until the builds of before have ended once there is room.
BUILD, ENDED = 12, 90
# So long after a restart nothing may be deployed that had ended before, in seconds.
QUIET = 5
FINAL = ("succeeded", "failed", "cancelled")


class SmallDisk:
    """A file system of its own in a file."""

    def __init__(self, chaos, name, where, size=SMALL):
        self.image, self.where = chaos.directory("disks") / f"{name}.ext4", pathlib.Path(where)
        with open(self.image, "wb") as file:
            file.truncate(size)
        run(["mkfs.ext4", "-q", "-m", "0", "-F", self.image]).ok()
        self.where.mkdir(parents=True, exist_ok=True)
        run(["mount", "-o", "loop", self.image, self.where]).ok()
        shutil.rmtree(self.where / "lost+found", ignore_errors=True)
        chaos.finally_do(self.unmount)

    def unmount(self):
        run(["umount", self.where]).status == 0 or run(["umount", "-l", self.where])

    def free(self):
        space = os.statvfs(self.where)
        return space.f_bavail * space.f_frsize

    def fill(self, leave):
        """Leaves `leave` bytes; 0: writes until nothing more can be written."""
        with open(self.where / "ballast", "ab", buffering=0) as ballast:
            grow = self.free() - leave
            if grow > 0:
                try:
                    os.posix_fallocate(ballast.fileno(), ballast.tell(), grow)
                except OSError:
                    pass
            try:
                while leave == 0:
                    if ballast.write(b"x" * 4096) == 0:
                        break
            except OSError:
                pass

    def release(self):
        (self.where / "ballast").unlink(missing_ok=True)


class Engine:
    """A second dockerd whose data is on a small disk, in a network namespace of its own; Berth runs in there too."""

    def __init__(self, chaos):
        self.chaos, self.directory, self.process, self.outside = chaos, chaos.directory("engine"), None, None
        self.disk = SmallDisk(chaos, "engine", self.directory / "data", 4 << 30)
        self.holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "ip link set lo up; exec sleep infinity"])
        chaos.finally_do(self.stop)
        prefix = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]
        self.socket = self.directory / "docker.sock"
        eventually("a network namespace", lambda: "LOOPBACK,UP" in run([*prefix, "ip", "link"]).out)
        # From here on this thread, and all that it starts, is in there.
        self.outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        enter(f"/proc/{self.holder.pid}/ns/net")
        words = ["dockerd", "--data-root", self.directory / "data", "--exec-root", self.directory / "run",
                 "--pidfile", self.directory / "pid", "--host", f"unix://{self.socket}", "--bip", "10.211.0.1/24"]
        with open(self.directory / "dockerd.log", "wb") as log:
            self.process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log)
        eventually("the second engine", lambda: run(["docker", "-H", f"unix://{self.socket}", "version"]).status == 0)

    def stop(self):
        if self.outside is not None:
            change_network(self.outside)
            os.close(self.outside)
            self.outside = None
        if self.process is not None:
            self.chaos.end(self.process, "dockerd", within=60)
            self.process = None
        self.holder.kill()
        self.holder.wait()


def change_network(descriptor):
    """Puts this thread into another network namespace; threads and processes that it starts are born there."""
    clone_newnet = 0x40000000
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, clone_newnet) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def enter(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        change_network(descriptor)
    finally:
        os.close(descriptor)


class UnderWay:
    """One build that runs, one that waits, one that waits and is cancelled while the disk is full; of apps of their own."""

    def __init__(self, chaos, platform, where):
        self.chaos, self.platform, self.where, self.pushes = chaos, platform, where, []
        if not hasattr(platform, "slow"):
            platform.slow = [self.slow_app(name) for name in ("running", "waiting", "cancelled")]
        self.apps = platform.slow
        self.running, self.waiting, self.cancelled = self.apps
        for app in self.apps:
            app.change()
            pushed = app.push("detach", "no-cache")
            chaos.check(pushed.status == 0, f"{where}: a push with room was refused: {pushed.all()}")
            self.await_state(app, "building" if app is self.running else "queued")
        self.numbers = {app: newest(self.platform, app)["number"] for app in self.apps}
        self.was_cancelled = False

    def slow_app(self, name):
        """Its build takes a while, and it has been deployed once."""
        manifest = "processes: {web: {command: python3 server.py, replicas: 1}}\n"
        files = {"server.py": SERVER, "Procfile": "web: python3 server.py\n", "requirements.txt": "", "bin/post_compile": "#!/bin/sh\n"}
        app = self.platform.app(f"slow/{name}", files=files, manifest=manifest)
        (app.path / "bin/post_compile").chmod(0o755)
        app.change()
        app.push().ok()
        app.files = files | {"bin/post_compile": f"#!/bin/sh\nsleep {BUILD}\n"}
        return app

    def outlast(self):
        """Until the build that runs has come to an end for lack of room, or as if there were some; one whose end cannot be written stays."""
        end = time.monotonic() + 2 * BUILD
        while time.monotonic() < end and newest(self.platform, self.running)["state"] not in FINAL:
            time.sleep(0.2)

    def await_state(self, app, state):
        try:
            eventually(f"the build of {app.env} is {state}", lambda: newest(self.platform, app)["state"] == state, 60)
        except AssertionError as error:
            raise AssertionError(f"{error}: {newest(self.platform, app)}") from error

    def cancel(self):
        """While the disk is full: it is cancelled, or it is said why not."""
        done = self.platform.ssh("builds", "cancel", self.cancelled.env, str(self.numbers[self.cancelled]), timeout=60)
        self.was_cancelled = done.status == 0
        # It may have been refused before, since the disk is full: then there is nothing to cancel.
        ended = "ended" in done.all() or "already" in done.all() or "is over" in done.all()
        self.chaos.check(done.status == 0 or ended or told(done), f"{self.where}: builds cancel ended with {done.status} after {done.seconds:.1f} s: {done.all()}")

    def settle(self):
        """Every build comes to an end, with the reason; what is live is what the records say."""
        def ended():
            return all(build["state"] in FINAL for app in self.apps for build in self.platform.builds(app.env))
        try:
            eventually(f"{self.where}: all builds have ended", ended, ENDED)
        except AssertionError as error:
            self.chaos.fail(str(error))
        states = []
        for app in self.apps:
            build = next(build for build in self.platform.builds(app.env) if build["number"] == self.numbers[app])
            states.append(build["state"])
            self.chaos.check(build["state"] == "succeeded" or build.get("reason"), f"{self.where}: build {build['number']} of {app.env} is {build['state']} without a reason")
            if app is self.cancelled and self.was_cancelled:
                self.chaos.check(build["state"] == "cancelled", f"{self.where}: a cancelled build is {build['state']}")
        self.check_live()
        return states

    def check_live(self):
        """The newest build that succeeded is what answers."""
        for app in self.apps:
            good = max((build for build in self.platform.builds(app.env) if build["state"] == "succeeded"), key=lambda build: build["number"])
            wanted = f"release {good['release']} " if isinstance(good["release"], str) else f"release v{good['release']} "
            try:
                eventually(f"{self.where}: {app.env} answers with {wanted}", lambda: answer_of(app).startswith(wanted), 60)
            except AssertionError as error:
                self.chaos.fail(f"{error}, but {answer_of(app)!r}")

    def records(self):
        """Of each app: its builds, its releases, what answers."""
        found = {}
        for app in self.apps:
            releases = self.platform.ssh("releases", "list", app.env, "--json").ok().json()
            found[app.env] = ([(build["number"], build["state"]) for build in self.platform.builds(app.env)], [one["version"] for one in releases], answer_of(app))
        return found

    def check_restart(self):
        """A server that starts anew does not deploy what had failed or was cancelled."""
        before = self.records()
        self.platform.kill("serve", signal.SIGTERM)
        self.platform.start("serve")
        end = time.monotonic() + QUIET
        while time.monotonic() < end:
            after = self.records()
            if not self.chaos.check(after == before, f"{self.where}: after a restart there is something else: {before} {after}"):
                return
            time.sleep(0.5)


def answer_of(app):
    try:
        return app.get()[1]
    except OSError as error:
        return repr(error)


def told(finished):
    """Whether a command that was not done says soon, and in words that tell of it, that there is no room."""
    return finished.status in (1, 75) and finished.seconds <= COMMAND and any(text in finished.all() for text in FULL)


def fsck(platform, app):
    repository = platform.data / "repositories" / (app.env + ".git")
    return run(["git", "-C", repository, "fsck", "--full"], env=platform.git_environment)


def full(chaos, platform, app, where, disk):
    """One round; its row of the table."""
    app.change()
    app.push().ok()
    before, builds = app.remote_commit(), len(platform.builds(app.env))
    work = UnderWay(chaos, platform, where)
    load, row = Load(platform, [app], rate=20), [where]
    disk.fill(32 << 20)
    app.change()
    began = time.monotonic()
    refused = app.push(timeout=60)
    row.append(f"{time.monotonic() - began:.1f}")
    chaos.check(refused.status != 0 and "too little room on disk" in refused.all(), f"{where}: the push was not refused: {refused.all()}")
    chaos.check(app.remote_commit() == before, f"{where}: a refused push has moved the branch")
    chaos.check(len(platform.builds(app.env)) == builds, f"{where}: a refused push has made a build")
    later = platform.ssh("redeploy", app.env)
    chaos.check(later.status == 75, f"{where}: redeploy ended with {later.status}: {later.all()}")
    # The last block too: whoever writes is told that there is no space.
    disk.fill(0)
    work.cancel()
    acknowledged, under_way, slowest = set_config(chaos, platform, app, where, disk)
    row.append(f"{slowest:.1f}")
    if where == "store":
        exhaust(chaos, platform)
        begin_full(chaos, platform, disk)
    if where != "engine":
        restart_one(chaos, platform, app, where)
    work.outlast()
    disk.release()
    began = time.monotonic()
    eventually(f"{where}: the server answers", lambda: back(chaos, platform, where), 60)
    pushed = eventually(f"{where}: a push is accepted", lambda: (lambda done: done if done.status == 0 else None)(app.push("detach")), 60, 0.5)
    row.append(f"{time.monotonic() - began:.1f}")
    number = int(re.search(r"Queued as build (\d+)", pushed.all())[1])
    states = work.settle()
    eventually(f"{where}: the push afterwards is live", lambda: newest(platform, app)["number"] == number and newest(platform, app)["state"] == "succeeded", ENDED)
    if acknowledged is not None:
        value = platform.ssh("config", "get", app.env, "FULL").out.strip()
        chaos.check(value in (acknowledged, under_way), f"{where}: config {acknowledged!r} was acknowledged, and is {value!r}")
    eventually(f"{where}: settled", lambda: platform.settled(app.env))
    load.end()
    for failure in load.failures[:5]:
        chaos.fail(f"{where}: {failure}")
    checked = fsck(platform, app)
    chaos.check(checked.status == 0, f"{where}: git fsck: {checked.all()}")
    back(chaos, platform, where)
    work.check_restart()
    return [*row, ", ".join(states), load.asked(), len(load.failures)]


def newest(platform, app):
    return max(platform.builds(app.env), key=lambda build: build["number"])


def exhaust(chaos, platform):
    """Until the store has used the room that it holds already: then it refuses, and says so."""
    env = platform.filler.env
    for number in range(400):
        done = platform.ssh("config", "set", env, f"FILL={number}{'x' * 20000}", timeout=60)
        if done.status != 0:
            chaos.check(told(done), f"store: config set ended with {done.status} after {done.seconds:.1f} s: {done.all()[-500:]}")
            chaos.figures["store_refused_s"] = max(chaos.figures.get("store_refused_s", 0), round(done.seconds, 1))
            return
    chaos.fail("store: its disk is full, and nothing was refused")


def begin_full(chaos, platform, disk):
    """A server that is started while there is no room at all answers, and says what is the matter."""
    platform.kill("serve", signal.SIGKILL)
    disk.fill(0)
    platform.start("serve", wait=False)
    try:
        eventually("store: a server that starts with a full disk answers", lambda: platform.ssh("apps", "list", timeout=20).status == 0, 60)
    except AssertionError as error:
        chaos.fail(f"{error}:\n{platform.log('serve').read_text()[-2000:]}")
    # What the start gave up of its room.
    disk.fill(0)


def set_config(chaos, platform, app, where, disk):
    """The value that was acknowledged last, one that was under way still when it was given up, and the seconds of the slowest refusal."""
    acknowledged, under_way, slowest = None, None, 0.0
    for number in range(5):
        # What has ended meanwhile, a build for example, may have left room.
        disk.fill(0)
        done = platform.ssh("config", "set", app.env, f"FULL={number}", timeout=60)
        if done.status == 0:
            acknowledged = str(number)
            continue
        # It is acknowledged once it is deployed. An engine without room delays that until its deadline: it is to say so meanwhile.
        delayed = where == "engine" and done.status == 124
        under_way = str(number) if done.status == 124 else under_way
        if delayed and any(text in done.all() for text in FULL):
            return acknowledged, under_way, slowest
        slowest = max(slowest, done.seconds)
        chaos.check(told(done), f"{where}: config set ended with {done.status} after {done.seconds:.1f} s: {done.all()}")
    return acknowledged, under_way, slowest


def restart_one(chaos, platform, app, where):
    """A replica that dies while the disk is full is replaced."""
    label = f"label=berth.instance={platform.instance()}"
    # Those of the release before may be stopping still.
    eventually("two replicas", lambda: platform.settled(app.env), 60)
    found = run([*platform.docker, "ps", "-q", "--filter", label, "--filter", "label=berth.process=web"]).ok().out.split()
    run([*platform.docker, "kill", chaos.random.choice(found)]).ok()

    def replaced():
        now = run([*platform.docker, "ps", "-q", "--filter", label, "--filter", "label=berth.process=web"]).out.split()
        return len(now) >= 2
    try:
        eventually("a replacement", replaced, 60)
    except AssertionError as error:
        chaos.fail(f"{where}: {error}")


def back(chaos, platform, where):
    """Whether the server answers. It is to recover by itself: one that has ended is a failure, and is started again for the rest of the round."""
    if not platform.alive("serve"):
        ended = platform.processes.pop("serve", None)
        chaos.fail(f"{where}: berth serve ended by itself with {ended and ended.returncode}:\n{platform.log('serve').read_text()[-2000:]}")
        platform.start("serve", wait=False)
    return platform.host("status", timeout=20).status == 0


def on_this_engine(chaos, run_number):
    name = f"berth-{run_number}"
    data = chaos.directory(name) / "data"
    data.mkdir(exist_ok=True)
    disks = {part: SmallDisk(chaos, f"{part}-{run_number}", data / part) for part in ("store", "repositories")}
    platform = Platform(chaos, name, settings=SETTINGS, data=data)
    platform.docker = ["docker"]
    platform.begin()
    platform.filler = platform.app("chaos/filler")
    app = platform.app("chaos/web", manifest=MANIFEST)
    app.push().ok()
    wanted = [part for part in disks if chaos.arguments.only in (None, part)]
    rows = [full(chaos, platform, app, part, disks[part]) for part in wanted]
    # What was acknowledged is there when the store is opened anew.
    platform.kill("serve", signal.SIGTERM)
    platform.start("serve")
    chaos.check(platform.ssh("apps", "info", app.name).status == 0, "the store does not open, or lacks the app")
    # Before its engine and disks are gone, and not again at the end.
    chaos.cleanups.remove(platform.stop)
    platform.stop()
    return rows


def on_its_own_engine(chaos, run_number):
    engine = Engine(chaos)
    settings = SETTINGS | {"BERTH__RUNTIME__SOCKET": str(engine.socket)}
    platform = Platform(chaos, f"engine-{run_number}", settings=settings)
    platform.docker = ["docker", "-H", f"unix://{engine.socket}"]
    platform.begin()
    app = platform.app("chaos/web", manifest=MANIFEST)
    app.push().ok()
    row = full(chaos, platform, app, "engine", engine.disk)
    # Before its engine and disks are gone, and not again at the end.
    chaos.cleanups.remove(platform.stop)
    platform.stop()
    engine.stop()
    return [row]


def scenario(chaos):
    rows = []
    for number in range(chaos.runs(1)):
        if chaos.arguments.only != "engine":
            rows += on_this_engine(chaos, number)
        if chaos.arguments.only in (None, "engine"):
            rows += on_its_own_engine(chaos, number)
    table(["full", "refused after s", "config refused after s", "push accepted again after s", "builds that ran, waited, were cancelled", "requests", "failed"], rows)
    chaos.figures |= {"requests": sum(row[5] for row in rows), "failed": sum(row[6] for row in rows)}
    say("")


main(scenario, arguments=[("--only", {"choices": ["store", "repositories", "engine"], "help": "one disk alone"})])
