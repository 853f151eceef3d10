"""The log fan-out of `scripts/bench api`: an app that writes fast, and followers of its log."""

import http.client
import json
import re
import subprocess
import threading
import time

from api_events import MIB, process_memory, reset_peak
from harness import eventually, say, table

# By so much `berth serve` may grow.
LOGS_GROWTH = 64 * MIB
LINES_A_SECOND = 10_000
FOLLOWERS = 20
# Lines of one page of JSON lines; the most there may be.
PAGE = 10_000
# A follower to which nothing comes for so long has all that there is.
QUIET = 5

# Writes numbered lines once it is asked to, evenly, a hundredth of a second's worth at a time.
WRITER = """import http.server, os, threading, time, urllib.parse
started = set()
def write(rate, seconds):
    number, due = 0, time.monotonic()
    for _ in range(seconds * 100):
        text = ''.join('line %d of some forty bytes of text as apps write it\\n' % n for n in range(number, number + rate // 100))
        number += rate // 100
        data = text.encode()
        while data:
            data = data[os.write(1, data):]
        due += 0.01
        time.sleep(max(0, due - time.monotonic()))
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked = urllib.parse.urlparse(self.path)
        if asked.path == '/go':
            words = dict(urllib.parse.parse_qsl(asked.query))
            if words['run'] not in started:
                started.add(words['run'])
                threading.Thread(target=write, args=(int(words['rate']), int(words['seconds']))).start()
        self.send_response(200)
        self.end_headers()
        self.wfile.write((os.environ['BERTH_PROCESS'] + '.' + os.environ['BERTH_REPLICA']).encode())
    def log_message(self, *_):
        pass
print('ready', flush=True)
http.server.ThreadingHTTPServer(('', int(os.environ['PORT'])), Page).serve_forever()
"""
MANIFEST = "processes: {web: {command: python3 server.py, replicas: 2}}\n"

# In the order in which a follower reads them: a line of the app, what the platform says, that lines were missed (as an event, and as a line of JSON).
ITEM = re.compile(
    rb'"source":"app","process":"(?P<process>[^"]+)",(?:"stream":"[^"]*",)?"text":"line (?P<number>\d+) '
    rb'|"source":"berth",[^\n]*?"text":"(?P<said>[^"]*)"'
    rb'|event: missed\ndata: \{"lines":(?P<missed>\d+|null)|\{"missed":(?P<left>\d+)\}|(?P<gap>\{"gap":true\})|event: end\ndata: (?P<end>[^\n]*)')
SAYS_LEFT_OUT = re.compile(rb"(?:(?P<process>\S+) writes too fast|(?P<lines>\d+) lines of (?P<of>\S+) )")


class Account:
    """What one follower got: for each replica which numbers, and whether what lacks between two of them was told of there."""

    def __init__(self):
        self.next, self.got, self.lacks, self.silent, self.again = {}, 0, 0, 0, 0
        # Lines that it was told it lacks; `uncounted`: and some without a number.
        self.counted, self.uncounted, self.told, self.ended = 0, False, {}, None
        # How often it was told anything, which a replica's line is compared with.
        self.notices = 0

    def take(self, text):
        for item in ITEM.finditer(text):
            if item["process"]:
                self._line(item["process"], int(item["number"]))
            elif item["said"]:
                self._said(item["said"])
            elif item["end"]:
                self.ended = item["end"]
            else:
                number = item["missed"] or item["left"]
                self.uncounted |= number in (None, b"null")
                self.counted += int(number) if number not in (None, b"null") else 0
                self.notices += 1

    def _line(self, process, number):
        wanted = self.next.get(process, 0)
        if number < wanted:
            self.again += 1
            return
        self.got += 1
        if number > wanted:
            self._lacks(process, number - wanted)
        self.told[process] = self.notices
        self.next[process] = number + 1

    def _lacks(self, process, lines):
        self.lacks += lines
        if self.told.get(process, 0) == self.notices:
            self.silent += lines

    def _said(self, text):
        """Of one replica: that of the others nothing lacks stays so."""
        said = SAYS_LEFT_OUT.match(text)
        if said:
            process = said["process"] or said["of"]
            self.uncounted = True
            self.counted += int(said["lines"] or 0)
            self.told[process] = -1

    def end(self, processes, lines):
        """The end of each replica's output may lack, too."""
        for process in processes:
            if self.next.get(process, 0) < lines:
                self._lacks(process, lines - self.next.get(process, 0))
        # Without a notice that has no number, the numbers have to suffice.
        if not self.uncounted and self.lacks > self.counted:
            self.silent = max(self.silent, self.lacks - self.counted)


