package agent

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func (w *world) operate(call *agentv1.Call) (*agentv1.Response, error) {
	return w.agent.OperatorCall(context.Background(), "", call)
}

func launchOf(id *mesosv1.ContainerID, command string) *agentv1.Call {
	return &agentv1.Call{Type: agentv1.Call_LAUNCH_CONTAINER.Enum(), LaunchContainer: &agentv1.Call_LaunchContainer{
		ContainerId: id, Command: &mesosv1.CommandInfo{Value: new(command)},
	}}
}

func waitOf(id *mesosv1.ContainerID) *agentv1.Call {
	return &agentv1.Call{Type: agentv1.Call_WAIT_CONTAINER.Enum(), WaitContainer: &agentv1.Call_WaitContainer{ContainerId: id}}
}

func killOf(id *mesosv1.ContainerID) *agentv1.Call {
	return &agentv1.Call{Type: agentv1.Call_KILL_CONTAINER.Enum(), KillContainer: &agentv1.Call_KillContainer{ContainerId: id}}
}

func removeOf(id *mesosv1.ContainerID) *agentv1.Call {
	return &agentv1.Call{Type: agentv1.Call_REMOVE_CONTAINER.Enum(), RemoveContainer: &agentv1.Call_RemoveContainer{ContainerId: id}}
}

// older is a call in its older name, for nested containers only.
func older(c *agentv1.Call) *agentv1.Call {
	switch c.GetType() {
	case agentv1.Call_LAUNCH_CONTAINER:
		return &agentv1.Call{Type: agentv1.Call_LAUNCH_NESTED_CONTAINER.Enum(), LaunchNestedContainer: &agentv1.Call_LaunchNestedContainer{
			ContainerId: c.GetLaunchContainer().GetContainerId(), Command: c.GetLaunchContainer().GetCommand(), Container: c.GetLaunchContainer().GetContainer(),
		}}
	case agentv1.Call_WAIT_CONTAINER:
		return &agentv1.Call{Type: agentv1.Call_WAIT_NESTED_CONTAINER.Enum(),
			WaitNestedContainer: &agentv1.Call_WaitNestedContainer{ContainerId: c.GetWaitContainer().GetContainerId()}}
	case agentv1.Call_KILL_CONTAINER:
		return &agentv1.Call{Type: agentv1.Call_KILL_NESTED_CONTAINER.Enum(), KillNestedContainer: &agentv1.Call_KillNestedContainer{
			ContainerId: c.GetKillContainer().GetContainerId(), Signal: c.GetKillContainer().Signal}}
	default:
		return &agentv1.Call{Type: agentv1.Call_REMOVE_NESTED_CONTAINER.Enum(),
			RemoveNestedContainer: &agentv1.Call_RemoveNestedContainer{ContainerId: c.GetRemoveContainer().GetContainerId()}}
	}
}

// expect makes a call and holds its code to want.
func (w *world) expect(want int, call *agentv1.Call) *agentv1.Response {
	w.t.Helper()
	r, err := w.operate(call)
	got := 200
	if err != nil {
		got = httpStatus(err)
	}
	if got != want {
		w.t.Errorf("%v = %d (%v), want %d", call, got, err, want)
	}
	return r
}

