#!/usr/bin/env python3
# chaos: the wall clock jumps by a day and by ten years, forward and back, idle and in the middle of things: nothing else changes
import mmap
import re
import struct
import subprocess
import time

from harness import ROOT, Load, Platform, eventually, main, say, table
from outage import Engine, PushUnderWay, own_network, part

DAY = 86_400
JUMPS = [DAY, 0, -DAY, 0, 3650 * DAY, 0, -3650 * DAY, 0, 3650 * DAY, -3650 * DAY, DAY, -DAY, 0]
SITUATIONS = ["idle", "push", "build", "scale", "deadline", "restart"]
# How long a deployment without progress may take, by the manifest, in seconds.
PROGRESS = 15

# Counts its seconds, so that lines that are lost or out of order can be told.
SERVER = """import http.server, os, threading, time
class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = b'VERSION'
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
def tick():
    for turn in range(10**9):
        print('tick', os.getpid(), turn, flush=True)
        time.sleep(1)
threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(('', int(os.environ['PORT'])), Page).serve_forever()
"""
WEB = "web: {command: python3 server.py, replicas: 2}"
# Long enough to be deployed, too short to count as healthy.
CRASHING = f"processes: {{{WEB}, worker: {{command: sleep 7}}}}\n"
SILENT = f"processes: {{web: {{command: sleep 600, health: {{path: /, grace: 120s}}}}}}\nupgrade: {{progress_deadline: {PROGRESS}s}}\n"


class Clocked(Platform):
    """Its control plane and router see a wall clock that is `offset` seconds off; nothing else on the machine does."""

    def __init__(self, chaos, **options):
        super().__init__(chaos, **options)
        self.shim, path = self.directory / "wallclock.so", self.directory / "offset"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", self.shim, ROOT / "scripts/chaos.d/wallclock.c"], check=True)
        path.write_bytes(bytes(8))
        self.clock = {"LD_PRELOAD": str(self.shim), "BERTH_WALL_CLOCK": str(path)}
        with open(path, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), 8)

    def start(self, name, wait=True, extra=None):
        super().start(name, wait, (extra or {}) | self.clock)

    def jump(self, seconds):
        self.page[:8] = struct.pack("q", seconds)


