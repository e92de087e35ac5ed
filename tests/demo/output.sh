# How the demo talks: headings, commands before what they print, and checks. Colours only on a terminal.

if [ -t 1 ]; then
  bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
  bold='' dim='' green='' red='' plain=''
fi

heading() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

# The command as a person would type it: without the paths and options that only the demo needs.
shown() {
  local words="$*"
  words=${words//ctl /orlopctl }
  words=${words//"--fifo-dir $demo/fifo "/}
  words=${words//"$top/"/}
  printf '%s$ %s%s\n' "$dim" "$words" "$plain"
}

# Shows a command, then runs it. A command that fails ends the demo.
run() {
  shown "$*"
  "$@"
}

# Says what something is, then runs the command that prints it.
show() {
  printf '%s# %s%s\n' "$dim" "$1" "$plain"
  shift
  "$@"
}

# expect WHAT WANTED FOUND
expect() {
  if [ "$2" = "$3" ]; then
    printf '%s✓%s %s: %s\n' "$green" "$plain" "$1" "${3:-none}"
  else
    printf '%s✗%s %s: "%s", not "%s"\n' "$red" "$plain" "$1" "$3" "$2"
    exit 1
  fi
}

# wait_for WHAT COMMAND…: at most ten seconds.
wait_for() {
  local what=$1
  shift
  for _ in $(seq 200); do
    "$@" 2>/dev/null && return
    sleep 0.05
  done
  printf '%s✗%s not within 10 s: %s\n' "$red" "$plain" "$what"
  exit 1
}

# The limits of a cgroup, on version 1 or 2.
show_limits() {
  local file
  for file in "memory/$1/memory.limit_in_bytes" "cpu/$1/cpu.cfs_quota_us" "cpu/$1/cpu.cfs_period_us" "pids/$1/pids.max" \
    "$1/memory.max" "$1/cpu.max" "$1/pids.max"; do
    [ ! -e "/sys/fs/cgroup/$file" ] || printf '%-26s %s\n' "$(basename "$file")" "$(cat "/sys/fs/cgroup/$file")"
  done
}

say_done() { printf '\n%s%sAll of it worked, and nothing is left.%s\n' "$bold" "$green" "$plain"; }
say_failed() { printf '\n%s%sThe demo failed.%s The manager said:\n' "$bold" "$red" "$plain" >&2; }
