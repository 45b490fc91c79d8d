package agent

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

func TestRegistrationIsTriedAgainSoonAndThenSeldom(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.setRefusal(&clusterv1.Refused{Message: "recovering"})
		w.open(nil)
		w.run()
		time.Sleep(2 * time.Second)
		early := w.master.attempts()
		if early < 4 || early > 6 {
			t.Errorf("%d attempts in the first 2s, want 4 to 6: after 100 ms, then doubling", early)
		}
		time.Sleep(10 * time.Minute)
		if n := w.master.attempts() - early; n < 10 || n > 30 {
			t.Errorf("%d attempts in the next 10m, want about one a minute", n)
		}
		before := w.master.count()
		w.master.setRefusal(nil)
		w.master.wait(t, "a registration", func() bool { return w.master.streams > before })
	})
}

func (m *controller) attempts() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.hellos)
}

func TestFatalRefusalEndsTheAgent(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.setRefusal(&clusterv1.Refused{Message: "the agent was marked gone", Fatal: true})
		w.open(nil)
		w.run()
		if err := <-w.done; !errors.Is(err, ErrShutdown) || err.Error() != "the master refuses this agent: the agent was marked gone" {
			t.Errorf("Run = %v, want the master's words", err)
		}
		w.close()
	})
}

func TestHelloDescribesTheAgent(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.config.Attributes = "rack:a1"
		w.start()
		h := w.master.hello()
		if a := h.GetAgent(); a.GetId() != nil || a.GetHostname() != "here" || a.GetPort() != 5051 || len(a.GetAttributes()) != 1 ||
			len(a.GetResources()) != 4 || len(h.GetTotalResources()) != 4 || h.GetSession() == "" || h.GetVersion() == "" || len(h.GetCapabilities()) == 0 {
			t.Errorf("Hello = %v", h)
		}
		first := h.GetSession()
		w.crash()
		w.start()
		h = w.master.hello()
		if h.GetAgent().GetId().GetValue() != "M-S0" || h.GetSession() == first {
			t.Errorf("Hello of the second life = %v, want the id given and another session", h)
		}
	})
}

func TestMasterOfAnOlderTermIsNotObeyed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.term = 7
		w.start()
		w.master.mu.Lock()
		w.master.term = 6
		w.master.mu.Unlock()
		n := w.master.attempts()
		w.launch(checkpointed("F"), command("t", "true"))
		w.master.wait(t, "another connection", func() bool { return len(w.master.hellos) > n })
		time.Sleep(time.Minute)
		if got := w.master.history("t"); len(got) != 0 {
			t.Errorf("a master of term 6 got %v from an agent that has seen 7", got)
		}
		// Also after a restart.
		w.crash()
		w.open(nil)
		w.run()
		time.Sleep(time.Minute)
		if w.agent.metrics()["slave/registered"] != 0 {
			t.Error("the next life of the agent is registered with a master of term 6")
		}
		w.master.mu.Lock()
		w.master.term = 8
		w.master.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if w.agent.metrics()["slave/registered"] != 1 {
			t.Error("the agent is not registered with a master of term 8")
		}
	})
}

func TestSilentMasterIsLeft(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.pingTimeout = 75 * time.Second
		w.start()
		n := w.master.count()
		for range 4 { // pings keep the connection, and are answered
			time.Sleep(time.Minute)
			w.master.send(t, &clusterv1.ToAgent_Ping{Ping: &clusterv1.Ping{}})
		}
		synctest.Wait()
		pongs := 0
		w.master.mu.Lock()
		for _, m := range w.master.received {
			if m.GetPong() != nil {
				pongs++
			}
		}
		w.master.mu.Unlock()
		if pongs != 4 || w.master.count() != n {
			t.Errorf("%d pongs and %d connections, want 4 and %d", pongs, w.master.count(), n)
		}
		began := time.Now()
		w.master.wait(t, "another registration", func() bool { return w.master.streams > n })
		if took := time.Since(began); took < 75*time.Second || took > 76*time.Second {
			t.Errorf("a new connection after %v of silence, want 75s", took)
		}
	})
}

func TestShutdownByTheMasterEndsAllAndGivesUpTheID(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launch(checkpointed("F"), command("t", "stubborn"))
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		w.master.send(t, &clusterv1.ToAgent_Shutdown{Shutdown: &clusterv1.Shutdown{Message: "the agent is gone"}})
		if err := <-w.done; !errors.Is(err, ErrShutdown) {
			t.Errorf("Run = %v, want ErrShutdown", err)
		}
		select {
		case <-w.host.procs[w.container("t")].ended:
		default:
			t.Error("the task still runs")
		}
		w.close()
		w.start()
		if id := w.master.hello().GetAgent().GetId(); id != nil {
			t.Errorf("the next agent comes as %v, want a new one", id)
		}
	})
}

func TestMastersAreTriedInTurn(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.config.Masters = []string{"passthrough:///down", "passthrough:///master"}
		w.master.down = "down"
		w.start()
		if w.agent.metrics()["slave/registered"] != 1 {
			t.Error("the agent is not registered")
		}
	})
}
