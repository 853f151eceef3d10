"""What kind of Python project this is: project.py COMMAND BUILD_DIR

  committed     fails when a virtual environment is committed; prints nothing
  plan ENV_DIR  checks the project and the Python version, prints "MANAGER<TAB>REUSABLE<TAB>KEY<TAB>VERSION": which tool
                installs the packages (pip, setup, pipenv, poetry, uv, uv-unlocked); yes if the same lock gives the same
                packages; a hash of everything that decides what is installed; and, for people, the version of Python
  is-package    succeeds if the project itself is to be installed
  manage        prints the path of Django's manage.py, if there is one
  inputs no|collectstatic
                prints the globs of the files that the build depends on
"""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import processes
import requirements
from versions import AVAILABLE, Refused, check, read_toml

LOCKS = {"Pipfile.lock": "pipenv", "poetry.lock": "poetry", "uv.lock": "uv"}
LOCK_COMMAND = {"pipenv": "pipenv lock", "poetry": "poetry lock", "uv": "uv lock"}
# Files whose appearance, disappearance or change may make this another kind of project, or another version.
ALWAYS = [
    "requirements.txt", "Pipfile", "Pipfile.lock", "poetry.lock", "uv.lock", "pyproject.toml", "setup.py", "setup.cfg",
    ".python-version", "runtime.txt", "bin/pre_compile", "bin/post_compile", "{*,*/*}/manage.py", "manage.py",
    "*/pyvenv.cfg", ".venv", ".venv/**", ".berth/**", "poetry.toml", "uv.toml",
]  # fmt: skip
EVERYTHING = "**"
PURE_BACKENDS = {"hatchling.build", "uv_build", "poetry.core.masonry.api", "flit_core.buildapi"}


def refuse_committed_environment(build_dir: Path) -> None:
    folders = sorted({path.parent.name for path in build_dir.glob("*/pyvenv.cfg")})
    if not folders and os.path.lexists(build_dir / ".venv"):
        folders = [".venv"]
    if folders:
        name = folders[0]
        raise Refused(
            f"The folder {name}/ is a virtual environment, made on another machine, and does not belong into git.",
            f"Take it out: git rm -r --cached {name} && echo {name}/ >> .gitignore && git commit -m 'Remove {name}'",
        )


def manager(build_dir: Path) -> str:
    present = [name for name in ("requirements.txt", *LOCKS) if (build_dir / name).is_file()]
    if len(present) > 1:
        raise Refused(
            f"Several files say which packages to install: {', '.join(present)}.",
            "Which of them is right cannot be known: keep the one of the tool in use, and git rm the others.",
        )
    if present and present[0] in LOCKS:
        tool = LOCKS[present[0]]
        needed = "Pipfile" if tool == "pipenv" else "pyproject.toml"
        if not (build_dir / needed).is_file():
            raise Refused(f"{present[0]} is here, but not {needed}.", f"Add {needed} to git as well.")
        return tool
    if (build_dir / "Pipfile").is_file():
        raise Refused("Pipfile is here, but no Pipfile.lock.", "Run `pipenv lock` and add Pipfile.lock to git.")
    if present:
        return "pip"
    project = read_toml(build_dir / "pyproject.toml")
    if "poetry" in project.get("tool", {}):
        raise Refused("pyproject.toml is Poetry's, but there is no poetry.lock.", "Run `poetry lock` and add poetry.lock to git.")
    if "project" in project:
        return "uv-unlocked"
    if (build_dir / "setup.py").is_file():
        return "setup"
    raise Refused("No file says which packages to install.", "Add a requirements.txt (it may be empty).")


def facts(build_dir: Path) -> tuple[str, list[str], bool]:
    """The manager, the files that decide what it installs, and whether it installs from the tree itself."""
    tool = manager(build_dir)
    if tool == "pip":
        files, local = requirements.reach(build_dir, "requirements.txt")
        return tool, files, local
    if tool == "setup":
        return tool, ["setup.py"], True
    if tool == "pipenv":
        return tool, ["Pipfile", "Pipfile.lock"], _mentions(build_dir / "Pipfile.lock", r'"(path|file|editable)":')
    lock = [] if tool == "uv-unlocked" else [f"{tool}.lock"]
    return tool, ["pyproject.toml", *lock], _installs_from_tree(build_dir, tool)


