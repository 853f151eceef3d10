"""Cuts under pushes, for scripts/chaos power-loss: what was accepted has its branch, its commits and its build."""

import json
import os
import re
import shutil
import tarfile
import threading
import time

from crash_image import Image, go_on, mount, stand_still, unmount
from harness import ROOT, Platform, eventually, run, say

# After so many cuts a line says how far it is.
TELL = 20


class Pusher(threading.Thread):
    """Pushes to one app, again and again, and notes what was accepted."""

    def __init__(self, app):
        super().__init__(daemon=True)
        self.app, self.accepted, self.refused, self.stopping = app, [], 0, threading.Event()
        self.commits = []
        self.start()

    def run(self):
        while not self.stopping.is_set():
            commit = self.app.change()
            self.commits.append(commit)
            pushed = self.app.push("detach", "supersede", timeout=120)
            queued = re.search(r"Queued as build (\d+)", pushed.all())
            if pushed.status == 0 and queued:
                self.accepted.append((commit, int(queued[1])))
            else:
                self.refused += 1

    def end(self):
        self.stopping.set()
        self.join(150)


class Plain(threading.Thread):
    """The control: pushes to a plain repository on an image of its own, by git alone. `synced`: with all of git's fsync, and one of the
    branch's directory before a push counts as accepted: git itself does not sync the rename that moves a branch."""

    def __init__(self, chaos, work, name, synced):
        super().__init__(daemon=True)
        self.synced = synced
        self.image, self.local = Image(work, name, 256), chaos.directory(f"local-{name}")
        chaos.finally_do(self.image.close)
        self.environment = dict(os.environ) | {"GIT_CONFIG_GLOBAL": "/dev/null"} | {
            f"GIT_{who}_{what}": "c@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        run(["git", "init", "-q", "--bare", self.image.at / "plain.git"], env=self.environment).ok()
        run(["git", "init", "-q", "-b", "main", self.local], env=self.environment).ok()
        # As Berth has receive-pack do it.
        for key, value in {"core.fsync": "all" if synced else "none", "core.fsyncMethod": "fsync", "receive.unpackLimit": "1", "receive.autogc": "false"}.items():
            run(["git", "-C", self.image.at / "plain.git", "config", key, value]).ok()
        # Held while a push is under way, and while the image is cut.
        self.turn, self.accepted, self.stopping = threading.Lock(), [], threading.Event()
        # The empty repository is there before the first cut.
        os.sync()
        chaos.finally_do(self.end)
        self.start()

    def git(self, *words):
        return run(["git", "-C", self.local, *words], env=self.environment).ok()

    def run(self):
        # About as often as somebody pushes to Berth: each push is a pack, and thousands of them would make every look at a cut slow.
        while not self.stopping.wait(0.3):
            with self.turn:
                self.git("commit", "-q", "--allow-empty", "-m", str(len(self.accepted)))
                commit = self.git("rev-parse", "HEAD").out.strip()
                self.git("push", "-q", self.image.at / "plain.git", "main")
                if self.synced:
                    sync_directory(self.image.at / "plain.git/refs/heads")
                self.accepted.append(commit)

    def check(self, work):
        """(accepted, lost) in the copy; a reference that cannot be read has lost all."""
        copy, at = work / f"cut-{self.image.at.name}.img", work / "cut"
        mount(copy, at)
        try:
            git = ["git", f"--git-dir={at / 'plain.git'}", "-c", "safe.directory=*"]
            tip = run([*git, "rev-parse", "--verify", "refs/heads/main^{tree}"])
            there = run([*git, "rev-list", "refs/heads/main"]) if tip.status == 0 else tip
            kept = set(there.out.split()) if there.status == 0 else set()
            return len(self.copied), len([commit for commit in self.copied if commit not in kept])
        finally:
            unmount(at)
            copy.unlink()

    def cut(self, work):
        """While `turn` is held."""
        self.copied = list(self.accepted)
        self.image.cut(work / f"cut-{self.image.at.name}.img")

    def end(self):
        self.stopping.set()
        self.join(30)


def sync_directory(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Pushes:
    """A platform whose store and repositories are on one image, who pushes to it, and what came of each cut."""

    def __init__(self, chaos, work):
        self.chaos, self.work, self.at = chaos, work, work / "cut"
        # [cuts, acknowledged, compared, lost, did not open]
        self.totals, self.slowest = [0, 0, 0, 0, 0], 0.0
        self.pushers, self.controls = [], {}
        data = chaos.directory("berth") / "data"
        self.image = self.mount_parts(data)
        # A collection takes no build away meanwhile: every one is looked for.
        settings = {"BERTH__BUILDS__CONCURRENCY": "1", "BERTH__DISK__MIN_FREE": "1Mi", "BERTH__LOGS__BUILDS": "100000"}
        self.platform = Platform(chaos, settings=settings, data=data).begin()
        manifest = "processes: {web: {command: python3 server.py, replicas: 0}}\n"
        chaos.finally_do(self.end)
        for name in ("acme/one", "acme/two"):
            self.pushers.append(Pusher(self.platform.app(name, manifest=manifest)))
        self.controls["git push, synced"] = Plain(chaos, work, "git-synced", synced=True)
        self.controls["git push, not synced"] = Plain(chaos, work, "git-unsynced", synced=False)
        self.control_totals = {name: [0, 0, 0, 0, 0] for name in self.controls}

    def mount_parts(self, data):
        """One file system for both, so that a cut leaves both as they were at the same moment."""
        image = Image(self.work, "berth", 768)
        self.chaos.finally_do(image.close)
        for name in ("store", "repositories"):
            (image.at / name).mkdir()
            (data / name).mkdir(parents=True)
            run(["mount", "--bind", image.at / name, data / name]).ok()
            self.chaos.finally_do(lambda at=data / name: unmount(at))
        return image

    def end(self):
        for pusher in (*self.pushers, *self.controls.values()):
            pusher.end()

    def cut(self):
        pid, copy = self.platform.processes["serve"].pid, self.work / "cut-berth.img"
        try:
            stand_still(pid)
            accepted = [(pusher, list(pusher.accepted)) for pusher in self.pushers]
            self.image.cut(copy)
        finally:
            go_on(pid)
        for control in self.controls.values():
            with control.turn:
                control.cut(self.work)
        for name, control in self.controls.items():
            count, lost = control.check(self.work)
            for place, value in enumerate((1, count, count, lost)):
                self.control_totals[name][place] += value
        mount(copy, self.at)
        try:
            self.totals[0] += 1
            for pusher, pushed in accepted:
                self.check_repository(pusher, pushed)
            self.check_records(accepted)
        finally:
            unmount(self.at)
            copy.unlink()

    def lose(self, env, wrong):
        self.totals[3] += len(wrong)
        if wrong:
            self.chaos.fail(f"{env}: {len(wrong)} lost, as: {'; '.join(wrong[:3])}")

    def git(self, pusher):
        return ["git", f"--git-dir={self.at / 'repositories' / (pusher.app.env + '.git')}", "-c", "safe.directory=*"]

    def check_repository(self, pusher, pushed):
        """The branch is at what was accepted last, or later; all that was accepted is there, with its trees; and git likes it."""
        git, commits = self.git(pusher), [commit for commit, _ in pushed]
        self.totals[1] += len(commits)
        tip = run([*git, "rev-parse", "--verify", "refs/heads/main"])
        # A later push may have come to the disk without having been answered.
        order = pusher.commits
        where = order.index(tip.out.strip()) if tip.out.strip() in order else -1
        if commits and where < order.index(commits[-1]):
            self.lose(pusher.app.env, [f"main is at {tip.all().strip()}, and {commits[-1]} was accepted"])
        checked = run([*git, "fsck", "--full", "--strict"])
        self.chaos.check(checked.status == 0, f"git fsck of {pusher.app.env}: {checked.all()[-500:]}")
        # With the trees; `missing` is what is not there.
        wanted = "".join(f"{commit}^{{tree}}\n" for commit in commits)
        found = run([*git, "cat-file", "--batch-check"], stdin=wanted).ok().out.splitlines()
        self.totals[2] += len(commits)
        self.lose(pusher.app.env, [f"commit {commit} is not there" for commit, line in zip(commits, found, strict=True) if line.endswith("missing")])

    def check_records(self, accepted):
        """The store opens, each accepted push has its build there, and so has each branch: it moves after its build was recorded."""
        began = time.monotonic()
        builds = self.builds()
        self.slowest = max(self.slowest, time.monotonic() - began)
        if builds is None:
            self.totals[4] += 1
            return
        for pusher, pushed in accepted:
            env = pusher.app.env
            wrong = [f"{commit} was accepted as build {number}, of which the record says {builds.get((env, number))}"
                     for commit, number in pushed if builds.get((env, number)) != commit]
            self.lose(env, wrong)
            tip = run([*self.git(pusher), "rev-parse", "--verify", "-q", "refs/heads/main"]).out.strip()
            known = not tip or tip in {commit for (of, _), commit in builds.items() if of == env}
            self.chaos.check(known, f"{env}: main is at {tip}, of which there is no build")

    def builds(self):
        """{(environment, number): commit} of what the cut has left, which becomes a data directory; `None` when it does not open."""
        shutil.copy(self.platform.data / "instance", self.at)
        shutil.copytree(self.platform.data / "keys", self.at / "keys")
        backup = self.work / "backup.tar.gz"
        words = [self.platform.berth, "backup", "--output", backup, "--data-dir", self.at, "--config", ROOT / "config/berth.yaml"]
        done = run(words, env=dict(os.environ) | {"BERTH__REGISTRY__MANAGED": "false"})
        if done.status != 0:
            self.chaos.fail(f"store and repositories cannot be read: {done.all()[-1500:]}")
            return None
        try:
            with tarfile.open(backup) as archive:
                pieces = sorted((name for name in archive.getnames() if name.startswith("store/")), key=lambda name: int(name.split("/")[1]))
                lines = b"".join(archive.extractfile(name).read() for name in pieces).splitlines()[1:]
        finally:
            backup.unlink()
        records = [line for line in map(json.loads, lines) if line["key"].startswith("build/")]
        return {(one["value"]["env"], one["value"]["number"]): one["value"]["commit"] for one in records}


def pushes(chaos, work, cuts):
    """The rows of the table."""
    scene, began = Pushes(chaos, work), time.monotonic()
    try:
        eventually("the first pushes are accepted", lambda: all(pusher.accepted for pusher in scene.pushers), 300)
        for turn in range(cuts):
            time.sleep(chaos.random.uniform(0.1, 0.9))
            scene.cut()
            if (turn + 1) % TELL == 0:
                say(f"{turn + 1} cuts, {sum(len(pusher.accepted) for pusher in scene.pushers)} pushes accepted, {scene.totals[3]} lost, "
                    f"{time.monotonic() - began:.0f} s, of these up to {scene.slowest:.1f} s to read what is left")
    finally:
        scene.end()
    accepted = sum(len(pusher.accepted) for pusher in scene.pushers)
    chaos.check(all(len(pusher.accepted) > 3 for pusher in scene.pushers), "too few pushes were accepted to prove anything")
    synced, unsynced = (total[3] for total in scene.control_totals.values())
    chaos.check(synced == 0, f"git with fsync has lost {synced} pushes: the images are not what a power cut leaves")
    chaos.check(unsynced > 0, "git without fsync has lost nothing: the cuts prove nothing")
    chaos.figures.setdefault("runs", cuts)
    chaos.figures |= {"push_cuts": cuts, "pushes_accepted": accepted, "pushes_lost": scene.totals[3], "push_control_fsync_lost": synced,
                      "push_control_none_lost": unsynced, "push_s": round(time.monotonic() - began)}
    return [["pushes to Berth", *scene.totals], *([name, *total] for name, total in scene.control_totals.items())]
