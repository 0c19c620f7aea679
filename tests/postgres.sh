#!/bin/sh
# Run a command against a throw-away PostgreSQL on loopback: tests/postgres.sh COMMAND...
# The command finds its address in OLLAMA_PERF_TEST_POSTGRESQL. Needs Debian's postgresql (or initdb and pg_ctl on PATH).
set -eu

[ $# -gt 0 ] || { echo "usage: $0 COMMAND..." >&2; exit 2; }

for bin in /usr/lib/postgresql/*/bin; do PATH="$bin:$PATH"; done
command -v initdb >/dev/null || { echo "$0: no initdb: install postgresql" >&2; exit 2; }

home=$(mktemp -d /tmp/ollama-perf-pg.XXXXXX)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# PostgreSQL refuses to run as root
as_owner() {
    if [ "$(id -u)" = 0 ]; then runuser -u postgres -- env "PATH=$PATH" "$@"; else "$@"; fi
}
[ "$(id -u)" != 0 ] || chown postgres "$home"

stop() {
    as_owner pg_ctl -D "$home/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$home"
}
trap stop EXIT
trap 'exit 130' INT TERM

cd "$home"
as_owner initdb -D "$home/data" -U perf --auth=trust -E UTF8 --locale=C.UTF-8 >"$home/log" 2>&1 || { cat "$home/log" >&2; exit 2; }
as_owner pg_ctl -D "$home/data" -w -l "$home/server.log" \
    -o "-c listen_addresses=127.0.0.1 -p $port -k $home -c fsync=off" start >>"$home/log" 2>&1 \
    || { cat "$home/log" "$home/server.log" >&2; exit 2; }
cd "$OLDPWD"

OLLAMA_PERF_TEST_POSTGRESQL="postgresql://perf@127.0.0.1:$port/postgres" "$@"
