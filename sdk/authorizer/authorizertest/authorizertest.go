// Package authorizertest is the conformance kit of the authorizer contract, version 1: what the core relies on, as
// cases with names.
//
//	func TestConformance(t *testing.T) {
//		authorizertest.Run(t, kit.InProcess(acl.New))
//	}
//
// `mosaic module test` runs the same cases against any binary. The kit does not know what a policy shall say, so it
// asks whether the module agrees with itself.
package authorizertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/authorizer"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	authorizerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authorizer/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// Contract is what the cases hold a module to.
const Contract = "mosaic.authorizer.v1.Authorizer"

type options struct {
	level    kit.Level
	config   string
	subjects []*authorizerv1.Subject
	values   []string
}

// Option changes a run.
type Option func(*options)

// Level runs the cases up to this level; the default is kit.Full.
func Level(l kit.Level) Option { return func(o *options) { o.level = l } }

// Config is the configuration document for the module, as JSON; the default is made from its schema.
func Config(document string) Option { return func(o *options) { o.config = document } }

// Subjects adds principals and values of objects that the configuration names.
func Subjects(principals, values []string) Option {
	return func(o *options) {
		for _, p := range principals {
			o.subjects = append(o.subjects, &authorizerv1.Subject{Value: &p})
		}
		o.values = append(o.values, values...)
	}
}

// Run runs the kit as subtests of a *testing.T.
func Run[X kit.Testing[X]](t X, dial kit.Dial, opts ...Option) {
	t.Helper()
	o := options{level: kit.Full}
	for _, opt := range opts {
		opt(&o)
	}
	kit.Run(kit.InTest(t), o.level, Cases(dial, opts...))
}

// Cases are all cases against a module, those of every kind first.
func Cases(dial kit.Dial, opts ...Option) []kit.Case {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	s := &suite{Subject: kit.Subject{Dial: dial, Config: o.config}, options: o}
	return append(s.Subject.Cases(), []kit.Case{
		{Level: kit.Core, Name: "EveryActionGetsADecision", Why: "an approver without a decision denies, and a request fails for no reason that anybody sees", Do: s.decides},
		{Level: kit.Core, Name: "RulesAreWellFormed", Why: "the core refuses answers that it cannot apply, and denies", Do: s.wellFormed},
		{Level: kit.Core, Name: "SameQuestionTwiceGivesTheSame", Why: "the core keeps approvers; who may do what must not depend on who asked first", Do: s.deterministic},
		{Level: kit.Core, Name: "AuthorizeAgreesWithTheApprover", Why: "the core decides by either, as it suits", Do: s.agrees},
		{Level: kit.Core, Name: "AuthorizeAnswersForEachObjectInOrder", Why: "an answer that is short by one gives everybody the neighbour's rights", Do: s.each},
		{Level: kit.Core, Name: "NobodyIsAPrincipalToo", Why: "without authentication requests come from nobody, and must get an answer", Do: s.anonymous},
		{Level: kit.Core, Name: "UnknownActionIsNoCrash", Why: "newer cores ask about newer actions", Do: s.unknownAction},
		{Level: kit.Core, Name: "EmptyRequestsAreNoCrash", Why: "a field that a host leaves out must not take the module down", Do: s.empty},
		{Level: kit.Full, Name: "TooManyObjectsAreRefusedOrAnswered", Why: "the contract allows 10,000 in one call", Do: s.tooMany},
		{Level: kit.Full, Name: "HostileSubjectsAreNoCrash", Why: "principals come from outside, before anybody has vouched for them", Do: s.hostile},
		{Level: kit.Full, Name: "HostileSubjectsGetNoMoreThanOthers", Why: "a strange name must not be a way around a rule", Do: s.hostileRights},
		{Level: kit.Full, Name: "RevisionNeverFalls", Why: "the core drops approvers by comparing revisions", Do: s.revision},
		{Level: kit.Full, Name: "ANewInstanceDecidesTheSame", Why: "a restarted module must not change who may do what", Do: s.restart},
		{Level: kit.Full, Name: "ManyAtOnce", Why: "every request to a master may ask", Do: s.concurrent},
		{Level: kit.Full, Name: "AThousandQuestionsLeaveNothingBehind", Why: "whatever is lost with each question ends the machine", Do: s.leaks},
		{Level: kit.Stress, Name: "FiguresOfManyQuestions", Why: "figures of a long run show what a short one hides", Do: s.stress},
	}...)
}

