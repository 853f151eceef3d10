#!/usr/bin/env python3
# chaos: the registry is down, silent, slow, and cuts uploads off, during builds and deployments: apps go on, builds recover or say why not
import json
import os
import pathlib
import signal
import subprocess
import time

from harness import Platform, eventually, free_port, main, say, table
from outage import Engine, Proxy, PushUnderWay, Watch, own_network, part
from steady_load import Load

# The bars, in seconds: a command; a build that cannot succeed; one that can; the start of the control plane.
COMMAND, REFUSED, LIVE, READY = 2, 200, 300, 15
# What is pushed each time and cannot be compressed, bytes.
WEIGHT = 3 << 20


class Registry:
    """Debian's docker-registry, with nobody to look after it."""

    def __init__(self, chaos):
        directory, self.port = chaos.directory("registry"), free_port()
        config = {"version": 0.1, "log": {"level": "error"}, "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
                  "http": {"addr": f"127.0.0.1:{self.port}"}}
        (directory / "config.yml").write_text(json.dumps(config))
        self.words, self.process = ["docker-registry", "serve", directory / "config.yml"], None
        chaos.finally_do(lambda: self.process and self.process.kill())
        self.start()

    def start(self):
        self.process = subprocess.Popen(list(map(str, self.words)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self):
        self.process.kill()
        self.process.wait()


class World:
    def __init__(self, chaos):
        own_network()
        self.chaos, self.rows = chaos, []
        self.engine, self.registry = Engine(chaos, live_restore=True), Registry(chaos)
        port = free_port()
        self.proxy = Proxy(chaos, ("127.0.0.1", port), ("127.0.0.1", self.registry.port))
        self.address = f"127.0.0.1:{port}"
        settings = {"BERTH__RUNTIME__SOCKET": str(self.engine.socket), "BERTH__REGISTRY__MANAGED": "false", "BERTH__REGISTRY__ADDRESS": self.address}
        self.platform = Platform(chaos, settings=settings).begin()
        manifest = "processes: {web: {command: python3 server.py, replicas: 2}}\n"
        self.busy, self.still = self.platform.app("chaos/busy", manifest=manifest), self.platform.app("chaos/still", manifest=manifest)
        for app in (self.busy, self.still):
            app.push().ok()

    def watched(self, name, work, commands=True):
        """Runs `work` under requests and commands, and makes a row of what came of it. `commands`: none of them may fail."""
        load, watch = Load(self.platform, [self.busy, self.still], rate=20), Watch(self.platform, [self.busy.env])
        with part(name):
            try:
                told = work(name)
            finally:
                load.end()
                watch.end()
        for failure in [*load.failures[:5], *(watch.failures[:5] if commands else [])]:
            self.chaos.fail(f"{name}: {failure}")
        self.chaos.check(watch.p99() <= COMMAND, f"{name}: commands took up to {max(watch.times):.1f} s")
        self.rows.append([name, load.asked(), len(load.failures), f"{watch.p99():.2f}", told])
        self.chaos.figures["failed"] = self.chaos.figures.get("failed", 0) + len(load.failures)
        self.chaos.figures["command_p99_s"] = max(self.chaos.figures.get("command_p99_s", 0), round(watch.p99(), 2))

    def new_version(self):
        (self.busy.path / "weight").write_bytes(self.chaos.random.randbytes(WEIGHT))
        self.busy.change()

    def next_push(self, name):
        self.new_version()
        pushed = self.busy.push()
        self.chaos.check(pushed.status == 0, f"{name}: the next push failed: {pushed.all()[-1000:]}")

    def recovers(self, mode, seconds, **values):
        """The registry is not as it should be for so long (None: until the push has ended); the push succeeds all the same."""
        def work(name):
            self.new_version()
            self.proxy.set(mode, **values)
            try:
                push = PushUnderWay(self.busy, "no-cache")
                if seconds is not None:
                    time.sleep(seconds)
                    self.proxy.set("pass")
                status = push.end(LIVE)
            finally:
                self.proxy.set("pass")
            self.chaos.check(status == 0, f"{name}: the push ended with {status}: {push.out[-1500:]}")
            self.next_push(name)
            return f"live after {push.seconds:.1f} s"
        return work

    def refused(self, mode):
        """The registry does not come back: the build fails in time and says what does not answer."""
        def work(name):
            self.new_version()
            self.proxy.set(mode)
            try:
                push = PushUnderWay(self.busy, "no-cache")
                status = push.end(REFUSED)
            finally:
                self.proxy.set("pass")
            told = status not in (0, 124) and f"registry at {self.address}" in push.out and "Push again" in push.out
            self.chaos.check(told, f"{name}: the push ended with {status}: {push.out[-1500:]}")
            self.next_push(name)
            self.chaos.figures[f"{mode}_refused_s"] = round(push.seconds, 1)
            return f"refused after {push.seconds:.1f} s"
        return work

    def replicas_without(self, _name):
        """What is on the engine needs no registry: replicas are replaced, scaled, restarted, and rolled back."""
        self.proxy.set("refuse")
        try:
            began = time.monotonic()
            victim = self.engine.containers().pop()
            self.engine.docker("kill", victim).ok()
            eventually("the replica is replaced", lambda: victim not in self.engine.containers() and all(self.platform.settled(app.env) for app in (self.busy, self.still)), 60)
            for words in (("scale", self.still.env, "web=3"), ("restart", self.still.env), ("rollback", self.busy.env), ("scale", self.still.env, "web=2")):
                done = self.platform.ssh(*words, timeout=60)
                self.chaos.check(done.status == 0, f"{words[0]} without a registry: {done.all()[-500:]}")
            return f"kill, scale, restart, rollback, scale: {time.monotonic() - began:.1f} s"
        finally:
            self.proxy.set("pass")

    def control_plane_without(self, name):
        """The control plane starts although the registry is away, and looks after what runs."""
        self.platform.kill("serve")
        self.proxy.set("refuse")
        try:
            began = time.monotonic()
            self.platform.start("serve")
            took = time.monotonic() - began
            self.chaos.check(took <= READY, f"{name}: it took {took:.1f} s to start")
            victim = self.engine.containers().pop()
            self.engine.docker("kill", victim).ok()
            eventually("the replica is replaced", lambda: victim not in self.engine.containers() and self.platform.settled(self.still.env), 60)
        finally:
            self.proxy.set("pass")
        self.next_push(name)
        return f"ready after {took:.1f} s"


def managed(chaos, world):
    """The registry that Berth looks after is killed in the middle of builds."""
    platform = Platform(chaos, "managed", settings={"BERTH__RUNTIME__SOCKET": str(world.engine.socket)}).begin()
    app = platform.app("chaos/managed", manifest="processes: {web: {command: python3 server.py}}\n")
    app.push().ok()
    load, took = Load(platform, [app], rate=20), []
    for turn in range(3):
        (app.path / "weight").write_bytes(chaos.random.randbytes(WEIGHT))
        app.change()
        push = PushUnderWay(app, "no-cache")
        time.sleep(chaos.random.uniform(0.2, 2.5))
        for path in pathlib.Path("/proc").iterdir():
            words = (path / "cmdline").read_bytes() if path.name.isdigit() and (path / "cmdline").exists() else b""
            if words.startswith(b"docker-registry\0") and str(platform.data).encode() in words:
                os.kill(int(path.name), signal.SIGKILL)
        status = push.end(LIVE)
        chaos.check(status == 0, f"managed registry killed: the push ended with {status}: {push.out[-1500:]}")
        took.append(push.seconds)
    load.end()
    for failure in load.failures[:5]:
        chaos.fail(f"managed registry killed: {failure}")
    world.rows.append(["managed, killed during builds", load.asked(), len(load.failures), "", f"live after {', '.join(f'{one:.1f}' for one in took)} s"])
    platform.stop()


def scenario(chaos):
    world = World(chaos)
    for _ in range(chaos.runs(1)):
        world.watched("down for 20 s", world.recovers("refuse", 20))
        world.watched("down", world.refused("refuse"))
        world.watched("silent for 20 s", world.recovers("hang", 20))
        world.watched("silent", world.refused("hang"))
        world.watched("breaks connections for 15 s", world.recovers("drop", 15))
        world.watched("cuts uploads off for 15 s", world.recovers("cut", 15, after=1 << 20))
        world.watched("answers 5 s late", world.recovers("late", None, delay=5.0))
        world.watched("50 KB/s", world.recovers("slow", None, rate=50_000))
        world.watched("away while replicas change", world.replicas_without)
        world.watched("away while Berth starts", world.control_plane_without, commands=False)
        managed(chaos, world)
    chaos.check("panicked" not in world.platform.log("serve").read_text(), "berth serve panicked")
    table(["registry", "requests", "failed", "commands p99 s", "what came of it"], world.rows)
    say("")


main(scenario)
