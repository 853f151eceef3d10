# shellcheck shell=bash
# Shared by all buildpacks: what they tell Berth, and the build's variables. Source it after output.sh.

# declare_inputs GLOB...: the source files that this buildpack's result depends on (see ../README.md).
declare_inputs() { printf '%s\n' "$@" >> "$BERTH_META/inputs.$BERTH_BUILDPACK"; }

# declare_layer NAME PATH: a directory below the app (relative to it) that becomes an image layer of its own.
declare_layer() { printf '%s\t%s\n' "$1" "$2" >> "$BERTH_META/layers"; }

# export_env_dir DIR: exports the build's variables, but for those that would break the build's own tools.
export_env_dir() {
  local file name
  for file in "$1"/*; do
    name=${file##*/}
    if [ -f "$file" ] && [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] && ! [[ $name =~ ^(PATH|HOME|GIT_DIR|CPATH|CPPATH|LD_PRELOAD|LIBRARY_PATH|LD_LIBRARY_PATH|BASH_ENV|ENV|IFS|SHELLOPTS|BASHOPTS|BUILD_DIR|CACHE_DIR|ENV_DIR|BERTH_META|BERTH_BUILDPACK)$ ]]; then
      # The dot keeps the newlines at the end, which $(...) would drop.
      local value
      value=$(cat "$file" && printf .)
      export "$name=${value%.}"
    fi
  done
}

# profile NAME: writes standard input to .profile.d/NAME.sh of the app, which every process sources at its start.
profile() {
  mkdir -p "$BUILD_DIR/.profile.d"
  cat > "$BUILD_DIR/.profile.d/$1.sh"
}
