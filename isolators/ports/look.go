package ports

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// look looks at intervals until there is no container left.
func (i *Isolator) look() {
	for {
		timer := time.NewTimer(i.config.Get().Interval)
		due := false
		select {
		case <-timer.C:
			due = true
		case <-i.wake:
			timer.Stop()
		}
		if due {
			i.lookOnce()
		}
		i.mu.Lock()
		if len(i.containers) == 0 {
			i.looking = false
			i.mu.Unlock()
			return
		}
		i.mu.Unlock()
	}
}

// lookOnce compares what containers listen on with what they were given, and reports.
func (i *Isolator) lookOnce() {
	begin := time.Now()
	cfg := i.config.Get()
	i.mu.Lock()
	containers, offered := maps.Clone(i.containers), i.offered
	i.mu.Unlock()
	watched, err := cfg.watched(offered)
	var found map[string]resources.Ranges
	if err == nil {
		found, err = violations(watched, containers)
	}
	i.health(err)
	if err != nil {
		return
	}
	listeners := 0
	for id, ranges := range found {
		listeners += int(ranges.Count())
		message := message(ranges, allowed(containers)[containers[id].root])
		i.mu.Lock()
		_, lives := i.containers[id]
		news := i.said[id] != message
		if lives {
			i.said[id] = message
			if cfg.Enforce {
				i.totals.limited++
			}
		}
		i.mu.Unlock()
		switch {
		case !lives: // ended while we looked
		case cfg.Enforce:
			// Said each time for as long as it lasts: the agent may have been away.
			i.events.Limit(limitation(id, message, ranges))
		case news:
			i.log.Warn("a container listens on ports that it was not given", "container", id, "ports", text(ranges))
		}
	}
	i.mu.Lock()
	for id := range i.said {
		if _, still := found[id]; !still {
			delete(i.said, id)
		}
	}
	limited := i.totals.limited
	i.mu.Unlock()
	i.events.Metrics(
		&modulev1.Metrics_Sample{Name: "unallocated_listeners", Value: float64(listeners)},
		&modulev1.Metrics_Sample{Name: "containers_outside_allocation", Value: float64(len(found))},
		&modulev1.Metrics_Sample{Name: "limitations_total", Value: float64(limited), Counter: true},
		&modulev1.Metrics_Sample{Name: "look_seconds", Value: time.Since(begin).Seconds()},
	)
}

// health tells of a look that failed, and of the first one that works again.
func (i *Isolator) health(err error) {
	reason := ""
	if err != nil {
		reason = "listeners cannot be checked: " + err.Error()
	}
	i.mu.Lock()
	changed := i.blind != reason
	i.blind = reason
	i.mu.Unlock()
	switch {
	case !changed:
	case reason != "":
		i.events.Health(modulev1.Health_DEGRADED, reason)
	default:
		i.events.Health(modulev1.Health_OK, "")
	}
}

// allowed gives the ports of each root container: all that was given to it and to what is nested in it, since the
// framework shares them out among its tasks as it likes.
func allowed(containers map[string]tracked) map[string]resources.Ranges {
	all := map[string]resources.Ranges{}
	for _, c := range containers {
		all[c.root] = all[c.root].Union(c.ports)
	}
	return all
}

// violations gives those of the watched ports on which containers listen without having been given them, by container id.
func violations(watched resources.Ranges, containers map[string]tracked) (map[string]resources.Ranges, error) {
	sockets, err := listeners()
	if err != nil {
		return nil, err
	}
	for inode, port := range sockets {
		if !watched.Contains(single(port)) {
			delete(sockets, inode)
		}
	}
	found := map[string]resources.Ranges{}
	if len(sockets) == 0 {
		return found, nil
	}
	given := allowed(containers)
	for id, inodes := range owners(containers, sockets) {
		for _, inode := range inodes {
			if port := single(sockets[inode]); !given[containers[id].root].Contains(port) {
				found[id] = found[id].Union(port)
			}
		}
	}
	return found, nil
}

func single(port uint16) resources.Ranges {
	return resources.Ranges{{Begin: uint64(port), End: uint64(port)}}
}

// text writes ranges as Mesos does.
func text(rs resources.Ranges) string {
	parts := make([]string, 0, len(rs))
	for _, r := range rs {
		parts = append(parts, fmt.Sprintf("%d-%d", r.Begin, r.End))
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

func message(found, given resources.Ranges) string {
	return fmt.Sprintf("The container listens on ports that it was not given: %s; it has %s", text(found), text(given))
}

func limitation(id, message string, found resources.Ranges) *modulev1.Limitation {
	return &modulev1.Limitation{
		ContainerId: id, Reason: mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION.String(), Message: message,
		Resources: []*mesosv1.Resource{{
			Name: proto.String("ports"), Type: mesosv1.Value_RANGES.Enum(), Role: proto.String("*"), Ranges: slices.Clone(found).Value(),
		}},
	}
}
