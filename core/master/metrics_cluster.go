package master

import (
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// samples is how many of the last durations a timing keeps. Percentiles of fewer than some hundred say little about
// the rare ones; Mesos keeps a thousand.
const samples = 1000

// timing is how long something took, each time.
type timing struct {
	mu    sync.Mutex
	last  []time.Duration // guarded by mu; a ring of at most samples
	next  int             // guarded by mu; in last
	count uint64          // guarded by mu
}

func (t *timing) add(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count++
	if len(t.last) < samples {
		t.last = append(t.last, d)
	} else {
		t.last[t.next] = d
	}
	t.next = (t.next + 1) % samples
}

// percentiles are those that Mesos gives.
var percentiles = []struct {
	name string
	part float64
}{{"p50", 0.5}, {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}, {"p999", 0.999}, {"p9999", 0.9999}}

// show adds a timing under a name: the last one, and once there is one, how they are distributed; in milliseconds.
func (t *timing) show(out map[string]float64, name string) {
	t.mu.Lock()
	all, count, newest := slices.Clone(t.last), t.count, (t.next+samples-1)%samples
	t.mu.Unlock()
	if len(all) == 0 {
		out[name] = 0
		return
	}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	out[name] = ms(all[newest])
	slices.Sort(all)
	out[name+"/count"] = float64(count)
	out[name+"/min"], out[name+"/max"] = ms(all[0]), ms(all[len(all)-1])
	for _, p := range percentiles {
		out[name+"/"+p.name] = ms(all[int(math.Ceil(p.part*float64(len(all))))-1])
	}
}

// countedOperations are the types of operations that are counted by state, and countedStates the states that end one.
var (
	countedOperations = []mesosv1.Offer_Operation_Type{
		mesosv1.Offer_Operation_RESERVE, mesosv1.Offer_Operation_UNRESERVE, mesosv1.Offer_Operation_CREATE,
		mesosv1.Offer_Operation_DESTROY, mesosv1.Offer_Operation_GROW_VOLUME, mesosv1.Offer_Operation_SHRINK_VOLUME,
		mesosv1.Offer_Operation_CREATE_DISK, mesosv1.Offer_Operation_DESTROY_DISK,
	}
	openOperationStates = []mesosv1.OperationState{
		mesosv1.OperationState_OPERATION_PENDING, mesosv1.OperationState_OPERATION_RECOVERING, mesosv1.OperationState_OPERATION_UNREACHABLE,
	}
	endedOperationStates = []mesosv1.OperationState{
		mesosv1.OperationState_OPERATION_FINISHED, mesosv1.OperationState_OPERATION_FAILED, mesosv1.OperationState_OPERATION_ERROR,
		mesosv1.OperationState_OPERATION_DROPPED, mesosv1.OperationState_OPERATION_GONE_BY_OPERATOR,
	}
)

// operationMetric is the name under which operations of a type, of any if it is UNKNOWN, are counted in a state.
func operationMetric(t mesosv1.Offer_Operation_Type, state mesosv1.OperationState) string {
	name := "master/operations/"
	if t != mesosv1.Offer_Operation_UNKNOWN {
		name += strings.ToLower(t.String()) + "/"
	}
	return name + strings.ToLower(strings.TrimPrefix(state.String(), "OPERATION_"))
}

// operation counts the end of an operation.
func (m *metrics) operation(t mesosv1.Offer_Operation_Type, state mesosv1.OperationState) {
	if slices.Contains(endedOperationStates, state) && slices.Contains(countedOperations, t) {
		m.count(operationMetric(mesosv1.Offer_Operation_UNKNOWN, state))
		m.count(operationMetric(t, state))
	}
}

// operationMetrics adds the numbers of operations that are known, and zeros for the counters that have not begun.
func (v *view) operationMetrics(out map[string]float64) {
	types := append([]mesosv1.Offer_Operation_Type{mesosv1.Offer_Operation_UNKNOWN}, countedOperations...)
	for _, t := range types {
		out[strings.TrimSuffix(operationMetric(t, 0), "unsupported")+"total"] = 0
		for _, state := range openOperationStates {
			out[operationMetric(t, state)] = 0
		}
		for _, state := range endedOperationStates {
			if name := operationMetric(t, state); out[name] == 0 {
				out[name] = 0
			}
		}
	}
	for o := range v.operations.all() {
		state := o.GetLatestStatus().GetState()
		for _, t := range []mesosv1.Offer_Operation_Type{mesosv1.Offer_Operation_UNKNOWN, o.GetInfo().GetType()} {
			out[strings.TrimSuffix(operationMetric(t, 0), "unsupported")+"total"]++
			if slices.Contains(openOperationStates, state) {
				out[operationMetric(t, state)]++
			}
		}
	}
}

// allocatorMetrics adds what Mesos's allocator tells of resources, roles and quotas.
func (v *view) allocatorMetrics(out map[string]float64) {
	total, had := resources.Quantities{}, resources.Quantities{}
	t := v.tally()
	for a := range v.agents.all() {
		total = total.Add(a.total.Scalars().Quantities())
		u := usageOf(t.agents, a.id)
		had = had.Add(u.used.Scalars().Quantities()).Add(u.offered.Scalars().Quantities())
	}
	for _, name := range []string{"cpus", "mem", "disk"} {
		out["allocator/mesos/resources/"+name+"/total"] = total[name]
		out["allocator/mesos/resources/"+name+"/offered_or_allocated"] = had[name]
	}
	filters := v.metrics.offerFilters.Load()
	for _, r := range v.roles() {
		key := metricPart(r.name)
		if filters != nil && (len(r.frameworks) > 0 || (*filters)[r.name] > 0) {
			out["allocator/mesos/offer_filters/roles/"+key+"/active"] = float64((*filters)[r.name])
		}
		if len(r.frameworks) > 0 {
			share := 0.0
			for name, n := range r.usage.used.Quantities().Add(r.usage.offered.Quantities()) {
				if total[name] > 0 {
					share = max(share, n/total[name])
				}
			}
			out["allocator/mesos/roles/"+key+"/shares/dominant"] = share
		}
		q := v.quotas[r.name]
		for name, n := range q.GetGuarantees() {
			out["allocator/mesos/quota/roles/"+key+"/resources/"+name+"/guarantee"] = n.GetValue()
			out["allocator/mesos/quota/roles/"+key+"/resources/"+name+"/offered_or_allocated"] = r.allocated[name] + r.offered[name]
		}
		for name, n := range q.GetLimits() {
			out["allocator/mesos/quota/roles/"+key+"/resources/"+name+"/limit"] = n.GetValue()
			out["allocator/mesos/quota/roles/"+key+"/resources/"+name+"/offered_or_allocated"] = r.allocated[name] + r.offered[name]
		}
	}
}
