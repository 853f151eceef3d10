# The environment of a Python app's processes. Values that the app's config sets win, but for PATH.
# shellcheck shell=bash
export PATH="/app/.venv/bin:$PATH"
export VIRTUAL_ENV=/app/.venv
export PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1}
export PYTHONPATH=${PYTHONPATH-/app}
export LANG=${LANG:-C.UTF-8}
# Only Berth's router reaches the port, and it sets X-Forwarded-* itself.
export FORWARDED_ALLOW_IPS=${FORWARDED_ALLOW_IPS-*}
export GUNICORN_CMD_ARGS=${GUNICORN_CMD_ARGS---access-logfile - --worker-tmp-dir /dev/shm}

# How many worker processes a web server should start (gunicorn and uvicorn read it): two for each core and one more,
# as far as the memory allows 256 MiB for each.
if [ -z "${WEB_CONCURRENCY:-}" ]; then
  berth_cores=$(nproc 2>/dev/null || echo 1)
  berth_memory='' berth_quota='' berth_period=''
  if [ -r /sys/fs/cgroup/cpu.max ]; then
    read -r berth_quota berth_period < /sys/fs/cgroup/cpu.max
    read -r berth_memory < /sys/fs/cgroup/memory.max
  elif [ -r /sys/fs/cgroup/cpu/cpu.cfs_quota_us ]; then
    read -r berth_quota < /sys/fs/cgroup/cpu/cpu.cfs_quota_us
    read -r berth_period < /sys/fs/cgroup/cpu/cpu.cfs_period_us
    read -r berth_memory < /sys/fs/cgroup/memory/memory.limit_in_bytes
  fi
  if [[ $berth_quota =~ ^[0-9]+$ && $berth_period =~ ^[1-9][0-9]*$ ]]; then
    berth_cores=$(((berth_quota + berth_period - 1) / berth_period))
  fi
  WEB_CONCURRENCY=$((2 * berth_cores + 1))
  # The kernel writes "max", or a number of 19 digits, for no limit.
  if [[ $berth_memory =~ ^[0-9]{1,15}$ ]]; then
    berth_memory=$((berth_memory / (256 * 1024 * 1024)))
    if ((berth_memory < WEB_CONCURRENCY)); then WEB_CONCURRENCY=$((berth_memory > 1 ? berth_memory : 1)); fi
  fi
  export WEB_CONCURRENCY
  unset berth_cores berth_memory berth_quota berth_period
fi
