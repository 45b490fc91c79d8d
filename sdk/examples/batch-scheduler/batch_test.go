package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// asProgram, in the environment, makes the test binary the program.
const asProgram = "BATCH_SCHEDULER_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// write makes a file of lines and returns its path.
func write(t *testing.T, name string, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// batched runs the program within the test.
func batched(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), args, &stdout, &stderr)
	if stderr.Len() > 0 {
		t.Logf("standard error: %s", &stderr)
	}
	return code, stdout.String() + stderr.String()
}

func TestJobsThatFailAreTriedAgainAndThenGivenUp(t *testing.T) {
	m := newMaster(t, func(command string, launch int) mesosv1.TaskState {
		switch {
		case command == "bad", command == "flaky" && launch < 3:
			return mesosv1.TaskState_TASK_FAILED
		case command == "wrong":
			return mesosv1.TaskState_TASK_ERROR
		case command == "unlucky" && launch < 5:
			return mesosv1.TaskState_TASK_LOST
		}
		return mesosv1.TaskState_TASK_FINISHED
	})
	jobs := write(t, "jobs.txt", "# comment", "good", "", "  flaky", "bad", "wrong", "unlucky")
	code, out := batched(t, "--master", "127.0.0.1:1,"+m.addr, "--backoff", "1ms", jobs)
	if code != exitGivenUp || !strings.Contains(out, "\n3 finished, 2 given up\n") {
		t.Errorf("code %d, output\n%s\nwant 1, and 3 that finished", code, out)
	}
	for command, want := range map[string]int{"good": 1, "flaky": 3, "bad": 3, "wrong": 1, "unlucky": 5} {
		n := 0
		for _, l := range m.launches {
			if l == command {
				n++
			}
		}
		if n != want {
			t.Errorf("%s was launched %d times, want %d", command, n, want)
		}
	}
	want := []string{
		"job 1, launch 1: runs: flaky",
		"job 1, launch 1: failed (Command exited with status 1), again in 1ms: flaky",
		"job 1, launch 2: runs: flaky",
		"job 1, launch 2: failed (Command exited with status 1), again in 2ms: flaky",
		"job 1, launch 3: runs: flaky",
		"job 1, launch 3: finished: flaky",
	}
	if got := lines(out, "flaky"); !slices.Equal(got, want) {
		t.Errorf("of flaky it said\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	m.await("the end of the framework", func() bool { return m.over })
}

func TestNoOffersAreTakenWhileNothingWaits(t *testing.T) {
	m := newMaster(t, func(string, int) mesosv1.TaskState { return mesosv1.TaskState_TASK_RUNNING })
	jobs := write(t, "jobs.txt", "one", "two", "three", "four", "five")
	ended := make(chan int, 1)
	go func() {
		code, _ := batched(t, "--master", m.addr, "--backoff", "1ms", jobs)
		ended <- code
	}()
	m.await("five tasks", func() bool { return len(m.launches) == 5 })
	m.await("no wish for offers", func() bool { return m.suppressed })
	m.end("job-2.1", mesosv1.TaskState_TASK_FAILED)
	m.await("the second launch", func() bool { return len(m.launches) == 6 && m.suppressed })
	for _, id := range []string{"job-0.1", "job-1.1", "job-2.2", "job-3.1", "job-4.1"} {
		m.end(id, mesosv1.TaskState_TASK_FINISHED)
	}
	if code := <-ended; code != exitAll {
		t.Errorf("code %d, want 0", code)
	}
}

// TestABatchSurvivesBeingKilled runs the program as a process, kills it while jobs run, and starts it again.
func TestABatchSurvivesBeingKilled(t *testing.T) {
	m := newMaster(t, func(command string, _ int) mesosv1.TaskState {
		if command == "quick" {
			return mesosv1.TaskState_TASK_FINISHED
		}
		return mesosv1.TaskState_TASK_RUNNING
	})
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	state := filepath.Join(dir, "state.json")
	jobs := write(t, "jobs.txt", "slow", "quick", "slow too")
	start := func() (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.CommandContext(t.Context(), program, "--master", m.addr, "--state", state, jobs)
		cmd.Env = append(os.Environ(), asProgram+"=1")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, &out
	}
	first, _ := start()
	m.await("the jobs to run", func() bool { return len(m.launches) == 3 && len(m.acks) >= 4 })
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // it was killed
	if got := m.framework.GetFailoverTimeout(); got != 3600 {
		t.Errorf("failover_timeout %v, want the hour that is the default", got)
	}
	// One ends while nobody is there, one later.
	m.mu.Lock()
	m.tasks["job-0.1"] = mesosv1.TaskState_TASK_FINISHED
	m.events = nil
	m.mu.Unlock()
	second, out := start()
	m.await("the second subscription", func() bool { return m.events != nil })
	m.end("job-2.1", mesosv1.TaskState_TASK_FINISHED)
	if err := second.Wait(); err != nil {
		t.Errorf("second run: %v\n%s", err, out)
	}
	if !strings.HasSuffix(out.String(), "3 finished, 0 given up\n") || len(m.launches) != 3 || m.frameworks != 1 || !m.over {
		t.Errorf("output\n%s\nwith %d launches and %d frameworks; want all finished with 3 and 1", out, len(m.launches), m.frameworks)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v; want nothing", left, err)
	}
}

func TestAJobWhoseLaunchNeverArrivedIsLaunchedAgain(t *testing.T) {
	m := newMaster(t, func(string, int) mesosv1.TaskState { return mesosv1.TaskState_TASK_FINISHED })
	m.frameworks = 1 // it is subscribed again
	jobs := write(t, "jobs.txt", "one")
	state := write(t, "state.json", `{"framework_id":"f-1","jobs":[{"command":"one","status":"launched","launches":1}]}`)
	code, out := batched(t, "--master", m.addr, "--state", state, "--backoff", "1ms", jobs)
	if code != exitAll || len(m.launches) != 1 || !strings.Contains(out, "job 0, launch 1: lost, again: one") || m.commands["job-0.2"] != "one" {
		t.Errorf("code %d, launches %v, output\n%s\nwant one launch more", code, m.launches, out)
	}
}

func TestABatchThatWasAwayForTooLongBeginsAnew(t *testing.T) {
	m := newMaster(t, func(string, int) mesosv1.TaskState { return mesosv1.TaskState_TASK_FINISHED })
	m.removed = true
	jobs := write(t, "jobs.txt", "done", "lost", "waiting")
	state := write(t, "state.json", `{"framework_id":"f-old","jobs":[
		{"command":"done","status":"finished","launches":1},
		{"command":"lost","status":"launched","launches":2},
		{"command":"waiting","status":"waiting"}]}`)
	code, out := batched(t, "--master", m.addr, "--state", state, jobs)
	if slices.Sort(m.launches); code != exitAll || !slices.Equal(m.launches, []string{"lost", "waiting"}) || !strings.Contains(out, "beginning anew") {
		t.Errorf("code %d, launches %v, output\n%s\nwant what was not done", code, m.launches, out)
	}
}

func TestABatchThatIsStoppedKeepsItsState(t *testing.T) {
	m := newMaster(t, func(string, int) mesosv1.TaskState { return mesosv1.TaskState_TASK_RUNNING })
	state := filepath.Join(t.TempDir(), "state.json")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	jobs := write(t, "jobs.txt", "one")
	go func() {
		var out, errs bytes.Buffer
		ended <- run(ctx, []string{"--master", m.addr, "--state", state, jobs}, &out, &errs)
	}()
	m.await("the launch", func() bool { return len(m.launches) == 1 })
	stop()
	if code := <-ended; code != exitStopped {
		t.Errorf("code %d, want 3", code)
	}
	if data, err := os.ReadFile(state); err != nil || !strings.Contains(string(data), `"framework_id": "f-1"`) || !strings.Contains(string(data), `"status": "launched"`) {
		t.Errorf("state %s, %v; want the framework and its job", data, err)
	}
	if m.over {
		t.Error("the framework was torn down")
	}
}

func TestWrongArgumentsAreRefused(t *testing.T) {
	jobs := write(t, "jobs.txt", "one")
	for what, args := range map[string][]string{
		"no jobs file": {}, "two of them": {jobs, jobs}, "a file that is not there": {filepath.Join(t.TempDir(), "none")},
		"an empty file": {write(t, "empty.txt", "# nothing")}, "no attempts": {"--attempts", "0", jobs}, "no flag of ours": {"--what", jobs},
		"state of other jobs":     {"--state", write(t, "s.json", `{"jobs":[{"command":"two"}]}`), jobs},
		"state of more jobs":      {"--state", write(t, "s.json", `{"jobs":[{"command":"one"},{"command":"two"}]}`), jobs},
		"state that is none":      {"--state", write(t, "s.json", "hello"), jobs},
		"state with a hole":       {"--state", write(t, "s.json", `{"jobs":[null]}`), jobs},
		"state in no folder":      {"--state", filepath.Join(t.TempDir(), "none", "s.json"), jobs},
		"a line that is too long": {write(t, "long.txt", strings.Repeat("x", maxLine+1))},
	} {
		if code, out := batched(t, append([]string{"--master", "127.0.0.1:1"}, args...)...); code != exitUsage || out == "" {
			t.Errorf("%s: code %d, %q; want 2 and why", what, code, out)
		}
	}
}
