"""Which Python the app asks for, and whether the one of the stack is it.

The stack carries one Python. A request for another is refused by the name of the file that makes it, never ignored.
"""

import json
import platform
import re
import tomllib
from pathlib import Path

from pip._vendor.packaging.specifiers import InvalidSpecifier, SpecifierSet

AVAILABLE = platform.python_version()
SHORT = ".".join(AVAILABLE.split(".")[:2])


class Refused(Exception):
    """The app cannot be built as it is; the arguments are the lines to print."""


def check(build_dir: Path, use_lock_of: str) -> list[str]:
    """Returns the requests found, as "FILE: text"; raises Refused unless AVAILABLE satisfies them all."""
    pins = [pin for pin in (_dot_python_version(build_dir), _runtime_txt(build_dir)) if pin]
    if len(pins) == 2 and not _agree(pins[0][1], pins[1][1]):
        raise Refused(
            f"{pins[0][0]} asks for Python {pins[0][1]}, {pins[1][0]} for Python {pins[1][1]}.",
            "Keep one of the two files.",
        )
    pipfile = _pipfile(build_dir) if use_lock_of == "pipenv" else []
    for source, version in pins + pipfile:
        if not _matches(version):
            raise Refused(
                f"{source} asks for Python {version}, but this stack has Python {AVAILABLE}, and no other.",
                f"Write {_example(source)} if the app runs on it.",
            )
    ranges = _ranges(build_dir)
    for source, text in ranges:
        if not _allows(source, text):
            raise Refused(
                f"{source} asks for Python {text}, but this stack has Python {AVAILABLE}, and no other.",
                f"Widen the range so that it contains {AVAILABLE} if the app runs on it, and lock again.",
            )
    return [f"{source}: {text}" for source, text in pins + pipfile + ranges]


def _example(source: str) -> str:
    return {
        "runtime.txt": f"python-{SHORT} in runtime.txt",
        ".python-version": f"{SHORT} in .python-version",
    }.get(source, f'python_version = "{SHORT}" in the Pipfile, and run `pipenv lock`,')


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [line for line in (raw.split("#")[0].strip() for raw in text.splitlines()) if line]


def _dot_python_version(build_dir: Path):
    lines = _lines(build_dir / ".python-version")
    if len(lines) > 1:
        raise Refused(
            f".python-version names several versions ({', '.join(lines[:5])}).", "Keep the one that the app runs on."
        )
    if not lines:
        return None
    name = lines[0]
    version = re.sub(r"^(cpython|python)-", "", name, flags=re.IGNORECASE)
    return (".python-version", _pin(".python-version", name, version))


def _runtime_txt(build_dir: Path):
    lines = _lines(build_dir / "runtime.txt")
    if not lines:
        return None
    name = lines[0]
    if len(lines) > 1 or not name.startswith("python-"):
        raise Refused(
            f"runtime.txt is not understood: {name[:60]}", f"It holds one line such as python-{SHORT}, or is not there."
        )
    return ("runtime.txt", _pin("runtime.txt", name, name.removeprefix("python-")))


def _pin(source: str, name: str, version: str) -> str:
    """The version with trailing wildcards (3.11.x, 3.11.*) taken off."""
    if not re.fullmatch(r"\d+(\.\d+){0,2}(\.[x*])?", version):
        raise Refused(
            f"{source} asks for {name[:60]}, which is not a version of Python that this stack knows.",
            f"This stack has Python {AVAILABLE}, and no other: write {_example(source)}.",
        )
    return re.sub(r"\.[x*]$", "", version)


def _agree(one: str, other: str) -> bool:
    short, long = sorted((one.split("."), other.split(".")), key=len)
    return long[: len(short)] == short


def _matches(version: str) -> bool:
    return _agree(version, AVAILABLE) and len(version.split(".")) <= 3


def _pipfile(build_dir: Path):
    try:
        requires = json.loads((build_dir / "Pipfile.lock").read_bytes())["_meta"].get("requires", {})
        wanted = requires.get("python_full_version") or requires.get("python_version")
    except (OSError, ValueError, KeyError, AttributeError):
        return []
    return [("Pipfile.lock", str(wanted))] if wanted and wanted != "*" else []


def _ranges(build_dir: Path):
    found = []
    for file, paths in (
        ("pyproject.toml", (("project", "requires-python"), ("tool", "poetry", "dependencies", "python"))),
        ("uv.lock", (("requires-python",),)),
        ("poetry.lock", (("metadata", "python-versions"),)),
    ):
        document = read_toml(build_dir / file)
        for path in paths:
            value = document
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, str):
                found.append((f"{file} ({path[-1]})", value))
    return found


def read_toml(path: Path) -> dict:
    """The document, empty when there is none; raises Refused when it is not TOML."""
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise Refused(f"{path.name} is not valid TOML: {problem}", "Correct it and push again.") from None


def _allows(source: str, text: str) -> bool:
    """Whether a range, in the notation of PEP 440 or of Poetry, contains AVAILABLE."""
    for alternative in re.split(r"\|\|?", text):
        parts = re.findall(r"[\^~<>=!]+\s*[^\s,]+|[^\s,]+", alternative)
        try:
            if all(SpecifierSet(_pep440(part)).contains(AVAILABLE) for part in parts):
                return True
        except (InvalidSpecifier, ValueError):
            raise Refused(
                f"{source} asks for Python {text}, which is not a range that is understood.",
                "Write it as in >=3.9,<4.",
            ) from None
    return False


def _pep440(part: str) -> str:
    """One clause; Poetry's caret, tilde and bare versions are rewritten."""
    operator, version = re.fullmatch(r"([\^~<>=!]*)\s*(.*)", part).groups()
    numbers = version.split(".")
    if operator == "^":
        return f">={version},<{int(numbers[0]) + 1}"
    if operator == "~":
        upper = [numbers[0], str(int(numbers[1]) + 1)] if len(numbers) > 1 else [str(int(numbers[0]) + 1)]
        return f">={version},<{'.'.join(upper)}"
    if operator == "":
        return "" if version == "*" else f"=={version}" if len(numbers) > 2 or "*" in version else f"=={version}.*"
    return f"{operator}{version}"
