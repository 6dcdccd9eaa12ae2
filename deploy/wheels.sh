#!/usr/bin/env bash
# Puts every wheel that the images need into wheels/, for builds that reach no package index.
# The first argument names another folder. PYTHON names an interpreter of the base image's version.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# One date for all files: wheels of the same sources are the same bytes, and the engine has what it built of them.
export SOURCE_DATE_EPOCH=1704067200
"${PYTHON:-python3}" -m pip wheel --quiet --disable-pip-version-check -c constraints.txt -w "${1:-wheels}" \
  ./libs/common ./libs/client "./services/gateway[otel]" "./services/worker[openai,anthropic,otel]" watchfiles
rm -rf libs/*/build services/*/build # left by setuptools; what was deleted since would come back from there
