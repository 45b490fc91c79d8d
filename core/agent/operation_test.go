package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mosaic-cluster/mosaic/sdk/resources"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	clusterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/cluster/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func reservedDisk(mib float64) *mesosv1.Resource {
	return &mesosv1.Resource{
		Name: new("disk"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &mib},
		Reservations: []*mesosv1.Resource_ReservationInfo{{
			Type: mesosv1.Resource_ReservationInfo_DYNAMIC.Enum(), Role: new("eng/dev")}},
		AllocationInfo: &mesosv1.Resource_AllocationInfo{Role: new("eng/dev")},
	}
}

func volume(id string, mib float64) *mesosv1.Resource {
	v := reservedDisk(mib)
	v.Disk = &mesosv1.Resource_DiskInfo{
		Persistence: &mesosv1.Resource_DiskInfo_Persistence{Id: &id},
		Volume:      &mesosv1.Volume{ContainerPath: new("data"), Mode: mesosv1.Volume_RW.Enum()},
	}
	return v
}

func reserveOp(rs ...*mesosv1.Resource) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_RESERVE.Enum(), Reserve: &mesosv1.Offer_Operation_Reserve{Resources: rs}}
}

func createOp(vs ...*mesosv1.Resource) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_CREATE.Enum(), Create: &mesosv1.Offer_Operation_Create{Volumes: vs}}
}

func destroyOp(vs ...*mesosv1.Resource) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_DESTROY.Enum(), Destroy: &mesosv1.Offer_Operation_Destroy{Volumes: vs}}
}

// operationUUID names the n-th operation of a test.
func operationUUID(n int) []byte { return []byte{0: 1, 6: 0x40, 8: 0x80, 15: byte(n)} }

// apply sends the n-th operation without waiting.
func (w *world) apply(n int, op *mesosv1.Offer_Operation) {
	w.t.Helper()
	op.Id = &mesosv1.OperationID{Value: new(fmt.Sprint("op-", n))}
	w.master.send(w.t, &clusterv1.ToAgent_ApplyOperation{ApplyOperation: &clusterv1.ApplyOperation{
		FrameworkId: "F", Operation: op, OperationUuid: operationUUID(n)}})
}

// outcomes are the statuses that the agent sent of the n-th operation.
func (w *world) outcomes(n int) []*mesosv1.OperationStatus {
	w.master.mu.Lock()
	defer w.master.mu.Unlock()
	var out []*mesosv1.OperationStatus
	for _, m := range w.master.received {
		if u := m.GetOperationUpdate(); u != nil && bytes.Equal(u.GetOperationUuid(), operationUUID(n)) {
			out = append(out, u.GetStatus())
		}
	}
	return out
}

// outcome is what became of the n-th operation.
func (w *world) outcome(n int) *mesosv1.OperationStatus {
	w.t.Helper()
	synctest.Wait()
	all := w.outcomes(n)
	if len(all) == 0 {
		w.t.Fatalf("no status of operation %d", n)
	}
	return all[len(all)-1]
}

// done applies the n-th operation, which must end well.
func (w *world) finish(n int, op *mesosv1.Offer_Operation) {
	w.t.Helper()
	w.apply(n, op)
	if s := w.outcome(n); s.GetState() != mesosv1.OperationState_OPERATION_FINISHED {
		w.t.Fatalf("operation %d = %v, want it finished", n, s)
	}
}

func (w *world) volumePath(id string) string {
	return filepath.Join(w.config.WorkDir, "volumes", "roles", "eng dev", id)
}

// lastTotal is what the agent said last that it has.
func (w *world) lastTotal() resources.Set {
	w.master.mu.Lock()
	defer w.master.mu.Unlock()
	total := w.master.hellos[len(w.master.hellos)-1].GetTotalResources()
	return resources.New(total...)
}

func bare(r *mesosv1.Resource) resources.Set { return resources.New(r).Unallocate() }

