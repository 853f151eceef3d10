"""What a requirements file reaches: further files, and packages that lie in the app's own tree."""

import codecs
import re
from pathlib import Path

_INCLUDE = re.compile(r"^(?:-r|-c|--requirement|--constraint)[\s=]*(\S.*)$")
_EDITABLE = re.compile(r"^(?:-e|--editable)[\s=]*(\S.*)$")
_FIND_LINKS = re.compile(r"^(?:-f|--find-links)[\s=]*(\S.*)$")
MAX_FILES = 200


def reach(build_dir: Path, first: str) -> tuple[list[str], bool]:
    """Returns the files (relative to build_dir) that `first` includes, itself among them, and whether any of them
    installs from the tree, which makes the result depend on more than these files."""
    build_dir = build_dir.resolve()
    seen: dict[str, None] = {}
    local = False
    queue = [build_dir / first]
    while queue and len(seen) < MAX_FILES:
        path = queue.pop()
        try:
            name = path.resolve().relative_to(build_dir).as_posix()
            text = _decode(path.read_bytes())
        except (OSError, ValueError):
            # Not there (the installer will say so), or outside the app: nothing is known about what it does.
            local = True
            continue
        if name in seen:
            continue
        seen[name] = None
        for line in _logical_lines(text):
            included = _INCLUDE.match(line)
            if included:
                target = included[1].strip().strip("\"'")
                if "://" not in target:
                    queue.append(path.parent / target)
            elif _is_local(line, build_dir, path.parent):
                local = True
    return list(seen), local or bool(queue)


def _decode(content: bytes) -> str:
    """UTF-8, or what the byte order mark says, as pip does: Windows' shell writes UTF-16."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="replace")


def _logical_lines(text: str):
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if line:
            yield line


def _is_local(line: str, *folders: Path) -> bool:
    for option in (_EDITABLE, _FIND_LINKS):
        matched = option.match(line)
        if matched:
            return "://" not in matched[1] or matched[1].startswith("file:")
    if line.startswith("-"):
        return False
    target = line.split(";")[0].strip()
    target = target.split("@", 1)[1].strip() if re.match(r"^[\w.\[\],-]+\s*@", target) else target
    if "://" in target and not target.startswith("file:"):
        return False
    if target.startswith((".", "/", "file:")) or re.search(r"\.(whl|zip|tar\.gz|tar\.bz2)(\s|$)", target):
        return True
    bare = target.split()[0]
    return "/" in bare and any((folder / bare).exists() for folder in folders)
