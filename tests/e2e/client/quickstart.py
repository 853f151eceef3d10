"""The flow of the quickstart, by a client that is generated from /openapi.json of a running server, and by that client alone.

usage: quickstart.py URL TOKEN TENANT SOURCE DIRECTORY ROUTER    SOURCE: the app, a directory; ROUTER: the port of the router.
Ends with 0 and the word `done` when every step held.
"""

import datetime
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import time
import urllib.request

DEADLINE = 120
URL, TOKEN, TENANT, SOURCE, DIRECTORY, ROUTER = sys.argv[1:]
APP, ENV = "hello", "staging"
PLACE = (TENANT, APP, ENV)


def generate():
    """Makes the client; a warning of the generator says that a part of the document is of no use to it."""
    directory = pathlib.Path(DIRECTORY)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{URL}/openapi.json", timeout=30) as answer:
        (directory / "openapi.json").write_bytes(answer.read())
    words = [sys.executable, "-m", "openapi_python_client", "generate", "--path", directory / "openapi.json", "--meta", "none",
             "--output-path", directory / "berth_client", "--config", pathlib.Path(__file__).with_name("generator.yml"), "--fail-on-warning"]
    made = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=DEADLINE)
    assert made.returncode == 0, f"no client can be generated:\n{made.stdout}{made.stderr}"
    sys.path.insert(0, str(directory))


generate()

# Of what was just made.
from berth_client import AuthenticatedClient  # noqa: E402
from berth_client.api.account import whoami  # noqa: E402
from berth_client.api.apps import create_app  # noqa: E402
from berth_client.api.builds import create_build, list_builds, show_build  # noqa: E402
from berth_client.api.config import change_config, list_config  # noqa: E402
from berth_client.api.deployments import show_deployment  # noqa: E402
from berth_client.api.environments import create_env, set_scale, show_env  # noqa: E402
from berth_client.api.logs import show_build_logs, show_logs  # noqa: E402
from berth_client.api.releases import roll_back, show_release  # noqa: E402
from berth_client.api.tenants import create_tenant  # noqa: E402
from berth_client.models import (Build, ChangeConfigBody, NewApp, NewEnvironment, NewTenant, Problem, Rollback, RoleName,  # noqa: E402
                                 SetScaleBody)
from berth_client.types import File  # noqa: E402



def client_of(accept):
    """A client that asks for a media type. (`with_headers` of one changes that one, too.)"""
    return AuthenticatedClient(base_url=URL, token=TOKEN, raise_on_unexpected_status=True, timeout=DEADLINE,
                               headers={"Accept": accept}, httpx_args={"trust_env": False})


CLIENT = client_of("*/*")


def ask(operation, *names, status=200, client=CLIENT, **options):
    """What the operation has answered, in the type that the document says."""
    answer = operation.sync_detailed(*names, client=client, **options)
    assert answer.status_code == status, f"{operation.__name__} {names}: {answer.status_code} {answer.content!r}"
    assert answer.parsed is not None, f"{operation.__name__} {names} has no type: {answer.content!r}"
    return answer.parsed


def eventually(what, condition):
    end = time.monotonic() + DEADLINE
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"{what}: not within {DEADLINE} s"
        time.sleep(0.1)


def get(url):
    """What the app answers, by the router: the host name of its URL, which need not resolve here."""
    host = url.split("//")[1].split("/")[0].split(":")[0]
    request = urllib.request.Request(f"http://127.0.0.1:{ROUTER}/", headers={"Host": host})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return answer.read().decode()


def source():
    """The app as an archive, with a manifest that names it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for path in sorted(pathlib.Path(SOURCE).iterdir()):
            text = path.read_text().replace("app: demo/hello", f"app: {TENANT}/{APP}")
            entry = tarfile.TarInfo(path.name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return File(payload=archive.getvalue())


def deployed(begun):
    """Follows a deployment to its end."""
    ended = eventually("the deployment ends", lambda: next(
        (found for found in [ask(show_deployment, *PLACE, str(begun.deployment))] if found.state != "running"), None))
    assert ended.state == "succeeded", ended


def ready(count):
    def counted():
        shown = ask(show_env, *PLACE)
        return shown if shown.settled and shown.processes["web"].ready == count else None
    return eventually(f"{count} replicas are ready", counted)


def make():
    me = ask(whoami)
    assert me.operator and me.token, me
    made = ask(create_tenant, status=201, body=NewTenant(name=TENANT))
    assert made.members[me.user] == RoleName.OWNER and made.created_at.tzinfo is not None, made
    again = ask(create_tenant, status=409, body=NewTenant(name=TENANT))
    assert isinstance(again, Problem) and again.status == 409 and again.detail, again
    app = ask(create_app, status=201, body=NewApp(name=f"{TENANT}/{APP}"))
    assert f"app: {TENANT}/{APP}" in app.manifest and "dev" in app.remotes, app
    env = ask(create_env, status=201, body=NewEnvironment(name="/".join(PLACE)))
    assert env.url and env.remote.endswith("/".join(PLACE)), env


def build():
    queued = ask(create_build, *PLACE, status=202, body=source(), message="by a generated client")
    followed = ask(show_build_logs, *PLACE, str(queued.build), client=client_of("text/event-stream"))
    assert "event: end" in followed, followed[-500:]
    # The build ends right after its log has.
    built = eventually("the build ends", lambda: next(
        (found for found in [ask(show_build, *PLACE, str(queued.build))] if found.finished_at), None))
    assert isinstance(built, Build) and built.state == "succeeded", (built, followed)
    assert isinstance(built.finished_at, datetime.datetime) and dict(built.timings_ms), built
    listed = ask(list_builds, *PLACE).items
    assert listed == [built], listed
    return built


def serve(built):
    release = ask(show_release, *PLACE, str(built.release))
    assert release.image == built.image and "web" in release.processes.to_dict(), release
    shown = ready(2)
    assert {replica.state for replica in shown.replicas} == {"ready"} and len(shown.replicas) == 2, shown
    assert f"release v{built.release}," in get(shown.url)
    return shown.url


def operate(url, built):
    scaled = ask(set_scale, *PLACE, status=202, body=SetScaleBody.from_dict({"web": 1}))
    assert scaled.scale["web"] == 1, scaled
    ready(1)
    ask(set_scale, *PLACE, status=202, body=SetScaleBody.from_dict({"web": 2}))
    ready(2)
    changed = ask(change_config, *PLACE, status=202, body=ChangeConfigBody.from_dict({"GREETING": "hello"}))
    deployed(changed)
    assert ask(list_config, *PLACE).to_dict() == {"GREETING": "hello"}
    assert f"release v{changed.release}," in get(url)
    back = ask(roll_back, *PLACE, status=202, body=Rollback(version=built.release))
    deployed(back)
    assert f"release v{back.release}," in get(url)
    lines = ask(show_logs, *PLACE, lines=1000)
    assert "listening on port" in lines, lines
    as_json = ask(show_logs, *PLACE, process="web", client=client_of("application/x-ndjson"))
    assert all(json.loads(line)["process"].startswith("web.") for line in as_json.splitlines()) and as_json, as_json


make()
BUILT = build()
operate(serve(BUILT), BUILT)
print("done")
