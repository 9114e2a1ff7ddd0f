#!/bin/bash
# All tests on a fresh machine: format, lints, unit tests, end-to-end tests. Run it as root.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup.sh tests
if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; fi
if cargo clippy --version >/dev/null 2>&1; then cargo clippy --locked --all-targets -- -D warnings; fi
exec cargo test --locked --no-fail-fast
