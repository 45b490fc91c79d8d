package api_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/api"
	"github.com/mosaic-cluster/mosaic/core/api/codec"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// sandbox makes a task's sandbox with what a hostile task would put there, and a secret beside it.
func sandbox(t *testing.T) (files fakeFiles, dir string) {
	t.Helper()
	top := t.TempDir()
	dir = filepath.Join(top, "sandbox")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "logs"), 0o755))
	must(os.WriteFile(filepath.Join(top, "secret"), []byte("secret"), 0o644))
	must(os.WriteFile(filepath.Join(dir, "stdout"), []byte("hello, world\n"), 0o644))
	must(os.WriteFile(filepath.Join(dir, "logs", "a.log"), []byte(strings.Repeat("0123456789", 10000)), 0o640))
	must(os.WriteFile(filepath.Join(dir, "bad\xffname"), nil, 0o644))
	must(os.Symlink("logs", filepath.Join(dir, "inside")))
	must(os.Symlink("../secret", filepath.Join(dir, "outside")))
	must(os.Symlink(top, filepath.Join(dir, "up")))
	must(os.Symlink("/etc/passwd", filepath.Join(dir, "absolute")))
	must(os.Symlink("loop", filepath.Join(dir, "loop")))
	must(syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	return fakeFiles{
		"/var/run/sandbox": dir,
		"/slave/log":       filepath.Join(dir, "stdout"),
	}, dir
}

func TestFilesAreReadWithinTheSandboxOnly(t *testing.T) {
	files, _ := sandbox(t)
	server := serveAgent(t, newFakeAgent(), func(_ *api.Config, d *api.AgentDeps) { d.Files = files })
	digits := strings.Repeat("0123456789", 10000)
	for _, c := range []struct {
		path   string
		status int
		body   string
	}{
		{"/files/read?path=/var/run/sandbox/stdout&offset=0", 200, `{"offset":0,"data":"hello, world\n"}`},
		{"/files/read?path=/var/run/sandbox/stdout&offset=7&length=5", 200, `{"offset":7,"data":"world"}`},
		{"/files/read?path=/var/run/sandbox/stdout", 200, `{"offset":13,"data":""}`},
		{"/files/read?path=/var/run/sandbox/stdout&offset=-1&length=10", 200, `{"offset":13,"data":""}`},
		{"/files/read?path=/var/run/sandbox/stdout&offset=5&length=-1", 200, `{"offset":5,"data":", world\n"}`},
		{"/files/read?path=/var/run/sandbox/stdout&offset=99", 200, `{"offset":99,"data":""}`},
		{"/files/read?path=/var/run/sandbox/logs/a.log&offset=0", 200, `{"offset":0,"data":"` + digits[:65536] + `"}`},
		{"/files/read?path=/var/run/sandbox/inside/a.log&offset=99998", 200, `{"offset":99998,"data":"89"}`},
		{"/files/read?path=/slave/log&offset=0&jsonp=f", 200, `f({"offset":0,"data":"hello, world\n"});`},
		{"/files/read?path=var/run/sandbox//logs/../stdout&offset=0", 200, `{"offset":0,"data":"hello, world\n"}`},
		{"/files/read", 400, "Expecting 'path=value' in query."},
		{"/files/read?path=/var/run/sandbox", 400, "Cannot read a directory"},
		{"/files/read?path=/var/run/sandbox/stdout&offset=-2", 400, "Failed to parse offset"},
		{"/files/read?path=/var/run/sandbox/stdout&offset=99999999999999999999", 400, "Failed to parse offset"},
		{"/files/read?path=/var/run/sandbox/stdout&offset=0&length=x", 400, "Failed to parse length"},
		{"/files/read?path=/var/run/sandbox/none", 404, "Requested file '/var/run/sandbox/none' was not found"},
		{"/files/read?path=/var/run/sandbox/stdout/x", 404, "was not found"},
		{"/files/read?path=/slave/log/x", 404, "was not found"},
		{"/files/read?path=/etc/passwd", 404, "was not found"},
		{"/files/read?path=/var/run/sandbox/../../../etc/passwd", 404, "was not found"},
		{"/files/read?path=/var/run/sandbox/outside", 404, "was not found"},
		{"/files/read?path=/var/run/sandbox/up/secret", 404, "was not found"},
		{"/files/read?path=/var/run/sandbox/absolute", 404, "was not found"},
		{"/files/read?path=/var/run/sandbox/loop", 404, "was not found"},
		{"/files/read?path=/var/run/sandbox/pipe", 404, "was not found"},
		{"/files/read?path=/var/run/sandbox/stdout%00", 404, "was not found"},
		{"/files/read?path=/var/run/sandbox/" + strings.Repeat("x", 5000), 404, "was not found"},
		{"/files/read?path=/", 404, "was not found"},
		{"/files/download?path=/var/run/sandbox/stdout", 200, "hello, world\n"},
		{"/files/download?path=/var/run/sandbox/logs/a.log", 200, digits},
		{"/files/download?path=/var/run/sandbox/outside", 404, "was not found"},
		{"/files/download?path=/var/run/sandbox/logs", 400, "Cannot download a directory"},
		{"/files/browse?path=/var/run/sandbox/stdout", 200, `[]`},
		{"/files/browse?path=/var/run/sandbox/up", 404, "was not found"},
		{"/files/browse", 400, "Expecting 'path=value' in query."},
	} {
		resp, body := do(t, request(t, "GET", server.URL+c.path, ""))
		if resp.StatusCode != c.status || body != c.body && (c.status == 200 || !strings.Contains(body, c.body)) {
			t.Errorf("GET %.80s: %d %.200q, want %d %.200q", c.path, resp.StatusCode, body, c.status, c.body)
		}
	}
	resp, _ := do(t, request(t, "GET", server.URL+"/files/download?path=/var/run/sandbox/stdout", ""))
	if got := resp.Header.Get("Content-Disposition"); got != "attachment; filename=stdout" {
		t.Errorf("Content-Disposition %q", got)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/octet-stream" {
		t.Errorf("Content-Type %q", got)
	}
}

