package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	"github.com/mosaic-cluster/mosaic/sdk/operator"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// withVolume gives a task a folder of the machine as /data.
func withVolume(task *mesosv1.TaskInfo, path string, mode mesosv1.Volume_Mode) *mesosv1.TaskInfo {
	task.Container.Volumes = append(task.Container.Volumes, hostVolume(path, "/data", mode, mesosv1.MountPropagation_UNKNOWN))
	return task
}

// number is a number from the environment of the test.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// A bystander is a task with all that a container can have, which goes on whatever happens beside it.
type bystander struct {
	*cluster.Framework
	f         *furniture
	container string
	ip        string
	port      uint64 // of the machine, which leads to its web server
	conn      net.Conn
	lines     *bufio.Reader
	said      int
	pids      map[int]string
}

const bystanderID = "bystander"

// standBy launches the bystander and has a connection to it.
func standBy(ctx context.Context, t *testing.T, c *cluster.Cluster, f *furniture) *bystander {
	t.Helper()
	b := &bystander{Framework: subscribeShared(ctx, t, c.Master, bystanderID, "calm"), f: f, port: freePort(t)}
	// The first word of the resource estimator changes what the agent has, and takes back what was offered before.
	eventually(t, "what the estimator lends", 20*time.Second, func() bool {
		resp, err := operator.NewMaster(c.Master).Call(ctx, &masterv1.Call{Type: masterv1.Call_GET_METRICS.Enum(), GetMetrics: &masterv1.Call_GetMetrics{}})
		return err == nil && slices.ContainsFunc(resp.GetGetMetrics().GetMetrics(), func(m *mesosv1.Metric) bool {
			return m.GetName() == "master/cpus_revocable_total" && m.GetValue() > 0
		})
	})
	o, err := b.Offer(ctx, 0.2, 128)
	if err != nil {
		t.Fatal(err)
	}
	reserved, volume := persistent("calm", "own", "/www/persistent", false)
	task := f.task(o, bystanderID, bystanderID, volume, writePages(bystanderID))
	publish(task, b.port, o)
	made := makeVolumes([]*mesosv1.Resource{reserved}, []*mesosv1.Resource{volume})
	if err := b.Client().Accept(ctx, []*mesosv1.OfferID{o.GetId()}, append(made, launching(task)), 0); err != nil {
		t.Fatal(err)
	}
	if err := b.Enough(ctx); err != nil {
		t.Fatal(err)
	}
	running, err := b.State(ctx, []string{bystanderID}, mesosv1.TaskState_TASK_RUNNING, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_DROPPED)
	if err != nil {
		t.Fatal(err)
	}
	if s := running[bystanderID].Status; s.GetState() != mesosv1.TaskState_TASK_RUNNING {
		t.Fatalf("the bystander: %s %s", s.GetState(), s.GetMessage())
	}
	b.container, b.ip = address(t, running[bystanderID].Status)
	eventually(t, "a connection to the bystander", 20*time.Second, func() bool {
		b.conn, err = net.DialTimeout("tcp", net.JoinHostPort(b.ip, "81"), time.Second)
		return err == nil
	})
	t.Cleanup(func() { _ = b.conn.Close() })
	b.lines = bufio.NewReader(b.conn)
	eventually(t, "the bystander's pages", 20*time.Second, func() bool { return serves(b.ip, bystanderID) == "" })
	b.isWell(t, "at first")
	eventually(t, "the bystander's processes", 10*time.Second, func() bool {
		b.pids = processes(t, c, b.container)
		return len(b.pids) == 3 // the server, and who listens and answers on the connection
	})
	return b
}

