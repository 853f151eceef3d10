#!/usr/bin/env python3
# chaos: the wall clock jumps by a day and by ten years, forward and back, idle and in the middle of things: nothing else changes
"""Only Berth's two processes see the jumps (wallclock.c, loaded before their libraries): the machine's clock, the engine's, the apps' and the
monotonic clocks stay as they are. A failure: a request that fails, a replica that is replaced, a push, deployment or restart that takes
longer or ends otherwise, a command that fails, records or lines of the log that are lost or out of order; and of a cron job that is due each
minute, by the engine's own record of what it started: more runs than minutes and jumps, two at once, or none for CRON_WAIT after a jump."""

import mmap
import re
import struct
import subprocess
import threading
import time

from harness import MARK, ROOT, Platform, eventually, main, say, table
from outage import Engine, PushUnderWay, own_network, part
from steady_load import Load

DAY = 86_400
JUMPS = [DAY, 0, -DAY, 0, 3650 * DAY, 0, -3650 * DAY, 0, 3650 * DAY, -3650 * DAY, DAY, -DAY, 0]
SITUATIONS = ["idle", "push", "build", "scale", "deadline", "restart"]
# A jump by so much or more is one by years, wherever to.
YEARS = 3000 * DAY
# A job is due each minute, and a server looks at its clock once a minute at least; by then one has run, in seconds.
CRON_WAIT = 150
# After the first jump by each distance this is waited for.
CRON_WAITS = {0, 2, 4, 6}
# How long a deployment without progress may take, by the manifest, in seconds.
PROGRESS = 15

# Counts its seconds, so that lines that are lost or out of order can be told.
SERVER = """import http.server, os, threading, time
class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = ('VERSION' + MARK).encode()
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
""".replace("MARK", MARK)
WEB = "web: {command: python3 server.py, replicas: 2}"
# Long enough to be deployed, too short to count as healthy.
CRASHING = f"processes: {{{WEB}, worker: {{command: sleep 7}}}}\n"
CRON = f"processes: {{{WEB}}}\ncron: {{beat: {{schedule: '* * * * *', command: echo beat}}}}\n"
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


