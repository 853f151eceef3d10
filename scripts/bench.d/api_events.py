"""The followers of events of `scripts/bench api`: many who read, and some who do not."""

import concurrent.futures
import json
import pathlib
import time

from harness import eventually, percentile, say, table
from streams import Crowd, Stream, fields

MIB = 1 << 20
# By so much `berth serve` may grow with all followers there.
EVENTS_GROWTH = 128 * MIB
PATH = "/v1/events?type=config.changed"
# Between two changes, in seconds: what is measured is how long an event takes, not how many there may be.
PACE = 0.1
# Events that a follower may be behind (`MAX_LAG`), and as many as the buffers of both kernels take, and some.
FLOOD = 1000 + 1500
LAZY = 20
# What was sent and is not taken for so long ends the connection; and how long that is waited for.
STANDS_STILL = 60
GONE = STANDS_STILL + 30


def process_memory(platform):
    """Resident bytes of `berth serve` that are its own (not files), and the most that was resident since `reset_peak`."""
    return platform.memory(what="RssAnon"), platform.memory(what="VmHWM")


def reset_peak(platform):
    # proc(5): sets the peak back to what is resident now.
    pathlib.Path(f"/proc/{platform.processes['serve'].pid}/clear_refs").write_text("5")


class Follower:
    """One that reads: the numbers of the events that it got and when, and what it was told beside them."""

    def __init__(self, bench, path=PATH, lazy=False):
        self.ids, self.moments, self.told = [], [], []
        self.stream = Stream(bench.platform.api_port, path, bench.api.bearer, self.take, lazy)

    def take(self, block, moment):
        found = fields(block)
        if "event" in found:
            self.told.append((found["event"].decode(), json.loads(found["data"])))
        elif "id" in found:
            self.ids.append(int(found["id"]))
            self.moments.append(moment)

    def silently_missing(self, wanted):
        """Of the events `wanted`, how many it neither got nor was told of; `None`: one came twice, out of order, or is none of them."""
        if self.ids != sorted(set(self.ids)) or not set(self.ids) <= set(wanted):
            return None
        covered = [(data["from"], data["to"]) for kind, data in self.told if kind == "missed"]
        # Whoever is told where it stopped can go on from there.
        covered += [((data["last_id"] or 0) + 1, float("inf")) for kind, data in self.told if kind == "end"]
        got = set(self.ids)
        return sum(number not in got and not any(low <= number <= high for low, high in covered) for number in wanted)


def follow(bench, count, lazy=False):
    """So many followers, from now on."""
    followers = [Follower(bench, lazy=lazy) for _ in range(count)]
    for follower in followers:
        if follower.stream.read_head() != 200:
            raise AssertionError(f"a follower was refused: {follower.stream.head!r}")
    return followers


def last_event(bench):
    """The number of the newest event."""
    return bench.api.json("/v1/events?limit=1")["next"] or 0


def events_after(bench, number):
    """The numbers of the changes after event `number`."""
    found = []
    while True:
        page = bench.api.json(f"{PATH}&after={number}&limit=1000")
        if not page["items"]:
            return found
        found += [int(event["id"]) for event in page["items"]]
        number = page["next"]


class Part:
    def __init__(self, bench, names):
        self.bench, self.chaos, self.platform, self.names = bench, bench.chaos, bench.platform, names

    def change(self, number):
        """One event."""
        name = self.names[number % len(self.names)]
        self.bench.api.ok("PATCH", f"/v1/envs/{name}/config", {"BENCH": f"value {number}"})

    def check(self, who, follower, wanted):
        silent = follower.silently_missing(wanted)
        self.chaos.check(silent is not None, f"{who} got events twice, out of order or of another kind: {follower.ids[:5]}…, {follower.told}")
        self.chaos.check(not silent, f"{who} lacks {silent} events of {len(wanted)} and was told {follower.told}")


