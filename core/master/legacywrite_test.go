package master

import (
	"context"
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/allocator"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
)

// write asks an older endpoint to change something and returns the status of its refusal, 0 for none, and the text.
func (c *cluster) write(method, endpoint, form, body string) (int, string) {
	c.Helper()
	values, err := url.ParseQuery(form)
	if err != nil {
		c.Fatal(err)
	}
	answer, err := c.m.LegacyWrite(context.Background(), "", endpoint, method, nil, values, []byte(body))
	c.settle()
	if answer != nil {
		c.Errorf("%s %s = %s, want no body", method, endpoint, answer)
	}
	if err != nil {
		return statusOf(err), err.Error()
	}
	return 0, ""
}

// raw is the body of an older endpoint.
func (c *cluster) raw(endpoint, query string) string {
	c.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		c.Fatal(err)
	}
	body, err := c.m.Legacy(context.Background(), "", endpoint, q)
	if err != nil {
		c.Fatalf("Legacy %s: %v", endpoint, err)
	}
	return string(body)
}

func TestOlderEndpointsChangeWhatTheNewerOnesDo(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024;disk:1000")
		reserved := `[{"name":"disk","type":"SCALAR","scalar":{"value":100},"role":"eng","reservation":{"principal":"p"}}]`
		volume := `[{"name":"disk","type":"SCALAR","scalar":{"value":50},"role":"eng","reservation":{"principal":"p"},` +
			`"disk":{"persistence":{"id":"v1","principal":"p"},"volume":{"container_path":"data","mode":"RW"}}}]`
		id := url.QueryEscape(a.id())
		for _, x := range []struct{ endpoint, form, body, read, want string }{
			{"/weights", "", `[{"role":"eng","weight":2.5}]`, "/weights", `[{"weight":2.5,"role":"eng"}]`},
			{"/quota", "", `{"role":"eng","guarantee":[{"name":"cpus","type":"SCALAR","scalar":{"value":2}}]}`, "/quota",
				`{"infos":[{"role":"eng","guarantee":[{"name":"cpus","type":"SCALAR","scalar":{"value":2.0}}]}],` +
					`"configs":[{"role":"eng","guarantees":{"cpus":{"value":2.0}},"limits":{"cpus":{"value":2.0}}}]}`},
			{"/maintenance/schedule", "", `{"windows":[{"machine_ids":[{"hostname":"x"}],"unavailability":{"start":{"nanoseconds":5}}}]}`, "/maintenance/schedule",
				`{"windows":[{"machine_ids":[{"hostname":"x"}],"unavailability":{"start":{"nanoseconds":5}}}]}`},
			{"/machine/down", "", `[{"hostname":"x"}]`, "/maintenance/status", `{"down_machines":[{"hostname":"x"}]}`},
			{"/machine/up", "", ` [{"hostname":"x"}] `, "/maintenance/status", `{}`},
			{"/reserve", "slaveId=" + id + "&resources=" + url.QueryEscape(reserved), "", "/slaves", `"reserved_resources":{"eng":{"cpus":0.0,"disk":100.0,`},
			{"/create-volumes", "slaveId=" + id + "&volumes=" + url.QueryEscape(volume), "", "/slaves", `"id":"v1"`},
			{"/destroy-volumes", "slaveId=" + id + "&volumes=" + url.QueryEscape(volume), "", "/slaves", `"disk":100.0`},
			{"/unreserve", "slaveId=" + id + "&resources=" + url.QueryEscape(reserved), "", "/slaves", `"reserved_resources":{}`},
		} {
			method := "POST"
			if x.endpoint == "/weights" {
				method = "PUT"
			}
			if code, text := c.write(method, x.endpoint, x.form, x.body); code != 0 {
				t.Errorf("%s = %d %s, want success", x.endpoint, code, text)
			}
			if got := c.raw(x.read, ""); !strings.Contains(got, x.want) {
				t.Errorf("after %s %s is %s, want %s", x.endpoint, x.read, got, x.want)
			}
		}
		if code, _ := c.write("DELETE", "/quota/eng", "", ""); code != 0 {
			t.Errorf("DELETE /quota/eng = %d, want success", code)
		}
		if got := c.raw("/quota", ""); got != "{}" {
			t.Errorf("/quota = %s, want none", got)
		}
		s, _ := c.framework(frameworkInfo("a"))
		if code, text := c.write("POST", "/teardown", "frameworkId="+url.QueryEscape(s.id), ""); code != 0 {
			t.Errorf("/teardown = %d %s, want success", code, text)
		}
		if !s.stream.closed() {
			t.Error("the framework is still connected after /teardown")
		}
	})
}

