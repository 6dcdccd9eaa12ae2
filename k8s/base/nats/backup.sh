#!/bin/sh
# Copies every stream, with its consumers, to a folder of its own; keeps the newest seven.
set -eu
folder=/backups/$(date -u +%Y%m%dT%H%M%SZ)
nats --server "$NATS_URL" --user "$NATS_USER" --password "$NATS_PASSWORD" backup account "$folder.part" --force
mv "$folder.part" "$folder"
ls -1d /backups/*Z | sort -r | tail -n +8 | xargs -r rm -rf
