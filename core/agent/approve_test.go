package agent

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
)

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
