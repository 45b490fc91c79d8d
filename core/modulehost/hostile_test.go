package modulehost

import (
	"bufio"
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// What a module does wrong before it is up keeps it down, and the host says why. The host itself comes up.
func TestAModuleThatDoesNotComeUpLeavesTheHostUpAndSaysWhy(t *testing.T) {
	for how, want := range map[string]string{
		"silent":            "no handshake within 5s",
		"exits":             "exit status 3",
		"garbage":           `wrote "Hello, I am a module!" before its handshake`,
		"endless line":      "before its handshake",
		"foreign socket":    "want a socket in",
		"tcp":               "want a unix socket",
		"drips":             "Describe: ",
		"deaf":              "Describe: ",
		"hangs in Describe": "Describe: ",
		"wrong schema":      "default of policy is not JSON",
		"unknown power":     `unknown power "everything"`,
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			h := startHost(t, Options{}, testConfig(how))
			s := h.Status()[0]
			if s.State == StateUp || !strings.Contains(s.Reason, want) {
				t.Errorf("Status() = %s: %s, want a reason with %q", s.State, s.Reason, want)
			}
			if took := time.Since(began); took > handshakeTimeout+10*time.Second {
				t.Errorf("the host came up after %s", took)
			}
		})
	}
}

func TestAModuleOfAnotherKindIsRefused(t *testing.T) {
	_, err := Start(t.Context(), testOptions(t), []ModuleConfig{testConfig("wrong kind")})
	var composition *CompositionError
	if !errors.As(err, &composition) || !strings.Contains(err.Error(), "is authorizer(test), want isolator(test)") {
		t.Errorf("Start with a module of another kind = %v, want a *CompositionError that says so", err)
	}
}

// Each wrong answer fails its own call, and the next call of another container succeeds.
func TestAWrongAnswerIsAnErrorOfItsCallOnly(t *testing.T) {
	h := startHost(t, Options{}, testConfig("good"))
	i := h.Isolators()[0]
	for id, want := range map[string]string{
		"undeclared":          "sets hostname, a power that it did not declare",
		"relative":            `mounts[0].destination is "data", want an absolute path`,
		"duplicate":           "mounts: /data twice",
		"negative":            "cgroup.memory_limit_bytes is -5",
		"nul":                 "environment contains a NUL byte",
		"big-state":           "state has 65537 bytes, want at most 65536",
		"wrong-state-version": "state_version 3, want one that it declared: 1 to 2",
		"many":                "environment has",
		"giant":               "answer of more than 16 MiB",
	} {
		// A breaker that counts these answers may restart the module between them: calls wait for it.
		_, err := i.Prepare(t.Context(), prepareRequest(id))
		if err == nil || !strings.Contains(err.Error(), "isolator(test): Prepare: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("Prepare(%s) = %v, want it to name the module and say %q", id, err, want)
		}
		if status.Code(err) != codes.Internal {
			t.Errorf("Prepare(%s) has code %s, want INTERNAL", id, status.Code(err))
		}
		mustPrepare(t, h, "innocent")
	}
}

func TestAModulesOwnErrorsKeepTheirCodeAndGetItsName(t *testing.T) {
	h := startHost(t, Options{}, testConfig("good"))
	for id, want := range map[string]struct {
		code codes.Code
		text string
	}{
		"fail":        {codes.FailedPrecondition, "isolator(test): Prepare: no such device"},
		"unavailable": {codes.Unavailable, "isolator(test): Prepare: device is busy"},
	} {
		_, err := h.Isolators()[0].Prepare(t.Context(), prepareRequest(id))
		if status.Code(err) != want.code || err.Error() != want.text {
			t.Errorf("Prepare(%s) = %v (%s), want %q (%s)", id, err, status.Code(err), want.text, want.code)
		}
	}
}

func TestAPowerThatIsNotGrantedIsNotUsed(t *testing.T) {
	c := testConfig("good")
	c.Allow = []string{"environment", "rlimits"}
	h := startHost(t, Options{}, c)
	if got := mustPrepare(t, h, "c")["GRANTED"]; got != "environment" {
		t.Errorf("Prepare granted %s, want only what is both declared and allowed", got)
	}
	_, err := h.Isolators()[0].Prepare(t.Context(), prepareRequest("mounts"))
	if err == nil || !strings.Contains(err.Error(), "sets mounts, a power that `allow` does not grant") {
		t.Errorf("Prepare that sets mounts = %v, want a refusal", err)
	}
}

func TestNumbersThatNoMeasurementGivesAreErrorsOfTheirContainer(t *testing.T) {
	h := startHost(t, Options{}, testConfig("good"))
	request := &isolatorv1.UsageRequest{}
	for _, id := range []string{"good", "nan", "negative"} {
		request.Records = append(request.Records, &isolatorv1.ContainerRecord{Container: prepareRequest(id).GetContainer()})
	}
	r, err := h.Isolators()[0].Usage(t.Context(), request)
	if err != nil {
		t.Fatalf("Usage: %v", err)
	}
	if got := r.GetResults()["good"]; got.GetError() != "" || got.GetStatistics().GetCpusUserTimeSecs() != 2 {
		t.Errorf("Usage of good = %v, want its statistics", got)
	}
	for id, want := range map[string]string{"nan": "NaN", "negative": "want no negative number"} {
		got := r.GetResults()[id]
		if got.GetStatistics() != nil || !strings.Contains(got.GetError(), want) {
			t.Errorf("Usage of %s = %v, want an error with %q", id, got, want)
		}
	}
	request.Records = append(request.Records, &isolatorv1.ContainerRecord{Container: prepareRequest("stranger").GetContainer()})
	if _, err := h.Isolators()[0].Usage(t.Context(), request); err == nil || !strings.Contains(err.Error(), "was not asked for") {
		t.Errorf("Usage with a result for a stranger = %v, want an error", err)
	}
}

