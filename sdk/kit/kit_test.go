package kit

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

func TestAReporterKeepsWhatCasesSay(t *testing.T) {
	var order []string
	cases := []Case{
		{Level: Core, Name: "Passes", Why: "x", Do: func(t T) {
			t.Logf("a note")
			t.Cleanup(func() { order = append(order, "first cleanup") })
			t.Cleanup(func() { order = append(order, "second cleanup") })
			Measure(t, "size", 3, "MiB")
		}},
		{Level: Core, Name: "Fails", Why: "operators wait", Do: func(t T) { t.Errorf("got 1, want 2"); t.Errorf("and more") }},
		{Level: Core, Name: "EndsEarly", Why: "x", Do: func(t T) { t.Fatalf("at once"); order = append(order, "after Fatalf") }},
		{Level: Core, Name: "Skips", Why: "x", Do: func(t T) { t.Skipf("no %s here", "root") }},
		{Level: Core, Name: "Panics", Why: "x", Do: func(T) { panic("a bug of the kit") }},
		{Level: Full, Name: "IsForAHigherLevel", Why: "x", Do: func(T) { order = append(order, "higher level") }},
	}
	var told []string
	r := NewReporter(t.Context(), cases, func(res Result) { told = append(told, res.Case) })
	Run(r, Core, cases)
	want := []struct{ name, result, reason string }{
		{"Passes", Passed, "a note"}, {"Fails", Failed, "it matters because operators wait"}, {"EndsEarly", Failed, "at once"},
		{"Skips", Skipped, "no root here"}, {"Panics", Failed, "a bug of the kit"},
	}
	if len(r.Results()) != len(want) || len(told) != len(want) {
		t.Fatalf("results of %v, told %v; want %d", r.Results(), told, len(want))
	}
	for n, w := range want {
		got := r.Results()[n]
		if got.Case != w.name || got.Result != w.result || !strings.Contains(strings.Join(got.Reasons, "\n"), w.reason) || got.Level != "core" {
			t.Errorf("result %d = %+v, want %+v", n, got, w)
		}
	}
	if f := r.Results()[0].Figures; len(f) != 1 || f[0] != (Figure{"size", 3, "MiB"}) {
		t.Errorf("figures = %v, want one of 3 MiB", f)
	}
	if !slices.Equal(order, []string{"second cleanup", "first cleanup"}) {
		t.Errorf("what ran: %q, want the cleanups, last first", order)
	}

	report := Report{Results: r.Results()}
	report.Finish("conformant")
	if report.Passed || report.Claim != "" {
		t.Errorf("report with failures = %v, claims %q", report.Passed, report.Claim)
	}
	report.Results = r.Results()[:1]
	report.Finish("conformant")
	if !report.Passed || report.Claim != "conformant" {
		t.Errorf("report without failures = %v, claims %q", report.Passed, report.Claim)
	}
}

func TestAnInterruptedRunSkipsTheRest(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cases := []Case{
		{Level: Core, Name: "Interrupted", Why: "x", Do: func(t T) { cancel(); <-t.Context().Done() }},
		{Level: Core, Name: "NeverBegun", Why: "x", Do: func(t T) { t.Errorf("ran") }},
	}
	r := NewReporter(ctx, cases, nil)
	Run(r, Core, cases)
	if got := r.Results()[1]; got.Result != Skipped || got.Reasons[0] != "interrupted" {
		t.Errorf("the case after the interruption = %+v, want it skipped", got)
	}
}

func TestACaseThatWaitsRunsBesideTheOthers(t *testing.T) {
	other := make(chan struct{})
	cases := []Case{
		{Level: Core, Name: "Waits", Why: "x", Beside: true, Do: func(t T) {
			select {
			case <-other:
			case <-t.Context().Done():
				t.Errorf("the other case never ran")
			}
		}},
		{Level: Core, Name: "Other", Why: "x", Do: func(T) { close(other) }},
	}
	r := NewReporter(t.Context(), cases, nil)
	Run(r, Core, cases)
	for _, res := range r.Results() {
		if res.Result != Passed {
			t.Errorf("%s = %+v, want it to pass", res.Case, res)
		}
	}
	if len(r.Results()) != 2 {
		t.Errorf("results = %v, want both", r.Results())
	}
}

