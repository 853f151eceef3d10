"""How much memory the control plane takes while `scripts/bench load` pushes."""

import pathlib
import threading

MIB = 1 << 20
# By so much `berth serve` may grow.
GROWTH = 64 * MIB


def mib(size):
    return f"{size / MIB:.1f}"


HEADS = ["serve MiB before", "peak", "after", "git peak (processes)"]


class Memory:
    """The most resident memory that `berth serve` had during a part, by the kernel's own account (VmHWM, set back at the beginning), and that of the
    git processes below it, sampled. `end` gives the report."""

    # {process: its resident bytes when its first part began}
    first = {}

    def __init__(self, platform):
        self.platform, self.serve = platform, platform.processes["serve"].pid
        self.before, self.peak, self.git_peak, self.git_most = platform.memory(), 0, 0, 0
        self.first.setdefault(self.serve, self.before)
        # proc(5): sets the peak back to what is resident now.
        pathlib.Path(f"/proc/{self.serve}/clear_refs").write_text("5")
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        while not self.stopping.wait(0.1):
            # Everything is being taken down when it is gone.
            if not self.platform.alive("serve"):
                return
            sizes = self._git()
            self.git_peak, self.git_most = max(self.git_peak, sum(sizes)), max(self.git_most, len(sizes))

    def _git(self):
        """Resident bytes of every git process and hook that `berth serve` has started."""
        parents, names, sizes = {}, {}, {}
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
                except (OSError, IndexError):
                    continue
                words = rest.split()
                parents[int(entry.name)], names[int(entry.name)], sizes[int(entry.name)] = int(words[1]), name, int(words[21]) * 4096
        found = []
        for pid, name in names.items():
            above = parents[pid]
            while above > 1 and above != self.serve:
                above = parents.get(above, 0)
            if above == self.serve and (name.startswith("git") or name in ("pre-receive", "berth")):
                found.append(sizes[pid])
        return found

    def end(self, chaos, what):
        """The bound holds in every part, and over all parts that one process has lived through."""
        self.stopping.set()
        self.thread.join()
        self.peak, self.after = self.platform.memory(what="VmHWM"), self.platform.memory()
        self.growth, whole = max(0, self.peak - self.before), max(0, self.peak - self.first[self.serve])
        chaos.check(self.growth <= GROWTH, f"{what}: berth serve grew by {mib(self.growth)} MiB")
        chaos.check(whole <= GROWTH, f"{what}: berth serve has grown by {mib(whole)} MiB since its first part")
        for key, value in (("growth_max_mib", self.growth), ("growth_whole_mib", whole)):
            chaos.figures[key] = max(chaos.figures.get(key, 0), round(value / MIB, 1))
        return self

    def row(self):
        return [mib(self.before), mib(self.peak), mib(self.after), f"{mib(self.git_peak)} ({self.git_most})"]
