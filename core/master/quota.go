package master

import (
	"context"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Quotas: what a top-level role is guaranteed and how much it may have. The allocator keeps them; here they are
// checked, written down, and made to hold for offers that are out.

// quotaPause is how long a new master with quotas waits for the agents that its predecessor had, before it offers
// what a guarantee may need. Mesos's, as is the share that is enough.
const quotaPause = 10 * time.Minute

// checkQuota says what is wrong with a quota in itself.
func checkQuota(q *quotav1.QuotaConfig) error {
	role := q.GetRole()
	if err := resources.ValidateRole(role); err != nil {
		return badRequest("Invalid QuotaConfig: %v", err)
	}
	if strings.Contains(role, "/") {
		return badRequest("Invalid QuotaConfig: setting quota on nested role '%s' is not supported", role)
	}
	for _, m := range []map[string]*mesosv1.Value_Scalar{q.GetGuarantees(), q.GetLimits()} {
		for _, name := range sortedKeys(m) {
			if v := m[name].GetValue(); name == "" || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
				return badRequest("Invalid QuotaConfig: '%s' of role '%s' is %v, want a number that is not negative", name, role, v)
			}
		}
	}
	for _, name := range sortedKeys(q.GetGuarantees()) {
		if limit, ok := q.GetLimits()[name]; ok && q.GetGuarantees()[name].GetValue() > limit.GetValue() {
			return badRequest("Invalid QuotaConfig: guarantee %v of '%s' of role '%s' is above its limit %v",
				q.GetGuarantees()[name].GetValue(), name, role, limit.GetValue())
		}
	}
	return nil
}

