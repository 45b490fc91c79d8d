package registry

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
)

// Every object is one key, KIND/ID with the id path-escaped. Its value is a byte that says
// how the rest is to be read, then a record of numbered fields in protobuf's wire form, so
// that fields can be added: an older master skips what it does not know.
const valueVersion = 1

// The kinds of objects.
const (
	kindMaster      = "master"
	kindAgent       = "agent"
	kindUnreachable = "unreachable"
	kindGone        = "gone"
	kindQuota       = "quota"
	kindWeight      = "weight"
	kindSchedule    = "schedule"
	kindMachine     = "machine"
)

// Fields of the records. Never renumber or reuse.
const (
	fieldMessage     = 1 // bytes: the object's message
	fieldDrain       = 2 // bytes: DrainInfo of an agent
	fieldDeactivated = 3 // varint: 1 if the agent is deactivated
	fieldSince       = 4 // fixed64: nanoseconds since 1970 of a departure
	fieldWeight      = 5 // fixed64: IEEE 754 bits of a weight
)

// A Change puts one object into the registry or takes it out. Make it with the functions of
// this file; the zero value is none, and Apply refuses it.
type Change struct {
	key   string
	value []byte // nil: take out
	err   error  // of encoding, reported by Apply
}

// String names what is changed, for logs.
func (c Change) String() string {
	if c.value == nil {
		return "remove " + c.key
	}
	return "put " + c.key
}

// PutMaster records who leads.
func PutMaster(info *mesosv1.MasterInfo) Change {
	return put(kindMaster, "", record{}.message(fieldMessage, info))
}

// PutAgent admits an agent, or changes what is known of it.
func PutAgent(id string, a Agent) Change {
	return put(kindAgent, id, record{}.agent(a))
}

// RemoveAgent forgets an admitted agent.
func RemoveAgent(id string) Change { return take(kindAgent, id) }

// PutUnreachable records that an agent was given up. The caller removes it from the admitted.
func PutUnreachable(id string, d Departure) Change {
	return put(kindUnreachable, id, record{}.departure(d))
}

// RemoveUnreachable forgets that an agent was unreachable.
func RemoveUnreachable(id string) Change { return take(kindUnreachable, id) }

// PutGone records that an agent never may come back.
func PutGone(id string, d Departure) Change { return put(kindGone, id, record{}.departure(d)) }

// RemoveGone forgets an agent that is gone.
func RemoveGone(id string) Change { return take(kindGone, id) }

// PutQuota sets the quota of the role that the message names.
func PutQuota(q *quotav1.QuotaConfig) Change {
	return put(kindQuota, q.GetRole(), record{}.message(fieldMessage, q))
}

// RemoveQuota removes a role's quota.
func RemoveQuota(role string) Change { return take(kindQuota, role) }

// PutWeight sets a role's weight.
func PutWeight(role string, weight float64) Change {
	return put(kindWeight, role, record{}.fixed(fieldWeight, math.Float64bits(weight)))
}

// RemoveWeight puts a role back to the default weight.
func RemoveWeight(role string) Change { return take(kindWeight, role) }

// PutSchedule replaces the maintenance schedule.
func PutSchedule(s *maintenancev1.Schedule) Change {
	return put(kindSchedule, "", record{}.message(fieldMessage, s))
}

// PutMachine records the mode of a machine.
func PutMachine(m *mesosv1.MachineInfo) Change {
	return put(kindMachine, machineKey(m.GetId()), record{}.message(fieldMessage, m))
}

// RemoveMachine forgets a machine, which is up again.
func RemoveMachine(id *mesosv1.MachineID) Change { return take(kindMachine, machineKey(id)) }

func machineKey(id *mesosv1.MachineID) string {
	return strings.ToLower(id.GetHostname()) + "|" + id.GetIp()
}

func put(kind, id string, r record) Change {
	return Change{key: kind + "/" + url.PathEscape(id), value: append([]byte{valueVersion}, r.bytes...), err: r.err}
}

func take(kind, id string) Change { return Change{key: kind + "/" + url.PathEscape(id)} }

// merge checks changes and leaves the last one of each object.
func merge(changes []Change) ([]Change, error) {
	at := make(map[string]int, len(changes))
	out := make([]Change, 0, len(changes))
	for _, c := range changes {
		switch {
		case c.err != nil:
			return nil, fmt.Errorf("registry: %s: %w", c, c.err)
		case c.key == "":
			return nil, errors.New("registry: an empty change")
		}
		if i, seen := at[c.key]; seen {
			out[i] = c
			continue
		}
		at[c.key] = len(out)
		out = append(out, c)
	}
	return out, nil
}

// record is a value being made.
type record struct {
	bytes []byte
	err   error
}

type message interface{ MarshalVT() ([]byte, error) }

