#!/bin/sh
# Brings the streams of a backup back: restore.sh [--replace] FOLDER
#
# Where one of them exists nothing is changed, unless --replace says to remove those before. Gateways and workers have to be
# stopped: they make every stream that they miss. With NATS_REPLICAS each gets so many copies instead of as many as it had.
# NATS_URL, NATS_USER and NATS_PASSWORD are read by the CLI itself.
set -eu
replace=
if [ "${1:-}" = --replace ]; then
  replace=yes
  shift
fi
folder=${1:?usage: restore.sh [--replace] FOLDER}

for file in "$folder"/JOBS/backup.json "$folder"/SESSIONS/backup.json; do
  [ -s "$file" ] || { echo "$folder is no whole backup: $file is missing. Nothing was changed." >&2; exit 2; }
done
case $folder in
  *.part | *.part/) echo "$folder is a backup that did not end. Nothing was changed." >&2; exit 2 ;;
esac
streams=$(ls "$folder")
present=$(nats stream ls --names)
existing=$(echo "$streams" | while read -r stream; do echo "$present" | grep -xF "$stream" || :; done)
if [ -n "$existing" ] && [ -z "$replace" ]; then
  echo "these exist, and --replace was not given. Nothing was changed:" $existing >&2
  exit 1
fi

for stream in $existing; do
  nats stream rm "$stream" --force
  echo "removed $stream"
done
for stream in $streams; do
  nats stream restore "$folder/$stream" --no-progress ${NATS_REPLICAS:+--replicas "$NATS_REPLICAS"} >/dev/null
  state=$(nats stream state "$stream")
  echo "restored $stream: $(echo "$state" | sed -n 's/^ *Messages: *//p') messages"
done