func TestNestedContainersByTheirOlderAndNewerNames(t *testing.T) {
	newer := func(c *agentv1.Call) *agentv1.Call { return c }
	for name, named := range map[string]func(*agentv1.Call) *agentv1.Call{"newer": newer, "older": older} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				root := w.withExecutor()
				id := nestedID(root, "child")
				w.expect(404, named(waitOf(id)))
				w.expect(404, named(killOf(id)))
				w.expect(200, named(removeOf(id)))
				w.expect(400, named(launchOf(nestedID("nobody", "child"), "sleep")))
				w.expect(400, named(launchOf(nestedID(root+".nobody", "child"), "sleep")))
				w.expect(200, named(launchOf(id, "sleep")))
				d := (&containers{w.host, w.store}).described(root + ".child")
				e := w.agent.containers[ContainerID(root)]
				if d.GetParentId() != root || d.GetStandalone() || d.GetClass() != containerv1.Container_DEFAULT || d.GetFrameworkId() != "F" || d.GetExecutorId() != "e" ||
					d.GetSandbox() != filepath.Join(e.directory, "containers/child") || d.GetEnvironment()["MESOS_SANDBOX"] != d.GetSandbox() || d.GetUser() == "" {
					t.Errorf("launched as %v", d)
				}
				w.expect(202, named(launchOf(id, "sleep")))
				w.expect(500, named(removeOf(id)))

				grand := nestedID(root+".child", "grand")
				w.expect(200, named(launchOf(grand, "sleep")))
				if d := (&containers{w.host, w.store}).described(root + ".child.grand"); d.GetSandbox() != filepath.Join(e.directory, "containers/child/containers/grand") {
					t.Errorf("the grandchild's sandbox is %s", d.GetSandbox())
				}
				term := named(killOf(grand))
				if k := term.GetKillContainer(); k != nil {
					k.Signal = new(int32(15))
				} else {
					term.KillNestedContainer.Signal = new(int32(15))
				}
				w.expect(200, term)
				if r := w.expect(200, named(waitOf(grand))); r.GetWaitContainer().GetExitStatus()+r.GetWaitNestedContainer().GetExitStatus() != 15 {
					t.Errorf("the grandchild ended as %v, want by signal 15", r)
				}
				waited := make(chan *agentv1.Response)
				go func() {
					r, _ := w.operate(named(waitOf(id)))
					waited <- r
				}()
				synctest.Wait()
				w.expect(200, named(killOf(id)))
				if r := <-waited; r.GetWaitContainer().GetExitStatus()+r.GetWaitNestedContainer().GetExitStatus() != 9 {
					t.Errorf("it ended as %v, want by signal 9", r)
				}
				w.expect(404, named(killOf(id)))
				w.expect(202, named(launchOf(id, "sleep"))) // it was, and is not removed
				w.expect(400, named(launchOf(nestedID(root+".child", "late"), "sleep")))
				w.expect(200, named(waitOf(id)))
				w.expect(200, named(removeOf(id)))
				w.expect(404, named(waitOf(id)))
				w.expect(200, named(removeOf(id)))
				w.expect(200, named(launchOf(id, "true")))
				synctest.Wait()
				if !w.host.runs(root) {
					t.Error("the executor ended with what it launched")
				}
				w.expect(500, removeOf(&mesosv1.ContainerID{Value: &root}))
			})
		})
	}
}

func TestNestedContainersAreForgottenWithTheirExecutor(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withExecutor()
		w.expect(200, launchOf(nestedID(root, "a"), "sleep"))
		w.expect(200, launchOf(nestedID(root, "b"), "true"))
		w.expect(200, launchOf(nestedID(root+".a", "c"), "sleep"))
		waited := make(chan error)
		go func() {
			_, err := w.operate(waitOf(nestedID(root, "a")))
			waited <- err
		}()
		synctest.Wait()
		if n := w.records()["guests"]; n != 3 {
			t.Errorf("%d containers are on disk, want 3", n)
		}
		w.host.end(root, 0)
		if err := <-waited; err != nil {
			t.Errorf("WAIT_CONTAINER = %v, want how it ended", err)
		}
		synctest.Wait()
		if w.host.runs(root+".a") || w.host.runs(root+".a.c") {
			t.Error("nested containers outlive their executor")
		}
		w.expect(404, waitOf(nestedID(root, "a")))
		w.expect(404, waitOf(nestedID(root, "b")))
		if n := w.records()["guests"]; n != 0 || len(w.agent.guests) != 0 || len(w.agent.guestParents) != 0 {
			t.Errorf("on disk are %d of them, in memory %d below %d parents", n, len(w.agent.guests), len(w.agent.guestParents))
		}
	})
}

