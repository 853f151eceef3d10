"""1 → 50 → 1 replicas: Berth, `docker run` and `docker rm` in a loop, and a Swarm service, on one engine of the benchmark's own."""

import http.client
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "chaos.d"))
from harness import Platform, eventually, main, percentile, say, table
from outage import Engine, own_network

MANY = 50
# Ends at once when it is told to, so that nobody waits for a grace time.
SERVER = """import http.server, os, signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'VERSION')
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(('', int(os.environ['PORT'])), Page).serve_forever()
"""


def answers(address, port):
    connection = http.client.HTTPConnection(address, port, timeout=1)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def await_answers(addresses, port, within=120):
    """Until each address has answered once."""
    waiting, end = set(addresses), time.monotonic() + within
    while waiting:
        waiting = {address for address in waiting if not answers(address, port)}
        if time.monotonic() > end:
            raise AssertionError(f"{len(waiting)} replicas do not answer")
        time.sleep(0.01)


class Berth:
    """`scale`: its command returns when all replicas serve behind the router, or when those that were too many are gone."""

    def __init__(self, platform, app, engine):
        self.platform, self.app, self.engine = platform, app, engine

    def up(self):
        self.platform.ssh("scale", self.app.env, f"web={MANY}", timeout=300).ok()

    def down(self):
        self.platform.ssh("scale", self.app.env, "web=1", timeout=300).ok()
        eventually("one replica", lambda: len(self.engine.containers()) == 1, 120, 0.02)

    def away(self):
        self.platform.ssh("scale", self.app.env, "web=0", timeout=300).ok()


class Loop:
    """`docker run` with the same image, command and limits, one after another."""

    def __init__(self, engine, described):
        self.engine, self.described, self.names = engine, described, []
        self.config, host = described["Config"], described["HostConfig"]
        self.port = int(next(variable for variable in self.config["Env"] if variable.startswith("PORT=")).split("=")[1])
        self.limits = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", str(host["PidsLimit"]), "--memory", str(host["Memory"])]
        engine.docker("network", "create", "loop").ok()

    def start(self):
        name = f"loop-{len(self.names)}"
        env = [word for variable in self.config["Env"] for word in ("-e", variable)]
        entry = self.config["Entrypoint"] or []
        words = [word for part in entry[:1] for word in ("--entrypoint", part)]
        self.engine.docker("run", "-d", "--name", name, "--network", "loop", "--user", self.config["User"], *self.limits, *env, *words,
                           self.config["Image"], *entry[1:], *(self.config["Cmd"] or [])).ok()
        self.names.append(name)

    def up(self):
        while len(self.names) < MANY:
            self.start()
        found = json.loads(self.engine.docker("inspect", *self.names).ok().out)
        await_answers([one["NetworkSettings"]["Networks"]["loop"]["IPAddress"] for one in found], self.port)

    def down(self):
        while len(self.names) > 1:
            self.engine.docker("rm", "-f", self.names.pop()).ok()

    def away(self):
        self.engine.docker("rm", "-f", *self.names)
        self.names = []


class Swarm:
    """A service of the same image and command, on an overlay network as services have; up when every task answers."""

    def __init__(self, engine, loop):
        self.engine, self.loop = engine, loop
        engine.docker("swarm", "init", "--advertise-addr", "127.0.0.1").ok()
        config = loop.config
        env = [word for variable in config["Env"] for word in ("--env", variable)]
        entry = config["Entrypoint"] or []
        words = ["--entrypoint", " ".join(entry)] if entry else []
        engine.docker("service", "create", "--name", "swarm", "--detach", "--replicas", "0", "--no-resolve-image", "--user", config["User"],
                      "--label", "bench=scale", "--cap-drop", "ALL", "--limit-pids", str(loop.described["HostConfig"]["PidsLimit"]),
                      "--limit-memory", str(loop.described["HostConfig"]["Memory"]), *env, *words, config["Image"], *(config["Cmd"] or [])).ok()

    def scale(self, count):
        self.engine.docker("service", "scale", "--detach", f"swarm={count}").ok()

    def tasks(self):
        return self.engine.docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=swarm").ok().out.split()

    def up(self, count=MANY):
        self.scale(count)
        eventually("the tasks", lambda: len(self.tasks()) == count, 240, 0.05)
        # On a network of its own, a service's task is reached by the engine's bridge alone.
        found = json.loads(self.engine.docker("inspect", *self.tasks()).ok().out)
        await_answers([next(iter(one["NetworkSettings"]["Networks"].values()))["IPAddress"] for one in found], self.loop.port)

    def down(self, count=1):
        self.scale(count)
        eventually("the tasks are gone", lambda: len(self.engine.docker("ps", "-aq", "--filter", "label=com.docker.swarm.service.name=swarm").ok().out.split()) <= count
                   or len(self.tasks()) == count, 240, 0.05)

    def away(self):
        self.down(0)


def measure(side):
    began = time.monotonic()
    side.up()
    middle = time.monotonic()
    side.down()
    return middle - began, time.monotonic() - middle


def scenario(chaos):
    own_network()
    runs = chaos.runs(3)
    engine = Engine(chaos, live_restore=False)
    platform = Platform(chaos, settings={"BERTH__RUNTIME__SOCKET": str(engine.socket)}).begin()
    app = platform.app("bench/scale", files={"server.py": SERVER, "Procfile": "web: python3 server.py\n"})
    app.push().ok()
    described = json.loads(engine.docker("inspect", next(iter(engine.containers()))).ok().out)[0]
    loop = Loop(engine, described)
    sides = {"Berth scale": Berth(platform, app, engine), "docker run, rm in a loop": loop}
    sides["Swarm service"] = Swarm(engine, loop)
    times = {name: [] for name in sides}
    for turn in range(runs):
        for name, side in sides.items():
            # One replica to begin with, as everybody.
            if name == "Berth scale":
                platform.ssh("scale", app.env, "web=1").ok()
            elif name.startswith("docker"):
                loop.start()
            else:
                side.up(1)
            up, down = measure(side)
            times[name].append((up, down, up + down))
            say(f"run {turn + 1}: {name}: up {up:.1f} s, down {down:.1f} s")
            side.away()
    medians = {name: [percentile([one[part] for one in found], 50) for part in range(3)] for name, found in times.items()}
    table(["", "1 → 50 s", "50 → 1 s", "both s"], [[name, *(f"{value:.2f}" for value in found)] for name, found in medians.items()])
    ours, peer = medians.pop("Berth scale")[2], min(found[2] for found in medians.values())
    chaos.figures |= {"ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(ours / peer, 3), "unit": "s for 1 → 50 → 1 replicas; peer is the faster of the two"}


main(scenario, default_runs=3)
