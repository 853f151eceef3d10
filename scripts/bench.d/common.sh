# shellcheck shell=bash
# What the benchmarks share: a Berth and an sshd of their own on free loopback ports, in a temporary directory; all is gone afterwards.
# Sourced by scripts/bench after scripts/lib.sh.

BERTH=$ROOT/target/release/berth
WORK=$(mktemp -d /tmp/berth-bench.XXXXXX)
DATA=$WORK/data
PIDS=()

clean_up() {
  local pid
  for pid in "${PIDS[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${PIDS[@]}"; do wait "$pid" 2>/dev/null || true; done
  if declare -F clean_up_bench >/dev/null; then clean_up_bench || true; fi
  if [ -e "$DATA/instance" ]; then "$BERTH" teardown --yes --data-dir "$DATA" >/dev/null || true; fi
  rm -rf "$WORK"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

median() { sort -n | awk '{v[NR] = $1} END {print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN {printf "%.3f", a / b}'; }

SSH_PORT=$(free_port) HTTP_PORT=$(free_port) REGISTRY_PORT=$(free_port) API_PORT=$(free_port) SSHD_PORT=$(free_port)

start_berth() {
  export BERTH__SSH__LISTEN="['127.0.0.1:$SSH_PORT']" BERTH__ROUTER__LISTEN="['127.0.0.1:$HTTP_PORT']"
  export BERTH__REGISTRY__ADDRESS="127.0.0.1:$REGISTRY_PORT" BERTH__API__LISTEN="['127.0.0.1:$API_PORT']"
  mkdir -p "$DATA/stacks"
  ln -s "$STACKS"/* "$DATA/stacks/"
  "$BERTH" router --data-dir "$DATA" --config config/berth.yaml >"$WORK/router.log" 2>&1 &
  PIDS+=($!)
  "$BERTH" serve --data-dir "$DATA" --config config/berth.yaml >"$WORK/serve.log" 2>&1 &
  SERVE=$!
  PIDS+=("$SERVE")
  wait_until 120 "berth serve" "$BERTH" status --data-dir "$DATA"
  make_key
  "$BERTH" upload-key bench --data-dir "$DATA" <"$WORK/key.pub" >/dev/null
  ssh_host berth "$SSH_PORT" berth
  ssh -F "$WORK/ssh_config" berth tenants create bench >/dev/null
  ssh -F "$WORK/ssh_config" berth apps create bench/app >/dev/null
}

# The benchmark's own key, for both sides.
make_key() { [ -e "$WORK/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$WORK/key"; }

# ssh_host NAME PORT USER: a host of that name for `ssh -F $WORK/ssh_config`.
ssh_host() {
  printf 'Host %s\n  HostName 127.0.0.1\n  Port %s\n  User %s\n  IdentityFile %s\n  IdentitiesOnly yes\n' "$1" "$2" "$3" "$WORK/key" >>"$WORK/ssh_config"
  printf '  UserKnownHostsFile %s\n  StrictHostKeyChecking accept-new\n  LogLevel ERROR\n' "$WORK/known_hosts" >>"$WORK/ssh_config"
}

# OpenSSH's sshd, for the peer.
start_sshd() {
  mkdir -p /run/sshd
  make_key
  ssh-keygen -q -t ed25519 -N '' -f "$WORK/sshd_key"
  cp "$WORK/key.pub" "$WORK/authorized_keys"
  cat >"$WORK/sshd_config" <<EOF
Port $SSHD_PORT
ListenAddress 127.0.0.1
HostKey $WORK/sshd_key
AuthorizedKeysFile $WORK/authorized_keys
StrictModes no
UsePAM no
PermitRootLogin yes
MaxStartups 1000
PidFile $WORK/sshd.pid
EOF
  /usr/sbin/sshd -D -f "$WORK/sshd_config" 2>"$WORK/sshd.log" &
  PIDS+=($!)
  ssh_host peer "$SSHD_PORT" "$(id -un)"
  wait_until 10 "sshd" ssh -F "$WORK/ssh_config" -o BatchMode=yes peer true
}

# git with our ssh and nothing of the user's configuration.
bench_git() {
  GIT_SSH_COMMAND="ssh -F $WORK/ssh_config" GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=b GIT_AUTHOR_EMAIL=b@localhost \
    GIT_COMMITTER_NAME=b GIT_COMMITTER_EMAIL=b@localhost git "$@"
}
