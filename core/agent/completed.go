package agent

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// What is over and still shown: tasks whose end is acknowledged, by the executor they ran in, by framework. It is on disk
// so that a restart of the agent does not lose it, and bounded so that it does not matter there: a record that cannot be
// read is left out.
//
//	past frameworks  FID -> 1 FrameworkInfo, 2 number; only of those that have nothing here any more
//	past executors   FID 0 CID -> 1 ExecutorInfo, 2 folder, 3 number
//	past tasks       FID 0 CID 0 sequence (8 bytes) -> Task
//
// Numbers rise in the order in which things came to be over.
var (
	bucketPastFrameworks = []byte("past frameworks")
	bucketPastExecutors  = []byte("past executors")
	bucketPastTasks      = []byte("past tasks")
)

// How much of the past the views show; Mesos's defaults, but for tasks, which it bounds per executor.
const (
	maxCompletedFrameworks = 50
	maxCompletedExecutors  = 150
	maxCompletedTasks      = 200
)

type completedFramework struct {
	info      *mesosv1.FrameworkInfo
	executors []completedExecutor
}

// completedExecutor is the past of one executor: for executors with tasks one per container.
type completedExecutor struct {
	info      *mesosv1.ExecutorInfo
	container ContainerID
	directory string
	tasks     []*mesosv1.Task
	first     uint64 // sequence of the first of tasks
}

func pastKey(f FrameworkID, id ContainerID) []byte { return recordKey(string(f), string(id)) }

func pastTaskKey(f FrameworkID, id ContainerID, sequence uint64) []byte {
	return binary.BigEndian.AppendUint64(append(pastKey(f, id), 0), sequence)
}

// remember keeps a task that is done, for the views.
func (a *Agent) remember(c *change, t *task) {
	if a.cfg.MaxCompletedExecutors == 0 {
		return
	}
	f, e := t.framework, t.owner()
	i := slices.IndexFunc(f.completed, func(x completedExecutor) bool { return x.container == e.container })
	if i < 0 {
		x := completedExecutor{info: e.describe(), container: e.container, directory: e.directory}
		f.completed = append(f.completed, x)
		a.pastNumber++
		if info, err := x.info.MarshalVT(); err == nil { // else it is not shown after a restart
			value := appendUint(appendText(appendData(nil, 1, info), 2, x.directory), 3, a.pastNumber)
			c.put(bucketPastExecutors, pastKey(f.id, x.container), value)
		}
		for len(f.completed) > a.cfg.MaxCompletedExecutors {
			f.completed[0].drop(c, f.id)
			f.completed = slices.Delete(f.completed, 0, 1)
		}
		i = len(f.completed) - 1
	}
	x := &f.completed[i]
	done := t.describe()
	if data, err := done.MarshalVT(); err == nil {
		c.put(bucketPastTasks, pastTaskKey(f.id, x.container, x.first+uint64(len(x.tasks))), data)
	}
	x.tasks = append(x.tasks, done)
	for len(x.tasks) > maxCompletedTasks {
		c.delete(bucketPastTasks, pastTaskKey(f.id, x.container, x.first))
		x.tasks = slices.Delete(x.tasks, 0, 1)
		x.first++
	}
}

// drop takes an executor's past off the disk.
func (x *completedExecutor) drop(c *change, f FrameworkID) {
	c.delete(bucketPastExecutors, pastKey(f, x.container))
	for i := range x.tasks {
		c.delete(bucketPastTasks, pastTaskKey(f, x.container, x.first+uint64(i)))
	}
}

// complete keeps a framework that has nothing here any more.
func (a *Agent) complete(c *change, f *framework) {
	a.pastNumber++
	if info, err := f.info.MarshalVT(); err == nil {
		c.put(bucketPastFrameworks, recordKey(string(f.id)), appendUint(appendData(nil, 1, info), 2, a.pastNumber))
	}
	a.completed = append(a.completed, &completedFramework{f.info, f.completed})
	for len(a.completed) > maxCompletedFrameworks {
		oldest := a.completed[0]
		a.completed = slices.Delete(a.completed, 0, 1)
		id := FrameworkID(oldest.info.GetId().GetValue())
		c.delete(bucketPastFrameworks, recordKey(string(id)))
		for i := range oldest.executors {
			oldest.executors[i].drop(c, id)
		}
	}
}

// resume gives a framework that comes back its past.
func (a *Agent) resume(c *change, f *framework) {
	i := slices.IndexFunc(a.completed, func(x *completedFramework) bool { return x.info.GetId().GetValue() == string(f.id) })
	if i < 0 {
		return
	}
	f.completed = a.completed[i].executors
	a.completed = slices.Delete(a.completed, i, i+1)
	c.delete(bucketPastFrameworks, recordKey(string(f.id)))
}

