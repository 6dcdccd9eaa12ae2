#!/usr/bin/env bash
# Runs a command while a Docker engine answers: with-engine.sh COMMAND...
#
# DOCKER_HOST is set for the command. An engine that had to be started for it is stopped afterwards,
# by the last of the commands that use it at the same time. Signals are passed on. Exits with the
# status of the command, and only when nothing of it runs any more.
# shellcheck disable=SC2317  # the functions are called by a trap
set -euo pipefail

(($# > 0)) || {
  echo "usage: with-engine.sh COMMAND..." >&2
  exit 2
}
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
run=${scripts%/*}/.run/engine
borrowed=$run/borrowed
child=

# Each user holds a share of this lock. Nothing that is started here inherits it (8>&-).
mkdir -p "$run"
exec 8>"$run/users.lock"
flock -s 8

# The terminal sends Ctrl-C to its foreground process group. That shall be the command alone: make
# would otherwise report "Interrupt", whatever the command made of it.   terminal give|take
terminal() {
  [[ -t 0 ]] || return 0
  python3 -I -S - "$1" "$child" 8>&- <<'PY' || true
import os, signal, sys

own, other = os.getpgrp(), int(sys.argv[2])
holder, taker = (own, other) if sys.argv[1] == "give" else (other, own)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
with open("/dev/tty") as tty:
    if os.tcgetpgrp(tty.fileno()) == holder:
        os.tcsetpgrp(tty.fileno(), taker)
PY
}

# Whether anything of the command's process group runs. `kill -0` would also find what has ended but
# was never waited for.
group_runs() {
  local file stat state group
  for file in /proc/[0-9]*/stat; do
    { stat=$(<"$file"); } 2>/dev/null || continue
    read -r state _ group _ <<<"${stat##*) }"
    if [[ $group == "$child" && $state != [ZX] ]]; then return 0; fi
  done
  return 1
}

leave() {
  local status=$? tries
  trap '' INT TERM HUP
  if [[ -n $child ]]; then
    terminal take
    for ((tries = 0; tries < 50; tries++)); do
      group_runs || break
      kill -TERM -- "-$child" 2>/dev/null || true
      sleep 0.1
    done
    ((tries < 50)) || kill -KILL -- "-$child" 2>/dev/null || true
  fi
  if flock -n -x 8 && [[ -e $borrowed ]]; then
    # Quietly: the last line of the output is the command's.
    "$scripts/engine.sh" down 8>&- 2>"$run/down.log" || cat "$run/down.log" >&2
  fi
  exit "$status"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if ! DOCKER_HOST=$("$scripts/engine.sh" host 8>&- 2>/dev/null); then
  "$scripts/engine.sh" up 8>&-
  touch "$borrowed"
  DOCKER_HOST=$("$scripts/engine.sh" host 8>&-)
fi
export DOCKER_HOST

set -m # gives the command a process group of its own
(
  trap '' TSTP # nobody could wake it
  trap - INT TERM HUP EXIT
  exec "$@" 8>&-
) &
child=$!
set +m
for signal in INT TERM HUP; do
  # shellcheck disable=SC2064  # both are known now
  trap "interrupted=1; kill -$signal $child 2>/dev/null || true" "$signal"
done
terminal give

interrupted=1
while ((interrupted)); do
  interrupted=0 # a trapped signal ends `wait`, not the command
  wait "$child" && status=0 || status=$?
done
exit "$status"
