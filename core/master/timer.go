package master

import (
	"container/heap"
	"time"
)

// timers are the loop's own: what is due is run between commands, in the order of times and, for equal
// times, in the order in which they were set.
type timers struct {
	heap []*timer
	seq  uint64
}

// timer is one function to be run once.
type timer struct {
	at    time.Time
	seq   uint64
	index int // in the heap; -1 when not in it
	run   func(now time.Time)
}

// set has f run at t.
func (q *timers) set(t time.Time, f func(now time.Time)) *timer {
	q.seq++
	e := &timer{at: t, seq: q.seq, run: f}
	heap.Push((*timerHeap)(q), e)
	return e
}

// stop forgets a timer. nil, and one that has run, is no error.
func (q *timers) stop(e *timer) {
	if e != nil && e.index >= 0 {
		heap.Remove((*timerHeap)(q), e.index)
	}
}

// fire runs what is due.
func (q *timers) fire(now time.Time) {
	for len(q.heap) > 0 && !q.heap[0].at.After(now) {
		e := heap.Pop((*timerHeap)(q)).(*timer)
		e.run(now)
	}
}

// next is the time of the first timer.
func (q *timers) next() (time.Time, bool) {
	if len(q.heap) == 0 {
		return time.Time{}, false
	}
	return q.heap[0].at, true
}

// timerHeap is timers for container/heap.
type timerHeap timers

func (h *timerHeap) Len() int { return len(h.heap) }

func (h *timerHeap) Less(i, j int) bool {
	a, b := h.heap[i], h.heap[j]
	if !a.at.Equal(b.at) {
		return a.at.Before(b.at)
	}
	return a.seq < b.seq
}

func (h *timerHeap) Swap(i, j int) {
	h.heap[i], h.heap[j] = h.heap[j], h.heap[i]
	h.heap[i].index, h.heap[j].index = i, j
}

func (h *timerHeap) Push(x any) {
	e := x.(*timer)
	e.index = len(h.heap)
	h.heap = append(h.heap, e)
}

func (h *timerHeap) Pop() any {
	n := len(h.heap) - 1
	e := h.heap[n]
	h.heap[n] = nil
	h.heap = h.heap[:n]
	e.index = -1
	return e
}
