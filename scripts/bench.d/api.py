"""What `scripts/bench api` does: reads beside nginx, many followers of events, and a fast log with followers.

The store has 1,000 environments, in tenants of 100. `wrk` reads from Berth and from an nginx that serves the same bytes as static files, in
turns. Then 1,000 clients follow the events while configuration is changed; then some that never read. Then an app writes 10,000 lines a
second, and 20 clients follow its log: half of them as server-sent events, half as pages of JSON lines.

A failure: an event or a line that a follower neither got nor was told of; one that came twice or out of order; a client that does not read
and is not told or not dropped; a control plane that grows by more than EVENTS_GROWTH or LOGS_GROWTH. The times are figures, not failures.
"""

import concurrent.futures
import http.client
import json
import pathlib
import re
import resource
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "chaos.d"))
from api_events import Flood, Following
from api_logs import LogFanOut
from harness import Platform, eventually, free_port, main, percentile, run, say, table

MIB = 1 << 20
PER_TENANT, PER_APP = 100, 10
READERS = (1, 16)
# Seconds of one measurement.
EACH = 3
# Seconds after which a connection is not used again.
IDLE = 20
# The benchmark is one user, and the limits of one user are not what is measured: requests a second; and connections, three sixteenths of which
# one user may follow streams with.
SETTINGS = {"BERTH__API__RATE_PER_USER": "1000000", "BERTH__API__MAX_CONNECTIONS": "8000"}


class Api:
    """The API with a token, over one connection for each thread."""

    def __init__(self, platform):
        self.platform, self.port, self.local = platform, platform.api_port, threading.local()
        made = platform.ssh("tokens", "create", "bench", "--scope", "full", "--json").ok().json()
        self.bearer = f"Bearer {made['token']}"

    def ask(self, method, path, body=None, headers=()):
        """Status, body."""
        # The server closes a connection that is idle for half a minute.
        if time.monotonic() - getattr(self.local, "used", -IDLE) >= IDLE:
            self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=70)
        self.local.used = time.monotonic()
        headers = {"Authorization": self.bearer, "Content-Type": "application/json"} | dict(headers)
        self.local.connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = self.local.connection.getresponse()
        return answer.status, answer.read()

    def ok(self, method, path, body=None, headers=()):
        status, answer = self.ask(method, path, body, headers)
        if not 200 <= status < 300:
            raise AssertionError(f"{method} {path}: {status} {answer[:500]!r}")
        return answer

    def json(self, path):
        return json.loads(self.ok("GET", path))