func TestOperationsAreRepeatedUntilAcknowledgedAndOutliveTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.finish(1, reserveOp(reservedDisk(100)))
		w.finish(2, createOp(volume("v", 40)))
		if s := w.outcome(2); len(s.GetUuid().GetValue()) != 16 || s.GetOperationId().GetValue() != "op-2" ||
			s.GetAgentId().GetValue() != "M-S0" || !resources.New(s.GetConvertedResources()...).Equal(bare(volume("v", 40))) {
			t.Errorf("status = %v, want id, uuid, agent and what was made", s)
		}
		if info, err := os.Stat(w.volumePath("v")); err != nil || !info.IsDir() {
			t.Fatalf("folder of the volume: %v", err)
		}
		time.Sleep(31 * time.Second) // after 10 and after 30 seconds
		synctest.Wait()
		if n := len(w.outcomes(2)); n != 3 {
			t.Errorf("status was sent %d times in 31 seconds, want 3", n)
		}
		w.apply(2, createOp(volume("v", 40))) // once however often it comes
		first := w.outcomes(2)[0]
		if s := w.outcome(2); !bytes.Equal(s.GetUuid().GetValue(), first.GetUuid().GetValue()) {
			t.Errorf("operation that came again = %v, want the status of the first time", s)
		}
		w.master.send(t, &clusterv1.ToAgent_AcknowledgeOperation{AcknowledgeOperation: &clusterv1.AcknowledgeOperation{
			OperationUuid: operationUUID(1), StatusUuid: w.outcome(1).GetUuid().GetValue()}})
		synctest.Wait()

		w.crash()
		w.start()
		h := w.master.hello()
		if len(h.GetOperations()) != 1 || !bytes.Equal(h.GetOperations()[0].GetUuid().GetValue(), operationUUID(2)) {
			t.Errorf("operations after a restart = %v, want the one that was not acknowledged", h.GetOperations())
		}
		if total := w.lastTotal(); !total.Contains(bare(volume("v", 40))) || !total.Contains(bare(reservedDisk(60))) || total.Scalar("disk") != 1000 {
			t.Errorf("total after a restart = %s, want volume and reservation", total)
		}
		answer, err := w.agent.OperatorCall(t.Context(), "", &agentv1.Call{Type: agentv1.Call_GET_OPERATIONS.Enum()})
		if err != nil || len(answer.GetGetOperations().GetOperations()) != 1 {
			t.Errorf("GET_OPERATIONS = %v, %v, want the operation", answer, err)
		}
		before := len(w.outcomes(2))
		w.master.send(t, &clusterv1.ToAgent_AcknowledgeOperation{AcknowledgeOperation: &clusterv1.AcknowledgeOperation{
			OperationUuid: operationUUID(2), StatusUuid: w.outcome(2).GetUuid().GetValue()}})
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(w.outcomes(2)); n != before {
			t.Errorf("status was sent %d times more after its acknowledgement", n-before)
		}
		if n := w.records()["operations"]; n != 0 {
			t.Errorf("%d operations are on disk, want none", n)
		}
	})
}

func TestOperationsThatCannotBeChangeNothingAndTheMasterLearnsTheTotal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.finish(1, reserveOp(reservedDisk(100)))
		w.finish(2, createOp(volume("v", 40)))
		escape := volume("v", 10)
		escape.Disk.Persistence.Id = new("../../x")
		block := volume("b", 10)
		block.Disk.Source = &mesosv1.Resource_DiskInfo_Source{Type: mesosv1.Resource_DiskInfo_Source_BLOCK.Enum()}
		for i, op := range []*mesosv1.Offer_Operation{
			reserveOp(reservedDisk(5000)), createOp(volume("v", 10)), createOp(escape), createOp(block), destroyOp(volume("w", 40)),
			{Type: mesosv1.Offer_Operation_LAUNCH.Enum()}, {Type: mesosv1.Offer_Operation_CREATE_DISK.Enum()}, {},
		} {
			n := 10 + i
			w.apply(n, op)
			if s := w.outcome(n); s.GetState() != mesosv1.OperationState_OPERATION_ERROR || s.GetMessage() == "" {
				t.Errorf("%s = %v, want an error that says why", op.GetType(), s)
			}
			w.master.mu.Lock()
			last := w.master.received[len(w.master.received)-1].GetResourcesChanged()
			w.master.mu.Unlock()
			if total := resources.New(last.GetTotalResources()...); !total.Contains(bare(volume("v", 40))) || !total.Contains(bare(reservedDisk(60))) {
				t.Errorf("after %s the master was told %s", op.GetType(), total)
			}
		}
	})
}

