#!/usr/bin/env python3
# chaos: the control plane is killed at each of ten points of its work, and at random moments, under requests to several apps
# build: --features fail-points
import collections
import subprocess
import time

from harness import Platform, eventually, main, percentile, run, say, table
from steady_load import Load

# What makes the server come by each point, with how many times it comes by at most: (operation, times).
WAYS = {
    "receive": [("push", 3), ("detach", 4)],
    "checkout": [("push", 1), ("rebuild", 2)],
    "compile": [("rebuild", 2)],
    "slug": [("push", 2), ("rebuild", 4)],
    "push": [("push", 4), ("detach", 4), ("rebuild", 5)],
    "record-release": [("push", 2), ("config", 2), ("rollback", 2)],
    "start": [("push", 3), ("scale", 2), ("restart", 2)],
    "probe": [("push", 3), ("scale", 2), ("restart", 3)],
    "switch": [("push", 5), ("scale", 4), ("restart", 4)],
    "retire": [("push", 2), ("scale", 2), ("restart", 2), ("destroy", 3)],
    "random": [("push", 0), ("detach", 0), ("rebuild", 0), ("scale", 0), ("restart", 0), ("rollback", 0), ("destroy", 0)],
}
# How long everything may take to be as it should after the server was started again, seconds.
CONVERGED = 30
# How long an operation may take that does not end in a kill.
UNHURT = 90
# How often, of so many, the server is killed once more while it recovers.
AGAIN = 6
MANIFEST = "processes: {web: {command: python3 server.py, replicas: REPLICAS, health: {interval: 1s}}}\n"


