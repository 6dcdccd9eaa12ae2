#!/bin/sh
# Runs as a hook of mmdebstrap: makes an extracted, never configured tree usable as a base image.
# Does what the maintainer scripts of the packages would have done, as far as it matters.
#   finish.sh TREE [CA_BUNDLE]
set -eu
tree=$1

# Half of the tree, and nothing a tool server reads. Of git only its add-ons are written in Perl.
rm -rf "$tree"/usr/share/doc "$tree"/usr/share/man "$tree"/usr/share/info \
  "$tree"/usr/share/locale "$tree"/usr/share/perl "$tree"/usr/share/lintian \
  "$tree"/usr/lib/*/perl "$tree"/usr/lib/*/perl-base "$tree"/usr/bin/perl* \
  "$tree"/usr/share/bash-completion "$tree"/var/lib/apt "$tree"/var/cache/apt "$tree"/var/lib/dpkg

cp "$tree"/usr/share/base-passwd/passwd.master "$tree"/etc/passwd
cp "$tree"/usr/share/base-passwd/group.master "$tree"/etc/group
mkdir -p "$tree"/tmp "$tree"/etc/ssl/certs
chmod 1777 "$tree"/tmp

# A machine behind a proxy that re-signs TLS trusts an authority that no stock image knows.
if [ -f "${2:-}" ]; then
  cp "$2" "$tree"/etc/ssl/certs/ca-certificates.crt
  chmod 644 "$tree"/etc/ssl/certs/ca-certificates.crt
fi

chroot "$tree" ldconfig

# A container's root is read-only: byte code that is missing now is compiled anew at each start,
# which takes 0.35 s. Some files of lib2to3 are no valid Python 3, hence the `|| true`.
if [ -x "$tree"/usr/bin/python3 ]; then
  chroot "$tree" python3 -m compileall -q -j 0 /usr/lib/python3 /usr/lib/python3.[0-9]* >/dev/null || true
fi