func TestAModuleThatDiesWithACallFailsThatCallOnly(t *testing.T) {
	h := startHost(t, Options{}, testConfig("good"))
	for id, want := range map[string]string{"crash": "exit status 7", "panic": "module has a bug", "close-fds": "during the call"} {
		_, err := h.Isolators()[0].Prepare(t.Context(), prepareRequest(id))
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) {
			t.Errorf("Prepare(%s) = %v, want UNAVAILABLE with %q", id, err, want)
		}
		mustPrepare(t, h, "innocent")
	}
}

func TestAModuleThatHangsDoesNotHoldUpOthers(t *testing.T) {
	c := testConfig("good")
	c.Timeouts = map[string]time.Duration{"prepare": 500 * time.Millisecond}
	h := startHost(t, Options{}, c)
	began := time.Now()
	var wg sync.WaitGroup
	for _, id := range []string{"hang", "hang-for-ever"} {
		wg.Go(func() {
			if _, err := h.Isolators()[0].Prepare(t.Context(), prepareRequest(id)); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("Prepare(%s) = %v, want DEADLINE_EXCEEDED", id, err)
			}
		})
	}
	mustPrepare(t, h, "innocent")
	if took := time.Since(began); took > 400*time.Millisecond {
		t.Errorf("Prepare beside two that hang took %s", took)
	}
	wg.Wait()
}

func TestWhatAModuleForkedDiesWithIt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for cgroups")
	}
	var log syncBuffer
	h := startHost(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, testConfig("forks"))
	forked := regexp.MustCompile(`forked (\d+)`)
	eventually(t, "the module tells what it forked", func() bool { return len(forked.FindAllString(log.String(), -1)) == 3 })
	began := time.Now()
	if err := h.Restart(t.Context(), "test"); err != nil {
		t.Fatalf("Restart: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Restart took %s: a child that holds the pipe held it up", took)
	}
	for _, m := range forked.FindAllStringSubmatch(log.String(), 3) {
		pid, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "child "+m[1]+" is dead", func() bool { return !running(pid) })
	}
}

// running says whether a process lives; a zombie that nobody reaped yet does not.
func running(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := bytes.Cut(data, []byte(") "))
	return !bytes.HasPrefix(after, []byte("Z")) && !bytes.HasPrefix(after, []byte("X"))
}

func TestAFloodOfLogLinesIsCutAndCounted(t *testing.T) {
	var log syncBuffer
	h := startHost(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, testConfig("good"))
	mustPrepare(t, h, "flood")
	mustPrepare(t, h, "innocent")
	eventually(t, "dropped lines are told", func() bool { return strings.Contains(log.String(), "log lines of the module") })
	if size := len(log.String()); size > 8<<20 {
		t.Errorf("21 MB of log lines became %d bytes, want them cut", size)
	}
}

func TestWhatAModulePrintsIsLoggedAndDoesNotDisturb(t *testing.T) {
	var log syncBuffer
	h := startHost(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, testConfig("good"))
	mustPrepare(t, h, "print")
	for _, want := range []string{"printed to standard output", "printed to standard error", "module=isolator(test)"} {
		eventually(t, "the log has "+want, func() bool { return strings.Contains(log.String(), want) })
	}
	file := filepath.Join(h.opts.LogDir, "isolator-test.log")
	eventually(t, "the module's own file has it", func() bool {
		data, _ := os.ReadFile(file)
		return strings.Contains(string(data), "printed to standard error")
	})
}

func TestAModuleHasASessionOfItsOwnAndGainsNoPrivileges(t *testing.T) {
	h := startHost(t, Options{}, testConfig("good"))
	pid := h.Status()[0].PID
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "NoNewPrivs:\t1") {
		t.Errorf("process %d may gain privileges:\n%s", pid, data)
	}
	if sid, err := getsid(pid); err != nil || sid != pid {
		t.Errorf("process %d is in session %d (%v), want its own", pid, sid, err)
	}
}

func TestModulesDieWithTheirHost(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "mosaic-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	host := exec.Command(exe)
	host.Env = append(os.Environ(), hostKey+"="+dir)
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the host says %q, want the number of its module's process", line)
	}
	if !running(pid) {
		t.Fatalf("module %d does not run", pid)
	}
	if err := host.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = host.Wait() // killed, as it should be
	eventually(t, "the module is dead", func() bool { return !running(pid) })
}

func getsid(pid int) (int, error) {
	sid, _, errno := syscall.Syscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(sid), nil
}

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
