#!/bin/bash
# Builds a static, stripped release binary and prints its path as the last line.
#
#   cross/build.sh x86_64|aarch64|armv7
#
# Uses, in this order: plain cargo where the machine's toolchain can build for the target, `cross` where it is installed,
# and else Debian's packages, unpacked below target/cross (nothing is installed on the machine; see toolchain.sh).
# Static and non-PIE: that is what makes the shim of a pod small. armv7 links musl, as Debian has no newer static Rust
# library for its glibc.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
case ${1:-} in
  x86_64) target=x86_64-unknown-linux-gnu linker=gcc ;;
  aarch64) target=aarch64-unknown-linux-gnu linker=aarch64-linux-gnu-gcc ;;
  armv7 | armv7l) target=armv7-unknown-linux-musleabihf linker=arm-linux-musleabihf-gcc ;;
  *) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
flags="-C target-feature=+crt-static -C relocation-model=static"
# Relative: the linker runs where Cargo.toml is, which `cross` mounts elsewhere. ARM's own tables are of another kind.
[[ $1 == armv7* ]] || flags+=" -C link-arg=-Wl,-T,cross/no-unwind.ld,--no-eh-frame-hdr"
variable=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$target")
export "${variable}_RUSTFLAGS=$flags"

# libcontainer 0.7.0 gives a constant a 64-bit type that is `long` on Linux: on 32-bit ARM it does not compile. Until a
# release mends it, the build runs in a copy of the project with a copy of the crate in which that type is right.
patched() {
  export CARGO_TARGET_DIR
  CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")
  local copy=$CARGO_TARGET_DIR/cross/armv7
  mkdir -p "$copy"
  rm -rf "$copy/project" "$copy/libcontainer"
  mkdir "$copy/project"
  cp -r Cargo.toml Cargo.lock src configs benches tests "$copy/project/"
  cargo fetch --locked >&2
  cp -r "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/libcontainer-0.7.0 "$copy/libcontainer"
  sed -i -E 's/^(const DEVPTS_SUPER_MAGIC): [iu]64/\1: std::ffi::c_'"$([[ $target == *musl* ]] && echo ulong || echo long)"'/' \
    "$copy/libcontainer/src/tty.rs"
  printf '\n[patch.crates-io]\nlibcontainer = { path = "%s" }\n' "$copy/libcontainer" >>"$copy/project/Cargo.toml"
  cd "$copy/project"
}
[[ $1 == armv7* ]] && patched
directory=${CARGO_TARGET_DIR:-target}

has_target() { [[ $(rustc --print target-libdir --target "$target" 2>/dev/null) ]] && ls "$(rustc --print target-libdir --target "$target")"/libstd-*.rlib >/dev/null 2>&1; }
if has_target && command -v "$linker" >/dev/null; then
  export "${variable}_LINKER=$linker"
  cargo build --release --target "$target" --bin umiak >&2
elif command -v cross >/dev/null; then
  CROSS_CONFIG=$here/Cross.toml RUSTFLAGS=$flags cross build --release --target "$target" --bin umiak >&2
else
  . "$here/toolchain.sh"
  toolchain "$target"
  directory=${CARGO_TARGET_DIR:-target}
  export "${variable}_RUSTFLAGS=$flags $toolchain_flags"
  "${toolchain_cargo[@]}" --release --target "$target" --bin umiak >&2
fi
echo "$(cd "$directory" && pwd)/$target/release/umiak"
