package master

import (
	"context"
	"errors"
	"fmt"
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
func (m *Master) checkQuota(q *quotav1.QuotaConfig) error {
	role := q.GetRole()
	if err := resources.ValidateRole(role); err != nil {
		return badRequest("Invalid QuotaConfig: %v", err)
	}
	if err := m.cfg.knownRole(role); err != nil {
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
		if err := m.checkQuota(q); err != nil {
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
			if err := s.checkCapacity(wanted); err != nil {
				return nil, nil, badRequest("Invalid quota update: %v", err)
			}
			if err := s.checkLimits(wanted); err != nil {
				return nil, nil, err
			}
		}
		return quotaChanges(wanted), func(now time.Time) { s.setQuotas(wanted, now) }, nil
	})
}

// quotaChanges has the registry know of quotas.
func quotaChanges(wanted map[string]*quotav1.QuotaConfig) []change {
	var out []change
	for _, role := range sortedKeys(wanted) {
		if emptyQuota(wanted[role]) {
			out = append(out, registry.RemoveQuota(role))
		} else {
			out = append(out, registry.PutQuota(wanted[role]))
		}
	}
	return out
}

// setQuota gives a role its first quota, in the older way: what it is guaranteed is also its limit.
//
// Errors: 400 for a request that is wrong, or a role that has a quota; 403; 409 for more than the cluster has, unless
// forced.
func (m *Master) setQuota(ctx context.Context, principal string, request *quotav1.QuotaRequest) error {
	q, err := configOf(request)
	if err == nil {
		err = m.checkQuota(q)
	}
	if err != nil {
		return badRequest("Failed to validate set quota request: %v", err)
	}
	if err := m.approve(ctx, principal, "UPDATE_QUOTA", q.GetRole()); err != nil {
		return forbidden("%v", err)
	}
	s, wanted := m.s, map[string]*quotav1.QuotaConfig{q.GetRole(): q}
	return m.decidePersisted(ctx, func(time.Time) ([]change, func(time.Time), error) {
		if s.quotas[q.GetRole()] != nil {
			return nil, nil, badRequest("Failed to validate set quota request: Cannot set quota for role '%s' that already has quota", q.GetRole())
		}
		if !request.GetForce() {
			if err := s.checkCapacity(wanted); err != nil {
				return nil, nil, conflict("Heuristic capacity check for set quota request failed: %v", err)
			}
		}
		return quotaChanges(wanted), func(now time.Time) { s.setQuotas(wanted, now) }, nil
	})
}

// configOf is an older request in the newer form.
func configOf(request *quotav1.QuotaRequest) (*quotav1.QuotaConfig, error) {
	if request.GetRole() == "" {
		return nil, errors.New("QuotaInfo must specify a role")
	}
	if len(request.GetGuarantee()) == 0 {
		return nil, errors.New("QuotaInfo with empty 'guarantee'")
	}
	amounts := make(map[string]*mesosv1.Value_Scalar)
	for _, r := range request.GetGuarantee() {
		name := r.GetName()
		switch {
		case r.GetType() != mesosv1.Value_SCALAR || r.Scalar == nil:
			return nil, errors.New("QuotaInfo must not contain non-scalar resources")
		case r.Disk != nil:
			return nil, errors.New("QuotaInfo must not contain DiskInfo")
		case r.Revocable != nil:
			return nil, errors.New("QuotaInfo must not contain RevocableInfo")
		case r.Reservation != nil || len(r.GetReservations()) > 0 || r.Role != nil && r.GetRole() != "*":
			return nil, errors.New("QuotaInfo must not contain any ReservationInfo")
		case amounts[name] != nil:
			return nil, fmt.Errorf("QuotaInfo contains duplicate resource name '%s'", name)
		}
		amounts[name] = r.Scalar
	}
	return &quotav1.QuotaConfig{Role: request.Role, Guarantees: amounts, Limits: amounts}, nil
}

// removeQuota takes a role's quota away.
//
// Errors: 400 for a role that has none; 403.
func (m *Master) removeQuota(ctx context.Context, principal, role string) error {
	if err := resources.ValidateRole(role); err != nil {
		return badRequest("Failed to validate remove quota request: %v", err)
	}
	if err := m.approve(ctx, principal, "UPDATE_QUOTA", role); err != nil {
		return forbidden("%v", err)
	}
	s, wanted := m.s, map[string]*quotav1.QuotaConfig{role: {Role: &role}}
	return m.decidePersisted(ctx, func(time.Time) ([]change, func(time.Time), error) {
		if s.quotas[role] == nil {
			return nil, nil, badRequest("Failed to remove quota: Role '%s' has no quota set", role)
		}
		return quotaChanges(wanted), func(now time.Time) { s.setQuotas(wanted, now) }, nil
	})
}

func emptyQuota(q *quotav1.QuotaConfig) bool { return len(q.GetGuarantees())+len(q.GetLimits()) == 0 }

// checkCapacity says whether the cluster can keep the guarantees, as far as one can tell.
func (s *state) checkCapacity(wanted map[string]*quotav1.QuotaConfig) error {
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
		return fmt.Errorf("all guarantees together are %s, the cluster has %s (use 'force' to bypass this check)", guaranteed, capacity)
	}
	return nil
}

// checkLimits says whether roles are within limits that they are to have.
func (s *state) checkLimits(wanted map[string]*quotav1.QuotaConfig) error {
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
func counted(o *offer) resources.Quantities { return countedForQuota(o.resources) }

// countedForQuota is what counts beside reservations, which count whether they are used or not.
func countedForQuota(s resources.Set) resources.Quantities {
	return s.Unreserved().NonRevocable().NonShared().Scalars().Quantities()
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
	s.allocator.Resume()
	return false
}

// getQuota is the body of GET_QUOTA, in the new form and, for guarantees, in the old one: of the roles that the principal
// may see.
func (m *Master) getQuota(ctx context.Context, principal string, v *view) *masterv1.Response_GetQuota {
	status := &quotav1.QuotaStatus{}
	for _, role := range sortedKeys(v.quotas) {
		q := v.quotas[role]
		if m.approve(ctx, principal, "GET_QUOTA", role) != nil {
			continue
		}
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