func TestOlderEndpointsSayWhatIsWrong(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		a := c.agent("cpus:4;mem:1024")
		c.must(quotaCall(false, quotaOf("ops", "cpus:1", "")))
		id := "slaveId=" + url.QueryEscape(a.id())
		guarantee := func(r string) string { return `{"role":"eng","guarantee":[` + r + `]}` }
		for _, x := range []struct {
			method, endpoint, form, body string
			code                         int
			text                         string
		}{
			{"POST", "/reserve", "", "", 400, "Missing 'slaveId'"},
			{"POST", "/reserve", id, "", 400, "Missing 'resources'"},
			{"POST", "/reserve", id + "&resources=1", "", 400, "Error in parsing 'resources'"},
			{"POST", "/reserve", id + "&resources=" + url.QueryEscape(`[],"x":[]`), "", 400, "Error in parsing 'resources'"},
			{"POST", "/reserve", "slaveId=x&resources=[]", "", 400, "No agent found with specified ID"},
			{"POST", "/create-volumes", id, "", 400, "Missing 'volumes'"},
			{"POST", "/unreserve", id + "&resources=" + url.QueryEscape(`[{"name":"cpus","type":"SCALAR","scalar":{"value":1},"role":"eng","reservation":{}}]`), "", 409, ""},
			{"POST", "/teardown", "", "", 400, "Missing 'frameworkId'"},
			{"POST", "/teardown", "frameworkId=x", "", 400, "No framework found"},
			{"PUT", "/weights", "", "{}", 400, "Failed to parse update weights request JSON"},
			{"PUT", "/weights", "", `[{"role":"a","weight":0}]`, 400, "Weights must be positive"},
			{"POST", "/quota", "", "[", 400, "Failed to parse set quota request JSON"},
			{"POST", "/quota", "", `{"guarantee":[]}`, 400, "must specify a role"},
			{"POST", "/quota", "", `{"role":"eng"}`, 400, "empty 'guarantee'"},
			{"POST", "/quota", "", guarantee(`{"name":"ports","type":"RANGES","ranges":{}}`), 400, "non-scalar"},
			{"POST", "/quota", "", guarantee(`{"name":"cpus","type":"SCALAR","scalar":{"value":1},"revocable":{}}`), 400, "RevocableInfo"},
			{"POST", "/quota", "", guarantee(`{"name":"cpus","type":"SCALAR","scalar":{"value":1},"role":"x"}`), 400, "ReservationInfo"},
			{"POST", "/quota", "", guarantee(`{"name":"cpus","type":"SCALAR","scalar":{"value":1}},{"name":"cpus","type":"SCALAR","scalar":{"value":1}}`), 400, "duplicate resource name"},
			{"POST", "/quota", "", `{"role":"eng/dev","guarantee":[{"name":"cpus","type":"SCALAR","scalar":{"value":1}}]}`, 400, "nested role"},
			{"POST", "/quota", "", `{"role":"ops","guarantee":[{"name":"cpus","type":"SCALAR","scalar":{"value":1}}]}`, 400, "already has quota"},
			{"POST", "/quota", "", guarantee(`{"name":"cpus","type":"SCALAR","scalar":{"value":4}}`), 409, "Heuristic capacity check"},
			{"DELETE", "/quota/eng", "", "", 400, "has no quota set"},
			{"DELETE", "/quota", "", "", 400, ""},
			{"POST", "/machine/down", "", `[]`, 400, "List of machines is empty"},
			{"POST", "/machine/down", "", `[{"hostname":"x"}]`, 400, "not part of a maintenance schedule"},
			{"POST", "/machine/up", "", `{}`, 400, "Failed to parse machines"},
			{"POST", "/maintenance/schedule", "", `{"windows":[{}]}`, 400, ""},
			{"POST", "/nothing", "", "", 404, ""},
		} {
			code, text := c.write(x.method, x.endpoint, x.form, x.body)
			if code != x.code || !strings.Contains(text, x.text) {
				t.Errorf("%s %s %s %s = %d %s, want %d with %q", x.method, x.endpoint, x.form, x.body, code, text, x.code, x.text)
			}
		}
		// Force goes beyond what there is.
		force := `{"role":"eng","force":true,"guarantee":[{"name":"cpus","type":"SCALAR","scalar":{"value":400}}]}`
		if code, text := c.write("POST", "/quota", "", force); code != 0 {
			t.Errorf("/quota by force = %d %s, want success", code, text)
		}
	})
}

