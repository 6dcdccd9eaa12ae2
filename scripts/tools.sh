#!/usr/bin/env bash
# Puts the programs that only tests and operators use into .tools/bin: nats, kustomize and kubeconform, pinned and built
# with Go; nginx and promtool unpacked from Debian's packages, so that no service of theirs starts.
# What cannot be had here is left out, and the tests that need it say so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly bin=$PWD/.tools/bin
readonly tools=(
  github.com/nats-io/natscli/nats@v0.5.0
  github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
  sigs.k8s.io/kustomize/kustomize/v5@v5.8.1
)

readonly packages=(nginx:usr/sbin/nginx prometheus:usr/bin/promtool)

go=$(command -v go || echo /usr/local/go/bin/go)

build() { # module@version
  for _ in 1 2 3; do
    if GOBIN=$bin GOFLAGS=-trimpath "$go" install "$1"; then return 0; fi
    sleep 5 # the module proxy may be away for a moment
  done
  return 1
}

unpack() { # package, path of the program in it
  local folder=.tools/$1
  rm -rf "$folder" && mkdir -p "$folder"
  (cd "$folder" && { apt-get download -qq "$1" || { apt-get update -qq && apt-get download -qq "$1"; }; }) || return 1
  (cd "$folder" && dpkg -x ./*.deb . && rm -f ./*.deb) || return 1
  ln -sf "$PWD/$folder/$2" "$bin/"
}

mkdir -p "$bin"
for tool in "${tools[@]}"; do
  mark=.tools/$(tr '/' '_' <<<"$tool")
  if [[ -e $mark ]]; then continue; fi
  if [[ ! -x $go ]]; then
    echo "tools: Go is not installed here: no $tool" >&2
  elif build "$tool"; then
    touch "$mark"
  else
    echo "tools: $tool does not build here" >&2
  fi
done
for package in "${packages[@]}"; do
  name=${package%%:*} path=${package#*:}
  if [[ -x $bin/${path##*/} ]]; then continue; fi
  if ! command -v apt-get >/dev/null; then
    echo "tools: apt-get is not here: no ${path##*/}" >&2
  elif ! unpack "$name" "$path"; then
    echo "tools: Debian's package $name cannot be had here: no ${path##*/}" >&2
  fi
done