func TestTheHandshakeLineMustNameASocketInItsFolder(t *testing.T) {
	for line, want := range map[string]string{
		"1|1|unix|/run/m/s|grpc|\n":             "",
		"1|1|unix|/run/m/s|grpc||true\n":        "",
		"":                                      "ended before its handshake line",
		"Hello!\n":                              "want the handshake line",
		"2|1|unix|/run/m/s|grpc|\n":             `field 1 is "2"`,
		"1|3|unix|/run/m/s|grpc|\n":             `field 2 is "3"`,
		"1|1|tcp|127.0.0.1:1|grpc|\n":           `field 3 is "tcp"`,
		"1|1|unix|/run/m/s|netrpc|\n":           `field 5 is "netrpc"`,
		"1|1|unix|/run/other/s|grpc|\n":         "PLUGIN_UNIX_SOCKET_DIR",
		"1|1|unix|/run/m/../other/s|grpc|\n":    "PLUGIN_UNIX_SOCKET_DIR",
		strings.Repeat("x", maxLine) + "|" + "": "want the handshake line",
	} {
		address, err := parseHandshake(line, "/run/m")
		if want == "" && (err != nil || address != "/run/m/s") {
			t.Errorf("parseHandshake(%q) = %q, %v; want /run/m/s", line, address, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("parseHandshake(%.60q) = %v, want an error with %q", line, err, want)
		}
	}
}

func TestProgramsThatAreNoModulesAreRefused(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct{ path, want string }{
		{script("silent", "echo no device >&2; exit 3"), "it wrote: no device"},
		{script("chatty", "echo Hello; sleep 60"), `wrote "Hello`},
		{script("elsewhere", "echo '1|1|unix|/tmp/s|grpc|'; sleep 60"), "PLUGIN_UNIX_SOCKET_DIR"},
		{filepath.Join(dir, "missing"), "no such file"},
	} {
		_, _, err := Program{Path: test.path}.Dial(t.Context())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Dial of %s = %v, want an error with %q", filepath.Base(test.path), err, test.want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := (Program{Path: script("mute", "sleep 60")}).Dial(ctx); err == nil {
		t.Error("Dial of a program that says nothing succeeded")
	}
}

func sample() *modulev1.Schema {
	low, high := 2.0, 8.0
	return &modulev1.Schema{
		Attributes: []*modulev1.Attribute{
			{Name: "mode", Type: modulev1.Attribute_STRING, Required: true, OneOf: []string{"strict", "lax"}, Doc: "x"},
			{Name: "count", Type: modulev1.Attribute_INTEGER, Required: true, Min: &low, Max: &high, Doc: "x"},
			{Name: "loud", Type: modulev1.Attribute_BOOL, DefaultJson: "true", Doc: "x"},
			{Name: "grace", Type: modulev1.Attribute_DURATION, Doc: "x"},
		},
		Blocks: []*modulev1.Block{{Name: "rule", MinItems: 1, Labels: []string{"name"}, Doc: "x", Body: &modulev1.Schema{
			Attributes: []*modulev1.Attribute{{Name: "soft", Type: modulev1.Attribute_NUMBER, Required: true, Doc: "x"}},
		}}},
	}
}

func TestADocumentHasDefaultsAndWhatIsRequired(t *testing.T) {
	want := `{"count":2,"grace":null,"loud":true,"mode":"strict","rule":[{"name":"sample","soft":1}]}`
	if got := Document(sample()); got != want {
		t.Errorf("Document = %s, want %s", got, want)
	}
	if got := Document(nil); got != "{}" {
		t.Errorf("Document of no schema = %s, want {}", got)
	}
	if got := flips(sample(), want); len(got) != 1 || !strings.Contains(got[0], `"loud":false`) {
		t.Errorf("flips = %v, want one with loud turned round", got)
	}
}

func TestMistakesReachEveryAttribute(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range mistakes(sample()) {
		if !json.Valid([]byte(m.doc)) {
			t.Errorf("%s: %s: %s is no JSON", m.path, m.what, m.doc)
		}
		seen[m.path] = true
	}
	for _, path := range []string{"mode", "count", "loud", "grace", "rule[0].soft"} {
		if !seen[path] {
			t.Errorf("no mistake at %s, only at %v", path, seen)
		}
	}
}

func TestAWrongSchemaIsTold(t *testing.T) {
	if wrong := checkSchema(sample(), "", 0); len(wrong) > 0 {
		t.Fatalf("checkSchema of a right one = %q", wrong)
	}
	for name, change := range map[string]func(*modulev1.Schema){
		"there twice":          func(s *modulev1.Schema) { s.Attributes = append(s.Attributes, s.Attributes[0]) },
		"lower_snake_case":     func(s *modulev1.Schema) { s.Attributes[0].Name = "Mode" },
		"got type":             func(s *modulev1.Schema) { s.Attributes[0].Type = 99 },
		"got doc":              func(s *modulev1.Schema) { s.Attributes[0].Doc = "" },
		"pattern":              func(s *modulev1.Schema) { s.Attributes[0].Pattern = "(" },
		"are for text":         func(s *modulev1.Schema) { s.Attributes[1].Pattern = "x" },
		"is above max":         func(s *modulev1.Schema) { *s.Attributes[1].Min = 9 },
		"no other attribute":   func(s *modulev1.Schema) { s.Attributes[0].ConflictsWith = []string{"nothing"} },
		"is no value":          func(s *modulev1.Schema) { s.Attributes[2].DefaultJson = `"yes"` },
		"is no JSON":           func(s *modulev1.Schema) { s.Attributes[2].DefaultJson = `{` },
		"required and has":     func(s *modulev1.Schema) { s.Attributes[0].DefaultJson = `"lax"` },
		"got no body":          func(s *modulev1.Schema) { s.Blocks[0].Body = nil },
		"at least 2":           func(s *modulev1.Schema) { s.Blocks[0].MinItems, s.Blocks[0].MaxItems = 2, 1 },
		"label and an":         func(s *modulev1.Schema) { s.Blocks[0].Labels = []string{"soft"} },
		"deep":                 nestDeep,
		"rule.soft: got doc":   func(s *modulev1.Schema) { s.Blocks[0].Body.Attributes[0].Doc = "two\nlines" },
		"attribute: got the n": func(s *modulev1.Schema) { s.Attributes[0].Name = "" },
	} {
		s := sample()
		change(s)
		if got := strings.Join(checkSchema(s, "", 0), "\n"); !strings.Contains(got, name) {
			t.Errorf("checkSchema = %q, want it to tell of %q", got, name)
		}
	}
}

func nestDeep(s *modulev1.Schema) {
	for range 2 * maxDepth {
		inner := &modulev1.Schema{}
		s.Blocks = []*modulev1.Block{{Name: "inner", Body: inner, Doc: "x"}}
		s = inner
	}
}