class Scene:
    """The platform, its apps, and what is known of them."""

    def __init__(self, chaos):
        self.chaos, self.random = chaos, chaos.random
        self.points = chaos.directory("points")
        self.platform = Platform(chaos, settings={"BERTH_FAIL_POINTS": str(self.points)}).begin()
        self.apps = [self.platform.app(f"chaos/app{number}", manifest=MANIFEST.replace("REPLICAS", str(replicas)))
                     for number, replicas in ((1, 1), (2, 2), (3, 1))]
        # The version that each commit answers with.
        self.versions = {}
        for app in self.apps:
            self.note(app)
            app.push().ok()

    def note(self, app):
        self.versions[app.git("rev-parse", "HEAD").out.strip()] = app.version

    # -- operations: the words of a command, and a check of its outcome after everything has settled

    def begin(self, name, app):
        commit, words = None, None
        if name in ("push", "detach", "rebuild"):
            commit = app.change()
            self.note(app)
            words = app.push_words(*{"push": [], "detach": ["detach"], "rebuild": ["no-cache"]}[name])
        elif name == "scale":
            wanted = self.platform.ps(app.env)["processes"]["web"]["wanted"]
            words = ["scale", app.env, f"web={wanted + 1 if wanted < 2 else 1}"]
        elif name == "config":
            words = ["config", "set", app.env, f"TURN={self.random.randrange(10 ** 6)}"]
        elif name == "destroy":
            extra = f"{app.name}/extra"
            self.platform.ssh("envs", "create", extra).ok()
            self.platform.ssh("promote", app.env, extra).ok()
            words = ["envs", "destroy", extra, "--confirm", extra]
        else:
            words = [name, app.env]
        if words[0] != "git":
            words = ["ssh", "-F", str(self.platform.directory / "ssh_config"), "berth", *words]
        return commit, words

    def arm(self, text):
        (self.points / "armed").write_text(text)

    def disarm(self):
        (self.points / "armed").unlink(missing_ok=True)

    def operate(self, words):
        return subprocess.Popen(words, env=self.platform.git_environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, errors="replace")

    # -- what must hold

    def amiss(self, apps):
        """What is not (yet) as it should be, with the builds of these apps; also when nobody answers."""
        try:
            return self.look(apps)
        except (AssertionError, FileNotFoundError) as error:
            return [str(error)[-300:]]

    def look(self, apps):
        found = self.platform.ssh("ps", "--json")
        if found.status != 0:
            return [f"ps: {found.all()[-200:]}"]
        wrong, wanted = [], 0
        for status in found.json():
            wanted += sum(process["wanted"] for process in status["processes"])
            if not status["settled"]:
                wrong.append(f"{status['env']} waits: {status['waiting']}")
        for app in apps:
            for build in self.platform.builds(app.env):
                if build["state"] not in ("succeeded", "failed", "cancelled"):
                    wrong.append(f"build {build['number']} of {app.env} is {build['state']}")
        return wrong + self.left(wanted)

    def left(self, wanted):
        """Things that nobody owns."""
        wrong, data, objects = [], self.platform.data, self.platform.engine_objects()
        if len(objects["containers"]) != wanted:
            wrong.append(f"{len(objects['containers'])} containers, wanted are {wanted} replicas")
        if len(objects["networks"]) != 1 or len(objects["volumes"]) > len(self.apps):
            wrong.append(f"networks {objects['networks']}, volumes {objects['volumes']}")
        registry = data / "registry/data/docker/registry/v2/repositories"
        strays = [*(data / "tmp").iterdir(), *data.glob(".control-*"), *data.glob(".tmp*"), *data.glob("keys/.tmp*"),
                  *data.glob("repositories/.new-*"), *data.glob("repositories/.old-*"),
                  *data.glob("repositories/*/*/*/objects/tmp_objdir-*"), *data.glob("repositories/*/*/*/objects/incoming-*"),
                  *data.glob("repositories/**/*.lock"), *registry.glob("**/_uploads/*"), *data.glob("repositories/*/*/extra.git"),
                  *data.glob("buildpacks/.fetching*"), *data.glob("router/.tmp*"),
                  # The router acknowledges by one of these; it may be at it.
                  *[path for path in data.glob("router/*.tmp") if not path.name.startswith("ack.json.")]]
        return wrong + [f"left behind: {stray}" for stray in strays]

    def check_builds(self, app, commit, twice):
        """Every build has ended, with a reason if not with success; the one of `commit` with success, unless its push was still being
        looked at: then it has not begun, and the push was not acknowledged."""
        mine = None
        for build in self.platform.builds(app.env):
            if build["state"] not in ("succeeded", "failed", "cancelled"):
                yield f"build {build['number']} of {app.env} is {build['state']}"
            elif build["state"] != "succeeded" and not build.get("reason"):
                yield f"build {build['number']} of {app.env} {build['state']} without a reason"
            if commit and build["commit"] == commit:
                mine = build
        if mine and mine["state"] == "cancelled" and "before the push was checked" in mine["reason"]:
            return None
        if commit and mine and mine["state"] != "succeeded" and not (twice and "twice" in mine["reason"]):
            yield f"the build of {commit[:7]} in {app.env} {mine['state']}: {mine.get('reason')}"
        if commit and mine and mine["state"] == "succeeded" and app.remote_commit() != commit:
            yield f"{commit[:7]} was built, and the branch of {app.env} is at {app.remote_commit()}"
        return mine

    def check(self, operation, app, commit, status, twice):
        built = yield from self.check_builds(app, commit, twice)
        if commit and status == 0 and not built:
            yield f"the push of {commit[:7]} to {app.env} was acknowledged, and there is no build of it"
        if commit and status == 0 and app.remote_commit() != commit:
            yield f"the push of {commit[:7]} to {app.env} was acknowledged, and the branch is at {app.remote_commit()}"
        if operation == "destroy" and self.platform.ssh("ps", f"{app.name}/extra").status != 4:
            # It was not acknowledged, and may be there still: then whole.
            if status == 0:
                yield f"{app.name}/extra was destroyed, and is there"
            self.platform.ssh("envs", "destroy", f"{app.name}/extra", "--confirm", f"{app.name}/extra").ok()
        yield from self.check_serving(app)

    def check_serving(self, *apps):
        """Each answers with what its current release was made of, and its repository is whole."""
        for one in apps:
            releases = self.platform.ssh("releases", "list", one.env, "--json").ok().json()
            current = self.platform.ps(one.env)["release"]
            serving = [release for release in releases if release["version"] == current]
            answer = one.get()
            if not serving or f"version {self.versions[serving[0]['commit']]}{one.mark}" not in answer[1]:
                yield f"{one.env} answers {answer}, its current release is {serving}"
            repository = self.platform.data / "repositories" / f"{one.env}.git"
            checked = run(["git", "-C", repository, "fsck", "--no-dangling", "--no-progress"], env=self.platform.git_environment)
            if checked.status != 0 or checked.all().strip():
                yield f"git fsck of {one.env}: {checked.status} {checked.all()}"


def kill_or_end(scene, process, point):
    """Waits until the server is dead (then true), or the operation has ended and nothing more happens."""
    platform, end = scene.platform, time.monotonic() + UNHURT
    if point == "random":
        time.sleep(scene.random.random() * 3)
        platform.kill("serve")
        return True
    quiet = None
    while platform.alive("serve"):
        if process.poll() is not None and quiet is None:
            # Old replicas are stopped after a push has been answered.
            quiet = time.monotonic() + 4
        if time.monotonic() > min(end, quiet or end):
            return False
        time.sleep(0.02)
    return True


