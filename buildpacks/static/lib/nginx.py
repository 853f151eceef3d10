"""Settings to an nginx configuration. What is known only when the site starts is left as a %%NAME%% for `start` to fill in.

Files of a slug all bear the same time, so nginx's own ETag and Last-Modified would be the same for two versions of a file
of the same length: they are off, and the ETag names the release instead.
"""

import re

from settings import Settings

GZIP_TYPES = (
    "application/javascript application/json application/ld+json application/manifest+json application/rss+xml "
    "application/vnd.ms-fontobject application/wasm application/xhtml+xml application/xml font/otf font/ttf "
    "image/svg+xml image/x-icon text/cache-manifest text/css text/calendar text/javascript text/markdown text/plain "
    "text/vcard text/xml"
)
TEXT_TYPES = (
    "application/javascript application/json application/manifest+json application/rss+xml application/xml text/css "
    "text/javascript text/markdown text/plain text/xml"
)
# Files that configure the site; they lie among those to be served when its root is that of the app.
PRIVATE = ["Staticfile", "Staticfile.auth", "static.json", "berth.yaml", "Procfile"]
# Names that build tools give files after their content: at least eight hexadecimal digits, with a letter among them, or,
# in the folders of such tools, eight characters of all kinds.
_TOOL_FOLDERS = r"(?:assets|_astro|_app/immutable|_next/static|static/(?:js|css|media))"
HASHED = [
    r"[.-](?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,}\.(?:\w+\.)*\w+$",
    rf"/{_TOOL_FOLDERS}/(?:.*/)?[^/]*[.-](?=[\w-]*[0-9])(?=[\w-]*[A-Z])(?=[\w-]*[a-z])[\w-]{{8}}\.(?:js|mjs|css|wasm|woff2?)(?:\.map)?$",
]


def quote(text: str) -> str:
    """A word of the configuration, in which nothing is a variable."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "${berth_dollar}") + '"'


def quote_pattern(text: str) -> str:
    """The same where nginx fills in no variables: patterns, and the paths of locations."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def pattern(glob: str) -> str:
    """A regular expression for a glob: * is one segment of the path, ** any number."""
    parts = re.split(r"(\*\*|\*)", glob)
    return "^" + "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts) + "$"


def configuration(settings: Settings) -> str:
    return _HTTP.format(
        error_level=settings.error_level,
        access_log="/dev/stdout berth" if settings.access_log else "off",
        gzip_types=GZIP_TYPES,
        text_types=TEXT_TYPES,
        encoding=settings.encoding,
        hashed="\n".join(f'    "~{item}" "public, max-age=31536000, immutable";'.replace("\\", "\\\\") for item in HASHED),
        maps="".join([*_header_maps(settings), _route_map(settings), _host_map(settings)]),
        server="".join(_server(settings)),
    )


def _header_names(settings: Settings) -> list[str]:
    return list(dict.fromkeys(name.lower() for _, name, _ in settings.headers))


def _header_maps(settings: Settings):
    """One variable for each header; of several globs that fit, the last one counts."""
    for index, name in enumerate(_header_names(settings)):
        default = "$berth_cache_default" if name == "cache-control" else '""'
        lines = [f"    default {default};"]
        for glob, given, value in reversed(settings.headers):
            if given.lower() == name:
                lines.append(f"    {quote_pattern('~' + pattern(glob))} {quote(value)};")
        yield f"  map $berth_uri $berth_header_{index} {{\n    volatile;\n" + "\n".join(lines) + "\n  }\n"


def _route_map(settings: Settings) -> str:
    if not settings.routes:
        return ""
    lines = ['    default "";']
    for glob, target, excepted in settings.routes:
        lines += [f"    {quote_pattern('~' + pattern(item + '**' if item.endswith('/') else item))} \"\";" for item in excepted]
        lines.append(f"    {quote_pattern('~' + _route_pattern(glob))} {quote(target)};")
    return "  map $berth_uri $berth_route {\n" + "\n".join(lines) + "\n  }\n"


def _route_pattern(glob: str) -> str:
    # Pages that have no file of their own; what looks like a file is not answered with a page (see generate.py).
    return r"^(?:.*/)?[^./]*$" if glob == "pages" else pattern(glob)


def _host_map(settings: Settings) -> str:
    if not settings.canonical_host:
        return ""
    own = re.escape(settings.canonical_host)
    # A health check comes straight to the process, without X-Forwarded-Proto, and is answered whatever host it names.
    return (
        '  map "$http_x_forwarded_proto $host" $berth_elsewhere {\n    default "";\n'
        f'    {quote_pattern("~^https? " + own + "$")} "";\n    "~^https " https;\n    "~^http " http;\n  }}\n'
    )


