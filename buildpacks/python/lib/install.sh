# Installs packages into the virtual environment; sourced by bin/compile.
# shellcheck shell=bash
# The variables are those of bin/compile.
# shellcheck disable=SC2154

readonly MAX_CACHE_MB=1024
readonly WHEELS=/usr/share/python-wheels # of the stack: pip and setuptools

# install_packages MANAGER REUSABLE KEY: leaves a complete virtual environment, from the cache if KEY was installed before.
install_packages() {
  local manager=$1 reusable=$2 key=$3
  if [ "$reusable" = yes ] && restore_venv "$key"; then
    detail "Packages unchanged, reusing the virtual environment"
    return
  fi
  rm -rf "$VENV"
  bound_cache
  local -x PIP_CACHE_DIR=$CACHE/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off PIP_NO_COLOR=1
  # As newer versions of pip do: what is built from source is kept as a wheel.
  local -x PIP_USE_PEP517=1
  local -x UV_CACHE_DIR=$CACHE/uv UV_LINK_MODE=copy UV_PYTHON=/usr/bin/python3 UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
  local -x UV_PROJECT_ENVIRONMENT=$VENV UV_SYSTEM_CERTS=1
  make_venv "$manager"
  case $manager in
    setup) step "Installing the package of setup.py with pip" ;;
    *) step "Installing packages with ${manager%%-*}" ;;
  esac
  case $manager in
    pip) install_pip ;;
    setup) pip_install -e . ;;
    pipenv) install_pipenv ;;
    poetry) install_poetry ;;
    uv) install_uv --locked ;;
    uv-unlocked) install_uv_unlocked ;;
  esac
  compile_bytecode
  if [ "$reusable" = yes ]; then save_venv "$key"; fi
}

# A virtual environment of the stack's Python. Those of pip also hold pip and setuptools, as such apps expect.
make_venv() {
  /usr/bin/python3 -I -m venv --without-pip "$VENV" || fail "The virtual environment could not be made in $VENV."
  if [ "$1" != uv ] && [ "$1" != uv-unlocked ]; then
    uv pip install --quiet --offline --python "$VENV/bin/python" --no-index --find-links "$WHEELS" pip setuptools ||
      fail "pip could not be installed from the stack's own wheels in $WHEELS."
  fi
}

# pip_install ARGUMENT...: without byte code, which is made at the end, in a reproducible form.
pip_install() {
  (cd "$BUILD_DIR" && with_progress "installing packages" "$VENV/bin/python" -I -m pip install --no-compile "$@") ||
    fail "The packages could not be installed." \
      "What pip says is above: a package or version that does not exist, or one that needs a library the stack lacks."
}

install_pip() { pip_install -r requirements.txt; }

install_pipenv() {
  local wanted=$CACHE/requirements.txt
  prepare_tool pipenv
  if ! (cd "$BUILD_DIR" && pipenv_tool verify) > "$CACHE/verify.log" 2>&1; then
    sed 's/^/       /' "$CACHE/verify.log"
    fail "Pipfile.lock does not belong to this Pipfile." "Run \`pipenv lock\`, and add Pipfile.lock to git."
  fi
  (cd "$BUILD_DIR" && pipenv_tool requirements --hash > "$wanted") || fail "Pipfile.lock could not be read by pipenv."
  pip_install -r "$wanted"
}

# pipenv, kept from looking for a virtual environment or a Pipfile elsewhere.
pipenv_tool() {
  VIRTUAL_ENV=$VENV PIPENV_IGNORE_VIRTUALENVS=0 PIPENV_PIPFILE=$BUILD_DIR/Pipfile PIPENV_NOSPIN=1 PIPENV_DONT_LOAD_ENV=1 PIPENV_VERBOSITY=-1 \
    "$tools/bin/pipenv" "$@"
}

# The packages come through an export, since `poetry install` needs an index with a JSON interface.
install_poetry() {
  local wanted=$CACHE/requirements.txt
  local -x POETRY_VIRTUALENVS_CREATE=false POETRY_CACHE_DIR=$CACHE/poetry POETRY_CONFIG_DIR=$CACHE/poetry-config POETRY_NO_INTERACTION=1
  prepare_tool poetry
  if ! (cd "$BUILD_DIR" && "$tools/bin/poetry" export --only main --format requirements.txt --output "$wanted") > "$CACHE/export.log" 2>&1; then
    sed 's/^/       /' "$CACHE/export.log"
    if grep -q 'changed significantly' "$CACHE/export.log"; then
      fail "poetry.lock does not belong to this pyproject.toml." "Run \`poetry lock\`, and add poetry.lock to git."
    fi
    fail "poetry.lock could not be read by Poetry; the reason is above."
  fi
  pip_install -r "$wanted"
  if project is-package > /dev/null; then
    (cd "$BUILD_DIR" && VIRTUAL_ENV=$VENV with_progress "installing the project itself" "$tools/bin/poetry" install --only-root --no-interaction) ||
      fail "The project itself could not be installed." \
        "If it is not a package, say so in pyproject.toml: [tool.poetry] package-mode = false"
  fi
}

