#!/usr/bin/env bash
# Packs an executable of the relay for Debian and its descendants, with the systemd unit and the settings' file.
# Usage: tools/deb.sh EXECUTABLE ARCHITECTURE DIRECTORY      (ARCHITECTURE: amd64 or arm64)
# Prints the package's path. VERSION=… takes the place of package.json's version, and DPKG_DEB_COMPRESSOR_TYPE=none
# saves a minute where nobody downloads the package.
set -euo pipefail
if (($# != 3)) || [[ ! $2 =~ ^(amd64|arm64)$ ]]; then
  echo "usage: tools/deb.sh EXECUTABLE amd64|arm64 DIRECTORY" >&2
  exit 2
fi
executable=$1 architecture=$2 outdir=$3
project=$(cd "$(dirname "$0")/.." && pwd)
field() { sed -n "s/^  \"$1\": \"\(.*\)\",\$/\1/p" "$project/package.json"; }
version=${VERSION:-$(field version)}
maintainer='amesh relay maintainers <ameshdev@users.noreply.github.com>'
# The same files at the same commit make the same package.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$project" log -1 --format=%ct 2>/dev/null || date +%s)}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
umask 022
chmod 755 "$root"
debian=$project/deploy/debian
document=$root/usr/share/doc/amesh-relay
install -D --mode 755 "$executable" "$root/usr/bin/amesh-relay"
install -D --mode 644 "$debian/amesh-relay.default" "$root/etc/default/amesh-relay"
install -D --mode 644 "$debian/lintian-overrides" "$root/usr/share/lintian/overrides/amesh-relay"
mkdir -p "$document"
gzip --best --no-name <"$project/CHANGELOG.md" >"$document/CHANGELOG.md.gz"
# Debian's own form, which its tools expect.
printf 'amesh-relay (%s) stable; urgency=medium\n\n  * See CHANGELOG.md.gz beside this file.\n\n -- %s  %s\n' \
  "$version" "$maintainer" "$(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")" |
  gzip --best --no-name >"$document/changelog.gz"
mkdir -p "$root/usr/share/man/man1"
gzip --best --no-name <"$debian/amesh-relay.1" >"$root/usr/share/man/man1/amesh-relay.1.gz"
# The unit of deploy/, without its first two lines, which say how to install it by hand.
mkdir -p "$root/usr/lib/systemd/system"
sed -e '1,2d' \
  -e 's|^ExecStart=.*|ExecStart=/usr/bin/amesh-relay|' \
  -e 's|/etc/amesh-relay\.env|/etc/default/amesh-relay|' \
  "$project/deploy/amesh-relay.service" >"$root/usr/lib/systemd/system/amesh-relay.service"
{
  printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: amesh-relay\n'
  printf 'Comment: The executable also holds Bun (MIT) with its parts, among them JavaScriptCore (LGPL-2+);\n'
  printf ' https://bun.com/docs/project/license lists them.\n'
  printf 'Source: %s\n\nFiles: *\n' "$(sed -n 's/^    "url": "git+\(.*\)\.git"$/\1/p' "$project/package.json")"
  printf 'Copyright: %s\nLicense: MIT\n' "$(sed -n 's/^Copyright (c) //p' "$project/LICENSE")"
  sed -e '1,/^Copyright/d' "$project/LICENSE" | sed -e '/./,$!d' -e 's/^$/./' -e 's/^/ /'
} >"$document/copyright"

mkdir "$root/DEBIAN"
for script in postinst prerm postrm; do
  install --mode 755 "$debian/$script" "$root/DEBIAN/$script"
done
echo /etc/default/amesh-relay >"$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)
cat >"$root/DEBIAN/control" <<EOF
Package: amesh-relay
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Section: net
Priority: optional
Homepage: $(field homepage)
Depends: libc6 (>= 2.17)
Installed-Size: $(du --apparent-size --summarize --block-size=1024 --exclude=DEBIAN "$root" | cut -f1)
Description: relay that lets two amesh devices pair
 Two devices that pair with amesh meet at a relay by a 6-digit one-time code.
 It carries their end-to-end encrypted messages, and keeps nothing: it needs
 no database and writes nothing to disk.
 .
 The package runs it as a systemd service on port 3001, as a user of its own.
EOF
mkdir -p "$outdir"
package=$outdir/amesh-relay_${version}_$architecture.deb
dpkg-deb --root-owner-group -Z"${DPKG_DEB_COMPRESSOR_TYPE:-xz}" --build "$root" "$package" >/dev/null
echo "$package"
