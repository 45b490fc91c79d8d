package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Records of the checkpoint file. Those that are not messages of Mesos alone are protobuf fields written by
// hand: unknown fields are skipped, so that an older agent can read what a newer one wrote.
//
//	agent       "info" AgentInfo, "boot" boot id, "term" highest term seen (8 bytes), "drain" DrainConfig,
//	            "resources" what operations made of the configured resources (operation.go)
//	operations  uuid -> Operation, until the master has acknowledged its end
//	frameworks  FID -> FrameworkInfo
//	executors   FID 0 EID -> executorRecord (custom executors and those of task groups)
//	tasks       FID 0 TID -> TaskInfo (written once)
//	progress    FID 0 TID -> progress (small, rewritten)
//	updates     FID 0 TID 0 sequence (8 bytes) -> updateRecord
var (
	keyInfo  = []byte("info")
	keyBoot  = []byte("boot")
	keyTerm  = []byte("term")
	keyDrain = []byte("drain")
)

// recordKey joins ids; none of them can contain a zero byte (checkID).
func recordKey(ids ...string) []byte {
	var b []byte
	for i, id := range ids {
		if i > 0 {
			b = append(b, 0)
		}
		b = append(b, id...)
	}
	return b
}

func splitKey(key []byte, n int) ([]string, error) {
	parts := bytes.SplitN(key, []byte{0}, n)
	if len(parts) != n {
		return nil, fmt.Errorf("key %q has %d parts, want %d", key, len(parts), n)
	}
	ids := make([]string, n)
	for i, p := range parts {
		ids[i] = string(p)
	}
	return ids, nil
}

func updateKey(f FrameworkID, t TaskID, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append(recordKey(string(f), string(t)), 0), seq)
}

// progress is how far a task has come.
type progress struct {
	container  ContainerID
	generation uint64
	started    time.Time // TASK_STARTING was made; zero before
	kill       time.Time // a kill was begun; zero otherwise
	grace      time.Duration
	expired    bool       // killed by max_completion_time
	draining   bool       // killed by a drain
	order      uint64     // of arrival
	checking   time.Time  // its checks began to count; zero before, and without any
	failures   uint64     // of its health check, in a row
	passed     bool       // its health check did once
	unhealthy  bool       // killed by its health check
	executor   ExecutorID // of a task that came in a group; "" for others, which name it themselves
	group      uint64     // tasks of one executor with the same number came together; 0: alone
}

func (p *progress) encode() []byte {
	b := appendText(nil, 1, string(p.container))
	b = appendUint(b, 2, p.generation)
	b = appendTime(b, 3, p.started)
	b = appendTime(b, 4, p.kill)
	b = appendUint(b, 5, uint64(p.grace))
	b = appendFlag(b, 6, p.expired)
	b = appendFlag(b, 7, p.draining)
	b = appendUint(b, 8, p.order)
	b = appendTime(b, 9, p.checking)
	if p.failures > 0 {
		b = appendUint(b, 10, p.failures)
	}
	b = appendFlag(b, 11, p.passed)
	b = appendFlag(b, 12, p.unhealthy)
	if p.executor != "" {
		b = appendText(b, 13, string(p.executor))
		b = appendUint(b, 14, p.group)
	}
	return b
}

func decodeProgress(b []byte) (progress, error) {
	var p progress
	err := fields(b, func(num protowire.Number, v uint64, data []byte) error {
		switch num {
		case 1:
			p.container = ContainerID(data)
		case 2:
			p.generation = v
		case 3:
			p.started = time.Unix(0, int64(v))
		case 4:
			p.kill = time.Unix(0, int64(v))
		case 5:
			p.grace = time.Duration(v)
		case 6:
			p.expired = v != 0
		case 7:
			p.draining = v != 0
		case 8:
			p.order = v
		case 9:
			p.checking = time.Unix(0, int64(v))
		case 10:
			p.failures = v
		case 11:
			p.passed = v != 0
		case 12:
			p.unhealthy = v != 0
		case 13:
			p.executor = ExecutorID(data)
		case 14:
			p.group = v
		}
		return nil
	})
	return p, err
}

// executorRecord is what is kept of an executor with tasks.
type executorRecord struct {
	info       *mesosv1.ExecutorInfo
	container  ContainerID
	generation uint64
	launched   bool // its container was started once
	shutdown   bool // told to shut down
}

func (r *executorRecord) encode() ([]byte, error) {
	info, err := r.info.MarshalVT()
	if err != nil {
		return nil, err
	}
	b := appendData(nil, 1, info)
	b = appendText(b, 2, string(r.container))
	b = appendUint(b, 3, r.generation)
	b = appendFlag(b, 4, r.launched)
	b = appendFlag(b, 5, r.shutdown)
	return b, nil
}

func decodeExecutor(b []byte) (executorRecord, error) {
	r := executorRecord{info: new(mesosv1.ExecutorInfo)}
	err := fields(b, func(num protowire.Number, v uint64, data []byte) error {
		switch num {
		case 1:
			return r.info.UnmarshalVT(data)
		case 2:
			r.container = ContainerID(data)
		case 3:
			r.generation = v
		case 4:
			r.launched = v != 0
		case 5:
			r.shutdown = v != 0
		}
		return nil
	})
	return r, err
}

// An update is kept until some later ones were acknowledged too: executors repeat updates, and the master
// asks for the last known status.
func encodeUpdate(s *mesosv1.TaskStatus, acknowledged bool) ([]byte, error) {
	data, err := s.MarshalVT()
	if err != nil {
		return nil, err
	}
	return appendFlag(appendData(nil, 1, data), 2, acknowledged), nil
}

func decodeUpdate(b []byte) (s *mesosv1.TaskStatus, acknowledged bool, err error) {
	s = new(mesosv1.TaskStatus)
	err = fields(b, func(num protowire.Number, v uint64, data []byte) error {
		switch num {
		case 1:
			return s.UnmarshalVT(data)
		case 2:
			acknowledged = v != 0
		}
		return nil
	})
	return s, acknowledged, err
}

func appendData(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func appendText(b []byte, num protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func appendUint(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendTime(b []byte, num protowire.Number, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	return appendUint(b, num, uint64(t.UnixNano()))
}

func appendFlag(b []byte, num protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendUint(b, num, 1)
}

var errRecord = errors.New("damaged record")

// fields calls fn for each varint and each length-delimited field of b, and skips the others.
func fields(b []byte, fn func(num protowire.Number, v uint64, data []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errRecord
		}
		b = b[n:]
		var v uint64
		var data []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		default:
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return errRecord
			}
			b = b[n:]
			continue
		}
		if n < 0 {
			return errRecord
		}
		b = b[n:]
		if err := fn(num, v, data); err != nil {
			return err
		}
	}
	return nil
}