// loadPast reads what is over. What belongs to nothing, or cannot be read, is taken off the disk.
func (a *Agent) loadPast(c *change) error {
	type numbered struct {
		framework FrameworkID
		number    uint64
		executor  completedExecutor
	}
	junk := func(bucket, key []byte, err error) {
		a.log.Warn("left out what is past", "record", string(bucket), "key", string(key), "error", err)
		c.delete(bucket, bytes.Clone(key))
	}
	var frameworks []struct {
		number uint64
		past   *completedFramework
	}
	err := a.store.each(bucketPastFrameworks, func(key, value []byte) error {
		x := &completedFramework{info: new(mesosv1.FrameworkInfo)}
		var number uint64
		err := fields(value, func(num protowire.Number, v uint64, data []byte) error {
			switch num {
			case 1:
				return x.info.UnmarshalVT(data)
			case 2:
				number = v
			}
			return nil
		})
		if err == nil && (x.info.GetId().GetValue() != string(key) || a.frameworks[FrameworkID(key)] != nil) {
			err = errRecord
		}
		if err != nil {
			junk(bucketPastFrameworks, key, err)
			return nil
		}
		frameworks = append(frameworks, struct {
			number uint64
			past   *completedFramework
		}{number, x})
		return nil
	})
	if err != nil {
		return err
	}
	tasks := make(map[string]*completedExecutor) // by framework and container
	err = a.store.each(bucketPastTasks, func(key, value []byte) error {
		done := new(mesosv1.Task)
		err := errRecord
		if len(key) >= 9 {
			err = done.UnmarshalVT(value)
		}
		if err != nil {
			junk(bucketPastTasks, key, err)
			return nil
		}
		owner, sequence := string(key[:len(key)-9]), binary.BigEndian.Uint64(key[len(key)-8:])
		x := tasks[owner]
		if x == nil {
			x = &completedExecutor{first: sequence}
			tasks[owner] = x
		}
		if sequence != x.first+uint64(len(x.tasks)) {
			junk(bucketPastTasks, key, fmt.Errorf("number %d does not follow", sequence))
			return nil
		}
		x.tasks = append(x.tasks, done)
		return nil
	})
	if err != nil {
		return err
	}
	var executors []numbered
	err = a.store.each(bucketPastExecutors, func(key, value []byte) error {
		var n numbered
		n.executor.info = new(mesosv1.ExecutorInfo)
		ids, err := splitKey(key, 2)
		if err == nil {
			n.framework, n.executor.container = FrameworkID(ids[0]), ContainerID(ids[1])
			err = fields(value, func(num protowire.Number, v uint64, data []byte) error {
				switch num {
				case 1:
					return n.executor.info.UnmarshalVT(data)
				case 2:
					n.executor.directory = string(data)
				case 3:
					n.number = v
				}
				return nil
			})
		}
		if err != nil {
			junk(bucketPastExecutors, key, err)
			return nil
		}
		if x := tasks[string(key)]; x != nil {
			n.executor.tasks, n.executor.first = x.tasks, x.first
			delete(tasks, string(key))
		}
		executors = append(executors, n)
		return nil
	})
	if err != nil {
		return err
	}
	for owner, x := range tasks {
		for i := range x.tasks {
			key := binary.BigEndian.AppendUint64(append([]byte(owner), 0), x.first+uint64(i))
			junk(bucketPastTasks, key, errRecord)
		}
	}

	slices.SortFunc(executors, func(x, y numbered) int { return cmp.Compare(x.number, y.number) })
	past := make(map[FrameworkID]*completedFramework)
	for _, x := range frameworks {
		a.pastNumber = max(a.pastNumber, x.number)
		past[FrameworkID(x.past.info.GetId().GetValue())] = x.past
	}
	for _, n := range executors {
		a.pastNumber = max(a.pastNumber, n.number)
		if f := a.frameworks[n.framework]; f != nil {
			f.completed = append(f.completed, n.executor)
		} else if x := past[n.framework]; x != nil {
			x.executors = append(x.executors, n.executor)
		} else {
			n.executor.drop(c, n.framework)
		}
	}
	slices.SortFunc(frameworks, func(x, y struct {
		number uint64
		past   *completedFramework
	}) int {
		return cmp.Compare(x.number, y.number)
	})
	for _, x := range frameworks {
		a.completed = append(a.completed, x.past)
	}
	return nil
}
