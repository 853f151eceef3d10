"""1 → 50 → 1 replicas: Berth, `docker run` and `docker stop` in a loop, and a Swarm service, on one engine of the benchmark's own.

All three run the same image and command as the same user, with the same limits (memory, CPU, processes, open files), an init, no capabilities, the
same log driver, and each on a user-defined bridge network of its own. (Swap, shared memory and the OOM score cannot be given to a service.) All
three end a replica in the same way, by SIGTERM with the same grace, upon which the app exits at once. Up means that all 50 answer at their addresses, Berth's
behind its router before that; down, that one is left. They take turns, in another order each time. The bar is Berth's time for both against the
faster peer: below 1, or the benchmark fails.
"""

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
    """`scale`: its command returns when all replicas serve behind the router, or when those that were too many are gone. That they are there and
    answer is looked at within the time, as it is for the peers."""

    def __init__(self, platform, app, engine, port):
        self.platform, self.app, self.engine, self.port = platform, app, engine, port

    def up(self):
        self.platform.ssh("scale", self.app.env, f"web={MANY}", timeout=300).ok()
        containers = self.engine.containers()
        if len(containers) != MANY:
            raise AssertionError(f"scale has ended, and there are {len(containers)} replicas, not {MANY}")
        found = json.loads(self.engine.docker("inspect", *containers).ok().out)
        networks = [list(one["NetworkSettings"]["Networks"].values()) for one in found]
        await_answers([network["IPAddress"] for (network,) in networks], self.port)

    def down(self):
        self.platform.ssh("scale", self.app.env, "web=1", timeout=300).ok()
        eventually("one replica", lambda: len(self.engine.containers()) == 1, 120, 0.02)

    def away(self):
        self.platform.ssh("scale", self.app.env, "web=0", timeout=300).ok()


def options(described, variable_option):
    """What a replica of Berth has, as options that `docker run` and `docker service create` share."""
    config, host = described["Config"], described["HostConfig"]
    words = ["--user", config["User"], "--init", "--cap-drop", "ALL", "--log-driver", host["LogConfig"]["Type"]]
    words += [word for key, value in host["LogConfig"]["Config"].items() for word in ("--log-opt", f"{key}={value}")]
    words += [word for one in host["Ulimits"] or [] for word in ("--ulimit", f"{one['Name']}={one['Soft']}:{one['Hard']}")]
    words += [word for variable in config["Env"] for word in (variable_option, variable)]
    return words


def cpus(described):
    """As the engine's command line takes it."""
    return str(described["HostConfig"]["NanoCpus"] / 1e9)


class Loop:
    """`docker run`, then `docker stop` and `docker rm`, one after another."""

    def __init__(self, engine, described):
        self.engine, self.described, self.names = engine, described, []
        self.config, host = described["Config"], described["HostConfig"]
        self.port = int(next(variable for variable in self.config["Env"] if variable.startswith("PORT=")).split("=")[1])
        self.grace = str(self.config["StopTimeout"])
        self.words = [*options(described, "-e"), "--security-opt", "no-new-privileges", "--pids-limit", str(host["PidsLimit"]),
                      "--memory", str(host["Memory"]), "--memory-swap", str(host["MemorySwap"]), "--cpus", cpus(described),
                      "--shm-size", str(host["ShmSize"]), "--oom-score-adj", str(host["OomScoreAdj"]), "--stop-timeout", self.grace]
        engine.docker("network", "create", "loop").ok()

    def start(self):
        name = f"loop-{len(self.names)}"
        entry = self.config["Entrypoint"] or []
        words = [word for part in entry[:1] for word in ("--entrypoint", part)]
        self.engine.docker("run", "-d", "--name", name, "--network", "loop", *self.words, *words,
                           self.config["Image"], *entry[1:], *(self.config["Cmd"] or [])).ok()
        self.names.append(name)

    def stop(self, *names):
        self.engine.docker("stop", "-t", self.grace, *names).ok()
        self.engine.docker("rm", *names).ok()

    def up(self):
        while len(self.names) < MANY:
            self.start()
        found = json.loads(self.engine.docker("inspect", *self.names).ok().out)
        await_answers([one["NetworkSettings"]["Networks"]["loop"]["IPAddress"] for one in found], self.port)

    def down(self):
        while len(self.names) > 1:
            self.stop(self.names.pop())

    def away(self):
        self.stop(*self.names)
        self.names = []


class Swarm:
    """A service; up when every task answers. Its network is a bridge, as those of the others: tasks on one machine need no overlay."""

    def __init__(self, engine, loop):
        self.engine, self.loop, described = engine, loop, loop.described
        engine.docker("swarm", "init", "--advertise-addr", "127.0.0.1").ok()
        engine.docker("network", "create", "--scope", "swarm", "--driver", "bridge", "tasks").ok()
        config, host = loop.config, described["HostConfig"]
        entry = config["Entrypoint"] or []
        words = ["--entrypoint", " ".join(entry)] if entry else []
        engine.docker("service", "create", "--name", "swarm", "--detach", "--replicas", "0", "--no-resolve-image", "--network", "tasks",
                      "--label", "bench=scale", *options(described, "--env"), "--limit-pids", str(host["PidsLimit"]), "--limit-memory", str(host["Memory"]),
                      "--limit-cpu", cpus(described), "--stop-grace-period", f"{loop.grace}s", *words, config["Image"], *(config["Cmd"] or [])).ok()

    def scale(self, count):
        self.engine.docker("service", "scale", "--detach", f"swarm={count}").ok()

    def tasks(self):
        return self.engine.docker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=swarm").ok().out.split()

    def up(self, count=MANY):
        self.scale(count)
        eventually("the tasks", lambda: len(self.tasks()) == count, 240, 0.05)
        found = json.loads(self.engine.docker("inspect", *self.tasks()).ok().out)
        await_answers([one["NetworkSettings"]["Networks"]["tasks"]["IPAddress"] for one in found], self.loop.port)

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
    sides = {"Berth scale": Berth(platform, app, engine, loop.port), "docker run, stop in a loop": loop}
    sides["Swarm service"] = Swarm(engine, loop)
    times = {name: [] for name in sides}
    for turn in range(runs):
        for name, side in chaos.random.sample(list(sides.items()), len(sides)):
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
    chaos.check(ours < peer, f"1 → {MANY} → 1 took {ours:.1f} s, the faster peer {peer:.1f} s")
    chaos.figures |= {"ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(ours / peer, 3), "unit": "s for 1 → 50 → 1 replicas; peer is the faster of the two"}


main(scenario, default_runs=3)
