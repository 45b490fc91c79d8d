#!/usr/bin/env bash
# Runs all tests: the packages named as arguments under the race detector, the others without.
# Skipped tests are listed with their reasons at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:$PATH"
race=$(go list "$@" | sort) || exit 1
all=$(go list ./... | sort) || exit 1
plain=$(comm -23 <(echo "$all") <(echo "$race"))
mkdir -p .tools/reports
status=0
# shellcheck disable=SC2086
gotestsum --format pkgname-and-test-fails --jsonfile .tools/reports/plain.json -- -p 2 -timeout 20m $plain || status=1
# shellcheck disable=SC2086
gotestsum --format pkgname-and-test-fails --jsonfile .tools/reports/race.json -- -race -p 2 -timeout 15m $race || status=1
exit $status
