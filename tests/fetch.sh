#!/usr/bin/env bash
# Fetches one of Debian's packages into .cache/, unpacked only: nothing is installed, nothing starts by itself.
# Without it, or without a package mirror, the tests that need it are skipped. Safe to call again and again.
set -uo pipefail
cd "$(dirname "$0")/.."

# What is fetched and which program must run then; packages that come along unless they are installed, because a small
# image may lack them; tests that are skipped without.
along='^$'
case ${1-} in
  nginx) package=nginx program=usr/sbin/nginx version=-v skipped="the test that brings compose.yaml up" ;;
  pgbouncer) package=pgbouncer program=usr/sbin/pgbouncer version=--version along='^(libc-ares|libcares|libevent)' skipped="tests behind a real pooler" ;;
  postgres-15) package=postgresql-15 program=usr/lib/postgresql/15/bin/postgres version=--version along='^(postgresql-client-15|lib[^:]*)$' skipped="tests on version 15" ;;
  # promtool stands alone but for libc; what else the package depends on is for its pages.
  prometheus) package=prometheus program=usr/bin/promtool version=--version skipped="tests of the alert rules, and \`make rehearse\`" ;;
  sysbench) package=sysbench program=usr/bin/sysbench version=--version along='^(libaio|libluajit|libmariadb|libpq5)' skipped="sysbench beside the daemon" ;;
  *) echo "usage: $0 nginx|pgbouncer|postgres-15|prometheus|sysbench" >&2; exit 64 ;;
esac
folder=.cache/$1

without() {
  echo "$package was not fetched: $1. Skipped: $skipped."
  exit 0
}

runs() {
  LD_LIBRARY_PATH=$(echo "$folder"/usr/lib/*-linux-gnu*) "$folder/$program" "$version" 2>&1 | head -n 1
}

[ "$1" = postgres-15 ] && installed=/$program || installed=$(basename "$program")  # there may be other versions on PATH
if command -v "$installed" >/dev/null; then
  echo "$package is installed"
  exit 0
fi
[ -x "$folder/$program" ] && runs && exit 0
for tool in apt-get apt-cache dpkg-query dpkg-deb; do
  command -v "$tool" >/dev/null || without "$tool is not on this machine"
done

if ! apt-cache show "$package" >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] || without "the package lists are empty and only root can fetch them"
  timeout 120 apt-get update -qq >/dev/null 2>&1 || without "apt-get update failed"
fi
apt-cache show "$package" >/dev/null 2>&1 || without "no such package in this release"

mapfile -t wanted < <(
  echo "$package"
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$package" 2>/dev/null |
    grep -E "$along" | sort -u |
    while read -r other; do
      dpkg-query -W -f '${Status}' "$other" 2>/dev/null | grep -q 'ok installed' || echo "$other"
    done
)

debs=.cache/debs-$1
mkdir -p "$folder" "$debs" && chmod 755 .cache "$folder"
for one in "${wanted[@]}"; do
  (cd "$debs" && timeout 300 apt-get download -qq "$one" >/dev/null 2>&1) || echo "could not fetch $one"
done
for deb in "$debs"/*.deb; do
  [ -e "$deb" ] && dpkg-deb -x "$deb" "$folder"
done
rm -rf "$debs"

[ -x "$folder/$program" ] || without "the package could not be fetched"
runs || without "it does not run here"
