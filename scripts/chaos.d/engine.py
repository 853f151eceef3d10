#!/usr/bin/env python3
# chaos: the engine is restarted, killed, late, silent and cut off: apps go on, the control plane answers, everything converges
import signal
import time

from harness import Load, Platform, eventually, main, percentile, say, table
from outage import Engine, Proxy, PushUnderWay, Watch, explained, own_network, part

# The bars: how long a command may take, and how long it may take until all is as it should be once the engine answers, in seconds.
COMMAND, CONVERGED, PUSH = 2, 30, 300


class World:
    def __init__(self, chaos):
        own_network()
        self.chaos, self.rows = chaos, []
        self.engine = Engine(chaos, live_restore=True)
        self.proxy = Proxy(chaos, str(chaos.directory("wire") / "docker.sock"), str(self.engine.socket))
        self.platform = Platform(chaos, settings={"BERTH__RUNTIME__SOCKET": self.proxy.listen}).begin()
        manifest = "processes: {web: {command: python3 server.py, replicas: 2}}\n"
        # One that is pushed to all the time, one that nobody touches.
        self.busy, self.still = self.platform.app("chaos/busy", manifest=manifest), self.platform.app("chaos/still", manifest=manifest)
        for app in (self.busy, self.still):
            app.push().ok()

    def replicas(self, app):
        tenant, name = app.name.split("/")
        words = ["ps", "-q", "--no-trunc", *[word for label, value in (("tenant", tenant), ("app", name), ("role", "replica"))
                                            for word in ("--filter", f"label=berth.{label}={value}")]]
        return set(self.engine.docker(*words).ok().out.split())

    def converge(self, within=CONVERGED):
        """Seconds until both apps have all their replicas and answer."""
        began = time.monotonic()

        def answers(app):
            try:
                return app.get()[0] == 200
            except OSError:
                return False
        eventually("everything is as it should be", lambda: all(self.platform.settled(app.env) and answers(app) for app in (self.busy, self.still)), within + 60)
        took = time.monotonic() - began
        self.chaos.check(took <= within, f"it took {took:.1f} s to converge")
        # What a job was made for has ended.
        eventually("no job is left", lambda: not self.engine.docker("ps", "-aq", "--filter", "label=berth.role=job").ok().out.split(), 60)
        return took

    def end_push(self, push, what):
        """A push that the engine was taken away from: it succeeds, or says what went wrong."""
        status = push.end(PUSH)
        self.chaos.check(status == 0 or status != 124 and explained(push), f"{what}: a push ended with {status}: {push.out[-1500:]}")
        return f"{'live' if status == 0 else 'refused'} after {push.seconds:.1f} s"

    def watched(self, name, work, strict=True):
        """Runs `work` under requests and commands, and makes a row of what came of it. `strict`: no request may fail."""
        load, watch = Load(self.platform, [self.busy.host, self.still.host], rate=20), Watch(self.platform, [self.busy.env])
        with part(name):
            try:
                told = work()
            finally:
                load.end()
                watch.end()
        for failure in load.failures[:5] if strict else []:
            self.chaos.fail(f"{name}: {failure}")
        for failure in watch.failures[:5]:
            self.chaos.fail(f"{name}: {failure}")
        self.chaos.check(watch.p99() <= COMMAND, f"{name}: commands took up to {max(watch.times):.1f} s")
        self.rows.append([name, load.asked(), len(load.failures), f"{watch.p99():.2f}", told])
        self.chaos.figures["failed"] = self.chaos.figures.get("failed", 0) + (len(load.failures) if strict else 0)
        self.chaos.figures["command_p99_s"] = max(self.chaos.figures.get("command_p99_s", 0), round(watch.p99(), 2))

    # -- parts

    def restarts(self, count, live):
        """The engine is restarted under load. With live-restore nothing happens to the apps; without, they come back."""
        took, pushes = [], []
        for turn in range(count):
            before, how = self.replicas(self.still), self.chaos.random.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGKILL])
            push = None
            if turn % 3 == 2:
                self.busy.change()
                push = PushUnderWay(self.busy, *(["no-cache"] if turn % 2 else []))
                time.sleep(self.chaos.random.uniform(0.2, 3))
            self.engine.restart(how)
            took.append(self.converge() if not push else 0)
            if push:
                pushes.append(self.end_push(push, f"restart {turn + 1}"))
                self.converge()
            if live:
                self.chaos.check(before == self.replicas(self.still), f"restart {turn + 1} ({how.name}): healthy replicas were replaced")
        key = "live_restore" if live else "plain"
        self.chaos.figures |= {f"{key}_restarts": count, f"{key}_converged_max_s": round(max(took), 2)}
        return f"{count} restarts, converged after p50 {percentile(took, 50):.1f} s, max {max(took):.1f} s; pushes: {', '.join(pushes) or 'none'}"

    def away(self, mode, seconds):
        """The engine is not as it should be for so long, while somebody pushes."""
        before = self.replicas(self.still)
        self.busy.change()
        self.proxy.set(mode)
        try:
            push = PushUnderWay(self.busy, "no-cache")
            time.sleep(seconds)
        finally:
            self.proxy.set("pass")
        took = self.converge(CONVERGED + 30)
        told = self.end_push(push, mode)
        self.converge()
        self.chaos.check(before == self.replicas(self.still), f"{mode}: healthy replicas were replaced")
        self.busy.change()
        self.chaos.check(self.busy.push().status == 0, f"{mode}: the next push failed")
        self.chaos.figures[f"{mode}_converged_s"] = round(took, 1)
        return f"{seconds} s; push {told}; converged after {took:.1f} s"


def scenario(chaos):
    world, count = World(chaos), chaos.runs(10)
    world.watched("restarts with live-restore", lambda: world.restarts(count, live=True))
    world.watched("answers 30 s late", lambda: world.away("late", 75))
    world.watched("does not answer", lambda: world.away("hang", 150))
    world.watched("breaks connections", lambda: world.away("drop", 20))
    world.watched("takes no connections", lambda: world.away("refuse", 75))
    # From here on, replicas die with their engine.
    world.engine.live_restore = False
    world.watched("restarts without", lambda: world.restarts(count, live=False), strict=False)
    serve = world.platform.log("serve").read_text()
    chaos.check("panicked" not in serve, "berth serve panicked")
    table(["engine", "requests", "failed", "commands p99 s", "what came of it"], world.rows)
    say("")


main(scenario, default_runs=10)