func TestStandaloneContainersOutliveTheAgent(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.config.Resources = "cpus:0;mem:0;disk:0;ports:[]" // nothing free
		w.start()
		id, ended := &mesosv1.ContainerID{Value: new("sa")}, &mesosv1.ContainerID{Value: new("short")}
		launch := launchOf(id, "sleep")
		launch.LaunchContainer.Resources = resources.MustParse("cpus:2;mem:64").Resources()
		launch.LaunchContainer.Limits = map[string]*mesosv1.Value_Scalar{"mem": {Value: new(128.0)}}
		w.expect(200, launch)
		w.expect(200, launchOf(ended, "exit 7"))
		w.expect(200, launchOf(nestedID("sa", "child"), "sleep"))
		d := (&containers{w.host, w.store}).described("sa")
		if !d.GetStandalone() || d.GetSandbox() != filepath.Join(w.config.WorkDir, "containers/sa") || d.GetCgroup() != "mosaic/sa" ||
			d.GetFrameworkId()+d.GetExecutorId()+d.GetParentId() != "" || resources.New(d.GetResources()...).Scalar("cpus") != 2 || d.GetLimits()["mem"] != 128 {
			t.Errorf("launched as %v", d)
		}
		if got := w.legacy("/state", nil); strings.Contains(fmt.Sprint(got), "sa:") || at(got, "frameworks.0") != nil {
			t.Errorf("/state tells of it: %v", got)
		}
		pid := w.host.procs["sa"].pid
		w.crash()
		w.start()
		if !w.host.runs("sa") || !w.host.runs("sa.child") || w.host.procs["sa"].pid != pid || w.host.started["sa"] != 1 {
			t.Error("it did not go on under the same pid")
		}
		if r := w.expect(200, waitOf(ended)); r.GetWaitContainer().GetExitStatus() != 7<<8 {
			t.Errorf("the one that ended before: %v, want status 1792", r)
		}
		w.expect(202, launchOf(id, "sleep"))
		w.expect(200, launchOf(nestedID("sa", "other"), "sleep"))
		w.expect(500, removeOf(id))
		w.host.end("sa", 3<<8)
		if r := w.expect(200, waitOf(id)); r.GetWaitContainer().GetExitStatus() != 3<<8 {
			t.Errorf("it ended as %v, want status 768", r)
		}
		synctest.Wait()
		w.expect(404, waitOf(nestedID("sa", "child"))) // went with it
		w.crash()
		w.start()
		if r := w.expect(200, waitOf(id)); r.GetWaitContainer().GetExitStatus() != 3<<8 {
			t.Errorf("after another restart it ended as %v, want status 768", r)
		}
		w.expect(200, removeOf(id))
		w.expect(404, waitOf(id))
		w.expect(200, removeOf(ended))
		if n := w.records(); n["guests"] != 0 || n["containers"] != 0 {
			t.Errorf("left on disk: %v", n)
		}
	})
}

// A launch is cut off before each of its writes. The next agent has the container, running and known, or nothing of it.
func TestALaunchThatIsCutOffIsWholeOrNotAtAll(t *testing.T) {
	for step := 1; ; step++ {
		over := false
		in(t, func(t *testing.T, w *world) {
			w.start()
			n := 0
			w.store.mu.Lock()
			w.store.beforeCommit = func(int, []op) error {
				if n++; n == step {
					return errCrash
				}
				return nil
			}
			w.store.mu.Unlock()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := w.agent.OperatorCall(ctx, "", launchOf(&mesosv1.ContainerID{Value: new("sa")}, "sleep"))
			over = err == nil
			if over {
				return
			}
			w.cancel()
			<-w.done
			w.close()
			w.start()
			_, known := w.agent.guests["sa"]
			if running := w.host.runs("sa"); running != known {
				t.Errorf("cut off before write %d: it runs: %v, it is known: %v", step, running, known)
			}
			if !known {
				w.expect(200, launchOf(&mesosv1.ContainerID{Value: new("sa")}, "sleep"))
			}
			w.expect(200, killOf(&mesosv1.ContainerID{Value: new("sa")}))
			w.expect(200, waitOf(&mesosv1.ContainerID{Value: new("sa")}))
		})
		if over {
			if step < 2 {
				t.Errorf("a launch made %d writes, want at least one before it", step-1)
			}
			return
		}
	}
}

