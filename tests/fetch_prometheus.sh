#!/usr/bin/env bash
# Fetches Debian's Prometheus with promtool into .cache/, unpacked only: nothing is installed, nothing starts by itself.
# Without it, or without a package mirror, the tests of the alert rules and `make rehearse` are skipped. Safe to call again.
set -uo pipefail
cd "$(dirname "$0")/.."

folder=.cache/prometheus

without() {
  echo "Prometheus was not fetched: $1. Tests of the alert rules are skipped."
  exit 0
}

command -v prometheus >/dev/null && command -v promtool >/dev/null && { echo "Prometheus is installed"; exit 0; }
[ -x "$folder/usr/bin/promtool" ] && "$folder/usr/bin/promtool" --version 2>&1 | head -1 && exit 0
for tool in apt-get apt-cache dpkg-deb; do
  command -v "$tool" >/dev/null || without "$tool is not on this machine"
done

if ! apt-cache show prometheus >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] || without "the package lists are empty and only root can fetch them"
  timeout 120 apt-get update -qq >/dev/null 2>&1 || without "apt-get update failed"
fi

# Both programs stand alone but for libc; what else the package depends on is for its pages.
mkdir -p "$folder" .cache/prometheus-deb && chmod 755 .cache "$folder"
(cd .cache/prometheus-deb && timeout 300 apt-get download -qq prometheus >/dev/null 2>&1) || echo "could not fetch prometheus"
for deb in .cache/prometheus-deb/*.deb; do
  [ -e "$deb" ] && dpkg-deb -x "$deb" "$folder"
done
rm -rf .cache/prometheus-deb

[ -x "$folder/usr/bin/promtool" ] || without "the package could not be fetched"
"$folder/usr/bin/promtool" --version 2>&1 | head -1
"$folder/usr/bin/prometheus" --version >/dev/null 2>&1 || without "the program does not run here"
