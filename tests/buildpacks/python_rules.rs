//! The python buildpack's rules, as tables: versions, kinds of project, inputs, default processes.

use crate::trees::{Expectation, expect_each};

const MANAGER: &str = "python3 -I /buildpacks/python/lib/project.py committed $PWD || exit;
    python3 -I /buildpacks/python/lib/project.py plan $PWD /env | cut -f1-2; exit ${PIPESTATUS[0]}";
const INPUTS: &str = "python3 -I /buildpacks/python/lib/project.py inputs $PWD no | paste -sd' '";
const RELEASE: &str = "mkdir -p .venv/bin .venv/lib/python3.11/site-packages
    for name in $(cat installed); do mkdir -p .venv/lib/python3.11/site-packages/$name; touch .venv/bin/$name; done
    python3 -I /buildpacks/python/lib/processes.py --explain $PWD; python3 -I /buildpacks/python/lib/processes.py --release $PWD";

#[test]
fn versions_are_honoured_or_refused_by_name() {
    let pip = ("requirements.txt", "");
    let project = |range: &str| format!("[project]\nname = 'a'\nversion = '1'\nrequires-python = '{range}'\n");
    let (fits, old, patch) = (project(">=3.9, <3.14"), project("<3.11"), project(">=3.11.4"));
    let poetry = |range: &str| format!("[tool.poetry.dependencies]\npython = '{range}'\n");
    let (caret, tilde) = (poetry("^3.9"), poetry("~3.10"));
    let lock = ("poetry.lock", "[metadata]\npython-versions = '*'\n");
    let accepted: &[&str] = &["status 0"];
    let cases: &[Expectation<'_>] = &[
        (&[pip, ("runtime.txt", "python-3.11.2\n")], accepted),
        (&[pip, ("runtime.txt", "python-3.11\r\n")], accepted),
        (&[pip, ("runtime.txt", "python-3.11.x\n")], accepted),
        (&[pip, (".python-version", "# ours\n3.11 # fine\n")], accepted),
        (&[pip, (".python-version", "3\n"), ("runtime.txt", "python-3.11\n")], accepted),
        (&[("pyproject.toml", &fits)], accepted),
        (&[("pyproject.toml", &caret), lock], accepted),
        (
            &[pip, ("runtime.txt", "python-3.12.1")],
            &["runtime.txt asks for Python 3.12.1", "has Python 3.11.2", "python-3.11", "status 1"],
        ),
        (&[pip, ("runtime.txt", "python-3.11.9")], &["asks for Python 3.11.9", "status 1"]),
        (&[pip, ("runtime.txt", "3.11")], &["runtime.txt is not understood", "status 1"]),
        (&[pip, (".python-version", "3.11\n3.12\n")], &["several versions (3.11, 3.12)", "status 1"]),
        (&[pip, (".python-version", "pypy3.10-7.3")], &["pypy3.10-7.3", "status 1"]),
        (
            &[pip, (".python-version", "3.12"), ("runtime.txt", "python-3.11")],
            &[".python-version asks for Python 3.12, runtime.txt for Python 3.11", "status 1"],
        ),
        (&[("pyproject.toml", &old)], &["pyproject.toml (requires-python) asks for Python <3.11", "status 1"]),
        (&[("pyproject.toml", &patch)], &["asks for Python >=3.11.4", "status 1"]),
        (&[("pyproject.toml", &tilde), lock], &["asks for Python ~3.10", "status 1"]),
        (
            &[("Pipfile", ""), ("Pipfile.lock", r#"{"_meta": {"requires": {"python_version": "3.8"}}}"#)],
            &["Pipfile.lock asks for Python 3.8", "status 1"],
        ),
    ];
    expect_each(cases, MANAGER);
}

#[test]
fn the_kind_of_project_is_known_or_refused() {
    let project = "[project]\nname = 'a'\nversion = '1'\n";
    let cases: &[Expectation<'_>] = &[
        (&[("requirements.txt", "")], &["pip\tyes", "status 0"]),
        (&[("requirements.txt", ""), ("pyproject.toml", "[tool.black]\n")], &["pip\tyes", "status 0"]),
        (&[("pyproject.toml", project)], &["uv-unlocked\tyes", "status 0"]),
        (&[("setup.py", "")], &["setup\tno", "status 0"]),
        (&[("requirements.txt", "-e ./lib\n")], &["pip\tno", "status 0"]),
        (&[("requirements.txt", "lib @ file:///app/lib\n")], &["pip\tno", "status 0"]),
        (&[("requirements.txt", "-r more/dev.txt\n"), ("more/dev.txt", "./wheels/a.whl\n")], &["pip\tno", "status 0"]),
        (&[("requirements.txt", "a @ git+https://host/a.git@1\nb==1 # ./c\n")], &["pip\tyes", "status 0"]),
        (
            &[("requirements.txt", ""), ("poetry.lock", ""), ("pyproject.toml", project)],
            &["requirements.txt, poetry.lock", "status 1"],
        ),
        (&[("Pipfile", ""), ("requirements.txt", "")], &["no Pipfile.lock", "status 1"]),
        (&[("uv.lock", "")], &["not pyproject.toml", "status 1"]),
        (&[("pyproject.toml", "[tool.poetry]\nname = 'a'\n")], &["no poetry.lock", "poetry lock", "status 1"]),
        (&[("pyproject.toml", "[project\n")], &["not valid TOML", "line 1", "status 1"]),
        (&[("requirements.txt", ""), ("env/pyvenv.cfg", "home = /usr")], &["git rm -r --cached env", "status 1"]),
        (&[("requirements.txt", ""), (".venv/bin/python", "->/usr/bin/python3")], &["The folder .venv/", "status 1"]),
    ];
    expect_each(cases, MANAGER);
}

#[test]
fn inputs_are_few_or_everything() {
    let pure = "[project]\nname = 'a'\nversion = '1'\n[build-system]\nbuild-backend = 'hatchling.build'\n";
    let native = "[project]\nname = 'a'\nversion = '1'\n[build-system]\nbuild-backend = 'setuptools.build_meta'\n";
    let web = "processes:\n  # two of them\n  worker: {command: x}\n  web:\n    command: y\n";
    let cases: &[Expectation<'_>] = &[
        (
            &[
                ("requirements.txt", "-r requirements/base.txt\n-c 'pins.txt'"),
                ("requirements/base.txt", ""),
                ("pins.txt", ""),
            ],
            &["requirements/base.txt", "pins.txt", " app.py "],
        ),
        (&[("requirements.txt", "-r ../outside.txt")], &["**\nstatus 0"]),
        (&[("requirements.txt", "-e ."), ("setup.py", "")], &["**\nstatus 0"]),
        (&[("requirements.txt", ""), ("bin/post_compile", "")], &["**\nstatus 0"]),
        (&[("pyproject.toml", pure)], &["src/*/__init__.py"]),
        (&[("pyproject.toml", native)], &["**\nstatus 0"]),
        (&[("requirements.txt", ""), ("Procfile", "web: x"), ("app.py", "")], &["runtime.txt setup.cfg"]),
        (&[("requirements.txt", ""), ("berth.yaml", web)], &["runtime.txt setup.cfg"]),
        (&[("requirements.txt", ""), ("berth.yaml", "processes: {worker: x}\nweb: 1")], &["server.py"]),
    ];
    expect_each(cases, INPUTS);
}

#[test]
fn the_default_web_process_is_found_where_it_can_be_known() {
    let flask = "from flask import Flask\napp = Flask(__name__)\n";
    let manage = "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'config.settings.production')";
    let gunicorn = ("installed", "flask gunicorn");
    let looked_up = "web: 'python -I .berth/python/web'";
    let cases: &[Expectation<'_>] = &[
        (&[gunicorn, ("main.py", flask)], &["web: gunicorn --bind 0.0.0.0:$PORT main:app", looked_up]),
        (&[gunicorn, ("src/app.py", flask)], &["gunicorn --chdir src --bind 0.0.0.0:$PORT app:app"]),
        (
            &[gunicorn, ("app/__init__.py", "import flask as f\ndef create_app():\n    return f.Flask('a')\n")],
            &["gunicorn --bind 0.0.0.0:$PORT 'app:create_app()'", looked_up],
        ),
        (
            &[gunicorn, ("wsgi.py", "from shop import create_app\nsite: object = create_app()\n")],
            &["gunicorn --bind 0.0.0.0:$PORT wsgi:site"],
        ),
        (
            &[("installed", "flask waitress-serve"), ("app.py", flask)],
            &["waitress-serve --listen=0.0.0.0:$PORT app:app"],
        ),
        (
            &[("installed", "uvicorn"), ("app/main.py", "import fastapi\napi = fastapi.FastAPI()\n")],
            &["uvicorn --host 0.0.0.0 --port $PORT app.main:api", looked_up],
        ),
        (&[("installed", "flask"), ("app.py", flask)], &["Add gunicorn", "default_process_types: {}"]),
        (
            &[gunicorn, ("app.py", "Flask = print\napp = Flask()\n")],
            &["No default web process", "default_process_types: {}"],
        ),
        (&[gunicorn, ("app.py", "def broken(:\n")], &["No default web process"]),
        (
            &[("installed", "django gunicorn"), ("manage.py", manage), ("config/wsgi.py", "")],
            &["web: 'gunicorn --bind 0.0.0.0:$PORT config.wsgi'"],
        ),
        (
            &[("installed", "django gunicorn"), ("site/manage.py", manage), ("site/config/wsgi.py", "")],
            &["web: 'gunicorn --chdir site --bind 0.0.0.0:$PORT config.wsgi'"],
        ),
        (
            &[("installed", "django uvicorn"), ("manage.py", ""), ("shop/asgi.py", "")],
            &["web: 'uvicorn --host 0.0.0.0 --port $PORT shop.asgi:application'"],
        ),
        (
            &[("installed", "django"), ("manage.py", manage), ("config/wsgi.py", "")],
            &["python manage.py runserver --noreload 0.0.0.0:$PORT", "add gunicorn"],
        ),
    ];
    expect_each(cases, RELEASE);
}
