"""How a site wants to be served: static.json (Heroku), Staticfile (Cloud Foundry), or nothing.

Every key is either honoured or refused by name. A key that is passed over could be the one that was to keep people out.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path


class Refused(Exception):
    """The site cannot be served as it is configured; the arguments are the lines to print."""


@dataclass
class Settings:
    """What nginx is to do. Paths begin with a slash and are relative to `root`; globs know * and **."""

    source: str = ""  # the file that these settings come from, "" when there is none
    root: str = "."
    root_is_set: bool = False
    clean_urls: bool = False
    encoding: str = "utf-8"
    routes: list[tuple[str, str, list[str]]] = field(default_factory=list)  # (glob, file, globs it does not hold for)
    redirects: dict[str, tuple[int, str]] = field(default_factory=dict)
    headers: list[tuple[str, str, str]] = field(default_factory=list)  # (glob, name, value)
    error_pages: dict[int, str] = field(default_factory=dict)
    https_only: bool = False
    canonical_host: str = ""
    directory_listing: bool = False
    basic_auth: bool = False
    auth_file: str = ""  # relative to the app; used unless BASIC_AUTH_USERNAME and BASIC_AUTH_PASSWORD are set
    access_log: bool = True
    error_level: str = "error"
    ignored: list[str] = field(default_factory=list)


def load(build_dir: Path) -> Settings:
    present = [name for name in ("static.json", "Staticfile") if (build_dir / name).is_file()]
    if len(present) > 1:
        raise Refused("Both static.json and Staticfile configure this site.", "Keep one of them.")
    if not present:
        settings = Settings()
    elif present[0] == "static.json":
        settings = _static_json(_text(build_dir / "static.json"), build_dir)
    else:
        settings = _staticfile(_text(build_dir / "Staticfile"))
    if (build_dir / "Staticfile.auth").is_file():
        if settings.source == "static.json":
            raise Refused(
                "Staticfile.auth holds passwords, but static.json configures this site and does not use it.",
                "Rename it to .htpasswd and set \"basic_auth\": true.",
            )
        settings.basic_auth, settings.auth_file = True, "Staticfile.auth"
    if settings.basic_auth and settings.auth_file:
        _check_passwords(build_dir / settings.auth_file)
    return settings


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise Refused(f"{path.name} is not UTF-8 text.", "Save it as UTF-8.") from None


def _check_passwords(path: Path) -> None:
    """A file of passwords that would let nobody in, or is not one, is found now rather than by visitors."""
    if not path.is_file():
        return
    lines = [line.strip() for line in _text(path).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    hashed = re.compile(r"[^:\s]+:(\$(apr1|1|5|6|y|2[abxy])\$\S+|\{(PLAIN|SHA|SSHA)\}\S+|[./0-9A-Za-z]{13})(:.*)?")
    for number, line in enumerate(lines, 1):
        if not hashed.fullmatch(line):
            raise Refused(
                f"{path.name}: entry {number} is not NAME:HASH in a form that nginx knows.",
                "Make it with: openssl passwd -apr1",
            )
    if not lines:
        raise Refused(f"{path.name} names nobody who may see the site.", "Add NAME:HASH lines: openssl passwd -apr1")


# ---- static.json ----------------------------------------------------------------------------------------------------

IGNORED = {"resolver", "worker_connections", "debug"}


def _static_json(text: str, build_dir: Path) -> Settings:
    try:
        document = json.loads(text, object_pairs_hook=_no_duplicates)
    except (json.JSONDecodeError, RecursionError) as problem:
        raise Refused(f"static.json is not valid JSON: {problem}", "Correct it and push again.") from None
    if not isinstance(document, dict):
        raise Refused("static.json does not hold an object.", 'It looks like {"root": "dist/"}')
    default_root = "public_html" if (build_dir / "public_html").is_dir() else "."
    settings = Settings(source="static.json", root=default_root)
    for key, value in document.items():
        if key in IGNORED:
            settings.ignored.append(key)
        elif key in _JSON_KEYS:
            _JSON_KEYS[key](settings, value)
        elif key == "proxies":
            raise Refused(
                "static.json: proxies are not supported, so those paths would not be answered.",
                "Run the backend as an app of its own, and call it by its own URL.",
            )
        else:
            raise Refused(f'static.json: the key "{key[:60]}" is not supported.', f"Known: {', '.join(sorted(_JSON_KEYS))}.")
    return settings


def _no_duplicates(pairs):
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise Refused(f'static.json: "{key[:60]}" is there twice.', "Keep one of them.")
    return dict(pairs)


def _expect(value, kind, what: str):
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "a text", bool: "true or false", dict: "an object", int: "a number"}
        raise Refused(f"static.json: {what} must be {names[kind]}, not {json.dumps(value)[:60]}.", "Correct it and push again.")
    return value


def _plain(text: str, what: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise Refused(f"{what} contains a control character.", "Take it out.")
    if "${" in text:
        raise Refused(f"{what} contains {text[:60]}: variables are not filled in here.", "Write the value itself.")
    return text


def _path(text: str, what: str) -> str:
    """A file of the site, as a URL path."""
    path = "/" + _plain(text, what).lstrip("/")
    if ".." in path.split("/"):
        raise Refused(f"{what} leads out of the site: {text[:60]}", "Name a file inside the root.")
    return path


def _glob(text: str, what: str) -> str:
    return _plain(text if text.startswith("/") else f"/{text}", what)


def _set_root(settings: Settings, value) -> None:
    settings.root, settings.root_is_set = check_root(_expect(value, str, "root")), True


def check_root(text: str) -> str:
    root = text.strip().removeprefix("/app/").strip("/") or "."
    parts = [part for part in root.split("/") if part not in ("", ".")]
    if ".." in parts or any(part.startswith(".") for part in parts) or not re.fullmatch(r"[\w./ -]+", root):
        raise Refused(
            f"The root {text[:60]!r} cannot be served.",
            "It is a folder inside the app, of letters, digits, spaces and - _ . whose names do not begin with a dot.",
        )
    return "/".join(parts) or "."


def _set_routes(settings: Settings, value) -> None:
    for glob, target in _expect(value, dict, "routes").items():
        excepted: list[str] = []
        if isinstance(target, dict):
            unknown = set(target) - {"path", "except"}
            if unknown:
                raise Refused(f"static.json: routes: {glob[:60]}: {min(unknown)[:60]} is not supported.", "Known: path, except.")
            excepted = target.get("except", [])
            excepted = [excepted] if isinstance(excepted, str) else excepted
            target = target.get("path")
        target = _expect(target, str, f"routes: {glob}")
        excepted = [_glob(_expect(item, str, "except"), "except") for item in excepted]
        settings.routes.append((_glob(glob, "routes"), _path(target, "routes"), excepted))


def _set_redirects(settings: Settings, value) -> None:
    for path, target in _expect(value, dict, "redirects").items():
        target = {"url": target} if isinstance(target, str) else _expect(target, dict, f"redirects: {path}")
        status = _expect(target.get("status", 301), int, f"redirects: {path}: status")
        url = _plain(_expect(target.get("url"), str, f"redirects: {path}: url"), "redirects")
        if status not in (301, 302, 303, 307, 308) or set(target) - {"url", "status"} or "*" in path:
            raise Refused(
                f"static.json: redirects: {path[:60]} is of a form that is not supported.",
                "A redirect is a path without *, with a url and a status of 301, 302, 303, 307 or 308.",
            )
        settings.redirects[_glob(path, "redirects")] = (status, url)


def _set_headers(settings: Settings, value) -> None:
    for glob, headers in _expect(value, dict, "headers").items():
        for name, text in _expect(headers, dict, f"headers: {glob}").items():
            text = _expect(text, str, f"headers: {glob}: {name}")
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
                raise Refused(f"static.json: headers: {name[:60]!r} is not the name of a header.", "Correct it and push again.")
            settings.headers.append((_glob(glob, "headers"), name, _plain(text, f"headers: {name}")))


def _set_auth(settings: Settings, value) -> None:
    settings.basic_auth = _expect(value, bool, "basic_auth")
    settings.auth_file = settings.auth_file or ".htpasswd"


def _set_auth_file(settings: Settings, value) -> None:
    path = _expect(value, str, "basic_auth_htpasswd_path").removeprefix("/app/")
    if not re.fullmatch(r"[\w./-]+", path) or path.startswith("/") or ".." in path.split("/"):
        raise Refused("static.json: basic_auth_htpasswd_path must name a file of the app.", "For example .htpasswd")
    settings.auth_file = path


def _set_logging(settings: Settings, value) -> None:
    for key, wanted in _expect(value, dict, "logging").items():
        if key == "access":
            settings.access_log = _expect(wanted, bool, "logging: access")
        elif key == "error" and wanted in ("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"):
            settings.error_level = wanted
        else:
            raise Refused(f"static.json: logging: {key[:60]} is not supported.", "Known: access, error.")


def _set_encoding(settings: Settings, value) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", _expect(value, str, "encoding")):
        raise Refused(f"static.json: encoding: {value[:60]!r} is not a character set.", "For example UTF-8")
    settings.encoding = value.lower()


def _set_host(settings: Settings, value) -> None:
    if value is not False and not re.fullmatch(r"[A-Za-z0-9.-]+", _plain(_expect(value, str, "canonical_host"), "canonical_host")):
        raise Refused(f"static.json: canonical_host: {value[:60]!r} is not a host name.", "For example www.example.com")
    settings.canonical_host = (value or "").lower()


def _set_error_page(settings: Settings, value) -> None:
    page = _path(_expect(value, str, "error_page"), "error_page")
    settings.error_pages.update({404: page, 500: page})


_JSON_KEYS = {
    "root": _set_root,
    "clean_urls": lambda settings, value: setattr(settings, "clean_urls", _expect(value, bool, "clean_urls")),
    "https_only": lambda settings, value: setattr(settings, "https_only", _expect(value, bool, "https_only")),
    "routes": _set_routes,
    "redirects": _set_redirects,
    "headers": _set_headers,
    "error_page": _set_error_page,
    "basic_auth": _set_auth,
    "basic_auth_htpasswd_path": _set_auth_file,
    "canonical_host": _set_host,
    "encoding": _set_encoding,
    "logging": _set_logging,
}

# ---- Staticfile -----------------------------------------------------------------------------------------------------

_HSTS = "http_strict_transport_security"
_STATICFILE_KEYS = [
    "root", "directory", "pushstate", "force_https", _HSTS, f"{_HSTS}_include_subdomains", f"{_HSTS}_preload", "status_codes",
]  # fmt: skip
_REASONS = {
    "host_dot_files": "files whose names begin with a dot are not served, save those below .well-known/",
    "location_include": "nginx configuration of the app's own is not taken",
    "ssi": "files are served as they are",
}


def _staticfile(text: str) -> Settings:
    settings = Settings(source="Staticfile")
    values, codes = _flat_yaml(text)
    for key, value in values.items():
        enabled = value.lower() in ("true", "enabled", "visible", "yes", "on")
        if key in _REASONS:
            if enabled or key == "location_include":
                raise Refused(f"Staticfile: {key} is not supported: {_REASONS[key]}.", "Take it out.")
        elif key == "enable_http2":
            settings.ignored.append(key)
        elif key not in _STATICFILE_KEYS:
            raise Refused(f"Staticfile: the key {key[:60]!r} is not supported.", f"Known: {', '.join(_STATICFILE_KEYS)}.")
        elif key == "root":
            settings.root, settings.root_is_set = check_root(value), True
        elif key == "directory":
            settings.directory_listing = enabled
        elif key == "pushstate" and enabled:
            settings.routes.append(("/**", "/index.html", []))
        elif key == "force_https":
            settings.https_only = enabled
    for code, page in codes.items():
        if not re.fullmatch(r"[45]\d\d", code):
            raise Refused(f"Staticfile: status_codes: {code[:60]!r} is not an error's status.", "For example 404: /404.html")
        settings.error_pages[int(code)] = _path(page, "status_codes")
    _add_strict_transport(settings, values)
    return settings


def _add_strict_transport(settings: Settings, values: dict[str, str]) -> None:
    on = {key for key, value in values.items() if key.startswith(_HSTS) and value.lower() in ("true", "enabled", "yes", "on")}
    if on:
        text = "max-age=31536000"
        if on & {f"{_HSTS}_include_subdomains", f"{_HSTS}_preload"}:
            text += "; includeSubDomains"
        if f"{_HSTS}_preload" in on:
            text += "; preload"
        settings.headers.append(("/**", "Strict-Transport-Security", text))


def _flat_yaml(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The keys of a Staticfile, and those below status_codes. It knows no other nesting."""
    values: dict[str, str] = {}
    codes: dict[str, str] = {}
    section = values
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        if not line or line == "---":
            continue
        matched = re.fullmatch(r"(\s*)([\w\"'-]+):(?:\s+(.*))?", line)
        if not matched or (matched[1] and section is values):
            raise Refused(f"Staticfile: line {number} is not understood: {line[:60]}", "Each line is KEY: VALUE.")
        key, value = matched[2].strip("\"'"), (matched[3] or "").strip().strip("\"'")
        if not matched[1]:
            section = codes if key == "status_codes" and not value else values
            if section is codes:
                continue
        if key in section:
            raise Refused(f"Staticfile: {key[:60]} is there twice.", "Keep one of them.")
        section[key] = value
    return values, codes
