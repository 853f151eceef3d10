#!/usr/bin/env python3
# chaos: replicas that eat memory, fork, log, connect and answer without end, and a job that writes, beside a neighbour under steady load
"""Each in turn, watched for --seconds beside a neighbour, and the neighbour alone for as long before. A failure: a request of the neighbour that
fails, its p99 above SLOWER times what it was, a line of its log that is lost or out of order; a command that takes COMMAND_P99 or longer; a
control plane or router that grows by more than GROWTH; logs kept beyond their bounds, by Berth or by the engine; more processes than allowed; one
that is not as hostile as it is meant to be, or not held up then: its processes and what it writes are measured from outside.

`compute` is there to compare with, and not judged by SLOWER: a replica that takes the half core it has asked for and does nothing else. What the
neighbour notices of it is the kernel's share: whoever wakes while both cores are in use waits for up to a tick (4 ms at 250 Hz)."""

import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

from harness import SERVER, Platform, eventually, main, percentile, run, table
from steady_load import Load, go_first

MIB = 1 << 20
# What Berth promises: the neighbour's p99 at most so many times what it was, and this much more memory for itself.
SLOWER = 2.0
GROWTH = 64 * MIB
COMMAND_P99 = 1.0
# The engine keeps two files of 8 MiB of each replica, and may be in the middle of a third; Berth keeps 16 MiB of each environment.
ENGINE_LOG = 32 * MIB
BERTH_LOG = 24 * MIB
PIDS = 256
# What the one that logs writes at least until it is held up, bytes a second, and what it may take for it, cores.
WRITES = 80e6
LOGS_CPU = 2.0
# The job that writes without end, and how much longer than it is watched it may, in seconds.
JOB, LONGER = "cron", 10

# The neighbour: counts ten times a second, so that lines that are lost or out of order can be told.
# It sends what it has at once: with Nagle's algorithm one answer in a hundred or so waits 40 ms, whoever is beside it.
NEIGHBOUR = SERVER.replace("    def do_GET", "    disable_nagle_algorithm = True\n    def do_GET").replace("http.server.ThreadingHTTPServer(", """def tick():
    for turn in range(10**9):
        print('tick', turn, flush=True)
        time.sleep(0.1)
threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(""").replace("import http.server, os", "import http.server, os, threading, time")

HEAD = "import os, socket, sys, threading, time\n"
PROGRAMS = {
    "compute": "while True:\n    pass\n",
    "memory": "held = []\nwhile True:\n    held.append(b'x' * (4 << 20))\n",
    "fork": "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
    # 1000 lines of 1000 bytes, a hundred times a second.
    "logs": "block = (b'x' * 999 + b'\\n') * 1000\nbegin, turn = time.monotonic(), 0\nwhile True:\n    left = memoryview(block)\n"
            "    while left:\n        left = left[os.write(1, left):]\n    turn += 1\n    time.sleep(max(0, begin + turn / 100 - time.monotonic()))\n",
    # Through the router, which is all of the host that it can reach.
    "connect": "gateway = [line.split()[2] for line in open('/proc/net/route') if line.split()[1] == '00000000'][0]\n"
               "host = '.'.join(str(int(gateway[at:at + 2], 16)) for at in (6, 4, 2, 0))\nheld = []\nwhile True:\n    try:\n"
               "        held.append(socket.create_connection((host, int(os.environ['ROUTER_PORT'])), 1))\n        held[-1].send(b'GET / HT')\n"
               "    except OSError:\n        held = held[100:]\n        time.sleep(0.05)\n",
    "answer": "listener = socket.create_server(('', int(os.environ['PORT'])))\n"
              "def answer(client, turn):\n    try:\n        client.recv(65536)\n        client.sendall(b'HTTP/1.1 200 OK\\r\\n')\n"
              "        if turn % 2:\n            client.sendall(b'\\r\\n')\n        while True:\n"
              "            client.sendall((b'x' * 65536) if turn % 2 else b'X-Endless: ' + b'x' * 1000 + b'\\r\\n')\n    except OSError:\n        client.close()\n"
              "turn = 0\nwhile True:\n    client, _ = listener.accept()\n    turn += 1\n    threading.Thread(target=answer, args=(client, turn), daemon=True).start()\n",
}
NAMES = [*PROGRAMS, JOB]
REFERENCE = "compute"
WRITERS = ["logs", JOB]


def processor(pid):
    """Seconds of CPU that a process has used."""
    try:
        words = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def used_by(directory):
    total = 0
    for path in pathlib.Path(directory).rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except OSError:
            pass
    return total


def written_by(container):
    """{process: bytes that it has written} of those in a container (proc(5), `io`)."""
    found = {}
    try:
        for pid in pathlib.Path(f"/sys/fs/cgroup/pids/docker/{container}/cgroup.procs").read_text().split():
            for line in pathlib.Path(f"/proc/{pid}/io").read_text().splitlines():
                if line.startswith("wchar:"):
                    found[pid] = int(line.split()[1])
    except OSError:
        pass
    return found


