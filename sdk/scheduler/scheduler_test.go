package scheduler

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// ignore handles every event by doing nothing.
func ignore(context.Context, *schedulerv1.Event) error { return nil }

// run runs a client until the test ends and returns where its error comes.
func run(t *testing.T, c *Client, handle func(context.Context, *schedulerv1.Event) error) (ended <-chan error, cancel func()) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		done <- c.Run(ctx, handle)
	}()
	t.Cleanup(func() {
		stop()
		<-finished
	})
	return done, stop
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestAnUpdateIsAcknowledgedAfterItsHandler(t *testing.T) {
	m := newMaster(t, func(s *subscription) {
		if got := s.call.GetSubscribe().GetFrameworkInfo(); got.GetName() != "sample" || got.GetId() != nil || s.call.GetFrameworkId() != nil {
			t.Errorf("SUBSCRIBE with %v, want the framework without an id", got)
		}
		if got := s.call.GetSubscribe().GetSuppressedRoles(); !slices.Equal(got, []string{"batch"}) {
			t.Errorf("SUBSCRIBE with suppressed roles %v, want batch", got)
		}
		s.begin("f-1", 15)
		s.update("reconciled", "") // has no uuid: nobody waits for its acknowledgement
		s.update("running", "0123456789abcdef")
		s.hold()
	})
	name, user := "sample", "nobody"
	c := New(Config{Master: m.listen(), Framework: &mesosv1.FrameworkInfo{Name: &name, User: &user}, SuppressedRoles: []string{"batch"}})
	var seen []string
	handled := make(chan string, 10)
	_, stop := run(t, c, func(_ context.Context, e *schedulerv1.Event) error {
		if e.GetType() == schedulerv1.Event_UPDATE {
			m.mu.Lock()
			if len(m.calls) != 0 {
				t.Errorf("call %v before the handler had returned", m.calls)
			}
			m.mu.Unlock()
		}
		handled <- fmt.Sprint(e.GetType(), " ", e.GetUpdate().GetStatus().GetTaskId().GetValue())
		return nil
	})
	ack := m.awaitCall(timeout(t), 1)
	stop()
	if ack.GetType() != schedulerv1.Call_ACKNOWLEDGE || ack.GetFrameworkId().GetValue() != "f-1" ||
		ack.GetAcknowledge().GetTaskId().GetValue() != "running" || ack.GetAcknowledge().GetAgentId().GetValue() != "agent" ||
		string(ack.GetAcknowledge().GetUuid()) != "0123456789abcdef" {
		t.Errorf("first call %v, want the acknowledgement of the update with a uuid", ack)
	}
	close(handled)
	for s := range handled {
		seen = append(seen, s)
	}
	if want := []string{"SUBSCRIBED ", "UPDATE reconciled", "UPDATE running"}; !slices.Equal(seen, want) {
		t.Errorf("handled %q, want %q", seen, want)
	}
}

func TestACallWaitsForTheSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := make(chan struct{})
		m := newMaster(t, func(s *subscription) {
			<-open
			s.begin("f-1", 15)
			s.hold()
		})
		c := network{"m:1": m}.client(Config{Master: "m:1"})
		task := "t"
		kill := func() error { return c.Kill(timeout(t), &mesosv1.TaskID{Value: &task}, nil) }
		if err := kill(); !errors.Is(err, ErrNotSubscribed) || c.FrameworkID() != nil {
			t.Errorf("Kill before Run = %v with framework id %v, want ErrNotSubscribed and none", err, c.FrameworkID())
		}
		ended, stop := run(t, c, ignore)
		synctest.Wait()
		if err := kill(); !errors.Is(err, ErrNotSubscribed) {
			t.Errorf("Kill before SUBSCRIBED = %v, want ErrNotSubscribed", err)
		}
		close(open)
		synctest.Wait()
		if err := kill(); err != nil || c.FrameworkID().GetValue() != "f-1" {
			t.Errorf("Kill = %v with framework id %v, want success as f-1", err, c.FrameworkID())
		}
		m.mu.Lock()
		m.refuse = http.StatusForbidden
		m.mu.Unlock()
		var status *StatusError
		if err := kill(); !errors.As(err, &status) || status.Code != 403 || !strings.Contains(err.Error(), "not now") {
			t.Errorf("Kill that is refused = %v, want the master's code and words", err)
		}
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want its context's error", err)
		}
		if err := kill(); !errors.Is(err, ErrNotSubscribed) {
			t.Errorf("Kill after Run = %v, want ErrNotSubscribed", err)
		}
	})
}

func TestEachCallSaysWhatItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMaster(t, func(s *subscription) {
			s.begin("f-1", 15)
			s.hold()
		})
		c := network{"m:1": m}.client(Config{Master: "m:1"})
		_, _ = run(t, c, ignore)
		synctest.Wait()
		ctx := timeout(t)
		offer := "o"
		offers := []*mesosv1.OfferID{{Value: &offer}}
		for i, test := range []struct {
			do   func() error
			want func(*schedulerv1.Call) bool
		}{
			{func() error { return c.Accept(ctx, offers, nil, 3*time.Second) }, func(k *schedulerv1.Call) bool {
				return k.GetAccept().GetFilters().GetRefuseSeconds() == 3 && k.GetAccept().GetOfferIds()[0].GetValue() == "o"
			}},
			{func() error { return c.Decline(ctx, offers, 1500*time.Millisecond) }, func(k *schedulerv1.Call) bool {
				return k.GetDecline().GetFilters().GetRefuseSeconds() == 1.5
			}},
			{func() error { return c.Suppress(ctx, "a") }, func(k *schedulerv1.Call) bool { return slices.Equal(k.GetSuppress().GetRoles(), []string{"a"}) }},
			{func() error { return c.Revive(ctx) }, func(k *schedulerv1.Call) bool { return k.GetType() == schedulerv1.Call_REVIVE }},
			{func() error { return c.Teardown(ctx) }, func(k *schedulerv1.Call) bool { return k.GetType() == schedulerv1.Call_TEARDOWN }},
		} {
			if err := test.do(); err != nil {
				t.Errorf("call %d: %v", i, err)
			}
			if k := m.awaitCall(ctx, i+1); k.GetFrameworkId().GetValue() != "f-1" || !test.want(k) {
				t.Errorf("call %d came as %v", i, k)
			}
		}
	})
}

func TestALostStreamIsResubscribedWithTheSameId(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMaster(t, func(s *subscription) {
			if s.n > 1 && (s.call.GetFrameworkId().GetValue() != "f-1" || s.call.GetSubscribe().GetFrameworkInfo().GetId().GetValue() != "f-1") {
				t.Errorf("SUBSCRIBE %d as %v, want f-1", s.n, s.call.GetFrameworkId())
			}
			s.begin("f-1", 15)
			if s.n == 3 {
				s.hold()
			}
		})
		c := network{"m:1": m}.client(Config{Master: "m:1"})
		begun := time.Now()
		_, _ = run(t, c, ignore)
		for n := range 2 { // each resubscription asks how the tasks are
			if k := m.awaitCall(timeout(t), n+1); k.GetType() != schedulerv1.Call_RECONCILE || len(k.GetReconcile().GetTasks()) != 0 {
				t.Errorf("after resubscription %d came %v, want an implicit RECONCILE", n+1, k)
			}
		}
		if d := time.Since(begun); m.subscriptions() != 3 || d > time.Second {
			t.Errorf("%d subscriptions within %v, want 3 within a second: a subscription that worked resets the backoff", m.subscriptions(), d)
		}
	})
}

func TestAttemptsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		m := newMaster(t, func(s *subscription) {
			at = append(at, time.Now())
			s.answer(http.StatusServiceUnavailable, "no leader elected")
		})
		c := network{"m:1": m}.client(Config{Master: "m:1", MaxBackoff: 4 * time.Second})
		ended, stop := run(t, c, ignore)
		time.Sleep(2 * time.Minute)
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want it to go on while the master answers 503", err)
		}
		if first := at[1].Sub(at[0]); first > 200*time.Millisecond {
			t.Errorf("second attempt after %v, want about 0.1 s", first)
		}
		for i := len(at) - 5; i < len(at)-1; i++ {
			if d := at[i+1].Sub(at[i]); d < 2*time.Second || d > 6*time.Second {
				t.Errorf("attempt %d came %v after the one before, want about 4 s", i+1, d)
			}
		}
	})
}

func TestItGivesUpWhenTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := network{}.client(Config{Master: "nobody:1", GiveUpAfter: 10 * time.Second})
		begun := time.Now()
		ended, _ := run(t, c, ignore)
		err := <-ended
		if d := time.Since(begun); err == nil || !strings.Contains(err.Error(), "connection refused") || d < 10*time.Second || d > 30*time.Second {
			t.Errorf("Run = %v after %v, want the connection's error after about 10 s", err, d)
		}
	})
}

func TestARedirectLeadsToTheLeader(t *testing.T) {
	leader := newMaster(t, func(s *subscription) {
		s.begin("f-1", 15)
		s.hold()
	})
	at := leader.listen()
	for name, location := range map[string]string{"with its path": "//" + at + path, "without a path": "//" + at, "in full": "http://" + at + path} {
		t.Run(name, func(t *testing.T) {
			other := newMaster(t, func(s *subscription) {
				s.w.Header().Set("Location", location)
				s.w.WriteHeader(http.StatusTemporaryRedirect)
			})
			framework, user := "sample", "nobody"
			c := New(Config{Master: other.listen(), Framework: &mesosv1.FrameworkInfo{Name: &framework, User: &user}})
			subscribed := make(chan struct{}, 10)
			_, _ = run(t, c, func(context.Context, *schedulerv1.Event) error {
				subscribed <- struct{}{}
				return nil
			})
			select {
			case <-subscribed:
			case <-timeout(t).Done():
				t.Fatal("not subscribed")
			}
			// Calls go to the leader straight: the other master would fail the test.
			if err := c.Revive(timeout(t)); err != nil {
				t.Errorf("Revive at the leader = %v", err)
			}
		})
	}
}

func TestMastersThatSendEachOtherOnAreRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var settled atomic.Bool
		to := func(location string) *master {
			return newMaster(t, func(s *subscription) {
				if settled.Load() {
					s.begin("f-1", 15)
					s.hold()
					return
				}
				s.w.Header().Set("Location", location)
				s.w.WriteHeader(http.StatusTemporaryRedirect)
			})
		}
		a, b := to("//b:1"), to("//a:1")
		c := network{"a:1": a, "b:1": b}.client(Config{Master: "a:1"})
		_, _ = run(t, c, ignore)
		synctest.Wait()
		if n := a.subscriptions() + b.subscriptions(); n != maxRedirects+1 {
			t.Errorf("%d requests in the first attempt, want %d", n, maxRedirects+1)
		}
		settled.Store(true)
		time.Sleep(time.Minute)
		if c.FrameworkID().GetValue() != "f-1" {
			t.Error("not subscribed after the masters have settled who leads")
		}
	})
}

func TestWhatEndsRun(t *testing.T) {
	broken := errors.New("the handler's own")
	for name, test := range map[string]struct {
		subscribe func(*subscription)
		handle    func(context.Context, *schedulerv1.Event) error
		want      func(error) bool
	}{
		"an ERROR event": {
			func(s *subscription) {
				s.begin("f-1", 15)
				s.fail("Framework has been removed")
				s.hold()
			}, ignore,
			func(err error) bool {
				var fatal *FatalError
				return errors.As(err, &fatal) && fatal.Message == "Framework has been removed"
			},
		},
		"an ERROR instead of SUBSCRIBED": {
			func(s *subscription) { s.fail("Framework has been removed") }, ignore,
			func(err error) bool {
				var fatal *FatalError
				return errors.As(err, &fatal)
			},
		},
		"a refusal": {
			func(s *subscription) { s.answer(http.StatusUnauthorized, "who are you?\n") }, ignore,
			func(err error) bool {
				var status *StatusError
				return errors.As(err, &status) && status.Code == 401 && status.Message == "who are you?"
			},
		},
		"the handler": {
			func(s *subscription) {
				s.begin("f-1", 15)
				s.hold()
			},
			func(context.Context, *schedulerv1.Event) error { return broken },
			func(err error) bool { return err == broken },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMaster(t, test.subscribe)
				ended, _ := run(t, network{"m:1": m}.client(Config{Master: "m:1"}), test.handle)
				if err := <-ended; !test.want(err) {
					t.Errorf("Run = %v", err)
				}
				if m.subscriptions() != 1 {
					t.Errorf("%d subscriptions, want 1", m.subscriptions())
				}
			})
		})
	}
}

func TestWhatIsNoEventIsALostStream(t *testing.T) {
	for name, junk := range map[string]string{
		"no record": "hello\n", "a huge record": "99999999999999\n", "no event": "3\n\xff\xff\xff", "half a record": "100\nabc",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMaster(t, func(s *subscription) {
					s.begin("f-1", 15)
					if s.n == 1 {
						_, _ = s.w.Write([]byte(junk))
						return
					}
					s.hold()
				})
				_, _ = run(t, network{"m:1": m}.client(Config{Master: "m:1"}), ignore)
				time.Sleep(time.Second)
				if m.subscriptions() != 2 {
					t.Errorf("%d subscriptions, want a second after the stream broke", m.subscriptions())
				}
			})
		})
	}
}

func TestASilentMasterIsLeft(t *testing.T) {
	for name, test := range map[string]struct {
		play func(*subscription) // the first subscription
		want time.Duration       // until the second
	}{
		"before its answer": {func(s *subscription) { s.hold() }, subscribeTimeout},
		"before SUBSCRIBED": {func(s *subscription) {
			s.w.WriteHeader(http.StatusOK)
			s.hold()
		}, firstSilence},
		"after three missed heartbeats": {func(s *subscription) {
			s.begin("f-1", 5)
			for range 10 {
				time.Sleep(5 * time.Second)
				s.heartbeat()
			}
			s.hold()
		}, 50*time.Second + missedHeartbeats*5*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				second := make(chan time.Duration, 1)
				m := newMaster(t, func(s *subscription) {
					if s.n == 1 {
						test.play(s)
						return
					}
					second <- time.Since(begun)
					s.begin("f-1", 1000)
					s.hold()
				})
				_, _ = run(t, network{"m:1": m}.client(Config{Master: "m:1"}), ignore)
				if got := <-second; got < test.want || got > test.want+time.Second {
					t.Errorf("subscribed again after %v, want %v", got, test.want)
				}
			})
		})
	}
}

func TestASlowHandlerIsNotTheMastersSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMaster(t, func(s *subscription) {
			s.begin("f-1", 5)
			s.hold()
		})
		done := make(chan error, 1)
		_, _ = run(t, network{"m:1": m}.client(Config{Master: "m:1"}), func(ctx context.Context, _ *schedulerv1.Event) error {
			select {
			case <-time.After(10 * time.Minute):
			case <-ctx.Done():
			}
			done <- ctx.Err()
			return nil
		})
		if err := <-done; err != nil {
			t.Errorf("the handler's context ended: %v", err)
		}
	})
}
