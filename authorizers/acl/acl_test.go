package acl_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/authorizers/acl"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// mesos gives a configuration with lists in Mesos's JSON.
func mesos(lists string) string { return fmt.Sprintf(`{"json":%q}`, lists) }

func subject(name string) *authorizerv1.Subject {
	if name == "" {
		return nil
	}
	return &authorizerv1.Subject{Value: &name}
}

// decide asks for an approver and applies it as a host does, and asks the module too: both must say the same.
func decide(t *testing.T, c *moduletest.Client, s *authorizerv1.Subject, action string, o *authorizerv1.Object) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	many, err := c.Authorizer.Authorize(ctx, &authorizerv1.AuthorizeRequest{Subject: s, Action: action, Objects: []*authorizerv1.Object{o, o}})
	if err != nil || len(many.GetAllowed()) != 2 || many.Allowed[0] != many.Allowed[1] {
		t.Fatalf("Authorize(%v, %s, %v) = %v, %v; want one answer twice", s, action, o, many, err)
	}
	a, err := c.Authorizer.Approver(ctx, &authorizerv1.ApproverRequest{Subject: s, Action: action})
	if err != nil {
		t.Fatalf("Approver(%v, %s): %v", s, action, err)
	}
	var local bool
	switch d := a.GetDecision().(type) {
	case *authorizerv1.ApproverResponse_AllowAll:
		local = true
	case *authorizerv1.ApproverResponse_DenyAll:
	case *authorizerv1.ApproverResponse_Rules:
		local = d.Rules.GetOtherwiseAllow()
		for _, r := range d.Rules.GetRules() {
			if matches(r, o) {
				local = r.GetAllow()
				break
			}
		}
	case *authorizerv1.ApproverResponse_Ask:
		local = many.Allowed[0]
	default:
		t.Fatalf("Approver(%v, %s) = %v, want a decision", s, action, a)
	}
	if local != many.Allowed[0] {
		t.Fatalf("%v, %s, %v: the approver %v says %v, Authorize says %v", s, action, o, a, local, many.Allowed[0])
	}
	return local
}

func matches(r *authorizerv1.Rule, o *authorizerv1.Object) bool {
	if r.GetMatch() == authorizerv1.Rule_ANY {
		return true
	}
	for _, v := range r.GetValues() {
		parent, below := strings.CutSuffix(v, "/%")
		if o.Value != nil && (v == o.GetValue() || below && strings.HasPrefix(o.GetValue(), parent+"/")) {
			return true
		}
	}
	return false
}

