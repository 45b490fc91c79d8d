package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
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

// ruler approves by a function, and notes what it was asked.
type ruler struct {
	asked []string
	no    func(action string, o *authorizerv1.Object) error
}

func (r *ruler) Approve(_ context.Context, principal, action string, o *authorizerv1.Object) error {
	r.asked = append(r.asked, fmt.Sprintf("%s %s %s/%s %s", principal, action, o.GetValue(), o.GetParentValue(), o.GetContainerId()))
	if r.no != nil {
		return r.no(action, o)
	}
	return nil
}

func TestEachCallAsksItsAction(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		rules := &ruler{}
		w.deps.Approver = rules
		w.config.KeepUser = false
		root := w.withTask() // of the user "nobody"
		rules.asked = nil
		as := func(user string, call *agentv1.Call) *agentv1.Call {
			call = proto.CloneOf(call)
			call.GetLaunchContainer().GetCommand().User = new(user)
			return call
		}
		id, sa := nestedID(root, "n"), &mesosv1.ContainerID{Value: new("sa")}
		own := w.agent.switchedUser("")
		full := root + ".n"
		eof := feed(nil)
		for _, c := range []struct {
			want string
			do   func() error
		}{
			{"p LAUNCH_NESTED_CONTAINER nobody/nobody " + full, func() error { _, err := w.agent.OperatorCall(t.Context(), "p", launchOf(id, "sleep")); return err }},
			{"p LAUNCH_NESTED_CONTAINER daemon/nobody " + root + ".d", func() error {
				_, err := w.agent.OperatorCall(t.Context(), "p", as("daemon", launchOf(nestedID(root, "d"), "sleep")))
				return err
			}},
			{"p LAUNCH_NESTED_CONTAINER nobody/nobody " + root + ".o", func() error {
				_, err := w.agent.OperatorCall(t.Context(), "p", older(launchOf(nestedID(root, "o"), "sleep")))
				return err
			}},
			{"p WAIT_NESTED_CONTAINER nobody/nobody " + root + ".x", func() error {
				_, err := w.agent.OperatorCall(t.Context(), "p", waitOf(nestedID(root, "x")))
				return err
			}},
			{"p KILL_NESTED_CONTAINER nobody/nobody " + full, func() error { _, err := w.agent.OperatorCall(t.Context(), "p", killOf(id)); return err }},
			{"p REMOVE_NESTED_CONTAINER nobody/nobody " + full, func() error {
				synctest.Wait()
				_, err := w.agent.OperatorCall(t.Context(), "p", older(removeOf(id)))
				return err
			}},
			{"p LAUNCH_NESTED_CONTAINER_SESSION nobody/nobody " + root + ".s", func() error {
				return w.agent.LaunchSession(t.Context(), "p", session(root, "s", "sh"), newClient())
			}},
			{"p LAUNCH_NESTED_CONTAINER_SESSION daemon/nobody " + root + ".s2", func() error {
				call := session(root, "s2", "sh")
				call.Command.User = new("daemon")
				return w.agent.LaunchSession(t.Context(), "p", call, newClient())
			}},
			{"p ATTACH_CONTAINER_OUTPUT nobody/nobody " + root + ".s", func() error {
				return w.agent.AttachOutput(t.Context(), "p", nestedID(root, "s"), newClient())
			}},
			{"p ATTACH_CONTAINER_INPUT nobody/nobody " + root + ".x", func() error { return w.agent.AttachInput(t.Context(), "p", nestedID(root, "x"), eof.next) }},
			{"p LAUNCH_STANDALONE_CONTAINER " + own + "/ sa", func() error { _, err := w.agent.OperatorCall(t.Context(), "p", launchOf(sa, "sleep")); return err }},
			{"p LAUNCH_STANDALONE_CONTAINER daemon/ sa2", func() error {
				_, err := w.agent.OperatorCall(t.Context(), "p", as("daemon", launchOf(&mesosv1.ContainerID{Value: new("sa2")}, "sleep")))
				return err
			}},
			{"p LAUNCH_STANDALONE_CONTAINER daemon/ sa2.n", func() error {
				_, err := w.agent.OperatorCall(t.Context(), "p", launchOf(nestedID("sa2", "n"), "sleep"))
				return err
			}},
			{"p KILL_STANDALONE_CONTAINER " + own + "/ sa", func() error { _, err := w.agent.OperatorCall(t.Context(), "p", killOf(sa)); return err }},
			{"p WAIT_STANDALONE_CONTAINER " + own + "/ sa", func() error { _, err := w.agent.OperatorCall(t.Context(), "p", waitOf(sa)); return err }},
			{"p REMOVE_STANDALONE_CONTAINER " + own + "/ sa", func() error { _, err := w.agent.OperatorCall(t.Context(), "p", removeOf(sa)); return err }},
		} {
			rules.asked, rules.no = nil, func(string, *authorizerv1.Object) error { return refuse(403, "no") }
			if err := c.do(); httpStatus(err) != 403 {
				t.Errorf("%s: denied, and the answer is %v, want 403", c.want, err)
			}
			equal(t, "asked", rules.asked, []string{c.want})
			rules.no = func(string, *authorizerv1.Object) error { return refuse(503, "the module is down") }
			if err := c.do(); httpStatus(err) != 503 {
				t.Errorf("%s: nobody can tell, and the answer is %v, want 503", c.want, err)
			}
			rules.no = nil
			if err := c.do(); err != nil && httpStatus(err) != 404 {
				t.Errorf("%s: allowed, and the answer is %v", c.want, err)
			}
		}
		rules.no = func(action string, o *authorizerv1.Object) error {
			if action == "VIEW_STANDALONE_CONTAINER" || o.GetContainerId() == root+".d" {
				return refuse(403, "no")
			}
			return nil
		}
		all := &agentv1.Call{Type: agentv1.Call_GET_CONTAINERS.Enum(), GetContainers: &agentv1.Call_GetContainers{ShowNested: new(true), ShowStandalone: new(true)}}
		var seen []string
		for _, c := range w.expect(200, all).GetGetContainers().GetContainers() {
			seen = append(seen, c.GetContainerId().GetValue())
		}
		slices.Sort(seen)
		equal(t, "seen", seen, slices.Sorted(slices.Values([]string{root, "o", "s", "s2"})))
		rules.no = func(string, *authorizerv1.Object) error { return refuse(503, "the module is down") }
		w.expect(503, all)
	})
}

