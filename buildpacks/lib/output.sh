# shellcheck shell=bash
# Shared by all buildpacks: what they say to the person who pushes. Source it.

step() { printf -- '-----> %s\n' "$*"; }
detail() { printf '       %s\n' "$*"; }
warn() { printf ' !     %s\n' "$*"; }
error() { printf ' !     %s\n' "$*" >&2; }

# fail LINE...: says why, and ends the build.
fail() {
  printf ' !     %s\n' "$@" >&2
  exit 1
}

# with_progress LABEL COMMAND...: runs the command, its output indented; never silent for more than 10 s.
# Returns the command's status.
with_progress() { "$(dirname "${BASH_SOURCE[0]}")/progress" "$@"; }