// isWell sees to it that the bystander has what it had: its connection, its address, its port, and all its volumes.
func (b *bystander) isWell(t *testing.T, when string) {
	t.Helper()
	b.said++
	line := fmt.Sprintf("line %d\n", b.said)
	if err := b.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(b.conn, line); err != nil {
		t.Fatalf("%s: the bystander's connection: %v", when, err)
	}
	if answer, err := b.lines.ReadString('\n'); err != nil || answer != line {
		t.Fatalf("%s: the bystander answers %q, %v; want %q", when, answer, err, line)
	}
	if wrong := serves(b.ip, bystanderID); wrong != "" {
		t.Fatalf("%s: of the bystander's pages\n%s", when, wrong)
	}
	if page, err := get(fmt.Sprintf("http://127.0.0.1:%d/", b.port)); err != nil || page != registryPage {
		t.Fatalf("%s: the bystander's published port serves %q, %v", when, page, err)
	}
	if n := b.f.plugin.count(bystanderID); n != 1 {
		t.Fatalf("%s: the bystander's Docker volume is mounted %d times", when, n)
	}
}

// wasLeftAlone checks at the end that nobody touched the bystander.
func (b *bystander) wasLeftAlone(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	now := processes(t, c, b.container) // its web server has one more for each request
	for pid, began := range b.pids {
		if now[pid] != began {
			t.Errorf("the bystander's processes were %v, are %v", b.pids, now)
		}
	}
	for _, u := range b.Updates(bystanderID) {
		if s := u.Status.GetState(); s != mesosv1.TaskState_TASK_STARTING && s != mesosv1.TaskState_TASK_RUNNING {
			t.Errorf("the bystander had update %s: %s", s, u.Status.GetMessage())
		}
	}
	if seen := traces(t, b.container, b.ip, nil); len(seen) == 0 {
		t.Error("nothing is seen of the bystander either: this test looks in the wrong places")
	}
	if n := b.f.plugin.asked("VolumeDriver.Mount", bystanderID); n != 1 {
		t.Errorf("the plugin was asked %d times to mount the bystander's volume, want once", n)
	}
}

// churn launches and kills tasks of all shapes.
type churn struct {
	*cluster.Framework
	f      *furniture
	random *rand.Rand
	round  int
	before []*mesosv1.TaskInfo // of the round before
}

// launch launches the next round's tasks: two or three that serve pages or end at once, with images and without, and now
// and then a group.
func (c *churn) launch(ctx context.Context) error {
	o, err := c.Offer(ctx, 0.6, 384)
	if err != nil {
		return err
	}
	var ops []*mesosv1.Offer_Operation
	common, linked := persistentOf(o, "common"), persistentOf(o, "linked")
	if common == nil && c.round == 0 {
		var reserved [2]*mesosv1.Resource
		reserved[0], common = persistent("churn", "common", "/www/persistent", true)
		reserved[1], linked = persistent("churn", "linked", "linked", true)
		ops = makeVolumes(reserved[:], []*mesosv1.Resource{common, linked})
	}
	var tasks []*mesosv1.TaskInfo
	for i := range 3 {
		id := fmt.Sprintf("task-%d-%d", c.round, i)
		docker := "common"
		if i == 2 {
			docker = id
		}
		command := writePages(id)
		if c.random.IntN(3) == 0 {
			command = cluster.Exec("/bin/echo", "gone at once")
		}
		if i > 0 && c.random.IntN(3) == 0 {
			tasks = append(tasks, c.plain(o, id, docker, linked))
			continue
		}
		task := c.f.task(o, id, docker, common, command)
		if port := portOf(o, i); port != 0 {
			publish(task, port, o)
		}
		tasks = append(tasks, task)
	}
	last := len(tasks)
	if c.random.IntN(3) == 0 { // the last one in a group of its own
		last--
		ops = append(ops, c.group(o, tasks[last]))
	}
	ops = append(ops, launching(tasks[:last]...))
	c.before = tasks
	c.round++
	return c.Client().Accept(ctx, []*mesosv1.OfferID{o.GetId()}, ops, 0)
}

