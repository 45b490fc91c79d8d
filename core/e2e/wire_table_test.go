package e2e

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

var update = flag.Bool("update", false, "write docs/compatibility.md from what the tests TestWire... saw")

// sighting is a call or an event of an API.
type sighting struct{ api, kind, name string }

// proof is what tests saw of it.
type proof struct {
	media map[string]bool
	codes map[int]bool
	tests map[string]bool
}

var (
	sightingsMu sync.Mutex
	sightings   = map[sighting]*proof{}
)

// observe keeps that a test sent a call and how it was answered, or got an event. Those that are not about the wire do not
// count: the table is the same whichever of them run.
func observe(t *testing.T, api, kind, name, media string, code int) {
	test, _, _ := strings.Cut(t.Name(), "/")
	if !strings.HasPrefix(test, "TestWire") {
		return
	}
	sightingsMu.Lock()
	defer sightingsMu.Unlock()
	s := sighting{api, kind, name}
	if sightings[s] == nil {
		sightings[s] = &proof{media: map[string]bool{}, codes: map[int]bool{}, tests: map[string]bool{}}
	}
	sightings[s].media[strings.TrimPrefix(strings.TrimPrefix(media, "application/"), "x-")] = true
	sightings[s].tests[test] = true
	if code != 0 {
		sightings[s].codes[code] = true
	}
}

// wireNames are all calls and events that Mesos's messages name, in the order of their numbers.
var wireNames = []struct {
	api, kind string
	names     map[int32]string
}{
	{"scheduler", "call", schedulerv1.Call_Type_name},
	{"scheduler", "event", schedulerv1.Event_Type_name},
	{"executor", "call", executorv1.Call_Type_name},
	{"executor", "event", executorv1.Event_Type_name},
	{"master", "call", masterv1.Call_Type_name},
	{"master", "event", masterv1.Event_Type_name},
	{"agent", "call", agentv1.Call_Type_name},
	{"agent", "event", agentv1.ProcessIO_Type_name},
}

// unshown are those that no test can bring about, with the reason.
var unshown = map[sighting]string{
	{"scheduler", "event", "UNKNOWN"}:  "never sent",
	{"executor", "event", "UNKNOWN"}:   "never sent",
	{"executor", "event", "ERROR"}:     "never sent: what is wrong with a call is said in its answer",
	{"executor", "event", "HEARTBEAT"}: "sent each 30 min; the interval is tested in core/api",
	{"master", "event", "UNKNOWN"}:     "never sent",
	{"agent", "event", "UNKNOWN"}:      "never sent",
	{"agent", "event", "CONTROL"}:      "a heartbeat each 30 s; the interval is tested in core/api",
}

// compatibility is docs/compatibility.md.
func compatibility() (text string, missing []string) {
	var b strings.Builder
	b.WriteString(`# What of Mesos's APIs is shown to work

Made by ` + "`go test ./core/e2e -run TestWire -update`" + ` from what those tests sent and got, against the built programs, with nothing but an
HTTP library. A call's codes are those that the tests saw and wanted; 200 and 202 are success, 501 alone is a call that is not
there yet. *Missing* are calls and events
of Mesos's messages that no test has shown.
`)
	titles := map[string]string{
		"scheduler": "Scheduler API, `/api/v1/scheduler`", "executor": "Executor API, `/api/v1/executor`",
		"master": "Master's operator API, `/api/v1`", "agent": "Agent's operator API, `/api/v1`",
	}
	last := ""
	for _, group := range wireNames {
		if group.api != last {
			fmt.Fprintf(&b, "\n## %s\n", titles[group.api])
			last = group.api
		}
		if group.kind == "call" {
			b.WriteString("\n| call | json | protobuf | codes | shown by |\n|---|---|---|---|---|\n")
		} else {
			b.WriteString("\n| event | json | protobuf | | shown by |\n|---|---|---|---|---|\n")
		}
		for _, n := range slices.Sorted(maps.Keys(group.names)) {
			s := sighting{group.api, group.kind, group.names[n]}
			p := sightings[s]
			if p == nil {
				p = &proof{}
			}
			mark := func(media string) string {
				if p.media[media] {
					return "yes"
				}
				return "-"
			}
			var codes []string
			for _, c := range slices.Sorted(maps.Keys(p.codes)) {
				codes = append(codes, strconv.Itoa(c))
			}
			by := strings.Join(slices.Sorted(maps.Keys(p.tests)), ", ")
			if by == "" {
				if by = unshown[s]; by == "" {
					by = "*missing*"
					missing = append(missing, fmt.Sprintf("%s %s %s", s.api, s.kind, s.name))
				}
			} else if !p.media["json"] || !p.media["protobuf"] {
				missing = append(missing, fmt.Sprintf("%s %s %s in one of the encodings", s.api, s.kind, s.name))
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", s.name, mark("json"), mark("protobuf"), strings.Join(codes, " "), by)
		}
	}
	return b.String(), missing
}

// checkTable compares docs/compatibility.md with what a run of all tests saw, and says what no test has shown. Whoever runs
// only some of the tests learns nothing from it.
func checkTable(root string, code int) int {
	if code != 0 || len(sightings) == 0 {
		return code
	}
	if filter := flag.Lookup("test.run").Value.String(); filter != "" && filter != "TestWire" && filter != "^TestWire" {
		return code
	}
	path := filepath.Join(root, "docs", "compatibility.md")
	text, missing := compatibility()
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	} else if have, err := os.ReadFile(path); err != nil || string(have) != text {
		fmt.Fprintln(os.Stderr, "docs/compatibility.md is not what the tests saw: go test ./core/e2e -run TestWire -update")
		return 1
	}
	if len(missing) > 0 {
		fmt.Fprintf(os.Stderr, "no test shows:\n  %s\n", strings.Join(missing, "\n  "))
		return 1
	}
	return 0
}
