#!/usr/bin/env bash
# A Docker engine for this checkout: the one that is already there, or a private one.
#
#   engine.sh up              make sure an engine answers (starts a private one when none does)
#   engine.sh host            print the DOCKER_HOST URL of the engine that answers
#   engine.sh status          say which engine answers and what belongs to this checkout
#   engine.sh down [--purge]  stop the private engine; --purge also removes its images
#
# An engine that was not started here is used, never changed and never stopped.
set -euo pipefail
export LC_ALL=C # a decimal point in $EPOCHREALTIME, and messages that can be searched for

begin=${EPOCHREALTIME/./}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
run=$root/.run/engine
data=$run/data
log=$run/dockerd.log
pidfile=$run/dockerd.pid
# Unix socket paths end at 107 bytes and containerd nests several levels below the exec root, so
# this part does not live in the checkout. The hash keeps several checkouts apart.
exec_root=/run/mcp-orchestrator/$(printf '%s' "$root" | sha256sum | cut -c1-8)
private=unix://$exec_root/docker.sock
default=unix:///var/run/docker.sock
containerd_pidfile=$exec_root/containerd/containerd.pid

# with-engine.sh writes it: the engine runs for a command only and ends with it.
borrowed=$run/borrowed

say() { printf '%s\n' "$*" >&2; }
elapsed() {
  local tenths=$(((${EPOCHREALTIME/./} - begin) / 100000))
  printf '%d.%d s' $((tenths / 10)) $((tenths % 10))
}
die() {
  say "engine: $*"
  exit 1
}

# The few API calls needed here, over the standard library: a new machine has neither curl nor the
# docker command line.   api URL ping | api URL remove-containers
api() {
  python3 -I -S - "$@" 2>/dev/null <<'PY'
import http.client, json, socket, sys

url, action = sys.argv[1:]
scheme, _, address = url.partition("://")
timeout = 2.0 if action == "ping" else 60.0
if scheme == "unix":
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(timeout)
    link.connect(address)
elif scheme in ("tcp", "http"):
    host, _, port = address.strip("/").rpartition(":")
    link = socket.create_connection((host.strip("[]"), int(port)), timeout)
else:
    sys.exit(2)
api = http.client.HTTPConnection("engine", timeout=timeout)
api.sock = link


def call(method, path):
    api.request(method, path)
    answer = api.getresponse()
    return answer.status, answer.read()


if action == "ping":
    status, body = call("GET", "/_ping")
    sys.exit(0 if status == 200 and body == b"OK" else 1)
for container in json.loads(call("GET", "/containers/json?all=1")[1]):
    call("DELETE", "/containers/" + container["Id"] + "?force=1&v=1")
PY
}

answers() { api "$1" ping; }