func TestTheOlderQuotaCallsNeedPermissionAndShowInBothForms(t *testing.T) {
	inBubble(t, Config{}, Deps{Approvers: denials{"UPDATE_QUOTA ops": true, "GET_QUOTA hidden": true}}, func(t *testing.T, c *cluster) {
		c.agent("cpus:4;mem:1024")
		set := func(role string) *masterv1.Call {
			return &masterv1.Call{Type: masterv1.Call_SET_QUOTA.Enum(), SetQuota: &masterv1.Call_SetQuota{QuotaRequest: &quotav1.QuotaRequest{
				Role: &role, Guarantee: []*mesosv1.Resource{{Name: ptr("cpus"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: ptr(1.0)}}}}}}
		}
		if code, _ := c.operate(set("ops")); code != 403 {
			t.Errorf("SET_QUOTA = %d, want 403", code)
		}
		c.must(set("eng"))
		c.must(set("hidden"))
		status := c.get(masterv1.Call_GET_QUOTA).GetGetQuota().GetStatus()
		q := one(t, "configs", status.GetConfigs())
		if q.GetGuarantees()["cpus"].GetValue() != 1 || q.GetLimits()["cpus"].GetValue() != 1 {
			t.Errorf("config = %v, want guarantee and limit of one cpu", q)
		}
		if i := one(t, "infos", status.GetInfos()); i.GetRole() != "eng" {
			t.Errorf("info = %v", i)
		}
		if code, _ := c.operate(&masterv1.Call{Type: masterv1.Call_REMOVE_QUOTA.Enum(), RemoveQuota: &masterv1.Call_RemoveQuota{Role: ptr("ops")}}); code != 403 {
			t.Errorf("REMOVE_QUOTA = %d, want 403", code)
		}
	})
}

func TestRolesSumUpWhatIsBelowThem(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:8;mem:4096;cpus(eng/dev):2")
		c.must(quotaCall(false, quotaOf("eng", "cpus:3", "cpus:6;mem:2048")))
		s, events := c.framework(frameworkInfo("eng/dev"))
		o := one(t, "offers", offers(events))
		s.accept([]*mesosv1.Offer{o}, &mesosv1.Filters{RefuseSeconds: ptr(1e6)}, launch(commandTask("t", o, "cpus:1;mem:128")))
		roles := at(t, c.legacy("/roles", ""), "roles").([]any)
		byName := make(map[string]any)
		for _, r := range roles {
			byName[at(t, r, "name").(string)] = r
		}
		eng, dev := byName["eng"], byName["eng/dev"]
		for what, x := range map[string]struct{ got, want any }{
			"guarantee":         {at(t, eng, "quota", "guarantee", "cpus"), 3.0},
			"limit":             {at(t, eng, "quota", "limit", "mem"), 2048.0},
			"consumed":          {at(t, eng, "quota", "consumed", "cpus"), 3.0}, // two reserved, one used
			"allocated above":   {at(t, eng, "allocated", "cpus"), 1.0},
			"reserved above":    {at(t, eng, "reserved", "cpus"), 2.0},
			"allocated":         {at(t, dev, "allocated", "cpus"), 1.0},
			"reserved":          {at(t, dev, "reserved", "cpus"), 2.0},
			"resources":         {at(t, dev, "resources", "mem"), 128.0},
			"frameworks":        {len(at(t, dev, "frameworks").([]any)), 1},
			"frameworks, above": {len(at(t, eng, "frameworks").([]any)), 0},
		} {
			if x.got != x.want {
				t.Errorf("%s = %v, want %v in %v", what, x.got, x.want, roles)
			}
		}
	})
}

