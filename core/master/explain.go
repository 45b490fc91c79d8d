package master

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/mosaic-cluster/mosaic/core/allocator"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

const (
	maxExamples     = 100    // agents named for one reason
	maxPorts        = 65_536 // that a task may need
	maxExplainQuery = 4096   // bytes of one parameter
)

// questions lets one question at a time into the loop, and none for twice the time that the last one took: however many
// ask, the loop does other things most of the time.
type questions struct {
	turn chan struct{} // holds one token while nobody asks
	rest time.Time     // whoever has the token waits until then
}

func newQuestions() *questions {
	q := &questions{turn: make(chan struct{}, 1)}
	q.turn <- struct{}{}
	return q
}

// ask runs f, which says how long it took, when it is its turn.
func (q *questions) ask(ctx context.Context, f func() (time.Duration, error)) error {
	select {
	case <-q.turn:
	case <-ctx.Done():
		return &Refusal{Status: http.StatusServiceUnavailable, Text: "Others ask the same of this master; try again"}
	}
	defer func() { q.turn <- struct{}{} }()
	if wait := time.Until(q.rest); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return &Refusal{Status: http.StatusServiceUnavailable, Text: "Others ask the same of this master; try again"}
		}
	}
	cost, err := f()
	q.rest = time.Now().Add(2 * cost)
	return err
}

// explain answers why a framework or a role is not offered what it needs, as JSON. It is worked out in the loop, for it
// reads the allocator; the allocator bounds what it looks at to some milliseconds.
//
// Errors: a Refusal with 400 for a query that makes no sense.
func (m *Master) explain(ctx context.Context, query url.Values) ([]byte, error) {
	q, err := explainQuestion(query)
	if err != nil {
		return nil, err
	}
	var answer allocator.Explanation
	err = m.questions.ask(ctx, func() (time.Duration, error) {
		var cost time.Duration
		err := m.do(ctx, func(now time.Time) {
			begun := time.Now()
			answer = m.s.allocator.Explain(q, now)
			cost = time.Since(begun)
		})
		if err != nil {
			return 0, err // the loop may still be at it
		}
		return cost, nil
	})
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return nil, fmt.Errorf("encode an explanation: %w", err)
	}
	return body, nil
}

// explainQuestion reads the parameters framework, role, need (the text form of resources), ports and examples.
func explainQuestion(query url.Values) (allocator.Question, error) {
	for _, name := range sortedKeys(query) {
		for _, v := range query[name] {
			if len(v) > maxExplainQuery {
				return allocator.Question{}, badRequest("Parameter '%s' has %d bytes, want at most %d", name, len(v), maxExplainQuery)
			}
		}
	}
	q := allocator.Question{FrameworkID: query.Get("framework"), Role: query.Get("role")}
	if q.Role != "" {
		if err := resources.ValidateRole(q.Role); err != nil {
			return q, badRequest("Invalid 'role': %v", err)
		}
	}
	if text := query.Get("need"); text != "" {
		rs, err := resources.Parse(text, "*")
		if err != nil {
			return q, badRequest("Failed to parse 'need': %v", err)
		}
		set := resources.New(rs...)
		for _, e := range set.Entries() {
			if e.ReservedTo() != "" {
				return q, badRequest("'need' has reserved resources; name the 'role' instead")
			}
		}
		q.Need = set.Quantities()
		q.PortRanges = set.Ranges("ports")
		if n := q.PortRanges.Count(); n > maxPorts {
			return q, badRequest("'need' has %d ports, want at most %d", n, maxPorts)
		}
	}
	for name, into := range map[string]struct {
		to   *int
		most int
	}{"ports": {&q.Ports, maxPorts}, "examples": {&q.Examples, maxExamples}} {
		text := query.Get(name)
		if text == "" {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > into.most {
			return q, badRequest("Failed to parse '%s': got %q, want a number from 0 to %d", name, text, into.most)
		}
		*into.to = n
	}
	return q, nil
}