class Following(Part):
    """Many followers, and changes at an even pace."""

    def measure(self):
        arguments, platform = self.bench.arguments, self.platform
        start = last_event(self.bench)
        reset_peak(platform)
        before = process_memory(platform)
        began = time.monotonic()
        followers = follow(self.bench, arguments.followers)
        opened = time.monotonic() - began
        there = process_memory(platform)
        crowd = Crowd([follower.stream for follower in followers])
        try:
            asked = self.change_evenly(arguments.events)
            wanted = events_after(self.bench, start)
            self.chaos.check(len(wanted) == arguments.events, f"{arguments.events} changes made {len(wanted)} events")
            eventually("all followers have all events, or are told", lambda: all(
                len(one.ids) >= len(wanted) or one.told or one.stream.over for one in followers), 60)
        finally:
            crowd.close()
        for number, follower in enumerate(followers):
            self.check(f"follower {number}", follower, wanted)
        peak = process_memory(platform)[1]
        late = [moment - begun for one in followers if len(one.ids) == len(asked) for moment, begun in zip(one.moments, asked)]
        complete = sum(one.ids == wanted for one in followers)
        growth = max(0, peak - before[1])
        self.chaos.check(growth <= EVENTS_GROWTH, f"berth serve grew by {growth / MIB:.1f} MiB with {len(followers)} followers of events")
        say(f"\n{len(followers)} followers of events (one user's), {arguments.events} changes of config, one each {PACE} s; latency: from before a change is asked "
            "for until a follower has its event, the clients' own share (one Python process) included")
        table(["followers", "got all", "opened in s", "p50 ms", "p99 ms", "max ms", "serve's own MiB before", "with", "grown by, at the peak", "KiB each"],
              [[len(followers), complete, f"{opened:.1f}", *(f"{value * 1000:.1f}" for value in (percentile(late, 50), percentile(late, 99), max(late, default=0))),
                f"{before[0] / MIB:.1f}", f"{there[0] / MIB:.1f}", f"{growth / MIB:.1f}", f"{growth / len(followers) / 1024:.1f}"]])
        self.chaos.figures |= {"followers": len(followers), "followers_got_all": complete, "event_p50_ms": round(percentile(late, 50) * 1000, 1),
                               "event_p99_ms": round(percentile(late, 99) * 1000, 1), "followers_growth_mib": round(growth / MIB, 1)}

    def change_evenly(self, count):
        """When each change was asked for."""
        asked, due = [], time.monotonic()
        for number in range(count):
            due += PACE
            time.sleep(max(0, due - time.monotonic()))
            asked.append(time.monotonic())
            self.change(number)
        return asked


class Flood(Part):
    """Followers that do not read: when they do at last, they are told; when they never do, they are dropped. Beside them, some that read."""

    def measure(self):
        platform = self.platform
        start = last_event(self.bench)
        readers = follow(self.bench, LAZY)
        late, never = (follow(self.bench, LAZY // 2, lazy=True) for _ in range(2))
        reset_peak(platform)
        before = platform.memory()
        crowd, began = Crowd([one.stream for one in readers]), time.monotonic()
        try:
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                list(pool.map(self.change, range(FLOOD)))
            seconds = time.monotonic() - began
            # Whoever stands still longer counts as gone, and is told nothing.
            self.chaos.check(seconds < STANDS_STILL, f"{FLOOD} changes took {seconds:.1f} s, too long to see who is told")
            told = self.wake(late)
            wanted = events_after(self.bench, start)
            eventually("those who read have all events", lambda: all(len(one.ids) >= len(wanted) or one.told for one in readers), 60)
            dropped = self.await_drop(never)
        finally:
            crowd.close()
        for one in readers:
            self.check("one that reads beside those that do not", one, wanted)
        for one in late:
            self.check("one that read late", one, wanted)
        self.chaos.check(dropped is not None, f"connections that nobody reads are there still after {GONE} s")
        growth = max(0, process_memory(platform)[1] - before)
        self.chaos.check(growth <= EVENTS_GROWTH, f"berth serve grew by {growth / MIB:.1f} MiB with followers that do not read")
        say(f"\n{FLOOD} events in {seconds:.1f} s to {len(late) + len(never)} followers that do not read, and {len(readers)} that do")
        table(["read late", "of them told", "never read", "dropped after s", "serve MiB before", "grown by"],
              [[len(late), told, len(never), f"{dropped:.0f}" if dropped is not None else "not", f"{before / MIB:.1f}", f"{growth / MIB:.1f}"]])
        for one in never:
            one.stream.close()
        self.chaos.figures |= {"lazy_told": told, "lazy_dropped_s": round(dropped) if dropped is not None else None, "lazy_growth_mib": round(growth / MIB, 1)}

    def wake(self, late):
        """They read until the end; how many were told why there is one."""
        crowd = Crowd([one.stream for one in late])
        try:
            eventually("those who read late come to an end", lambda: all(one.stream.over or len(one.ids) == FLOOD for one in late), 60)
        finally:
            crowd.close()
        return sum(any(kind == "end" for kind, _ in one.told) for one in late)

    def await_drop(self, never):
        """Seconds until the server has no connection to any of these; `None`: it keeps them."""
        ports, began = {one.stream.local_port() for one in never}, time.monotonic()
        while time.monotonic() - began < GONE:
            if not ports & self.served_ports():
                return time.monotonic() - began
            time.sleep(0.5)
        return None

    def served_ports(self):
        """The clients' ports of all connections that the server has."""
        found = set()
        for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            # ESTABLISHED, with an inode: not what the kernel alone still holds.
            if int(words[1].split(":")[1], 16) == self.platform.api_port and words[3] == "01":
                found.add(int(words[2].split(":")[1], 16))
        return found
