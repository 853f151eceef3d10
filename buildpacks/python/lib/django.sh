# Django's static files; sourced by bin/compile, whose variables it uses.
# shellcheck shell=bash
# shellcheck disable=SC2154

# Whether collectstatic is to be run: manage.py, Django installed, and not switched off.
collects_static() {
  manage=$(project manage)
  [ -n "$manage" ] && compgen -G "$VENV/lib/python3*/site-packages/django" > /dev/null || return 1
  if [ -n "${DISABLE_COLLECTSTATIC:-}" ]; then
    detail "DISABLE_COLLECTSTATIC is set: static files are not collected"
    return 1
  fi
}

collect_static() {
  local log=$CACHE/collectstatic.log status=0
  step "Collecting static files"
  detail "\$ python $manage collectstatic --noinput"
  (cd "$(dirname "$BUILD_DIR/$manage")" && PYTHONDONTWRITEBYTECODE=1 python manage.py collectstatic --noinput --traceback) > "$log" 2>&1 || status=$?
  if [ "$status" -ne 0 ] && grep -q "Unknown command: 'collectstatic'" "$log"; then
    detail "Nothing to do: django.contrib.staticfiles is not among INSTALLED_APPS"
    return
  fi
  tail -n 60 "$log" | sed 's/^/       /'
  [ "$status" -eq 0 ] && return
  error "Django's static files could not be collected; the reason is above."
  if grep -q STATIC_ROOT "$log"; then
    error "Set STATIC_ROOT in the settings, for example: STATIC_ROOT = BASE_DIR / 'staticfiles'"
  elif grep -qE 'KeyError|ImproperlyConfigured|UndefinedValueError' "$log"; then
    error "If the settings need a variable that is not there during the build, give it a default, or a value in build.env of berth.yaml."
  fi
  fail "If the app serves no static files, set DISABLE_COLLECTSTATIC: 1 in build.env of berth.yaml."
}
