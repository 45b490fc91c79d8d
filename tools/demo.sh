#!/usr/bin/env bash
# A one-machine cluster with the default bundle that runs real tasks through the public API, says what happened to
# each, and leaves nothing behind. Exits 0 only if all of it went as it should.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d /tmp/mosaic-demo.XXXXXX)
log=$dir/dev.log
mosaic=$PWD/bin/mosaic
dev=

registry=

cleanup() {
  local code=$?
  trap - EXIT
  if [ -n "$registry" ]; then kill "$registry" 2>/dev/null || true; fi
  if [ -n "$dev" ] && kill -0 "$dev" 2>/dev/null; then kill -TERM "$dev"; wait "$dev" 2>/dev/null || true; fi
  if [ $code -ne 0 ]; then
    printf '\nThe demo failed. The last lines of the cluster:\n'
    tail -n 40 "$log" 2>/dev/null || true
  fi
  rm -rf "$dir" || true
  exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n== %s\n' "$*"; }

# expect CODE TEXT COMMAND...: runs a command, shows its output, and checks exit code and a text in the output.
expect() {
  local want=$1 text=$2 out=$dir/out code=0
  shift 2
  printf '$ mosaic %s\n' "$*"
  timeout 60 "$mosaic" "$@" >"$out" 2>&1 || code=$?
  sed 's/^/  /' "$out"
  [ $code -eq "$want" ] || { echo "exit code $code, want $want"; return 1; }
  grep -qE -- "$text" "$out" || { echo "output lacks: $text"; return 1; }
}

free_port() { python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])' 2>/dev/null || echo $((20000 + RANDOM % 20000)); }
master=127.0.0.1:$(free_port)
agent=127.0.0.1:$(free_port)
export MOSAIC_MASTER=$master MOSAIC_AGENT=$agent

say "A cluster on this machine"
"$mosaic" dev --listen "$master" --agent-listen "$agent" --work-dir "$dir/work" --resources 'cpus:2;mem:1024;disk:1024;ports:[31000-31999]' >"$log" 2>&1 &
dev=$!
for _ in $(seq 100); do
  "$mosaic" node ls 2>/dev/null | grep -q active && break
  kill -0 "$dev" 2>/dev/null || { echo "the cluster did not start"; exit 1; }
  sleep 0.1
done
sed 's/^/  /' "$log" | head -n 20
expect 0 active node ls
expect 0 cgroups module ls

say "A command"
expect 0 'hello from a task' run -v --cpus 0.5 --mem 64 --env WHO=task --shell -- 'echo hello from a $WHO'

root=0; [ "$(id -u)" = 0 ] && root=1
if [ $root = 1 ]; then
  say "What it was given: half a core and 64 MB"
  expect 0 '67108864' run -v --cpus 0.5 --mem 64 --shell -- \
    'c=$(awk -F: "\$2==\"memory\"{print \$3}" /proc/self/cgroup); if [ -n "$c" ]; then cat /sys/fs/cgroup/memory$c/memory.limit_in_bytes; else cat /sys/fs/cgroup$(awk -F: "\$1==0{print \$3}" /proc/self/cgroup)/memory.max; fi; cat /proc/self/cgroup'

  say "A task that takes more memory than it has"
  expect 137 'REASON_CONTAINER_LIMITATION_MEMORY' run -v --cpus 0.5 --mem 64 -- tail /dev/zero

  say "A task in a root filesystem of its own, through the OCI runtime"
  mkdir -p "$dir/rootfs/bin"
  CGO_ENABLED=0 ${GO:-go} build -trimpath -o "$dir/rootfs/bin/inside" ./core/e2e/inside
  expect 0 'pid 1, uid 0' run -v --image "$dir/rootfs" --mem 64 -- /bin/inside
else
  say "Not root: limits, namespaces and own root filesystems are left out of the demo"
fi

