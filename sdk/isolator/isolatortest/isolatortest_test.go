package isolatortest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// TestMain lets the test's own executable be a module with the fault that its argument names.
func TestMain(m *testing.M) {
	if os.Getenv("MOSAIC_MODULE") != "" {
		beFaulty(os.Args[1])
		return
	}
	os.Exit(m.Run())
}

// faulty is an isolator that behaves but for one fault.
type faulty struct {
	isolatorv1.UnimplementedIsolatorServer
	fault  string
	config *module.Config[settings]

	mu       sync.Mutex // guards what follows
	prepared map[string]bool
	last     string
	calls    int
	recovers int
	held     []*os.File
}

type settings struct {
	Loud  bool   `hcl:"loud,optional" doc:"Says it in capitals."`
	Words string `hcl:"words,optional" doc:"What it says." oneof:"hello,goodbye"`
}

func newFaulty(fault string) *faulty {
	check := func(*settings) error {
		if fault == "prints when configured" {
			_, _ = syscall.Write(1, []byte("configured\n"))
		}
		return nil
	}
	return &faulty{fault: fault, prepared: map[string]bool{}, config: module.NewConfig(settings{Words: "hello"}, check)}
}

func beFaulty(fault string) {
	switch fault {
	case "slow start":
		time.Sleep(2500 * time.Millisecond)
	case "needs root to start":
		if os.Getuid() != 0 {
			os.Exit(1)
		}
	case "ignores the end of its host":
		null, err := os.Open(os.DevNull)
		if err != nil || syscall.Dup3(int(null.Fd()), 0, 0) != nil {
			os.Exit(1)
		}
	}
	module.Serve(newFaulty(fault))
}

// loose takes every document, and at once.
type loose struct {
	module.Configurer
	take func(document string)
}

func (l loose) Check(document string) (func() func(), []*modulev1.AttributeError) {
	if l.take == nil {
		return func() func() { return func() {} }, nil
	}
	l.take(document)
	return l.Configurer.Check(document)
}

// wrongSchema has a default that is no value of its attribute, and no doc.
type wrongSchema struct{ module.Configurer }

func (wrongSchema) Schema() (*modulev1.Schema, error) {
	return &modulev1.Schema{Attributes: []*modulev1.Attribute{{Name: "loud", Type: modulev1.Attribute_BOOL, DefaultJson: `"yes"`}}}, nil
}

func (f *faulty) Info() module.Info {
	i := module.Info{
		Kind: "isolator", Name: "faulty", Version: "1.0.0", Doc: "has one fault", Powers: []string{"environment", "cgroup"},
		Calls: []string{"isolate", "update", "usage"}, Config: f.config, MinState: 1, MaxState: 1, Nesting: true,
	}
	switch f.fault {
	case "describes itself anew each time":
		i.Version = fmt.Sprint(time.Now().UnixNano())
	case "unknown call":
		i.Calls = append(i.Calls, "everything")
	case "takes every configuration":
		i.Config = loose{Configurer: f.config}
	case "dry run takes effect":
		i.Config = loose{Configurer: f.config, take: func(document string) {
			f.mu.Lock()
			f.last = document // shows in what Prepare proposes
			f.mu.Unlock()
		}}
	case "wrong schema":
		i.Config = wrongSchema{f.config}
	}
	return i
}

func (f *faulty) Recover(s isolatorv1.Isolator_RecoverServer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recovers++
	if f.fault == "recovers once" && f.recovers > 1 {
		return errors.New("once is enough")
	}
	answer := &isolatorv1.RecoverResponse{}
	for n := 0; ; n++ {
		page, err := s.Recv()
		if err != nil {
			return s.SendAndClose(answer)
		}
		if f.fault == "recovers one page" && n > 0 {
			return errors.New("too many")
		}
		for _, r := range page.GetContainers() {
			if f.fault == "kills orphans in Recover" && r.GetOrphan() {
				_ = syscall.Kill(int(r.GetPid()), syscall.SIGKILL)
				for _, dir := range r.GetCgroups() {
					for range 50 {
						if syscall.Rmdir(dir) == nil {
							break
						}
						time.Sleep(2 * time.Millisecond)
					}
				}
			}
			if f.fault == "knows nothing in Recover" {
				answer.Unknown = append(answer.Unknown, r.GetContainer().GetId())
			}
			if f.fault != "forgets at a restart" {
				f.prepared[r.GetContainer().GetId()] = true
			}
		}
	}
}