// plain is a task without image and network.
func (c *churn) plain(o *mesosv1.Offer, id, docker string, linked *mesosv1.Resource) *mesosv1.TaskInfo {
	const ro, rw = mesosv1.Volume_RO, mesosv1.Volume_RW
	task := cluster.Task(o, id, 0.1, 32, cluster.Shell("cat machine/file secret own/file; sleep 1000"))
	task.Container = &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), Volumes: []*mesosv1.Volume{
		hostVolume(c.f.machine, "machine", ro, mesosv1.MountPropagation_UNKNOWN),
		sandboxVolume(mesosv1.Volume_Source_SandboxPath_SELF, "other", "own", ro),
		secretVolume("secret", secretNamed("referred")),
		imageVolume(c.f.image, "image"),
		c.f.plugin.volume(docker, "docker", rw),
	}}
	if linked != nil {
		linked = proto.CloneOf(linked)
		linked.AllocationInfo = o.GetAllocationInfo()
		task.Resources = append(task.Resources, linked)
	}
	return task
}

// group is the operation that launches a task in a group, whose network is that of its executor.
func (c *churn) group(o *mesosv1.Offer, task *mesosv1.TaskInfo) *mesosv1.Offer_Operation {
	if len(task.GetContainer().GetNetworkInfos()) > 0 {
		task.Container.NetworkInfos = nil
		task.Resources = slices.DeleteFunc(task.Resources, func(r *mesosv1.Resource) bool { return r.GetName() == "ports" })
		task.Container.Volumes = append(task.Container.Volumes, sandboxVolume(mesosv1.Volume_Source_SandboxPath_PARENT, "shared", "/shared", mesosv1.Volume_RW))
	}
	executor := cluster.Task(o, "", 0.05, 32, nil)
	disk := proto.CloneOf(executor.GetResources()[1]) // an executor of groups must have some
	disk.Name, disk.Scalar = proto.String("disk"), &mesosv1.Value_Scalar{Value: proto.Float64(16)}
	executor.Resources = append(executor.Resources, disk)
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_LAUNCH_GROUP.Enum(), LaunchGroup: &mesosv1.Offer_Operation_LaunchGroup{
		Executor: &mesosv1.ExecutorInfo{
			Type: mesosv1.ExecutorInfo_DEFAULT.Enum(), ExecutorId: &mesosv1.ExecutorID{Value: proto.String("group-of-" + task.GetTaskId().GetValue())},
			FrameworkId: c.Client().FrameworkID(), Resources: executor.GetResources(),
			Container: &mesosv1.ContainerInfo{
				Type: mesosv1.ContainerInfo_MESOS.Enum(), NetworkInfos: []*mesosv1.NetworkInfo{{Name: proto.String("mosaic")}},
			},
		},
		TaskGroup: &mesosv1.TaskGroupInfo{Tasks: []*mesosv1.TaskInfo{task}},
	}}
}

// portOf is the n-th port of an offer from its highest down; 0 if it has none.
func portOf(o *mesosv1.Offer, n int) uint64 {
	var ranges []*mesosv1.Value_Range
	for _, r := range o.GetResources() {
		if r.GetName() == "ports" {
			ranges = append(ranges, r.GetRanges().GetRange()...)
		}
	}
	for _, r := range slices.Backward(ranges) {
		if size := int(r.GetEnd() - r.GetBegin() + 1); n < size {
			return r.GetEnd() - uint64(n)
		} else {
			n -= size
		}
	}
	return 0
}

