#!/usr/bin/env bash
# Prints both Secrets with fresh random values: k8s/secrets.sh acme operator | kubectl apply -f -
# The keys of the tenants that are named go to stderr, once; the Secret holds their hashes only. Needs openssl.
set -euo pipefail
(($#)) || { echo "usage: secrets.sh TENANT..." >&2; exit 2; }
keys=
for tenant; do
  key=$(openssl rand -hex 32)
  echo "$tenant: $key" >&2
  keys+="${keys:+, }\"$tenant\": \"$(printf %s "$key" | sha256sum | cut -d' ' -f1)\""
done
# Letters first: a value that begins with a digit may be read as a number by nats-server.
password() { echo "p$(openssl rand -hex 24)"; }
cat <<EOF
apiVersion: v1
kind: Secret
metadata: {name: orchestrator, namespace: mcp-orchestrator}
stringData:
  API_KEYS: '{$keys}'
  CHAT_API_KEY: "${CHAT_API_KEY:-}"
---
apiVersion: v1
kind: Secret
metadata: {name: nats-users, namespace: mcp-orchestrator}
stringData:
  gateway-password: $(password)
  worker-password: $(password)
  operator-password: $(password)
EOF
