#!/usr/bin/env python3
# chaos: replicas are killed under requests, one at a time: no request fails, and each is replaced
import time

from harness import Platform, eventually, main, percentile, run, table
from steady_load import Load


def web_containers(platform, app):
    tenant, name = app.name.split("/")
    labels = {"tenant": tenant, "app": name, "env": app.environment, "process": "web", "instance": platform.instance()}
    filters = [word for label, value in labels.items() for word in ("--filter", f"label=berth.{label}={value}")]
    return run(["docker", "ps", "-q", "--no-trunc", *filters]).ok().out.split()


def replaced(platform, app, victim):
    now = web_containers(platform, app)
    return victim not in now and len(now) == 3 and platform.settled(app.env)


def scenario(chaos):
    platform = Platform(chaos).begin()
    app = platform.app("chaos/web", manifest="processes: {web: {command: python3 server.py, replicas: 3}}\n")
    app.push().ok()
    load, took = Load(platform, [app], rate=50), []
    for _ in range(chaos.runs(10)):
        before = web_containers(platform, app)
        victim, began = chaos.random.choice(before), time.monotonic()
        run(["docker", "kill", victim]).ok()
        eventually("a replacement that is ready", lambda: replaced(platform, app, victim), 60)
        took.append(time.monotonic() - began)
        chaos.check(set(before) - {victim} <= set(web_containers(platform, app)), "a healthy replica was replaced too")
    load.end()
    for failure in load.failures[:10]:
        chaos.fail(failure)
    table(["runs", "replaced p50 s", "max s", "requests"],
          [[len(took), f"{percentile(took, 50):.2f}", f"{max(took):.2f}", load.text()]])
    chaos.figures |= {"replaced_max_s": round(max(took), 2), "requests": load.asked(), "failed": len(load.failures)}


main(scenario, default_runs=10)