// strike kills the agent, once or twice in a row, or the next module of deck, and waits until all is up again.
func strike(ctx context.Context, t *testing.T, c *cluster.Cluster, random *rand.Rand, deck *[]string, when string) {
	t.Helper()
	if random.IntN(2) == 0 {
		list := modules(t, c)
		if len(*deck) == 0 {
			*deck = slices.Sorted(maps.Keys(list))
			random.Shuffle(len(*deck), func(i, j int) { (*deck)[i], (*deck)[j] = (*deck)[j], (*deck)[i] })
		}
		name := (*deck)[0]
		*deck = (*deck)[1:]
		pid := list[name].Pid
		if pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		t.Logf("%s: %s, process %d", when, name, pid)
	} else {
		times := 1
		if random.IntN(4) == 0 { // and once more in the middle of its recovery
			times++
			if err := c.KillAgent(); err != nil {
				t.Fatal(err)
			}
			if err := c.StartAgent(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
		}
		crashAgent(ctx, t, c)
		t.Logf("%s: the agent, %d times", when, times)
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
}

// TestKillsInTheMidstOfLaunchesAndEndsLeaveNothing: the number of kills is MOSAIC_KILLS, the points are those of
// MOSAIC_SEED.
func TestKillsInTheMidstOfLaunchesAndEndsLeaveNothing(t *testing.T) {
	needBridge(t)
	kills, seed := int(number(t, "MOSAIC_KILLS", 15)), number(t, "MOSAIC_SEED", uint64(time.Now().UnixNano()))
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("%d kills, MOSAIC_SEED=%d", kills, seed)

	f := furnish(t)
	c := start(t, cluster.Options{Composition: f.composition()})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(kills)*30*time.Second)
	defer cancel()
	calm := standBy(ctx, t, c, f)
	seen := newSurvey(t, c, f.plugin, calm.container)

	wild := &churn{Framework: subscribeShared(ctx, t, c.Master, "churn", "churn"), f: f, random: random}
	ran, other := 0, map[string]int{} // of the tasks, how many came as far as running, and why the others did not
	var deck []string
	for n := range kills {
		when := fmt.Sprintf("kill %d", n)
		before := wild.before
		if err := wild.launch(ctx); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		for _, task := range before {
			if err := wild.Client().Kill(ctx, task.GetTaskId(), task.GetAgentId()); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
		pause := time.Duration(random.IntN(1500)) * time.Millisecond
		time.Sleep(pause) // the random point; nothing is waited for
		strike(ctx, t, c, random, &deck, fmt.Sprintf("%s after %s", when, pause))
		for _, task := range before {
			for _, u := range wild.Updates(task.GetTaskId().GetValue()) {
				if s := u.Status; s.GetState() == mesosv1.TaskState_TASK_RUNNING {
					ran++
					break
				} else if s.GetState() == mesosv1.TaskState_TASK_FAILED || s.GetState() == mesosv1.TaskState_TASK_ERROR {
					other[fmt.Sprintf("%s %s: %.300s", s.GetState(), s.GetReason(), s.GetMessage())]++
					break
				}
			}
		}
		calm.isWell(t, when)
	}
	t.Logf("%d of %d tasks ran before a kill hit", ran, 3*kills)
	for why, n := range other {
		t.Logf("%d that did not: %s", n, why)
	}
	if ran < kills/3 {
		t.Errorf("only %d tasks ever ran in %d rounds: the kills hit nothing but beginnings", ran, kills)
	}
	if err := wild.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(containersEver(t, c)); n < kills/2 {
		t.Errorf("there have been %d containers in all; is their place another now?", n)
	}
	seen.nothing(t, calm.container, bystanderID)
	calm.isWell(t, "in the end")
	calm.wasLeftAlone(t, c)

	// What is held of images is the bystander's alone, and then nobody's.
	mosaic(t, c, 0, "image", "prune")
	calm.isWell(t, "after its image was in the way of a prune")
	if err := calm.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	seen.shims = 0
	seen.known = slices.DeleteFunc(seen.known, func(s string) bool { return strings.HasPrefix(s, c.RunDir()) })
	seen.nothing(t, "nobody")
	mosaic(t, c, 0, "image", "prune")
	if names, files := imagesOf(t, c); len(names) > 0 || len(files) > 0 {
		t.Errorf("with nobody there, prune left %v, %v", names, files)
	}
	if t.Failed() {
		t.Logf("to see it again: MOSAIC_KILLS=%d MOSAIC_SEED=%d", kills, seed)
	}
}
