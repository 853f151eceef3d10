"""What `scripts/bench load` does: pushes at once and one after another, one that is huge, one of many refs; what each is told, and memory.

The apps are tiny and scaled to 0, but for every tenth: what is measured is the way of a push, and a replica more would only measure the
engine. Users come from addresses of their own (127.1.0.N), as they would.

A failure: a push that ends without a reason, a build without an end, an accepted push whose build is another's, fails or is out of the order of
acceptance, in its number, its release or in what is served; a control plane that grows by more than GROWTH in any part, or since it was started; a large
push or one of many refs that is taken or refused otherwise than it should be, or leaves something behind; an `ls-remote` of LS_REMOTE or longer.
"""

import concurrent.futures
import pathlib
import re
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "chaos.d"))
from harness import SERVER, Platform, eventually, main, percentile, run, say, table
from memory import HEADS, MIB, Memory, mib
from pushing import Repository
from sshd_peer import peer_at_once

TENANTS, APPS, ENVIRONMENTS = 20, 5, ("dev", "prod")
ONE = 50
TRIES = 12
REFS = 20_000
LS_REMOTE = 5.0
WIDE_QUEUE = {"BERTH__BUILDS__QUEUE": "500", "BERTH__BUILDS__QUEUE_PER_TENANT": "500"}


class Environment:
    def __init__(self, number, name, user):
        self.number, self.name, self.user = number, name, user
        self.remote = f"ssh://{user}/{name}"
        self.replicas = 1 if number % 10 == 0 else 0


class Served:
    """Asks an app for its version again and again; `seen`: what it answered, each time that it was something else than before."""

    def __init__(self, ask):
        self.ask, self.seen, self.stopping = ask, [], threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        while not self.stopping.wait(0.05):
            found = self.ask()
            if found and (not self.seen or self.seen[-1] != found):
                self.seen.append(found)

    def end(self):
        self.stopping.set()
        self.thread.join(30)
        return self.seen


