#!/usr/bin/env bash
# Generates the Go code of every contract below sdk/proto. Run by `make gen`.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root/sdk/proto"
export PATH="$root/.tools/bin:$PATH"
command -v protoc >/dev/null || { echo "protoc is missing: apt-get install protobuf-compiler" >&2; exit 1; }
go build -o "$root/.tools/bin/protoc-gen-mosaic-json" ./protoc-gen-mosaic-json
mod=github.com/mosaic-cluster/mosaic/sdk/proto
mesos=$(find mesos resource_provider csi -name '*.proto' | sort)
mosaic=$(find mosaic -name '*.proto' 2>/dev/null | sort)
features=features=marshal+unmarshal+size+clone+equal
# shellcheck disable=SC2086
protoc -I . --go_out=. --go_opt=module=$mod \
  --mosaic-json_out=. --mosaic-json_opt=module=$mod \
  --go-vtproto_out=. --go-vtproto_opt=module=$mod,$features $mesos
if [ -n "$mosaic" ]; then
  # shellcheck disable=SC2086
  protoc -I . --go_out=. --go_opt=module=$mod --go-grpc_out=. --go-grpc_opt=module=$mod $mosaic
fi
