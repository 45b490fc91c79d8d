package e2e

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// fetching is a cluster with a framework that launches tasks which fetch.
type fetching struct {
	*cluster.Framework
	c     *cluster.Cluster
	ctx   context.Context
	tasks []*mesosv1.TaskInfo
	offer *mesosv1.Offer
}

// fetchWith starts a cluster whose agent has these settings.
func fetchWith(t *testing.T, settings string, env ...string) *fetching {
	t.Helper()
	c := start(t, cluster.Options{Composition: "agent {\n" + settings + "\n}\n", Env: env})
	if err := os.Chmod(c.Dir, 0o755); err != nil { // a sandbox is reached by its user, too
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	t.Cleanup(cancel)
	f, err := cluster.Subscribe(ctx, c.Master, "fetching", "*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Disconnect)
	return &fetching{Framework: f, c: c, ctx: ctx}
}

// fetched is a URI of a task.
func fetched(value string, change ...func(*mesosv1.CommandInfo_URI)) *mesosv1.CommandInfo_URI {
	u := &mesosv1.CommandInfo_URI{Value: &value}
	for _, c := range change {
		c(u)
	}
	return u
}

func intoCache(u *mesosv1.CommandInfo_URI) { u.Cache = proto.Bool(true) }

// add adds a task of a user to those that launch will launch.
func (f *fetching) add(t *testing.T, id, user, line string, uris ...*mesosv1.CommandInfo_URI) {
	t.Helper()
	if f.offer == nil {
		var err error
		if f.offer, err = f.Offer(f.ctx, 2, 1024); err != nil {
			t.Fatal(err)
		}
	}
	command := cluster.Shell(line)
	command.User, command.Uris = &user, uris
	f.tasks = append(f.tasks, cluster.Task(f.offer, id, 0.1, 32, command))
}

// launch launches what was added and returns how each task ended.
func (f *fetching) launch(t *testing.T) map[string]*mesosv1.TaskStatus {
	t.Helper()
	var ids []string
	for _, task := range f.tasks {
		ids = append(ids, task.GetTaskId().GetValue())
	}
	if err := f.Launch(f.ctx, f.offer, f.tasks...); err != nil {
		t.Fatal(err)
	}
	f.tasks, f.offer = nil, nil
	got, err := f.State(f.ctx, ids, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_DROPPED)
	if err != nil {
		t.Fatal(err)
	}
	ends := map[string]*mesosv1.TaskStatus{}
	for id, u := range got {
		ends[id] = u.Status
	}
	return ends
}

// finished launches what was added; all of it must end well.
func (f *fetching) finished(t *testing.T) {
	t.Helper()
	for id, s := range f.launch(t) {
		if s.GetState() != mesosv1.TaskState_TASK_FINISHED {
			t.Errorf("task %s: %s %s %q, want TASK_FINISHED", id, s.GetState(), s.GetReason(), s.GetMessage())
		}
	}
}

// refused launches what was added; each must fail to launch, with its text in the reason.
func (f *fetching) refused(t *testing.T, wants map[string]string) {
	t.Helper()
	ends := f.launch(t)
	for id, want := range wants {
		s := ends[id]
		if s.GetState() != mesosv1.TaskState_TASK_FAILED || s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED || !strings.Contains(s.GetMessage(), want) {
			t.Errorf("task %s: %s %s %q, want TASK_FAILED, REASON_CONTAINER_LAUNCH_FAILED and %q", id, s.GetState(), s.GetReason(), s.GetMessage(), want)
		}
	}
}

// counting is a server that counts what it is asked for.
type counting struct {
	*httptest.Server
	mu   sync.Mutex // guards gets
	gets map[string]int
}

func newCounting(t *testing.T, answer http.HandlerFunc) *counting {
	t.Helper()
	s := &counting{gets: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.gets[r.Method+" "+r.URL.Path]++
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *counting) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gets[what]
}

func TestTenTasksFetchOnceAndAnotherUserForItself(t *testing.T) {
	needRoot(t)
	body := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	s := newCounting(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
	f := fetchWith(t, `fetcher_cache_size = "1500KiB"`)
	const check = `test "$(wc -c <%s)" = 1048576`
	for i := range 10 {
		f.add(t, fmt.Sprint("root-", i), "root", fmt.Sprintf(check, "one"), fetched(s.URL+"/one", intoCache))
	}
	f.finished(t)
	if n := s.count("GET /one"); n != 1 {
		t.Errorf("for ten tasks the server was asked %d times, want once", n)
	}
	f.add(t, "nobody", "nobody", fmt.Sprintf(check, "one")+` && test "$(stat -c %U one)" = nobody`, fetched(s.URL+"/one", intoCache))
	f.finished(t)
	if n := s.count("GET /one"); n != 2 {
		t.Errorf("with a task of another user the server was asked %d times, want twice", n)
	}
	// Another file takes the place of that one, which has to be fetched again then.
	f.add(t, "other", "root", fmt.Sprintf(check, "two"), fetched(s.URL+"/two", intoCache))
	f.finished(t)
	f.add(t, "again", "root", fmt.Sprintf(check, "one"), fetched(s.URL+"/one", intoCache))
	f.finished(t)
	if one, two := s.count("GET /one"), s.count("GET /two"); one != 3 || two != 1 {
		t.Errorf("after another file took its place: %d and %d, want it fetched once more", one, two)
	}
}

func TestWhatIsLargerThanTheCacheIsFetchedPastIt(t *testing.T) {
	needRoot(t)
	body := bytes.Repeat([]byte("x"), 1<<20)
	s := newCounting(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
	f := fetchWith(t, `fetcher_cache_size = "100KiB"`)
	for i := range 3 {
		f.add(t, fmt.Sprint("task-", i), "root", `test "$(wc -c <large)" = 1048576`, fetched(s.URL+"/large", intoCache))
	}
	f.finished(t)
	if n := s.count("GET /large"); n < 3 {
		t.Errorf("the server was asked %d times, want once for each of three tasks", n)
	}
	if left, err := os.ReadDir(filepath.Join(f.c.Dir, "agent", "fetch")); err != nil || len(left) > 0 {
		t.Errorf("the cache holds %v, %v; want nothing", left, err)
	}
}

func TestArchivesOfAllKindsAreUnpacked(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "tree", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"tree/sub/file": 0o644, "tree/program": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho of the archive\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("sub/file", filepath.Join(dir, "tree", "link")); err != nil {
		t.Fatal(err)
	}
	make := func(argv ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			if errors.Is(err, exec.ErrNotFound) {
				t.Skip("needs " + argv[0])
			}
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	f := fetchWith(t, "")
	files := http.FileServer(http.Dir(dir))
	s := newCounting(t, files.ServeHTTP)
	const check = `test "$(./tree/program)" = "of the archive" && test "$(readlink tree/link)" = sub/file && cmp tree/program tree/sub/file`
	for suffix, flag := range map[string]string{".tar": "-cf", ".tgz": "-czf", ".tar.gz": "-czf", ".tbz2": "-cjf", ".tar.bz2": "-cjf", ".txz": "-cJf", ".tar.xz": "-cJf"} {
		make("tar", flag, "a"+suffix, "tree")
		id := strings.ReplaceAll(suffix[1:], ".", "-")
		f.add(t, id, "root", check, fetched(s.URL+"/a"+suffix))
		f.add(t, id+"-cached", "nobody", check+` && test "$(stat -c %U tree/program)" = nobody`, fetched(s.URL+"/a"+suffix, intoCache))
	}
	f.finished(t)
	make("python3", "-m", "zipfile", "-c", "a.zip", "tree")
	make("gzip", "-k", "tree/program")
	f.add(t, "zip", "root", `test "$(sh tree/program)" = "of the archive"`, fetched(s.URL+"/a.zip"))
	f.add(t, "gz", "root", `test "$(sh program)" = "of the archive"`, fetched(s.URL+"/tree/program.gz"))
	f.add(t, "renamed", "root", `test "$(sh deep/folder/tree/program)" = "of the archive" && test -e deep/folder/b.tar.gz`,
		fetched(s.URL+"/a.tar.gz", func(u *mesosv1.CommandInfo_URI) { u.OutputFile = proto.String("deep/folder/b.tar.gz") }))
	f.finished(t)

	wants := map[string]string{}
	for _, name := range []string{"a.zip", "a.tgz", "a.tbz2", "a.txz", "tree/program.gz"} {
		whole, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		broken := "broken-" + filepath.Base(name)
		if err := os.WriteFile(filepath.Join(dir, broken), whole[:len(whole)-len(whole)/3], 0o644); err != nil {
			t.Fatal(err)
		}
		wants[broken] = s.URL + "/" + broken + ": extract: "
		f.add(t, broken, "root", "true", fetched(s.URL+"/"+broken))
	}
	f.refused(t, wants)
}

func TestFetchingIsTheTasksUsersBusiness(t *testing.T) {
	needRoot(t)
	f := fetchWith(t, "")
	dir := t.TempDir()
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	private := filepath.Join(dir, "private")
	if err := os.WriteFile(private, []byte("root's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.add(t, "of-root", "root", "cat private", fetched(private))
	f.finished(t)
	f.add(t, "of-nobody", "nobody", "cat private", fetched(private))
	f.add(t, "file-of-nobody", "nobody", "cat private", fetched("file://"+private))
	f.refused(t, map[string]string{"of-nobody": "open " + private + ": permission denied", "file-of-nobody": "open " + private + ": permission denied"})
}

func TestADownloadThatStandsStillIsGivenUpAndOneOfAKilledTaskIsCalledOff(t *testing.T) {
	needRoot(t)
	gone := make(chan struct{}, 2)
	s := newCounting(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(make([]byte, 100_000))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	})
	f := fetchWith(t, `fetcher_stall_timeout = "1s"`)
	f.add(t, "stalls", "root", "true", fetched(s.URL+"/stalls"))
	f.refused(t, map[string]string{"stalls": "nothing came for 1s"})
	<-gone

	f = fetchWith(t, "")
	f.add(t, "killed", "root", "true", fetched(s.URL+"/killed", intoCache))
	task := f.tasks[0]
	if err := f.Launch(f.ctx, f.offer, task); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the download", 20*time.Second, func() bool { return s.count("GET /killed") == 1 })
	if err := f.Client().Kill(f.ctx, task.GetTaskId(), task.GetAgentId()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.State(f.ctx, []string{"killed"}, mesosv1.TaskState_TASK_KILLED, mesosv1.TaskState_TASK_FAILED); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Error("the task was killed, and its download goes on")
	}
}

// ftpServer serves a folder by FTP, as a program that others made.
func ftpServer(t *testing.T, dir string) string {
	t.Helper()
	const python = "/usr/bin/python3" // Debian's, which has the server's package
	if exec.CommandContext(t.Context(), python, "-c", "import pyftpdlib").Run() != nil {
		t.Skip("needs an FTP server: python3-pyftpdlib")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "-m", "pyftpdlib", "-i", "127.0.0.1", "-p", fmt.Sprint(addr.Port), "-d", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "the FTP server", 20*time.Second, func() bool {
		conn, err := net.DialTimeout("tcp", addr.String(), time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return "ftp://" + addr.String()
}

func TestFilesComeByFTPAndByHadoopsClient(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "pub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pub", "file"), []byte("by ftp\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ftp := ftpServer(t, dir)
	// Hadoop's client is a Java program of some hundred MB; what it is called with and answers is what counts here.
	programs := t.TempDir()
	for d := programs; d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const client = "#!/bin/sh\n" + `case "$*" in
"fs -cat hdfs://namenode/file") echo by hadoop as $(id -un);;
*) echo "cat: File does not exist" >&2; exit 1;;
esac
`
	if err := os.WriteFile(filepath.Join(programs, "hadoop"), []byte(client), 0o755); err != nil {
		t.Fatal(err)
	}
	f := fetchWith(t, "", "PATH="+programs+":"+os.Getenv("PATH"))
	f.add(t, "ftp", "root", `test "$(cat file)" = "by ftp"`, fetched(ftp+"/pub/file"))
	f.add(t, "ftp-cached", "nobody", `test "$(cat file)" = "by ftp"`, fetched(ftp+"/pub/file", intoCache))
	f.add(t, "hdfs", "nobody", `test "$(cat file)" = "by hadoop as nobody"`, fetched("hdfs://namenode/file"))
	f.finished(t)
	f.add(t, "ftp-missing", "root", "true", fetched(ftp+"/pub/none"))
	f.add(t, "hdfs-missing", "root", "true", fetched("hdfs://namenode/none"))
	f.refused(t, map[string]string{"ftp-missing": ftp + "/pub/none: server answered RETR with 550", "hdfs-missing": "cat: File does not exist"})

	f = fetchWith(t, `fetcher_schemes = ["https", "hdfs"]`)
	f.add(t, "forbidden", "root", "true", fetched(ftp+"/pub/file"))
	f.add(t, "no-client", "root", "true", fetched("hdfs://namenode/file"))
	f.refused(t, map[string]string{"forbidden": "this agent fetches nothing by ftp, only by https, hdfs", "no-client": "needs Hadoop's client, which this agent does not have"})
}

func TestAPrivateAuthorityIsTrustedWhereItIsNamed(t *testing.T) {
	needRoot(t)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/file", http.StatusFound)
			return
		}
		fmt.Fprint(w, "by https")
	}))
	defer s.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	f := fetchWith(t, fmt.Sprintf("fetcher_ca = %q\nfetcher_redirects = 0", ca))
	f.add(t, "trusted", "root", `test "$(cat file)" = "by https"`, fetched(s.URL+"/file"))
	f.finished(t)
	f.add(t, "moved", "root", "true", fetched(s.URL+"/moved"))
	f.refused(t, map[string]string{"moved": "this agent follows none"})
	f = fetchWith(t, "")
	f.add(t, "unknown", "root", "true", fetched(s.URL+"/file"))
	f.refused(t, map[string]string{"unknown": "certificate"})
}