class Bench:
    def __init__(self, chaos):
        self.chaos, self.arguments = chaos, chaos.arguments
        self.platform = Platform(chaos, settings=dict(SETTINGS)).begin()
        self.api = Api(self.platform)
        say(f"api.rate_per_user is {SETTINGS['BERTH__API__RATE_PER_USER']} and api.max_connections {SETTINGS['BERTH__API__MAX_CONNECTIONS']}, not the usual ones; "
            "all else is as it comes")

    def fill(self):
        """Environments, by the API; their names."""
        tenants, names = -(-self.arguments.envs // PER_TENANT), []
        began = time.monotonic()
        for tenant in range(tenants):
            self.api.ok("POST", "/v1/tenants", {"name": f"t{tenant}"})
        for number in range(-(-self.arguments.envs // PER_APP)):
            app = f"t{number * PER_APP // PER_TENANT}/app{number}"
            self.api.ok("POST", "/v1/apps", {"name": app})
            # Two come with the app.
            names += [f"{app}/{env}" for env in ("dev", "prod", *(f"e{extra}" for extra in range(2, PER_APP)))]
        names = names[:self.arguments.envs]
        made = [name for name in names if not name.endswith(("/dev", "/prod"))]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: self.api.ok("POST", "/v1/envs", {"name": name}), made))
        say(f"{len(names)} environments of {tenants} tenants in {time.monotonic() - began:.0f} s; "
            f"berth serve has {self.platform.memory() / MIB:.1f} MiB")
        return names

    # -- reads

    def reads(self, names):
        """Latencies of reads, ours and nginx's, by what is read and how many read at once."""
        tenant = names[-1].split("/")[0]
        paths = {"one environment": f"/v1/envs/{names[-1]}", "100 environments": "/v1/envs?limit=100",
                 "one tenant's members": f"/v1/tenants/{tenant}/members"}
        port, sizes = self.start_nginx(paths), {}
        found = {}
        for turn in range(self.chaos.runs(3) + 1):
            for number, (what, path) in enumerate(paths.items()):
                sizes[what] = len(self.api.ok("GET", path))
                for readers in READERS:
                    ours = self.wrk(readers, f"http://127.0.0.1:{self.platform.api_port}{path}", self.api.bearer)
                    peer = self.wrk(readers, f"http://127.0.0.1:{port}/{number}.json", self.api.bearer)
                    # The first turn warms up.
                    if turn > 0:
                        found.setdefault((what, readers), []).append((ours, peer))
        return self.tell_reads(found, sizes)

    def tell_reads(self, found, sizes):
        rows, figures = [], {}
        for (what, readers), runs in found.items():
            middle = [[percentile([one[side][part] for one in runs], 50) for part in range(3)] for side in range(2)]
            ratios = [ours / peer for ours, peer in zip(*middle)]
            rows.append([what, sizes[what], readers, *(f"{value:.3f}" for side in middle for value in side[:2]), *(f"{one:.2f}" for one in ratios[:2]),
                         *(f"{side[2]:.0f}" for side in middle)])
            key = f"{what.replace(' ', '_').replace(chr(39), '')}_{readers}"
            figures |= {f"{key}_p50_ratio": round(ratios[0], 3), f"{key}_p99_ratio": round(ratios[1], 3)}
        say(f"\nReads over keep-alive connections, {self.arguments.envs} environments in the store; the peer is nginx with the same bytes as a static file")
        table(["read", "bytes", "at once", "p50 ms", "p99 ms", "nginx p50", "nginx p99", "ratio p50", "ratio p99", "reads/s", "nginx reads/s"], rows)
        runs = found["one environment", 1]
        ours, peer = (percentile([one[side][0] for one in runs], 50) for side in range(2))
        self.chaos.figures |= {"ours": ours, "peer": peer, "ratio": round(ours / peer, 3),
                               "unit": "ms p50 of reading one environment, one at a time; peer is nginx with a static file"} | figures

    def wrk(self, readers, url, bearer):
        """p50 and p99 in milliseconds, reads a second."""
        asked = run(["wrk", "-t", 1, "-c", readers, "-d", f"{EACH}s", "--latency", "-H", f"Authorization: {bearer}", url]).ok().out
        if "Non-2xx" in asked or "Socket errors" in asked:
            raise AssertionError(f"reads of {url} failed: {asked}")
        milliseconds = {"us": 0.001, "ms": 1, "s": 1000}

        def latency(percent):
            value, unit = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s)$", asked, re.M).groups()
            return round(float(value) * milliseconds[unit], 4)
        return latency(50), latency(99), float(re.search(r"Requests/sec:\s+([\d.]+)", asked)[1])

    def start_nginx(self, paths):
        """An nginx with these answers as files; its port."""
        directory, port = self.chaos.directory("nginx"), free_port()
        # Its workers are nobody, who has to get there.
        self.chaos.work.chmod(0o755)
        directory.chmod(0o755)
        for number, path in enumerate(paths.values()):
            (directory / f"{number}.json").write_bytes(self.api.ok("GET", path))
        temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (directory / "nginx.conf").write_text(
            f"pid {directory}/pid; worker_processes auto; error_log {directory}/error.log; events {{ worker_connections 1024; }}\n"
            f"http {{ {temporary} access_log off; default_type application/json; sendfile on; tcp_nopush on; keepalive_requests 1000000000;\n"
            f"  server {{ listen 127.0.0.1:{port}; root {directory}; }} }}\n")
        process = subprocess.Popen(["nginx", "-c", directory / "nginx.conf", "-g", "daemon off;"], stderr=subprocess.DEVNULL)
        self.chaos.finally_do(lambda: self.chaos.end(process, "nginx"))
        eventually("nginx answers", lambda: run(["curl", "-sf", "-o", "/dev/null", f"http://127.0.0.1:{port}/0.json"]).status == 0, 10)
        return port


def scenario(chaos):
    only = chaos.arguments.only or ("reads", "events", "lazy", "logs")
    bench = Bench(chaos)
    names = bench.fill()
    # A follower is a file descriptor here. Only now: the server's limit is its own business.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if "reads" in only:
        bench.reads(names)
    if "events" in only:
        Following(bench, names).measure()
    if "lazy" in only:
        Flood(bench, names).measure()
    if "logs" in only:
        LogFanOut(bench).measure()


main(scenario, default_runs=3, arguments=[
    ("--envs", {"type": int, "default": 1000}), ("--followers", {"type": int, "default": 1000}), ("--events", {"type": int, "default": 200}),
    ("--seconds", {"type": int, "default": 30, "help": "for which the app writes"}),
    ("--only", {"nargs": "*", "help": "only these parts: reads, events, lazy, logs"})])
