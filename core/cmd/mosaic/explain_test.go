package main

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

const explainPage = `{"agents":3,"more":1,"asked":[
 {"framework_id":"f-1","role":"web","share":0.25,"turn":2,"offerable":0,"examined":true,"reasons":[
  {"code":"suppressed","text":"the framework suppressed offers in role \"web\"","agents":3,"only":0},
  {"code":"nothing_free","text":"nothing is free","agents":2,"only":1,"examples":["alpha (agent-a)"],
   "holders":[{"framework_id":"f-9","role":"batch","agents":2,"resources":{"cpus":8,"mem":1024}}]},
  {"code":"news","text":"a reason that came later","agents":1,"only":0,"examples":["beta (agent-b)"]}]},
 {"framework_id":"","role":"web","share":0,"offerable":3,"examined":true,"reasons":[]}],
 "quotas":[{"role":"web","limits":{"cpus":4},"consumed":{"cpus":3.5}}],
 "fits":0}`

const needPage = `{"agents":3,"asked":[],"need":{"cpus":9,"ports":2},"fits":0,"closest":[
 {"cost":21,"text":"free 1 of cpus on the agent; and wait until the framework's refusal ends","role":"web","agent_id":"agent-a","hostname":"alpha","agents":3,
  "steps":[{"code":"free","text":"free 1 of cpus on the agent"},{"code":"filter","text":"wait until the framework's refusal ends"}]},
 {"cost":40,"text":"raise the limit","role":"web","agent_id":"agent-b","hostname":"beta","agents":1,"steps":[]}]}`

func TestExplanationsAreReadable(t *testing.T) {
	m := administer(t)
	m.pages["/mosaic/v1/explain"] = explainPage
	out, _, err := m.mosaic(t, "explain", "framework", "marathon", "--role", "web", "--examples", "1")
	const want = `
framework marathon (f-1) in role web: has 25 % of the cluster, is number 2 in line, can be offered 0 of 3 agents
AGENTS   UNTIL   REASON                                        FOR EXAMPLE
3        -       the framework suppressed offers in role "web"   -
2        -       nothing is free                               alpha (agent-a), ...
1        -       a reason that came later                      beta (agent-b)
  cpus:8;mem:1024 are held by f-9 in role batch, on 2 agents

any framework in role web: has 0 % of the cluster, can be offered 3 of 3 agents

1 framework more in this question: ask about one

quota of role web: guarantee none, limit cpus:4, consumed cpus:3.5
`
	if err != nil || strings.Join(strings.Fields(out), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("explain framework = %v\n%s\nwant\n%s", err, out, want)
	}
	q := m.question(t)
	if q.Get("framework") != "f-1" || q.Get("role") != "web" || q.Get("examples") != "1" {
		t.Errorf("the master was asked %v", q)
	}
	if out, _, err = m.mosaic(t, "explain", "role", "web", "-o", "wide"); err != nil || !strings.Contains(out, "nothing_free") || m.question(t).Get("role") != "web" {
		t.Errorf("explain role -o wide = %v\n%s\nwant codes", err, out)
	}
	// What a newer master says is not lost.
	m.pages["/mosaic/v1/explain"] = `{"agents":3,"later":[1]}`
	for format, want := range map[string]string{"json": "{\n  \"agents\": 3,\n  \"later\": [\n    1\n  ]\n}\n", "yaml": "agents: 3\nlater:\n  - 1\n"} {
		if out, _, err := m.mosaic(t, "explain", "role", "web", "-o", format); err != nil || out != want {
			t.Errorf("explain -o %s = %v\n%q\nwant %q", format, err, out, want)
		}
	}
}

// question is what the master was asked last.
func (m *administered) question(t *testing.T) url.Values {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.asked) == 0 {
		t.Fatal("the master was asked nothing")
	}
	u, err := url.Parse(m.asked[len(m.asked)-1])
	if err != nil {
		t.Fatal(err)
	}
	return u.Query()
}

