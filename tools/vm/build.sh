#!/usr/bin/env bash
# Builds the initial file system of the virtual machine: busybox, the programs as built in bin/, the tests of everything
# that touches cgroups, and core/e2e/vm, which runs them there. Prints the image's path.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
out=$root/.tools/vm
fs=$out/root
go=${GO:-go}

# The packages whose tests run in the guest. The folders are those of the repository, since tests look for files from
# where they are.
packages=(
  core/containerizer/cgroup
  core/containerizer/launcher/process
  core/containerizer/launcher/oci
  core/containerizer
  isolators/cgroups
)

for b in mosaic mosaic-modules mosaic-shim runc; do
  [ -x "bin/$b" ] || { echo "bin/$b is missing: make build" >&2; exit 1; }
done
busybox=$(command -v busybox) || { echo "busybox is missing: tools/install.sh long" >&2; exit 1; }

rm -rf "$fs"
mkdir -p "$fs"/{bin,sbin,dev,proc,sys,run,tmp,root,etc,usr,mnt,lib/modules,src/bin}
ln -s ../bin "$fs/usr/bin"
ln -s ../sbin "$fs/usr/sbin"
cp "$busybox" "$fs/bin/busybox"
for applet in $("$busybox" --list); do
  [ "$applet" = busybox ] || ln -s busybox "$fs/bin/$applet"
done
for s in poweroff switch_root insmod ip; do ln -s ../bin/busybox "$fs/sbin/$s"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$fs/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$fs/etc/group"
printf '127.0.0.1 localhost guest\n' >"$fs/etc/hosts"
echo guest >"$fs/etc/hostname"
install -m 755 tools/vm/init "$fs/init"
install -m 755 bin/mosaic bin/mosaic-modules bin/mosaic-shim bin/runc "$fs/src/bin/"

# libraries PROGRAM: copies what a program is linked with.
libraries() {
  { ldd "$1" 2>/dev/null || true; } | grep -o '/[^ ]*' | while read -r lib; do
    [ -e "$fs$lib" ] || install -D "$lib" "$fs$lib"
  done
}
# runc is linked with libseccomp where that can be had.
libraries bin/runc
# This machine's own where tests ask more than busybox gives: a shell of any name, readlink of several links.
for b in sh readlink; do
  path=$(readlink -f "$(command -v $b)")
  rm -f "$fs/bin/$b"
  install -m 755 "$path" "$fs/bin/$b"
  libraries "$path"
done
cp "$out"/kernel/modules/*.ko "$fs/lib/modules/" 2>/dev/null || true

# The tests of launchers build the shim from source; without a toolchain they are handed the one built here.
install -m 755 tools/vm/go "$fs/bin/go"

export CGO_ENABLED=0
$go build -trimpath -ldflags '-s -w' -o "$fs/src/check" ./core/e2e/vm
mkdir -p "$fs/src/rootfs/bin"
$go build -trimpath -ldflags '-s -w' -o "$fs/src/rootfs/bin/inside" ./core/e2e/inside
for p in "${packages[@]}"; do
  mkdir -p "$fs/src/$p"
  $go test -c -trimpath -ldflags '-s -w' -o "$fs/src/$p/package.test" "./$p"
  if [ -d "$p/testdata" ]; then cp -a "$p/testdata" "$fs/src/$p/"; fi
done

(cd "$fs" && find . | cpio --quiet -o -H newc -R 0:0) >"$out/initrd.new"
mv "$out/initrd.new" "$out/initrd"
rm -rf "$fs"
echo "$out/initrd"