def recover(scene, apps, again):
    """Starts the server until it stays; seconds until everything is as it should be, and whether it was killed once more."""
    platform, twice = scene.platform, False
    if not again:
        scene.disarm()
    while True:
        began = time.monotonic()
        platform.processes.pop("serve", None)
        platform.start("serve", wait=False)
        while True:
            if not platform.alive("serve"):
                if not (again and not twice):
                    raise AssertionError("berth serve ended: " + platform.log("serve").read_text()[-3000:])
                twice = True
                scene.disarm()
                break
            wrong = scene.amiss(apps)
            if not wrong:
                scene.disarm()
                return time.monotonic() - began, twice, []
            if time.monotonic() - began > CONVERGED + 60:
                scene.disarm()
                return time.monotonic() - began, twice, wrong
            time.sleep(0.1)


def one_run(scene, point):
    """One kill; `None` when the server did not come by."""
    operation, times = scene.random.choice(WAYS[point])
    app, at = scene.random.choice(scene.apps), scene.random.randint(1, times) if times else 0
    commit, words = scene.begin(operation, app)
    if at:
        scene.arm(f"{point} {at}")
    process = scene.operate(words)
    killed = kill_or_end(scene, process, point)
    what = f"{point} {at}, {operation} of {app.env}"
    if not killed:
        scene.disarm()
        if process.poll() is None:
            process.kill()
            scene.chaos.fail(f"{what}: it does not end")
        process.communicate()
        eventually(f"{what}, unhurt", lambda: not scene.amiss([app]), CONVERGED + 60)
        return None
    took, twice, wrong = recover(scene, [app], again=scene.random.randrange(AGAIN) == 0)
    try:
        said, _ = process.communicate(timeout=UNHURT)
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[0]
        wrong = [*wrong, "the client was never told"]
    wrong = [*wrong, *scene.check(operation, app, commit, process.returncode, twice)]
    if took > CONVERGED:
        wrong.append(f"converged after {took:.1f} s")
    for text in wrong:
        scene.chaos.fail(f"{what}{', killed twice' if twice else ''}: {text}")
    if wrong:
        say(f"    the client saw ({process.returncode}): {said[-600:]}")
    return took, twice, bool(wrong)


def scenario(chaos):
    scene = Scene(chaos)
    points = chaos.arguments.points.split(",") if chaos.arguments.points else list(WAYS)
    load = Load(scene.platform, scene.apps, rate=15, limit=10 ** 7)
    rows, times, asked_twice = [], [], 0
    wanted = chaos.runs(20)
    try:
        for point in points:
            done, missed, began = [], 0, time.monotonic()
            while len(done) < wanted and missed <= wanted:
                try:
                    outcome = one_run(scene, point)
                except (AssertionError, OSError, ValueError, KeyError) as error:
                    chaos.fail(f"{point}: {type(error).__name__}: {error}")
                    outcome = recover(scene, scene.apps, again=False) if not scene.platform.alive("serve") else (0.0, False, True)
                    scene.disarm()
                    outcome = (outcome[0], False, True)
                if outcome is None:
                    missed += 1
                else:
                    done.append(outcome)
            for text in [*scene.amiss(scene.apps), *scene.check_serving(*scene.apps)]:
                chaos.fail(f"after {point}: {text}")
            took = [seconds for seconds, _, _ in done]
            times += took
            twice = sum(1 for _, again, _ in done if again)
            asked_twice += twice
            failed = sum(1 for _, _, bad in done if bad)
            chaos.check(len(done) >= wanted, f"{point}: only {len(done)} runs came by")
            rows.append([point, len(done), twice, failed, f"{percentile(took, 50):.1f}", f"{max(took, default=0):.1f}", missed,
                         f"{time.monotonic() - began:.0f}"])
            say(f"{point}: {len(done)} runs, {failed} failed, converged p50 {percentile(took, 50):.1f} s, max {max(took, default=0):.1f} s")
    finally:
        load.end()
    failures = collections.Counter(load.failures)
    for failure in list(failures)[:20]:
        chaos.fail(failure)
    table(["point", "runs", "killed twice", "failed", "converged p50 s", "max s", "not reached", "took s"], rows)
    say(load.text())
    chaos.figures |= {
        "runs": len(times), "killed_twice": asked_twice, "converged_p50_s": round(percentile(times, 50), 2),
        "converged_max_s": round(max(times, default=0), 2), "requests": load.asked(), "requests_failed": len(load.failures)}


main(scenario, default_runs=20, arguments=[("--points", {"help": "only these, separated by commas"})])
