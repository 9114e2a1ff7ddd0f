# Sourced by build.sh: cross compilers from Debian's and PyPI's packages, unpacked below target/cross/toolchain.
#
# toolchain TARGET sets RUSTC, toolchain_cargo (the command to build with) and toolchain_flags. Debian's rustc-web is a
# current rustc; its library for arm64 comes as a package, the one for musl is built from its sources once.

toolchain() {
  local target=$1
  root=${CARGO_TARGET_DIR:-$PWD/target}/cross/toolchain
  mkdir -p "$root"
  root=$(cd "$root" && pwd)
  toolchain_flags=
  unpack rustc "" rustc-web libstd-rust-web-1.96 libllvm22 rust-web-src libstd-rust-web-dev
  wrapper rustc "LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/rustc"
  export RUSTC=$root/bin/rustc CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/cross
  case $target in
    aarch64-*-gnu) debian_gcc aarch64-linux-gnu arm64 ;;
    *-musl*) zig ;;
  esac
}

# unpack MARK ARCH PACKAGE...: once, without touching the machine's own packages
unpack() {
  local mark=$root/.$1 arch=${2:-$(dpkg --print-architecture)} state=$root/apt-${2:-host}
  shift 2
  [[ -e $mark ]] && return
  mkdir -p "$state"/{lists/partial,cache/archives/partial,debs}
  : >"$state/status"
  local apt=(apt-get -q -o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o "Dir::State=$state"
    -o "Dir::State::status=$state/status" -o "Dir::Cache=$state/cache" -o APT::Sandbox::User=root)
  "${apt[@]}" update >&2
  (cd "$state/debs" && "${apt[@]}" download "$@" >&2)
  for deb in "$state"/debs/*.deb; do dpkg -x "$deb" "$root"; done
  touch "$mark"
}

# wrapper NAME ENVIRONMENT COMMAND...
wrapper() {
  local name=$1 environment=$2
  shift 2
  mkdir -p "$root/bin"
  printf '#!/bin/sh\nexec env %s %s "$@"\n' "$environment" "$*" >"$root/bin/$name"
  chmod +x "$root/bin/$name"
}

debian_gcc() {
  local triple=$1 arch=$2
  unpack "std-$arch" "$arch" libstd-rust-web-dev
  unpack "gcc-$arch" "" "gcc-12-$triple" "gcc-12-$triple-base" "cpp-12-$triple" "binutils-$triple" libc6-dev-$arch-cross \
    libc6-$arch-cross linux-libc-dev-$arch-cross libgcc-12-dev-$arch-cross libgcc-s1-$arch-cross gcc-12-cross-base \
    libisl23 libmpc3 libmpfr6 libgmp10 libbinutils libctf0 libctf-nobfd0 libjansson4
  local libraries="LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu"
  local path="PATH=$root/usr/bin:\$PATH"
  wrapper "$triple-gcc" "$libraries $path" "$root/usr/bin/$triple-gcc-12" "--sysroot=$root"
  wrapper "$triple-ar" "$libraries" "$root/usr/bin/$triple-ar"
  local name=${target//-/_}
  export "CC_$name=$root/bin/$triple-gcc" "AR_$name=$root/bin/$triple-ar" "${variable}_LINKER=$root/bin/$triple-gcc"
  toolchain_cargo=(cargo build)
}

zig() {
  if [[ ! -e $root/venv/.complete ]]; then
    python3 -m venv "$root/venv"
    "$root/venv/bin/pip" -q install ziglang==0.17.0 cargo-zigbuild==0.24.0 >&2
    touch "$root/venv/.complete"
  fi
  export PATH=$root/venv/bin:$PATH CARGO_ZIGBUILD_ZIG_PATH=$root/venv/bin/python-zig XDG_CACHE_HOME=$root/cache
  export ZIG_GLOBAL_CACHE_DIR=$root/cache/zig CARGO_ZIGBUILD_CACHE_DIR=$root/cache/zigbuild
  local library=$root/usr/lib/rustlib/$target/lib
  if [[ ! -e $library/.complete ]]; then
    local crate=$root/std
    # What was compiled with an earlier library does not fit this one, and cargo does not see that.
    rm -rf "$crate/target" "$library" "${CARGO_TARGET_DIR:?}/$target"
    mkdir -p "$crate/src"
    printf '[package]\nname = "std-only"\nversion = "0.1.0"\nedition = "2021"\n[profile.release]\npanic = "abort"\n' >"$crate/Cargo.toml"
    : >"$crate/src/lib.rs"
    # With bitcode, which link-time optimisation wants.
    (cd "$crate" && RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags -C embed-bitcode=yes" CARGO_TARGET_DIR=$crate/target \
      cargo build --release --target "$target" -Zbuild-std=std,panic_abort >&2)
    mkdir -p "$library/self-contained"
    cp "$crate/target/$target"/release/deps/*.rlib "$library/"
    rm -f "$library"/libstd_only-*
    touch "$library/.complete"
  fi
  toolchain_flags="-C link-self-contained=no"
  toolchain_cargo=(cargo-zigbuild zigbuild)
}