class Starts:
    """When the engine started a container of a job of an app, in seconds of the monotonic clock: it is told as it happens."""

    def __init__(self, chaos, engine, app):
        words = ["events", "--filter", "type=container", "--filter", "event=start", "--filter", f"label=berth.app={app}", "--filter", "label=berth.role=job"]
        self.process = subprocess.Popen(["docker", "--host", f"unix://{engine.socket}", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        chaos.finally_do(self.end)
        self.moments, self.began = [], time.monotonic()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for _ in self.process.stdout:
            self.moments.append(time.monotonic())

    def end(self):
        self.process.kill()
        self.process.wait()

    def since(self, moment):
        return [one for one in self.moments if one >= moment]


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
        self.cron = self.platform.app("chaos/cron", files=files, manifest=CRON)
        for app in (self.still, self.busy, self.crashing, self.cron):
            app.push().ok()
        # No build of it comes after this, so that all jobs of it are runs.
        self.starts, self.jumps = Starts(chaos, self.engine, "cron"), 0

    def replicas(self, app, process="web"):
        filters = {"app": app.name.split("/")[1], "process": process, "role": "replica"}
        words = [word for label, value in filters.items() for word in ("--filter", f"label=berth.{label}={value}")]
        return set(self.engine.docker("ps", "-q", "--no-trunc", *words).ok().out.split())

    def await_cron(self, name):
        """The job of each minute runs, whatever the clock says."""
        began = time.monotonic()
        try:
            eventually(f"{name}: a run of the cron job", lambda: self.starts.since(began), CRON_WAIT, 0.2)
        except AssertionError as error:
            history = self.platform.ssh("cron", "history", self.cron.env).all()
            self.chaos.fail(f"{error}: {self.platform.ssh('cron', 'list', self.cron.env).all()} {history[-500:]}")
        return time.monotonic() - began

    def check_cron(self):
        """As many runs as minutes went by and moments were jumped to, no two within a second; each is in the history once, and has ended well."""
        moments, minutes = list(self.starts.moments), (time.monotonic() - self.starts.began) / 60
        most = int(minutes) + 2 + self.jumps
        self.chaos.check(len(moments) <= most, f"{len(moments)} runs of a job of each minute in {minutes:.1f} minutes with {self.jumps} jumps")
        close = [f"{two - one:.2f} s" for one, two in zip(moments, moments[1:]) if two - one < 1]
        self.chaos.check(not close, f"runs of the cron job began {', '.join(close)} after another")
        history = self.platform.ssh("cron", "history", self.cron.env, "-n", "100", "--json").ok().json()
        numbers = [run["number"] for run in history]
        self.chaos.check(len(numbers) == len(set(numbers)), f"runs are in the history more than once: {sorted(numbers)}")
        # One may be under way, or may have begun before the engine was listened to.
        ran = [run for run in history if run["started_at"]]
        self.chaos.check(abs(len(ran) - len(moments)) <= 2, f"the history has {len(ran)} runs, the engine started {len(moments)}")
        bad = [run for run in history if run["state"] not in ("succeeded", "running", "skipped", "missed")]
        # A server that is killed takes a run with it that was under way.
        self.chaos.check(len(bad) <= 1, f"runs that failed: {bad}")
        self.chaos.figures |= {"cron_runs": len(moments), "cron_minutes": round(minutes, 1)}

    def jump(self, to, situation, cron=False):
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
        self.jumps += 1
        waited = f"{self.await_cron(name):.0f}" if cron else ""
        eventually(f"{name}: a crashing replica is started again", lambda: self.replicas(self.crashing, "worker") - workers, 40)
        chaos.check(self.replicas(self.still) == before, f"{name}: healthy replicas were replaced")
        for words in (("ps", self.still.env), ("logs", self.still.env, "-n", "5"), ("events", "-n", "5"), ("releases", "list", self.busy.env), ("builds", "list", self.busy.env)):
            asked = platform.ssh(*words, timeout=20)
            chaos.check(asked.status == 0, f"{name}: {' '.join(words)} ended with {asked.status}: {asked.all()[-300:]}")
        self.rows.append([f"{to / DAY:+g} days", situation, f"{time.monotonic() - began:.1f}", waited])

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


def turns_of(random, count):
    """[(where to, situation)]: each situation meets a jump by years and one by days, as long as all jumps are made; which, the seed says."""
    decks, turns, now = {True: [], False: []}, [], 0
    for turn in range(count):
        to = JUMPS[turn % len(JUMPS)]
        deck = decks[abs(to - now) >= YEARS]
        if not deck:
            deck += random.sample(SITUATIONS, len(SITUATIONS))
        turns.append((to, deck.pop()))
        now = to
    return turns


def scenario(chaos):
    world, failed = World(chaos), 0
    load = Load(world.platform, [world.still, world.busy, world.crashing], rate=20)
    for turn, (to, situation) in enumerate(turns_of(chaos.random, chaos.runs(len(JUMPS)))):
        world.jump(to, situation, cron=turn in CRON_WAITS)
    with part("rollback, and what was written"):
        chaos.check(world.platform.ssh("rollback", world.busy.env, timeout=60).status == 0, "rollback failed")
        world.check_order()
        world.await_cron("at the end")
        world.check_cron()
    load.end()
    failed = len(load.failures)
    for failure in load.failures[:5]:
        chaos.fail(failure)
    for name in ("serve", "router"):
        chaos.check("panicked" not in world.platform.log(name).read_text(), f"berth {name} panicked")
    table(["clock", "meanwhile", "s", "of them until a cron run"], world.rows)
    say(load.text())
    chaos.figures |= {"requests": load.asked(), "failed": failed}


main(scenario, default_runs=len(JUMPS))
