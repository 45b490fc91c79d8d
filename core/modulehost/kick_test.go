package modulehost

import (
	"context"
	"testing"
	"time"
)

// A restart may be asked for between a module's coming up and the moment it is attended: that wish must not be taken for
// one that came for the life before.
func TestARestartAskedForAtTheFirstMomentIsNotLost(t *testing.T) {
	before, now := &life{lost: make(chan struct{})}, &life{lost: make(chan struct{})}
	for name, test := range map[string]struct {
		kicks []kick
		want  string
	}{
		"asked for":                     {[]kick{{life: now, reason: "asked for"}}, "asked for"},
		"twice":                         {[]kick{{life: now, reason: "asked for"}, {life: now, reason: "again"}}, "asked for"},
		"after one for the life before": {[]kick{{life: before, reason: "fulfilled"}, {life: now, reason: "asked for"}}, "asked for"},
		"for the life before":           {[]kick{{life: before, reason: "fulfilled"}}, "the host is closing"},
		"before there was any":          {[]kick{{reason: "fulfilled"}}, "the host is closing"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &module{kicks: make(chan kick, 1), recovers: make(chan chan<- error)}
			m.attends(now)
			for _, k := range test.kicks {
				m.kick(k)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if k := m.attend(ctx, now); k.reason != test.want {
				t.Errorf("the life ends because of %q, want %q", k.reason, test.want)
			}
		})
	}
}
