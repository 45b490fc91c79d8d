// Package registry keeps what must survive a master: which agents were admitted, which are
// unreachable or gone for good, quotas, weights, maintenance and draining.
//
// It is kept in etcd, embedded in the master or the operator's own, one key per object. What
// Apply has acknowledged is on the disks of a majority. Changes that belong together are
// applied together or not at all, and only while the one who asks leads: every transaction
// is fenced by the term of its leadership. Reads never need leadership.
//
// Frameworks, tasks, offers and filters are not here: agents and frameworks bring them when
// they register with a new master. What the objects mean, and what must be written before
// which effect, is the master's business.
package registry

import (
	"context"
	"errors"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
)

// A Store keeps the registry. Etcd and Memory are stores. They are safe for use by several
// goroutines.
type Store interface {
	// Load returns everything, as of one moment.
	Load(ctx context.Context) (*Snapshot, error)

	// Apply makes all changes or none, and returns when they will survive. Later changes of an
	// object in the same call win over earlier ones.
	//
	// Errors: ErrNotLeader if leadership was lost or never won: nothing was changed, and the
	// caller stops leading. ErrTooLarge: nothing was changed. Any other error, and that of a
	// context that ended, leaves open whether the changes were made; the caller stops leading,
	// or reads before it goes on.
	Apply(ctx context.Context, changes []Change) error

	// Campaign waits until this master leads and returns its leadership. id names the master
	// across its restarts; addr, HOST:PORT, is where others find it.
	Campaign(ctx context.Context, id, addr string) (Leadership, error)

	// Leader returns the address of the leading master, if there is one and it can be found out.
	Leader(ctx context.Context) (addr string, ok bool)

	// Size is how many bytes the objects take that the last Load found and Apply has changed since. It asks nobody.
	Size() int64

	// Close gives up leadership and ends the store. What was acknowledged stays.
	Close() error
}

// A Leadership is the time in which one master leads.
type Leadership struct {
	// Term is larger than that of every leadership before: a command with a smaller term comes
	// from a master that no longer leads.
	Term uint64
	// Lost is closed when the leadership has ended.
	Lost <-chan struct{}
}

// ErrNotLeader is returned by Apply if the store does not hold the leadership. The master
// stops leading; there is no way back but a new Campaign.
var ErrNotLeader = errors.New("registry: this master does not lead")

// ErrClosed is returned by calls on a store after Close.
var ErrClosed = errors.New("registry: closed")

// ErrTooLarge is returned by Apply for an object that is too large to be stored: 1 MiB in an
// operator's etcd, 16 MiB in ours. There is no bound on the number of changes.
var ErrTooLarge = errors.New("registry: object too large")

// A Snapshot is everything in the registry. It is the caller's.
type Snapshot struct {
	// Master is the master that wrote last what it is; nil in a new cluster.
	Master *mesosv1.MasterInfo
	// Agents are the admitted agents that are neither unreachable nor gone, by agent id.
	Agents map[string]Agent
	// Unreachable are the agents given up for now, by agent id.
	Unreachable map[string]Departure
	// Gone are the agents that never may come back, by agent id.
	Gone map[string]Departure
	// Quotas are by role.
	Quotas map[string]*quotav1.QuotaConfig
	// Weights are by role.
	Weights map[string]float64
	// Schedule is the maintenance schedule; nil if there is none.
	Schedule *maintenancev1.Schedule
	// Machines are those that are in maintenance or wait for it, in the order of their keys.
	Machines []*mesosv1.MachineInfo
}

// Agent is an admitted agent.
type Agent struct {
	Info *mesosv1.AgentInfo
	// Drain is set while the agent is drained and until it is reactivated.
	Drain *mesosv1.DrainInfo
	// Deactivated agents are not offered.
	Deactivated bool
}

// Departure is an agent that is not there.
type Departure struct {
	Since time.Time // to the nanosecond
	// Agent is what was known of it; it may come back as that. Info may be nil.
	Agent Agent
}

func newSnapshot() *Snapshot {
	return &Snapshot{
		Agents:      make(map[string]Agent),
		Unreachable: make(map[string]Departure),
		Gone:        make(map[string]Departure),
		Quotas:      make(map[string]*quotav1.QuotaConfig),
		Weights:     make(map[string]float64),
	}
}
