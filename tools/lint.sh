#!/usr/bin/env bash
# Static checks. Exits non-zero with what is wrong.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:$PATH"

unformatted=$(git ls-files '*.go' | grep -vE '\.pb\.go$' | xargs -r gofmt -l)
if [ -n "$unformatted" ]; then
  printf 'not gofmt-clean:\n%s\n' "$unformatted"
  exit 1
fi

sdk/proto/generate.sh
if ! git diff --exit-code --stat -- sdk; then
  echo "generated code differs from its sources: run 'make gen' and commit" >&2
  exit 1
fi

golangci-lint run --timeout 15m ./...
go test ./docs/...
