# shellcheck shell=bash
# Shared by the scripts; sourced, never run.

# The repository's root; every script works from there.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1
# Where the Rust installer puts cargo.
PATH="$PATH:$HOME/.cargo/bin"

if [ -t 1 ]; then BOLD=$'\e[1m' RED=$'\e[31m' RESET=$'\e[0m'; else BOLD='' RED='' RESET=''; fi

# step TEXT: a heading, with the seconds since the script began.
step() { printf '%s[%4ds] %s%s\n' "$BOLD" "$SECONDS" "$*" "$RESET"; }
# detail TEXT: something below a heading.
detail() { printf '        %s\n' "$*"; }
# die WHAT [NEXT...]: says what failed and what to do next, and ends.
die() {
  printf '%s ! %s%s\n' "$RED" "$1" "$RESET" >&2
  shift
  local next
  for next in "$@"; do printf '   %s\n' "$next" >&2; done
  exit 1
}

# as_root COMMAND...: runs it as root, with sudo when needed.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "this needs root: $*" "Run it as root, or install sudo."
  fi
}

# wait_until SECONDS WHAT COMMAND...: runs the command until it succeeds; ends with an error when the time is up.
wait_until() {
  local limit=$1 what=$2 end
  shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "$what did not happen within $limit s"
    sleep 0.1
  done
}

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
