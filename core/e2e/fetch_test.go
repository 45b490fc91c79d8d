package e2e

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// fileServer serves archives with a file dir/inside.txt, a program and a plain file.
func fileServer(t *testing.T) string {
	t.Helper()
	var tgz, zipped bytes.Buffer
	gz := gzip.NewWriter(&tgz)
	tw := tar.NewWriter(gz)
	const text = "from the archive\n"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(tw.WriteHeader(&tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755}))
	must(tw.WriteHeader(&tar.Header{Name: "dir/inside.txt", Size: int64(len(text)), Mode: 0o644}))
	_, err := tw.Write([]byte(text))
	must(err)
	must(tw.Close())
	must(gz.Close())
	zw := zip.NewWriter(&zipped)
	w, err := zw.Create("dir/inside.txt")
	must(err)
	_, err = w.Write([]byte(text))
	must(err)
	must(zw.Close())

	mux := http.NewServeMux()
	serve := func(path string, data []byte) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) })
	}
	serve("/a.tar.gz", tgz.Bytes())
	serve("/a.zip", zipped.Bytes())
	serve("/tool", []byte("#!/bin/sh\necho the tool says $1\n"))
	serve("/broken.tar.gz", tgz.Bytes()[:tgz.Len()/2])
	mux.Handle("/moved", http.RedirectHandler("/tool", http.StatusFound))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestRunFetchesWhatItIsTold(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	url := fileServer(t)
	local := filepath.Join(c.Dir, "notes.txt")
	if err := os.WriteFile(local, []byte("a local file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, line string
		uris       []string
		want       string
	}{
		{"tar.gz", "cat dir/inside.txt; ls -d a.tar.gz", []string{url + "/a.tar.gz"}, "from the archive\na.tar.gz\n"},
		{"zip", "cat dir/inside.txt", []string{url + "/a.zip"}, "from the archive\n"},
		{"a plain file, and a redirect", "sh tool x; sh moved y", []string{url + "/tool", url + "/moved"}, "the tool says x\nthe tool says y\n"},
		{"file URI", "cat notes.txt", []string{"file://" + local}, "a local file\n"},
		{"path", "cat notes.txt", []string{local}, "a local file\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := []string{"run", "--shell"}
			for _, u := range test.uris {
				args = append(args, "--uri", u)
			}
			if r := mosaic(t, c, 0, append(args, "--", test.line)...); r.Stdout != test.want {
				t.Errorf("stdout %q, want %q\n%s", r.Stdout, test.want, r.Stderr)
			}
		})
	}
}

func TestWhatCannotBeFetchedIsNamed(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	url := fileServer(t)
	for _, uri := range []string{url + "/missing", url + "/broken.tar.gz", "http://127.0.0.1:1/nobody", "file:///no/such/file", "gopher://old/thing"} {
		r := mosaic(t, c, 125, "run", "--uri", uri, "--", "true")
		if !strings.Contains(r.Stderr, uri) {
			t.Errorf("run --uri %s said %q, want the URI named", uri, r.Stderr)
		}
	}
	if r := mosaic(t, c, 0, "task", "ls"); strings.Contains(r.Stdout, "TASK_") {
		t.Errorf("task ls:\n%s\nwant nothing left", r.Stdout)
	}
}

func TestAFrameworkSaysHowToFetch(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	url := fileServer(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "fetching", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 1, 256)
	if err != nil {
		t.Fatal(err)
	}
	uri := func(path string, change func(*mesosv1.CommandInfo_URI)) *mesosv1.CommandInfo_URI {
		u := &mesosv1.CommandInfo_URI{Value: proto.String(url + path)}
		change(u)
		return u
	}
	run := func(id, line string, uris ...*mesosv1.CommandInfo_URI) *mesosv1.TaskInfo {
		command := cluster.Shell(line)
		command.Uris = uris
		return cluster.Task(o, id, 0.1, 32, command)
	}
	executable := uri("/tool", func(u *mesosv1.CommandInfo_URI) { u.Executable = proto.Bool(true) })
	whole := uri("/a.tar.gz", func(u *mesosv1.CommandInfo_URI) { u.Extract = proto.Bool(false) })
	named := uri("/tool", func(u *mesosv1.CommandInfo_URI) { u.OutputFile = proto.String("bin/renamed") })
	cached := func() *mesosv1.CommandInfo_URI {
		return uri("/a.zip", func(u *mesosv1.CommandInfo_URI) { u.Cache = proto.Bool(true) })
	}
	missing := uri("/missing", func(*mesosv1.CommandInfo_URI) {})
	tasks := []*mesosv1.TaskInfo{
		run("executable", `test "$(./tool now)" = "the tool says now"`, executable),
		run("whole", "test -s a.tar.gz && ! test -e dir", whole),
		run("named", "test -f bin/renamed && ! test -e tool", named),
		run("cached-1", "test -f dir/inside.txt", cached()),
		run("cached-2", "test -f dir/inside.txt", cached()),
		run("missing", "true", missing),
	}
	if err := f.Launch(ctx, o, tasks...); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, task := range tasks {
		ids = append(ids, task.GetTaskId().GetValue())
	}
	got, err := f.State(ctx, ids, mesosv1.TaskState_TASK_FINISHED, mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_DROPPED)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids[:len(ids)-1] {
		if s := got[id].Status; s.GetState() != mesosv1.TaskState_TASK_FINISHED {
			t.Errorf("%s: %s %s %q, want TASK_FINISHED", id, s.GetState(), s.GetReason(), s.GetMessage())
		}
	}
	s := got["missing"].Status
	if s.GetState() != mesosv1.TaskState_TASK_FAILED || s.GetReason() != mesosv1.TaskStatus_REASON_CONTAINER_LAUNCH_FAILED ||
		!strings.Contains(s.GetMessage(), url+"/missing") || !strings.Contains(s.GetMessage(), "404") {
		t.Errorf("missing: %s %s %q, want TASK_FAILED, REASON_CONTAINER_LAUNCH_FAILED with the URI and 404", s.GetState(), s.GetReason(), s.GetMessage())
	}
}