# Prints the URL of the first engine that answers.
find_engine() {
  local url
  for url in ${DOCKER_HOST:+"$DOCKER_HOST"} "$default" "$private"; do
    # A path that is no socket cannot answer: saves starting an interpreter to learn it.
    [[ $url != unix://* || -S ${url#unix://} ]] || continue
    if answers "$url"; then
      printf '%s\n' "$url"
      return
    fi
  done
  return 1
}

# A pid file outlives a crash or a reboot, and its number may by then belong to another process:
# only the command line tells.   alive FILE WORD... : prints the pid if all the words occur in it
alive() {
  local pid cmdline word
  pid=$(cat "$1" 2>/dev/null) || return 1
  [[ $pid =~ ^[0-9]+$ ]] || return 1
  cmdline=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") || return 1
  shift
  for word in "$@"; do [[ $cmdline == *"$word"* ]] || return 1; done
  printf '%s\n' "$pid"
}
dockerd_pid() { alive "$pidfile" dockerd "--pidfile=$pidfile"; }
containerd_pid() { alive "$containerd_pidfile" containerd "$exec_root/"; }

# containerd and the shims name the exec root's containerd directory in their command line.
leftover_pids() {
  local dir cmdline
  for dir in /proc/[0-9]*; do
    cmdline=$(tr '\0' ' ' 2>/dev/null <"$dir/cmdline") || continue
    if [[ $cmdline == *containerd*" $exec_root/containerd/"* ]]; then printf '%s\n' "${dir##*/}"; fi
  done
}

# A process that ended but was not waited for has an empty command line. Not every container's
# process 1 waits for what it inherits, and `kill -0` still finds those.
running() {
  local first
  { IFS= read -r -d '' first <"/proc/$1/cmdline"; } 2>/dev/null && [[ -n $first ]]
}

# wait_gone PID TENTHS
wait_gone() {
  local tries
  for ((tries = 0; tries < $2; tries++)); do
    running "$1" || return 0
    sleep 0.1
  done
  return 1
}

end_process() {
  kill -TERM "$1" 2>/dev/null || return 0
  wait_gone "$1" 100 || kill -KILL "$1" 2>/dev/null || true
  wait_gone "$1" 50
}

# One `up` or `down` at a time. Everything started below closes descriptor 9, or the lock would
# live as long as the daemon.
lock() {
  mkdir -p "$run"
  exec 9>"$run/lock"
  flock -w 300 9 || die "another engine.sh of this checkout holds $run/lock for 5 minutes"
}

install_packages() {
  local policy=/usr/sbin/policy-rc.d kept=
  command -v apt-get >/dev/null ||
    die "no Docker engine answers: install and start Docker, or set DOCKER_HOST to one that runs"
  say "engine: installing the distribution's docker packages"
  # Installing docker.io starts a system-wide daemon, which edits the firewall of the machine. Only
  # the programs are wanted; status 101 of policy-rc.d means "start nothing".
  if [[ -e $policy ]]; then
    kept=$policy.mcp-orchestrator
    mv "$policy" "$kept"
  fi
  # shellcheck disable=SC2064  # expanded now: the variables are local
  trap "rm -f '$policy'; if [[ -n '$kept' ]]; then mv '$kept' '$policy'; fi" EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  # One unreachable archive among many fails the update; only the installation decides.
  apt-get update -q >"$run/apt.log" 2>&1 9>&- || true
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    -o DPkg::Lock::Timeout=120 docker.io containerd runc tini ca-certificates \
    >>"$run/apt.log" 2>&1 9>&- ||
    die "apt-get could not install docker.io: $(tail -n 1 "$run/apt.log") (.run/engine/apt.log)"
  # Nor should it start at the next boot.
  if command -v systemctl >/dev/null; then
    systemctl disable docker.service docker.socket containerd.service >>"$run/apt.log" 2>&1 || true
  fi
  rm -f "$policy"
  if [[ -n $kept ]]; then mv "$kept" "$policy"; fi
  trap - EXIT
}

launch() {
  local fd
  mkdir -p "$data" "$exec_root"
  # dockerd believes both pid files: it refuses to start for the first and, worse, kills whatever
  # process has the number in the second when that does not answer as containerd.
  dockerd_pid >/dev/null || rm -f "$pidfile"
  containerd_pid >/dev/null || rm -f "$containerd_pidfile"
  rm -f "$exec_root/docker.sock"
  printf '{}\n' >"$run/daemon.json" # else the settings of the machine in /etc/docker apply
  [[ ! -e $log ]] || mv "$log" "$log.1"
  (
    # Keeps no descriptor of the caller: make and CI wait for the last holder of their pipes.
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      if ((fd > 2)); then exec {fd}>&-; fi
    done
    cd /
    # No bridge and no packet filter rules: containers run without a network, builds on the host's.
    # live-restore lets containers outlive a crash of dockerd. The namespace keeps apart from a
    # system-wide containerd, which dockerd would share.
    exec setsid dockerd \
      --config-file="$run/daemon.json" --pidfile="$pidfile" --host="$private" \
      --data-root="$data" --exec-root="$exec_root" --containerd-namespace="mcp-${exec_root##*/}" \
      --bridge=none --iptables=false --ip6tables=false --live-restore
  ) </dev/null >"$log" 2>&1 &
  local launched=$! tries
  disown "$launched"
  for ((tries = 0; tries < 600; tries++)); do
    sleep 0.05
    if [[ -S $exec_root/docker.sock ]] && answers "$private"; then return; fi
    running "$launched" || break
  done
  tail -n 5 "$log" >&2
  return 1
}

up() {
  local url pid
  rm -f "$borrowed" # asked for by name, so it stays
  if url=$(find_engine); then
    say "engine: $url answers"
    return
  fi
  [[ -z ${DOCKER_HOST:-} || $DOCKER_HOST == "$private" ]] ||
    say "engine: DOCKER_HOST=$DOCKER_HOST does not answer, looking further"
  if ((EUID != 0)); then
    [[ ! -S ${default#unix://} || -w ${default#unix://} ]] ||
      die "no permission for ${default#unix://}: join its group ($(stat -c %G "${default#unix://}")) or run as root"
    die "no Docker engine answers: install and start Docker, set DOCKER_HOST, or run as root once"
  fi
  lock
  if answers "$private"; then # started by another call while this one waited for the lock
    say "engine: $private answers"
    return
  fi
  if pid=$(dockerd_pid); then # runs but does not answer
    say "engine: ending dockerd $pid, which does not answer"
    end_process "$pid"
  fi
  command -v dockerd >/dev/null || install_packages
  launch || die "dockerd did not start, see .run/engine/dockerd.log"
  say "engine: started $(elapsed), $private"
}

down() {
  local pid mount purge=${1:-}
  [[ -z $purge || $purge == --purge ]] || die "usage: engine.sh down [--purge]"
  if [[ ! -d $run && ! -d $exec_root ]]; then return; fi
  lock
  # Containers outlive a dockerd that was killed and only a dockerd can remove them properly.
  if ! dockerd_pid >/dev/null && [[ -n $(leftover_pids) ]]; then launch || true; fi
  if pid=$(dockerd_pid); then
    # live-restore would leave them running
    api "$private" remove-containers || say "engine: dockerd did not remove all containers"
    end_process "$pid" || die "dockerd $pid does not end"
    say "engine: stopped $(elapsed)"
  fi
  for pid in $(leftover_pids); do end_process "$pid" || die "process $pid does not end"; done
  # What a daemon or a container that was killed leaves mounted would block the removal. The last
  # mounts first: they may lie within the others.
  tac /proc/self/mounts | while read -r _ mount _; do
    mount=$(printf '%b' "$mount") # a space is \040 there
    if [[ $mount/ == "$data"/* || $mount/ == "$exec_root"/* ]]; then umount -l "$mount" || true; fi
  done
  if [[ -d $exec_root ]]; then rm -rf --one-file-system "$exec_root"; fi
  rm -f "$pidfile" "$borrowed"
  if [[ $purge == --purge ]]; then rm -rf --one-file-system "$data"; fi
}

host() {
  find_engine || die "no Docker engine answers, 'scripts/engine.sh up' starts one"
}

status() {
  local url pid
  if url=$(find_engine); then printf 'engine: %s answers\n' "$url"; else printf 'engine: none answers\n'; fi
  if pid=$(dockerd_pid); then
    printf 'private engine: dockerd %s, %s\n' "$pid" "$private"
  else
    printf 'private engine: not running\n'
  fi
  if [[ -d $data ]]; then printf 'private images: %s\n' "$(du -sh "$data" 2>/dev/null | cut -f1)"; fi
}

case ${1:-} in
  up | host | status) "$1" ;;
  down) down "${2:-}" ;;
  *) die "usage: engine.sh up | host | status | down [--purge]" ;;
esac
