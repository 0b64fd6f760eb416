#!/usr/bin/env bash
# Fetches Debian's PgBouncer into .cache/, unpacked only: nothing is installed, nothing starts by itself.
# Without it, or without a package mirror, the tests behind a real pooler are skipped. Safe to call again and again.
set -uo pipefail
cd "$(dirname "$0")/.."

folder=.cache/pgbouncer
program=$folder/usr/sbin/pgbouncer

without() {
  echo "PgBouncer was not fetched: $1. Tests behind it are skipped."
  exit 0
}

runs() {
  LD_LIBRARY_PATH=$(echo "$folder"/usr/lib/*-linux-gnu*) "$program" --version 2>/dev/null | head -n 1
}

command -v pgbouncer >/dev/null && { pgbouncer --version | head -n 1; exit 0; }
[ -x "$program" ] && [ -n "$(runs)" ] && runs && exit 0
for tool in apt-get apt-cache dpkg-deb ldd; do
  command -v "$tool" >/dev/null || without "$tool is not on this machine"
done

if ! apt-cache show pgbouncer >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] || without "the package lists are empty and only root can fetch them"
  timeout 120 apt-get update -qq >/dev/null 2>&1 || without "apt-get update failed"
fi

mkdir -p "$folder" .cache/debs-pgbouncer && chmod 755 .cache "$folder"
fetch() {
  (cd .cache/debs-pgbouncer && timeout 120 apt-get download -qq "$1" >/dev/null 2>&1) || echo "could not fetch $1"
}

fetch pgbouncer
for deb in .cache/debs-pgbouncer/*.deb; do
  [ -e "$deb" ] && dpkg-deb -x "$deb" "$folder"
done
[ -x "$program" ] || { rm -rf .cache/debs-pgbouncer; without "the package could not be fetched"; }

# Libraries that a small image lacks come along, in the version the package names.
if ldd "$program" | grep -q 'not found'; then
  rm -f .cache/debs-pgbouncer/*.deb
  for package in $(apt-cache depends --no-recommends --no-suggests --no-enhances pgbouncer | sed -n 's/.*Depends: \(libc-ares\|libevent\)/\1/p'); do
    fetch "$package"
  done
  for deb in .cache/debs-pgbouncer/*.deb; do
    [ -e "$deb" ] && dpkg-deb -x "$deb" "$folder"
  done
fi
rm -rf .cache/debs-pgbouncer
[ -n "$(runs)" ] || without "it does not run here"
runs
