#!/bin/sh
# Brings the images of images.txt to the engine, each under the name that the catalog gives it. A worker pulls nothing
# itself: without them its calls would fail, so its pod does not start before all are there. One that cannot be pulled
# but is there already will do.
set -eu
while read -r image; do
  source=${IMAGE_REGISTRY:+$IMAGE_REGISTRY/}$image
  if docker pull --quiet "$source"; then
    if [ "$source" != "$image" ]; then docker tag "$source" "$image"; fi
  else
    docker image inspect --format "{{.Id}} $image is here already" "$image"
  fi
done </etc/tool-images/images.txt
