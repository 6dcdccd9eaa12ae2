#!/usr/bin/env bash
# Puts the programs that only tests and operators use into .tools/bin: nats, kustomize and kubeconform, pinned and built
# with Go; nginx, prometheus and promtool unpacked from Debian's packages, so that no service starts. Into .tools/schemas: the
# definitions of the kinds that k8s/components use and Kubernetes does not have, and the schema of skaffold.yaml, out of the
# Go modules of their projects.
# What cannot be had here is left out, and the tests that need it say so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly bin=$PWD/.tools/bin
readonly tools=(
  github.com/nats-io/natscli/nats@v0.5.0
  github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
  sigs.k8s.io/kustomize/kustomize/v5@v5.8.1
)

# package:its programs
readonly packages=(nginx:usr/sbin/nginx prometheus:usr/bin/promtool,usr/bin/prometheus)

# module@version:folder of its definitions:their files, or the ends of their names
readonly definitions=(
  github.com/kedacore/keda/v2@v2.21.0:config/crd/bases:_scaledobjects.yaml
  sigs.k8s.io/gateway-api@v1.7.0:config/crd/standard:_gateways.yaml,_httproutes.yaml
  github.com/prometheus-operator/prometheus-operator@v0.85.0:example/prometheus-operator-crd:_podmonitors.yaml,_prometheusrules.yaml,_servicemonitors.yaml
  github.com/external-secrets/external-secrets@v1.3.2:config/crds/bases:_externalsecrets.yaml
  github.com/cert-manager/cert-manager@v1.21.2:deploy/crds:_certificates.yaml
  github.com/GoogleContainerTools/skaffold/v2@v2.16.1:docs-v2/content/en/schemas:v4beta11.json
)

go=$(command -v go || echo /usr/local/go/bin/go)

build() { # module@version
  for _ in 1 2 3; do
    if GOBIN=$bin GOFLAGS=-trimpath "$go" install "$1"; then return 0; fi
    sleep 5 # the module proxy may be away for a moment
  done
  return 1
}

unpack() { # package, paths of the programs in it
  local folder=.tools/$1 path
  rm -rf "$folder" && mkdir -p "$folder"
  (cd "$folder" && { apt-get download -qq "$1" || { apt-get update -qq && apt-get download -qq "$1"; }; }) || return 1
  (cd "$folder" && dpkg -x ./*.deb . && rm -f ./*.deb) || return 1
  for path in "${@:2}"; do ln -sf "$PWD/$folder/$path" "$bin/"; done
}

extract() { # module@version, folder of its definitions, ends of their names
  local zip end
  for _ in 1 2 3; do
    # Its exit code tells also of a module that wants a newer Go than this one; its files are there all the same.
    zip=$("$go" mod download -json "$1" 2>/dev/null | sed -n 's/^\t"Zip": "\(.*\)",\{0,1\}$/\1/p' || true)
    if [[ -n $zip ]]; then break; fi
    sleep 5
  done
  if [[ -z ${zip:-} ]]; then return 1; fi
  for end in ${3//,/ }; do
    python3 - "$zip" "$1/$2" "$end" .tools/schemas <<'EOF' || return 1
import pathlib, sys, zipfile
zip_, folder, end, target = sys.argv[1:]
with zipfile.ZipFile(zip_) as files:
    name = next(n for n in files.namelist() if n.startswith(folder + "/") and n.endswith(end))
    pathlib.Path(target, pathlib.PurePath(name).name).write_bytes(files.read(name))
EOF
  done
}

mkdir -p "$bin" .tools/schemas
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
  name=${package%%:*}
  IFS=, read -ra paths <<<"${package#*:}"
  missing=0
  for path in "${paths[@]}"; do [[ -x $bin/${path##*/} ]] || missing=1; done
  if ((!missing)); then continue; fi
  if ! command -v apt-get >/dev/null; then
    echo "tools: apt-get is not here: no programs of $name" >&2
  elif ! unpack "$name" "${paths[@]}"; then
    echo "tools: Debian's package $name cannot be had here, nor its programs" >&2
  fi
done
for definition in "${definitions[@]}"; do
  IFS=: read -r module folder ends <<<"$definition"
  mark=.tools/schemas/$(tr '/' '_' <<<"$module")
  if [[ -e $mark ]]; then continue; fi
  if [[ ! -x $go ]]; then
    echo "tools: Go is not installed here: no definitions of $module" >&2
  elif extract "$module" "$folder" "$ends"; then
    touch "$mark"
  else
    echo "tools: the definitions of $module cannot be had here" >&2
  fi
done
