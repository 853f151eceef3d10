# Reads a Procfile; sourced by this buildpack's programs. Berth's own reader (src/manifest/procfile.rs) decides what runs, and
# this one, which only says so early and during the build, follows the same rules.
# shellcheck shell=bash

# process_types FILE: prints TYPE<TAB>COMMAND for each process. Blank lines and comments (a # at the start of a line or
# after a space) are left out; a line that is neither is reported on standard error, and makes it fail.
process_types() {
  local line number=0 status=0
  local -r pattern='^[[:space:]]*([a-z][a-z0-9_-]*):[[:space:]]*(.*[^[:space:]])[[:space:]]*$'
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    line=${line%$'\r'}
    if [ "$number" -eq 1 ]; then line=${line#$'\xef\xbb\xbf'}; fi
    if [[ $line =~ ^[[:space:]]*(#.*)?$ ]]; then continue; fi
    if [[ $(without_comment "$line") =~ $pattern ]]; then
      printf '%s\t%s\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
    else
      printf ' !     Procfile, line %d is not of the form TYPE: COMMAND: %s\n' "$number" "${line:0:80}" >&2
      status=1
    fi
  done < "$1"
  return "$status"
}

# Cuts a comment off: a # that begins a word outside quotes, as the shell that runs the command would see it.
without_comment() {
  local text=$1 index char quote='' escaped='' word_begins=yes
  for ((index = 0; index < ${#text}; index++)); do
    char=${text:index:1}
    if [ -n "$escaped" ]; then
      escaped='' word_begins=''
      continue
    fi
    case $quote$char in
      \\ | \"\\) escaped=yes ;;
      \' | \") quote=$char ;;
      \'\' | \"\") quote='' ;;
      '#') if [ -n "$word_begins" ]; then break; fi ;;
    esac
    word_begins=''
    if [[ $char == [[:space:]] ]]; then word_begins=yes; fi
  done
  printf '%s' "${text:0:index}"
}