func TestWhoRunsAContainer(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.config.KeepUser = false
		root := w.withTask()
		for own, c := range map[string]struct{ asked, want string }{"a": {"", "nobody"}, "b": {"daemon", "daemon"}} {
			launch := launchOf(nestedID(root, own), "sleep")
			s := session(root, "s"+own, "sh")
			if c.asked != "" {
				launch.LaunchContainer.Command.User, s.Command.User = &c.asked, &c.asked
			}
			w.expect(200, launch)
			if err := w.agent.LaunchSession(t.Context(), "", s, newClient()); err != nil {
				t.Fatal(err)
			}
			for _, id := range []string{root + "." + own, root + ".s" + own} {
				if got := (&containers{w.host, w.store}).described(id).GetUser(); got != c.want {
					t.Errorf("%s asked for %q and runs as %q, want %q", id, c.asked, got, c.want)
				}
			}
		}
	})
}

func TestStandaloneSandboxesAreReadAndCollected(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.config.DiskWatchInterval = 365 * 24 * time.Hour // collected by hand below
		w.start()
		for _, id := range []string{"alive", "over"} {
			command := map[string]string{"alive": "sleep", "over": "true"}[id]
			dir := filepath.Join(w.config.WorkDir, "containers", id)
			if err := os.MkdirAll(dir, 0o750); err != nil { // the containerizer's work
				t.Fatal(err)
			}
			w.expect(200, launchOf(&mesosv1.ContainerID{Value: &id}, command))
			for _, virtual := range []string{dir, "/containers/" + id} {
				if got, err := w.agent.ResolveFile(virtual); err != nil || got != dir {
					t.Errorf("ResolveFile(%q) = %q, %v, want %q", virtual, got, err, dir)
				}
			}
		}
		for _, virtual := range []string{"/containers", "/containers/", "/containers/none", "/containers/over/x", "/containers/..", filepath.Join(w.config.WorkDir, "containers")} {
			if got, err := w.agent.ResolveFile(virtual); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("ResolveFile(%q) = %q, %v, want ErrNotExist", virtual, got, err)
			}
		}
		synctest.Wait()
		now := time.Now()
		if n, _ := w.agent.collect(t.Context(), now, time.Hour); n != 0 {
			t.Errorf("%d sandboxes were removed before their time", n)
		}
		if n, failed := w.agent.collect(t.Context(), now.Add(2*365*24*time.Hour), time.Hour); n != 1 || failed != 0 {
			t.Errorf("collect removed %d and failed on %d, want 1 and 0", n, failed)
		}
		entries, err := os.ReadDir(filepath.Join(w.config.WorkDir, "containers"))
		if err != nil || len(entries) != 1 || entries[0].Name() != "alive" {
			t.Errorf("left are %v, %v, want the sandbox of the one that lives", entries, err)
		}
		w.expect(404, waitOf(&mesosv1.ContainerID{Value: new("over")}))
	})
}

