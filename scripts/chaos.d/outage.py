"""For scenarios in which what Berth depends on goes away: a network of their own, an engine of their own, and a proxy that misbehaves."""

import asyncio
import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import threading
import time

from harness import eventually, percentile, run, say

CLONE_NEWNET = 0x40000000
# Read at once from a connection, bytes.
CHUNK = 64 << 10


def own_network():
    """Moves this process and all that it starts into a new network namespace with nothing but loopback; it ends with the last of them.
    The machine's engine, its bridges and packet filter rules are out of reach from there. Before any thread is started."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace of its own (root is needed)")
    run(["ip", "link", "set", "lo", "up"]).ok()


class Engine:
    """A dockerd of its own, in this process's network namespace."""

    def __init__(self, chaos, live_restore):
        self.chaos, self.directory = chaos, chaos.directory("engine")
        self.socket = self.directory / "docker.sock"
        self.live_restore, self.process, self.containerd = live_restore, None, None
        chaos.finally_do(self.clean_up)
        self.start()

    def words(self):
        own = {"data-root": "data", "exec-root": "exec", "pidfile": "dockerd.pid", "config-file": "none.json"}
        (self.directory / "none.json").write_text("{}")
        words = ["dockerd", f"--host=unix://{self.socket}", *[f"--{name}={self.directory}/{path}" for name, path in own.items()]]
        words += [f"--containerd={self.directory}/containerd.sock", "--userland-proxy=false", "--storage-driver=overlay2"]
        return [*words, *(["--live-restore"] if self.live_restore else [])]

    def start_containerd(self):
        """A process of its own, as in Debian's packages: the containers' keeper outlives the engine."""
        words = ["containerd", "--address", f"{self.directory}/containerd.sock", "--root", f"{self.directory}/containerd", "--state", f"{self.directory}/state"]
        with open(self.directory / "containerd.log", "ab") as log:
            self.containerd = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        eventually("containerd listens", (self.directory / "containerd.sock").exists, 30)

    def start(self):
        """Starts it and waits until it answers."""
        if not self.containerd:
            self.start_containerd()
        with open(self.directory / "dockerd.log", "ab") as log:
            self.process = subprocess.Popen(self.words(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

        def answers():
            if self.process.poll() is not None:
                raise AssertionError("dockerd ended:\n" + (self.directory / "dockerd.log").read_text()[-2000:])
            return self.docker("version", timeout=20).status == 0
        eventually("the engine answers", answers, 120, 0.1)

    def docker(self, *words, **options):
        return run(["docker", "--host", f"unix://{self.socket}", *words], **options)

    def end(self, how=signal.SIGTERM):
        self.chaos.end(self.process, "dockerd", how)

    def restart(self, how=signal.SIGTERM):
        """Ends it, starts it anew; returns when it answers again."""
        self.end(how)
        self.start()

    def containers(self, role="replica"):
        """Full ids of what runs."""
        return set(self.docker("ps", "-q", "--no-trunc", "--filter", f"label=berth.role={role}").ok().out.split())

    def clean_up(self):
        if self.process and self.process.poll() is None:
            # With live-restore, containers outlive their engine.
            left = self.docker("ps", "-aq").out.split()
            if left:
                self.docker("rm", "-f", *left)
            self.end()
        if self.containerd:
            self.chaos.end(self.containerd, "containerd", within=30)
        self.end_shims()
        mounts = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(str(self.directory))]):
            run(["umount", "-l", mount])

    def end_shims(self):
        """Those of an engine that could not be ended in order; they are told by its directory."""
        for path in pathlib.Path("/proc").iterdir():
            try:
                words = (path / "cmdline").read_bytes() if path.name.isdigit() else b""
                if words.startswith(b"/usr/bin/containerd-shim") and str(self.directory).encode() in words:
                    os.kill(int(path.name), signal.SIGKILL)
            except OSError:
                pass


