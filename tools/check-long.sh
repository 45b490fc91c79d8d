#!/usr/bin/env bash
# The slow checks before a release. Each step is named as it begins, all of them run whatever fails, and the exit code is
# non-zero if one did.
#   tools/check-long.sh [vm|fuzz|histories|kills|race]...
# Settings: FUZZ_TIME (60s for each target), HISTORY_EVENTS (1000000), MOSAIC_KILLS (200), VM_LIMIT (3000 seconds).
# Output is kept in .tools/reports.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:$PATH"
go=${GO:-go}
reports=$PWD/.tools/reports
mkdir -p "$reports"

summary=()
status=0

# step NAME COMMAND...: runs one step and remembers how it went.
step() {
  local name=$1 begun=$SECONDS outcome=ok
  shift
  printf '\n== %s\n' "$name"
  if ! "$@"; then
    outcome=FAILED
    status=1
  fi
  summary+=("$(printf '%-6s %6d s  %s' "$outcome" $((SECONDS - begun)) "$name")")
}

# quietly LOG COMMAND...: keeps the output and shows its end if the command fails.
quietly() {
  local log=$reports/$1
  shift
  "$@" >"$log" 2>&1 && return
  tail -n 60 "$log"
  echo "the whole output is in $log"
  return 1
}

vm() {
  step "cgroup version 2, quotas and networks in a virtual machine" tools/vm/run.sh "${VM_LIMIT:-3000}"
  step "what takes two cores, in a virtual machine" env VM_CPUS=2 tools/vm/run.sh "${VM_LIMIT:-3000}" 'machine|core.of.its.own|isolators/cgroups'
}

# fuzz runs every fuzz target of the repository in turn. Go fuzzes one target at a time.
fuzz() {
  local file name package
  while IFS=: read -r file name; do
    package=./$(dirname "$file")
    step "$name of ${package#./} for ${FUZZ_TIME:-60s}" quietly "fuzz-$(basename "$package")-$name.log" \
      "$go" test "$package" -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZ_TIME:-60s}"
  done < <(git ls-files --cached --others --exclude-standard '*_test.go' | xargs grep -o '^func Fuzz[A-Za-z0-9_]*' | sed 's/:func /:/' | sort)
}

# Steps in one history of the allocator's tests (core/allocator/history_test.go), which take a fresh seed each time and
# name it when they fail. Only the subtests with fresh seeds are run: the fixed ones are in `make test`.
declare -A history_steps=(
  [TestBooksBalanceOverRandomHistories]=2000
  [TestNothingIsOverlookedByLookingAtDirtyAgentsOnly]=1500
  [TestSameHistoryGivesSameOffers]=1500
  [TestAllocateAndRecoverCancelOut]=600
)

# seeds TEST COUNT: lets the allocator live COUNT histories, and fails as well if it lived fewer.
seeds() {
  local log=histories-$1.log lived
  quietly "$log" "$go" test ./core/allocator -v -run "^$1\$/^seed_[0-9]{10,}\$" -count "$2" -timeout 2h || return
  lived=$(grep -c "^ *--- PASS: $1/seed_" "$reports/$log")
  [ "$lived" -ge "$2" ] || { echo "only $lived histories were lived: is a test named differently now?"; return 1; }
}

histories() {
  local name events=${HISTORY_EVENTS:-1000000} count
  for name in "${!history_steps[@]}"; do
    count=$(((events + history_steps[$name] - 1) / history_steps[$name]))
    step "$events random events: $name, $count seeds" seeds "$name" "$count"
  done
  # The same in one life, in which what goes wrong slowly has the time to.
  step "$events random events in one history" quietly histories-one.log \
    env MOSAIC_HISTORY_EVENTS="$events" "$go" test ./core/allocator -v -run '^TestBooksBalanceOverALongHistory$' -count 1 -timeout 30m
  for name in TestRandomHistoriesEndWell:./core/agent:10 TestRandomHistoriesNeitherLoseNorDoubleResources:./core/master:1; do
    IFS=: read -r name package count <<<"$name"
    step "$name, $count times" quietly "histories-$name.log" "$go" test "$package" -run "^$name\$" -count "$count" -timeout 1h
  done
}

kills() {
  local n=${MOSAIC_KILLS:-200}
  step "$n kills of agent and modules amid launches with image, network and volume" quietly kills.log \
    env MOSAIC_KILLS="$n" "$go" test ./core/e2e -v -run '^TestKillsInTheMidstOfLaunchesAndEndsLeaveNothing$' -count 1 -timeout 2h
}

race() {
  # The race detector needs cgo; tests that measure memory or time know that it is on, or say why they are skipped.
  step "all tests under the race detector" quietly race-all.log "$go" test -race -p 2 -timeout 40m ./...
}

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(vm fuzz histories kills race)
for s in "${steps[@]}"; do
  case $s in
  vm | fuzz | histories | kills | race) "$s" ;;
  *)
    echo "usage: $0 [vm|fuzz|histories|kills|race]..." >&2
    exit 2
    ;;
  esac
done

printf '\n== summary\n'
printf '%s\n' "${summary[@]}"
exit $status