class First:
    """The fastest that anything in containers writes within a tenth of a second, from before they are made on: Berth does not let it go on."""

    def __init__(self, containers):
        self.containers, self.fastest, self.stopping = containers, 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self):
        go_first()
        before, found = {}, []
        while not self.stopping.wait(0.1):
            found = found or self.containers()
            now = {pid: (time.monotonic(), wrote) for container in found for pid, wrote in written_by(container).items()}
            rates = [(wrote - before[pid][1]) / (at - before[pid][0]) for pid, (at, wrote) in now.items() if pid in before]
            self.fastest, before = max([self.fastest, *rates]), now

    def end(self):
        self.stopping.set()
        self.thread.join(60)
        return self.fastest


class Watch:
    """Until `end`: what the neighbour's users and somebody at the command line notice, and what the control plane takes."""

    def __init__(self, scene):
        self.scene, self.platform = scene, scene.platform
        self.pids = {"serve": self.platform.processes["serve"].pid, "router": self.platform.processes["router"].pid, "dockerd": scene.engine}
        self.before = {name: processor(pid) for name, pid in self.pids.items()}
        self.memory, self.router_memory, self.peak, self.router_peak = self.platform.memory(), self.platform.memory("router"), 0, 0
        self.commands, self.engine_log, self.most_pids, self.wrote_first, self.wrote_last = [], 0, 0, {}, {}
        self.began, self.stopping = time.monotonic(), threading.Event()
        self.load = Load(self.platform, [scene.neighbour], rate=100, first=True)
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._ask, self._look)]
        for thread in self.threads:
            thread.start()

    def _ask(self):
        go_first()
        turn = 0
        while not self.stopping.wait(0.7):
            asked = self.platform.ssh("whoami") if turn % 2 else self.platform.ssh("ps", self.scene.neighbour.env)
            self.commands.append(asked.seconds if asked.status == 0 else 999.0)
            turn += 1

    def _look(self):
        go_first()
        while not self.stopping.wait(0.2):
            # Everything is being taken down when it is gone.
            if not (self.platform.alive("serve") and self.platform.alive("router")):
                return
            self.peak = max(self.peak, self.platform.memory())
            self.router_peak = max(self.router_peak, self.platform.memory("router"))
            for container in self.scene.containers:
                # Not of the one that forks: to look at all of its processes takes long, and this goes before everything else.
                for pid, wrote in written_by(container).items() if self.scene.writes else ():
                    self.wrote_first.setdefault(pid, (time.monotonic(), wrote))
                    self.wrote_last[pid] = (time.monotonic(), wrote)
                self.engine_log = max(self.engine_log, used_by(f"/var/lib/docker/containers/{container}"))
                try:
                    held = pathlib.Path(f"/sys/fs/cgroup/pids/docker/{container}/pids.current").read_text()
                    self.most_pids = max(self.most_pids, int(held))
                except (OSError, ValueError):
                    pass

    def end(self):
        self.stopping.set()
        self.load.end()
        for thread in self.threads:
            thread.join(60)
        self.seconds = time.monotonic() - self.began
        self.cores = {name: (processor(pid) - self.before[name]) / self.seconds for name, pid in self.pids.items()}
        # Of each process while it was seen: one that has been replaced says nothing of the time after.
        spans = [(end - self.wrote_first[pid][0], wrote - self.wrote_first[pid][1]) for pid, (end, wrote) in self.wrote_last.items()]
        self.written = sum(wrote / span for span, wrote in spans if span > 1)
        self.growth = max(0, self.peak - self.memory)
        self.router_growth = max(0, self.router_peak - self.router_memory)
        return self

    def p99(self):
        return percentile(self.load.times, 99)