func TestAContainerThatCannotBeLaunchedIsA400WithItsReason(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withExecutor()
		w.host.launches = func(context.Context, *containerv1.Container) error { return errors.New("isolator(x): no room") }
		for _, id := range []*mesosv1.ContainerID{nestedID(root, "a"), {Value: new("sa")}} {
			_, err := w.operate(launchOf(id, "sleep"))
			if httpStatus(err) != 400 || !strings.Contains(err.Error(), "isolator(x): no room") {
				t.Errorf("LAUNCH_CONTAINER of %v = %v, want 400 with the reason", id, err)
			}
			w.expect(404, waitOf(id))
		}
		if n := w.records()["guests"]; n != 0 {
			t.Errorf("%d of them are on disk", n)
		}
		docker := launchOf(nestedID(root, "d"), "sleep")
		docker.LaunchContainer.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_DOCKER.Enum()}
		w.expect(400, docker)
	})
}

func TestAContainerIsKilledWhileItIsLaunched(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		w.host.launches = func(ctx context.Context, _ *containerv1.Container) error {
			<-ctx.Done()
			return ctx.Err()
		}
		id := &mesosv1.ContainerID{Value: new("sa")}
		launched, waited := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := w.operate(launchOf(id, "sleep"))
			launched <- err
		}()
		synctest.Wait()
		go func() {
			_, err := w.operate(waitOf(id))
			waited <- err
		}()
		synctest.Wait()
		w.expect(202, launchOf(id, "sleep"))
		w.expect(500, removeOf(id))
		w.expect(200, killOf(id))
		if err := <-launched; httpStatus(err) != 400 {
			t.Errorf("LAUNCH_CONTAINER = %v, want 400", err)
		}
		if err := <-waited; httpStatus(err) != 404 {
			t.Errorf("WAIT_CONTAINER = %v, want 404", err)
		}
	})
}

func TestContainersOfTaskGroupsTakeOthers(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.master.autoAck = true
		w.start()
		w.launchGroup(checkpointed("F"), builtin("e"), command("a", "sleep"), command("b", "sleep"))
		w.master.await(t, "a", mesosv1.TaskState_TASK_RUNNING)
		w.master.await(t, "b", mesosv1.TaskState_TASK_RUNNING)
		synctest.Wait()
		task := w.container("a")
		if p := pathOfID(task); len(p) != 2 {
			t.Fatalf("the task is in %s, want a nested container", task)
		}
		id := pathOfID(task).message()
		w.expect(202, launchOf(id, "sleep"))
		w.expect(500, removeOf(id))
		w.expect(200, launchOf(nestedID(task, "inner"), "sleep"))
		w.expect(400, launchOf(nestedID(task+".nobody", "inner"), "sleep"))
		if d := (&containers{w.host, w.store}).described(task + ".inner"); d.GetParentId() != task || d.GetExecutorId() != "e" ||
			!strings.HasSuffix(d.GetSandbox(), "/containers/"+pathOfID(task).own()+"/containers/inner") {
			t.Errorf("launched as %v", d)
		}
		c := newClient()
		if err := w.agent.LaunchSession(t.Context(), "", session(task, "s", "sh"), c); err != nil {
			t.Fatal(err)
		}
		r := w.expect(200, &agentv1.Call{Type: agentv1.Call_GET_CONTAINERS.Enum(), GetContainers: &agentv1.Call_GetContainers{ShowNested: new(true)}}).GetGetContainers()
		var seen []string
		for _, x := range r.GetContainers() {
			seen = append(seen, pathOf(x.GetContainerStatus().GetContainerId()).id())
		}
		want := []string{string(pathOfID(task).root()), task, task + ".inner", task + ".s", w.container("b")}
		slices.Sort(seen)
		slices.Sort(want)
		equal(t, "containers", seen, want)
		c.leave()
		synctest.Wait()
		if !w.host.runs(task) || w.host.runs(task+".s") {
			t.Errorf("after the session: task %v, session %v; want only the task", w.host.runs(task), w.host.runs(task+".s"))
		}
		w.crash()
		w.start()
		if !w.host.runs(task + ".inner") {
			t.Error("what was launched into a task ended with the agent")
		}
		w.expect(200, killOf(id))
		w.master.await(t, "a", mesosv1.TaskState_TASK_FAILED)
		w.master.await(t, "b", mesosv1.TaskState_TASK_KILLED)
		synctest.Wait()
		w.expect(404, waitOf(nestedID(task, "inner")))
		if n := w.records()["guests"]; n != 0 {
			t.Errorf("%d are left on disk", n)
		}
	})
}