say "Two frameworks in two roles share the machine"
"$mosaic" run -v --role batch --cpus 1 --mem 64 --name batch --shell -- 'echo batch runs; sleep 2' >"$dir/a" 2>&1 & a=$!
"$mosaic" run -v --role services --cpus 1 --mem 64 --name service --shell -- 'echo service runs; sleep 2' >"$dir/b" 2>&1 & b=$!
both=0
for _ in $(seq 100); do
  if [ "$("$mosaic" task ls | grep -c TASK_RUNNING)" = 2 ]; then both=1; break; fi
  sleep 0.05
done
"$mosaic" framework ls | sed 's/^/  /'
"$mosaic" task ls | sed 's/^/  /'
wait $a; wait $b
sed 's/^/  batch:   /' "$dir/a"; sed 's/^/  service: /' "$dir/b"
[ $both = 1 ] || { echo "the two tasks never ran at the same time"; exit 1; }

say "A task that stays, its output, its end"
expect 0 '^pulse-' run --detach --name pulse --shell -- 'while :; do echo pulse; sleep 0.1; done'
sleep 0.5
expect 0 'pulse' task logs pulse
expect 0 'killing' task kill pulse
for _ in $(seq 100); do "$mosaic" task ls | grep -q pulse || break; sleep 0.1; done
expect 0 'pulse.*TASK_KILLED' task ls --all

say "Why a task does not run"
expect 0 'smallest change' explain task --cpus 64

if [ $root = 1 ]; then
  say "A command beside a task, in its container"
  expect 0 '^room-' run --detach --name room --shell -- 'echo written by the task >note; exec sleep 1000'
  for _ in $(seq 50); do "$mosaic" task ls | grep -q 'room.*TASK_RUNNING' && break; sleep 0.1; done
  sleep 0.2
  expect 0 'written by the task' task exec room -- sh -c 'cat note; tr "\0" " " </proc/1/cmdline; echo'
  expect 0 'killing' task kill room

  say "Two tasks that belong together: one network, one folder, one fate"
  cat >"$dir/group.yaml" <<'YAML'
tasks:
  - name: server
    command: {value: "echo 'from the server' > shared/page; until [ -e shared/read ]; do sleep 0.1; done; echo 'the client has read it'"}
    container:
      type: MESOS
      volumes:
        - {container_path: shared, mode: RW, source: {type: SANDBOX_PATH, sandbox_path: {type: PARENT, path: common}}}
  - name: client
    command: {value: "until [ -e shared/page ]; do sleep 0.1; done; cat shared/page; touch shared/read"}
    container:
      type: MESOS
      volumes:
        - {container_path: shared, mode: RW, source: {type: SANDBOX_PATH, sandbox_path: {type: PARENT, path: common}}}
YAML
  expect 0 'client . from the server' run --group "$dir/group.yaml"
fi

if [ $root = 1 ] && [ -x bin/cni/bridge ] && busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1; then
  say "An image from a registry, on a network of its own, with a published port"
  CGO_ENABLED=0 ${GO:-go} build -trimpath -o "$dir/registry" ./core/e2e/registry
  "$dir/registry" -busybox "$busybox" -page 'hello from a container' -ballast 64 >"$dir/image" &
  registry=$!
  for _ in $(seq 100); do [ -s "$dir/image" ] && break; sleep 0.1; done
  image=$(cat "$dir/image")
  expect 0 'hello from an image' run --image "$image" -- /bin/echo 'hello from an image'
  expect 0 "$image" image ls
  expect 0 '^site-' run --detach --name site --image "$image" --network bridge --publish 31080:80
  for _ in $(seq 50); do curl -s -m 2 http://127.0.0.1:31080/ >"$dir/page" && break; sleep 0.1; done
  printf '$ curl http://127.0.0.1:31080/\n  '
  cat "$dir/page"; echo
  grep -q 'hello from a container' "$dir/page" || { echo "the page is not what the container serves"; exit 1; }
  expect 0 'inet 10\.' task exec site -- ip addr show eth0
  echo "What runs for it: this cluster and its modules, the demo's registry, the container; no daemon of anybody's"
  { ps -o args= -p "$dev,$registry" --ppid "$dev"; ps -eo args | grep '^/bin/httpd'; } | cut -c1-110 | sed 's/^/  /'
  expect 0 'killing' task kill site
fi

say "All of it went as it should"
