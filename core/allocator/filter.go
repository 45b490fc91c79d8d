package allocator

import (
	"container/heap"
	"math"
	"slices"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

const (
	defaultRefusal = 5 * time.Second
	maxRefusal     = 365 * 24 * time.Hour
)

// filter is a refusal: this client does not want these resources of this agent, nor any part
// of them, until the time has come.
type filter struct {
	client  *client
	agent   *agent
	refused resources.Set
	until   time.Time
	place   int // in filterHeap, -1 when dropped
}

// refusal returns how long a refusal holds: 5 s unless the framework says otherwise, at most
// a year, and never shorter than the options allow.
func (a *Allocator) refusal(f *mesosv1.Filters) time.Duration {
	seconds := f.GetRefuseSeconds()
	switch {
	case math.IsNaN(seconds) || seconds < 0:
		return max(defaultRefusal, a.options.MinFilter)
	case seconds == 0:
		return a.options.ReofferDelay
	case seconds >= maxRefusal.Seconds():
		return maxRefusal
	}
	return max(time.Duration(seconds*float64(time.Second)), a.options.MinFilter)
}

// refuse makes a filter. Those that it includes are dropped.
func (a *Allocator) refuse(c *client, ag *agent, refused resources.Set, until time.Time) {
	if have := c.filters[ag]; len(have) > 0 {
		c.filters[ag] = slices.DeleteFunc(have, func(f *filter) bool {
			included := !f.until.After(until) && refused.Contains(f.refused)
			if included {
				a.forgetFilter(f)
			}
			return included
		})
	}
	ag.filters++
	c.role.filters++
	f := &filter{client: c, agent: ag, refused: refused, until: until}
	c.filters[ag] = append(c.filters[ag], f)
	heap.Push(&a.filters, f)
}

// refuses says whether a filter of the client covers all of s.
func (c *client) refuses(ag *agent, s resources.Set) bool {
	for _, f := range c.filters[ag] {
		if f.refused.Contains(s) {
			return true
		}
	}
	return false
}

// forgetFilter takes a filter out of the heap.
func (a *Allocator) forgetFilter(f *filter) {
	heap.Remove(&a.filters, f.place)
	f.agent.filters--
	f.client.role.filters--
}

// OfferFilters returns how many refusals hold, by role; roles without are left out.
func (a *Allocator) OfferFilters() map[string]int {
	counts := make(map[string]int)
	for name, r := range a.roles {
		if r.filters > 0 {
			counts[name] = r.filters
		}
	}
	return counts
}

// dropFilters drops a client's filters for one agent.
func (a *Allocator) dropFilters(c *client, ag *agent) {
	for _, f := range c.filters[ag] {
		a.forgetFilter(f)
	}
	delete(c.filters, ag)
}

// dropAllFilters drops all filters of a client.
func (a *Allocator) dropAllFilters(c *client) {
	for _, fs := range c.filters {
		for _, f := range fs {
			a.forgetFilter(f)
		}
	}
	clear(c.filters)
}

// expireFilters ends the filters whose time has come.
func (a *Allocator) expireFilters(now time.Time) {
	for len(a.filters) > 0 && !a.filters[0].until.After(now) {
		f := a.filters[0]
		a.forgetFilter(f)
		c, ag := f.client, f.agent
		rest := slices.DeleteFunc(c.filters[ag], func(x *filter) bool { return x == f })
		if len(rest) == 0 {
			delete(c.filters, ag)
		} else {
			c.filters[ag] = rest
		}
		ag.unblock(c)
		a.touch(ag)
	}
}

// NextExpiry is when the next filter or another wait ends, so that the caller can allocate then;
// the zero time if there is none.
func (a *Allocator) NextExpiry() time.Time {
	if !a.paused.IsZero() {
		return a.paused // nothing is offered before then
	}
	var next time.Time
	if len(a.filters) > 0 {
		next = a.filters[0].until
	}
	for _, fw := range a.aside {
		if next.IsZero() || fw.until.Before(next) {
			next = fw.until
		}
	}
	return next
}

// filterHeap has the filter that ends first on top. Equal times may come out in any order:
// ending a filter only clears a mark, and agents are put in order before they are handed out.
type filterHeap []*filter

func (h filterHeap) Len() int           { return len(h) }
func (h filterHeap) Less(i, j int) bool { return h[i].until.Before(h[j].until) }
func (h filterHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
func (h *filterHeap) Push(x any) {
	f := x.(*filter)
	f.place = len(*h)
	*h = append(*h, f)
}
func (h *filterHeap) Pop() any {
	old := *h
	f := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	f.place = -1
	return f
}