func TestSignalsThatDoNotExistAreRefused(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.start()
		id := &mesosv1.ContainerID{Value: new("sa")}
		w.expect(200, launchOf(id, "sleep"))
		for _, n := range []int32{0, -1, 65, 1 << 30} {
			k := killOf(id)
			k.KillContainer.Signal = new(n)
			w.expect(400, k)
		}
		if !w.host.runs("sa") {
			t.Error("one of them was sent")
		}
	})
}

func TestGetContainersShowsWhatIsAskedFor(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withExecutor()
		w.expect(200, launchOf(nestedID(root, "child"), "sleep"))
		w.expect(200, launchOf(nestedID(root, "over"), "true"))
		w.expect(200, launchOf(&mesosv1.ContainerID{Value: new("sa")}, "sleep"))
		w.expect(200, launchOf(nestedID("sa", "inner"), "sleep"))
		synctest.Wait()
		for _, c := range []struct {
			nested, standalone bool
			want               []string
		}{
			{false, false, []string{root}},
			{true, false, []string{root, root + ".child"}},
			{false, true, []string{root, "sa"}},
			{true, true, []string{root, root + ".child", "sa", "sa.inner"}},
		} {
			r := w.expect(200, &agentv1.Call{Type: agentv1.Call_GET_CONTAINERS.Enum(), GetContainers: &agentv1.Call_GetContainers{
				ShowNested: new(c.nested), ShowStandalone: new(c.standalone)}}).GetGetContainers()
			var got []string
			for _, x := range r.GetContainers() {
				full := pathOf(x.GetContainerStatus().GetContainerId())
				got = append(got, full.id())
				standalone := full[0] == "sa"
				if x.GetContainerId().GetParent() != nil || x.GetContainerId().GetValue() != full.own() || (x.ExecutorId == nil) != standalone ||
					(x.FrameworkId == nil) != standalone || (x.ExecutorName == nil) != standalone || x.GetResourceStatistics() == nil ||
					x.GetContainerStatus().GetExecutorPid() == 0 {
					t.Errorf("show %v %v: %v", c.nested, c.standalone, x)
				}
			}
			slices.Sort(got)
			equal(t, fmt.Sprintf("show_nested %v, show_standalone %v", c.nested, c.standalone), got, slices.Sorted(slices.Values(c.want)))
			legacy := w.legacy("/containers", url.Values{"show_nested": {fmt.Sprint(c.nested)}, "show_standalone": {fmt.Sprint(c.standalone)}}).([]any)
			if len(legacy) != len(c.want) {
				t.Errorf("/containers shows %d, want %d: %v", len(legacy), len(c.want), legacy)
			}
		}
		if one := w.legacy("/containers", url.Values{"show_standalone": {"true"}, "container_id": {"sa"}}).([]any); len(one) != 1 || at(one, "0.executor_id") != nil {
			t.Errorf("/containers?container_id=sa = %v", one)
		}
		if _, err := w.agent.Legacy(t.Context(), "", "/containers", url.Values{"show_nested": {"perhaps"}}); httpStatus(err) != 400 {
			t.Errorf("show_nested=perhaps: %v, want 400", err)
		}
		if n := len(w.ask(agentv1.Call_GET_CONTAINERS).GetGetContainers().GetContainers()); n != 1 {
			t.Errorf("GET_CONTAINERS without more shows %d, want 1", n)
		}
	})
}
