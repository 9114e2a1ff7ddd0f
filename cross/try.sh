#!/bin/bash
# Copies a binary to a board and tries it there: what the board lacks, then three pods of the built-in image.
#
#   cross/try.sh BINARY [USER@]HOST [SSH OPTION...]      the user must be root; for example:
#   cross/try.sh "$(cross/build.sh aarch64)" root@board -p 2222
#
# Leaves nothing on the board.
set -euo pipefail
[[ $# -ge 2 ]] || { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
binary=$1 host=$2
shift 2
ssh=(ssh "$@" "$host")
there=$("${ssh[@]}" mktemp -d)
trap '"${ssh[@]}" rm -rf "$there"' EXIT
"${ssh[@]}" "cat >'$there/umiak' && chmod 755 '$there/umiak'" <"$binary"
"${ssh[@]}" "'$there/umiak' check && '$there/umiak' demo --once"
