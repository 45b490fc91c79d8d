#!/usr/bin/env bash
# Builds what the virtual machine runs: a disk with busybox, a few programs of this machine, those of bin/, tests of
# everything that touches cgroups, networks, mounts and quotas (tools/vm/packages), and core/e2e/vm, which runs them there;
# and a small initial file system that finds the disk: .tools/vm/disk and .tools/vm/initrd.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
out=$root/.tools/vm
fs=$out/root
go=${GO:-go}

busybox=$(command -v busybox) || { echo "busybox is missing: tools/install.sh long" >&2; exit 1; }
[ -d "$out/kernel/lib/modules" ] || { echo "there is no kernel: tools/vm/kernel.sh" >&2; exit 1; }
make -s build >&2

rm -rf "$fs" "$out/first"
mkdir -p "$fs"/{bin,dev,home,proc,sys,run,tmp,root,etc,usr,mnt,var/tmp,lib,src/bin,src/built}
for d in sbin usr/bin usr/sbin; do ln -s /bin "$fs/$d"; done
cp "$busybox" "$fs/bin/busybox"
for applet in $("$busybox" --list); do
  [ "$applet" = busybox ] || ln -s busybox "$fs/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$fs/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$fs/etc/group"
printf '127.0.0.1 localhost guest\n' >"$fs/etc/hosts"
printf 'nameserver 127.0.0.1\n' >"$fs/etc/resolv.conf"
echo guest >"$fs/etc/hostname"
install -m 755 tools/vm/init "$fs/init"

# libraries PROGRAM: copies what a program is linked with.
libraries() {
  { ldd "$1" 2>/dev/null || true; } | grep -o '/[^ ]*' | while read -r lib; do
    [ -e "$fs$lib" ] || install -D "$lib" "$fs$lib"
  done
}
# This machine's own where busybox gives less than is asked: a shell of any name, readlink of several links, network
# tools, quotas.
for b in sh readlink mount umount ip nft ping curl mkfs.xfs xtables-nft-multi xtables-legacy-multi; do
  path=$(readlink -f "$(command -v $b)") || { echo "$b is missing: tools/install.sh long" >&2; exit 1; }
  rm -f "$fs/bin/$b"
  install -m 755 "$path" "$fs/bin/$b"
  libraries "$path"
done
for b in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do ln -s xtables-nft-multi "$fs/bin/$b"; done
extensions=$(dirname "$(find /usr/lib -name libxt_comment.so | head -n 1)")
mkdir -p "$fs$extensions"
cp "$extensions"/*.so "$fs$extensions/"

# What was built: bin/ as it is, and in built/ what tests build from source themselves. Without a toolchain they are
# handed these by tools/vm/go and tools/vm/make.
cp -a bin/. "$fs/src/bin/"
libraries bin/runc # is linked with libseccomp where that can be had
install -m 755 tools/vm/go tools/vm/make "$fs/bin/"
cp bin/mosaic-shim bin/mosaic-init bin/mosaic-syslog-forwarder "$fs/src/built/"
export CGO_ENABLED=0
build=("$go" build -trimpath -ldflags '-s -w')
"${build[@]}" -o "$fs/src/built/" ./core/e2e/inside ./core/e2e/registry ./core/e2e/httpexecutor
"${build[@]}" -o "$fs/src/check" ./core/e2e/vm
mkdir -p "$fs/src/rootfs/bin"
cp "$fs/src/built/inside" "$fs/src/rootfs/bin/"

# The folders are those of the repository, since tests look for files from where they are.
while read -r package names; do
  case $package in '' | '#'*) continue ;; esac
  mkdir -p "$fs/src/$package"
  "$go" test -c -trimpath -ldflags '-s -w' -o "$fs/src/$package/package.test" "./$package"
  for n in $names; do
    case $n in -*) echo "${n#-}" >"$fs/src/$package/package.skip" ;; *) echo "$n" >"$fs/src/$package/package.run" ;; esac
  done
  if [ -d "$package/testdata" ]; then cp -a "$package/testdata" "$fs/src/$package/"; fi
done <tools/vm/packages
mkdir -p "$fs/src/docs"
cp docs/containers.md "$fs/src/docs/" # a test holds its table to the code

cp -a "$out/kernel/lib/modules" "$fs/lib/modules"
for v in "$fs"/lib/modules/*; do "$busybox" depmod -b "$fs" "${v##*/}"; done

# The initial file system has the drivers of the disk and what loads them.
mkdir -p "$out/first"/{bin,dev,disk,proc}
cp "$busybox" "$out/first/bin/busybox"
install -m 755 tools/vm/first "$out/first/init"
for v in "$fs"/lib/modules/*; do
  mkdir -p "$out/first/lib/modules/${v##*/}"
  cp -a "$v"/kernel/drivers/virtio "$v/kernel/drivers/block/virtio_blk.ko" "$out/first/lib/modules/${v##*/}/"
  "$busybox" depmod -b "$out/first" "${v##*/}"
done
(cd "$out/first" && find . | cpio --quiet -o -H newc -R 0:0) >"$out/initrd"

rm -f "$out/disk"
mke2fs -q -t ext4 -E root_owner=0:0 -d "$fs" "$out/disk" "${VM_DISK:-6G}"
rm -rf "$fs" "$out/first"
