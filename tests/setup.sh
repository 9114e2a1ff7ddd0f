#!/bin/bash
# Installs, by ordinary package managers, what building, the demonstration and the tests need, if it is missing.
# Debian and its relatives; elsewhere it names what is missing.
set -euo pipefail
declare -A package=([cc]=gcc [ip]=iproute2 [nsenter]=util-linux [script]=bsdutils [busybox]=busybox-static [curl]=curl [mkfs.ext4]=e2fsprogs)
missing=()
for tool in "${!package[@]}"; do
  command -v "$tool" >/dev/null || missing+=("${package[$tool]}")
done
[[ -e /usr/include/stdio.h ]] || missing+=(libc6-dev)
# A dynamically linked busybox does not run in an image that holds nothing else.
if [[ ! " ${missing[*]-} " == *" busybox-static "* ]] && ldd "$(command -v busybox)" >/dev/null 2>&1; then missing+=(busybox-static); fi
command -v cargo >/dev/null || missing+=(cargo-web rustc-web)
if [[ ${1:-} == tests ]]; then
  command -v kubectl >/dev/null || missing+=(kubernetes-client)
  command -v nft >/dev/null || missing+=(nftables)
  command -v sysctl >/dev/null || missing+=(procps)
  [[ -x /usr/sbin/mosquitto ]] || missing+=(mosquitto)
  [[ -e /usr/lib/$(gcc -print-multiarch 2>/dev/null)/faketime/libfaketimeMT.so.1 ]] || missing+=(libfaketime)
fi
if ((${#missing[@]})); then
  if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
    echo "missing: ${missing[*]} (as Debian calls them); install them, or run this as root on Debian" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
fi
if [[ ${1:-} == tests ]]; then
  minor=$(kubectl version --client -o json | sed -n 's/.*"minor": "\([0-9]*\).*/\1/p')
  if ((minor < 27)); then
    echo "$(command -v kubectl) is of Kubernetes 1.$minor; put kubectl 1.27 or newer into PATH, from https://kubernetes.io/releases/download/" >&2
    exit 1
  fi
fi
