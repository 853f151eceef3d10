"""generate.py BUILD_DIR [--built FOLDER]: writes BUILD_DIR/.berth/static: nginx.conf, variables and start.

With --built the site is what another buildpack's build left in FOLDER.
"""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import nginx
from settings import Refused, Settings, check_root, load


def prepare(build_dir: Path, built: str | None) -> Settings:
    settings = load(build_dir)
    if built is not None and not settings.root_is_set:
        settings.root = check_root(built)
    root = (build_dir / settings.root).resolve()
    app = build_dir.resolve()
    if root != app and app not in root.parents:
        raise Refused(f"The root {settings.root} leads out of the app.", "Name a folder inside it.")
    if root == app and settings.root != ".":
        raise Refused(f"The root {settings.root} leads to the app itself.", "If that is meant, let root be . and nothing else.")
    if not root.is_dir():
        raise Refused(
            f"The root {settings.root}/ is not there" + (f" (named in {settings.source})." if settings.root_is_set else "."),
            f"Name the folder that holds the site in {settings.source or 'static.json'}, and check that it is in git or that the build makes it.",
        )
    if built is not None and not settings.routes and (root / "index.html").is_file() and not (root / "404.html").exists():
        # An app whose pages are made in the browser has one file for all of them; a site of many brings its own 404.html.
        settings.routes.append(("pages", "/index.html", []))
    return settings


def describe(settings: Settings) -> None:
    print(f"       Serving {'the whole folder' if settings.root == '.' else settings.root + '/'}", end="")
    print(f", as {settings.source} says" if settings.source else "")
    for key in settings.ignored:
        print(f"       {settings.source}: {key} has no effect here")
    if ("pages", "/index.html", []) in settings.routes:
        print("       Paths without a file are answered with index.html (there is no 404.html)")
    if settings.basic_auth:
        print("       Visitors need a name and a password")


def write(settings: Settings, folder: Path, needs_index: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nginx.conf").write_text(nginx.configuration(settings), encoding="utf-8")
    # Read line by line, never run.
    variables = {
        "root": settings.root,
        "auth": "yes" if settings.basic_auth else "no",
        "auth_file": settings.auth_file,
        "needs_index": "yes" if needs_index else "no",
    }
    (folder / "variables").write_text("".join(f"{name}={value}\n" for name, value in variables.items()), encoding="utf-8")
    shutil.copyfile(HERE / "start", folder / "start")
    (folder / "start").chmod(0o755)


if __name__ == "__main__":
    build_dir = Path(sys.argv[1])
    try:
        settings = prepare(build_dir, sys.argv[3] if sys.argv[2:3] == ["--built"] else None)
    except Refused as refusal:
        for line in refusal.args:
            print(f" !     {line}", file=sys.stderr)
        sys.exit(1)
    describe(settings)
    # Without settings, index.html is all that makes this a site.
    only_index = not settings.source and "--built" not in sys.argv and not (build_dir / ".static").exists()
    write(settings, build_dir / ".berth" / "static", only_index)
