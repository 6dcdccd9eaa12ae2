#!/usr/bin/env bash
# Makes .venv with all packages of this repository and what their checks and tests need.
#
# PYTHON names another interpreter than python3.
set -euo pipefail
export LC_ALL=C

begin=${EPOCHREALTIME/./}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
log=.run/setup.log
mkdir -p .run
: >"$log"

die() {
  echo "setup: $*" >&2
  exit 1
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>>"$log"; }

# Debian ships the parts of Python that make virtual environments in a package of its own.
if ! command -v "$python" >/dev/null || ! "$python" -c 'import ensurepip, venv' 2>>"$log"; then
  if ((EUID != 0)) || [[ -n ${PYTHON:-} ]] || ! command -v apt-get >/dev/null; then
    die "$python with its venv module is missing: install the packages python3 and python3-venv"
  fi
  echo "setup: installing python3-venv" >&2
  # One unreachable archive among many fails the update; only the installation decides.
  apt-get update -q >>"$log" 2>&1 || true
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    -o DPkg::Lock::Timeout=120 python3 python3-venv ca-certificates >>"$log" 2>&1 ||
    die "apt-get could not install python3-venv: $(tail -n 1 "$log") ($log)"
fi
new_enough "$python" ||
  die "$("$python" -V) is too old: install Python 3.11 or later, or name it: make setup PYTHON=python3.12"

if ! { [[ -x .venv/bin/python ]] && new_enough .venv/bin/python; }; then
  rm -rf .venv
  "$python" -m venv .venv >>"$log" 2>&1 || die "python3 -m venv failed: $(tail -n 1 "$log") ($log)"
fi

# One call for all: they depend on each other and are on no index.
packages=()
for project in libs/*/pyproject.toml services/*/pyproject.toml; do
  packages+=(-e "${project%/*}")
done
# The tests run the real SDKs, the screen and the tracing.
packages+=(-e "services/worker[openai,anthropic]" -e "libs/client[top]" -e "libs/common[otel]")
.venv/bin/python -m pip install --disable-pip-version-check --no-input -c constraints.txt \
  -r requirements-dev.txt "${packages[@]}" >>"$log" 2>&1 || {
  tail -n 15 "$log" >&2
  die "pip failed, see $log"
}
tenths=$(((${EPOCHREALTIME/./} - begin) / 100000))
echo "setup: .venv is ready $((tenths / 10)).$((tenths % 10)) s" >&2
