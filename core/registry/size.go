package registry

import "sync"

// sizes keeps how large the objects are. It starts with nothing, also for a store that has something: whoever leads
// loads first.
type sizes struct {
	mu    sync.Mutex     // guards all below
	bytes map[string]int // by key
	total int64
}

// reset starts again with what was loaded.
func (s *sizes) reset(values map[string][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes, s.total = make(map[string]int, len(values)), 0
	for key, value := range values {
		s.set(key, value)
	}
}

// apply follows changes that were made.
func (s *sizes) apply(changes []Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes == nil {
		s.bytes = map[string]int{}
	}
	for _, c := range changes {
		s.set(c.key, c.value)
	}
}

// set notes one object; nil is one that went. mu is held.
func (s *sizes) set(key string, value []byte) {
	s.total -= int64(s.bytes[key])
	if value == nil {
		delete(s.bytes, key)
		return
	}
	n := len(key) + len(value)
	s.bytes[key] = n
	s.total += int64(n)
}

func (s *sizes) sum() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}
