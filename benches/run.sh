#!/bin/sh
# Builds the static release binary for this machine and prints what it promises, measured. Needs root and a quiet
# machine; takes a quarter of an hour beside IDLE_SECONDS (600) and the build.
set -eu
cd "$(dirname "$0")/.."
UMIAK_BIN=$(cross/build.sh "$(uname -m)" | tail -n 1)
export UMIAK_BIN
exec cargo bench --bench promises
