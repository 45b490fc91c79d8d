package master

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/mosaic-cluster/mosaic/core/allocator"
	"github.com/mosaic-cluster/mosaic/core/registry"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
)

// state is everything the master knows. Only the loop touches it.
type state struct {
	m       *Master
	cfg     *Config
	log     *slog.Logger
	info    *mesosv1.MasterInfo
	metrics *metrics
	views   *viewBuilder
	timers  timers

	allocator  *allocator.Allocator
	allocateAt time.Time // when the next allocation is due
	notBefore  time.Time // end of the pause after the last allocation
	countAt    time.Time // when filters are counted again

	frameworks    map[string]*framework // connected, or expected back
	completed     []*framework          // oldest first, at most MaxCompletedFrameworks
	completedIDs  map[string]bool       // ids of completed
	agents        map[string]*agent     // registered, connected or not
	byAddress     map[string]*agent     // the same, by addressOf
	recovered     map[string]*recoveredAgent
	unreachable   map[string]registry.Departure
	gone          map[string]time.Time
	offers        map[string]*offer
	inverses      map[string]*inverseOffer
	maintenance   *maintenance                // as it holds
	decided       *maintenance                // as it will when the registry has it
	unavailable   map[string]*agent           // those whose machine goes away
	nextInverse   time.Time                   // no inverse offers before
	operations    map[operationKey]*operation // those with an id
	weights       map[string]float64
	quotas        map[string]*quotav1.QuotaConfig // replaced, never changed
	pausedUntil   time.Time                       // no allocation before, unless enough agents are back
	expected      int                             // agents that a former master had
	draining      map[string]*agent               // those with tasks or operations to end
	subscribers   []*subscriber                   // oldest first
	nextFramework uint64
	nextAgent     uint64
	nextOffer     uint64
	nextOperation uint64
	pending       []step // for the registry, not yet handed over
	batches       chan<- []step
	registrarBusy bool
	fail          context.CancelCauseFunc // stops the master
	nextRemoval   time.Time               // no agent is given up before
	baseLevel     slog.Level              // of the log, unless an operator wants more for now
	levelReset    *timer
}

func newState(m *Master, info *mesosv1.MasterInfo, a *allocator.Allocator) *state {
	return &state{
		m:            m,
		cfg:          &m.cfg,
		log:          m.log,
		info:         info,
		metrics:      m.metrics,
		views:        newViewBuilder(&m.cfg, forOperators(info), m.metrics),
		allocator:    a,
		frameworks:   make(map[string]*framework),
		completedIDs: make(map[string]bool),
		agents:       make(map[string]*agent),
		byAddress:    make(map[string]*agent),
		recovered:    make(map[string]*recoveredAgent),
		unreachable:  make(map[string]registry.Departure),
		gone:         make(map[string]time.Time),
		offers:       make(map[string]*offer),
		inverses:     make(map[string]*inverseOffer),
		maintenance:  newMaintenance(nil, nil),
		decided:      newMaintenance(nil, nil),
		unavailable:  make(map[string]*agent),
		operations:   make(map[operationKey]*operation),
		weights:      make(map[string]float64),
		quotas:       make(map[string]*quotav1.QuotaConfig),
		draining:     make(map[string]*agent),
	}
}

// untilNext is how long the loop may sleep.
func (s *state) untilNext(now time.Time) time.Duration {
	next := s.allocateAt
	if t, ok := s.timers.next(); ok && t.Before(next) {
		next = t
	}
	return max(0, next.Sub(now))
}

// closeStreams ends all streams, when the loop has ended.
func (s *state) closeStreams() {
	for _, f := range s.frameworks {
		if f.stream != nil {
			f.stream.Close()
		}
	}
	for _, a := range s.agents {
		if a.conn != nil {
			a.conn.out.close()
		}
	}
	for _, sub := range s.subscribers {
		sub.close()
	}
}

func (s *state) newFrameworkID() string {
	id := fmt.Sprintf("%s-%04d", s.cfg.ID, s.nextFramework)
	s.nextFramework++
	return id
}

func (s *state) newAgentID() string {
	id := fmt.Sprintf("%s-S%d", s.cfg.ID, s.nextAgent)
	s.nextAgent++
	return id
}

func (s *state) newOfferID() string {
	id := fmt.Sprintf("%s-O%d", s.cfg.ID, s.nextOffer)
	s.nextOffer++
	return id
}

// message gives a message to an agent this master's term.
func (s *state) message(msg *clusterv1.ToAgent) *clusterv1.ToAgent {
	msg.Term = s.m.term.Load()
	return msg
}

// newUUID returns a random UUID in its text form; r may be nil.
func newUUID(r io.Reader) (string, error) {
	if r == nil {
		r = rand.Reader
	}
	id, err := uuid.NewRandomFromReader(r)
	if err != nil {
		return "", fmt.Errorf("make a uuid: %w", err)
	}
	return id.String(), nil
}

// seconds is a time as Mesos writes it: seconds since 1970.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// timeInfo is a time as a message; nil for the zero time.
func timeInfo(t time.Time) *mesosv1.TimeInfo {
	if t.IsZero() {
		return nil
	}
	return &mesosv1.TimeInfo{Nanoseconds: ptr(t.UnixNano())}
}
