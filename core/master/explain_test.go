package master

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestQuestionsTakeTurnsAndLeaveTheLoopTimeForOtherThings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuestions()
		var group sync.WaitGroup
		var at atomic.Int32
		begun := time.Now()
		for range 4 {
			group.Go(func() {
				err := q.ask(t.Context(), func() (time.Duration, error) {
					if n := at.Add(1); n != 1 {
						t.Errorf("%d questions at once", n)
					}
					time.Sleep(10 * time.Millisecond)
					at.Add(-1)
					return 10 * time.Millisecond, nil
				})
				if err != nil {
					t.Errorf("ask = %v", err)
				}
			})
		}
		group.Wait()
		if took := time.Since(begun); took != 100*time.Millisecond {
			t.Errorf("four questions of 10 ms took %v, want 100 ms with the pauses", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		err := q.ask(ctx, func() (time.Duration, error) {
			t.Error("asked in the pause")
			return 0, nil
		})
		if statusOf(err) != 503 {
			t.Errorf("ask = %v for one who cannot wait, want a 503", err)
		}
	})
}
