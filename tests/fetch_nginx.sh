#!/usr/bin/env bash
# Fetches Debian's nginx into .cache/, unpacked only: nothing is installed, nothing starts by itself.
# Without it, or without a package mirror, the test that brings compose.yaml up is skipped. Safe to call again and again.
set -uo pipefail
cd "$(dirname "$0")/.."

folder=.cache/nginx
program=$folder/usr/sbin/nginx

without() {
  echo "nginx was not fetched: $1. The test that brings compose.yaml up is skipped."
  exit 0
}

command -v nginx >/dev/null && { nginx -v; exit 0; }
"$program" -v 2>/dev/null && { "$program" -v; exit 0; }
for tool in apt-get apt-cache dpkg-deb; do
  command -v "$tool" >/dev/null || without "$tool is not on this machine"
done

if ! apt-cache show nginx >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] || without "the package lists are empty and only root can fetch them"
  timeout 120 apt-get update -qq >/dev/null 2>&1 || without "apt-get update failed"
fi

mkdir -p "$folder" .cache/debs-nginx && chmod 755 .cache "$folder"
(cd .cache/debs-nginx && timeout 120 apt-get download -qq nginx >/dev/null 2>&1) || echo "could not fetch nginx"
for deb in .cache/debs-nginx/*.deb; do
  [ -e "$deb" ] && dpkg-deb -x "$deb" "$folder"
done
rm -rf .cache/debs-nginx
"$program" -v || without "it could not be fetched, or does not run here"