func TestATaskThatFitsNowhereGetsTheSmallestChange(t *testing.T) {
	m := administer(t)
	m.pages["/mosaic/v1/explain"] = needPage
	out, _, err := m.mosaic(t, "explain", "task", "--cpus", "9", "--ports", "2", "--role", "web")
	const want = `
a task of cpus:9;ports:2 fits on 0 of 3 agents
the smallest change: free 1 of cpus on the agent; and wait until the framework's refusal ends (agent alpha and 2 more)
or: raise the limit (agent beta)
`
	if err != nil || out != want {
		t.Errorf("explain task = %v\n%s\nwant\n%s", err, out, want)
	}
	if q := m.question(t); q.Get("need") != "cpus:9" || q.Get("ports") != "2" || q.Get("role") != "web" || q.Get("framework") != "" {
		t.Errorf("the master was asked %v", q)
	}
	m.pages["/mosaic/v1/explain"] = `{"agents":3,"need":{"cpus":1},"fits":2,"fits_on":["alpha (agent-a)"]}`
	if out, _, err := m.mosaic(t, "explain", "task", "--cpus", "1"); err != nil || !strings.Contains(out, "fits on 2 of 3 agents: alpha (agent-a), ...") {
		t.Errorf("explain task = %v\n%s", err, out)
	}
	// One that the master knows.
	task := m.state.GetTasks.GetTasks()[0]
	task.Resources = append(task.Resources, &mesosv1.Resource{
		Name: ptr("ports"), Type: mesosv1.Value_RANGES.Enum(), AllocationInfo: &mesosv1.Resource_AllocationInfo{Role: ptr("web")},
		Ranges: &mesosv1.Value_Ranges{Range: []*mesosv1.Value_Range{{Begin: ptr(uint64(31000)), End: ptr(uint64(31002))}}},
	})
	out, _, err = m.mosaic(t, "explain", "task", "web-1", "--mem", "0")
	if q := m.question(t); err != nil || !strings.Contains(out, "task web-1 is TASK_RUNNING on alpha") || q.Get("need") != "cpus:0.5" || q.Get("ports") != "3" || q.Get("framework") != "f-1" || q.Get("role") != "web" {
		t.Errorf("explain task web-1 = %v\n%s\nasked %v", err, out, q)
	}
	if out, _, err := m.mosaic(t, "explain", "task", "web-1", "-o", "json"); err != nil || !json.Valid([]byte(out)) {
		t.Errorf("explain task -o json = %v\n%s\nwant JSON alone", err, out)
	}
	for args, code := range map[string]int{
		"explain task": exitUsage, "explain task --cpus 0": exitUsage, "explain task --cpus -1": exitUsage, "explain task --cpus NaN": exitUsage,
		"explain role web --examples -1": exitUsage, "explain task nobody": exitFailed, "explain framework nobody": exitFailed,
	} {
		if _, _, err := m.mosaic(t, strings.Fields(args)...); silently(t, err) != code {
			t.Errorf("mosaic %s = %v, want exit code %d", args, err, code)
		}
	}
}

func TestFrameworksAreFoundByNameOrPartOfTheirID(t *testing.T) {
	names := frameworkIDs{"m1-0001": "marathon", "m1-0002": "spark", "m1-0003": "spark"}
	for text, want := range map[string]string{"m1-0002": "m1-0002", "marathon": "m1-0001", "0003": "m1-0003", "spark": "", "m1": "", "nobody": ""} {
		if got, err := names.find(text); got != want || (err == nil) != (want != "") {
			t.Errorf("find(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestTimesToComeAreShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for in, want := range map[time.Duration]string{5 * time.Second: "in 5s", 90 * time.Minute: "in 1h30m0s", -time.Second: "in 0s"} {
			if got := untilText(time.Now().Add(in)); got != want {
				t.Errorf("untilText in %v = %q, want %q", in, got, want)
			}
		}
	})
}

// questionOfRun is what `mosaic run` asks.
func questionOfRun() operator.Question {
	return operator.Question{Framework: "f-1", Role: "*", Need: "cpus:1"}
}

func TestRunSaysWhyItWaits(t *testing.T) {
	m := administer(t)
	for page, want := range map[string]string{
		needPage: "it fits nowhere now; the smallest change: free 1 of cpus on the agent (agent alpha)",
		`{"fits":2,"asked":[{"role":"*","turn":3,"reasons":[]}]}`:                      "it fits on 2 agents, with 2 frameworks in line before it",
		`{"fits":1,"asked":[{"role":"*","turn":1,"reasons":[]}]}`:                      "it fits on 1 agent and is next in line",
		`{"asked":[{"role":"*","reasons":[{"code":"no_agents","text":"no agents"}]}]}`: "no agents",
		`nonsense`: "",
	} {
		m.pages["/mosaic/v1/explain"] = page
		if got := whyWaiting(t.Context(), m.addr, questionOfRun()); got != want {
			t.Errorf("why, after %s:\n%q, want %q", page, got, want)
		}
	}
	if q := m.question(t); q.Get("need") != "cpus:1" || q.Get("framework") != "f-1" {
		t.Errorf("the master was asked %v", q)
	}
	// A master of Apache Mesos cannot say.
	delete(m.pages, "/mosaic/v1/explain")
	if got := whyWaiting(t.Context(), m.addr, questionOfRun()); got != "" {
		t.Errorf("why, of a master that cannot say: %q", got)
	}
}
