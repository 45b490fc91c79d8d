package master

import (
	"context"
	"log/slog"
	"time"

	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// verbosity is the logging level as Mesos counts it: 0 is the usual, and what is above it is more.
func (m *Master) verbosity() uint32 {
	if m.deps.LogLevel == nil || m.deps.LogLevel.Level() > slog.LevelDebug {
		return 0
	}
	return 1
}

// setVerbosity has the master say more for some time, and then what it said before.
//
// Errors: 400 for a duration that is none, 403, 501 where the log's level cannot be changed.
func (m *Master) setVerbosity(ctx context.Context, principal string, call *masterv1.Call_SetLoggingLevel) error {
	d := time.Duration(call.GetDuration().GetNanoseconds())
	if d < 0 {
		return badRequest("Invalid 'duration': want one that is not negative")
	}
	if err := m.approve(ctx, principal, "SET_LOG_LEVEL"); err != nil {
		return forbidden("%v", err)
	}
	if m.deps.LogLevel == nil {
		return notImplemented("The logging level of this master cannot be changed")
	}
	return m.do(ctx, func(now time.Time) {
		s := m.s
		level := s.baseLevel
		if call.GetLevel() > 0 {
			level = min(level, slog.LevelDebug)
		}
		m.deps.LogLevel.Set(level)
		s.timers.stop(s.levelReset)
		s.levelReset = s.timers.set(now.Add(d), func(time.Time) { m.deps.LogLevel.Set(s.baseLevel) })
	})
}
