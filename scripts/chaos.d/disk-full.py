#!/usr/bin/env python3
# chaos: the disk of the store, of the repositories, of the engine is full in turn: apps go on, pushes are refused, and all recovers
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import time

from harness import Load, Platform, eventually, main, run, say, table

SMALL = 400 << 20
MIN_FREE = "64Mi"
MANIFEST = "processes: {web: {command: python3 server.py, replicas: 2}}\n"


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
        self.directory, self.process, self.outside = chaos.directory("engine"), None, None
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
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
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


def fsck(platform, app):
    repository = platform.data / "repositories" / (app.env + ".git")
    return run(["git", "-C", repository, "fsck", "--full"], env=platform.git_environment)


def full(chaos, platform, app, where, disk):
    """One round; its row of the table."""
    app.change()
    app.push().ok()
    before, builds = app.remote_commit(), len(platform.builds(app.env))
    load, row = Load(platform, [app.host], rate=20), [where]
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
    acknowledged = None
    for number in range(5):
        if platform.ssh("config", "set", app.env, f"FULL={number}", timeout=60).status == 0:
            acknowledged = str(number)
    if where != "engine":
        restart_one(chaos, platform, app, where)
    disk.release()
    began = time.monotonic()
    eventually(f"{where}: the server answers", lambda: back(platform), 60)
    pushed = eventually(f"{where}: a push goes through", lambda: (lambda done: done if done.status == 0 else None)(app.push()), 120, 1)
    row.append(f"{time.monotonic() - began:.1f}")
    chaos.check(pushed.status == 0, f"{where}: no push afterwards: {pushed.all()}")
    if acknowledged is not None:
        value = platform.ssh("config", "get", app.env, "FULL").out.strip()
        chaos.check(value == acknowledged, f"{where}: config {acknowledged!r} was acknowledged, and is {value!r}")
    eventually(f"{where}: settled", lambda: platform.settled(app.env))
    load.end()
    for failure in load.failures[:5]:
        chaos.fail(f"{where}: {failure}")
    checked = fsck(platform, app)
    chaos.check(checked.status == 0, f"{where}: git fsck: {checked.all()}")
    return [*row, load.asked(), len(load.failures)]


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


def back(platform):
    """A server that ended by itself is started again, as a service manager does."""
    if not platform.alive("serve"):
        platform.processes.pop("serve", None)
        platform.start("serve", wait=False)
        platform.restarts += 1
    return platform.host("status", timeout=20).status == 0


def on_this_engine(chaos, run_number):
    name = f"berth-{run_number}"
    data = chaos.directory(name) / "data"
    data.mkdir(exist_ok=True)
    disks = {part: SmallDisk(chaos, f"{part}-{run_number}", data / part) for part in ("store", "repositories")}
    platform = Platform(chaos, name, settings={"BERTH__DISK__MIN_FREE": MIN_FREE}, data=data)
    platform.docker, platform.restarts = ["docker"], 0
    platform.begin()
    app = platform.app("chaos/web", manifest=MANIFEST)
    app.push().ok()
    wanted = [part for part in disks if chaos.arguments.only in (None, part)]
    rows = [full(chaos, platform, app, part, disks[part]) for part in wanted]
    # What was acknowledged is there when the store is opened anew.
    platform.kill("serve", signal.SIGTERM)
    platform.start("serve")
    chaos.check(platform.ssh("apps", "info", app.name).status == 0, "the store does not open, or lacks the app")
    chaos.figures["restarts"] = chaos.figures.get("restarts", 0) + platform.restarts
    # Before its engine and disks are gone, and not again at the end.
    chaos.cleanups.remove(platform.stop)
    platform.stop()
    return rows


def on_its_own_engine(chaos, run_number):
    engine = Engine(chaos)
    settings = {"BERTH__DISK__MIN_FREE": MIN_FREE, "BERTH__RUNTIME__SOCKET": str(engine.socket)}
    platform = Platform(chaos, f"engine-{run_number}", settings=settings)
    platform.docker, platform.restarts = ["docker", "-H", f"unix://{engine.socket}"], 0
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
    table(["full", "refused after s", "push again after s", "requests", "failed"], rows)
    chaos.figures |= {"requests": sum(row[3] for row in rows), "failed": sum(row[4] for row in rows)}
    say("")


main(scenario, arguments=[("--only", {"choices": ["store", "repositories", "engine"], "help": "one disk alone"})])