class Bench:
    def __init__(self, chaos):
        self.chaos = chaos
        self.platform = Platform(chaos, settings=dict(WIDE_QUEUE))
        self.platform.begin()
        self.repository = Repository(self.platform, chaos.random)
        self.environments = self._tenants()

    def _tenants(self):
        """Users with keys and addresses of their own, each the owner of a tenant with apps."""
        platform, hosts, found = self.platform, [], []
        for tenant in range(TENANTS):
            user, key = f"user{tenant}", platform.directory / f"key{tenant}"
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key]).ok()
            platform.host("upload-key", user, stdin=key.with_suffix(".pub").read_text()).ok()
            hosts.append(f"Host {user}\n  BindAddress 127.1.0.{tenant + 1}\n  IdentityFile {key}\n  HostName 127.0.0.1\n"
                         f"  Port {platform.ssh_port}\n  User berth\n  IdentitiesOnly yes\n  IdentityAgent none\n  BatchMode yes\n"
                         f"  LogLevel ERROR\n  StrictHostKeyChecking accept-new\n  UserKnownHostsFile {platform.directory}/known_hosts\n")
            platform.ssh("tenants", "create", f"t{tenant}", "--owner", user).ok()
            for app in range(APPS):
                platform.ssh("apps", "create", f"t{tenant}/app{app}").ok()
                found += [Environment(0, f"t{tenant}/app{app}/{env}", user) for env in ENVIRONMENTS]
        config = platform.directory / "ssh_config"
        config.write_text("".join(hosts) + config.read_text())
        return [Environment(number, env.name, env.user) for number, env in enumerate(found)]

    def restart(self, settings):
        self.platform.kill("serve", how=15)
        for name in [*WIDE_QUEUE, "BERTH__GIT__MAX_INPUT_SIZE"]:
            self.platform.environment.pop(name, None)
        self.platform.environment |= settings
        self.platform.start("serve")

    def files(self, version, replicas=0):
        return {"server.py": SERVER.replace("VERSION", f"version {version}"),
                "berth.yaml": f"processes: {{web: {{command: python3 server.py, replicas: {replicas}}}}}\n",
                "Procfile": "web: python3 server.py\n"}

    def builds(self, env):
        return self.platform.builds(env.name)

    def await_terminal(self, environments, deadline=900):
        """Seconds until no build of these is queued or running, and all builds by environment."""
        began, found = time.monotonic(), {}
        for env in environments:
            def ended():
                found[env.name] = self.builds(env)
                return all(is_final(build) for build in found[env.name])
            eventually(f"the builds of {env.name} end", ended, deadline, pause=0.5)
        return time.monotonic() - began, found

    def at_once(self, branch_of, force=False):
        with concurrent.futures.ThreadPoolExecutor(len(self.environments)) as pool:
            return list(pool.map(lambda env: self.repository.push(env, branch_of(env), "detach", force=force), self.environments))

    # -- the parts

    def concurrent(self, peer):
        """Every environment gets a push at the same moment; the queue is wide enough."""
        chaos = self.chaos
        self.repository.make([(f"first{env.number}", None, self.files(env.number, env.replicas)) for env in self.environments])
        memory, began = Memory(self.platform), time.monotonic()
        pushes = self.at_once(lambda env: f"first{env.number}")
        accepted = time.monotonic() - began
        _, builds = self.await_terminal(self.environments)
        terminal = time.monotonic() - began
        memory.end(chaos, f"{len(pushes)} pushes at once")
        for push in pushes:
            chaos.check(push.accepted and push.build == 1, f"the push to {push.env.name} was not queued: {push.text}")
        states = count(state_of(build) for found in builds.values() for build in found)
        chaos.check(states == {"succeeded": len(pushes)}, f"builds ended as {states}")
        for env in [env for env in self.environments if env.replicas][:3]:
            eventually(f"{env.name} answers", lambda: self.answers(env) == f"version {env.number}", 60)
        times = [push.seconds for push in pushes]
        theirs = peer_at_once(self, peer) if peer else None
        say(f"\n{len(pushes)} pushes at once to {len(pushes)} environments of {TENANTS} tenants (detached; queue widened; a tenth of the apps with a replica, the rest with 0)")
        heads = ["", "accepted", "p50 s", "p99 s", "max s", "all accepted s", "all terminal s", "builds/min"]
        rows = [["Berth", sum(push.accepted for push in pushes), *latencies(times), f"{accepted:.1f}", f"{terminal:.1f}", f"{len(pushes) * 60 / terminal:.0f}"]]
        if theirs:
            rows.append(["sshd and git", len(theirs[1]), *latencies(theirs[1]), f"{theirs[0]:.1f}", "", ""])
        table(heads, rows)
        table(HEADS, [memory.row()])
        chaos.figures |= {"ours": round(accepted, 2), "peer": round(theirs[0], 2) if theirs else None,
                          "ratio": round(accepted / theirs[0], 3) if theirs else None, "unit": "s until 200 pushes are accepted",
                          "p50_s": round(percentile(times, 50), 2), "p99_s": round(percentile(times, 99), 2),
                          "terminal_s": round(terminal, 1), "builds_per_minute": round(len(pushes) * 60 / terminal),
                          "memory_growth_mib": round(memory.growth / MIB, 1)}

    def answers(self, env):
        tenant, app, name = env.name.split("/")
        host = f"{app}.{tenant}.localhost" if name == "prod" else f"{name}.{app}.{tenant}.localhost"
        try:
            status, body = self.platform.get(host)
        except OSError:
            return None
        return body.split(" ", 2)[2].removesuffix(f" of {env.name}") if status == 200 else None

    def one(self):
        """Pushes to one environment, four at a time, by force and of commits that have nothing to do with each other, so that git orders nothing;
        every fifth one supersedes. Who is refused since somebody else was faster, or since a build is under way, tries again some times."""
        chaos, env = self.chaos, self.environments[0]
        names = [f"one{number}" for number in range(ONE)]
        self.repository.make([(name, None, self.files(name, 1)) for name in names])
        commits, memory, began = {self.repository.commit(name): name for name in names}, Memory(self.platform), time.monotonic()
        served = Served(lambda: self.answers(env))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            options = [("detach", "supersede") if number % 5 == 4 else ("detach",) for number in range(ONE)]
            pushes = [push for tries in pool.map(lambda name, option: self.insist(env, name, *option), names, options) for push in tries]
        _, builds = self.await_terminal([env])
        terminal = time.monotonic() - began
        memory.end(chaos, f"{ONE} pushes to one environment")
        builds = sorted((build for build in builds[env.name] if build["commit"] in commits), key=lambda build: build["number"])
        accepted = [push for push in pushes if push.accepted and push.build]
        for push in pushes:
            chaos.check(push.told(), f"a push to {env.name} ended without a reason: {push.text}")
        # Otherwise there is no order worth looking at.
        chaos.check(len(accepted) >= ONE // 4, f"only {len(accepted)} of {ONE} commits were accepted")
        self.check_order(env, accepted, builds, commits)
        last = builds[-1]
        branch = self.repository.git("ls-remote", env.remote, "refs/heads/main").ok().out.split()[0]
        chaos.check(state_of(last) == "succeeded", f"the last accepted push ended as {last['state']}")
        chaos.check(branch == last["commit"], f"the branch is at {branch}, the last accepted push at {last['commit']}")
        eventually("the last accepted push is live", lambda: self.answers(env) == f"version {commits[last['commit']]}", 60)
        self.check_served(env, served.end(), builds, commits)
        say(f"\n{ONE} pushes to one environment, four at a time, by force, every fifth one with -o supersede, {TRIES} tries at the most")
        table(["accepted", "refused", "tries refused", "p50 s", "p99 s", "max s", "all terminal s", "versions seen"],
              [[len(accepted), ONE - len(accepted), len(pushes) - len(accepted), *latencies([push.seconds for push in pushes]), f"{terminal:.1f}", len(served.seen)]])
        tell_reasons(pushes)
        say("  builds: " + ", ".join(f"{number} {state}" for state, number in sorted(count(map(state_of, builds)).items())))
        table(HEADS, [memory.row()])
        chaos.figures |= {"one_accepted": len(accepted), "one_refused": ONE - len(accepted)}

    def insist(self, env, name, *options):
        """Every try at a push, the last of which may have been accepted."""
        tries = []
        while len(tries) < TRIES and not (tries and tries[-1].accepted):
            tries.append(self.repository.push(env, name, *options, force=True))
        return tries

    def check_order(self, env, accepted, builds, commits):
        """A push that had been accepted before another one began has the smaller number, and what was deployed has its releases in that order."""
        chaos = self.chaos
        made = {build["number"]: commits[build["commit"]] for build in builds}
        chaos.check({push.build: push.commit for push in accepted} == made, f"the builds {made} are not those of the accepted pushes")
        pairs = [(one, two) for one in accepted for two in accepted if one.ended < two.began]
        chaos.check(bool(pairs), "no push began after another one was accepted: there is no order to be seen")
        for one, two in pairs:
            chaos.check(one.build < two.build, f"{one.commit} was accepted before {two.commit} was pushed, and their builds are {one.build} and {two.build}")
        moments = [build["queued_at"] for build in builds]
        chaos.check(moments == sorted(moments), f"the builds' numbers of {env.name} are out of the order of acceptance")
        for key in ("release", "finished_at"):
            # What was superseded may end before what is older and under way.
            found = [build[key] for build in builds if state_of(build) == "succeeded"]
            chaos.check(found == sorted(found), f"builds of {env.name} were deployed out of the order of acceptance ({key}): {found}")
        chaos.figures["one_pairs_in_order"] = len(pairs)

    def check_served(self, env, seen, builds, commits):
        """Nobody ever saw an older version after a newer one, but for the moment in which both of two neighbours serve: the router drains the
        older one once the newer one has entered."""
        turns = {f"version {commits[build['commit']]}": build["number"] for build in builds}
        numbers = [turns[version] for version in seen if version in turns]
        newest, before = 0, 0
        for number in numbers:
            self.chaos.check(number >= before, f"{env.name} served builds {numbers}, in this order: {number} after {before} and {newest}")
            if number > newest:
                newest, before = number, newest
        self.chaos.check(len(numbers) > 1, f"{env.name} was seen with builds {numbers} only")

    def defaults(self):
        """The same at once, with the queue as it comes."""
        chaos = self.chaos
        self.restart({})
        self.repository.make([(f"second{env.number}", f"first{env.number}", self.files(f"second {env.number}", env.replicas)) for env in self.environments[1:]]
                             + [("second0", None, self.files("second 0", 1))])
        memory, began = Memory(self.platform), time.monotonic()
        # By force, since the branch of the first is wherever the pushes to one environment have left it.
        pushes = self.at_once(lambda env: f"second{env.number}", force=True)
        refused = [push for push in pushes if not push.accepted]
        for push in refused:
            chaos.check(push.reason and "ry again" in push.text, f"a refusal does not say to try again: {push.text}")
        _, builds = self.await_terminal(self.environments)
        terminal = time.monotonic() - began
        memory.end(chaos, f"{len(pushes)} pushes to the queue as it comes")
        states = count(state_of(max(builds[push.env.name], key=lambda build: build["number"])) for push in pushes if push.accepted)
        chaos.check(set(states) == {"succeeded"}, f"accepted pushes ended as {states}")
        say(f"\n{len(pushes)} pushes at once with the queue as it comes (100, 20 of a tenant)")
        table(["accepted", "refused", "p50 s", "p99 s", "max s", "all terminal s"],
              [[len(pushes) - len(refused), len(refused), *latencies([push.seconds for push in pushes]), f"{terminal:.1f}"]])
        tell_reasons(pushes)
        table(HEADS, [memory.row()])
        if refused:
            again = self.repository.push(refused[0].env, f"second{refused[0].env.number}", "detach", force=True)
            chaos.check(again.accepted, f"what was told to try again did, and was refused: {again.text}")
            self.await_terminal([refused[0].env])
        chaos.figures |= {"default_accepted": len(pushes) - len(refused), "default_refused": len(refused)}

    def huge(self):
        """Pushes of a gigabyte of random bytes."""
        env, rows = self.environments[2], []
        self.repository.make_blob("giga", 1000)
        self.repository.make_blob("over", 1100)
        rows.append(self.huge_push("1.1 GB, limit 1 GiB (default)", "over:refs/heads/main", env, False, ["larger than this server takes"]))
        self.restart({"BERTH__GIT__MAX_INPUT_SIZE": "2Gi"})
        rows.append(self.huge_push("1 GB to the branch, limit 2 GiB", "giga:refs/heads/main", env, False, ["1.0 GB", "blob.bin"]))
        rows.append(self.huge_push("1 GB as a tag, limit 2 GiB", "giga:refs/tags/giga", env, True, ["new tag"]))
        say("\nA push of a gigabyte of random bytes")
        table(["push", "accepted", "s", *HEADS, "left behind MiB", "told"], rows)

    def huge_push(self, title, refspec, env, accepted, told):
        chaos, repository = self.chaos, self.platform.data / "repositories" / (env.name + ".git")
        used, memory = used_by(repository), Memory(self.platform)
        # By force: the branch may be at something else by now, and git would refuse by itself.
        finished = self.repository.git("push", env.remote, "+refs/heads/" + refspec, timeout=600)
        memory.end(chaos, title)
        left = used_by(repository) - used
        chaos.check((finished.status == 0) == accepted, f"{title}: ended with {finished.status}: {finished.all()[-500:]}")
        chaos.check(all(text in finished.all() for text in told), f"{title}: nothing says {told}: {finished.all()[-500:]}")
        chaos.check(accepted or left < MIB, f"{title}: {left} bytes are left in the repository")
        incoming = [path for path in repository.rglob("*incoming-*")]
        chaos.check(not incoming, f"{title}: a quarantine is left: {incoming}")
        reason = next((line for line in finished.all().splitlines() if "!    " in line), "").replace("remote:", "").strip(" !")
        key = "huge_growth_mib"
        chaos.figures[key] = max(chaos.figures.get(key, 0), round(memory.growth / MIB, 1))
        return [title, "yes" if finished.status == 0 else "no", f"{finished.seconds:.1f}", *memory.row(), mib(left), reason[:90]]

    def refs(self):
        """Many refs in one push; and a repository that has many."""
        chaos, env, rows = self.chaos, self.environments[4], []
        # Without `concurrent` before it, nothing is there yet.
        self.repository.make([("first0", None, self.files(0))])
        commit = self.repository.commit("first0")
        self.repository.git("update-ref", "--stdin", stdin="".join(f"create refs/tags/many{n} {commit}\n" for n in range(REFS))).ok()
        memory = Memory(self.platform)
        finished = self.repository.git("push", "-q", env.remote, "refs/tags/many*:refs/tags/many*", timeout=600)
        memory.end(chaos, f"a push of {REFS} refs")
        there, seconds = self.ls_remote(env)
        reason = next((line for line in finished.all().splitlines() if "!    " in line), "").replace("remote:", "").strip(" !")
        if finished.status != 0:
            chaos.check(bool(reason), f"{REFS} refs were refused without a reason: {finished.all()[-500:]}")
            chaos.check(there < REFS // 10, f"{REFS} refs were refused, and {there} are there")
        chaos.check(seconds < LS_REMOTE, f"ls-remote took {seconds:.1f} s")
        rows.append([f"a push of {REFS} tags", "yes" if finished.status == 0 else "no", f"{finished.seconds:.1f}", there, f"{seconds:.2f}", *memory.row(), reason[:90]])
        rows.append(self.many_refs("tags/kept"))
        rows.append(self.many_refs("berth/builds/"))
        say("\nMany refs")
        table(["", "accepted", "s", "refs listed", "ls-remote s", *HEADS, "told"], rows)
        chaos.figures |= {"refs_accepted": finished.status == 0, "ls_remote_s": round(seconds, 2)}

    def many_refs(self, prefix):
        """A repository that came to have them, one push or build after another."""
        env = self.environments[6 if prefix.startswith("tags") else 8]
        path = self.platform.data / "repositories" / (env.name + ".git")
        self.repository.git("push", "-q", env.remote, "first0:refs/tags/first").ok()
        commit = run(["git", "-C", path, "rev-parse", "refs/tags/first"]).ok().out.strip()
        run(["git", "-C", path, "update-ref", "--stdin"], stdin="".join(f"create refs/{prefix}{1000 + n} {commit}\n" for n in range(REFS)), timeout=600).ok()
        memory = Memory(self.platform)
        there, seconds = self.ls_remote(env)
        again = self.repository.git("push", env.remote, f"first0:refs/tags/one-more{prefix[0]}", timeout=120)
        memory.end(self.chaos, f"{REFS} refs/{prefix}*")
        self.chaos.check(seconds < LS_REMOTE, f"ls-remote of a repository with {REFS} refs/{prefix}* took {seconds:.1f} s")
        self.chaos.check(again.status == 0, f"a push to a repository with {REFS} refs/{prefix}* failed: {again.all()[-500:]}")
        return [f"a tag, to {REFS} refs/{prefix}*", "yes" if again.status == 0 else "no", f"{again.seconds:.1f}", there, f"{seconds:.2f}", *memory.row(), ""]

    def ls_remote(self, env):
        found = self.repository.git("ls-remote", env.remote).ok()
        return len(found.out.splitlines()), found.seconds


def is_final(build):
    return state_of(build) in ("succeeded", "failed", "cancelled")


def state_of(build):
    state = build["state"]
    return state if isinstance(state, str) else state.get("state") or next(iter(state))


def count(values):
    found = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return found


def latencies(times):
    return [f"{percentile(times, 50):.2f}", f"{percentile(times, 99):.2f}", f"{max(times):.2f}"]


def tell_reasons(pushes):
    """What those were told that were not taken, and how often."""
    reasons = count(re.sub(r"\b[0-9a-f]{12}\b|\d+", "N", push.reason or push.text.strip().splitlines()[-1]) for push in pushes if not push.accepted)
    for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
        say(f"  {number} were told: {reason[:120]}")


def used_by(directory):
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


def scenario(chaos):
    bench, only = Bench(chaos), chaos.arguments.only
    if not only or "concurrent" in only:
        bench.concurrent(chaos.arguments.peer)
    if not only or "one" in only:
        bench.one()
    if not only or "defaults" in only:
        bench.defaults()
    if not only or "huge" in only:
        bench.huge()
    if not only or "refs" in only:
        bench.refs()
    chaos.figures["runs"] = 1


main(scenario, arguments=[("--peer", {"help": "ssh configuration with a host `peer`"}), ("--only", {"nargs": "*", "help": "only these parts"})])
