#!/bin/sh
# /tmp is the only place a container may write to.
set -eu
cp -R /srv/sample /tmp/repo
exec mcp-server-git --repository /tmp/repo