class Scene:
    def __init__(self, chaos, seconds):
        self.chaos, self.seconds, self.containers, self.writes = chaos, seconds, [], False
        self.engine = int(run(["pgrep", "-x", "-o", "dockerd"]).out or 0)
        self.platform = Platform(chaos, settings={"BERTH__RUNTIME__PIDS": str(PIDS)}).begin()
        self.neighbour = self.platform.app("neighbour/web", manifest="processes: {web: {command: python3 server.py, replicas: 2}}\n",
                                           files={"server.py": NEIGHBOUR, "Procfile": "web: python3 server.py\n"})
        self.neighbour.push().ok()
        self.hostile = {name: self.push(name) for name in PROGRAMS} | {JOB: self.push_job()}
        eventually("the neighbour answers", lambda: self.neighbour.get()[0] == 200)

    def push(self, name):
        """Everybody's apps are there before, without a replica."""
        process = "web" if name == "answer" else "worker"
        files = {"hostile.py": HEAD + PROGRAMS[name] + "# VERSION\n", "Procfile": "web: python3 hostile.py\n"}
        processes = {"web": {"command": "python3 hostile.py", "replicas": 0}} | {
            process: {"command": "python3 hostile.py", "replicas": 0, "cpu": LOGS_CPU if name == "logs" else 0.5, "memory": "512Mi" if name == "fork" else "64Mi"}}
        manifest = json.dumps({"processes": processes}) + "\n"
        app = self.platform.app(f"hostile/{name}", files=files, manifest=manifest)
        self.platform.ssh("config", "set", app.env, f"ROUTER_PORT={self.platform.http_port}").ok()
        app.push().ok()
        return app

    def push_job(self):
        """A job that nobody's clock starts."""
        job = {"schedule": "0 0 1 1 *", "command": "yes", "timeout": f"{self.seconds + LONGER}s", "cpu": 1}
        manifest = json.dumps({"processes": {"web": {"command": "sleep 1000", "replicas": 0}}, "cron": {"flood": job}}) + "\n"
        app = self.platform.app(f"hostile/{JOB}", files={"Procfile": "web: sleep 1000\n", "version": "VERSION"}, manifest=manifest)
        app.push().ok()
        return app

    def scale(self, name, count):
        """A job is begun, and ends by its time."""
        app = self.hostile[name]
        if name == JOB:
            begun = self.platform.ssh("cron", "run", app.env, "flood", "--detach", timeout=60) if count else None
            self.chaos.check(not begun or begun.status == 0, f"{name}: cron run ended with {begun and begun.all()}")
            return
        process = "web" if name == "answer" else "worker"
        scaled = self.platform.ssh("scale", app.env, f"{process}={count}", timeout=60)
        # One that dies at once does not come up, and that is said.
        told = name == "memory" and scaled.status == 1 and "crash-looping" in scaled.all()
        self.chaos.check(scaled.status == 0 or told, f"{name}: scaling to {count} ended with {scaled.status}: {scaled.all()}")

    def containers_of(self, name):
        filters = [word for label, value in {"tenant": "hostile", "app": name, "instance": self.platform.instance()}.items()
                   for word in ("--filter", f"label=berth.{label}={value}")]
        return run(["docker", "ps", "-aq", "--no-trunc", *filters]).ok().out.split()

    def round(self, name):
        """The neighbour alone, then beside the hostile replica."""
        before = Watch(self)
        time.sleep(self.seconds)
        before.end()
        app = self.hostile[name]
        self.writes = name in WRITERS
        first = First(lambda: self.containers_of(name) if self.writes else [])
        self.scale(name, 1)
        eventually(f"the replica of {name} is there", lambda: self.containers_of(name), 60)
        self.containers = self.containers_of(name)
        visitors = self.visit(app) if name == "answer" else None
        during = Watch(self)
        fastest = first.end()
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            self.containers = self.containers_of(name)
            time.sleep(1)
        told = self.platform.ssh("ps", app.env).all()
        during.end()
        if visitors:
            visitors.kill()
            visitors.wait()
        began = time.monotonic()
        self.scale(name, 0)
        eventually(f"the replicas of {name} are gone", lambda: not self.containers_of(name), 90)
        gone, self.containers = time.monotonic() - began, []
        self.judge(name, before, during, told, fastest)
        return self.row(name, before, during, gone)

    def visit(self, app):
        """A process that asks for what never ends, two times a second, each time for five seconds; to be killed."""
        program = ("import subprocess, sys, time\nwhile True:\n"
                   "    subprocess.Popen(['curl', '-s', '-m', '5', '--limit-rate', '1M', '-o', '/dev/null', '-H', 'Host: ' + sys.argv[1], sys.argv[2]])\n"
                   "    time.sleep(0.5)\n")
        visitors = subprocess.Popen([sys.executable, "-c", program, app.host, f"http://127.0.0.1:{self.platform.http_port}/"])
        self.chaos.finally_do(visitors.kill)
        return visitors

    def judge(self, name, before, during, told, fastest):
        check, app = self.chaos.check, self.hostile[name]
        for failure in during.load.failures[:3]:
            self.chaos.fail(f"{name}: the neighbour: {failure}")
        check(name == REFERENCE or during.p99() <= SLOWER * before.p99(), f"{name}: the neighbour's p99 went from {before.p99() * 1000:.1f} to {during.p99() * 1000:.1f} ms")
        self.check_ticks(name)
        check(during.growth <= GROWTH, f"{name}: berth serve grew by {during.growth / MIB:.1f} MiB")
        check(during.router_growth <= GROWTH, f"{name}: berth router grew by {during.router_growth / MIB:.1f} MiB")
        slowest = percentile(during.commands, 99)
        check(slowest < COMMAND_P99, f"{name}: commands took up to {slowest:.2f} s")
        check(during.engine_log <= ENGINE_LOG, f"{name}: the engine keeps {during.engine_log / MIB:.1f} MiB of its log")
        check(during.most_pids <= PIDS, f"{name}: {during.most_pids} processes")
        kept = used_by(self.platform.data / "logs" / "hostile" / name)
        check(kept <= BERTH_LOG, f"{name}: {kept / MIB:.1f} MiB of its log are kept")
        logs = self.platform.ssh("logs", app.env, "-n", "2000").all()
        if name == "memory":
            events = self.platform.ssh("events", "--tenant", "hostile", "-n", "500").all()
            check("ran out of memory" in events + told, f"memory: nobody says that memory ran out: {told} {events[-500:]}")
        if name == "fork":
            check(during.most_pids > PIDS // 2, f"fork: only {during.most_pids} processes: is it hostile at all?")
            check("asks for more without end" in logs, f"fork: its log does not say that it is held up: {logs[-500:]}")
        if name == JOB:
            runs = self.platform.ssh("cron", "history", app.env, "--json").ok().json()
            check(runs and runs[0]["state"] == "failed", f"{name}: a job that never ends is said to have ended as {runs[:1]}")
            check(during.written > 0, f"{name}: it has written nothing: is it hostile at all?")
        if name == "logs":
            check(fastest >= WRITES, f"logs: it wrote {fastest / 1e6:.1f} MB/s at most, {WRITES / 1e6:.0f} were wanted: is it hostile at all?")
            check(during.written < WRITES / 4, f"logs: it goes on to write {during.written / 1e6:.1f} MB/s")
            logs = self.platform.ssh("logs", app.env, "-n", "10000", timeout=60).all()
            check("slowed down until it stops that" in logs, "logs: nothing says that it is held up")
            check("left out" in logs or "dropped" in logs, "logs: nothing says that lines were left out")

    def check_ticks(self, name):
        """The neighbour's lines are all there, and in order."""
        ticks = {}
        for line in self.platform.ssh("logs", self.neighbour.env, "-n", "10000", "--process", "web", timeout=60).ok().out.splitlines():
            found = re.search(r"app\[(web\.\d+)\]: tick (\d+)$", line)
            if found:
                ticks.setdefault(found[1], []).append(int(found[2]))
        self.chaos.check(len(ticks) == 2, f"{name}: the neighbour's log has lines of {sorted(ticks)}")
        for replica, turns in ticks.items():
            lost = [turn for turn, after in zip(turns, turns[1:]) if after != turn + 1]
            self.chaos.check(not lost, f"{name}: the neighbour's {replica} lost lines, or they are out of order, after {lost[:5]}")
            # Ten a second, up to now: what is not there yet is late by so much.
            self.chaos.check(turns[-1] - turns[0] >= 5 * self.seconds, f"{name}: of the neighbour's {replica} there are {len(turns)} lines only")

    def row(self, name, before, during, gone):
        def milliseconds(seconds):
            return f"{seconds * 1000:.1f}"
        return [name, milliseconds(percentile(before.load.times, 50)), milliseconds(before.p99()), milliseconds(percentile(during.load.times, 50)),
                milliseconds(during.p99()), f"{during.p99() / before.p99():.2f}", len(during.load.failures),
                f"{percentile(during.commands, 99):.2f}", f"{during.growth / MIB:.1f}", f"{during.router_growth / MIB:.1f}",
                *(f"{during.cores[process]:.2f}" for process in ("serve", "router", "dockerd")), f"{during.engine_log / MIB:.1f}", during.most_pids, f"{during.written / 1e6:.1f}", f"{gone:.1f}"]


def scenario(chaos):
    go_first()
    scene = Scene(chaos, chaos.arguments.seconds)
    names = chaos.arguments.only or NAMES
    rows, worst = [], 0.0
    for turn in range(chaos.runs(1)):
        order = chaos.random.sample(names, len(names))
        for name in order:
            rows.append(scene.round(name))
            worst = max(worst, 0 if name == REFERENCE else float(rows[-1][5]))
            if name == "logs":
                chaos.figures["logs_written_mb_s_held"] = float(rows[-1][-2])
    table(["hostile", "p50 ms", "p99 ms", "beside it p50", "p99", "ratio", "failed", "commands p99 s", "serve +MiB", "router +MiB",
           "serve cores", "router cores", "dockerd cores", "engine log MiB", "pids", "wrote MB/s", "gone s"], rows)
    chaos.figures |= {"runs": len(rows), "worst_p99_ratio": worst}


main(scenario, arguments=[("--seconds", {"type": int, "default": 20, "help": "how long each is watched"}),
                          ("--only", {"nargs": "*", "choices": NAMES, "help": "only these"})])
