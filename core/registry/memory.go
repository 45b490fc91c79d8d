package registry

import (
	"context"
	"sync"
)

// Memory is a store that survives nothing: everyone's fake in tests. It keeps the encoded
// values that Etcd would keep and is as strict as Etcd, but that it already leads when it is
// made, in term 1, so that tests that do not care need no Campaign.
type Memory struct {
	mu     sync.Mutex // guards all below
	values map[string][]byte
	term   uint64
	addr   string
	lost   chan struct{} // closed when the current leadership ends
	fail   error
	closed bool
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{values: make(map[string][]byte), term: 1, lost: make(chan struct{})}
}

// Fail makes every Apply return err, and change nothing, until it is called with nil.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// Depose ends the current leadership, as if another master had won: Apply returns
// ErrNotLeader until the next Campaign.
func (m *Memory) Depose() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.depose()
}

func (m *Memory) depose() {
	if m.lost != nil {
		close(m.lost)
		m.lost, m.addr = nil, ""
	}
}

// Load implements Store.
func (m *Memory) Load(ctx context.Context) (*Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return readSnapshot(m.values)
}

// Apply implements Store.
func (m *Memory) Apply(ctx context.Context, changes []Change) error {
	changes, err := merge(changes)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case m.lost == nil:
		return ErrNotLeader
	case m.fail != nil:
		return m.fail
	}
	for _, c := range changes {
		if c.value == nil {
			delete(m.values, c.key)
		} else {
			m.values[c.key] = c.value
		}
	}
	return nil
}

// Campaign implements Store. It wins at once; whoever led before has lost.
func (m *Memory) Campaign(ctx context.Context, id, addr string) (Leadership, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Leadership{}, ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return Leadership{}, err
	}
	m.depose()
	m.term++
	m.addr, m.lost = addr, make(chan struct{})
	return Leadership{Term: m.term, Lost: m.lost}, nil
}

// Size implements Store.
func (m *Memory) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var s sizes
	s.reset(m.values)
	return s.total
}

// Leader implements Store.
func (m *Memory) Leader(context.Context) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.addr, m.addr != ""
}

// Close implements Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.depose()
	m.closed = true
	return nil
}