func (r record) message(field protowire.Number, m message) record {
	b, err := m.MarshalVT()
	if err != nil && r.err == nil {
		r.err = err
	}
	r.bytes = protowire.AppendBytes(protowire.AppendTag(r.bytes, field, protowire.BytesType), b)
	return r
}

func (r record) fixed(field protowire.Number, v uint64) record {
	r.bytes = protowire.AppendFixed64(protowire.AppendTag(r.bytes, field, protowire.Fixed64Type), v)
	return r
}

func (r record) agent(a Agent) record {
	if a.Info != nil {
		r = r.message(fieldMessage, a.Info)
	}
	if a.Drain != nil {
		r = r.message(fieldDrain, a.Drain)
	}
	if a.Deactivated {
		r.bytes = protowire.AppendVarint(protowire.AppendTag(r.bytes, fieldDeactivated, protowire.VarintType), 1)
	}
	return r
}

func (r record) departure(d Departure) record {
	return r.agent(d.Agent).fixed(fieldSince, uint64(d.Since.UnixNano()))
}

// fields are a value that was read: the last of each field.
type fields struct {
	bytes   map[protowire.Number][]byte
	numbers map[protowire.Number]uint64
}

func parseFields(value []byte) (fields, error) {
	f := fields{map[protowire.Number][]byte{}, map[protowire.Number]uint64{}}
	if len(value) == 0 {
		return f, errors.New("no value")
	}
	if value[0] != valueVersion {
		return f, fmt.Errorf("value has version %d, this master reads %d: it was written by a newer one", value[0], valueVersion)
	}
	for b := value[1:]; len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return f, protowire.ParseError(n)
		}
		b = b[n:]
		switch kind {
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return f, protowire.ParseError(n)
			}
			f.bytes[number], b = v, b[n:]
		case protowire.Fixed64Type:
			v, n := protowire.ConsumeFixed64(b)
			if n < 0 {
				return f, protowire.ParseError(n)
			}
			f.numbers[number], b = v, b[n:]
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return f, protowire.ParseError(n)
			}
			f.numbers[number], b = v, b[n:]
		default:
			n := protowire.ConsumeFieldValue(number, kind, b)
			if n < 0 {
				return f, protowire.ParseError(n)
			}
			b = b[n:]
		}
	}
	return f, nil
}

func (f fields) message(field protowire.Number, m interface{ UnmarshalVT([]byte) error }) error {
	b, has := f.bytes[field]
	if !has {
		return fmt.Errorf("field %d is missing", field)
	}
	return m.UnmarshalVT(b)
}

func (f fields) agent() (a Agent, err error) {
	if _, has := f.bytes[fieldMessage]; has {
		a.Info = &mesosv1.AgentInfo{}
		if err := f.message(fieldMessage, a.Info); err != nil {
			return a, err
		}
	}
	if _, has := f.bytes[fieldDrain]; has {
		a.Drain = &mesosv1.DrainInfo{}
		if err := f.message(fieldDrain, a.Drain); err != nil {
			return a, err
		}
	}
	a.Deactivated = f.numbers[fieldDeactivated] != 0
	return a, nil
}

func (f fields) departure() (Departure, error) {
	a, err := f.agent()
	return Departure{Since: time.Unix(0, int64(f.numbers[fieldSince])).UTC(), Agent: a}, err
}

// load puts one key into the snapshot. Kinds that are not known are left out: they belong to
// a newer master, which finds them where they are.
func (s *Snapshot) load(key string, value []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("registry: key %s: %w", key, err)
		}
	}()
	kind, escaped, _ := strings.Cut(key, "/")
	id, err := url.PathUnescape(escaped)
	if err != nil {
		return err
	}
	known := []string{kindMaster, kindAgent, kindUnreachable, kindGone, kindQuota, kindWeight, kindSchedule, kindMachine}
	if !slices.Contains(known, kind) {
		return nil
	}
	f, err := parseFields(value)
	if err != nil {
		return err
	}
	switch kind {
	case kindMaster:
		s.Master = &mesosv1.MasterInfo{}
		return f.message(fieldMessage, s.Master)
	case kindAgent:
		s.Agents[id], err = f.agent()
		if err == nil && s.Agents[id].Info == nil {
			err = errors.New("no agent info")
		}
	case kindUnreachable:
		s.Unreachable[id], err = f.departure()
	case kindGone:
		s.Gone[id], err = f.departure()
	case kindQuota:
		s.Quotas[id] = &quotav1.QuotaConfig{}
		return f.message(fieldMessage, s.Quotas[id])
	case kindWeight:
		s.Weights[id] = math.Float64frombits(f.numbers[fieldWeight])
	case kindSchedule:
		s.Schedule = &maintenancev1.Schedule{}
		return f.message(fieldMessage, s.Schedule)
	case kindMachine:
		m := &mesosv1.MachineInfo{}
		err = f.message(fieldMessage, m)
		s.Machines = append(s.Machines, m)
	}
	return err
}
