package allocator

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// TestScenarios plays testdata/*.txt. A line is a command; lines beginning with '>' are what
// the command before them must print, in any order.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata/*.txt: %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { play(t, file) })
	}
}

type stage struct {
	*Allocator
	now time.Time
}

func play(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{Allocator: New(Options{Region: "home"}), now: epoch}
	lines := strings.Split(string(text), "\n")
	for i := 0; i < len(lines); i++ {
		line, _, _ := strings.Cut(lines[i], "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		got, err := s.do(words[0], words[1:])
		if err != nil {
			t.Fatalf("%s:%d: %s: %v", file, i+1, line, err)
		}
		at := i + 1
		var want []string
		for i+1 < len(lines) && strings.HasPrefix(lines[i+1], ">") {
			i++
			if w := strings.TrimSpace(lines[i][1:]); w != "" && w != "nothing" {
				want = append(want, w)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s:%d: %s\n got:\n  %s\nwant:\n  %s", file, at, line, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
		checkBooks(t, s.Allocator)
	}
}

// set reads "cpus:4;mem(eng):10;cpus{REV}:2;disk(eng|eng/dev)[vol]:5;disk(eng)[vol]<SHARED>:5":
// what resources.Parse reads, and revocable, refined, persistent and shared resources. The
// first role is reserved to statically.
func set(text string) (resources.Set, error) {
	var out resources.Set
	for _, token := range strings.Split(text, ";") {
		name, value, _ := strings.Cut(token, ":")
		var id string
		revocable, shared := strings.Contains(name, "{REV}"), strings.Contains(name, "<SHARED>")
		name = strings.NewReplacer("{REV}", "", "<SHARED>", "").Replace(name)
		if i := strings.IndexByte(name, '['); i >= 0 {
			id = strings.Trim(name[i:], "[]")
			name = name[:i]
		}
		var stack []string
		if i := strings.IndexByte(name, '('); i >= 0 {
			stack = strings.Split(strings.Trim(name[i:], "()"), "|")
			name = name[:i]
		}
		rs, err := resources.Parse(name+":"+value, "*")
		if err != nil {
			return out, err
		}
		for _, r := range rs {
			for i, role := range stack {
				kind := mesosv1.Resource_ReservationInfo_STATIC
				if i > 0 {
					kind = mesosv1.Resource_ReservationInfo_DYNAMIC
				}
				r.Reservations = append(r.Reservations, &mesosv1.Resource_ReservationInfo{Type: kind.Enum(), Role: &role})
			}
			if revocable {
				r.Revocable = &mesosv1.Resource_RevocableInfo{}
			}
			if id != "" {
				r.Disk = &mesosv1.Resource_DiskInfo{Persistence: &mesosv1.Resource_DiskInfo_Persistence{Id: &id}}
			}
			if shared {
				r.Shared = &mesosv1.Resource_SharedInfo{}
			}
			if err := resources.Validate(r); err != nil {
				return out, err
			}
			out = out.Add(resources.New(r))
		}
	}
	return out, nil
}

func (s *stage) do(command string, args []string) ([]string, error) {
	var options map[string]string
	for len(args) > 0 && strings.Contains(args[len(args)-1], "=") {
		if options == nil {
			options = map[string]string{}
		}
		k, v, _ := strings.Cut(args[len(args)-1], "=")
		options[k] = v
		args = args[:len(args)-1]
	}
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch command {
	case "agent": // agent NAME RESOURCES [region=R] [old=yes] [used=FRAMEWORK/ROLE/RESOURCES]
		total, err := set(arg(1))
		if err != nil {
			return nil, err
		}
		info := &mesosv1.AgentInfo{Hostname: ptr(arg(0) + ".example")}
		if r := options["region"]; r != "" {
			info.Domain = &mesosv1.DomainInfo{FaultDomain: &mesosv1.DomainInfo_FaultDomain{
				Region: &mesosv1.DomainInfo_FaultDomain_RegionInfo{Name: &r},
				Zone:   &mesosv1.DomainInfo_FaultDomain_ZoneInfo{Name: ptr("z")}}}
		}
		capabilities := agentCapabilities
		if options["old"] != "" {
			capabilities = nil
		}
		var used map[string]resources.Set
		if u := strings.SplitN(options["used"], "/", 3); len(u) == 3 {
			has, err := set(u[2])
			if err != nil {
				return nil, err
			}
			used = map[string]resources.Set{u[0]: has.Allocate(u[1])}
		}
		s.AddAgent(arg(0), info, capabilities, total, used)
	case "new": // new [exclude=NAME] [gpus=all] [roles=SORTER] [keep=yes]: an allocator with other options
		o := Options{Region: "home", OfferGPUsToAll: options["gpus"] == "all", KeepPlace: options["keep"] == "yes"}
		if x := options["exclude"]; x != "" {
			o.ShareExcluded = []string{x}
		}
		s.Allocator = New(o)
	case "total":
		total, err := set(arg(1))
		if err != nil {
			return nil, err
		}
		s.UpdateAgentTotal(arg(0), total)
	case "framework", "update": // framework NAME ROLE,ROLE [caps=A,B] [suppressed=ROLE] [min=ROLE/QUANTITIES] [active=no]
		var caps []mesosv1.FrameworkInfo_Capability_Type
		for _, c := range strings.FieldsFunc(options["caps"], func(r rune) bool { return r == ',' }) {
			caps = append(caps, mesosv1.FrameworkInfo_Capability_Type(mesosv1.FrameworkInfo_Capability_Type_value[c]))
		}
		info := frameworkInfo(strings.Split(arg(1), ","), caps...)
		if role, text, found := strings.Cut(options["min"], "/"); found {
			m := &mesosv1.OfferFilters_MinAllocatableResources{}
			if text != "none" {
				q, err := resources.ParseQuantities(text)
				if err != nil {
					return nil, err
				}
				m.Quantities = []*mesosv1.OfferFilters_ResourceQuantities{{Quantities: q.Scalars()}}
			}
			info.OfferFilters = map[string]*mesosv1.OfferFilters{role: {MinAllocatableResources: m}}
		}
		var suppressed []string
		if options["suppressed"] != "" {
			suppressed = strings.Split(options["suppressed"], ",")
		}
		if command == "update" {
			s.UpdateFramework(arg(0), info, suppressed)
		} else {
			s.AddFramework(arg(0), info, suppressed, options["active"] != "no")
		}
	case "allocate":
		var out []string
		for _, o := range s.Allocate(s.now) {
			entries := o.Resources.Entries()
			for i := range entries {
				if entries[i].AllocatedTo() != o.Role {
					return nil, fmt.Errorf("%s is not allocated to %s", &entries[i], o.Role)
				}
			}
			out = append(out, fmt.Sprintf("%s %s %s %s", o.FrameworkID, o.Role, o.AgentID, o.Resources.Unallocate()))
		}
		return out, nil
	case "count": // allocate, and count offers per framework
		counts := map[string]int{}
		for _, o := range s.Allocate(s.now) {
			counts[o.FrameworkID]++
		}
		var out []string
		for _, id := range sortedKeys(counts) {
			out = append(out, fmt.Sprintf("%s %d", id, counts[id]))
		}
		return out, nil
	case "decline", "release": // decline FRAMEWORK AGENT SECONDS [of=ROLE/RESOURCES]: all it has there, or that part
		fw, ag := s.frameworks[arg(0)], s.agents[arg(1)]
		if fw == nil || ag == nil {
			return nil, fmt.Errorf("unknown framework or agent")
		}
		has := ag.allocs[fw]
		if role, text, found := strings.Cut(options["of"], ":"); found {
			part, err := set(text)
			if err != nil {
				return nil, err
			}
			has = part.Allocate(role)
		}
		var filters *mesosv1.Filters
		if command == "decline" {
			filters = &mesosv1.Filters{}
			if arg(2) != "" {
				seconds, err := strconv.ParseFloat(arg(2), 64)
				if err != nil {
					return nil, err
				}
				filters.RefuseSeconds = &seconds
			}
		}
		s.RecoverResources(arg(0), arg(1), has, filters, s.now)
	case "convert": // convert FRAMEWORK AGENT ROLE FROM TO
		from, err := set(arg(3))
		if err != nil {
			return nil, err
		}
		to, err := set(arg(4))
		if err != nil {
			return nil, err
		}
		return nil, s.UpdateAllocation(arg(0), arg(1), from.Allocate(arg(2)), to.Allocate(arg(2)))
	case "advance":
		d, err := time.ParseDuration(arg(0))
		s.now = s.now.Add(d)
		return nil, err
	case "next":
		if at := s.NextExpiry(); !at.IsZero() {
			return []string{at.Sub(s.now).String()}, nil
		}
	case "suppress":
		s.Suppress(arg(0), args[1:]...)
	case "revive":
		s.Revive(arg(0), args[1:]...)
	case "activate-framework":
		s.ActivateFramework(arg(0))
	case "deactivate-framework":
		s.DeactivateFramework(arg(0))
	case "remove-framework":
		s.RemoveFramework(arg(0))
	case "activate-agent":
		s.ActivateAgent(arg(0))
	case "deactivate-agent":
		s.DeactivateAgent(arg(0))
	case "remove-agent":
		s.RemoveAgent(arg(0))
	case "whitelist":
		if arg(0) == "off" {
			s.SetWhitelist(nil)
		} else {
			s.SetWhitelist(append([]string{}, args...))
		}
	case "weight":
		w, err := strconv.ParseFloat(arg(1), 64)
		s.SetWeight(arg(0), w)
		return nil, err
	case "quota": // quota ROLE [guarantee=Q] [limit=Q] | quota ROLE none
		if arg(1) == "none" {
			s.RemoveQuota(arg(0))
			return nil, nil
		}
		g, err := resources.ParseQuantities(options["guarantee"])
		if err != nil {
			return nil, err
		}
		l, err := resources.ParseQuantities(options["limit"])
		if err != nil {
			return nil, err
		}
		s.SetQuota(arg(0), g, l)
	case "consumed":
		return []string{s.Consumed(arg(0)).String()}, nil
	case "has": // what a framework has, per agent
		var out []string
		for _, ag := range s.agentList {
			if fw := s.frameworks[arg(0)]; fw != nil && !ag.allocs[fw].Empty() {
				out = append(out, ag.id+" "+ag.allocs[fw].String())
			}
		}
		return out, nil
	case "expire": // expire FRAMEWORK AGENT LEASE: all it has there was an offer that got no answer
		fw, ag := s.frameworks[arg(0)], s.agents[arg(1)]
		if fw == nil || ag == nil {
			return nil, fmt.Errorf("unknown framework or agent")
		}
		lease, err := time.ParseDuration(arg(2))
		s.ExpireOffer(arg(0), arg(1), ag.allocs[fw], s.now, lease)
		return nil, err
	case "answered":
		s.Answered(arg(0), s.now)
	case "constrain": // constrain FRAMEWORK ROLE HOSTNAME
		c, err := CompileConstraints(constraints([]*schedulerv1.AttributeConstraint{is(pseudo(schedulerv1.AttributeConstraint_Selector_HOSTNAME), "="+arg(2))}))
		if err != nil {
			return nil, err
		}
		c.roles = map[string][]group{arg(1): c.roles["eng"]}
		s.SetConstraints(arg(0), c)
	case "pause":
		d, err := time.ParseDuration(arg(0))
		s.Pause(s.now.Add(d))
		return nil, err
	case "resume":
		s.Resume()
	case "fits": // fits FRAMEWORK ROLE NEED [ports=N]; "-" for none
		q := Question{FrameworkID: strings.Trim(arg(0), "-"), Role: strings.Trim(arg(1), "-")}
		var err error
		if q.Need, err = resources.ParseQuantities(arg(2)); err != nil {
			return nil, err
		}
		q.Ports, _ = strconv.Atoi(options["ports"])
		e := s.Explain(q, s.now)
		out := []string{strings.TrimSpace(fmt.Sprintf("%d %s", e.Fits, strings.Join(e.FitsOn, ", ")))}
		for _, c := range e.Closest {
			out = append(out, fmt.Sprintf("%d on %s and %d more: %s", c.Cost, c.AgentID, c.Agents-1, c.Text))
		}
		return out, nil
	case "why":
		var out []string
		for _, r := range s.Explain(Question{FrameworkID: strings.Trim(arg(0), "-"), Role: arg(1)}, s.now).Asked[0].Reasons {
			line := fmt.Sprintf("%d: %s", r.Agents, r.Text)
			for _, h := range r.Holders {
				line += fmt.Sprintf("; %s in %s has %s", h.FrameworkID, h.Role, h.Resources)
			}
			if !r.Until.IsZero() {
				line += " for " + r.Until.Sub(s.now).String()
			}
			out = append(out, line)
		}
		return out, nil
	default:
		return nil, fmt.Errorf("unknown command %q", command)
	}
	return nil, nil
}

// checkBooks recounts everything that the allocator counts as it goes.
func checkBooks(t testing.TB, a *Allocator) {
	t.Helper()
	var total vector
	clients := map[*client]vector{}
	nodes := map[*node]vector{}
	reserved, used := map[*top]vector{}, map[*top]vector{}
	add := func(m map[*top]vector, k *top, v vector) {
		x := m[k]
		x.add(v, 1)
		m[k] = x
	}
	for _, ag := range a.agentList {
		total.add(a.scalars(ag.total), 1)
		var all resources.Set
		for fw, s := range ag.allocs {
			if s.Empty() {
				t.Fatalf("agent %s keeps an empty allocation of %s", ag.id, fw.id)
			}
			if a.frameworks[fw.id] != fw {
				t.Fatalf("agent %s knows a framework %s that is gone", ag.id, fw.id)
			}
			all = all.Add(s.NonShared().Unallocate())
			for role, part := range s.Allocations() {
				c := a.client(fw, role)
				v := clients[c]
				v.add(a.scalars(part), 1)
				clients[c] = v
				for n := c.role.node; n != nil; n = n.parent {
					v := nodes[n]
					v.add(a.scalars(part), 1)
					nodes[n] = v
				}
				add(used, c.role.top, a.scalars(countedForQuota(part)))
			}
		}
		if !all.Equal(ag.allocated) {
			t.Fatalf("agent %s: allocated is %s, frameworks have %s", ag.id, ag.allocated, all)
		}
		if want := ag.total.NonShared().Subtract(all); !ag.free.Equal(want) {
			t.Fatalf("agent %s: free is %s, want %s", ag.id, ag.free, want)
		}
		for role, s := range ag.total.Reservations() {
			add(reserved, a.top(role), a.scalars(s))
		}
	}
	same := func(what string, got, want vector) {
		t.Helper()
		for i := range max(len(got), len(want)) {
			if got.get(i) != want.get(i) {
				t.Fatalf("%s: counted %v, recounted %v", what, got, want)
			}
		}
	}
	same("total", a.total, total)
	for _, c := range a.clients {
		if c == nil {
			continue
		}
		same("framework "+c.framework.id+" in "+c.role.name, c.alloc, clients[c])
		if want := c.framework.active && c.framework.until.IsZero() && c.subscribed && !c.suppressed; c.listed != want || slices.Contains(c.role.clients, c) != want {
			t.Fatalf("framework %s in %s: listed %v, want %v", c.framework.id, c.role.name, c.listed, want)
		}
	}
	for _, tp := range a.tops {
		same("reserved for "+tp.name, tp.reserved, reserved[tp])
		same("used by "+tp.name, tp.used, used[tp])
	}
	var walk func(n *node) (int, int)
	walk = func(n *node) (int, int) {
		same("node "+n.name, n.alloc, nodes[n])
		if !slices.IsSortedFunc(n.children, compareNodes) {
			t.Fatalf("children of node %q are out of order", n.name)
		}
		active, yielding := 0, 0
		if n.leaf != nil {
			active = len(n.leaf.clients)
			for _, c := range n.leaf.clients {
				if c.yields {
					yielding++
				}
			}
			if !slices.IsSortedFunc(n.leaf.clients, compareClients) {
				t.Fatalf("frameworks of role %s are out of order", n.leaf.name)
			}
		}
		listed := 0
		for _, k := range n.kids {
			x, y := walk(k)
			yielding += y
			if x > 0 {
				active += x
				listed++
				if !slices.Contains(n.children, k) {
					t.Fatalf("node %q lacks its child %q", n.name, k.name)
				}
			}
		}
		if listed != len(n.children) || n.active != active || n.parent != nil && n.yielding != yielding {
			t.Fatalf("node %q: %d children listed, %d active, %d yielding; want %d, %d and %d",
				n.name, len(n.children), n.active, n.yielding, listed, active, yielding)
		}
		return active, yielding
	}
	walk(a.root)
	filters := map[*agent]int{}
	for i, f := range a.filters {
		filters[f.agent]++
		if f.place != i || !slices.Contains(f.client.filters[f.agent], f) || f.agent.removed {
			t.Fatalf("filter %d of %s on %s is not where it should be", i, f.client.framework.id, f.agent.id)
		}
	}
	for _, ag := range a.agentList {
		if ag.filters != filters[ag] {
			t.Fatalf("agent %s counts %d filters, want %d", ag.id, ag.filters, filters[ag])
		}
		for fw := range ag.allocs {
			if _, on := fw.on[ag]; !on {
				t.Fatalf("framework %s does not know that it has something on %s", fw.id, ag.id)
			}
		}
	}
	for _, fw := range a.frameworks {
		for ag := range fw.on {
			if ag.removed || ag.allocs[fw].Empty() {
				t.Fatalf("framework %s thinks it has something on %s", fw.id, ag.id)
			}
		}
	}
}