// suite is one module under test.
type suite struct {
	kit.Subject
	options
}

// instance is one running, configured instance.
type instance struct {
	*kit.Module
	client  authorizerv1.AuthorizerClient
	machine *kit.Machine
}

func (s *suite) start(t kit.T) *instance {
	t.Helper()
	machine := kit.NewMachine(t)
	m := s.Start(t, machine)
	return &instance{Module: m, client: authorizerv1.NewAuthorizerClient(m.Conn), machine: machine}
}

func subject(name string) *authorizerv1.Subject { return &authorizerv1.Subject{Value: &name} }

// people are the principals that the cases ask about.
func (s *suite) people() []*authorizerv1.Subject {
	list := []*authorizerv1.Subject{
		nil, {}, subject("alice"), subject("root"), subject(""), subject("ANY"),
		{Claims: map[string]string{"fid": "framework-1", "eid": "executor-1", "cid": "container-1"}},
	}
	return append(list, s.subjects...)
}

// things are the objects that the cases ask about: some that anybody has, and those that the rules name.
func (s *suite) things(r *authorizerv1.ApproverResponse) []*authorizerv1.Object {
	values := append([]string{"", "root", "www", "eng", "eng/web", "eng/", "*", "ANY", "%", "/state"}, s.values...)
	for _, rule := range r.GetRules().GetRules() {
		for _, v := range rule.GetValues() {
			parent, _ := strings.CutSuffix(v, "/%")
			values = append(values, v, parent, parent+"/below", parent+"x")
		}
	}
	list := []*authorizerv1.Object{{}}
	for _, v := range values {
		list = append(list, &authorizerv1.Object{Value: &v})
	}
	user := "root"
	return append(list, &authorizerv1.Object{Value: &user, ParentValue: &user, FrameworkId: "framework-1", TaskId: "task-1", ContainerId: "container-1"})
}

func (i *instance) approver(t kit.T, who *authorizerv1.Subject, action string) *authorizerv1.ApproverResponse {
	t.Helper()
	ctx, cancel := kit.Timeout(t)
	defer cancel()
	r, err := i.client.Approver(ctx, &authorizerv1.ApproverRequest{Subject: who, Action: action})
	if err != nil {
		t.Fatalf("Approver(%v, %s): %v%s", who, action, err, i.Words())
	}
	return r
}

func (i *instance) authorize(t kit.T, who *authorizerv1.Subject, action string, objects []*authorizerv1.Object) []bool {
	t.Helper()
	ctx, cancel := kit.Timeout(t)
	defer cancel()
	r, err := i.client.Authorize(ctx, &authorizerv1.AuthorizeRequest{Subject: who, Action: action, Objects: objects})
	if err != nil {
		t.Fatalf("Authorize(%v, %s, %d objects): %v%s", who, action, len(objects), err, i.Words())
	}
	if len(r.GetAllowed()) != len(objects) {
		t.Fatalf("Authorize(%v, %s) gave %d answers for %d objects", who, action, len(r.GetAllowed()), len(objects))
	}
	return r.GetAllowed()
}

// all asks about every principal and action.
func (s *suite) all(t kit.T, i *instance, f func(who *authorizerv1.Subject, action string, r *authorizerv1.ApproverResponse)) {
	t.Helper()
	for _, action := range authorizer.Actions() {
		for _, who := range s.people() {
			f(who, action, i.approver(t, who, action))
		}
	}
}