func (f *faulty) Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := r.GetContainer().GetId()
	f.calls++
	p := &containerv1.Proposal{Environment: map[string]string{"HELLO": f.config.Get().Words}}
	answer := &isolatorv1.PrepareResponse{Proposal: p, State: []byte("{}"), StateVersion: 1}
	switch f.fault {
	case "crashes without a container":
		if r.Container == nil {
			_ = r.Container.Id
			var none *containerv1.Container
			_ = none.Id
		}
	case "undeclared power":
		p.Hostname = "mine"
	case "dry run takes effect":
		p.Environment["LAST"] = f.last
	case "works on after its deadline":
		if strings.HasPrefix(id, "cut-") {
			f.mu.Unlock()
			time.Sleep(5 * time.Second)
			f.mu.Lock()
		}
	case "leaks descriptors":
		if null, err := os.Open(os.DevNull); err == nil {
			f.held = append(f.held, null)
		}
	case "forks":
		_ = exec.Command("sleep", "30").Start()
	case "another answer each time":
		p.Environment["CALL"] = fmt.Sprint(f.calls)
	case "large state":
		answer.State = slices.Repeat([]byte{1}, 100<<10)
	case "state of an undeclared version":
		answer.StateVersion = 7
	case "remembers ids":
		if f.prepared[id] {
			return nil, module.FailedPrecondition("container %s was here before", id)
		}
	case "mixes containers up":
		if r.GetContainer().GetResources()[0].GetScalar().GetValue() > 1 {
			f.last = id
		}
		p.Environment["LAST"] = f.last
	case "believes every number":
		var sum float64
		for _, res := range r.GetContainer().GetResources() {
			sum += res.GetScalar().GetValue()
		}
		shares := uint64(sum)
		p.Cgroup = &containerv1.CgroupResources{CpuShares: &shares}
	case "prints":
		_, _ = syscall.Write(1, []byte("prepared\n"))
	}
	f.prepared[id] = true
	return answer, nil
}

func (f *faulty) Isolate(_ context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault == "wants Prepare first" && !f.prepared[r.GetRecord().GetContainer().GetId()] {
		return nil, errors.New("internal confusion")
	}
	return &isolatorv1.IsolateResponse{}, nil
}

func (f *faulty) Update(ctx context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error) {
	if f.fault == "declares what it has not" {
		return f.UnimplementedIsolatorServer.Update(ctx, r)
	}
	return &isolatorv1.UpdateResponse{}, nil
}

func (f *faulty) Usage(_ context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, rec := range r.GetRecords() {
		if f.fault == "fails all for one" && !f.prepared[rec.GetContainer().GetId()] {
			return nil, errors.New("no such container")
		}
	}
	answer := &isolatorv1.UsageResponse{}
	if f.fault == "tells of others" {
		answer.Results = map[string]*isolatorv1.UsageResult{"other": {Error: "x"}}
	}
	return answer, nil
}

func (f *faulty) Cleanup(_ context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := r.GetRecord().GetContainer().GetId()
	switch known := f.prepared[id]; f.fault {
	case "cleans up what it knows", "forgets at a restart":
		if !known && (f.fault == "cleans up what it knows" || id == "live") {
			return nil, module.FailedPrecondition("container %s is not known", id)
		}
	case "cleans up once":
		if id == "one" && !known {
			return nil, module.FailedPrecondition("container %s is not known", id)
		}
	}
	if f.fault != "remembers ids" {
		delete(f.prepared, id)
	}
	return &isolatorv1.CleanupResponse{}, nil
}

