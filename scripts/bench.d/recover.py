"""A replica is killed: how long until its replacement serves, beside how long the app itself takes to start."""

import datetime
import json
import pathlib
import socket
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "chaos.d"))
from harness import Platform, eventually, main, percentile, run, say, table

APPS = 10
# The bar, beside the app's own start time, seconds.
BAR = 1.0
# A replica that dies younger than this says something against its release, and is started again only after a pause.
STEADY = 10.5


def container(platform, app):
    tenant, name = app.name.split("/")
    labels = {"instance": platform.instance(), "tenant": tenant, "app": name, "role": "replica"}
    filters = [word for label, value in labels.items() for word in ("--filter", f"label=berth.{label}={value}")]
    return (run(["docker", "ps", "-q", "--no-trunc", *filters]).ok().out.split() or [None])[0]


def first_answer(address, port, since, within=30):
    """Seconds from `since` (monotonic) until something takes connections there."""
    while True:
        try:
            socket.create_connection((address, port), 0.2).close()
            return time.monotonic() - since
        except OSError:
            if time.monotonic() - since > within:
                raise
            time.sleep(0.002)


def serving(app, since, within=30):
    """Seconds from `since` until the router answers with a page of the app."""
    while True:
        try:
            if app.get()[0] == 200:
                return time.monotonic() - since
        except OSError:
            pass
        if time.monotonic() - since > within:
            raise AssertionError(f"{app.host} does not answer {within} s after its replica was killed")
        time.sleep(0.005)


def own_start(chaos, platform, app):
    """The same image, command and limits with `docker run`: (seconds from the call to the first connection, of these in the app itself)."""
    described = json.loads(run(["docker", "inspect", container(platform, app)]).ok().out)[0]
    config, network = described["Config"], next(iter(described["NetworkSettings"]["Networks"]))
    name = f"berth-bench-recover-{platform.instance()[:8]}"
    words = ["docker", "run", "-d", "--name", name, "--label", f"berth.bench={chaos.work}", "--network", network]
    words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", config["User"]]
    words += [word for variable in config["Env"] for word in ("-e", variable)]
    words += [word for part in (config["Entrypoint"] or [])[:1] for word in ("--entrypoint", part)]
    words += [config["Image"], *(config["Entrypoint"] or [])[1:], *(config["Cmd"] or [])]
    began, wall = time.monotonic(), time.time()
    try:
        run(words).ok()
        found = json.loads(run(["docker", "inspect", name]).ok().out)[0]
        address = found["NetworkSettings"]["Networks"][network]["IPAddress"]
        port = int(next(variable for variable in config["Env"] if variable.startswith("PORT=")).split("=")[1])
        whole = first_answer(address, port, began)
        started = datetime.datetime.fromisoformat(found["State"]["StartedAt"][:26] + "+00:00").timestamp()
        return whole, max(0.0, wall + whole - started)
    finally:
        run(["docker", "rm", "-f", name])


def remove_peers(chaos):
    left = run(["docker", "ps", "-aq", "--filter", f"label=berth.bench={chaos.work}"]).out.split()
    if left:
        run(["docker", "rm", "-f", *left]).ok()


def scenario(chaos):
    runs = chaos.runs(50)
    platform = Platform(chaos, settings={"BERTH__DEPLOY__STOP_GRACE": "1s"}).begin()
    # Before the platform's networks go: one that an interruption has left half made.
    chaos.finally_do(lambda: remove_peers(chaos))
    apps = [platform.app(f"bench/app{number}") for number in range(APPS)]
    ready = {}
    for app in apps:
        app.push().ok()
        ready[app] = time.monotonic()
    own = [own_start(chaos, platform, apps[0]) for _ in range(9)]
    took = []
    for turn in range(runs):
        app = apps[turn % APPS]
        pause = ready[app] + STEADY - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        victim = container(platform, app)
        began = time.monotonic()
        # Straight to the process: what the engine's own `kill` takes is not Berth's.
        pid = int(run(["docker", "inspect", "--format", "{{.State.Pid}}", victim]).ok().out)
        began = time.monotonic()
        run(["kill", "-9", str(pid)]).ok()
        # The answer of the one that dies could still come.
        eventually("the replica is gone", lambda: not pathlib.Path(f"/proc/{pid}").exists(), 10, 0.001)
        took.append(serving(app, began))
        ready[app] = time.monotonic()
    app_start, run_start = percentile([part for _, part in own], 50), percentile([whole for whole, _ in own], 50)
    p50, p99, worst = percentile(took, 50), percentile(took, 99), max(took)
    table(["", "p50 s", "p99 s", "max s"], [["killed → serves again (Berth)", f"{p50:.3f}", f"{p99:.3f}", f"{worst:.3f}"],
                                            ["docker run → takes connections", f"{run_start:.3f}", "", f"{max(w for w, _ in own):.3f}"],
                                            ["of these in the app itself", f"{app_start:.3f}", "", f"{max(a for _, a in own):.3f}"]])
    late = [one for one in took if one > BAR + app_start]
    say(f"{len(late)} of {runs} took longer than {BAR:.0f} s and the app's own {app_start:.3f} s")
    if late:
        chaos.fail(f"{len(late)} replacements came late")
    chaos.figures |= {"ours": round(p50, 3), "peer": round(BAR + app_start, 3), "ratio": round(p50 / (BAR + app_start), 3), "max": round(worst, 3),
                      "docker_run": round(run_start, 3), "unit": "s from the kill to the first answer, p50; peer is the bar, 1 s and the app's own start"}


main(scenario, default_runs=50)
