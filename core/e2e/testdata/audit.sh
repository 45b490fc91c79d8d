# What a container sees of itself and of the machine: lines of a name, a tab and a value. The names are what bounds_test.go
# compares by.
b=/bin/busybox
fact() { printf '%s\t%s\n' "$1" "$2"; }
for set in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Groups SigBlk; do
  fact "status $set" "$($b awk -v n="$set:" '$1 == n { $1 = ""; print }' /proc/self/status)"
done
open=
for fd in /proc/$$/fd/*; do
  case $($b readlink $fd) in "" | */audit.sh) ;; *) open="$open ${fd##*/}" ;; esac
done
fact "descriptors" "$open"
fact "working directory" "$($b readlink /proc/$$/cwd)"
fact "oom_score_adj" "$($b cat /proc/$$/oom_score_adj)"
fact "umask" "$(umask)"
$b tail -n +2 /proc/$$/limits | while read -r line; do
  fact "limit $($b echo "$line" | $b cut -c 1-25 | $b sed 's/ *$//')" "$($b echo "$line" | $b cut -c 27-68 | $b tr -s ' ')"
done
for ns in cgroup ipc mnt net pid time user uts; do fact "namespace $ns" "$($b readlink /proc/$$/ns/$ns)"; done
fact "processes" "$($b ls /proc | $b grep -c '^[0-9]*$' | $b awk '{ print ($1 < 20) ? "few" : "many" }')"
$b find /dev | while read -r path; do
  fact "node $path" "$($b stat -c '%A %u %g %t:%T' "$path")"
done
$b awk '{ kind = ""; for (i = 7; i <= NF; i++) if ($i == "-") { kind = $(i + 1); break }
  shared = ""; for (j = 7; j < i; j++) { sub(":.*", "", $j); shared = shared " " $j }
  printf "mount %s\t%s %s%s\n", $5, kind, $6, shared }' /proc/$$/mountinfo
$b env | $b sed 's/=.*//' | $b sort | while read -r name; do fact "variable $name" set; done
fact "keys" "$($b cat /proc/keys 2>/dev/null)"
for path in /proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi \
  /proc/interrupts /sys/firmware /sys/devices/virtual/powercap; do
  if [ -d $path ]; then fact "hidden $path" "$($b ls -A $path | $b head -n 3 | $b tr '\n' ' ')"
  else fact "hidden $path" "$($b head -c 1 $path 2>/dev/null | $b wc -c)"; fi
done
for path in /proc/sys/kernel/hostname /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/sysrq-trigger /proc/irq/default_smp_affinity \
  /proc/bus/x /proc/fs/x /sys/x /sys/kernel/x /sys/fs/cgroup/x; do
  if { true >>$path; } 2>/dev/null; then fact "write $path" yes; else fact "write $path" no; fi
done
# A node that cannot be made cannot be opened either.
while read -r name kind; do
  $b mknod /tmp/$name $kind 2>/dev/null
  if { true </tmp/$name; } 2>/dev/null; then fact "open device $name" yes; else fact "open device $name" no; fi
  $b rm -f /tmp/$name
done <<END
sda b 8 0
vda b 254 0
loop0 b 7 0
mem c 1 1
port c 1 4
kmsg c 1 11
tty1 c 4 1
fuse c 10 229
tun c 10 200
kvm c 10 232
END
for call in "mount -t tmpfs none /tmp" "mount -o remount,rw,bind /proc/sys" "umount /proc/kcore" "chroot / $b true" "hostname x" "unshare -m $b true"; do
  if $b $call 2>/dev/null; then fact "may $call" yes; else fact "may $call" no; fi
done
