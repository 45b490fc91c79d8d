package allocator

import (
	"slices"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// Dominant resource fairness puts first who has least, and who never uses anything has least for
// ever. Two rules keep such a framework from standing in the way of the others.
//
// Who lets offers expire without a word is offered nothing for a while, longer each time; then
// one agent at a time, until it answers.
//
// Who keeps what it is offered and then refuses all of it, time after time, goes behind the others
// for a while. It is still offered what they leave, and nothing that it said about refusals is
// changed. Who refuses at once keeps its place: that costs the others nothing, and one that waits
// for an agent with more room than usual would never come to it from behind.
const (
	// maxDoublings bounds the time for which a silent framework is left alone: 16 leases, a
	// quarter of an hour with the usual one.
	maxDoublings = 4
	// slow is how long a framework may think about an offer. What is refused sooner is with the next
	// one before anybody notices.
	slow = time.Second
	// patience is how many times in a row a framework may refuse all it is offered and keep its
	// place: a framework with much to do meets some agents that do not suit it.
	patience = 4
	// minYield and maxYield bound for how long it goes behind the others. The first is several
	// round trips to a framework; the last is what a framework that has changed its mind may have
	// to wait for its turn, if it does not say so by REVIVE.
	minYield, maxYield = time.Second, 16 * time.Second
)

// ExpireOffer takes back an offer that was made one lease ago and got no answer. If the framework
// answered others since, it has refused this one, for one more lease. If it said nothing at all,
// it is offered nothing for one lease, then two, four, up to sixteen, and in between one agent at
// a time. Answered, Revive and AddFramework end that.
func (a *Allocator) ExpireOffer(frameworkID, agentID string, s resources.Set, now time.Time, lease time.Duration) {
	fw := a.frameworks[frameworkID]
	if fw == nil {
		return
	}
	if !fw.known { // gone, or not back yet: nobody who could answer
		a.recover(fw, a.agents[agentID], s, time.Time{})
		a.forget(fw)
		return
	}
	lease = max(lease, a.options.MinFilter)
	made := now.Add(-lease)
	if !fw.answered.Before(made) && !fw.answered.IsZero() {
		a.recover(fw, a.agents[agentID], s, now.Add(lease))
		a.forget(fw)
		return
	}
	// Offers that were out already when others expired are part of the same silence.
	if fw.silent == 0 || !made.Before(fw.silentSince) {
		fw.silent++
		fw.silentSince = now
		fw.until = now.Add(lease << min(fw.silent-1, maxDoublings))
		if !slices.Contains(a.aside, fw) {
			a.aside = append(a.aside, fw)
		}
		for _, c := range fw.clients {
			a.relist(c)
		}
	}
	a.recover(fw, a.agents[agentID], s, time.Time{})
	a.forget(fw)
}

// Answered notes that a framework has answered an offer, in whatever way. RecoverResources with
// filters, which is how a refusal and the rest of an accepted offer come back, says so too.
func (a *Allocator) Answered(frameworkID string, now time.Time) {
	if fw := a.frameworks[frameworkID]; fw != nil {
		a.answered(fw, now)
	}
}

func (a *Allocator) answered(fw *framework, now time.Time) {
	fw.answered = now
	a.pardon(fw)
}

// pardon forgets a framework's silence.
func (a *Allocator) pardon(fw *framework) {
	if fw.silent == 0 {
		return
	}
	fw.silent, fw.trial, fw.until = 0, nil, time.Time{}
	a.aside = slices.DeleteFunc(a.aside, func(x *framework) bool { return x == fw })
	for _, c := range fw.clients {
		a.relist(c)
	}
}

// endTrial notes that the one offer of a framework that was silent is out no longer.
func (a *Allocator) endTrial(fw *framework, ag *agent) {
	if fw.trial != ag {
		return
	}
	fw.trial = nil
	for _, c := range fw.clients {
		a.relist(c)
	}
}

// readmit puts frameworks that were left alone back in line when their time has come.
func (a *Allocator) readmit(now time.Time) {
	a.aside = slices.DeleteFunc(a.aside, func(fw *framework) bool {
		if fw.until.After(now) {
			return false
		}
		fw.until = time.Time{}
		for _, c := range fw.clients {
			a.relist(c)
		}
		return true
	})
	a.yielders = slices.DeleteFunc(a.yielders, func(c *client) bool {
		if c.yieldUntil.After(now) {
			return false
		}
		a.yield(c, false)
		return true
	})
}

// refusedAll notes that a client has refused all of an offer. Offers of one cycle count once.
func (a *Allocator) refusedAll(c *client, now time.Time) {
	if a.options.KeepPlace || c.refusedCycle == a.cycle || now.Sub(c.offered) < slow {
		return
	}
	c.refusedCycle = a.cycle
	if c.refusals++; c.refusals < patience {
		return
	}
	c.yieldUntil = now.Add(min(minYield<<min(c.refusals-patience, 8), maxYield))
	if !c.yields {
		a.yield(c, true)
		a.yielders = append(a.yielders, c)
	}
}

// tookSome notes that a client uses something: it has its place again.
func (a *Allocator) tookSome(c *client) {
	c.refusals = 0
	if c.yields {
		a.yield(c, false)
		a.yielders = slices.DeleteFunc(a.yielders, func(x *client) bool { return x == c })
	}
}

// judge notes what an answer says about a client: with filters, once what it did not want is back.
func (a *Allocator) judge(fw *framework, ag *agent, s resources.Set, now time.Time) {
	for i := range fw.clients {
		c := fw.clients[i]
		switch has := hasRole(ag.allocs[fw], c.role.name); {
		case has:
			a.tookSome(c)
		case hasRole(s, c.role.name):
			a.refusedAll(c, now)
		}
	}
}

// Pause stops offers until a time, or until Resume: a new master does not know yet what is in use
// on agents that have not come back, and what seems free may be what guarantees need. What
// changes meanwhile is remembered.
func (a *Allocator) Pause(until time.Time) { a.paused = until }

// Resume ends Pause.
func (a *Allocator) Resume() { a.paused = time.Time{} }

// pausedAt says whether offers are stopped.
func (a *Allocator) pausedAt(now time.Time) bool { return now.Before(a.paused) }