def _mentions(path: Path, pattern: str) -> bool:
    return re.search(pattern, path.read_text(encoding="utf-8", errors="replace")) is not None


def _installs_from_tree(build_dir: Path, tool: str) -> bool:
    """Packages of the tree besides the project itself, or a project whose own build may read any file."""
    if tool == "poetry" and _mentions(build_dir / "poetry.lock", r'(?m)^type = "(directory|file)"'):
        return True
    # In uv.lock the project itself is `editable = "."` or `virtual = "."`.
    if tool == "uv" and _mentions(build_dir / "uv.lock", r'source = \{ (editable|directory|path|virtual) = "(?!\." )'):
        return True
    document = read_toml(build_dir / "pyproject.toml")
    if tool == "uv-unlocked" and "sources" in document.get("tool", {}).get("uv", {}):
        return True
    return is_package(document) and not (
        document.get("build-system", {}).get("build-backend") in PURE_BACKENDS
        and not document.get("project", {}).get("dynamic")
        and "build" not in document.get("tool", {}).get("poetry", {})
        and "hatch" not in document.get("tool", {})
    )


def is_package(document: dict) -> bool:
    """Whether the project itself is to be installed, beside what it depends on."""
    tool = document.get("tool", {})
    if "poetry" in tool and tool["poetry"].get("package-mode") is False:
        return False
    if "package" in tool.get("uv", {}):
        return bool(tool["uv"]["package"])
    return "build-system" in document


def key(build_dir: Path, env_dir: Path) -> str:
    """Everything that decides what is installed: tools, locks, build variables, this buildpack."""
    tool, files, _ = facts(build_dir)
    digest = hashlib.sha256()
    pack = Path(__file__).resolve().parent.parent
    parts = [(str(path.relative_to(pack)), path) for folder in ("bin", "lib", "tools") for path in sorted((pack / folder).glob("*"))]
    parts += [(name, build_dir / name) for name in sorted(files)]
    parts += [(f"env/{path.name}", path) for path in sorted(env_dir.glob("*"))]
    uv = subprocess.run(["uv", "--version"], capture_output=True, check=False).stdout if tool.startswith("uv") else b""
    digest.update(repr((tool, sys.version, os.environ.get("STACK"), os.uname().machine, uv)).encode())
    for name, path in parts:
        if path.is_file():
            digest.update(repr((name, hashlib.sha256(path.read_bytes()).hexdigest())).encode())
    return digest.hexdigest()[:32]


def inputs(build_dir: Path, collects_static: bool) -> list[str]:
    tool, files, local = facts(build_dir)
    hooks = any((build_dir / "bin" / name).exists() for name in ("pre_compile", "post_compile"))
    if local or hooks or collects_static:
        return [EVERYTHING]
    globs = [*ALWAYS, *(_literal(name) for name in files)]
    if tool not in ("pip", "pipenv") and is_package(read_toml(build_dir / "pyproject.toml")):
        # Where the package lies decides what the virtual environment points at; some backends insist on the others.
        globs += ["*.py", "*/__init__.py", "src/*/__init__.py", "README*", "LICEN[CS]E*"]
    return sorted({*globs, *processes.inputs(build_dir)})


def _literal(name: str) -> str:
    return re.sub(r"([*?\[\]{}\\])", r"[\1]", name)


def main(command: str, build_dir: Path) -> None:
    if command == "committed":
        refuse_committed_environment(build_dir)
    elif command == "plan":
        tool, _, local = facts(build_dir)
        requests = [f"({text})" for text in check(build_dir, tool)]
        print(tool, "no" if local else "yes", key(build_dir, Path(sys.argv[3])), " ".join([AVAILABLE, *requests]), sep="\t")
    elif command == "is-package":
        sys.exit(0 if is_package(read_toml(build_dir / "pyproject.toml")) else 1)
    elif command == "manage":
        found = processes.find_manage(build_dir)
        print(found.relative_to(build_dir) if found else "")
    elif command == "inputs":
        print(*inputs(build_dir, sys.argv[3] == "collectstatic"), sep="\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except Refused as refusal:
        for line in refusal.args:
            print(f" !     {line}", file=sys.stderr)
        sys.exit(1)