# install_uv OPTION...: the project itself is installed in place, so that a change of its code needs no new build.
install_uv() {
  (cd "$BUILD_DIR" && with_progress "installing packages" uv sync --no-default-groups --no-color "$@") && return
  if [ "${1:-}" = --locked ] && ! (cd "$BUILD_DIR" && uv lock --check --offline --quiet) 2>/dev/null; then
    fail "uv sync --locked failed." "If uv.lock does not belong to this pyproject.toml: run \`uv lock\`, and add uv.lock to git."
  fi
  fail "The packages could not be installed." "What uv says is above."
}

install_uv_unlocked() {
  warn "There is no uv.lock, so each build may install other versions: run \`uv lock\`, and add uv.lock to git."
  install_uv
  # uv writes one, which is not part of the app's source.
  rm -f "$BUILD_DIR/uv.lock"
}

# prepare_tool NAME: sets `tools` to a virtual environment with the pinned tool, made once for each cache.
prepare_tool() {
  local name=$1 list=$pack/tools/$1.txt
  tools=$CACHE/tools/$name-$(sha256sum < "$list" | cut -c1-16)
  if [ -e "$tools/complete" ] && "$tools/bin/$name" --version > /dev/null 2>&1; then return; fi
  detail "Fetching $name"
  rm -rf "$CACHE/tools/$name"-*
  /usr/bin/python3 -I -m venv --without-pip "$tools"
  with_progress "fetching $name" uv pip install --quiet --compile-bytecode --python "$tools/bin/python" --require-hashes -r "$list" ||
    fail "$name could not be fetched from the package index." "What went wrong is above; it may be enough to push again."
  touch "$tools/complete"
}

# Byte code that holds whatever the files' times are, so that the layer is the same for the same packages. All of it (-f):
# pip's own run has left some of the other kind.
compile_bytecode() {
  "$VENV/bin/python" -I -m compileall -f -q -q --invalidation-mode unchecked-hash "$VENV/lib" > /dev/null || true
}

# restore_venv KEY: unpacks the virtual environment of an earlier build; fails when there is none, or it is not whole.
restore_venv() {
  local kept=$CACHE/venv-$1.tar
  [ -f "$kept" ] || return 1
  rm -rf "$VENV"
  if tar -C "$BUILD_DIR" -xpf "$kept" 2>/dev/null && [ "$(cat "$VENV/.berth-key" 2>/dev/null)" = "$1" ] && "$VENV/bin/python" -I -c '' 2>/dev/null; then
    return 0
  fi
  detail "The cached virtual environment is damaged, making a new one"
  rm -rf "$VENV" "$kept"
  return 1
}

# save_venv KEY: keeps one virtual environment for later builds. The key is the archive's last entry, so it vouches for the rest.
save_venv() {
  printf '%s' "$1" > "$VENV/.berth-key"
  rm -f "$CACHE"/venv-*
  local new
  new=$(mktemp "$CACHE/venv-new.XXXXXX")
  if tar -C "$BUILD_DIR" --sort=name --exclude=.venv/.berth-key -cf "$new" .venv 2>/dev/null &&
    tar -C "$BUILD_DIR" -rf "$new" .venv/.berth-key 2>/dev/null &&
    mv "$new" "$CACHE/venv-$1.tar" 2>/dev/null; then
    return 0
  fi
  rm -f "$new"
  warn "The virtual environment could not be kept for the next build."
}

# Empties the package caches when they have grown too large. Builds of the app's other environments may use them at the same time: what
# comes or goes meanwhile is no reason to fail.
bound_cache() {
  local folder size
  for folder in "$CACHE/pip" "$CACHE/uv"; do
    [ -d "$folder" ] || continue
    size=$({ du -sm "$folder" 2>/dev/null || true; } | cut -f1)
    if [ "${size:-0}" -gt "$MAX_CACHE_MB" ]; then rm -rf "$folder" || true; fi
  done
}
