package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// sandboxOf is the sandbox of a task's executor, once there is a file of that name in it.
func sandboxOf(t *testing.T, c *cluster.Cluster, executor, file string) string {
	t.Helper()
	var sandbox string
	eventually(t, file+" in the sandbox of "+executor, 30*time.Second, func() bool {
		found, err := filepath.Glob(filepath.Join(c.Dir, "agent/slaves/*/frameworks/*/executors", executor, "runs/latest", file))
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 1 {
			sandbox = filepath.Dir(found[0])
		}
		return len(found) == 1
	})
	for range strings.Count(file, "/") {
		sandbox = filepath.Dir(sandbox)
	}
	real, err := filepath.EvalSymlinks(sandbox)
	if err != nil {
		t.Fatal(err)
	}
	return real
}

// ownerAndMode are those of a file, whose last link is not followed.
func ownerAndMode(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := user.LookupId(strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Uid)))
	if err != nil {
		t.Fatal(err)
	}
	return owner.Username + " " + info.Mode().String()
}

func TestSandboxesLieWhereFrameworksLookForThem(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "sandboxes", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 0.5, 256)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	own := cluster.Task(o, "own", 0.1, 32, cluster.Shell("echo >ready; sleep 1000"))
	own.Command.User = proto.String("nobody")
	grouped := cluster.Task(o, "grouped", 0.1, 32, cluster.Shell("pwd; echo >ready; sleep 1000"))
	grouped.Command.User = proto.String("nobody")
	group := (&churn{Framework: f}).group(o, grouped)
	group.LaunchGroup.Executor.Container = nil
	if err := f.Client().Accept(ctx, []*mesosv1.OfferID{o.GetId()}, []*mesosv1.Offer_Operation{launching(own), group}, 0); err != nil {
		t.Fatal(err)
	}
	got, err := f.State(ctx, []string{"own", "grouped"}, mesosv1.TaskState_TASK_RUNNING, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_ERROR)
	if err != nil {
		t.Fatal(err)
	}
	framework, agent := f.Client().FrameworkID().GetValue(), o.GetAgentId().GetValue()
	ids := map[string]*mesosv1.ContainerID{}
	for id, u := range got {
		if u.Status.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Fatalf("task %s: %v", id, u.Status)
		}
		ids[id] = u.Status.GetContainerStatus().GetContainerId()
	}
	executors := filepath.Join(c.Dir, "agent/slaves", agent, "frameworks", framework, "executors")
	sandbox := filepath.Join(executors, "own/runs", ids["own"].GetValue())
	if latest := sandboxOf(t, c, "own", "ready"); latest != sandbox {
		t.Errorf("runs/latest leads to %s, want %s", latest, sandbox)
	}
	nested := ids["grouped"]
	outer := filepath.Join(executors, "group-of-grouped/runs", nested.GetParent().GetValue())
	inner := filepath.Join(outer, "containers", nested.GetValue())
	if latest := sandboxOf(t, c, "group-of-grouped", "tasks/grouped/ready"); latest != outer {
		t.Errorf("runs/latest of the group leads to %s, want %s", latest, outer)
	}
	if task, err := filepath.EvalSymlinks(filepath.Join(outer, "tasks/grouped")); err != nil || task != inner {
		t.Errorf("tasks/grouped leads to %s, %v; want %s", task, err, inner)
	}
	a := newPeer(ctx, t, agentAPI, c.Agent, mediaJSON)
	a.call(http.StatusOK, object{"type": "LAUNCH_CONTAINER", "launch_container": object{
		"container_id": object{"value": "alone"}, "command": object{"value": "echo >ready; sleep 1000", "user": "nobody"},
		"resources": []any{scalar("cpus", 0.1), scalar("mem", 32)},
	}})
	alone := filepath.Join(c.Dir, "agent/containers/alone")
	eventually(t, "the standalone container", 20*time.Second, func() bool {
		_, err := os.Stat(filepath.Join(alone, "ready"))
		return err == nil
	})
	for path, want := range map[string]string{
		sandbox: "nobody drwxr-x---", inner: "nobody drwxr-x---", alone: "nobody drwxr-x---",
		filepath.Join(sandbox, "stdout"): "nobody -rw-r--r--", filepath.Join(inner, "stderr"): "nobody -rw-r--r--",
	} {
		if got := ownerAndMode(t, path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	if data, err := os.ReadFile(filepath.Join(inner, "stdout")); err != nil || strings.TrimSpace(string(data)) != inner {
		t.Errorf("a task of a group begins in %q, %v; want its sandbox %s", data, err, inner)
	}
}

// files asks an agent's files in their old form.
func files(t *testing.T, c *cluster.Cluster, what, path string, more ...string) (int, []byte) {
	t.Helper()
	query := url.Values{"path": {path}}
	for n := 0; n+1 < len(more); n += 2 {
		query.Set(more[n], more[n+1])
	}
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + c.Agent + "/files/" + what + "?" + query.Encode())
	if err != nil {
		t.Fatalf("%s of %s: %v", what, path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatalf("%s of %s: %v", what, path, err)
	}
	return resp.StatusCode, body
}

func TestWhateverATaskPutsInItsSandboxOnlyItsFilesAreServed(t *testing.T) {
	needRoot(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	outside := t.TempDir()
	const private = "this is none of the task's"
	if err := os.WriteFile(filepath.Join(outside, "private"), []byte(private), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := cluster.Subscribe(ctx, c.Master, "files", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 0.1, 64)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.ReplaceAll(`
ln -s OUT/private link; ln -s OUT folder; ln -s /proc/self/root root; ln -s /proc/1/environ environ; ln -s ../../../../../../../../../../../OUT/private up
ln -s loop loop; ln -s /dev/zero zero; ln -s link chain; mkdir inside; ln -s ../../../../.. inside/out; echo fine >inside/file; ln -s inside/file well
mkfifo fifo; mknod null c 1 3; mknod disk b 8 0; truncate -s 10G sparse; printf end >>sparse; ln OUT/private hard 2>/dev/null
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
echo >ready; sleep 1000`, "OUT", outside)
	if err := f.Launch(ctx, o, cluster.Task(o, "odd", 0.1, 64, cluster.Shell(line))); err != nil {
		t.Fatal(err)
	}
	sandbox := sandboxOf(t, c, "odd", "ready")
	a := newPeer(ctx, t, agentAPI, c.Agent, mediaJSON)
	for _, name := range []string{
		"link", "folder/private", "folder", "root", "root" + outside + "/private", "environ", "up", "loop", "zero", "chain", "inside/out", "fifo", "null", "disk", "socket",
		"../../../../../../../../../etc/hostname", "inside/../../../../../../../../../../etc/hostname",
	} {
		path := sandbox + "/" + name
		for _, what := range []string{"read", "download", "browse"} {
			begun := time.Now()
			status, body := files(t, c, what, path, "offset", "0", "length", "100")
			if status == http.StatusOK || strings.Contains(string(body), private) {
				t.Errorf("%s of %s: %d %.100q, want it refused", what, name, status, body)
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("%s of %s took %s", what, name, took)
			}
		}
		if r := a.try(object{"type": "READ_FILE", "read_file": object{"path": path, "offset": 0, "length": 100}}); r.status == http.StatusOK {
			t.Errorf("READ_FILE of %s: %d %.100q, want it refused", name, r.status, r.text)
		}
		if r := a.try(object{"type": "LIST_FILES", "list_files": object{"path": path}}); r.status == http.StatusOK {
			t.Errorf("LIST_FILES of %s: %d %.100q, want it refused", name, r.status, r.text)
		}
	}
	for name, want := range map[string]string{"inside/file": "fine\n", "well": "fine\n"} {
		if status, body := files(t, c, "download", sandbox+"/"+name); status != http.StatusOK || string(body) != want {
			t.Errorf("download of %s: %d %q, want %q", name, status, body, want)
		}
	}
	status, body := files(t, c, "read", sandbox+"/sparse", "offset", strconv.Itoa(10<<30-5), "length", "100")
	var read struct {
		Data   string
		Offset int64
	}
	if err := json.Unmarshal(body, &read); status != http.StatusOK || err != nil || read.Data != "\x00\x00\x00\x00\x00end" {
		t.Errorf("the end of a file of 10 GB is %d %q, %v", status, body, err)
	}
	r := a.call(http.StatusOK, object{"type": "READ_FILE", "read_file": object{"path": sandbox + "/sparse", "offset": 10 << 30}})
	encoded, _ := dig(r.object, "read_file", "data").(string)
	if data, err := base64.StdEncoding.DecodeString(encoded); err != nil || string(data) != "end" || fmt.Sprint(dig(r.object, "read_file", "size")) == "0" {
		t.Errorf("READ_FILE of its end: %q, %v, size %v", data, err, dig(r.object, "read_file", "size"))
	}
	if status, body := files(t, c, "browse", sandbox); status != http.StatusOK || !strings.Contains(string(body), "/sparse") {
		t.Errorf("browse of the sandbox: %d %q, want it listed", status, body)
	}
}

func TestATaskThatTakesItsOutputFromUnderTheLoggerWritesNowhereElse(t *testing.T) {
	needRoot(t)
	victim := filepath.Join(t.TempDir(), "victim")
	const was = "what a machine's file holds\n"
	if err := os.WriteFile(victim, []byte(was), 0o644); err != nil {
		t.Fatal(err)
	}
	c := start(t, cluster.Options{Composition: "container_logger \"file\" {\n  config {\n    max_size = \"4KiB\"\n    keep     = 2\n  }\n}\n"})
	const fill = `i=0; while [ $i -lt 500 ]; do echo "WORD line number $i"; i=$((i+1)); done; `
	for name, line := range map[string]string{
		"link":   "echo first; rm stdout; ln -s " + victim + " stdout; ln -s " + victim + " stdout.1; ln -s " + victim + " stdout.2; ",
		"folder": "echo first; rm stdout; mkdir -p stdout/x stdout.1/x; ",
		"fifo":   "echo first; rm stdout; mkfifo stdout stdout.1; ",
		"closed": "echo first; exec >&- 2>&-; ",
	} {
		t.Run(name, func(t *testing.T) {
			work := strings.ReplaceAll(fill, "WORD", name)
			if name == "closed" {
				work = ""
			}
			mosaic(t, c, 0, "run", "--name", name, "--mem", "64", "--detach", "--shell", "--", line+work+"echo >done; exit 0")
		})
	}
	eventually(t, "all tasks' ends", 60*time.Second, func() bool {
		return strings.Count(mosaic(t, c, 0, "task", "ls", "--all").Stdout, "TASK_FINISHED") == 4
	})
	if data, err := os.ReadFile(victim); err != nil || string(data) != was {
		t.Errorf("the machine's file is %.200q now, %v", data, err)
	}
}