func TestAFolderIsListedSortedWithWhatALinkLeadsTo(t *testing.T) {
	files, dir := sandbox(t)
	server := serveAgent(t, newFakeAgent(), func(_ *api.Config, d *api.AgentDeps) { d.Files = files })
	_, body := do(t, request(t, "GET", server.URL+"/files/browse?path=/var/run/sandbox/", ""))
	var got []struct {
		Path, Mode, UID, GID string
		Nlink, Size, Mtime   *int64
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	want := [][2]string{
		{"absolute", "lrwxrwxrwx"}, {"bad\uFFFDname", "-rw-r--r--"}, {"inside", "drwxr-xr-x"}, {"logs", "drwxr-xr-x"},
		{"loop", "lrwxrwxrwx"}, {"outside", "lrwxrwxrwx"}, {"pipe", "prw-r--r--"}, {"stdout", "-rw-r--r--"}, {"up", "lrwxrwxrwx"},
	}
	if len(got) != len(want) {
		t.Fatalf("%d entries in %s, want %d", len(got), body, len(want))
	}
	for i, g := range got {
		if g.Path != "/var/run/sandbox/"+want[i][0] || g.Mode != want[i][1] || g.UID == "" || g.GID == "" || g.Nlink == nil || g.Size == nil || g.Mtime == nil || *g.Mtime == 0 {
			t.Errorf("entry %d: %+v, want %v with all its fields", i, g, want[i])
		}
	}
	info, err := os.Stat(filepath.Join(dir, "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	if g := got[7]; *g.Size != 13 || *g.Mtime != info.ModTime().Unix() {
		t.Errorf("stdout: size %d, mtime %d; want 13, %d", *g.Size, *g.Mtime, info.ModTime().Unix())
	}
}

func TestFilesAreReadByV1CallsToo(t *testing.T) {
	files, _ := sandbox(t)
	agent := serveAgent(t, newFakeAgent(), func(_ *api.Config, d *api.AgentDeps) { d.Files = files })
	_, body := do(t, request(t, "POST", agent.URL+"/api/v1", `{"type":"READ_FILE","read_file":{"path":"/slave/log","offset":7,"length":5}}`, sendJSON))
	if want := `{"type":"READ_FILE","read_file":{"size":13,"data":"d29ybGQ="}}`; body != want {
		t.Errorf("READ_FILE = %s, want %s", body, want)
	}
	_, body = do(t, request(t, "POST", agent.URL+"/api/v1", `{"type":"LIST_FILES","list_files":{"path":"/var/run/sandbox/logs"}}`, sendJSON))
	var list agentv1.Response
	if err := codec.Unmarshal(codec.JSON, []byte(body), &list); err != nil {
		t.Fatal(err)
	}
	infos := list.GetListFiles().GetFileInfos()
	if len(infos) != 1 || infos[0].GetPath() != "/var/run/sandbox/logs/a.log" || infos[0].GetSize() != 100000 || infos[0].GetMode() != 0o100640 {
		t.Errorf("LIST_FILES = %s", body)
	}
	if resp, _ := do(t, request(t, "POST", agent.URL+"/api/v1", `{"type":"READ_FILE","read_file":{"path":"/x","offset":0}}`, sendJSON)); resp.StatusCode != 404 {
		t.Errorf("READ_FILE of nothing: %d, want 404", resp.StatusCode)
	}

	master := serveMaster(t, newFakeMaster(), func(_ *api.Config, d *api.MasterDeps) { d.Files = fakeFiles{"/master/log": files["/slave/log"]} })
	_, body = do(t, request(t, "POST", master.URL+"/api/v1", `{"type":"READ_FILE","read_file":{"path":"/master/log","offset":0}}`, sendJSON, wantProtobuf))
	var read masterv1.Response
	if err := codec.Unmarshal(codec.Protobuf, []byte(body), &read); err != nil || string(read.GetReadFile().GetData()) != "hello, world\n" {
		t.Errorf("master READ_FILE = %v, %v", &read, err)
	}
	if resp, _ := do(t, request(t, "POST", master.URL+"/api/v1", `{"type":"LIST_FILES","list_files":{"path":"/x"}}`, sendJSON)); resp.StatusCode != 404 {
		t.Errorf("master LIST_FILES of nothing: %d, want 404", resp.StatusCode)
	}
}

func TestTheApproverIsAskedForRoutesAndFiles(t *testing.T) {
	files, dir := sandbox(t)
	// Rules are about the user that the container runs as: its sandbox's owner.
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	owner := strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Uid))
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	var asked []string
	server := serveAgent(t, newFakeAgent(), func(c *api.Config, d *api.AgentDeps) {
		d.Files = files
		c.Approver = approver(func(principal, action, object string) error {
			asked = append(asked, fmt.Sprint(action, " ", object))
			if action == "ACCESS_SANDBOX" || action == "VIEW_FLAGS" {
				return api.ErrForbidden
			}
			return nil
		})
	})
	for path, want := range map[string]int{
		"/files/read?path=/var/run/sandbox/stdout":     403,
		"/files/download?path=/var/run/sandbox/stdout": 403,
		"/files/read?path=/slave/log":                  200,
		"/flags":                                       403,
		"/containers":                                  200,
	} {
		if resp, body := do(t, request(t, "GET", server.URL+path, "")); resp.StatusCode != want {
			t.Errorf("GET %s: %d %q, want %d", path, resp.StatusCode, body, want)
		}
	}
	all := strings.Join(asked, "\n")
	for _, want := range []string{"ACCESS_SANDBOX " + owner, "ACCESS_MESOS_LOG /slave/log", "VIEW_FLAGS /flags", "GET_ENDPOINT_WITH_PATH /containers"} {
		if !strings.Contains(all, want) {
			t.Errorf("not asked for %q, but for:\n%s", want, all)
		}
	}
}
