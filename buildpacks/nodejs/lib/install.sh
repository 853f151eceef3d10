# shellcheck shell=bash disable=SC2154  # PLAN_* come from plan.js
# Dependencies: a frozen install by the app's package manager, or what the last one left when nothing it depends on changed.

# What the installed tree depends on, as one hash. $1: "all" or "production".
dependencies_key() {
  {
    echo "$1 $PLAN_NODE_VERSION $PLAN_MANAGER $PLAN_MANAGER_VERSION $STACK"
    env | grep -iE '^(npm_config|yarn|pnpm)_' | LC_ALL=C sort
    find . \( -name node_modules -o -name .git -o -path ./.berth -o -path ./.yarn/cache -o -path ./.yarn/unplugged \) -prune -o -type f \
      \( -name package.json -o -name package-lock.json -o -name npm-shrinkwrap.json -o -name yarn.lock -o -name 'pnpm-lock.yaml' -o -name .npmrc \
      -o -name .yarnrc -o -name .yarnrc.yml -o -name 'pnpm-workspace.yaml' -o -name .pnpmfile.cjs -o -path './patches/*' -o -path './.yarn/*' \) -print0 |
      LC_ALL=C sort -z | xargs -0 -r sha256sum
  } | sha256sum | cut -c1-32
}

# The directories that installs make, null-terminated.
installed_paths() {
  find . -path ./.berth -prune -o -name node_modules -prune -print0
  if [ -n "$PLAN_PNP" ]; then find . -maxdepth 2 \( -name '.pnp.*' -o -path './.yarn/cache' -o -path './.yarn/unplugged' -o -path './.yarn/install-state.gz' \) -print0; fi
}

# Dependencies alone decide the tree: no scripts of the app run while installing, and none of them is a folder of the app.
reusable() { [ "${NODE_MODULES_CACHE:-}" != false ] && [ -n "$PLAN_LOCK" ] && [ -z "$PLAN_LIFECYCLE$PLAN_LOCAL$PLAN_BUNDLED" ]; }

restore_dependencies() {
  local kept=$CACHE/dependencies/$1.tar
  [ -f "$kept" ] || return 1
  if with_progress "still unpacking dependencies" tar -xpf "$kept"; then
    touch "$kept"
    return
  fi
  rm -f "$kept" # torn
  installed_paths | xargs -0 -r rm -rf
  return 1
}

save_dependencies() {
  local kept=$CACHE/dependencies temporary
  mkdir -p "$kept"
  temporary=$(mktemp "$kept/XXXXXX.tmp")
  installed_paths > /tmp/nodejs.installed
  if with_progress "still saving dependencies" tar --null -T /tmp/nodejs.installed -cf "$temporary"; then
    mv "$temporary" "$kept/$1.tar"
  else
    rm -f "$temporary"
  fi
  # The newest two serve the two environments or branches that are usually in play.
  find "$kept" -name '*.tar' -printf '%T@ %p\n' | sort -rn | tail -n +3 | cut -d' ' -f2- | xargs -r rm -f
}

readonly DOWNLOADS_LIMIT_MB=2048

# Downloads of package managers only ever grow: now and then, begin anew. And what builds left that were ended half-way.
bound_cache() {
  local dir
  for dir in npm yarn berry pnpm-store; do
    if [ -d "$CACHE/$dir" ] && [ "$(du -sm "$CACHE/$dir" | cut -f1)" -gt "$DOWNLOADS_LIMIT_MB" ]; then
      detail "The cache of downloads ($dir) has grown beyond $DOWNLOADS_LIMIT_MB MB: starting it anew"
      rm -rf "${CACHE:?}/$dir"
    fi
  done
  find "$CACHE" -maxdepth 2 -name '*.tmp*' -mmin +60 -exec rm -rf {} + 2>/dev/null || true
}

