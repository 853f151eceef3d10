"""What `scripts/bench load` pushes, and what is told to whoever pushes."""

import re
import subprocess
import time

from harness import run

NOBODY = "b <b@localhost> 1700000000 +0000"
# Why git refuses by itself. It says `rejected` whatever the reason is.
GITS_REASONS = ("fetch first", "non-fast-forward", "Everything up-to-date")


class Push:
    """One `git push`, and what came of it."""

    def __init__(self, env, commit, finished):
        self.env, self.commit, self.seconds, self.text = env, commit, finished.seconds, finished.all()
        self.ended = time.monotonic()
        self.began = self.ended - self.seconds
        self.accepted = finished.status == 0
        found = re.search(r"Queued as build (\d+)", self.text)
        self.build = int(found[1]) if found else None
        refused = re.search(r"!     (.*)", self.text)
        self.reason = refused[1].strip() if refused else None

    def told(self):
        """Whether its end says why: by Berth's reason, or by one of git's own."""
        return self.accepted or self.reason is not None or any(reason in self.text for reason in GITS_REASONS)


class Repository:
    """One repository with every commit that is pushed; a branch for each."""

    def __init__(self, platform, random):
        self.path, self.platform, self.random = platform.directory / "repository", platform, random
        run(["git", "init", "-q", "--bare", self.path], env=platform.git_environment).ok()

    def git(self, *words, **options):
        return run(["git", "-C", self.path, *words], env=self.platform.git_environment, **options)

    def make(self, branches):
        """`branches`: [(name, parent branch or None, {file: text})], in one stream (git-fast-import(1))."""
        stream = []
        for name, parent, files in branches:
            stream.append(f"commit refs/heads/{name}\ncommitter {NOBODY}\ndata {len(name)}\n{name}\n")
            if parent:
                stream.append(f"from refs/heads/{parent}\n")
            for path, text in files.items():
                stream.append(f"M 100644 inline {path}\ndata {len(text.encode())}\n{text}\n")
        self.git("fast-import", "--quiet", "--force", stdin="".join(stream)).ok()

    def commit(self, branch):
        return self.git("rev-parse", f"refs/heads/{branch}").ok().out.strip()

    def push(self, env, branch, *options, timeout=600, force=False):
        words = [word for option in options for word in ("-o", option)]
        refspec = f"{'+' if force else ''}refs/heads/{branch}:refs/heads/main"
        return Push(env, branch, self.git("push", *words, env.remote, refspec, timeout=timeout))

    def make_blob(self, branch, megabytes):
        """A commit with one file of random bytes, the same for the same seed."""
        made = subprocess.Popen(["git", "-C", self.path, "fast-import", "--quiet", "--force"], stdin=subprocess.PIPE, env=self.platform.git_environment)
        made.stdin.write(f"commit refs/heads/{branch}\ncommitter {NOBODY}\ndata 4\nblob\nM 100644 inline blob.bin\ndata {megabytes * 1_000_000}\n".encode())
        try:
            for _ in range(megabytes):
                made.stdin.write(self.random.randbytes(1_000_000))
            made.stdin.close()
        except BaseException:
            made.kill()
            raise
        finally:
            status = made.wait()
        if status != 0:
            raise AssertionError("the blob could not be made")