func TestExplainSaysWhyAndBadQuestionsAreRefused(t *testing.T) {
	inBubble(t, Config{}, Deps{}, func(t *testing.T, c *cluster) {
		c.agent("cpus:2;mem:1024;ports:[31000-31001]")
		s, events := c.framework(frameworkInfo("eng"))
		s.decline(3600, offers(events)...)
		ask := func(query string) allocator.Explanation {
			t.Helper()
			var x allocator.Explanation
			if err := json.Unmarshal([]byte(c.raw("/mosaic/v1/explain", query)), &x); err != nil {
				t.Fatal(err)
			}
			return x
		}
		x := ask("framework=" + s.id + "&need=" + url.QueryEscape("cpus:1;mem:64;ports:[1-2]"))
		subject := one(t, "subjects", x.Asked)
		if subject.FrameworkID != s.id || subject.Role != "eng" || x.Agents != 1 {
			t.Errorf("explanation = %+v", x)
		}
		if r := one(t, "reasons", subject.Reasons); r.Code != allocator.Filtered || r.Agents != 1 || r.Until.Before(time.Now().Add(50*time.Minute)) {
			t.Errorf("reason = %+v, want the filter of an hour", r)
		}
		if x.Fits != 0 || len(x.Closest) == 0 {
			t.Errorf("fits on %d agents, closest %v, want none and what would help", x.Fits, x.Closest)
		}
		if x := ask("role=eng&need=cpus:64"); x.Fits != 0 || x.Need["cpus"] != 64 {
			t.Errorf("explanation = %+v, want that 64 cpus fit nowhere", x)
		}
		for _, bad := range []string{"need=cpus", "need=cpus:-1", "role=a%20b", "ports=x", "ports=-1", "examples=1000", "need=cpus(eng):1", "framework=" + strings.Repeat("x", 5000)} {
			q, err := url.ParseQuery(bad)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.m.Legacy(context.Background(), "", "/mosaic/v1/explain", q); statusOf(err) != 400 {
				t.Errorf("explain?%.40s = %v, want a 400", bad, err)
			}
		}
	})
}

func FuzzRequestsToOlderEndpointsAreReadOrRefused(f *testing.F) {
	f.Add("/quota", "POST", "", `{"role":"a","guarantee":[{"name":"cpus","type":"SCALAR","scalar":{"value":1}}]}`)
	f.Add("/quota/a/b", "DELETE", "", "")
	f.Add("/weights", "PUT", "", `[{"role":"a","weight":1}]`)
	f.Add("/machine/down", "POST", "", `[{"hostname":"x"}]`)
	f.Add("/machine/up", "POST", "", `[{"ip":"1.2.3.4"},{}]`)
	f.Add("/maintenance/schedule", "POST", "", `{"windows":[{"machine_ids":[{}],"unavailability":{"start":{"nanoseconds":1}}}]}`)
	f.Add("/reserve", "POST", "slaveId=x&resources=[{}]", "")
	f.Add("/destroy-volumes", "POST", "slaveId=x&volumes=[]", "")
	f.Fuzz(func(t *testing.T, endpoint, method, form, body string) {
		values, err := url.ParseQuery(form)
		if err != nil {
			return
		}
		call, err := legacyCall(endpoint, method, nil, values, []byte(body))
		if (call == nil) == (err == nil) {
			t.Fatalf("call %v, error %v, want one of them", call, err)
		}
		if err != nil {
			if code := statusOf(err); code != 400 && code != 404 {
				t.Fatalf("refused with %d: %v", code, err)
			}
			return
		}
		if s := call.GetUpdateMaintenanceSchedule().GetSchedule(); s != nil {
			_ = checkSchedule(s)
		}
		if q := call.GetSetQuota().GetQuotaRequest(); q != nil {
			_, _ = configOf(q)
		}
	})
}