func (s *suite) decides(t kit.T) {
	i := s.start(t)
	s.all(t, i, func(who *authorizerv1.Subject, action string, r *authorizerv1.ApproverResponse) {
		if r.GetDecision() == nil {
			t.Errorf("Approver(%v, %s) = %v, want a decision", who, action, r)
		}
	})
	i.PrintedNothing(t)
}

func (s *suite) wellFormed(t kit.T) {
	s.all(t, s.start(t), func(who *authorizerv1.Subject, action string, r *authorizerv1.ApproverResponse) {
		for _, wrong := range authorizer.CheckApprover(r) {
			t.Errorf("Approver(%v, %s): %s", who, action, wrong)
		}
	})
}

func (s *suite) deterministic(t kit.T) {
	i := s.start(t)
	first := map[string]*authorizerv1.ApproverResponse{}
	for range 2 {
		s.all(t, i, func(who *authorizerv1.Subject, action string, r *authorizerv1.ApproverResponse) {
			key := fmt.Sprint(who, action)
			if was, ok := first[key]; ok && !proto.Equal(was, r) {
				t.Errorf("Approver(%v, %s) = %v, the first time it was %v", who, action, r, was)
			}
			first[key] = r
		})
	}
}

func (s *suite) agrees(t kit.T) {
	i := s.start(t)
	s.all(t, i, func(who *authorizerv1.Subject, action string, r *authorizerv1.ApproverResponse) {
		objects := s.things(r)
		answers := i.authorize(t, who, action, objects)
		for n, o := range objects {
			if allowed, asks := authorizer.Decide(r, o); !asks && allowed != answers[n] {
				t.Errorf("%v, %s, %v: the approver %v says %v, Authorize says %v", who, action, o, r, allowed, answers[n])
			}
		}
	})
}

func (s *suite) each(t kit.T) {
	i := s.start(t)
	for _, who := range append([]*authorizerv1.Subject{subject("alice"), subject("somebody")}, s.subjects...) {
		const action = "RUN_TASK"
		objects := s.things(i.approver(t, who, action))
		for len(objects) < 1000 {
			objects = append(objects, objects...)
		}
		answers := i.authorize(t, who, action, objects)
		for n, o := range objects[:min(len(objects), 50)] {
			if alone := i.authorize(t, who, action, []*authorizerv1.Object{o}); alone[0] != answers[n] {
				t.Errorf("Authorize(%v, %s, %v) = %v alone, %v among others", who, action, o, alone[0], answers[n])
			}
		}
		i.authorize(t, who, action, nil)
		i.authorize(t, who, action, slices.Repeat(objects[:1], authorizer.MaxObjects))
	}
}

func (s *suite) anonymous(t kit.T) {
	i := s.start(t)
	for _, action := range authorizer.Actions() {
		absent, empty := i.approver(t, nil, action), i.approver(t, &authorizerv1.Subject{}, action)
		if !proto.Equal(absent, empty) {
			t.Errorf("Approver(nobody, %s) = %v without a subject and %v with an empty one; want the same", action, absent, empty)
		}
	}
}

// tolerate makes a call that may be refused but must not break anything.
func (i *instance) tolerate(t kit.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := kit.Timeout(t)
	defer cancel()
	switch err := f(ctx); status.Code(err) {
	case codes.OK, codes.InvalidArgument, codes.FailedPrecondition, codes.ResourceExhausted, codes.NotFound, codes.PermissionDenied:
	default:
		t.Errorf("%s: %v, want an answer or a refusal%s", what, err, i.Words())
	}
}

