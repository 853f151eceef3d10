"""The default web process of an app, found without running its code.

  processes.py --release BUILD_DIR   prints the release file of the buildpack API
  processes.py --explain BUILD_DIR   prints, for people, the command, or why there is none
  processes.py                       becomes the web process of the app it lies in (at STARTER)

A copy of this file goes into the slug and is the default web process of Flask and FastAPI apps: where the
app object lies is looked up when the process starts, so a change of the app's code needs no new build.
"""

import ast
import os
import re
import sys
from pathlib import Path

# Where a Flask or FastAPI object is looked for, in the order in which those frameworks' own tools look.
CANDIDATES = [
    "wsgi.py", "asgi.py", "app.py", "main.py", "api.py", "application.py", "server.py",
    "app/__init__.py", "app/main.py", "app/app.py", "app/api.py", "src/app.py", "src/main.py",
]  # fmt: skip
FACTORIES = ("create_app", "make_app")
MAX_SOURCE_BYTES = 1_000_000
BIND = "0.0.0.0:$PORT"
STARTER = ".berth/python/web"
DJANGO_INPUTS = ["{*,*/*}/manage.py", "manage.py", "{*,*/*,*/*/*}/{wsgi,asgi}.py"]


def brings_own_web(build_dir: Path) -> bool:
    """Whether Procfile or manifest already say what `web` is, so that no default is needed."""
    procfile = _read(build_dir / "Procfile")
    manifest = _read(build_dir / "berth.yaml")
    return bool(
        re.search(r"(?m)^web[ \t]*:[ \t]*\S", procfile)
        or re.search(r"(?m)^processes:[ \t]*(?:#.*)?$(?:\n(?:[ \t].*|[ \t]*#.*|[ \t]*))*?\n[ \t]+[\"']?web[\"']?:", manifest)
        or re.search(r"(?m)^processes:[ \t]*\{[^}]*\bweb\b[\"']?:", manifest)
    )


def inputs(build_dir: Path) -> list[str]:
    """Globs of the files that the default web process depends on."""
    manifests = ["Procfile", "berth.yaml"]
    if brings_own_web(build_dir):
        return manifests
    command, _, looked_up_at_start = default_web(build_dir)
    return manifests + DJANGO_INPUTS + (CANDIDATES if not command and not looked_up_at_start else [])


def default_web(build_dir: Path) -> tuple[str | None, list[str], bool]:
    """The command, if there is one, what to tell people about it, and whether it is looked up when the process starts."""
    installed = _Installed(build_dir / ".venv")
    manage = find_manage(build_dir)
    if manage and installed.package("django"):
        return *_django(build_dir, manage, installed), False
    found = next(filter(None, (_app_object(build_dir, name) for name in CANDIDATES)), None)
    if not found:
        return None, [], False
    framework, target, factory, folder = found
    if framework == "Flask":
        command, notes = _flask(target, factory, folder, installed)
    else:
        command, notes = _asgi(framework, target, factory, folder, installed)
    return command, notes, command is not None


class _Installed:
    def __init__(self, venv: Path):
        self._bin = venv / "bin"
        self._packages = next(iter(sorted(venv.glob("lib/python3*/site-packages"))), venv)

    def package(self, name: str) -> bool:
        return (self._packages / name).is_dir()

    def command(self, name: str) -> bool:
        return (self._bin / name).is_file()


def find_manage(build_dir: Path) -> Path | None:
    """manage.py, at most two folders down; the one nearest to the root."""
    for pattern in ("manage.py", "*/manage.py", "*/*/manage.py"):
        for path in sorted(build_dir.glob(pattern)):
            parts = path.relative_to(build_dir).parts
            if path.is_file() and not any(part.startswith(".") or part == "node_modules" for part in parts):
                return path
    return None


def _django(build_dir: Path, manage: Path, installed: _Installed):
    folder = manage.parent
    prefix = "" if folder == build_dir else str(folder.relative_to(build_dir))
    if prefix and not _is_plain(prefix):
        return None, [f"{prefix}/manage.py lies in a folder whose name cannot be part of a command: name a web process."]
    settings = re.search(r"DJANGO_SETTINGS_MODULE[\"']\s*,\s*[\"']([\w.]+)[\"']", _read(manage))
    packages = [settings[1].split(".")[0]] if settings else []
    packages += sorted(path.parent.name for path in folder.glob("*/wsgi.py"))
    packages += sorted(path.parent.name for path in folder.glob("*/asgi.py"))
    for package in packages:
        if package.isidentifier():
            if (folder / package / "wsgi.py").is_file():
                if installed.command("gunicorn"):
                    return _gunicorn(f"{package}.wsgi", prefix), []
                if installed.command("waitress-serve"):
                    return _in_folder(prefix, f"waitress-serve --listen={BIND} {package}.wsgi:application"), []
            if (folder / package / "asgi.py").is_file() and installed.command("uvicorn"):
                return _uvicorn(f"{package}.asgi:application", prefix), []
    path = f"{prefix}/manage.py" if prefix else "manage.py"
    return f"python {path} runserver --noreload {BIND}", [
        "No web server for Django is among the app's packages, so its development server is used.",
        "It is neither fast nor safe: add gunicorn to the app's packages.",
    ]


