package kit

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// The results of a case.
const (
	Passed  = "pass"
	Failed  = "fail"
	Skipped = "skip"
)

// Result is what came of one case.
type Result struct {
	Level   string   `json:"level"`
	Case    string   `json:"case"`
	Result  string   `json:"result"`           // pass, fail or skip
	Reasons []string `json:"reasons"`          // why it failed or was skipped; notes otherwise
	Figures []Figure `json:"figures,omitzero"` // what was measured
	Seconds float64  `json:"seconds"`
}

// Figure is something measured.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// Report is the result of a whole run.
type Report struct {
	Kind     string   `json:"kind"`
	Name     string   `json:"name"`
	Version  string   `json:"version"`  // of the module
	Contract string   `json:"contract"` // such as mosaic.isolator.v1.Isolator
	Level    string   `json:"level"`
	Passed   bool     `json:"passed"`
	Claim    string   `json:"claim"` // what may be said of the module; empty if something failed
	Results  []Result `json:"results"`
}

// Finish fills in what follows from the results. claim is what may be said if nothing failed.
func (r *Report) Finish(claim string) {
	r.Passed = len(r.Results) > 0 && !slices.ContainsFunc(r.Results, func(c Result) bool { return c.Result == Failed })
	r.Claim = ""
	if r.Passed {
		r.Claim = claim
	}
}

// Reporter runs cases outside of `go test` and keeps their results.
type Reporter struct {
	ctx    context.Context
	levels map[string]Level
	done   func(Result)

	mu      sync.Mutex // guards results, and that done is told one at a time
	results []Result
}

// NewReporter returns a Reporter for the cases. done, if not nil, is told each result as it comes. When ctx ends the
// case at work is cancelled and those after it are skipped.
func NewReporter(ctx context.Context, cases []Case, done func(Result)) *Reporter {
	r := &Reporter{ctx: ctx, levels: map[string]Level{}, done: done}
	for _, c := range cases {
		r.levels[c.Name] = c.Level
	}
	return r
}

// Results are those so far, in the order in which the cases ended.
func (r *Reporter) Results() []Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.results)
}

// Run runs one case.
func (r *Reporter) Run(name string, f func(T)) {
	c := &caseRun{}
	start := time.Now()
	if r.ctx.Err() != nil {
		c.result, c.reasons = Skipped, []string{"interrupted"}
	} else {
		c.run(r.ctx, f)
	}
	res := Result{
		Level: r.levels[name].String(), Case: name, Result: c.result, Reasons: c.reasons, Figures: c.figures,
		Seconds: time.Since(start).Seconds(),
	}
	if res.Reasons == nil {
		res.Reasons = []string{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, res)
	if r.done != nil {
		r.done(res)
	}
}

// caseRun is the T of one case.
type caseRun struct {
	ctx context.Context

	mu       sync.Mutex // guards what follows
	result   string
	reasons  []string
	figures  []Figure
	cleanups []func()
}

// run calls f on a goroutine of its own, so that Fatalf can end it from any depth.
func (c *caseRun) run(ctx context.Context, f func(T)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.ctx = ctx
	c.guard(func() { f(c) })
	for {
		c.mu.Lock()
		n := len(c.cleanups)
		if n == 0 {
			c.mu.Unlock()
			break
		}
		next := c.cleanups[n-1]
		c.cleanups = c.cleanups[:n-1]
		c.mu.Unlock()
		c.guard(next)
	}
	if c.result == "" {
		c.result = Passed
	}
}

// guard calls f and turns a panic of a case into its failure: one broken case must not hide the others.
func (c *caseRun) guard(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				c.Errorf("the case panicked: %v", p)
			}
		}()
		f()
	}()
	<-done
}

func (c *caseRun) say(result, format string, args []any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if result != "" && c.result != Failed {
		c.result = result
	}
	c.reasons = append(c.reasons, strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (c *caseRun) Errorf(format string, args ...any) { c.say(Failed, format, args) }

func (c *caseRun) Fatalf(format string, args ...any) {
	c.say(Failed, format, args)
	runtime.Goexit()
}

func (c *caseRun) Skipf(format string, args ...any) {
	c.say(Skipped, format, args)
	runtime.Goexit()
}

func (c *caseRun) Logf(format string, args ...any) { c.say("", format, args) }

func (c *caseRun) Helper() {}

func (c *caseRun) Failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.result == Failed
}

func (c *caseRun) Cleanup(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cleanups = append(c.cleanups, f)
}

func (c *caseRun) Context() context.Context { return c.ctx }

func (c *caseRun) Measure(name string, value float64, unit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.figures = append(c.figures, Figure{name, value, unit})
}