# install_with_manager all|production: what the package manager does, frozen where there is a lock file.
install_with_manager() {
  local -a command
  case $PLAN_MANAGER in
    npm)
      command=(npm "$([ -n "$PLAN_LOCK" ] && echo ci || echo install)" --no-audit --no-fund)
      if [ "${PLAN_MANAGER_VERSION%%.*}" -lt 7 ]; then
        command+=("--production=$([ "$1" = production ] && echo true || echo false)" --unsafe-perm)
      elif [ "$1" = production ]; then command+=(--omit=dev); else command+=(--include=dev); fi
      ;;
    pnpm)
      command=(pnpm install "$([ -n "$PLAN_LOCK" ] && echo --frozen-lockfile || echo --no-frozen-lockfile)" --store-dir "$CACHE/pnpm-store" --reporter=append-only)
      command+=("$([ "$1" = production ] && echo --prod || echo --prod=false)")
      ;;
    yarn)
      if [ -n "$PLAN_BERRY" ]; then
        command=(yarn install)
        if [ -n "$PLAN_LOCK" ]; then command+=(--immutable); else command+=(--no-immutable); fi
        # Only yarn 4 can leave development dependencies out without a plugin.
        if [ "$1" = production ]; then command=(yarn workspaces focus --all --production); fi
      else
        command=(yarn install --ignore-engines --non-interactive --no-progress "--production=$([ "$1" = production ] && echo true || echo false)")
        if [ -n "$PLAN_LOCK" ]; then command+=(--frozen-lockfile); fi
      fi
      ;;
  esac
  detail "${command[*]/$CACHE/\$CACHE}"
  with_progress "still installing dependencies" "${command[@]}"
}

frozen_install_failed() {
  if [ -n "$PLAN_LOCK" ]; then
    fail "$PLAN_MANAGER could not install the dependencies exactly as $PLAN_LOCK says (its own words are above)." \
      "If package.json and $PLAN_LOCK do not match, run $PLAN_MANAGER install and commit $PLAN_LOCK."
  fi
  fail "$PLAN_MANAGER could not install the dependencies (its own words are above)."
}

# Whether anything in the build can call for development dependencies.
needs_development() {
  [ -n "$PLAN_PREBUILD$PLAN_BUILD$PLAN_CLEANUP$PLAN_LIFECYCLE$PLAN_WORKSPACES$PLAN_LOCAL$PLAN_BUNDLED$PLAN_BERRY" ] || [ -z "$PLAN_LOCK" ]
}

keeps_development() {
  [ "${NPM_CONFIG_PRODUCTION:-}" = false ] || [ "${YARN_PRODUCTION:-}" = false ] || [ "${YARN2_SKIP_PRUNING:-}" = true ] ||
    [ "${PNPM_SKIP_PRUNING:-}" = true ]
}

install_dependencies() {
  local what=production key
  if [ -n "$PLAN_NOTHING_TO_INSTALL" ]; then
    if [ -z "$PLAN_LIFECYCLE" ]; then
      detail "package.json names no dependencies"
      return
    fi
  fi
  if needs_development || keeps_development; then what=all; fi
  if [ -d node_modules ]; then
    warn "node_modules is in the repository; it is replaced by what the lock file says. Remove it: git rm -r --cached node_modules"
    rm -rf node_modules
  fi
  if ! reusable; then
    install_with_manager "$what" || frozen_install_failed
    bound_cache
    return
  fi
  key=$(dependencies_key "$what")
  if restore_dependencies "$key"; then
    detail "Dependencies unchanged: reusing what the last build installed"
    return
  fi
  install_with_manager "$what" || frozen_install_failed
  save_dependencies "$key"
  bound_cache
}

prune_dependencies() {
  if ! needs_development || [ -n "$PLAN_NOTHING_TO_INSTALL" ]; then return; fi
  if keeps_development; then
    step "Keeping development dependencies, as the build's variables ask"
    return
  fi
  step "Pruning development dependencies"
  case $PLAN_MANAGER in
    npm)
      if [ "${PLAN_MANAGER_VERSION%%.*}" -lt 7 ]; then set -- --production; else set -- --omit=dev; fi
      with_progress "still pruning" npm prune "$@" --no-audit --no-fund --ignore-scripts ;;
    pnpm)
      # Else pnpm keeps what it unlinks for a week.
      export npm_config_modules_cache_max_age=0 pnpm_config_modules_cache_max_age=0
      with_progress "still pruning" pnpm install --prod --frozen-lockfile --offline --ignore-scripts --store-dir "$CACHE/pnpm-store" --reporter=append-only ;;
    yarn) prune_yarn ;;
  esac || fail "The development dependencies could not be removed (above: what $PLAN_MANAGER said)."
}

prune_yarn() {
  if [ -z "$PLAN_BERRY" ]; then
    with_progress "still pruning" yarn install --production=true --frozen-lockfile --ignore-scripts --ignore-engines --non-interactive --no-progress --prefer-offline
  elif yarn workspaces focus --help >/dev/null 2>&1; then
    # Whether packages may be built again is decided: they were, in the first install.
    YARN_ENABLE_SCRIPTS=${YARN_ENABLE_SCRIPTS:-true} with_progress "still pruning" yarn workspaces focus --all --production
  else
    warn "Yarn $PLAN_MANAGER_VERSION cannot prune without its workspace-tools plugin; development dependencies stay in the slug."
  fi
}