func TestDecisionsAreThoseOfMesos(t *testing.T) {
	for _, test := range []struct {
		name, lists, principal, action, value string
		want                                  bool
	}{
		{"no lists", `{}`, "alice", "RUN_TASK", "root", true},
		{"no lists, not permissive", `{"permissive":false}`, "alice", "RUN_TASK", "root", false},
		{"listed", `{"permissive":false,"run_tasks":[{"principals":{"values":["alice"]},"users":{"values":["www"]}}]}`, "alice", "RUN_TASK", "www", true},
		{"listed, another user", `{"permissive":false,"run_tasks":[{"principals":{"values":["alice"]},"users":{"values":["www"]}}]}`, "alice", "RUN_TASK", "root", false},
		{"listed, another principal", `{"permissive":false,"run_tasks":[{"principals":{"values":["alice"]},"users":{"values":["www"]}}]}`, "bob", "RUN_TASK", "www", false},
		{"nobody may be root", `{"run_tasks":[{"principals":{"type":"NONE"},"users":{"values":["root"]}}]}`, "alice", "RUN_TASK", "root", false},
		{"nobody may be root, others may", `{"run_tasks":[{"principals":{"type":"NONE"},"users":{"values":["root"]}}]}`, "alice", "RUN_TASK", "www", true},
		{"the first list decides", `{"run_tasks":[{"principals":{"values":["alice"]},"users":{"type":"ANY"}},{"principals":{"type":"ANY"},"users":{"type":"NONE"}}]}`, "alice", "RUN_TASK", "root", true},
		{"the first list decides against", `{"run_tasks":[{"principals":{"values":["alice"]},"users":{"type":"ANY"}},{"principals":{"type":"ANY"},"users":{"type":"NONE"}}]}`, "bob", "RUN_TASK", "root", false},
		{"values beside ANY mean nothing", `{"permissive":false,"run_tasks":[{"principals":{"type":"ANY","values":["x"]},"users":{"type":"ANY"}}]}`, "alice", "RUN_TASK", "root", true},
		{"no principal is matched by ANY", `{"permissive":false,"run_tasks":[{"principals":{"type":"ANY"},"users":{"type":"ANY"}}]}`, "", "RUN_TASK", "root", true},
		{"no principal is not matched by names", `{"permissive":false,"run_tasks":[{"principals":{"values":["alice"]},"users":{"type":"ANY"}}]}`, "", "RUN_TASK", "root", false},
		{"no principal is denied by NONE", `{"run_tasks":[{"principals":{"type":"NONE"},"users":{"type":"ANY"}}]}`, "", "RUN_TASK", "root", false},
		{"below a role", `{"permissive":false,"register_frameworks":[{"principals":{"type":"ANY"},"roles":{"values":["eng/%"]}}]}`, "a", "REGISTER_FRAMEWORK", "eng/web/api", true},
		{"the role itself is not below it", `{"permissive":false,"register_frameworks":[{"principals":{"type":"ANY"},"roles":{"values":["eng/%"]}}]}`, "a", "REGISTER_FRAMEWORK", "eng", false},
		{"a name that begins alike is not below", `{"permissive":false,"register_frameworks":[{"principals":{"type":"ANY"},"roles":{"values":["eng/%"]}}]}`, "a", "REGISTER_FRAMEWORK", "engine/x", false},
		{"both quota actions, one list", `{"permissive":false,"update_quotas":[{"principals":{"values":["ops"]},"roles":{"values":["a"]}}]}`, "ops", "UPDATE_QUOTA_WITH_CONFIG", "a", true},
		{"without names", `{"view_flags":[{"principals":{"values":["ops"]},"flags":{"type":"ANY"}},{"principals":{"type":"NONE"},"flags":{"type":"ANY"}}]}`, "ops", "VIEW_FLAGS", "", true},
		{"without names, denied", `{"view_flags":[{"principals":{"values":["ops"]},"flags":{"type":"ANY"}},{"principals":{"type":"NONE"},"flags":{"type":"ANY"}}]}`, "bob", "VIEW_FLAGS", "", false},
		{"another list says nothing", `{"permissive":false,"view_tasks":[{"principals":{"type":"ANY"},"users":{"type":"ANY"}}]}`, "a", "VIEW_EXECUTOR", "u", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := moduletest.Start(t, acl.New(), mesos(test.lists))
			o := &authorizerv1.Object{}
			if test.value != "" {
				o.Value = &test.value
			}
			if got := decide(t, c, subject(test.principal), test.action, o); got != test.want {
				t.Errorf("%q may %s %q = %v, want %v", test.principal, test.action, test.value, got, test.want)
			}
		})
	}
}

func TestANestedLaunchNeedsBothUsers(t *testing.T) {
	c := moduletest.Start(t, acl.New(), mesos(`{"permissive":false,
		"launch_nested_containers_as_user":[{"principals":{"values":["alice"]},"users":{"values":["www","db"]}}],
		"launch_nested_containers_under_parent_with_user":[{"principals":{"values":["alice"]},"users":{"values":["www"]}}]}`))
	for _, test := range []struct {
		principal, user, parent string
		want                    bool
	}{{"alice", "db", "www", true}, {"alice", "db", "db", false}, {"alice", "root", "www", false}, {"bob", "www", "www", false}} {
		o := &authorizerv1.Object{Value: &test.user, ParentValue: &test.parent}
		if got := decide(t, c, subject(test.principal), "LAUNCH_NESTED_CONTAINER", o); got != test.want {
			t.Errorf("%s as %s under %s = %v, want %v", test.principal, test.user, test.parent, got, test.want)
		}
	}
}

func TestAnExecutorHandlesWhatRunsInItsOwnContainer(t *testing.T) {
	c := moduletest.Start(t, acl.New(), `{"permissive":false}`)
	executor := &authorizerv1.Subject{Claims: map[string]string{"cid": "root-1"}}
	provider := &authorizerv1.Subject{Claims: map[string]string{"cid_prefix": "rp-1-"}}
	for _, test := range []struct {
		who          *authorizerv1.Subject
		action, id   string
		want         bool
		inOtherWords string
	}{
		{executor, "LAUNCH_NESTED_CONTAINER", "root-1.a", true, "its child"},
		{executor, "KILL_NESTED_CONTAINER", "root-1.a.b", true, "its grandchild"},
		{executor, "KILL_NESTED_CONTAINER", "root-12.a", false, "another's whose id begins alike"},
		{executor, "KILL_STANDALONE_CONTAINER", "root-1", false, "not nested"},
		{provider, "LAUNCH_STANDALONE_CONTAINER", "rp-1-plugin", true, "by prefix"},
		{provider, "LAUNCH_STANDALONE_CONTAINER", "rp-2-plugin", false, "by another prefix"},
		{subject("alice"), "KILL_NESTED_CONTAINER", "root-1.a", false, "no claim"},
	} {
		if got := decide(t, c, test.who, test.action, &authorizerv1.Object{ContainerId: test.id}); got != test.want {
			t.Errorf("%v may %s %s (%s) = %v, want %v", test.who, test.action, test.id, test.inOtherWords, got, test.want)
		}
	}
}