func (s *suite) unknownAction(t kit.T) {
	i := s.start(t)
	for _, action := range []string{"NO_SUCH_ACTION", "run_task", "RUN_TASK ", strings.Repeat("A", 1<<20)} {
		i.tolerate(t, fmt.Sprintf("Approver for the action %.20q", action), func(ctx context.Context) error {
			_, err := i.client.Approver(ctx, &authorizerv1.ApproverRequest{Subject: subject("alice"), Action: action})
			return err
		})
		i.tolerate(t, fmt.Sprintf("Authorize for the action %.20q", action), func(ctx context.Context) error {
			_, err := i.client.Authorize(ctx, &authorizerv1.AuthorizeRequest{Subject: subject("alice"), Action: action, Objects: s.things(nil)})
			return err
		})
	}
	i.Alive(t, "unknown actions")
}

func (s *suite) empty(t kit.T) {
	i := s.start(t)
	i.tolerate(t, "Approver of nothing", func(ctx context.Context) error {
		_, err := i.client.Approver(ctx, &authorizerv1.ApproverRequest{})
		return err
	})
	i.tolerate(t, "Authorize of nothing", func(ctx context.Context) error {
		_, err := i.client.Authorize(ctx, &authorizerv1.AuthorizeRequest{Objects: []*authorizerv1.Object{{}}})
		return err
	})
	i.Alive(t, "empty requests")
}

func (s *suite) tooMany(t kit.T) {
	i := s.start(t)
	objects := slices.Repeat(s.things(nil)[:1], authorizer.MaxObjects+1)
	i.tolerate(t, "Authorize of 10,001 objects", func(ctx context.Context) error {
		r, err := i.client.Authorize(ctx, &authorizerv1.AuthorizeRequest{Subject: subject("alice"), Action: "RUN_TASK", Objects: objects})
		if err == nil && len(r.GetAllowed()) != len(objects) {
			t.Errorf("Authorize of %d objects gave %d answers", len(objects), len(r.GetAllowed()))
		}
		return err
	})
	i.Alive(t, "too many objects")
}

// strangers are principals that nobody has in a policy.
func strangers() map[string]*authorizerv1.Subject {
	long := strings.Repeat("x", 1<<20)
	claims := map[string]string{}
	for n := range 10_000 {
		claims[fmt.Sprint("claim-", n)] = "v"
	}
	return map[string]*authorizerv1.Subject{
		"a long name": subject(long), "NUL": subject("ali\x00ce"), "line ends": subject("alice\r\nroot"), "a path": subject("../../root"),
		"a pattern": subject("%"), "another case": subject("ALICE"), "spaces": subject(" alice "), "10,000 claims": {Claims: claims},
		"long claims": {Claims: map[string]string{long: long, "": ""}},
	}
}

func (s *suite) hostile(t kit.T) {
	i := s.start(t)
	for name, who := range strangers() {
		i.tolerate(t, "Approver for a principal with "+name, func(ctx context.Context) error {
			_, err := i.client.Approver(ctx, &authorizerv1.ApproverRequest{Subject: who, Action: "RUN_TASK"})
			return err
		})
		value := strings.Repeat("y", 1<<20)
		i.tolerate(t, "Authorize for a principal with "+name, func(ctx context.Context) error {
			_, err := i.client.Authorize(ctx, &authorizerv1.AuthorizeRequest{Subject: who, Action: "RUN_TASK", Objects: []*authorizerv1.Object{
				{Value: &value, ParentValue: &value, FrameworkId: value}, {},
			}})
			return err
		})
		i.Alive(t, "a principal with "+name)
	}
}

func (s *suite) hostileRights(t kit.T) {
	i := s.start(t)
	for _, action := range []string{"RUN_TASK", "TEARDOWN_FRAMEWORK", "VIEW_TASK", "MARK_AGENT_GONE"} {
		plain := subject("a-name-that-nobody-has")
		want := i.approver(t, plain, action)
		objects := s.things(want)
		normal := i.authorize(t, plain, action, objects)
		for name, who := range strangers() {
			if who.Value == nil {
				continue // claims without a name are another kind of principal
			}
			ctx, cancel := kit.Timeout(t)
			r, err := i.client.Authorize(ctx, &authorizerv1.AuthorizeRequest{Subject: who, Action: action, Objects: objects})
			cancel()
			if err != nil {
				continue // refused
			}
			for n := range objects {
				if r.GetAllowed()[n] && !normal[n] {
					t.Errorf("%s of %v: a principal with %s may, a plain stranger may not", action, objects[n], name)
				}
			}
		}
	}
}

