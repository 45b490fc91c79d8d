package main

import (
	"io"
	"math"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

func TestAgesAreShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for ago, want := range map[time.Duration]string{
			0: "0s", -time.Minute: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m",
			2 * time.Hour: "2h", 47 * time.Hour: "47h", 48 * time.Hour: "2d", 1000 * 24 * time.Hour: "1000d",
		} {
			if got := age(time.Now().Add(-ago)); got != want {
				t.Errorf("age(%v ago) = %q, want %q", ago, got, want)
			}
		}
	})
	for _, never := range []time.Time{{}, time.Unix(0, 0)} {
		if got := age(never); got != "" {
			t.Errorf("age(%v) = %q, want nothing", never, got)
		}
	}
}

func TestNumbersHaveNoNeedlessDigits(t *testing.T) {
	for f, want := range map[float64]string{0: "0", 4: "4", 0.5: "0.5", 1024.25: "1024.25", 1e6: "1000000", 0.001: "0.001"} {
		if got := number(f); got != want {
			t.Errorf("number(%v) = %q, want %q", f, got, want)
		}
	}
}

func TestSignalsAreFoundByTheirDescription(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"Killed": 9, "Terminated": 15, "Segmentation fault": 11, "Aborted": 6, "Hangup": 1, "no such signal": 0, "": 0,
	} {
		if got := signalNumber(text); got != int(want) {
			t.Errorf("signalNumber(%q) = %d, want %d", text, got, want)
		}
	}
}

func TestTheExitCodeIsTheTasks(t *testing.T) {
	for _, test := range []struct {
		state   mesosv1.TaskState
		reason  mesosv1.TaskStatus_Reason
		message string
		want    int
	}{
		{mesosv1.TaskState_TASK_FINISHED, 0, "Command exited with status 0", 0},
		{mesosv1.TaskState_TASK_FAILED, 0, "Command exited with status 7", 7},
		{mesosv1.TaskState_TASK_FAILED, 0, "Command exited with status 255", 255},
		{mesosv1.TaskState_TASK_FAILED, 0, "Command terminated with signal Killed", 137},
		{mesosv1.TaskState_TASK_FAILED, 0, "Command terminated with signal Segmentation fault", 139},
		{mesosv1.TaskState_TASK_KILLED, 0, "Command terminated with signal Terminated", 143},
		{mesosv1.TaskState_TASK_KILLED, 0, "", 143},
		{mesosv1.TaskState_TASK_FAILED, mesosv1.TaskStatus_REASON_CONTAINER_LIMITATION_MEMORY, "Memory limit exceeded", 137},
		{mesosv1.TaskState_TASK_FAILED, mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED, "no image", exitRun},
		{mesosv1.TaskState_TASK_LOST, 0, "", exitFailed},
	} {
		id := "t"
		task := &running{
			info:   &mesosv1.TaskInfo{TaskId: &mesosv1.TaskID{Value: &id}},
			status: &mesosv1.TaskStatus{State: &test.state, Message: &test.message},
		}
		if test.reason != 0 {
			task.status.Reason = &test.reason
		}
		r := &runner{runOptions: &runOptions{err: io.Discard}, tasks: []*running{task}}
		if got := r.exitCode(); got != test.want {
			t.Errorf("exit code after %s, %s, %q = %d, want %d", test.state, test.reason, test.message, got, test.want)
		}
	}
}

func TestAnOfferIsDividedAndOnlyOrdinaryResourcesAreUsed(t *testing.T) {
	revocable := amount("cpus", 8)
	revocable.Revocable = &mesosv1.Resource_RevocableInfo{}
	volume := amount("disk", 100)
	volume.Disk = &mesosv1.Resource_DiskInfo{}
	offered := []*mesosv1.Resource{revocable, amount("cpus", 0.5), amount("cpus", 1), amount("mem", 64), volume}
	parts, ok := divide(offered, []resources.Quantities{{"cpus": 1.2, "mem": 32}, {"cpus": 0.3, "mem": 32}})
	if !ok || len(parts) != 2 || math.Abs(scalar(parts[0], "cpus")-1.2) > 1e-9 || scalar(parts[1], "cpus") != 0.3 || scalar(parts[0], "mem")+scalar(parts[1], "mem") != 64 {
		t.Errorf("divide = %v, %v; want 1.2 cpus of both pieces and then what is left", parts, ok)
	}
	if offered[1].GetScalar().GetValue() != 0.5 || offered[2].GetScalar().GetValue() != 1 {
		t.Errorf("divide changed the offer: %v", offered)
	}
	for _, want := range [][]resources.Quantities{{{"cpus": 2}}, {{"disk": 1}}, {{"mem": 64.1}}, {{"mem": 40}, {"mem": 40}}} {
		if parts, ok := divide(offered, want); ok {
			t.Errorf("divide by %v = %v, want refusal", want, parts)
		}
	}
}