func TestSimpleListsNeedNoRoundTrip(t *testing.T) {
	c := moduletest.Start(t, acl.New(), mesos(`{"view_tasks":[{"principals":{"values":["ops"]},"users":{"type":"ANY"}},
		{"principals":{"values":["dev"]},"users":{"values":["www"]}},{"principals":{"type":"ANY"},"users":{"type":"NONE"}}]}`))
	for who, want := range map[string]string{"ops": "AllowAll", "dev": "Rules", "eve": "DenyAll"} {
		a, err := c.Authorizer.Approver(context.Background(), &authorizerv1.ApproverRequest{Subject: subject(who), Action: "VIEW_TASK"})
		if got := fmt.Sprintf("%T", a.GetDecision()); err != nil || !strings.HasSuffix(got, want) {
			t.Errorf("Approver(%s) = %s, %v; want %s", who, got, err, want)
		}
	}
}

func TestUnconfiguredDeniesEverything(t *testing.T) {
	c := moduletest.Dial(t, acl.New())
	if decide(t, c, subject("alice"), "RUN_TASK", &authorizerv1.Object{Value: proto.String("www")}) {
		t.Error("an authorizer without configuration allowed something")
	}
}

func TestTheSameListsInEveryForm(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	json := `{"permissive":false,"run_tasks":[{"principals":{"type":"NONE"},"users":{"values":["root"]}},{"principals":{"values":["alice"]},"users":{"type":"ANY"}}]}`
	hcl := `
permissive = false
acl "run_tasks" {
  principals = ["NONE"]
  objects    = ["root"]
}
acl "run_tasks" {
  principals = ["alice"]
}
`
	for name, config := range map[string]string{
		"json":      mesos(json),
		"json file": fmt.Sprintf(`{"file":%q}`, write("acls.json", json)),
		"hcl file":  fmt.Sprintf(`{"file":%q}`, write("acls.hcl", hcl)),
		"blocks":    `{"permissive":false,"acl":[{"name":"run_tasks","principals":["NONE"],"objects":["root"]},{"name":"run_tasks","principals":["alice"]}]}`,
	} {
		c := moduletest.Start(t, acl.New(), config)
		for _, test := range []struct {
			who, user string
			want      bool
		}{{"alice", "www", true}, {"alice", "root", false}, {"bob", "www", false}} {
			if got := decide(t, c, subject(test.who), "RUN_TASK", &authorizerv1.Object{Value: &test.user}); got != test.want {
				t.Errorf("%s: %s as %s = %v, want %v", name, test.who, test.user, got, test.want)
			}
		}
	}
}

