#!/usr/bin/env python3
# chaos: cut the power at random moments: the store, and pushed refs, keep what was acknowledged
"""Crash images. A writer works on an ext4 file system in an image file; at a random moment it is stopped and the image is copied, without what
the kernel still has in memory: what a power cut would have left. The copy is mounted, which replays its journal, and compared with the log of
acknowledgements, which is kept elsewhere. Beside the store, two controls in the same run, each on an image of its own and cut at the same
moments: a file that is appended to with fsync must lose nothing either, and one without must lose something, or the cuts prove nothing.
Then the same with pushes: a Berth whose store and repositories are on one such image, cut --pushes times. After each cut, every accepted push has its
branch, its commits and trees, and the record of its build in a store that opens, and no branch is ahead of the records. `berth backup` without a server reads
them, by the store's and git's own ways. Beside it two controls, pushes to a plain repository by git alone: one that syncs, one that does not.
A run is a cut of the store.

The store's writers make transactions of several records, deletes among them (tests/store_crash.rs). From the number of each writer's newest
transaction that is there, all that its keys must hold is known, and all of it is compared: what was acknowledged, all or nothing of each
transaction, nothing that was deleted. The table tells the records compared beside the transactions acknowledged.

What this cannot see: an image counts a write as durable once the kernel has handed it on to the loop device. A disk has a cache of its own, and a
flush of it that is missing would lose data on a machine and loses nothing here."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from crash_image import Image, mount, unmount
from harness import ROOT, eventually, main, run, say, table
from pushed_refs import pushes

# Cuts in one life of a file system.
CUTS_PER_LIFE = 20
CONTROL = """import os, sys, time
path, sync = sys.argv[1], sys.argv[2] == 'fsync'
file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
if sync:
    os.fsync(file)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(directory)
for number in range(10**9):
    os.write(file, b'%015d\\n' % number)
    if sync:
        os.fsync(file)
    else:
        # Without a sync nothing slows it down, and the file system would be full before its last cut.
        time.sleep(0.0005)
    sys.stdout.write('acknowledged %d\\n' % number)
    sys.stdout.flush()