class Kept:
    """What has come, in a file; what it says is looked at afterwards, so that the followers take little of the machine that they share."""

    def __init__(self, chaos, name):
        self.path, self.account, self.size, self.moment = chaos.work / name, Account(), 0, time.monotonic()

    def is_quiet(self):
        """Whether nothing has come for some time."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self.size:
            self.size, self.moment = size, time.monotonic()
        return time.monotonic() - self.moment > QUIET

    def look(self):
        """Takes the account of it, and removes it."""
        rest = b""
        with self.path.open("rb") as file:
            while data := file.read(1 << 24):
                data = rest + data
                # What is not whole yet waits for the rest: an event ends with an empty line.
                mark = b"\n\n" if self.events else b"\n"
                end = data.rfind(mark) + len(mark) if mark in data else 0
                self.account.take(data[:end])
                rest = data[end:]
        self.path.unlink()


class EventFollower(Kept):
    """By server-sent events."""

    events = True

    def __init__(self, bench, env, number):
        super().__init__(bench.chaos, f"events-{number}")
        head = bench.chaos.work / f"head-{number}"
        words = ["curl", "-sSfN", "-D", str(head), "-H", "Accept: text/event-stream", "-H", f"Authorization: {bench.api.bearer}", "-o", str(self.path),
                 f"http://127.0.0.1:{bench.platform.api_port}/v1/envs/{env}/logs?lines=0"]
        self.process = subprocess.Popen(words)
        eventually("a follower of the log is answered", lambda: head.exists() and b"\r\n\r\n" in head.read_bytes(), 30)
        head.unlink()

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.path.touch()
        self.look()


class PageFollower(Kept):
    """By pages of JSON lines, each after the last line of the one before."""

    events = False

    def __init__(self, bench, env, number):
        super().__init__(bench.chaos, f"pages-{number}")
        self.bench, self.resource, self.file = bench, f"/v1/envs/{env}/logs", self.path.open("wb")
        self.connection = http.client.HTTPConnection("127.0.0.1", bench.platform.api_port, timeout=70)
        self.stopping, self.failed = threading.Event(), None
        # Some line is there: that the app is ready.
        self.cursor = eventually("the log has a line", lambda: self.page("lines=1")[1], 30)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def page(self, query):
        """The text, and where the next one begins."""
        self.connection.request("GET", f"{self.resource}?{query}", headers={"Authorization": self.bench.api.bearer, "Accept": "application/x-ndjson"})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise AssertionError(f"a page of the log was refused: {answer.status} {text[:300]!r}")
        at = text.rfind(b'"cursor":"')
        return text, text[at + 10:text.index(b'"', at + 10)].decode() if at >= 0 else None

    def _read(self):
        try:
            while not self.stopping.is_set():
                text, cursor = self.page(f"lines={PAGE}&after={self.cursor}")
                self.file.write(text)
                self.file.flush()
                self.cursor = cursor or self.cursor
                if text.count(b"\n") < PAGE:
                    self.stopping.wait(0.2)
        except (AssertionError, OSError, http.client.HTTPException) as error:
            self.failed = error

    def close(self):
        self.stopping.set()
        self.thread.join(70)
        self.connection.close()
        self.file.close()
        self.look()


class LogFanOut:
    """Twice: two replicas, each of which writes less than one may; and one that writes more than that."""

    def __init__(self, bench):
        self.bench, self.chaos, self.platform = bench, bench.chaos, bench.platform
        self.app = self.platform.app("logs/writer", files={"server.py": WRITER, "Procfile": "web: python3 server.py\n"}, manifest=MANIFEST)
        self.app.push().ok()
        self.rows = []

    def measure(self):
        self.part("even", 2)
        self.platform.ssh("scale", self.app.env, "web=1").ok()
        eventually("one replica is left", lambda: self.bench.api.json(f"/v1/envs/{self.app.env}")["settled"], 60)
        self.part("too_fast", 1)
        say(f"\n{LINES_A_SECOND} lines/s of an app for {self.bench.arguments.seconds} s to {FOLLOWERS} followers: half by server-sent events, half by pages of "
            "JSON lines. One replica alone writes more than logs.replica_rate, as it comes, lets it")
        table(["replicas", "followers", "lines written", "got, least", "most", "lack, most", "told", "silent", "twice", "serve MiB before", "grown by"], self.rows)

    def part(self, name, replicas):
        seconds, rate = self.bench.arguments.seconds, LINES_A_SECOND // replicas
        streams = [EventFollower(self.bench, self.app.env, number) for number in range(FOLLOWERS // 2)]
        pages = [PageFollower(self.bench, self.app.env, number) for number in range(FOLLOWERS // 2)]
        reset_peak(self.platform)
        before = self.platform.memory()
        try:
            processes = self.begin(name, replicas, f"/go?run={name}&rate={rate}&seconds={seconds}")
            time.sleep(seconds)
            # Each is looked at, for as long as it takes.
            eventually("the followers have read on to the end", lambda: all([one.is_quiet() for one in (*streams, *pages)]), seconds + 120, 0.2)
        finally:
            for one in (*streams, *pages):
                one.close()
        growth = max(0, process_memory(self.platform)[1] - before)
        lines = rate // 100 * 100 * seconds
        for kind, found in (("events", streams), ("pages", pages)):
            self.tell(name, kind, found, processes, lines, (before, growth))
        for one in pages:
            self.chaos.check(one.failed is None, f"pages of the log ended: {one.failed}")
        self.chaos.check(growth <= LOGS_GROWTH, f"berth serve grew by {growth / MIB:.1f} MiB with {FOLLOWERS} followers of a log ({name})")
        self.chaos.figures[f"logs_{name}_growth_mib"] = round(growth / MIB, 1)

    def begin(self, name, replicas, path):
        """Tells every replica to write; their names."""
        found = set()

        def told():
            status, body = self.app.get(path)
            if status == 200:
                found.add(body.encode())
            return len(found) == replicas
        eventually(f"{replicas} replicas begin to write ({name})", told, 30, 0)
        return found

    def tell(self, name, kind, followers, processes, lines, memory):
        accounts, written = [one.account for one in followers], lines * len(processes)
        for number, account in enumerate(accounts):
            account.end(processes, lines)
            who = f"follower {number} by {kind} ({name})"
            self.chaos.check(account.silent == 0, f"{who} lacks {account.silent} lines silently of {account.lacks} and was told of {account.counted}")
            self.chaos.check(account.again == 0, f"{who} got {account.again} lines twice")
            self.chaos.check(account.ended is None, f"{who} was ended: {account.ended}")
        got = [account.got for account in accounts]
        lacks, silent, again = (max(getattr(account, what) for account in accounts) for what in ("lacks", "silent", "again"))
        told = max(account.counted for account in accounts)
        uncounted = " and more" if any(account.uncounted for account in accounts) else ""
        before, growth = memory
        self.rows.append([len(processes), f"{len(accounts)} by {kind}", written, min(got), max(got), lacks, f"{told}{uncounted}", silent, again,
                          f"{before / MIB:.1f}", f"{growth / MIB:.1f}"])
        self.chaos.figures |= {f"logs_{name}_{kind}_got": round(min(got) / written, 3), f"logs_{name}_{kind}_silent": silent}
