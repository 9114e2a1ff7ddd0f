#!/bin/bash
# The main job on a fresh machine: builds umiak and runs `umiak demo --once`. Run it as root.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup.sh
cargo build --release --locked --bin umiak
exec "${CARGO_TARGET_DIR:-target}/release/umiak" demo --once