class Proxy:
    """Between Berth and what it depends on. `mode`: what it does with what comes.

    pass: nothing · late: answers come `delay` seconds late · hang: takes connections and moves nothing, until the mode changes ·
    drop: breaks every connection · refuse: takes none · slow: `rate` bytes a second in all · cut: breaks a connection after `after` bytes
    """

    def __init__(self, chaos, listen, target):
        self.listen, self.target, self.mode, self.delay, self.rate, self.after = listen, target, "pass", 30.0, 50_000, 1 << 20
        self.connections, self.budget_at, self.taken = set(), 0.0, 0
        self.loop = asyncio.new_event_loop()
        self.changed = None
        self.server = None
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.call(self._open())
        chaos.finally_do(lambda: self.set("refuse"))

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def set(self, mode, **values):
        self.call(self._set(mode, values))

    async def _set(self, mode, values):
        for name, value in values.items():
            setattr(self, name, value)
        self.mode = mode
        self.changed.set()
        self.changed = asyncio.Event()
        if mode in ("drop", "refuse"):
            for writer in list(self.connections):
                writer.transport.abort()
        if mode == "refuse" and self.server:
            self.server.close()
            self.server = None
        elif mode != "refuse" and not self.server:
            await self._open()

    async def _open(self):
        self.changed = self.changed or asyncio.Event()
        if isinstance(self.listen, tuple):
            self.server = await asyncio.start_server(self._serve, *self.listen)
        else:
            pathlib.Path(self.listen).unlink(missing_ok=True)
            self.server = await asyncio.start_unix_server(self._serve, self.listen)

    async def _gate(self):
        while self.mode == "hang":
            await self.changed.wait()

    async def _serve(self, reader, writer):
        self.taken += 1
        self.connections.add(writer)
        other = None
        try:
            await self._gate()
            if self.mode == "drop":
                return
            there = asyncio.open_connection(*self.target) if isinstance(self.target, tuple) else asyncio.open_unix_connection(self.target)
            from_there, other = await there
            self.connections.add(other)
            # Either direction may end first: an upgraded connection is closed by halves.
            await asyncio.gather(self._carry(reader, other, False), self._carry(from_there, writer, True))
        except OSError:
            pass
        finally:
            for one in (writer, other):
                if one:
                    self.connections.discard(one)
                    one.transport.abort()

    async def _carry(self, source, sink, answers):
        """Bytes in order; answers of a late proxy are held back without being slowed down."""
        line = asyncio.Queue(64)

        async def receive():
            data = b"-"
            while data:
                try:
                    data = await source.read(CHUNK)
                except OSError:
                    data = b""
                await line.put((time.monotonic(), data))
        receiving, moved = asyncio.create_task(receive()), 0
        try:
            while True:
                came, data = await line.get()
                while answers and self.mode == "late" and time.monotonic() < came + self.delay:
                    changed, pause = self.changed, came + self.delay - time.monotonic()
                    try:
                        await asyncio.wait_for(changed.wait(), pause)
                    except TimeoutError:
                        pass
                await self._gate()
                if self.mode == "slow":
                    self.budget_at = max(self.budget_at, time.monotonic()) + len(data) / self.rate
                    await asyncio.sleep(max(0, self.budget_at - time.monotonic()))
                moved += len(data)
                if self.mode == "cut" and moved > self.after:
                    raise OSError("cut")
                if not data:
                    sink.write_eof()
                    return
                sink.write(data)
                await sink.drain()
        finally:
            receiving.cancel()


class Watch:
    """Asks the control plane for its state again and again, and notes how long each answer takes."""

    def __init__(self, platform, envs, pause=0.3, questions=None):
        self.platform, self.pause, self.times, self.failures = platform, pause, [], []
        self.questions = questions or [("whoami",), *[question for env in envs for question in (("ps", env), ("builds", "list", env))], ("ps",)]
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self):
        while True:
            for words in self.questions:
                if self.stopping.wait(self.pause):
                    return
                found = self.platform.ssh(*words, timeout=60)
                self.times.append(found.seconds)
                if found.status != 0:
                    self.failures.append(f"{' '.join(words)}: {found.status} {found.all()[-300:]}")

    def end(self):
        self.stopping.set()
        self.thread.join(70)
        return self

    def p99(self):
        return percentile(self.times, 99)


class PushUnderWay:
    """A push that is looked at later: how it ended, what it said, and how long it took."""

    def __init__(self, app, *options):
        self.began, self.process = time.monotonic(), app.push_begin(*options)

    def end(self, within):
        """Its status, or 124 when it does not end in time."""
        try:
            self.out, _ = self.process.communicate(timeout=max(1, self.began + within - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.out, _ = self.process.communicate()
            self.out += f"\n(no end within {within} s)"
            self.seconds = time.monotonic() - self.began
            return 124
        self.seconds = time.monotonic() - self.began
        return self.process.returncode


def explained(push):
    """Whether a push that failed says that it was the platform, and what of it."""
    return "The platform failed" in push.out or "does not answer" in push.out or "was stopped or restarted" in push.out


@contextlib.contextmanager
def part(name):
    began = time.monotonic()
    say(f"{name} …")
    yield
    say(f"{name}: {time.monotonic() - began:.0f} s")