// run runs some of the cases against the test's own executable with a fault.
func run(t *testing.T, fault string, level kit.Level, only ...string) []kit.Result {
	t.Helper()
	all := isolatortest.Cases(kit.Program{Path: os.Args[0], Args: []string{fault}}.Dial)
	cases := all
	if len(only) > 0 {
		cases = slices.DeleteFunc(slices.Clone(all), func(c kit.Case) bool { return !slices.Contains(only, c.Name) })
		if len(cases) != len(only) {
			t.Fatalf("of the cases %q there are %d", only, len(cases))
		}
	}
	r := kit.NewReporter(t.Context(), cases, nil)
	kit.Run(r, level, cases)
	return r.Results()
}

func TestAnIsolatorWithoutFaultConforms(t *testing.T) {
	for _, r := range run(t, "none", kit.Full) {
		if r.Result == kit.Failed {
			t.Errorf("%s: %v", r.Case, r.Reasons)
		}
	}
}

func TestEachFaultIsFound(t *testing.T) {
	for fault, name := range map[string]string{
		"slow start":                      "HandshakeComesWithinTwoSeconds",
		"prints when configured":          "NothingIsPrintedAfterTheHandshakeLine",
		"prints":                          "EveryDeclaredCallAnswers",
		"describes itself anew each time": "DescribeIsStable",
		"unknown call":                    "DescriptionIsComplete",
		"wrong schema":                    "SchemaIsWellFormed",
		"takes every configuration":       "EachWrongAttributeIsToldByItsPath",
		"dry run takes effect":            "DryRunChangesNothing",
		"needs root to start":             "DescribeWorksWithoutPrivileges",
		"ignores the end of its host":     "EndsWithItsHost",
		"declares what it has not":        "EveryDeclaredCallAnswers",
		"large state":                     "EveryDeclaredCallAnswers",
		"state of an undeclared version":  "EveryDeclaredCallAnswers",
		"tells of others":                 "EveryDeclaredCallAnswers",
		"undeclared power":                "UndeclaredPowersAreNeverUsed",
		"cleans up what it knows":         "CleanupOfUnknownContainerSucceeds",
		"fails all for one":               "UnknownContainersAreNoErrorInUsageAndStatus",
		"works on after its deadline":     "CancelledCallsStopWorking",
		"leaks descriptors":               "FiftyLaunchesLeaveNothingBehind",
		"forks":                           "FiftyLaunchesLeaveNothingBehind",
		"mixes containers up":             "TwoContainersAtOnce",
		"another answer each time":        "SameOperationTwiceGivesTheSame",
		"cleans up once":                  "CleanupTwiceSucceeds",
		"wants Prepare first":             "WrongOrderIsRefusedOrDone",
		"remembers ids":                   "SameIdAgainAfterCleanupIsNew",
		"forgets at a restart":            "RestartThenRecoverThenCleanup",
		"knows nothing in Recover":        "KilledBetweenAnyTwoCallsItGoesOn",
		"recovers once":                   "RecoverMayBeRepeated",
		"kills orphans in Recover":        "RecoverCleansNothingUp",
		"recovers one page":               "RecoverTakesFiveThousandContainers",
		"crashes without a container":     "EmptyRequestsAreNoCrash",
		"believes every number":           "HostileContainersAreNoCrash",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel() // each has processes of its own, and mostly waits
			if fault == "needs root to start" && os.Getuid() != 0 {
				t.Skip("needs root to become another user")
			}
			for _, r := range run(t, fault, kit.Full, name) {
				if r.Result != kit.Failed {
					t.Errorf("%s = %s %v, want it to fail", r.Case, r.Result, r.Reasons)
				} else if !strings.Contains(strings.Join(r.Reasons, "\n"), "it matters because") {
					t.Errorf("%s failed without saying why it matters: %v", r.Case, r.Reasons)
				}
			}
		})
	}
}