func TestWhatRunAsksFor(t *testing.T) {
	t.Setenv("PASSED_ON", "yes")
	o := &runOptions{
		cpus: 1, mem: 32, maxCPUs: 2, maxMem: 64, user: "nobody", grace: 2 * time.Second, argv: []string{"/bin/echo", "a", "b"},
		env: []string{"A=1=2", "PASSED_ON", "EMPTY="}, uris: []string{"http://h/f"}, containerFlags: containerFlags{image: "/"},
	}
	if err := o.check(); err != nil {
		t.Fatal(err)
	}
	task, err := o.task()
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for _, v := range task.GetCommand().GetEnvironment().GetVariables() {
		env[v.GetName()] = v.GetValue()
	}
	if len(env) != 3 || env["A"] != "1=2" || env["PASSED_ON"] != "yes" || env["EMPTY"] != "" {
		t.Errorf("environment %v", env)
	}
	c := task.GetCommand()
	if c.GetShell() || c.GetValue() != "/bin/echo" || strings.Join(c.GetArguments(), " ") != "/bin/echo a b" || c.GetUser() != "nobody" || c.GetUris()[0].GetValue() != "http://h/f" {
		t.Errorf("command %v", c)
	}
	if task.GetName() != "echo" || !strings.HasPrefix(task.GetTaskId().GetValue(), "echo-") || task.GetLimits()["cpus"].GetValue() != 2 ||
		task.GetLimits()["mem"].GetValue() != 64 || task.GetKillPolicy().GetGracePeriod().GetNanoseconds() != 2e9 ||
		task.GetContainer().GetMesos().GetImage().GetDocker().GetName() != "/" {
		t.Errorf("task %v", task)
	}
	for name, wrong := range map[string]*runOptions{
		"no cpus":        {cpus: 0, mem: 1},
		"limit below":    {cpus: 1, mem: 1, maxCPUs: 0.5},
		"memory below":   {cpus: 1, mem: 2, maxMem: 1},
		"shell and more": {cpus: 1, mem: 1, shell: true, argv: []string{"a", "b"}},
	} {
		if err := wrong.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := (&runOptions{argv: []string{"true"}, containerFlags: containerFlags{image: "./no-such-folder"}}).task(); err == nil || !strings.Contains(err.Error(), "no-such-folder") {
		t.Errorf("an image that is not there = %v, want it named", err)
	}
}

// address is a listener of which only the address counts.
type address struct {
	net.Listener
	addr net.Addr
}

func (a address) Addr() net.Addr { return a.addr }

func TestNobodyIsExposedWithoutSayingSo(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 5050} }
	for _, test := range []struct {
		addr     net.Addr
		insecure bool
		refused  bool
	}{
		{tcp("127.0.0.1"), false, false},
		{tcp("127.5.5.5"), false, false},
		{tcp("::1"), false, false},
		{&net.UnixAddr{Name: "/s", Net: "unix"}, false, false},
		{tcp("0.0.0.0"), false, true},
		{tcp("::"), false, true},
		{tcp("10.0.0.1"), false, true},
		{&net.TCPAddr{Port: 5050}, false, true}, // any address
		{tcp("10.0.0.1"), true, false},
	} {
		err := checkExposure(address{addr: test.addr}, test.insecure, "listen")
		if (err != nil) != test.refused {
			t.Errorf("checkExposure(%s, insecure %v) = %v, want refusal %v", test.addr, test.insecure, err, test.refused)
		}
		if err != nil && (!strings.Contains(err.Error(), "--insecure") || !strings.Contains(err.Error(), test.addr.String())) {
			t.Errorf("refusal %q, want the address and the way out", err)
		}
	}
}

func TestSocketsLieInAShortPlaceOfTheirOwn(t *testing.T) {
	// Sockets lie up to 60 bytes below it, and their paths must stay below 108.
	const bound = 46
	long := "/var/lib/" + strings.Repeat("very-long/", 50)
	a, b := runDir(long+"a"), runDir(long+"b")
	if len(a) > bound || a == b || a != runDir(long+"a") {
		t.Errorf("runDir of two work directories: %q and %q, want short, different and always the same", a, b)
	}
	if !strings.HasPrefix(a, "/") {
		t.Errorf("runDir = %q, want an absolute path", a)
	}
}

func TestTheAdvertisedHostIsWhereOneListens(t *testing.T) {
	for listen, want := range map[string]string{"127.0.0.1:1": "127.0.0.1", "10.1.2.3:1": "10.1.2.3", "0.0.0.0:1": "machine", "[::]:1": "machine", "[::1]:1": "::1"} {
		addr, err := net.ResolveTCPAddr("tcp", listen)
		if err != nil {
			t.Fatal(err)
		}
		if got := advertisedHost(addr, "machine"); got != want {
			t.Errorf("advertisedHost(%s) = %q, want %q", listen, got, want)
		}
	}
}

func TestAnUnreachableServerIsExplained(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	for _, args := range [][]string{{"task", "ls", "--master", addr}, {"node", "ls", "--master", addr}, {"module", "ls", "--agent", addr}} {
		_, _, err := execute(t, args...)
		if silently(t, err) != exitFailed || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "mosaic dev") {
			t.Errorf("mosaic %v = %v, want the address and a hint", args, err)
		}
	}
	t.Setenv("MOSAIC_MASTER", addr)
	if _, _, err := execute(t, "node", "ls"); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("mosaic node ls = %v, want MOSAIC_MASTER to count", err)
	}
}

func TestWorkDirectoriesAreMadeAndAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	got, err := absolute("a/b")
	if info, serr := os.Stat(got); err != nil || got != here+"/a/b" || serr != nil || !info.IsDir() {
		t.Errorf("absolute = %q, %v (%v)", got, err, serr)
	}
	if err := os.WriteFile("file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := absolute("file/x"); err == nil || !strings.Contains(err.Error(), "work directory") {
		t.Errorf("absolute below a file = %v, want an error", err)
	}
}
