#!/usr/bin/env bash
# Installs what a target needs and nothing more, by exact version or by Debian package name.
#   tools/install.sh runc VERSION | cni VERSION | gen | lint | test | bench | long
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
tools=$root/.tools/bin
mkdir -p "$tools" "$root/bin"

# goinstall BINARY PACKAGE@VERSION: builds a Go program once into .tools/bin.
goinstall() {
  local stamp=$tools/.$1-${2##*@}
  [ -e "$stamp" ] && [ -x "$tools/$1" ] && return
  echo "building $1 ${2##*@}"
  GOFLAGS= GOBIN=$tools go install "$2"
  rm -f "$tools/.$1-"*; touch "$stamp"
}

# debian PACKAGE...: installs Debian packages when they are missing and we may.
debian() {
  local missing=()
  for p in "$@"; do dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p"); done
  [ ${#missing[@]} -eq 0 ] && return
  if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "missing packages (install them as root): ${missing[*]}" >&2
    return 1
  fi
  echo "installing ${missing[*]}"
  local log; log=$(mktemp)
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; rm -f "$log"; return 1; }
  rm -f "$log"
}

# unpacked PACKAGE PROGRAM: puts one program of a Debian package into .tools/bin, for packages that would start a daemon.
unpacked() {
  [ -x "$tools/$2" ] && return
  command -v apt-get >/dev/null || { echo "missing program: $2 of Debian's $1" >&2; return 1; }
  echo "unpacking $2 of $1"
  local at; at=$(mktemp -d)
  { (cd "$at" && apt-get update -q && apt-get download -q "$1" && dpkg -x ./*.deb .) >"$at/log" 2>&1 && install "$at/usr/bin/$2" "$tools/$2"; } ||
    { tail -n 20 "$at/log" >&2; rm -rf "$at"; return 1; }
  rm -rf "$at"
}

case ${1:-} in
runc)
  # With libseccomp runc can apply seccomp profiles; without it everything else still works.
  tags=
  if debian libseccomp-dev pkg-config 2>/dev/null; then tags=seccomp; else
    echo "note: libseccomp headers are missing; containers from images run without seccomp profiles" >&2
  fi
  echo "building runc $2"
  GOFLAGS= GOBIN=$root/bin go install -trimpath -ldflags '-s -w' -tags "$tags" "github.com/opencontainers/runc@$2"
  ;;
cni)
  # What masquerading and published ports are made with. Without either containers reach their own network only.
  command -v nft >/dev/null || command -v iptables >/dev/null || debian nftables ||
    echo "note: neither nft nor iptables: networks that masquerade or publish ports will refuse containers" >&2
  echo "building CNI plugins $2"
  plugins=()
  for p in main/bridge main/loopback main/ptp main/macvlan main/ipvlan ipam/host-local ipam/static \
    meta/portmap meta/bandwidth meta/firewall meta/tuning; do plugins+=("github.com/containernetworking/plugins/plugins/$p@$2"); done
  mkdir -p "$root/bin/cni"
  GOFLAGS= CGO_ENABLED=0 GOBIN=$root/bin/cni go install -trimpath -ldflags '-s -w' "${plugins[@]}"
  ;;
gen)
  debian protobuf-compiler
  goinstall protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
  goinstall protoc-gen-go-grpc google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
  goinstall protoc-gen-go-vtproto github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto@v0.6.1-0.20240319094008-0393e58bdf10
  ;;
lint)
  "$0" gen
  goinstall golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
  ;;
test)
  # Python and its gRPC for the example module in a second language; busybox for root filesystems.
  # Rules and tools of networks for the containers that have one of their own; a server of FTP to fetch from.
  debian python3 python3-grpcio python3-protobuf busybox-static nftables iptables iproute2 iputils-ping curl python3-pyftpdlib || echo "note: tests that need them are listed as skipped" >&2
  # Images that others make, and the registry that most people run.
  { debian skopeo umoci buildah apache2-utils && unpacked docker-registry docker-registry; } || echo "note: tests that need them are listed as skipped" >&2
  goinstall gotestsum gotest.tools/gotestsum@v1.13.0
  ;;
bench)
  # Peers to compare with, and a busybox for the image that all of them pull.
  debian busybox-static skopeo umoci || echo "note: rows of peers that are missing are skipped" >&2
  ;;
long)
  "$0" test
  # An emulator, and what a guest is made of. Its kernel is unpacked into .tools, never installed.
  debian qemu-system-x86 cpio busybox-static e2fsprogs xfsprogs
  "$root/tools/vm/kernel.sh" >/dev/null
  ;;
*)
  echo "usage: $0 runc VERSION | cni VERSION | gen | lint | test | bench | long" >&2
  exit 2
  ;;
esac