// updateQuota sets quotas, all or none, once the registry has them.
//
// Errors: 400 for one that is wrong, and, unless forced, for guarantees beyond what the cluster has and limits below
// what the role consumes; 403.
func (m *Master) updateQuota(ctx context.Context, principal string, call *masterv1.Call_UpdateQuota) error {
	wanted := make(map[string]*quotav1.QuotaConfig)
	for _, q := range call.GetQuotaConfigs() {
		if err := checkQuota(q); err != nil {
			return err
		}
		if wanted[q.GetRole()] != nil {
			return badRequest("Invalid QuotaConfig: role '%s' is named twice", q.GetRole())
		}
		wanted[q.GetRole()] = q
	}
	for _, role := range sortedKeys(wanted) {
		if err := m.approve(ctx, principal, "UPDATE_QUOTA_WITH_CONFIG", role); err != nil {
			return forbidden("%v", err)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	s := m.s
	return m.decidePersisted(ctx, func(time.Time) ([]change, func(time.Time), error) {
		if !call.GetForce() {
			if err := s.checkQuotas(wanted); err != nil {
				return nil, nil, err
			}
		}
		var changes []change
		for _, role := range sortedKeys(wanted) {
			if emptyQuota(wanted[role]) {
				changes = append(changes, registry.RemoveQuota(role))
			} else {
				changes = append(changes, registry.PutQuota(wanted[role]))
			}
		}
		return changes, func(now time.Time) { s.setQuotas(wanted, now) }, nil
	})
}

func emptyQuota(q *quotav1.QuotaConfig) bool { return len(q.GetGuarantees())+len(q.GetLimits()) == 0 }

// checkQuotas says whether the cluster can keep the guarantees, and whether roles are within their limits, as far as
// one can tell.
func (s *state) checkQuotas(wanted map[string]*quotav1.QuotaConfig) error {
	all := maps.Clone(s.quotas)
	maps.Copy(all, wanted)
	guaranteed := resources.Quantities{}
	for _, role := range sortedKeys(all) {
		guaranteed = guaranteed.Add(resources.QuantitiesOf(all[role].GetGuarantees()))
	}
	capacity := resources.Quantities{}
	for _, id := range sortedKeys(s.agents) {
		capacity = capacity.Add(s.agents[id].total.NonRevocable().Scalars().Quantities())
	}
	if !capacity.Contains(guaranteed) {
		return badRequest("Invalid quota update: all guarantees together are %s, the cluster has %s (use 'force' to bypass this check)", guaranteed, capacity)
	}
	for _, role := range sortedKeys(wanted) {
		consumed := s.consumed(role)
		for _, name := range sortedKeys(wanted[role].GetLimits()) {
			if limit := wanted[role].GetLimits()[name].GetValue(); consumed[name] > limit {
				return badRequest("Invalid quota update: role '%s' consumes %v of '%s', more than the limit %v (use 'force' to bypass this check)",
					role, consumed[name], name, limit)
			}
		}
	}
	return nil
}

// consumed is what counts against the quota of a top-level role, without what is only offered.
func (s *state) consumed(role string) resources.Quantities {
	offered := resources.Quantities{}
	for _, o := range s.offers { // sums do not depend on the order
		if below(o.role, role) {
			offered = offered.Add(counted(o))
		}
	}
	return s.allocator.Consumed(role).Subtract(offered)
}

// below says whether a role is top, or in its subtree.
func below(role, top string) bool { return role == top || resources.IsSubrole(role, top) }

// counted is what of an offer counts against a quota.
func counted(o *offer) resources.Quantities {
	return o.resources.Unreserved().NonRevocable().NonShared().Scalars().Quantities()
}

// setQuotas has quotas hold, for offers that are out too.
func (s *state) setQuotas(wanted map[string]*quotav1.QuotaConfig, now time.Time) {
	all := maps.Clone(s.quotas)
	for _, role := range sortedKeys(wanted) {
		q := wanted[role]
		if emptyQuota(q) {
			delete(all, role)
			s.allocator.RemoveQuota(role)
			continue
		}
		all[role] = q
		s.allocator.SetQuota(role, resources.QuantitiesOf(q.GetGuarantees()), resources.QuantitiesOf(q.GetLimits()))
	}
	s.quotas, s.views.quotas, s.views.changed = all, all, true
	for _, role := range sortedKeys(wanted) {
		s.rescindForQuota(wanted[role], now)
	}
	s.allocateBy(now)
}

// rescindForQuota takes back offers to the role until it is within its limits, and offers to others until what the
// role lacks of its guarantees could be given.
func (s *state) rescindForQuota(q *quotav1.QuotaConfig, now time.Time) {
	role := q.GetRole()
	for _, name := range sortedKeys(q.GetLimits()) {
		limit := q.GetLimits()[name].GetValue()
		for _, o := range s.offersWith(name, func(o *offer) bool { return below(o.role, role) }) {
			if s.allocator.Consumed(role)[name] <= limit {
				break
			}
			s.rescind(o, nil, now)
		}
	}
	for _, name := range sortedKeys(q.GetGuarantees()) {
		missing := q.GetGuarantees()[name].GetValue() - s.allocator.Consumed(role)[name]
		for _, o := range s.offersWith(name, func(o *offer) bool { return !below(o.role, role) }) {
			if missing <= 0 {
				break
			}
			missing -= counted(o)[name]
			s.rescind(o, nil, now)
		}
	}
}

// offersWith returns the offers of which some of a resource counts against quotas, by id.
func (s *state) offersWith(name string, want func(*offer) bool) []*offer {
	set := make(map[*offer]struct{})
	for _, o := range s.offers {
		if want(o) && counted(o)[name] > 0 {
			set[o] = struct{}{}
		}
	}
	return sortedOffers(set)
}

// waitsForAgents says whether there are quotas and a former master's agents have yet to return: what seems free may
// be what a guarantee needs.
func (s *state) waitsForAgents(now time.Time) bool {
	if s.pausedUntil.IsZero() {
		return false
	}
	if now.Before(s.pausedUntil) && 5*len(s.recovered) > s.expected {
		return true
	}
	s.pausedUntil = time.Time{}
	return false
}

// getQuota is the body of GET_QUOTA.
func (v *view) getQuota() *masterv1.Response_GetQuota {
	status := &quotav1.QuotaStatus{}
	for _, role := range sortedKeys(v.quotas) {
		q := v.quotas[role]
		status.Configs = append(status.Configs, q)
		if len(q.GetGuarantees()) == 0 {
			continue
		}
		info := &quotav1.QuotaInfo{Role: q.Role}
		for _, name := range sortedKeys(q.GetGuarantees()) {
			info.Guarantee = append(info.Guarantee, &mesosv1.Resource{
				Name: ptr(name), Type: mesosv1.Value_SCALAR.Enum(), Scalar: q.GetGuarantees()[name],
			})
		}
		status.Infos = append(status.Infos, info)
	}
	return &masterv1.Response_GetQuota{Status: status}
}