"""


def test_binary():
    """tests/store_crash.rs, built."""
    built = run(["cargo", "test", "--no-run", "--test", "store_crash", "--message-format=json"], timeout=3600, cwd=ROOT).ok()
    for line in built.out.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "store_crash" and message.get("executable"):
            return message["executable"]
    raise AssertionError("no test binary")


class Writer:
    """A process that says on its standard output what it has been promised."""

    def __init__(self, words, **environment):
        self.process = subprocess.Popen(list(map(str, words)), env=dict(os.environ) | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.text = b""

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat")
        eventually("the writer stands still", lambda: stat.read_text().rsplit(")", 1)[1].split()[0] in "TtZ", pause=0.001)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def acknowledged(self):
        """All numbers so far. What is read of a line at its end is not counted."""
        while True:
            try:
                chunk = os.read(self.process.stdout.fileno(), 1 << 20)
            except BlockingIOError:
                break
            if not chunk:
                break
            self.text += chunk
        return [int(number) for number in re.findall(rb"acknowledged (\d+)\n", self.text)]

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Pump(threading.Thread):
    """Keeps the pipes of writers from filling."""

    def __init__(self, writers, lock):
        super().__init__(daemon=True)
        self.writers, self.lock, self.stopping = writers, lock, threading.Event()
        self.start()

    def run(self):
        while not self.stopping.wait(0.005):
            with self.lock:
                for writer in self.writers:
                    writer.acknowledged()


def check_store(binary, work, image, acknowledged):
    """(acknowledged, records compared, wrong ones or None when it does not open, what it said)."""
    at, log = work / "cut", work / "acknowledged"
    log.write_text("".join(f"{number}\n" for number in acknowledged))
    mount(image, at)
    try:
        if not acknowledged and not (at / "store").exists():
            return 0, 0, 0, ""
        checked = run([binary, "--exact", "checker", "--nocapture"], env=dict(os.environ) | {
            "BERTH_TEST_CRASH_CHECK": str(at / "store"), "BERTH_TEST_CRASH_ACKNOWLEDGED": str(log), "RUST_BACKTRACE": "0"})
        found = re.search(r"compared (\d+) transactions (\d+) lost (\d+)", checked.out)
        compared, transactions, lost = map(int, found.groups()) if found else (0, 0, None)
        if lost == 0 and (checked.status != 0 or transactions < len(acknowledged)):
            return len(acknowledged), compared, None, f"only {transactions} transactions were compared of {len(acknowledged)}: {checked.all()}"
        return len(acknowledged), compared, lost, checked.all()
    finally:
        unmount(at)


def check_control(work, image, acknowledged):
    at = work / "cut"
    mount(image, at)
    try:
        path = at / "log"
        text = path.read_bytes() if path.exists() else b""
        there = {int(line) for line in text.split(b"\n") if line.isdigit()}
        return len(acknowledged), len([number for number in acknowledged if number not in there])
    finally:
        unmount(at)


def life(chaos, binary, work, cuts, totals):
    """One life of the three file systems, with so many cuts."""
    images = [Image(work, "store", 256), Image(work, "synced", 64), Image(work, "unsynced", 64)]
    for image in images:
        chaos.finally_do(image.close)
    store, synced, unsynced = images
    writers = [
        Writer([binary, "--exact", "writer", "--nocapture"], BERTH_TEST_CRASH_DIRECTORY=str(store.at / "store")),
        Writer(["python3", "-c", CONTROL, synced.at / "log", "fsync"]),
        Writer(["python3", "-c", CONTROL, unsynced.at / "log", "none"]),
    ]
    for writer in writers:
        chaos.finally_do(writer.end)
    lock = threading.Lock()
    pump = Pump(writers, lock)
    try:
        for _ in range(cuts):
            time.sleep(chaos.random.expovariate(8))
            with lock:
                for writer in writers:
                    writer.stop()
                numbers = [writer.acknowledged() for writer in writers]
                copies = [work / f"cut-{image.at.name}.img" for image in images]
                for image, copy in zip(images, copies):
                    image.cut(copy)
                for writer in writers:
                    chaos.check(writer.process.poll() is None, "a writer has ended by itself")
                    writer.go_on()
            count, compared, lost, said = check_store(binary, work, copies[0], numbers[0])
            totals["store"][0] += 1
            totals["store"][1] += count
            totals["store"][2] += compared
            if lost is None:
                totals["store"][4] += 1
                chaos.fail(f"the store does not open, or is not what was compared: {said[-1500:]}")
            elif lost:
                totals["store"][3] += lost
                chaos.fail(f"{lost} of {compared} records are wrong after {count} acknowledged transactions: {said[-800:]}")
            for name, copy, acknowledged in zip(("append+fsync", "append alone"), copies[1:], numbers[1:]):
                count, lost = check_control(work, copy, acknowledged)
                totals[name][0] += 1
                totals[name][1] += count
                totals[name][2] += count
                totals[name][3] += lost
            for copy in copies:
                copy.unlink()
    finally:
        pump.stopping.set()
        pump.join()
        for writer in writers:
            writer.end()
        for image in images:
            image.close()
    del chaos.cleanups[-6:]


def scenario(chaos):
    # In memory: what counts is which writes have left the file system, not how fast a disk is.
    shared = pathlib.Path("/dev/shm")
    work = pathlib.Path(tempfile.mkdtemp(prefix="berth-power-loss.", dir=shared if shared.is_dir() else chaos.work))
    chaos.finally_do(lambda: shutil.rmtree(work, ignore_errors=True))
    chaos.finally_do(lambda: unmount(work / "cut"))
    rows = stores(chaos, work) if "store" in chaos.arguments.only else []
    rows += pushes(chaos, work, chaos.arguments.pushes) if "pushes" in chaos.arguments.only else []
    say("")
    table(["what", "cuts", "acknowledged (summed over cuts)", "records compared", "wrong or lost", "did not open"], rows)


def stores(chaos, work):
    """The rows of the table."""
    binary, left = test_binary(), chaos.runs(200)
    totals = {name: [0, 0, 0, 0, 0] for name in ("store", "append+fsync", "append alone")}
    while left > 0:
        cuts = min(left, CUTS_PER_LIFE)
        life(chaos, binary, work, cuts, totals)
        left -= cuts
        say(f"{totals['store'][0]} cuts, {totals['store'][1]} acknowledged, {totals['store'][2]} records compared, {totals['store'][3]} lost")
    chaos.check(totals["append+fsync"][3] == 0, "the control with fsync lost something: the images are not what a power cut leaves")
    chaos.check(totals["append alone"][3] > 0, "the control without fsync lost nothing: the cuts prove nothing")
    chaos.check(totals["store"][1] == 0 or totals["store"][2] > 0, "no record of the store was compared")
    chaos.figures |= {"runs": totals["store"][0], "acknowledged": totals["store"][1], "compared": totals["store"][2], "lost": totals["store"][3],
                      "control_fsync_lost": totals["append+fsync"][3], "control_none_lost": totals["append alone"][3]}
    return [[name, *values] for name, values in totals.items()]


main(scenario, default_runs=200, arguments=[
    ("--pushes", {"type": int, "default": 200, "help": "cuts of store and repositories under pushes"}),
    ("--only", {"nargs": "*", "choices": ["store", "pushes"], "default": ["store", "pushes"], "help": "only these parts"})])
