#!/usr/bin/env bash
# Fetches Debian's cloud kernel with its modules for the virtual machine into .tools/vm/kernel. It is unpacked, never
# installed, so that how this machine boots stays untouched. Prints the kernel's path.
#
# The archive keeps only the newest build of a release, so there is no version to pin; the one used is in the output of
# every run, because the guest prints it.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
dir=$root/.tools/vm/kernel
meta=linux-image-cloud-amd64

find_kernel() { [ ! -d "$dir/lib/modules" ] || find "$dir/boot" -name 'vmlinuz-*' 2>/dev/null | sort -V | tail -n 1; }

if [ -z "$(find_kernel)" ]; then
  [ "$(uname -m)" = x86_64 ] || { echo "the virtual machine is of x86_64; this machine is $(uname -m)" >&2; exit 1; }
  for c in apt-cache apt-get dpkg; do
    command -v $c >/dev/null || { echo "no $c: put a kernel at $dir/boot/vmlinuz-VERSION, its modules at $dir/lib/modules/VERSION" >&2; exit 1; }
  done
  package=$(apt-cache depends "$meta" 2>/dev/null | awk '/Depends: linux-image-/ {print $2; exit}')
  if [ -z "$package" ]; then
    apt-get update -q >/dev/null
    package=$(apt-cache depends "$meta" | awk '/Depends: linux-image-/ {print $2; exit}')
  fi
  [ -n "$package" ] || { echo "this system's package archive has no $meta" >&2; exit 1; }
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  echo "fetching $package" >&2
  # As root apt fetches as a user of its own, who may not write here.
  get() { (cd "$tmp" && apt-get download -q -o APT::Sandbox::User=root "$package" >/dev/null); }
  get || { apt-get update -q >/dev/null && get; }
  mkdir -p "$dir"
  dpkg -x "$tmp"/*.deb "$tmp/x"
  # Of the drivers only those that a machine without hardware has: what the guest looks through when it loads one is less.
  for d in "$tmp"/x/lib/modules/*/kernel/drivers/*; do
    case ${d##*/} in block | net | virtio) ;; *) rm -rf "$d" ;; esac
  done
  rm -rf "${dir:?}"/*
  mkdir -p "$dir/boot"
  cp "$tmp"/x/boot/vmlinuz-* "$dir/boot/"
  mv "$tmp/x/lib" "$dir/lib" # last: it says that the kernel is whole
fi
find_kernel