def _flask(target: str, factory: bool, prefix: str, installed: _Installed):
    if installed.command("gunicorn"):
        return _gunicorn(f"'{target}()'" if factory else target, prefix), []
    if installed.command("waitress-serve"):
        call = "--call " if factory else ""
        return _in_folder(prefix, f"waitress-serve --listen={BIND} {call}{target}"), []
    return None, [
        f"A Flask app was found ({target}), but no web server to run it is among the app's packages.",
        "Add gunicorn to the app's packages, or name a web process in Procfile or berth.yaml.",
    ]


def _asgi(framework: str, target: str, factory: bool, prefix: str, installed: _Installed):
    if installed.command("uvicorn"):
        return _uvicorn(f"--factory {target}" if factory else target, prefix), []
    if installed.command("hypercorn") and not factory:
        return _in_folder(prefix, f"hypercorn --bind {BIND} {target}"), []
    return None, [
        f"A {framework} app was found ({target}), but no web server to run it is among the app's packages.",
        "Add uvicorn to the app's packages, or name a web process in Procfile or berth.yaml.",
    ]


def _gunicorn(target: str, prefix: str) -> str:
    return f"gunicorn {f'--chdir {prefix} ' if prefix else ''}--bind {BIND} {target}"


def _uvicorn(target: str, prefix: str) -> str:
    return f"uvicorn {f'--app-dir {prefix} ' if prefix else ''}--host 0.0.0.0 --port $PORT {target}"


def _in_folder(prefix: str, command: str) -> str:
    return f"env PYTHONPATH={prefix} {command}" if prefix else command


def _is_plain(path: str) -> bool:
    return re.fullmatch(r"[\w./-]+", path, flags=re.ASCII) is not None and not path.startswith("-")


def _app_object(build_dir: Path, name: str):
    """(framework, module:variable, is it a factory, folder to put on the path) of a file, or None."""
    try:
        tree = ast.parse(_read(build_dir / name))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    prefix, _, inner = name.rpartition("src/")
    module = (inner if prefix == "" and name.startswith("src/") else name).removesuffix(".py").replace("/", ".")
    module = module.removesuffix(".__init__")
    folder = "src" if name.startswith("src/") else ""
    frameworks = _imported_frameworks(tree)
    for statement in tree.body:
        value = getattr(statement, "value", None)
        if not (isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(value, ast.Call)):
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        framework = frameworks.get(_dotted(value.func))
        if framework is None and _dotted(value.func).split(".")[-1] in FACTORIES:
            framework = next(iter(frameworks.values()), "Flask")
        if framework and isinstance(targets[0], ast.Name) and targets[0].id.isascii():
            return framework, f"{module}:{targets[0].id}", False, folder
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and statement.name in FACTORIES and frameworks and not statement.args.args:
            return next(iter(frameworks.values())), f"{module}:{statement.name}", True, folder
    return None


def _imported_frameworks(tree: ast.Module) -> dict[str, str]:
    """How the file calls the classes of interest: {"Flask": "Flask", "fastapi.FastAPI": "FastAPI"}."""
    known = {"flask": "Flask", "fastapi": "FastAPI", "starlette.applications": "Starlette", "quart": "Quart"}
    names = {}
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module in known:
            framework = known[statement.module]
            for alias in statement.names:
                if alias.name == framework:
                    names[alias.asname or alias.name] = framework
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                if alias.name in known:
                    names[f"{alias.asname or alias.name}.{known[alias.name]}"] = known[alias.name]
    return names


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _read(path: Path) -> str:
    try:
        if path.is_symlink() or path.stat().st_size > MAX_SOURCE_BYTES:
            return ""
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ""


def release(build_dir: Path) -> None:
    command, _, looked_up_at_start = default_web(build_dir)
    if looked_up_at_start:
        command = f"python -I {STARTER}"
    print(f"default_process_types:\n  web: '{command}'" if command else "default_process_types: {}")


def explain(build_dir: Path) -> None:
    if brings_own_web(build_dir):
        return
    command, notes, looked_up_at_start = default_web(build_dir)
    if command:
        print(f"       web: {command}")
    if looked_up_at_start:
        print("       (looked up at each start; a web process in Procfile or berth.yaml takes its place)")
    if not command and not notes:
        notes = [
            "No default web process is known for this app. Looked for:",
            "  manage.py of Django, and a Flask or FastAPI object at the top level of one of",
            f"  {', '.join(CANDIDATES[:7])}, {', '.join(CANDIDATES[7:])}",
        ]
    for line in notes:
        print(f" !     {line}")


def start(build_dir: Path) -> None:
    command, notes, _ = default_web(build_dir)
    if not command:
        reason = notes or ["No Flask or FastAPI object was found: name a web process in Procfile or berth.yaml."]
        sys.exit("\n".join(reason))
    print(f"Starting {command}", file=sys.stderr, flush=True)
    os.execv("/bin/bash", ["bash", "-c", f"exec {command}"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"--release": release, "--explain": explain}[sys.argv[1]](Path(sys.argv[2]))
    else:
        start(Path(__file__).resolve().parents[2])