func (s *suite) revision(t kit.T) {
	i := s.start(t)
	before := i.approver(t, subject("alice"), "RUN_TASK").GetRevision()
	ctx, cancel := kit.Timeout(t)
	defer cancel()
	if r, err := i.Control.Configure(ctx, &modulev1.ConfigureRequest{ConfigJson: s.Document(i.Desc), Node: i.machine.Node}); err != nil || len(r.GetErrors()) > 0 {
		t.Fatalf("Configure again: %v, %v", r.GetErrors(), err)
	}
	after := i.approver(t, subject("alice"), "RUN_TASK").GetRevision()
	if after < before {
		t.Fatalf("the revision fell from %d to %d with a reload", before, after)
	}
	watch, err := i.Control.Watch(ctx, &modulev1.WatchRequest{})
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	if after == before {
		return // nothing was revised, so nothing need be told
	}
	for {
		e, err := watch.Recv()
		if err != nil {
			t.Fatalf("Watch did not tell revision %d: %v", after, err)
		}
		if e.GetRevision().GetRevision() >= after {
			return
		}
	}
}

func (s *suite) restart(t kit.T) {
	i := s.start(t)
	before := map[string]*authorizerv1.ApproverResponse{}
	s.all(t, i, func(who *authorizerv1.Subject, action string, r *authorizerv1.ApproverResponse) {
		r.Revision = 0 // counted anew by each life
		before[fmt.Sprint(who, action)] = r
	})
	i.Kill()
	s.all(t, s.start(t), func(who *authorizerv1.Subject, action string, r *authorizerv1.ApproverResponse) {
		r.Revision = 0
		if was := before[fmt.Sprint(who, action)]; !proto.Equal(was, r) {
			t.Errorf("Approver(%v, %s) of a new instance = %v, of the one before %v", who, action, r, was)
		}
	})
}

func (s *suite) concurrent(t kit.T) {
	i := s.start(t)
	want := i.approver(t, subject("alice"), "RUN_TASK")
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 20 {
				ctx, cancel := kit.Timeout(t)
				r, err := i.client.Approver(ctx, &authorizerv1.ApproverRequest{Subject: subject("alice"), Action: "RUN_TASK"})
				cancel()
				if err != nil || !proto.Equal(r, want) {
					t.Errorf("Approver beside others = %v, %v; alone it was %v", r, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

func (s *suite) leaks(t kit.T) {
	i := s.start(t)
	ask := func(from, n int) {
		for k := from; k < from+n; k++ {
			who := subject(fmt.Sprintf("somebody-%d", k))
			i.approver(t, who, "RUN_TASK")
			i.authorize(t, who, "RUN_TASK", s.things(nil))
		}
	}
	ask(0, 20)
	check := kit.Traces(t, i.Module, i.machine)
	ask(20, 1000)
	check("after 1,000 questions")
}

func (s *suite) stress(t kit.T) {
	i := s.start(t)
	const total = 20_000
	var list []time.Duration
	for n := range total {
		begin := time.Now()
		i.approver(t, subject(fmt.Sprintf("somebody-%d", n%1000)), "RUN_TASK")
		list = append(list, time.Since(begin))
	}
	slices.Sort(list)
	kit.Measure(t, "Approver p50", list[total/2].Seconds()*1000, "ms")
	kit.Measure(t, "Approver p99", list[total*99/100].Seconds()*1000, "ms")
	objects := slices.Repeat(s.things(nil)[:1], authorizer.MaxObjects)
	begin := time.Now()
	i.authorize(t, subject("alice"), "RUN_TASK", objects)
	kit.Measure(t, "Authorize of 10,000 objects", time.Since(begin).Seconds()*1000, "ms")
}
