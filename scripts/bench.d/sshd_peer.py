"""The peer of `scripts/bench load`: OpenSSH's sshd, which scripts/bench.d/common.sh starts, and git."""

import concurrent.futures
import time

from harness import run


def peer_at_once(bench, ssh_config):
    """The same pushes to OpenSSH's sshd and git, with the settings that Berth gives to receive-pack."""
    directory = bench.platform.directory / "peer"
    settings = {"receive.fsckObjects": "true", "receive.autogc": "false", "gc.auto": "0", "receive.unpackLimit": "1",
                "core.fsync": "all", "core.fsyncMethod": "fsync"}
    bare = directory / "0.git"
    run(["git", "init", "-q", "--bare", bare], env=bench.platform.git_environment).ok()
    for key, value in settings.items():
        run(["git", "-C", bare, "config", key, value]).ok()
    for env in bench.environments[1:]:
        run(["cp", "-r", bare, directory / f"{env.number}.git"]).ok()
    environment = bench.platform.git_environment | {"GIT_SSH_COMMAND": f"ssh -F {ssh_config}"}

    def push(env):
        words = ["git", "-C", bench.repository.path, "push", "-q", f"peer:{directory}/{env.number}.git", f"refs/heads/first{env.number}:refs/heads/main"]
        return run(words, env=environment, timeout=600).ok().seconds

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(bench.environments)) as pool:
        times = list(pool.map(push, bench.environments))
    return time.monotonic() - began, times