def _server(settings: Settings):
    if settings.https_only:
        yield "    if ($http_x_forwarded_proto = http) { return 301 https://$host$request_uri; }\n"
    if settings.canonical_host:
        yield f"    if ($berth_elsewhere) {{ return 301 $berth_elsewhere://{settings.canonical_host}$request_uri; }}\n"
    yield "    if ($berth_if_none_match = %%UNCHANGED%%) { return 304; }\n"
    names = _header_names(settings)
    for index, name in enumerate(names):
        given = next(given for _, given, _ in settings.headers if given.lower() == name)
        yield f"    add_header {quote(given)} $berth_header_{index}{' always' if name != 'cache-control' else ''};\n"
    if "cache-control" not in names:
        yield "    add_header Cache-Control $berth_cache_default;\n"
    pages = {404: "/404.html", 403: "/404.html", **settings.error_pages}
    if 404 in settings.error_pages and 403 not in settings.error_pages:
        pages[403] = pages[404]
    for code, page in sorted(pages.items()):
        # 403 (a folder without index, a link that leads out) tells a visitor no more than 404 does.
        yield f"    error_page {code} {'=404 ' if code == 403 else ''}{quote(page)};\n"
    if settings.directory_listing:
        yield "    autoindex on;\n"
    clean = "$uri.html " if settings.clean_urls else ""
    private = _private(settings)
    if private:
        yield f'    location ~ {quote_pattern("^/(?:" + "|".join(map(re.escape, private)) + ")$")} {{ return 404; }}\n'
    yield '    location ~ "/\\.(?!well-known(?:/|$))" { return 404; }\n'
    for index, (path, (status, url)) in enumerate(settings.redirects.items()):
        yield f"    location = {quote_pattern(path)} {{ try_files $uri {clean}@redirect_{index}; }}\n"
        yield f"    location @redirect_{index} {{ return {status} {quote(url)}; }}\n"
    route = "$berth_route " if settings.routes else ""
    yield f"    location / {{ try_files {clean}$uri $uri/ {route}=404; }}\n"


def _private(settings: Settings) -> list[str]:
    if settings.root == ".":
        return [*PRIVATE, *filter(None, [settings.auth_file])]
    below = settings.root + "/"
    return [settings.auth_file.removeprefix(below)] if settings.auth_file.startswith(below) else []


_HTTP = """# Made by the static buildpack; %%NAMES%% are filled in when the site starts.
daemon off;
worker_processes %%WORKERS%%;
pid %%WORK%%/nginx.pid;
error_log stderr {error_level};
events {{
  worker_connections 1024;
}}
http {{
  client_body_temp_path %%WORK%%/body;
  proxy_temp_path %%WORK%%/proxy;
  fastcgi_temp_path %%WORK%%/fastcgi;
  uwsgi_temp_path %%WORK%%/uwsgi;
  scgi_temp_path %%WORK%%/scgi;
  include /etc/nginx/mime.types;
  types {{
    application/javascript mjs;
    application/manifest+json webmanifest;
    text/markdown md;
  }}
  default_type application/octet-stream;
  charset {encoding};
  charset_types {text_types};
  sendfile on;
  tcp_nopush on;
  server_tokens off;
  # The router in front keeps connections open, and decides how long.
  keepalive_timeout 1h;
  keepalive_requests 1000000;
  open_file_cache max=5000 inactive=5m;
  open_file_cache_valid 1h;
  etag off;
  if_modified_since off;
  gzip on;
  gzip_static on;
  gzip_vary on;
  gzip_http_version 1.0;
  gzip_proxied any;
  gzip_comp_level 5;
  gzip_min_length 512;
  gzip_types {gzip_types};
  log_format berth '$http_x_forwarded_for "$request" $status $body_bytes_sent ${{request_time}}s request_id=$http_x_request_id';
  access_log {access_log};
  geo $berth_dollar {{
    default "$";
  }}
  map $uri $berth_cache_default {{
    volatile;
    default "%%REVALIDATE%%";
{hashed}
  }}
  map "$request_method $http_if_none_match" $berth_if_none_match {{
    default "";
    "~^(?:GET|HEAD) (?:W/)?(\\"[^\\"]+\\")$" $1;
  }}
{maps}  server {{
    listen %%PORT%%;
    server_name _;
    root "%%ROOT%%";
    index index.html index.htm;
    absolute_redirect off;
    disable_symlinks %%SYMLINKS%%;
    %%AUTH%%
    # The path that was asked for: unlike $uri it stays when nginx answers with another file.
    uninitialized_variable_warn off;
    if ($berth_uri = "") {{ set $berth_uri $uri; }}
    add_header ETag %%ETAG%%;
    add_header Last-Modified "";
{server}  }}
}}
"""
