package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	allocatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/allocator"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
)

// administered is a master that keeps what operators tell it.
type administered struct {
	addr string

	mu         sync.Mutex // guards what follows
	state      *masterv1.Response_GetState
	quotas     map[string]*quotav1.QuotaConfig
	weights    map[string]float64
	schedule   *maintenancev1.Schedule
	down       []*mesosv1.MachineID
	operations []*mesosv1.Operation
	drained    int // GET_AGENTS calls after which a draining agent is drained
	calls      []*masterv1.Call
	pages      map[string]string // answers to GET, by path and query
	asked      []string          // paths and queries of GETs
}

func administer(t *testing.T) *administered {
	t.Helper()
	m := &administered{state: state(), quotas: map[string]*quotav1.QuotaConfig{}, weights: map[string]float64{}, schedule: &maintenancev1.Schedule{}, pages: map[string]string{}}
	for i, a := range m.state.GetAgents.GetAgents() {
		a.Pid = ptr("slave(1)@10.0.0." + string(rune('2'-i)) + ":5051") // agent-b is .2, agent-a is .1
	}
	srv := httptest.NewServer(m)
	t.Cleanup(srv.Close)
	m.addr = srv.Listener.Addr().String()
	return m
}

func (m *administered) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Method == http.MethodGet {
		m.asked = append(m.asked, r.URL.RequestURI())
		if page, ok := m.pages[r.URL.Path]; ok {
			_, _ = io.WriteString(w, page)
			return
		}
		http.NotFound(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	call := &masterv1.Call{}
	if err == nil {
		err = call.UnmarshalVT(body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	m.calls = append(m.calls, call)
	resp, refusal := m.answer(call)
	if refusal != "" {
		http.Error(w, refusal, http.StatusBadRequest)
		return
	}
	if resp != nil {
		data, err := resp.MarshalVT()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(data)
	}
}

func (m *administered) answer(call *masterv1.Call) (*masterv1.Response, string) {
	switch call.GetType() {
	case masterv1.Call_GET_STATE:
		return &masterv1.Response{Type: masterv1.Response_GET_STATE.Enum(), GetState: m.state}, ""
	case masterv1.Call_GET_AGENTS:
		for _, a := range m.state.GetAgents.GetAgents() {
			if a.GetDrainInfo() != nil {
				if m.drained--; m.drained <= 0 {
					a.DrainInfo.State = mesosv1.DrainState_DRAINED.Enum()
				}
			}
		}
		return &masterv1.Response{Type: masterv1.Response_GET_AGENTS.Enum(), GetAgents: m.state.GetAgents}, ""
	case masterv1.Call_GET_FRAMEWORKS:
		return &masterv1.Response{Type: masterv1.Response_GET_FRAMEWORKS.Enum(), GetFrameworks: m.state.GetFrameworks}, ""
	case masterv1.Call_GET_OPERATIONS:
		return &masterv1.Response{Type: masterv1.Response_GET_OPERATIONS.Enum(), GetOperations: &masterv1.Response_GetOperations{Operations: m.operations}}, ""
	case masterv1.Call_GET_ROLES:
		return &masterv1.Response{Type: masterv1.Response_GET_ROLES.Enum(), GetRoles: &masterv1.Response_GetRoles{Roles: []*mesosv1.Role{
			{Name: ptr("batch"), Weight: ptr(1.0)}, {Name: ptr("web"), Weight: ptr(2.0)},
		}}}, ""
	case masterv1.Call_GET_QUOTA:
		status := &quotav1.QuotaStatus{}
		for _, q := range m.quotas {
			status.Configs = append(status.Configs, q)
		}
		return &masterv1.Response{Type: masterv1.Response_GET_QUOTA.Enum(), GetQuota: &masterv1.Response_GetQuota{Status: status}}, ""
	case masterv1.Call_UPDATE_QUOTA:
		for _, q := range call.GetUpdateQuota().GetQuotaConfigs() {
			if q.GetGuarantees()["cpus"].GetValue() > 8 && !call.GetUpdateQuota().GetForce() {
				return nil, "Invalid QuotaConfig: the cluster does not hold it"
			}
			m.quotas[q.GetRole()] = q
			if len(q.GetGuarantees())+len(q.GetLimits()) == 0 {
				delete(m.quotas, q.GetRole())
			}
		}
	case masterv1.Call_UPDATE_WEIGHTS:
		for _, w := range call.GetUpdateWeights().GetWeightInfos() {
			m.weights[w.GetRole()] = w.GetWeight()
		}
	case masterv1.Call_GET_MAINTENANCE_SCHEDULE:
		return &masterv1.Response{
			Type:                   masterv1.Response_GET_MAINTENANCE_SCHEDULE.Enum(),
			GetMaintenanceSchedule: &masterv1.Response_GetMaintenanceSchedule{Schedule: m.schedule},
		}, ""
	case masterv1.Call_GET_MAINTENANCE_STATUS:
		return &masterv1.Response{
			Type:                 masterv1.Response_GET_MAINTENANCE_STATUS.Enum(),
			GetMaintenanceStatus: &masterv1.Response_GetMaintenanceStatus{Status: m.status()},
		}, ""
	case masterv1.Call_UPDATE_MAINTENANCE_SCHEDULE:
		m.schedule = call.GetUpdateMaintenanceSchedule().GetSchedule()
	case masterv1.Call_START_MAINTENANCE:
		m.down = append(m.down, call.GetStartMaintenance().GetMachines()...)
	case masterv1.Call_STOP_MAINTENANCE:
		m.down = slices.DeleteFunc(m.down, func(id *mesosv1.MachineID) bool {
			return slices.ContainsFunc(call.GetStopMaintenance().GetMachines(), id.EqualVT)
		})
	case masterv1.Call_TEARDOWN:
	case masterv1.Call_DRAIN_AGENT, masterv1.Call_DEACTIVATE_AGENT, masterv1.Call_REACTIVATE_AGENT, masterv1.Call_MARK_AGENT_GONE:
		return nil, m.turn(call)
	default:
		return nil, "no such call here: " + call.GetType().String()
	}
	return nil, ""
}

// status has an answer of each kind for every machine that is not down.
func (m *administered) status() *maintenancev1.ClusterStatus {
	s := &maintenancev1.ClusterStatus{DownMachines: m.down}
	for _, w := range m.schedule.GetWindows() {
		for _, id := range w.GetMachineIds() {
			if slices.ContainsFunc(m.down, id.EqualVT) {
				continue
			}
			d := &maintenancev1.ClusterStatus_DrainingMachine{Id: id}
			for f, answer := range map[string]allocatorv1.InverseOfferStatus_Status{
				"f-1": allocatorv1.InverseOfferStatus_ACCEPT, "f-2": allocatorv1.InverseOfferStatus_DECLINE, "f-3": allocatorv1.InverseOfferStatus_UNKNOWN,
			} {
				d.Statuses = append(d.Statuses, &allocatorv1.InverseOfferStatus{
					Status: &answer, FrameworkId: &mesosv1.FrameworkID{Value: &f}, Timestamp: &mesosv1.TimeInfo{Nanoseconds: ptr(int64(1))},
				})
			}
			s.DrainingMachines = append(s.DrainingMachines, d)
		}
	}
	return s
}

// turn changes the agent that a call names.
func (m *administered) turn(call *masterv1.Call) string {
	id := call.GetDrainAgent().GetAgentId().GetValue() + call.GetDeactivateAgent().GetAgentId().GetValue() +
		call.GetReactivateAgent().GetAgentId().GetValue() + call.GetMarkAgentGone().GetAgentId().GetValue()
	agents := m.state.GetAgents.GetAgents()
	i := slices.IndexFunc(agents, func(a *masterv1.Response_GetAgents_Agent) bool { return a.GetAgentInfo().GetId().GetValue() == id })
	if i < 0 {
		return "No agent " + id
	}
	switch call.GetType() {
	case masterv1.Call_DRAIN_AGENT:
		agents[i].Active = ptr(false)
		agents[i].DrainInfo = &mesosv1.DrainInfo{State: mesosv1.DrainState_DRAINING.Enum(), Config: &mesosv1.DrainConfig{}}
	case masterv1.Call_DEACTIVATE_AGENT:
		agents[i].Active, agents[i].Deactivated = ptr(false), ptr(true)
	case masterv1.Call_REACTIVATE_AGENT:
		agents[i].Active, agents[i].Deactivated, agents[i].DrainInfo = ptr(true), ptr(false), nil
	case masterv1.Call_MARK_AGENT_GONE:
		m.state.GetAgents.Agents = slices.Delete(agents, i, i+1)
	}
	return ""
}

// last is the newest call of a type.
func (m *administered) last(t masterv1.Call_Type) *masterv1.Call {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range slices.Backward(m.calls) {
		if c.GetType() == t {
			return c
		}
	}
	return nil
}

// mosaic runs a command against this master.
func (m *administered) mosaic(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	i := slices.IndexFunc(args, func(a string) bool { return a == "--" })
	if i < 0 {
		i = len(args)
	}
	return execute(t, slices.Insert(slices.Clone(args), i, "--master", m.addr)...)
}

const rolesPage = `{"roles":[
 {"name":"*","weight":1.0,"frameworks":[],"resources":{},"allocated":{},"offered":{},"reserved":{},"quota":{"role":"*","consumed":{}}},
 {"name":"batch","weight":2.5,"frameworks":["f-1","f-2"],"resources":{"cpus":2.0},"allocated":{"cpus":2.0,"mem":512.0,"ports":"[31000-31001]"},
  "offered":{"cpus":1.0},"reserved":{"disk":100.0},"quota":{"role":"batch","consumed":{"cpus":3.0,"mem":512.0}}}]}`

func TestRolesShowSharesWeightsAndQuotas(t *testing.T) {
	m := administer(t)
	m.pages["/roles"] = rolesPage
	m.quotas["batch"] = &quotav1.QuotaConfig{Role: ptr("batch"), Guarantees: quantityOf("cpus", 4), Limits: quantityOf("gpus", 0)}
	m.quotas["unused"] = &quotav1.QuotaConfig{Role: ptr("unused"), Limits: quantityOf("cpus", 1)}
	out, _, err := m.mosaic(t, "role", "ls")
	const want = `
ROLE     WEIGHT   FRAMEWORKS   SHARE   CPUS   MEM      GUARANTEE   LIMIT
*        1        0            0 %     0      0 MB     -           -
batch    2.5      2            25 %    2      512 MB   cpus:4      gpus:0
unused   1        0            0 %     0      0 MB     -           cpus:1
`
	if err != nil || "\n"+out != want {
		t.Errorf("role ls = %v\n%s\nwant\n%s", err, out, want)
	}
	out, _, err = m.mosaic(t, "quota", "ls")
	const quotas = `
ROLE     GUARANTEE   LIMIT    CONSUMED
batch    cpus:4      gpus:0   cpus:3;mem:512
unused   -           cpus:1   -
`
	if err != nil || "\n"+out != quotas {
		t.Errorf("quota ls = %v\n%s\nwant\n%s", err, out, quotas)
	}
	out, _, err = m.mosaic(t, "role", "ls", "-o", "json")
	var rows []roleRow
	if err != nil || json.Unmarshal([]byte(out), &rows) != nil || len(rows) != 3 || rows[1].Share != 0.25 || rows[1].Reserved["disk"] != 100 || rows[1].Limit["gpus"] != 0 {
		t.Errorf("role ls -o json = %v\n%s", err, out)
	}
}

func quantityOf(name string, v float64) map[string]*mesosv1.Value_Scalar {
	return map[string]*mesosv1.Value_Scalar{name: {Value: &v}}
}

func TestQuotaSetKeepsWhatIsNotNamed(t *testing.T) {
	m := administer(t)
	for _, step := range []struct {
		args             string
		guarantee, limit string
	}{
		{"quota set batch --guarantee cpus:4;mem:1024", "cpus:4;mem:1024", ""},
		{"quota set batch --limit cpus:8;gpus:0", "cpus:4;mem:1024", "cpus:8;gpus:0"},
		{"quota set batch --guarantee=", "", "cpus:8;gpus:0"},
		{"quota set batch --guarantee cpus:16 --limit= --force", "cpus:16", ""},
	} {
		if _, _, err := m.mosaic(t, strings.Fields(step.args)...); err != nil {
			t.Fatalf("mosaic %s: %v", step.args, err)
		}
		q := m.quotas["batch"]
		if g, l := amountsText(amountsOf(q.GetGuarantees())), amountsText(amountsOf(q.GetLimits())); g != step.guarantee || l != step.limit {
			t.Errorf("after mosaic %s: guarantee %q, limit %q, want %q and %q", step.args, g, l, step.guarantee, step.limit)
		}
	}
	if _, _, err := m.mosaic(t, "quota", "set", "batch", "--guarantee", "cpus:9"); err == nil || !strings.Contains(err.Error(), "does not hold it") {
		t.Errorf("a guarantee beyond the cluster = %v, want the master's words", err)
	}
	for _, wrong := range []string{"quota set batch", "quota set batch --limit cpus", "quota set batch --limit cpus:-1", "quota set batch --limit cpus:NaN", "quota set batch --limit cpus:1;cpus:2", "quota set batch --limit cpus:1e300"} {
		if _, _, err := m.mosaic(t, strings.Fields(wrong)...); silently(t, err) != exitUsage {
			t.Errorf("mosaic %s = %v, want exit code %d", wrong, err, exitUsage)
		}
	}
	if _, _, err := m.mosaic(t, "quota", "rm", "batch"); err != nil || m.quotas["batch"] != nil {
		t.Errorf("quota rm = %v, left %v", err, m.quotas["batch"])
	}
	if _, _, err := m.mosaic(t, "quota", "rm", "batch"); err == nil || !strings.Contains(err.Error(), "no quota") {
		t.Errorf("quota rm of a role without = %v", err)
	}
}

func TestQuotaOfAResourceThatNoAgentHasIsSetWithAWarning(t *testing.T) {
	m := administer(t)
	for _, step := range []struct{ args, want string }{
		{"--guarantee cpus:1 --limit cpus:4;disk:10", ""},
		{"--limit cpu:4;mem:1024", "mosaic: warning: no agent has \"cpu\"; agents have cpus, disk, mem\n"},
		{"--guarantee cpu:1 --limit cpu:4;gpus:0", "mosaic: warning: no agent has \"cpu\"; agents have cpus, disk, mem\n"},
	} {
		_, said, err := m.mosaic(t, append([]string{"quota", "set", "batch"}, strings.Fields(step.args)...)...)
		if err != nil || said != step.want {
			t.Errorf("quota set %s = %v, said %q, want %q", step.args, err, said, step.want)
		}
	}
	if l := amountsText(amountsOf(m.quotas["batch"].GetLimits())); l != "cpu:4;gpus:0" {
		t.Errorf("limits = %s, want them set as they were given", l)
	}
	m.state.GetAgents.Agents = nil
	if _, said, err := m.mosaic(t, "quota", "set", "batch", "--limit", "cpu:4"); err != nil || said != "" {
		t.Errorf("quota set without agents = %v, said %q, want nothing", err, said)
	}
}

func TestWeightsAreSetTogether(t *testing.T) {
	m := administer(t)
	if _, _, err := m.mosaic(t, "role", "weight", "batch=1", "web=2.5"); err != nil || m.weights["batch"] != 1 || m.weights["web"] != 2.5 {
		t.Errorf("role weight = %v, weights %v", err, m.weights)
	}
	if n := len(m.last(masterv1.Call_UPDATE_WEIGHTS).GetUpdateWeights().GetWeightInfos()); n != 2 {
		t.Errorf("one call set %d weights, want both", n)
	}
	for _, wrong := range []string{"batch", "batch=0", "batch=-1", "=1", "batch=Inf", "batch=NaN"} {
		if _, _, err := m.mosaic(t, "role", "weight", wrong); silently(t, err) != exitUsage {
			t.Errorf("role weight %s = %v, want exit code %d", wrong, err, exitUsage)
		}
	}
}

func TestAMachineIsPlannedTakenDownAndBroughtBack(t *testing.T) {
	m := administer(t)
	step := func(args string) string {
		t.Helper()
		out, _, err := m.mosaic(t, strings.Fields(args)...)
		if err != nil {
			t.Fatalf("mosaic %s: %v", args, err)
		}
		return out
	}
	step("maintenance schedule alpha 10.0.0.2 --start 2026-01-31T22:00:00Z --duration 30m")
	w := m.schedule.GetWindows()
	if len(w) != 1 || len(w[0].GetMachineIds()) != 2 || w[0].GetMachineIds()[0].GetIp() != "10.0.0.1" || w[0].GetMachineIds()[1].GetHostname() != "beta" {
		t.Fatalf("schedule %v, want alpha and beta with their addresses", w)
	}
	// beta goes at another time; alpha keeps its own.
	step("maintenance schedule agent-b gamma/10.0.0.9 --start 2026-02-01T00:00:00Z")
	if w := m.schedule.GetWindows(); len(w) != 2 || len(w[0].GetMachineIds()) != 1 || len(w[1].GetMachineIds()) != 2 || w[1].GetUnavailability().Duration != nil {
		t.Fatalf("schedule %v, want beta moved to the second window, which has no end", w)
	}
	step("maintenance start beta")
	var rows []machineRow
	if err := json.Unmarshal([]byte(step("maintenance status -o json")), &rows); err != nil || len(rows) != 3 {
		t.Fatalf("status: %v, %v", rows, err)
	}
	a, b := rows[0], rows[1]
	if a.Hostname != "alpha" || a.Mode != "draining" || a.End.Sub(a.Start) != 30*time.Minute || strings.Join(a.Accepted, "") != "f-1" || strings.Join(a.Declined, "") != "f-2" || strings.Join(a.Silent, "") != "f-3" {
		t.Errorf("alpha: %+v", a)
	}
	if b.Hostname != "beta" || b.Mode != "down" || !b.End.IsZero() || len(b.Accepted) != 0 {
		t.Errorf("beta: %+v", b)
	}
	if out := step("maintenance status"); !strings.Contains(out, "1 leave, 1 stay, 1 silent") {
		t.Errorf("status:\n%s", out)
	}
	step("maintenance stop beta")
	step("maintenance cancel alpha gamma/10.0.0.9")
	if w := m.schedule.GetWindows(); len(m.down) != 0 || len(w) != 1 || len(w[0].GetMachineIds()) != 1 {
		t.Errorf("down %v, schedule %v; want nothing down and beta planned", m.down, w)
	}
	for args, want := range map[string]string{
		"maintenance start alpha":                  "not planned",
		"maintenance start nobody":                 `no agent "nobody"`,
		"maintenance schedule x/y":                 "want an IP address",
		"maintenance schedule alpha --start later": "--start",
	} {
		if _, _, err := m.mosaic(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("mosaic %s = %v, want %q", args, err, want)
		}
	}
}

func TestTimesOfMaintenance(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("here", 3600))
	for text, want := range map[string]time.Time{
		"now": now, "2h": now.Add(2 * time.Hour), "+90m": now.Add(90 * time.Minute), "2026-02-03T04:05:06Z": time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC),
		"2026-02-03 04:05": time.Date(2026, 2, 3, 4, 5, 0, 0, now.Location()),
	} {
		if got, err := parseMoment(text, now); err != nil || !got.Equal(want) {
			t.Errorf("parseMoment(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "tomorrow", "2026-13-01 00:00"} {
		if got, err := parseMoment(text, now); err == nil {
			t.Errorf("parseMoment(%q) = %v, want an error", text, got)
		}
	}
}

func TestAgentsAreDrainedAndReactivated(t *testing.T) {
	m := administer(t)
	m.drained = 2
	_, stderr, err := m.mosaic(t, "node", "drain", "alpha", "--max-grace", "10m", "--wait")
	drain := m.last(masterv1.Call_DRAIN_AGENT).GetDrainAgent()
	if err != nil || !strings.Contains(stderr, "alpha") || drain.GetAgentId().GetValue() != "agent-a" || drain.GetMaxGracePeriod().AsDuration() != 10*time.Minute || drain.GetMarkGone() {
		t.Fatalf("node drain = %q, %v; call %v", stderr, err, drain)
	}
	if m.drained > 0 {
		t.Errorf("--wait returned before the agent was drained")
	}
	for _, step := range []struct{ args, state string }{
		{"node ls", "alpha   drained"},
		{"node reactivate agent-a", ""},
		{"node ls", "alpha   active"},
		{"node deactivate a", ""}, // the end of its id
		{"node ls", "alpha   deactivated"},
		{"node gone alpha --yes", ""},
	} {
		out, _, err := m.mosaic(t, strings.Fields(step.args)...)
		if err != nil || !strings.Contains(out, step.state) {
			t.Errorf("mosaic %s = %v\n%s\nwant %q", step.args, err, out, step.state)
		}
	}
	if _, _, err := m.mosaic(t, "node", "gone", "beta"); silently(t, err) != exitUsage || len(m.state.GetAgents.GetAgents()) != 1 {
		t.Errorf("node gone without --yes = %v, want nothing done", err)
	}
	if _, _, err := m.mosaic(t, "node", "drain", "alpha"); err == nil || !strings.Contains(err.Error(), `no agent "alpha"`) {
		t.Errorf("drain of an agent that is gone = %v", err)
	}
}

func TestCompletionOfNamesOfTheCluster(t *testing.T) {
	m := administer(t)
	m.schedule = &maintenancev1.Schedule{Windows: []*maintenancev1.Window{{
		MachineIds:     []*mesosv1.MachineID{{Hostname: ptr("beta"), Ip: ptr("10.0.0.2")}},
		Unavailability: &mesosv1.Unavailability{Start: &mesosv1.TimeInfo{Nanoseconds: ptr(int64(0))}},
	}}}
	for args, want := range map[string]string{
		"node drain":                 "alpha\nbeta\n",
		"maintenance schedule alpha": "beta\n",
		"maintenance start":          "beta\n",
		"quota set":                  "batch\nweb\n",
		"role weight":                "batch=\nweb=\n",
	} {
		out, _, err := execute(t, append(append([]string{"__complete"}, strings.Fields(args)...), "--master", m.addr, "")...)
		if err != nil || !strings.HasPrefix(out, want+":") {
			t.Errorf("completion of mosaic %s = %v\n%q\nwant %q", args, err, out, want)
		}
	}
}

func TestTasksShowTheirHealth(t *testing.T) {
	s := state()
	status := s.GetTasks.GetTasks()[0].GetStatuses()[0]
	status.Healthy = ptr(false)
	status.CheckStatus = &mesosv1.CheckStatusInfo{Type: mesosv1.CheckInfo_COMMAND.Enum(), Command: &mesosv1.CheckStatusInfo_Command{ExitCode: ptr(int32(0))}}
	master := fakeMaster(t, s)
	out, _, err := execute(t, "task", "ls", "--master", master, "-o", "json")
	for _, want := range []string{`"healthy": false`, `"check_status": {`, `"type": "COMMAND"`, `"exit_code": 0`} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("task ls = %v\n%s\nwant %s", err, out, want)
		}
	}
	if out, _, err := execute(t, "task", "ls", "--master", master, "-o", "wide"); err != nil || !strings.Contains(out, "unhealthy") {
		t.Errorf("task ls -o wide = %v\n%s\nwant its health", err, out)
	}
	// A check that has not run yet has a type and no result; other kinds have their own.
	for want, s := range map[string]*mesosv1.CheckStatusInfo{
		`{"type":"HTTP"}`:                 {Type: mesosv1.CheckInfo_HTTP.Enum()},
		`{"type":"HTTP","status_code":9}`: {Type: mesosv1.CheckInfo_HTTP.Enum(), Http: &mesosv1.CheckStatusInfo_Http{StatusCode: ptr(uint32(9))}},
		`{"type":"TCP","succeeded":true}`: {Type: mesosv1.CheckInfo_TCP.Enum(), Tcp: &mesosv1.CheckStatusInfo_Tcp{Succeeded: ptr(true)}},
		`null`:                            nil,
	} {
		if got, err := json.Marshal(newTaskCheck(s)); err != nil || string(got) != want {
			t.Errorf("%v is %s, %v; want %s", s, got, err, want)
		}
	}
}

func TestAFrameworkIsTornDownByNameAndNotByMistake(t *testing.T) {
	m := administer(t)
	if _, _, err := m.mosaic(t, "framework", "teardown", "marathon"); silently(t, err) != exitUsage || m.last(masterv1.Call_TEARDOWN) != nil {
		t.Errorf("teardown without --yes = %v, want nothing done", err)
	}
	_, stderr, err := m.mosaic(t, "framework", "teardown", "marathon", "--yes")
	if id := m.last(masterv1.Call_TEARDOWN).GetTeardown().GetFrameworkId().GetValue(); err != nil || id != "f-1" || !strings.Contains(stderr, "marathon (f-1)") {
		t.Errorf("teardown = %q, %v; tore down %q", stderr, err, id)
	}
	if _, _, err := m.mosaic(t, "framework", "teardown", "mosaic run", "--yes"); err == nil || !strings.Contains(err.Error(), "no framework") {
		t.Errorf("teardown of one that has ended = %v", err)
	}
}

func TestKillOfATaskInAGroupNamesItsContainerInFull(t *testing.T) {
	agent := newEnterable(t)
	c, err := agent.run("child", []string{"sleep", "1000"}, nil, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	master := agent.clusterOf(t, func(task *mesosv1.Task) {
		task.Statuses[0].ContainerStatus.ContainerId = &mesosv1.ContainerID{Value: ptr("child"), Parent: &mesosv1.ContainerID{Value: ptr("executor")}}
	})
	if out, _, err := execute(t, "task", "ls", "--master", master, "-o", "wide"); err != nil || !strings.Contains(out, "executor.child") {
		t.Errorf("task ls = %v\n%s\nwant the container's whole name", err, out)
	}
	if _, _, err := execute(t, "task", "kill", "--master", master, "web-1"); err != nil {
		t.Fatal(err)
	}
	<-c.ended
	if got := containerText(agent.killed[0]); got != "executor.child" || c.status.Signal() != syscall.SIGTERM {
		t.Errorf("killed %s, which ended with %v; want executor.child with SIGTERM", got, c.status)
	}
}