func TestReloadVoidsApproversAndMistakesChangeNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "acls.json")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"permissive":true}`)
	config := fmt.Sprintf(`{"file":%q}`, path)
	c := moduletest.Start(t, acl.New(), config)
	o := &authorizerv1.Object{Value: proto.String("www")}
	before, err := c.Authorizer.Approver(context.Background(), &authorizerv1.ApproverRequest{Action: "RUN_TASK"})
	if err != nil {
		t.Fatal(err)
	}
	write(`{"permissive":fal`)
	if errs := c.Configure(t, config); len(errs) != 1 || errs[0].GetPath() != "file" {
		t.Errorf("Configure with half a file = %v, want one error at file", errs)
	}
	if !decide(t, c, nil, "RUN_TASK", o) {
		t.Error("a refused file changed the decision")
	}
	write(`{"permissive":false}`)
	if errs := c.Configure(t, config); len(errs) != 0 {
		t.Fatalf("Configure = %v", errs)
	}
	if decide(t, c, nil, "RUN_TASK", o) {
		t.Error("the new file is not in force")
	}
	after, err := c.Authorizer.Approver(context.Background(), &authorizerv1.ApproverRequest{Action: "RUN_TASK"})
	if err != nil || after.GetRevision() <= before.GetRevision() {
		t.Errorf("revision %d after %d, %v; want it to rise", after.GetRevision(), before.GetRevision(), err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	w, err := c.Module.Watch(ctx, &modulev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		e, err := w.Recv()
		if err != nil {
			t.Fatalf("wait for revision %d: %v", after.GetRevision(), err)
		}
		if e.GetRevision().GetRevision() == after.GetRevision() {
			return
		}
	}
}

func TestWrongListsAreToldWithWhatWasMeant(t *testing.T) {
	for config, want := range map[string][3]string{ // path, part of the message, suggestion
		`{"acl":[{"name":"run_task"}]}`:                                                     {"acl[0]", "no list", "run_tasks"},
		`{"acl":[{"name":"view_flags","objects":["x"]}]}`:                                   {"acl[0]", "ANY or NONE", ""},
		`{"acl":[{"name":"run_tasks","principals":["ANY","bob"]}]}`:                         {"acl[0]", "alone", ""},
		`{"acl":[{"name":"run_tasks","objects":["a/%"]}]}`:                                  {"acl[0]", "only roles", ""},
		`{"file":"/no/such/file"}`:                                                          {"file", "does not exist", ""},
		mesos(`{"run_tasks":[{"principals":{"type":"admin"},"users":{"type":"ANY"}}]}`):     {"json", `got "admin"`, ""},
		mesos(`{"run_tasks":[{"principals":{"type":"ANY"},"roles":{"type":"ANY"}}]}`):       {"json", "users is missing", ""},
		mesos(`{"run_tasks":[{"principals":{"type":"ANY"},"users":{"value":["a"]}}]}`):      {"json", "type and values", ""},
		mesos(`{"register_framework":[]}`):                                                  {"json", "register_frameworks", ""},
		mesos(`[]`):                                                                         {"json", "JSON object", ""},
		mesos(strings.Repeat(`{"run_tasks":`, 20000) + strings.Repeat(`}`, 20000)):          {"json", "JSON object", ""},
		mesos(`{"permissive":"yes"}`):                                                       {"json", "permissive", ""},
		`{"file":"/dev/zero"}`:                                                              {"file", "more than", ""},
		mesos(`{"access_mesos_logs":[{"principals":{"type":"ANY"},"logs":{"values":[]}}]}`): {"json", "ANY or NONE", ""},
	} {
		errs := moduletest.Dial(t, acl.New()).Configure(t, config)
		if len(errs) != 1 || errs[0].GetPath() != want[0] || !strings.Contains(errs[0].GetMessage(), want[1]) || errs[0].GetSuggestion() != want[2] {
			t.Errorf("Configure(%.80s) = %v, want one error at %s about %q, suggesting %q", config, errs, want[0], want[1], want[2])
		}
	}
	path := filepath.Join(t.TempDir(), "acls.hcl")
	if err := os.WriteFile(path, []byte("acl \"run_tasks\" {\n  object = [\"x\"]\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	errs := moduletest.Dial(t, acl.New()).Configure(t, fmt.Sprintf(`{"file":%q}`, path))
	if len(errs) != 1 || !strings.Contains(errs[0].GetMessage(), path+":2,3") {
		t.Errorf("Configure with a misspelt file = %v, want its name and line", errs)
	}
}

func TestHostileRequestsAreRefused(t *testing.T) {
	c := moduletest.Start(t, acl.New(), `{}`)
	if _, err := c.Authorizer.Approver(context.Background(), &authorizerv1.ApproverRequest{Action: "RUN_EVERYTHING"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("Approver of an unknown action: %v, want InvalidArgument", err)
	}
	many := make([]*authorizerv1.Object, 10_001)
	for i := range many {
		many[i] = &authorizerv1.Object{}
	}
	if _, err := c.Authorizer.Authorize(context.Background(), &authorizerv1.AuthorizeRequest{Action: "RUN_TASK", Objects: many}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("Authorize of 10,001 objects: %v, want InvalidArgument", err)
	}
}

// TestApproverAndAuthorizeAgree makes lists at random; decide compares both ways of every decision.
func TestApproverAndAuthorizeAgree(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	names := []string{"a", "b", "a/b", "a/b/c", "a/%", "b/%"}
	side := func() string {
		switch r.IntN(5) {
		case 0:
			return `["ANY"]`
		case 1:
			return `["NONE"]`
		}
		return fmt.Sprintf(`[%q,%q]`, names[r.IntN(len(names))], names[r.IntN(len(names))])
	}
	for range 40 {
		var lists []string
		for range r.IntN(5) {
			lists = append(lists, fmt.Sprintf(`{"name":"view_roles","principals":%s,"objects":%s}`, side(), side()))
		}
		c := moduletest.Start(t, acl.New(), fmt.Sprintf(`{"permissive":%v,"acl":[%s]}`, r.IntN(2) == 0, strings.Join(lists, ",")))
		for _, who := range []string{"", "a", "b"} {
			for _, role := range []string{"a", "a/b", "a/b/c", "b", "c"} {
				decide(t, c, subject(who), "VIEW_ROLE", &authorizerv1.Object{Value: &role})
			}
			decide(t, c, subject(who), "VIEW_ROLE", &authorizerv1.Object{})
		}
	}
}