// The sandbox of a task is the task's to arrange: a link in it leads nobody out.
func TestRemovalFollowsNoLinkOutOfTheSandbox(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withExecutor()
		sandbox := w.agent.containers[ContainerID(root)].directory
		outside := filepath.Join(w.dir, "precious")
		for _, dir := range []string{sandbox, filepath.Join(outside, "x")} {
			if err := os.MkdirAll(dir, 0o750); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(outside, filepath.Join(sandbox, "containers")); err != nil {
			t.Fatal(err)
		}
		if _, err := w.operate(removeOf(nestedID(root, "x"))); err == nil {
			t.Error("REMOVE_CONTAINER through a link succeeded")
		}
		if _, err := os.Stat(filepath.Join(outside, "x")); err != nil {
			t.Errorf("what lies outside is gone: %v", err)
		}
		if err := os.Remove(filepath.Join(sandbox, "containers")); err != nil {
			t.Fatal(err)
		}
		left := filepath.Join(sandbox, "containers/x")
		if err := os.MkdirAll(left, 0o750); err != nil {
			t.Fatal(err)
		}
		w.expect(200, removeOf(nestedID(root, "x")))
		if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the sandbox of a container that ended long ago: %v, want it removed", err)
		}
	})
}

func TestContainersThatEndedAreRememberedUpToABound(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		root := w.withExecutor()
		w.agent.mu.Lock()
		for n := range maxEndedGuests - 2 { // as if launched long ago
			g := newGuest(&containerv1.Container{Id: fmt.Sprintf("%s.old%d", root, n), ParentId: root}, false)
			g.end = &containerv1.Termination{}
			close(g.launched)
			close(g.ended)
			w.agent.guests[g.spec.GetId()] = g
		}
		w.agent.mu.Unlock()
		for n := range 2 + 5 {
			if n < 5 {
				time.Sleep(time.Second)
			}
			w.expect(200, launchOf(nestedID(root, fmt.Sprintf("c%d", n)), "true"))
			synctest.Wait()
		}
		if n := len(w.agent.guests); n != maxEndedGuests {
			t.Errorf("%d are remembered, want %d", n, maxEndedGuests)
		}
		for n := range 7 { // the newest
			w.expect(200, waitOf(nestedID(root, fmt.Sprintf("c%d", n))))
		}
		if n := w.records()["guests"]; n != 7 {
			t.Errorf("%d are on disk, want 7", n)
		}
	})
}

// Calls at random, and an agent that is killed now and then: what is said to run runs, what is on disk is in memory, and
// nothing runs that nobody knows.
func TestAnyHistoryOfContainersIsKeptTrack(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for n := range uint64(6) {
		seed := seed + n
		in(t, func(t *testing.T, w *world) {
			random := rand.New(rand.NewPCG(seed, 1))
			root := w.withTask()
			roots := []string{root, "sa", "sb", root + ".a", "sa.a", root + ".a.b"}
			id := func() *mesosv1.ContainerID {
				r := roots[random.IntN(len(roots))]
				if r != root && random.IntN(2) == 0 {
					return pathOfID(r).message()
				}
				return nestedID(r, []string{"a", "b", "c"}[random.IntN(3)])
			}
			for range 60 {
				var call *agentv1.Call
				switch k := random.IntN(20); {
				case k < 8:
					call = launchOf(id(), []string{"sleep", "true", "exit 4"}[random.IntN(3)])
				case k < 11:
					call = killOf(id())
				case k < 14:
					call = removeOf(id())
				case k < 16:
					if p := id(); p.GetParent() != nil {
						c := newClient()
						if w.agent.LaunchSession(t.Context(), "", session(pathOf(p).up().id(), pathOf(p).own(), "sh"), c) == nil && random.IntN(2) == 0 {
							c.leave()
						}
					}
				case k < 17:
					w.crash()
					w.start()
				}
				if call != nil {
					if _, err := w.operate(call); err != nil && !slices.Contains([]int{202, 400, 404, 500}, httpStatus(err)) {
						t.Errorf("seed %d: %v = %v", seed, call, err)
					}
				}
				synctest.Wait()
				w.agent.mu.Lock()
				durable := 0
				for id, g := range w.agent.guests {
					if g.running() != w.host.runs(id) {
						t.Errorf("seed %d: %s is said to run: %v, and runs: %v", seed, id, g.running(), w.host.runs(id))
					}
					if !g.session {
						durable++
					}
				}
				known := func(id string) bool { return id == root || w.agent.guests[id] != nil }
				var strays []string
				for id := range w.host.procs {
					if w.host.runs(id) && !known(id) {
						strays = append(strays, id)
					}
				}
				w.agent.mu.Unlock()
				if len(strays) > 0 {
					t.Errorf("seed %d: nobody knows %v", seed, strays)
				}
				if n := w.records()["guests"]; n != durable {
					t.Errorf("seed %d: %d are on disk, %d in memory", seed, n, durable)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}