func TestAVolumeInUseIsNotDestroyedAndOneOfNoUseIsWiped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.finish(1, reserveOp(reservedDisk(100)))
		w.finish(2, createOp(volume("v", 40)))
		var launched *containerv1.Container
		w.host.launches = func(_ context.Context, c *containerv1.Container) error {
			launched = c
			return nil
		}
		task := command("t", "sleep")
		task.Resources = append(task.Resources, volume("v", 40))
		w.launch(checkpointed("F"), task)
		w.master.ack(t, w.master.await(t, "t", mesosv1.TaskState_TASK_STARTING))
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		var host string
		for _, r := range launched.GetResources() {
			host += r.GetDisk().GetVolume().GetHostPath()
		}
		if host != w.volumePath("v") {
			t.Errorf("the container was told of %q, want %q", host, w.volumePath("v"))
		}
		w.apply(3, destroyOp(volume("v", 40)))
		if s := w.outcome(3); s.GetState() != mesosv1.OperationState_OPERATION_ERROR || !strings.Contains(s.GetMessage(), "in use") {
			t.Errorf("DESTROY of a used volume = %v", s)
		}
		if err := os.WriteFile(filepath.Join(w.volumePath("v"), "data"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.kill("t")
		w.master.await(t, "t", mesosv1.TaskState_TASK_RUNNING)
		w.master.autoAckAll(t)
		w.master.await(t, "t", mesosv1.TaskState_TASK_KILLED)
		// In one go, as one ACCEPT has it: the new volume is empty.
		w.apply(4, destroyOp(volume("v", 40)))
		w.apply(5, createOp(volume("v", 40)))
		for _, n := range []int{4, 5} {
			if s := w.outcome(n); s.GetState() != mesosv1.OperationState_OPERATION_FINISHED {
				t.Fatalf("operation %d = %v", n, s)
			}
		}
		entries, err := os.ReadDir(w.volumePath("v"))
		if err != nil || len(entries) != 0 {
			t.Errorf("new volume holds %v, %v, want nothing", entries, err)
		}
		w.stop() // waits for what is removed in the background
		if left, _ := os.ReadDir(filepath.Join(w.config.WorkDir, "volumes", trash)); len(left) != 0 {
			t.Errorf("destroyed data that is left: %v", left)
		}
	})
}

// TestCrashesLoseNoVolumeAndKeepNoDestroyedData stops the agent before each of its writes while a volume is made,
// destroyed, and made again.
func TestCrashesLoseNoVolumeAndKeepNoDestroyedData(t *testing.T) {
	for stop := 1; ; stop++ {
		ended := false
		t.Run(fmt.Sprint("write ", stop), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.start()
				w.finish(1, reserveOp(reservedDisk(100)))
				w.finish(2, createOp(volume("v", 40)))
				old := filepath.Join(w.volumePath("v"), "old")
				if err := os.WriteFile(old, []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
				w.stop()
				before := w.master.count()
				var left atomic.Int64 // writes until the crash; not yet counted at 0
				w.open(func(int, []op) error {
					if left.Load() > 0 && left.Add(-1) == 0 {
						return errCrash
					}
					return nil
				})
				w.run()
				w.master.wait(t, "a registration", func() bool { return w.master.streams > before })
				synctest.Wait()
				left.Store(int64(stop))
				if w.connected() {
					w.apply(3, destroyOp(volume("v", 40)))
					synctest.Wait()
				}
				if w.connected() {
					w.apply(4, createOp(volume("v", 40)))
					synctest.Wait()
				}
				select {
				case <-w.done:
					w.close()
				default:
					ended = true // it needed no such write
					w.crash()
				}
				w.start()
				_, err := os.Stat(old)
				total, made := w.lastTotal(), false
				destroyed := false
				for _, o := range w.master.hello().GetOperations() {
					destroyed = destroyed || bytes.Equal(o.GetUuid().GetValue(), operationUUID(3))
					made = made || bytes.Equal(o.GetUuid().GetValue(), operationUUID(4))
				}
				if has := total.Contains(bare(volume("v", 40))); has != (!destroyed || made) {
					t.Errorf("after DESTROY on record %v and CREATE %v: volume in the total %v", destroyed, made, has)
				}
				if there := err == nil; there == destroyed {
					t.Errorf("after DESTROY on record %v: old data there %v", destroyed, there)
				}
				// What the next tasks write stays, over another start.
				if !destroyed || made {
					file := filepath.Join(w.volumePath("v"), "new")
					if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
						t.Fatal(err)
					}
					w.crash()
					w.start()
					if _, err := os.Stat(file); err != nil {
						t.Errorf("data of the new volume is lost: %v", err)
					}
				}
			})
		})
		if ended || t.Failed() {
			return
		}
	}
}

func TestTasksOnUnknownReservationsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		task := command("t", "sleep")
		task.Resources = append(task.Resources, volume("v", 40))
		w.launch(checkpointed("F", mesosv1.FrameworkInfo_Capability_PARTITION_AWARE), task)
		u := w.master.await(t, "t", mesosv1.TaskState_TASK_DROPPED)
		if u.GetStatus().GetReason() != mesosv1.TaskStatus_REASON_RESOURCES_UNKNOWN {
			t.Errorf("reason = %v, want REASON_RESOURCES_UNKNOWN", u.GetStatus().GetReason())
		}
	})
}

func TestReservationsThatDoNotFitTheConfigurationStopTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.finish(1, reserveOp(reservedDisk(800)))
		w.stop()
		old := w.config
		w.config.ReconfigurationPolicy = "additive"
		w.config.Resources = "cpus:4;mem:4096;disk:2000;ports:[31000-32000]"
		w.start()
		if total := w.lastTotal(); !total.Contains(bare(reservedDisk(800))) || total.Scalar("disk") != 2000 {
			t.Errorf("total with more resources = %s", total)
		}
		w.stop()
		w.config = old
		w.config.Resources = "cpus:4;mem:4096;disk:700;ports:[31000-32000]"
		store, err := OpenStore(filepath.Join(w.dir, "checkpoints.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		if _, err := New(w.config, Deps{Containerizer: &containers{w.host, store}, Store: store, Logger: w.logger()}); err == nil {
			t.Error("New took less than what is reserved")
		}
	})
}

func TestMountAndPathDisksKeepTheirVolumesWhereTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		mount, dir := filepath.Join(w.dir, "mount"), filepath.Join(w.dir, "path")
		if err := os.MkdirAll(mount, 0o755); err != nil {
			t.Fatal(err)
		}
		w.config.Resources = fmt.Sprintf(`[
			{"name":"cpus","type":"SCALAR","scalar":{"value":4}},
			{"name":"disk","type":"SCALAR","scalar":{"value":100},"disk":{"source":{"type":"MOUNT","mount":{"root":%q}}}},
			{"name":"disk","type":"SCALAR","scalar":{"value":100},"disk":{"source":{"type":"PATH","path":{"root":%q}}}}]`, mount, dir)
		w.start()
		on := func(r *mesosv1.Resource, s *mesosv1.Resource_DiskInfo_Source) *mesosv1.Resource {
			if r.Disk == nil {
				r.Disk = &mesosv1.Resource_DiskInfo{}
			}
			r.Disk.Source = s
			return r
		}
		onMount := &mesosv1.Resource_DiskInfo_Source{Type: mesosv1.Resource_DiskInfo_Source_MOUNT.Enum(),
			Mount: &mesosv1.Resource_DiskInfo_Source_Mount{Root: &mount}}
		onPath := &mesosv1.Resource_DiskInfo_Source{Type: mesosv1.Resource_DiskInfo_Source_PATH.Enum(),
			Path: &mesosv1.Resource_DiskInfo_Source_Path{Root: &dir}}
		w.apply(1, reserveOp(on(reservedDisk(50), onMount)))
		if s := w.outcome(1); s.GetState() != mesosv1.OperationState_OPERATION_ERROR {
			t.Errorf("half of a MOUNT disk = %v, want an error", s)
		}
		w.finish(2, reserveOp(on(reservedDisk(100), onMount), on(reservedDisk(60), onPath)))
		m, p := on(volume("m", 100), onMount), on(volume("p", 50), onPath)
		w.finish(3, createOp(m, p))
		files := []string{filepath.Join(mount, "x"), filepath.Join(dir, "volumes", "roles", "eng dev", "p", "x")}
		for _, f := range files {
			if err := os.WriteFile(f, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		w.finish(4, destroyOp(m, p))
		for _, f := range files {
			if _, err := os.Lstat(f); !os.IsNotExist(err) {
				t.Errorf("%s: %v, want it gone", f, err)
			}
		}
		w.stop()
		for _, d := range []string{filepath.Join(mount, trash), filepath.Join(dir, "volumes", trash)} {
			if left, _ := os.ReadDir(d); len(left) != 0 {
				t.Errorf("%s holds %v, want nothing", d, left)
			}
		}
	})
}

// connected says whether the agent has a stream to the master.
func (w *world) connected() bool {
	w.master.mu.Lock()
	defer w.master.mu.Unlock()
	return w.master.current != nil
}

// autoAckAll has the master acknowledge all updates, those that wait too.
func (m *controller) autoAckAll(t *testing.T) {
	t.Helper()
	m.mu.Lock()
	m.autoAck = true
	m.mu.Unlock()
	for _, u := range m.updates("") {
		m.ack(t, u)
	}
}
