#!/usr/bin/env bash
# Boots the virtual machine, shows what it says on its serial console, keeps that in .tools/reports/vm-CPUS.log, and exits as
# the checks inside did: 0 all right, 1 something failed, 124 it did not end in time.
#   tools/vm/run.sh [TIME_LIMIT_SECONDS [CHECKS [TESTS]]]
# CHECKS and TESTS are regular expressions without spaces: which checks are run, and which tests of packages; by default all
# that tools/vm/packages says.
#
# It is emulated in full (no KVM: nested virtualisation is what small machines lack), of type q35 (microvm does not boot
# this kernel). With one processor, which is the default, its clock counts instructions: however busy this machine is, to
# what runs inside it is one of a steady speed, and deadlines hold. With more (VM_CPUS) its clock is this machine's.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
limit=${1:-${VM_LIMIT:-3000}}
kernel=$("$root/tools/vm/kernel.sh")
echo "building what the virtual machine runs"
"$root/tools/vm/build.sh"
initrd=$root/.tools/vm/initrd
disk=$root/.tools/vm/disk
cpus=${VM_CPUS:-1}
log=$root/.tools/reports/vm-$cpus.log
mkdir -p "$(dirname "$log")"

qemu=$(command -v qemu-system-x86_64) || { echo "qemu-system-x86_64 is missing: tools/install.sh long" >&2; exit 1; }
echo "kernel $(basename "$kernel"), disk of $(($(du -k "$disk" | cut -f 1) >> 10)) MiB, at most $limit s"
clock=()
[ "$cpus" != 1 ] || clock=(-icount shift=1) # two nanoseconds each
code=0
timeout --foreground --signal=TERM --kill-after=10 "$limit" "$qemu" \
  -machine q35,accel=tcg "${clock[@]}" -cpu max -smp "$cpus" -m "${VM_MEMORY:-2048}" \
  -display none -monitor none -nodefaults -no-reboot -serial stdio \
  -kernel "$kernel" -initrd "$initrd" -drive "file=$disk,format=raw,if=virtio,cache=unsafe" \
  -append 'console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on oops=panic'" VM_RUN=${2:-} VM_TESTS=${3:-}" \
  </dev/null | sed -u 's/\r//g' | tee "$log" || code=${PIPESTATUS[0]}
if [ "$code" = 124 ] || [ "$code" = 137 ]; then
  echo "the virtual machine did not end within $limit s; its output is in $log" >&2
  exit 124
fi
said=$(sed -n 's/^VM-EXIT \([0-9]*\)$/\1/p' "$log" | tail -n 1)
[ -n "$said" ] || { echo "the virtual machine ended without a word (qemu: $code); its output is in $log" >&2; exit 1; }
exit "$said"
