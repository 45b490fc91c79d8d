package agent

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// timers calls functions at their times, one after the other, from one goroutine. One heap serves every
// timeout of every task, so that a thousand tasks cost no goroutine and no runtime timer each.
type timers struct {
	mu   sync.Mutex // guards heap
	heap timerHeap
	wake chan struct{}
}

type timer struct {
	at    time.Time
	fn    func()
	index int // in the heap; -1 when it fired or was stopped
}

func newTimers() *timers { return &timers{wake: make(chan struct{}, 1)} }

// after calls fn in d, from the goroutine of run. fn must not block.
func (t *timers) after(d time.Duration, fn func()) *timer {
	x := &timer{at: time.Now().Add(d), fn: fn}
	t.mu.Lock()
	heap.Push(&t.heap, x)
	first := x.index == 0
	t.mu.Unlock()
	if first {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
	return x
}

// stop sees to it that x does not begin to fire after stop returns. A nil x is fine.
func (t *timers) stop(x *timer) {
	if x == nil {
		return
	}
	t.mu.Lock()
	if x.index >= 0 {
		heap.Remove(&t.heap, x.index)
	}
	t.mu.Unlock()
}

// run fires timers until ctx ends.
func (t *timers) run(ctx context.Context) {
	sleep := time.NewTimer(time.Hour)
	defer sleep.Stop()
	for {
		t.mu.Lock()
		wait := time.Hour
		var due *timer
		if len(t.heap) > 0 {
			if wait = time.Until(t.heap[0].at); wait <= 0 {
				due = heap.Pop(&t.heap).(*timer)
			}
		}
		t.mu.Unlock()
		if due != nil {
			due.fn()
			if ctx.Err() != nil {
				return
			}
			continue
		}
		sleep.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-sleep.C:
		}
	}
}

type timerHeap []*timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *timerHeap) Push(x any) {
	t := x.(*timer)
	t.index = len(*h)
	*h = append(*h, t)
}
func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = -1
	return t
}
