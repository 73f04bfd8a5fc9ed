#!/usr/bin/env bash
# Tries the Debian package as its users do, in a bare Debian: installs it, upgrades it, changes its settings, removes and
# purges it, with a real systemd that starts the relay. Takes two minutes, root, debootstrap and systemd-nspawn; says
# SKIPPED and why where one of them is missing. Usage: tools/try-deb.sh
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
  echo "SKIPPED: the Debian package in a bare Debian, since $1" >&2
  exit 0
}
((EUID == 0)) || skip 'it takes root'
for command in bun dpkg-deb debootstrap systemd-nspawn nsenter; do
  command -v "$command" >/dev/null || skip "there is no $command here"
done

work=$(mktemp -d /var/tmp/amesh-relay-deb.XXXXXX)
debian=$work/debian
nspawn=
clean_up() {
  # Killed, and not asked to shut down: the folder goes anyway.
  [[ -z $nspawn ]] || { pkill -KILL --parent "$nspawn" || true; kill -KILL "$nspawn" || true; wait "$nspawn" || true; } 2>/dev/null
  rm -rf --one-file-system "$work"
}
trap clean_up EXIT
fail() {
  echo "FAILED: $1" >&2
  inside journalctl --no-pager --unit amesh-relay 2>/dev/null | tail -20 >&2 || true
  exit 1
}
# Waits for what has to become true by itself, ten seconds at most.
until_true() {
  for _ in $(seq 100); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  fail "in vain waited for: $*"
}
expect() { # expect WHAT IS WANTED
  [[ $2 == "$3" ]] || fail "$1 is \"$2\", not \"$3\""
}

architecture=$(dpkg --print-architecture)
executable=$(bun tools/executables.ts "$work" "linux-$architecture")
export DPKG_DEB_COMPRESSOR_TYPE=none
debootstrap --variant=minbase --include=systemd,systemd-sysv bookworm "$debian" >"$work/log" 2>&1 || skip "debootstrap failed: $(tail -1 "$work/log")"
for VERSION in 1.0.0 1.0.1; do
  VERSION=$VERSION tools/deb.sh "$executable" "$architecture" "$debian/root" >/dev/null
done
if command -v lintian >/dev/null; then
  lintian --allow-root --fail-on error,warning \
    --suppress-tags uses-no-compression-for-control-tarball,uses-no-compression-for-data-tarball \
    "$debian/root/amesh-relay_1.0.0_$architecture.deb"
fi

# Systemd as process 1 in namespaces of its own, with a network of its own that has nothing but loopback.
systemd-nspawn --directory="$debian" --boot --register=no --keep-unit --private-network --machine=amesh-relay-deb \
  --quiet --console=pipe </dev/null >"$work/boot" 2>&1 & nspawn=$!
booted() { init=$(pgrep --parent "$nspawn" --exact systemd); }
until_true booted
inside() { nsenter --target "$init" --all -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
until_true inside systemctl is-system-running
traces() { (cd "$debian" && find . -xdev \( -path ./var/log -o -path ./var/cache -o -path ./var/lib/apt -o -path ./run -o -path ./tmp -o -path ./proc -o -path ./sys -o -path ./dev \) -prune -o -print | grep -v '^./var/lib/dpkg/\(status\|available\|lock\)' | LC_ALL=C sort); }
traces >"$work/before"
install() { inside apt-get install --quiet --quiet --yes "$@" "/root/amesh-relay_${version}_$architecture.deb" </dev/null >"$work/log" 2>&1 || fail "apt-get: $(tail -5 "$work/log")"; }
active() { inside systemctl is-active amesh-relay || true; }
enabled() { inside systemctl is-enabled amesh-relay || true; }
settings=$debian/etc/default/amesh-relay

version=1.0.0
install
until_true inside amesh-relay health
expect 'the service' "$(active) $(enabled)" 'active enabled'
main=$(inside systemctl show --property MainPID --value amesh-relay)
(($(inside stat --format %u "/proc/$main") > 60000)) || fail 'the relay has no user of its own'
for host in 127.0.0.1 '[::1]'; do
  inside amesh-relay check --idle 0 "ws://$host:3001/ws" >"$work/log" || fail "check: $(cat "$work/log")"
done
inside systemd-analyze security --no-pager amesh-relay | tail -1
echo 'installed: it runs, as a user of its own, and a device gets through'

echo 'PORT=3210' >>"$settings"
inside systemctl restart amesh-relay
until_true inside env PORT=3210 amesh-relay health
version=1.0.1
install
until_true inside env PORT=3210 amesh-relay health
grep --quiet '^PORT=3210$' "$settings" || fail 'the settings are lost'
expect 'the version' "$(inside dpkg-query --show --showformat '${Version}' amesh-relay)" 1.0.1
[[ $(inside systemctl show --property MainPID --value amesh-relay) != "$main" ]] || fail 'the old relay still runs'
echo 'upgraded: the new one runs, with the settings of before'

inside systemctl --quiet disable --now amesh-relay
install --reinstall
expect 'the service after an upgrade of a disabled one' "$(active) $(enabled)" 'inactive disabled'
inside systemctl --quiet enable --now amesh-relay
until_true inside env PORT=3210 amesh-relay health
echo 'disabled by hand: an upgrade leaves it so'

inside apt-get remove --quiet --quiet --yes amesh-relay >/dev/null
expect 'the service after removal' "$(active)" inactive
[[ -e $settings ]] || fail 'a removal took the settings along'
inside apt-get purge --quiet --quiet --yes amesh-relay >/dev/null
traces >"$work/after"
diff "$work/before" "$work/after" || fail 'a purge left these'
expect 'what dpkg knows' "$(inside dpkg --list amesh-relay 2>/dev/null | grep -c '^.[^n] *amesh-relay' || true)" 0
echo 'removed and purged: no trace is left'
