package containerizer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// An Isolator is one isolator module as the module host offers it. The host adds `isolator(name): ` to errors and
// keeps their gRPC code, gives each call its deadline, waits for a module that restarts, and refuses answers that go
// beyond the module's powers; what arrives here is well formed but may still conflict with another module's wish.
type Isolator interface {
	Name() string
	// Required says whether a container may not run without it.
	Required() bool
	// After names isolators whose Prepare must end before this one's begins.
	After() []string
	// Wants says whether the module declared one of the optional calls: isolate, update, validate, usage, status.
	Wants(call string) bool
	Nesting() bool
	Standalone() bool

	Prepare(ctx context.Context, r *isolatorv1.PrepareRequest) (*isolatorv1.PrepareResponse, error)
	Isolate(ctx context.Context, r *isolatorv1.IsolateRequest) (*isolatorv1.IsolateResponse, error)
	Update(ctx context.Context, r *isolatorv1.UpdateRequest) (*isolatorv1.UpdateResponse, error)
	Validate(ctx context.Context, r *isolatorv1.ValidateRequest) (*isolatorv1.ValidateResponse, error)
	Usage(ctx context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error)
	Status(ctx context.Context, r *isolatorv1.StatusRequest) (*isolatorv1.StatusResponse, error)
	Cleanup(ctx context.Context, r *isolatorv1.CleanupRequest) (*isolatorv1.CleanupResponse, error)
}

// A placed isolator knows where the operator wrote it down, as file:line.
type placed interface{ Where() string }

// whereIs returns the place of an isolator in the operator's files, "" if it does not know it.
func whereIs(i Isolator) string {
	if p, ok := i.(placed); ok {
		return p.Where()
	}
	return ""
}

// composition is the isolators in the operator's order, with what each must wait for.
type composition struct {
	list   []Isolator
	byName map[string]Isolator
	after  map[string][]string // name to names, only those that are in the list
}

// compose checks names and edges. An edge to an isolator that is not there is no error: "if they are in the
// composition", says the contract. A cycle is, and every name on it is given.
func compose(isolators []Isolator) (*composition, error) {
	c := &composition{list: slices.Clone(isolators), byName: map[string]Isolator{}, after: map[string][]string{}}
	for _, i := range isolators {
		if c.byName[i.Name()] != nil {
			return nil, fmt.Errorf("isolator(%s) is in the composition twice", i.Name())
		}
		c.byName[i.Name()] = i
	}
	for _, i := range isolators {
		for _, name := range i.After() {
			if c.byName[name] != nil && !slices.Contains(c.after[i.Name()], name) {
				c.after[i.Name()] = append(c.after[i.Name()], name)
			}
		}
	}
	if cycle := c.cycle(); cycle != nil {
		for i, name := range cycle {
			cycle[i] = "isolator(" + name + ")"
		}
		return nil, fmt.Errorf("isolators wait for each other: %s", strings.Join(cycle, " after "))
	}
	return c, nil
}

// cycle returns the names along a cycle of after edges, the first repeated at the end, or nil.
func (c *composition) cycle() []string {
	const (
		open = 1
		done = 2
	)
	mark := map[string]int{}
	var path []string
	var walk func(name string) []string
	walk = func(name string) []string {
		mark[name] = open
		path = append(path, name)
		for _, next := range c.after[name] {
			switch mark[next] {
			case open:
				return append(slices.Clone(path[slices.Index(path, next):]), next)
			case done:
				continue
			}
			if found := walk(next); found != nil {
				return found
			}
		}
		path = path[:len(path)-1]
		mark[name] = done
		return nil
	}
	for _, i := range c.list {
		if mark[i.Name()] == 0 {
			if found := walk(i.Name()); found != nil {
				return found
			}
		}
	}
	return nil
}

// alongEdges runs call for each isolator of list, all at once but each after those that it must wait for. When one
// fails the context of the others ends, and those that have not begun do not begin. Returned is the error of the first
// failure in time, so that the cancelled ones do not hide it.
func (c *composition) alongEdges(ctx context.Context, list []Isolator, call func(context.Context, int, Isolator) error) error {
	if len(list) == 1 { // the common small cases are worth no goroutine
		return call(ctx, 0, list[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(map[string]chan struct{}, len(list))
	for _, i := range list {
		ended[i.Name()] = make(chan struct{})
	}
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
	)
	for n, i := range list {
		wg.Go(func() {
			defer close(ended[i.Name()])
			for _, name := range c.after[i.Name()] {
				if ch := ended[name]; ch != nil {
					select {
					case <-ch:
					case <-ctx.Done():
						return
					}
				}
			}
			if ctx.Err() != nil {
				return
			}
			if err := call(ctx, n, i); err != nil {
				once.Do(func() { first = err })
				cancel()
			}
		})
	}
	wg.Wait()
	if first == nil {
		return context.Cause(ctx) // nil unless the caller's context ended before all could begin
	}
	return first
}