class World:
    def __init__(self, chaos):
        own_network()
        self.chaos, self.rows = chaos, []
        self.engine = Engine(chaos, live_restore=True)
        self.platform = Clocked(chaos, settings={"BERTH__RUNTIME__SOCKET": str(self.engine.socket)}).begin()
        files = {"server.py": SERVER, "Procfile": "web: python3 server.py\n"}
        self.still = self.platform.app("chaos/still", files=files, manifest=f"processes: {{{WEB}}}\n")
        self.busy = self.platform.app("chaos/busy", files=files, manifest=f"processes: {{{WEB}}}\n")
        self.crashing = self.platform.app("chaos/crashing", files=files, manifest=CRASHING)
        self.silent = self.platform.app("chaos/silent", files=files, manifest=SILENT)
        for app in (self.still, self.busy, self.crashing):
            app.push().ok()

    def replicas(self, app, process="web"):
        filters = {"app": app.name.split("/")[1], "process": process, "role": "replica"}
        words = [word for label, value in filters.items() for word in ("--filter", f"label=berth.{label}={value}")]
        return set(self.engine.docker("ps", "-q", "--no-trunc", *words).ok().out.split())

    def jump(self, to, situation):
        """One jump of the clock in the middle of something; seconds that this took."""
        platform, chaos = self.platform, self.chaos
        before, workers, began = self.replicas(self.still), self.replicas(self.crashing, "worker"), time.monotonic()
        name = f"{situation}, to {to / DAY:+g} days"
        if situation in ("push", "build"):
            self.busy.change()
            push = PushUnderWay(self.busy, *(["no-cache"] if situation == "build" else []))
            time.sleep(chaos.random.uniform(0.1, 2))
            platform.jump(to)
            chaos.check(push.end(60) == 0, f"{name}: the push failed: {push.out[-1500:]}")
            told = re.search(r"(\S.*) from push to live", push.out)
            chaos.check(told and "h" not in told[1] and "day" not in told[1], f"{name}: it says {told and told[0]!r}")
        elif situation == "scale":
            platform.jump(to)
            for count in (3, 2):
                chaos.check(platform.ssh("scale", self.busy.env, f"web={count}", timeout=60).status == 0, f"{name}: scale failed")
        elif situation == "deadline":
            self.silent.change()
            push = PushUnderWay(self.silent)
            time.sleep(4)
            platform.jump(to)
            status = push.end(90)
            chaos.check(status not in (0, 124) and "no progress" in push.out, f"{name}: the push ended with {status}: {push.out[-1500:]}")
            chaos.check(PROGRESS <= push.seconds <= PROGRESS + 20, f"{name}: it failed after {push.seconds:.1f} s, {PROGRESS} s are allowed")
        elif situation == "restart":
            platform.kill("serve")
            platform.jump(to)
            platform.start("serve")
        else:
            platform.jump(to)
        eventually(f"{name}: a crashing replica is started again", lambda: self.replicas(self.crashing, "worker") - workers, 40)
        chaos.check(self.replicas(self.still) == before, f"{name}: healthy replicas were replaced")
        for words in (("ps", self.still.env), ("logs", self.still.env, "-n", "5"), ("events", "-n", "5"), ("releases", "list", self.busy.env), ("builds", "list", self.busy.env)):
            asked = platform.ssh(*words, timeout=20)
            chaos.check(asked.status == 0, f"{name}: {' '.join(words)} ended with {asked.status}: {asked.all()[-300:]}")
        self.rows.append([f"{to / DAY:+g} days", situation, f"{time.monotonic() - began:.1f}"])

    def check_order(self):
        """Builds, releases and lines of the log are in the order in which they came to be, and nothing is missing."""
        for what, key in (("builds", "number"), ("releases", "version")):
            found = [int(str(one[key]).lstrip("v")) for one in self.platform.ssh(what, "list", self.busy.env, "--json").ok().json()]
            self.chaos.check(found in (sorted(found), sorted(found, reverse=True)) and len(found) == len(set(found)), f"{what} are out of order: {found}")
        ticks = {}
        for line in self.platform.ssh("logs", self.still.env, "-n", "2000", "--process", "web").ok().out.splitlines():
            found = re.search(r"app\[(web\.\d+)\]: tick \d+ (\d+)$", line)
            if found:
                ticks.setdefault(found[1], []).append(int(found[2]))
        self.chaos.check(len(ticks) == 2, f"the log has lines of {sorted(ticks)}")
        for replica, turns in ticks.items():
            self.chaos.check(turns == list(range(turns[0], turns[0] + len(turns))), f"lines of {replica} are lost or out of order")
        self.chaos.figures["log_lines"] = sum(map(len, ticks.values()))


def scenario(chaos):
    world, failed = World(chaos), 0
    load = Load(world.platform, [world.still.host, world.busy.host, world.crashing.host], rate=20)
    turns = [(JUMPS[turn % len(JUMPS)], SITUATIONS[turn % len(SITUATIONS)]) for turn in range(chaos.runs(len(JUMPS)))]
    for to, situation in turns:
        world.jump(to, situation)
    with part("rollback, and what was written"):
        chaos.check(world.platform.ssh("rollback", world.busy.env, timeout=60).status == 0, "rollback failed")
        world.check_order()
    load.end()
    failed = len(load.failures)
    for failure in load.failures[:5]:
        chaos.fail(failure)
    for name in ("serve", "router"):
        chaos.check("panicked" not in world.platform.log(name).read_text(), f"berth {name} panicked")
    table(["clock", "meanwhile", "s"], world.rows)
    say(load.text())
    chaos.figures |= {"requests": load.asked(), "failed": failed}


main(scenario, default_runs=len(JUMPS))
