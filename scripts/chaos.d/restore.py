#!/usr/bin/env python3
# chaos: back up online, wipe data directory and engine, restore, and see every app answer as before
"""The demo app of scripts/quickstart is deployed as it does, and others beside it (releases, config, a rollback, a second tenant), a backup is taken
while pushes and requests go on and an environment of another app is destroyed and made anew, again and again, everything of the instance is wiped (data directory, containers, networks, volumes, images; it is a failure when
one stays), the backup is restored, and every environment must answer again with the same release and the same config. Before that, restores are
refused or killed in every way that must leave nothing behind."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time

from harness import MARK, ROOT, Platform, eventually, main, run, say, table
from steady_load import Load

# Answers with a config value too.
SERVER = """import http.server, os
class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = ('release ' + os.environ['BERTH_RELEASE'] + ' greeting ' + os.environ.get('GREETING', '-') + ' VERSION' + MARK).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(('', int(os.environ['PORT'])), Page).serve_forever()
""".replace("MARK", MARK)
# Taken while an environment comes and goes.
BACKUPS = 5
FILES = {"server.py": SERVER, "Procfile": "web: python3 server.py\n"}


def demo(platform):
    """What scripts/quickstart pushes, to where it pushes it."""
    fixture = ROOT / "tests/fixtures/hello"
    files = {str(path.relative_to(fixture)): path.read_text() for path in fixture.rglob("*") if path.is_file()}
    app = platform.app("demo/hello", files=files)
    app.mark = "Hello from Berth!"
    pushed = app.push()
    assert pushed.status == 0, pushed.all()
    return app


def deploy(platform, random):
    apps = [platform.app(name, files=FILES) for name in ("acme/shop", "acme/blog", "zoo/site")]
    for app in apps:
        pushed = app.push()
        assert pushed.status == 0, pushed.all()
        platform.ssh("config", "set", app.env, f"GREETING=hello{random.randrange(10**6)}").ok()
    for _ in range(2):
        apps[0].change()
        assert apps[0].push().status == 0
    platform.ssh("rollback", apps[1].env, "v1").ok()
    platform.ssh("scale", apps[2].env, "web=2").ok()
    platform.ssh("promote", apps[0].env, "acme/shop/prod").ok()
    return [*apps, demo(platform)]


def answer_of(app):
    """Without the number of the replica, of which there may be several."""
    status, body = app.get()
    return status, re.sub(r", replica \d+", "", body)


def state(platform, apps):
    """What must be the same afterwards."""
    found = {}
    for app in apps:
        found[app.env] = {
            "answer": answer_of(app),
            "releases": platform.ssh("releases", "list", app.env, "--json").ok().json(),
            "config": platform.ssh("config", "list", app.env, "--json").ok().json(),
            "builds": [(build["number"], build["state"]) for build in platform.builds(app.env)],
            "commit": app.remote_commit(),
        }
    found["acme/shop/prod"] = {"answer": platform.get("shop.acme.localhost")}
    found["keys"] = platform.ssh("keys", "list", "--json").ok().json()
    return found


def images_of(platform):
    """All that the engine has of this instance's registry, by tag or by digest."""
    prefix = f"127.0.0.1:{platform.registry_port}/"
    listed = run(["docker", "images", "-a", "--digests", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}"]).ok().out.splitlines()
    found = [line.split() for line in listed if line.startswith(prefix)]
    return {f"{name}@{digest}" if digest != "<none>" else f"{name}:{tag}" for name, tag, digest in found}


def wipe(chaos, platform):
    """The machine is gone: data directory, and everything of this instance on the engine."""
    for name in list(platform.processes):
        platform.kill(name)
    objects = platform.engine_objects()
    if objects["containers"]:
        run(["docker", "rm", "-f", *objects["containers"]]).ok()
    for kind, ids in (("network", objects["networks"]), ("volume", objects["volumes"])):
        if ids:
            run(["docker", kind, "rm", *ids]).ok()
    images = images_of(platform)
    for image in images:
        removed = run(["docker", "rmi", image])
        chaos.check(removed.status == 0, f"image {image} was not removed: {removed.all()}")
    chaos.check(bool(images), "the engine had no image of this instance: nothing was wiped")
    left = {"images": images_of(platform)} | platform.engine_objects()
    chaos.check(not any(left.values()), f"the engine still has {left}")
    for entry in platform.data.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return sum(map(len, objects.values())), len(images)


def refused_restores(chaos, platform, backup):
    """What is no whole backup, or no empty directory, changes nothing."""
    whole = backup.read_bytes()
    bad = chaos.directory("bad") / "backup"
    turns = 0
    for what, content in [
        ("cut off at half", whole[:len(whole) // 2]),
        ("cut off at its end", whole[:-5]),
        ("a flipped byte", whole[:len(whole) // 3] + bytes([whole[len(whole) // 3] ^ 64]) + whole[len(whole) // 3 + 1:]),
        ("empty", b""),
    ]:
        bad.write_bytes(content)
        done = platform.host("restore", bad)
        chaos.check(done.status != 0, f"a backup that is {what} was restored")
        left = [entry.name for entry in platform.data.iterdir() if entry.name != "lock"]
        chaos.check(not left, f"a refused restore ({what}) left {left}")
        turns += 1
    for _ in range(5):
        process = subprocess.Popen(list(map(str, platform.words("restore", backup))), env=platform.environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chaos.random.uniform(0.02, 1.0))
        process.send_signal(signal.SIGKILL)
        killed = process.wait() != 0
        if killed and (platform.data / "restoring").exists():
            served = platform.host("serve", timeout=30)
            chaos.check(served.status != 0 and "interrupted" in served.all(), f"a killed restore is served: {served.all()[-300:]}")
        elif not killed:
            for entry in platform.data.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        turns += 1
    return turns


def mend(chaos, platform, apps):
    """What a destroyed environment left, a lost repository, a lost branch, a pin of nothing: found, and mended."""
    at = platform.data / "repositories"
    repository = [at / f"{app.env}.git" for app in apps]
    stray = at / "gone/app/dev.git"
    shutil.copytree(repository[0], stray)
    (platform.data / "logs/gone/app/dev").mkdir(parents=True)
    run(["git", f"--git-dir={repository[0]}", "update-ref", "refs/berth/builds/99999", "refs/heads/main"]).ok()
    run(["git", f"--git-dir={repository[1]}", "update-ref", "-d", "refs/heads/main"]).ok()
    shutil.rmtree(repository[2])
    signs = ["repository and logs of gone/app/dev", "refs/berth/builds/99999", f"main of {apps[1].env}", f"repository of {apps[2].env} is missing"]
    found = platform.host("doctor")
    for sign in signs:
        chaos.check(sign in found.out, f"doctor does not say {sign!r}: {found.out}")
    chaos.check(found.status != 0, "doctor is content")
    chaos.check(stray.exists() and not repository[2].exists(), "doctor without --repair changed something")
    mended = platform.host("doctor", "--repair")
    # In the same run: what was repaired, and what only an empty repository has brought to light.
    for sign in ["repaired: make an empty one", f"of {apps[2].env} v", "is not in the repository", "4 repaired, 1 not repaired"]:
        chaos.check(sign in mended.out, f"doctor --repair does not say {sign!r}: {mended.out}")
    again = platform.host("doctor")
    # The branch of the lost repository cannot be made out of nothing: the next push brings it.
    left = [line for line in again.out.splitlines() if line.startswith("FAIL  records") and apps[2].env not in line]
    chaos.check(not left, f"doctor --repair left {left}: {mended.out}")
    chaos.check(not stray.exists() and not (platform.data / "logs/gone/app/dev").exists(), "leftovers are still there")
    chaos.check(apps[1].remote_commit() is not None, "the branch was not made again")
    for app in apps:
        chaos.check(app.get()[0] == 200, f"{app.env} does not answer after a repair")
    return len(signs)


def link_stacks(platform):
    """What scripts/stacks does on a new machine."""
    (platform.data / "stacks").mkdir(exist_ok=True)
    for made in pathlib.Path(os.environ.get("BERTH_STACKS_DIR", ROOT / "target/stacks")).iterdir():
        link = platform.data / "stacks" / made.name
        if made.is_file() and not link.exists():
            link.symlink_to(made)


class Churn(threading.Thread):
    """Destroys an environment, makes it anew and pushes to it, again and again, until `end`."""

    def __init__(self, chaos, app):
        super().__init__(daemon=True)
        self.chaos, self.app, self.stopping = chaos, app, threading.Event()
        # When each destruction began and when it was over.
        self.spans = []
        self.start()

    def run(self):
        app, ssh = self.app, self.app.platform.ssh
        while not self.stopping.is_set():
            began = time.monotonic()
            destroyed = ssh("envs", "destroy", app.env, "--confirm", app.env)
            self.spans.append((began, time.monotonic()))
            made = ssh("envs", "create", app.env)
            pushed = app.push("detach")
            for done in (destroyed, made, pushed):
                self.chaos.check(done.status == 0, f"during the backup: {' '.join(map(str, done.words[-4:]))}: {done.status} {done.all()[-500:]}")

    def end(self):
        self.stopping.set()
        self.join(150)

    def during(self, began, ended):
        """How many destructions were under way at some time in between."""
        return len([None for first, last in self.spans if first < ended and last > began])


def back_up(chaos, platform, apps, other, gone, backup):
    """Backups while requests, a push and destructions go on, each begun at another moment; the last one is kept. Its seconds, and the requests."""
    load, churn, destroyed = Load(platform, apps, rate=20), Churn(chaos, gone), 0
    pushing = other.push_begin()
    try:
        for _ in range(BACKUPS):
            backup.unlink(missing_ok=True)
            time.sleep(chaos.random.uniform(0, 1))
            began = time.monotonic()
            taken = platform.host("backup", "--output", backup)
            ended = time.monotonic()
            chaos.check(taken.status == 0, f"a backup while an environment was destroyed: {taken.status} {taken.all()}")
            destroyed += churn.during(began, ended)
    finally:
        churn.end()
    chaos.check(destroyed > 0, "no environment was destroyed during a backup")
    pushing.communicate(timeout=300)
    load.end()
    chaos.check(not load.failures, f"requests failed during the backup: {load.failures[:3]}")
    if not backup.exists():
        # It is a failure already; the rest is worth seeing.
        platform.host("backup", "--output", backup).ok()
    chaos.figures["destroyed_during_backups"] = chaos.figures.get("destroyed_during_backups", 0) + destroyed
    return ended - began, load.asked()


def churned(platform):
    """An app whose environment is destroyed while a backup is taken."""
    app = platform.app("zoo/churned", files=FILES, manifest="processes: {web: {command: python3 server.py, replicas: 0}}\n")
    assert app.push().status == 0
    return app


def check_backup(chaos, platform, backup):
    """For nobody else to read, never written over, and never restored over a running server."""
    mode = backup.stat().st_mode & 0o777
    chaos.check(mode == 0o600, f"the backup has mode {mode:o}")
    again = platform.host("backup", "--output", backup)
    chaos.check(again.status != 0 and "already" in again.all(), "a backup was written over another")
    not_empty = platform.host("restore", backup)
    chaos.check(not_empty.status != 0, "a restore over a running server")


def bring_back(platform, apps, backup):
    """Seconds of the restore, and until every app answers."""
    began = time.monotonic()
    restored = platform.host("restore", backup, timeout=600).ok()
    restore_seconds = time.monotonic() - began
    say(restored.out.strip())
    link_stacks(platform)
    began = time.monotonic()
    platform.start("router")
    platform.start("serve")
    hosts = [app.host for app in apps] + ["shop.acme.localhost"]

    def answer():
        try:
            return all(platform.get(host)[0] == 200 for host in hosts)
        except OSError:
            return False
    eventually("every app answers again", answer)
    serving_seconds = time.monotonic() - began
    for app in apps:
        eventually(f"{app.env} is settled", lambda: platform.settled(app.env))
    return restore_seconds, serving_seconds


def compare(chaos, platform, apps, before):
    after = state(platform, apps)
    for name, was in before.items():
        if not chaos.check(after[name] == was, f"{name} is not as it was"):
            say(f"    before: {json.dumps(was)[:1500]}\n    after:  {json.dumps(after[name])[:1500]}")
    doctor = platform.host("doctor")
    left = [line for line in doctor.out.splitlines() if line.startswith("FAIL  records")]
    chaos.check(not left, f"doctor finds: {left}")


def check_pushes(chaos, platform, apps, other, gone):
    """The keys are the same: no user's ssh complains, and a push works at once. So does one that the backup had not seen the end of, and one
    to what was destroyed meanwhile, whether the backup has it or not."""
    platform.ssh("envs", "create", gone.env)
    apps[0].change()
    for app in (apps[0], apps[2], other, gone):
        pushed = app.push()
        chaos.check(pushed.status == 0, f"a push to {app.env} after the restore: {pushed.all()[-500:]}")
    for app in (*apps, other, gone):
        path = platform.data / "repositories" / f"{app.env}.git"
        checked = run(["git", f"--git-dir={path}", "fsck", "--full", "--strict"])
        chaos.check(checked.status == 0, f"git fsck of {app.env}: {checked.all()}")


def one(chaos, number):
    platform = Platform(chaos, f"berth{number}").begin()
    apps = deploy(platform, chaos.random)
    other, gone = platform.app("zoo/other", files=FILES), churned(platform)
    backup = platform.directory / "backup.tar.gz"
    before = state(platform, apps)
    backup_seconds, requests = back_up(chaos, platform, apps, other, gone, backup)
    check_backup(chaos, platform, backup)
    objects, images = wipe(chaos, platform)
    refusals = refused_restores(chaos, platform, backup)
    restore_seconds, serving_seconds = bring_back(platform, apps, backup)
    compare(chaos, platform, apps, before)
    mended = mend(chaos, platform, apps)
    check_pushes(chaos, platform, apps, other, gone)
    size = backup.stat().st_size
    platform.stop()
    return backup_seconds, restore_seconds, serving_seconds, size, requests, objects, images, refusals, mended


def scenario(chaos):
    rows = [one(chaos, number) for number in range(chaos.runs(1))]
    say("")
    table(["run", "backup s", "restore s", "until all answer s", "MiB", "requests", "objects wiped", "images wiped", "refused or killed", "mended"],
          [[number + 1, f"{b:.2f}", f"{r:.2f}", f"{s:.2f}", f"{size / 2**20:.1f}", *rest]
           for number, (b, r, s, size, *rest) in enumerate(rows)])
    best = sorted(rows)[len(rows) // 2]
    chaos.figures |= {"backup_s": round(best[0], 2), "restore_s": round(best[1], 2), "serving_s": round(best[2], 2), "bytes": best[3]}


main(scenario)
