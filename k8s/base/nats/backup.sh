#!/bin/sh
# Copies every stream, with its consumers, to a folder of its own below $BACKUPS; keeps the newest seven. restore.sh is the
# way back. NATS_URL, NATS_USER and NATS_PASSWORD are read by the CLI itself, so that no list of processes shows them.
#
# JOBS first and SESSIONS last, so that no job in the copy is newer than what is known of it: what had started is known to.
set -eu
backups=${BACKUPS:-/backups}
folder=$backups/$(date -u +%Y%m%dT%H%M%SZ)
trap 'rm -rf "$folder.part"' EXIT
trap 'exit 1' INT TERM

# What runs that were killed have left: the CronJob ends a run after an hour.
find "$backups" -maxdepth 1 -name '*.part' -mmin +60 -exec rm -rf {} +

streams=$(nats stream ls --names)
mkdir "$folder.part"
for stream in JOBS $(echo "$streams" | grep -vxE 'JOBS|SESSIONS') SESSIONS; do
  nats stream backup "$stream" "$folder.part/$stream" --no-progress
done
mv "$folder.part" "$folder"
echo "backed up to $folder: $(ls "$folder" | wc -l) streams"
ls -1d "$backups"/*Z | sort -r | tail -n +8 | xargs -r rm -rf
