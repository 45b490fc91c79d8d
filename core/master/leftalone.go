package master

import (
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// A framework may be made for tasks that outlive its scheduler, which does not mean to come back: it says so by a label,
// and while it is away the master ends it as soon as all of its tasks have ended. Without that it would be awaited for
// all of its failover timeout, and its tasks' last updates be repeated to nobody.

// endsLabel is that label.
const (
	endsLabel    = "mosaic.ends"
	endsWithLast = "with_its_tasks"
)

func endsWithItsTasks(info *mesosv1.FrameworkInfo) bool {
	for _, l := range info.GetLabels().GetLabels() {
		if l.GetKey() == endsLabel && l.GetValue() == endsWithLast {
			return true
		}
	}
	return false
}

// endLeftAlone removes a framework that is away and wants to end with its tasks, once it had some and none is left.
func (s *state) endLeftAlone(f *framework, now time.Time) {
	if f.stream != nil || s.frameworks[f.id] != f || !endsWithItsTasks(f.info) || len(f.tasks)+f.completedTasks.count == 0 {
		return
	}
	for _, t := range f.tasks {
		if !terminal(t.state()) {
			return
		}
	}
	if f.unreachableTasks.count > 0 {
		return // they may be back
	}
	s.log.Info("framework ends with its tasks", "framework", f.id)
	s.removeFramework(f, now)
}
