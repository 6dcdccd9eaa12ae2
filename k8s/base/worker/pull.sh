#!/bin/sh
# Brings the images of images.txt to the engine, each under the name that the catalog gives it. A worker pulls nothing
# itself: without them its calls would fail, so its pod does not start before all are there.
set -eu
while read -r image; do
  docker pull --quiet "${IMAGE_REGISTRY:+$IMAGE_REGISTRY/}$image"
  if [ -n "${IMAGE_REGISTRY:-}" ]; then docker tag "$IMAGE_REGISTRY/$image" "$image"; fi
done </etc/tool-images/images.txt
