"""What a power cut would have left: a file system in an image file, and processes that stand still while it is copied."""

import os
import pathlib
import signal
import time

from harness import DEADLINE, run


class Image:
    """A file system in a file, mounted; what it makes goes with `close`."""

    def __init__(self, directory, name, megabytes, at=None):
        self.path, self.at = directory / f"{name}.img", at or directory / name
        with open(self.path, "wb") as file:
            file.truncate(megabytes << 20)
        run(["mkfs.ext4", "-q", "-F", "-m", "0", self.path]).ok()
        mount(self.path, self.at)

    def cut(self, to):
        run(["cp", "--sparse=always", self.path, to]).ok()

    def close(self):
        unmount(self.at)
        self.path.unlink(missing_ok=True)


def mount(image, at):
    at.mkdir(parents=True, exist_ok=True)
    run(["mount", "-o", "loop", image, at]).ok()


def unmount(at):
    if os.path.ismount(at):
        done = run(["umount", at])
        if done.status != 0:
            run(["umount", "-l", at])


def descendants(pid):
    """A process and all below it, from /proc."""
    children = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def stand_still(pid):
    """Stops a process and all below it; returns when none of them runs any more."""
    end = time.monotonic() + DEADLINE
    while True:
        running = [one for one in descendants(pid) if state_of(one) not in "TtZX"]
        if not running:
            return
        if time.monotonic() > end:
            raise AssertionError(f"processes {running} do not stand still")
        # What has been told before may be in the middle of a write, and may have had a child before it was.
        signal_each(running, signal.SIGSTOP)
        time.sleep(0.001)


def go_on(pid):
    # Those below may have been started by one that goes on already: they run then.
    signal_each(descendants(pid), signal.SIGCONT)


def signal_each(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def state_of(pid):
    """proc(5), `stat`; X when it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "X"
