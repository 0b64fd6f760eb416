#!/usr/bin/env bash
# Fetches Debian's PostgreSQL 15 server into .cache/, unpacked only: nothing is installed, nothing starts by itself.
# Without it, or without a package mirror, the tests on version 15 are skipped. Safe to call again and again.
set -uo pipefail
cd "$(dirname "$0")/.."

version=15
folder=.cache/postgres-$version
server=$folder/usr/lib/postgresql/$version/bin

without() {
  echo "PostgreSQL $version was not fetched: $1. Tests on it are skipped."
  exit 0
}

[ -x "/usr/lib/postgresql/$version/bin/postgres" ] && { echo "PostgreSQL $version is installed"; exit 0; }
[ -x "$server/postgres" ] && "$server/postgres" --version && exit 0
for tool in apt-get apt-cache dpkg dpkg-deb; do
  command -v "$tool" >/dev/null || without "$tool is not on this machine"
done

if ! apt-cache show "postgresql-$version" >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] || without "the package lists are empty and only root can fetch them"
  timeout 120 apt-get update -qq >/dev/null 2>&1 || without "apt-get update failed"
fi

# The server links against libraries that a small image may lack: those come along, unless they are installed.
mapfile -t wanted < <(
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances "postgresql-$version" 2>/dev/null |
    grep -E '^(postgresql-(client-)?[0-9]+|lib[^:]*)$' | sort -u |
    while read -r package; do
      case $package in postgresql-*) echo "$package" && continue ;; esac
      dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
)
case " ${wanted[*]-} " in *" postgresql-$version "*) ;; *) without "no such package in this release" ;; esac

mkdir -p "$folder" .cache/debs && chmod 755 .cache "$folder"
for package in "${wanted[@]}"; do
  (cd .cache/debs && timeout 120 apt-get download -qq "$package" >/dev/null 2>&1) || echo "could not fetch $package"
done
for deb in .cache/debs/*.deb; do
  [ -e "$deb" ] && dpkg-deb -x "$deb" "$folder"
done
rm -rf .cache/debs

[ -x "$server/postgres" ] || without "the package could not be fetched"
LD_LIBRARY_PATH=$(echo "$folder"/usr/lib/*-linux-gnu*) "$server/postgres" --version || without "the server does not run here"
