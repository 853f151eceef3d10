#!/usr/bin/env python3
# chaos: the engine is restarted, killed, late, silent and cut off: apps go on, the control plane answers, everything converges
"""Of an engine of the scenario's own, behind a proxy. A failure: while containers live, a request that fails or a healthy replica that is
replaced; commands slower than COMMAND at p99, or ones that fail; a push that ends without the reason, or not within PUSH; not as it should be
within CONVERGED once the engine answers; a job left behind; a control plane that is started while the engine is away and ends, does not answer
within ANSWERS, or does not converge when the engine comes."""

import signal
import time

from harness import Platform, eventually, main, percentile, say, table
from outage import Engine, Proxy, PushUnderWay, Watch, explained, own_network, part
from steady_load import Load

# The bars: how long a command may take, how long it may take until all is as it should be once the engine answers, how long a push may take, and
# how long a control plane that is started without an engine may take until it answers, in seconds.
COMMAND, CONVERGED, PUSH, ANSWERS = 2, 30, 300, 20


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

    def converge(self, apps=None):
        """Seconds until these apps (both, if none are named) have all their replicas and answer."""
        began, of = time.monotonic(), apps or (self.busy, self.still)

        def answers(app):
            try:
                return app.get()[0] == 200
            except OSError:
                return False
        eventually("everything is as it should be", lambda: all(self.platform.settled(app.env) and answers(app) for app in of), CONVERGED + 60)
        took = time.monotonic() - began
        self.chaos.check(took <= CONVERGED, f"it took {took:.1f} s to converge")
        if not apps:
            # What a job was made for has ended.
            eventually("no job is left", lambda: not self.engine.docker("ps", "-aq", "--filter", "label=berth.role=job").ok().out.split(), 60)
        return took

    def end_push(self, push, what):
        """A push that the engine was taken away from: it succeeds, or says what went wrong."""
        status = push.end(PUSH)
        self.chaos.check(status == 0 or status != 124 and explained(push), f"{what}: a push ended with {status}: {push.out[-1500:]}")
        return f"{'live' if status == 0 else 'refused'} after {push.seconds:.1f} s"

    def watched(self, name, work, strict=True, asked=True):
        """Runs `work` under requests and commands, and makes a row of what came of it. `strict`: no request may fail. Without `asked`, `work`
        begins the commands itself and gives their watch beside what it tells."""
        load, watch = Load(self.platform, [self.busy, self.still], rate=20), Watch(self.platform, [self.busy.env]) if asked else None
        with part(name):
            try:
                told = work()
                watch, told = (watch, told) if asked else told
            finally:
                load.end()
                if watch:
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
        """The engine is restarted under load. With live-restore nothing happens to the apps; without, they come back. While a push is under
        way, only the app that is not pushed to says how long this takes: the other one is being deployed meanwhile."""
        took, pushes = [], []
        for turn in range(count):
            before, how = self.replicas(self.still), self.chaos.random.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGKILL])
            push = None
            if turn % 3 == 2:
                self.busy.change()
                push = PushUnderWay(self.busy, *(["no-cache"] if turn % 2 else []))
                time.sleep(self.chaos.random.uniform(0.2, 3))
            self.engine.restart(how)
            took.append(self.converge(apps=[self.still] if push else None))
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
        took = self.converge()
        told = self.end_push(push, mode)
        self.converge()
        self.chaos.check(before == self.replicas(self.still), f"{mode}: healthy replicas were replaced")
        self.busy.change()
        self.chaos.check(self.busy.push().status == 0, f"{mode}: the next push failed")
        self.chaos.figures[f"{mode}_converged_s"] = round(took, 1)
        return f"{seconds} s; push {told}; converged after {took:.1f} s"


    def started_without(self, mode, seconds):
        """The control plane is started while the engine is not as it should be, and somebody pushes."""
        before, began = self.replicas(self.still), time.monotonic()
        self.platform.kill("serve", signal.SIGTERM)
        self.proxy.set(mode)
        try:
            self.platform.start("serve", wait=False)
            self.await_commands(mode)
            answered = time.monotonic() - began
            watch = Watch(self.platform, [], questions=[("whoami",), ("builds", "list", self.busy.env), ("releases", "list", self.busy.env)])
            self.busy.change()
            push = PushUnderWay(self.busy, "no-cache")
            time.sleep(seconds)
        finally:
            self.proxy.set("pass")
        took = self.converge(apps=[self.still])
        told = self.end_push(push, f"serve started, engine: {mode}")
        self.converge()
        self.chaos.check(before == self.replicas(self.still), f"serve started, engine: {mode}: healthy replicas were replaced")
        self.busy.change()
        self.chaos.check(self.busy.push().status == 0, f"serve started, engine: {mode}: the next push failed")
        self.chaos.figures[f"started_{mode}_converged_s"] = round(took, 1)
        return watch, f"answers after {answered:.1f} s; push {told}; converged after {took:.1f} s"

    def await_commands(self, mode):
        """One that ends though it should wait for the engine is a failure; it is started again with the engine, for the rest of the run."""
        def answers():
            if not self.platform.alive("serve"):
                raise AssertionError("berth serve ended:\n" + self.platform.log("serve").read_text()[-1500:])
            return self.platform.ssh("whoami", timeout=ANSWERS).status == 0
        try:
            eventually("commands are answered", answers, ANSWERS)
        except AssertionError as error:
            self.chaos.fail(f"serve started, engine: {mode}: {error}")
            self.proxy.set("pass")
            if not self.platform.alive("serve"):
                self.platform.processes.pop("serve", None)
                self.platform.start("serve", wait=False)
            self.platform.await_ready()


def scenario(chaos):
    world, count = World(chaos), chaos.runs(10)
    world.watched("restarts with live-restore", lambda: world.restarts(count, live=True))
    world.watched("answers 30 s late", lambda: world.away("late", 75))
    world.watched("does not answer", lambda: world.away("hang", 150))
    world.watched("breaks connections", lambda: world.away("drop", 20))
    world.watched("takes no connections", lambda: world.away("refuse", 75))
    world.watched("serve started, takes no connections", lambda: world.started_without("refuse", 20), asked=False)
    world.watched("serve started, does not answer", lambda: world.started_without("hang", 40), asked=False)
    # From here on, replicas die with their engine.
    world.engine.live_restore = False
    world.watched("restarts without", lambda: world.restarts(count, live=False), strict=False)
    serve = world.platform.log("serve").read_text()
    chaos.check("panicked" not in serve, "berth serve panicked")
    table(["engine", "requests", "failed", "commands p99 s", "what came of it"], world.rows)
    say("")


main(scenario, default_runs=10)
