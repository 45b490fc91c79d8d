package fetcher

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// hadoopClient is a program that behaves as Hadoop's client does, with a folder as its store.
func hadoopClient(t *testing.T) (program, store string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for d := filepath.Dir(dir); strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) { // others run it, too
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, store = filepath.Join(dir, "hadoop"), filepath.Join(dir, "store")
	if err := os.Mkdir(store, 0o755); err != nil {
		t.Fatal(err)
	}
	const script = `#!/bin/sh
[ "$1 $2 $#" = "fs -cat 3" ] || { echo "usage: $*" >&2; exit 255; }
echo "24/01/01 00:00:00 WARN util.NativeCodeLoader: Unable to load native-hadoop library" >&2
path=${3#*://namenode/}
case $path in
whoami) id -u; id -g; id -G; exit;;
environment) env; exit;;
slow) echo first; sleep 1000 & wait;;
half) echo half; echo "cat: Connection refused" >&2; exit 1;;
esac
cat "STORE/$path" 2>/dev/null || { echo "cat: File does not exist: /$path" >&2; exit 1; }
`
	if err := os.WriteFile(program, []byte(strings.ReplaceAll(script, "STORE", store)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(store, "a.txt"), []byte("by hadoop\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return program, store
}

func TestFilesComeByHadoopsClient(t *testing.T) {
	program, _ := hadoopClient(t)
	f := newFetcher(t, func(c *Config) { c.Hadoop = program })
	fetch := func(value string, change ...func(*mesosv1.CommandInfo_URI)) (string, error) {
		sandbox := t.TempDir()
		err := f.Fetch(t.Context(), Request{URIs: []*mesosv1.CommandInfo_URI{uri(value, append(change, to("out"))...)}, Sandbox: sandbox})
		b, _ := os.ReadFile(filepath.Join(sandbox, "out"))
		return string(b), err
	}
	for _, value := range []string{"hdfs://namenode/a.txt", "s3a://namenode/a.txt"} {
		for _, change := range []func(*mesosv1.CommandInfo_URI){cached, func(*mesosv1.CommandInfo_URI) {}} {
			if got, err := fetch(value, change); got != "by hadoop\n" || err != nil {
				t.Errorf("Fetch(%s) brought %q, %v", value, got, err)
			}
		}
	}
	for value, want := range map[string]string{
		"hdfs://namenode/none": "the client of Hadoop: exit status 1: cat: File does not exist: /none",
		"hdfs://namenode/half": "cat: Connection refused",
	} {
		if got, err := fetch(value); err == nil || !strings.Contains(err.Error(), want) || got != "" {
			t.Errorf("Fetch(%s) brought %q, %v; want nothing, and %q", value, got, err, want)
		}
	}
	t.Setenv("MOSAIC_TOKEN", "of the agent")
	t.Setenv("HADOOP_CONF_DIR", "/etc/hadoop")
	if got, err := fetch("hdfs://namenode/environment"); err != nil || strings.Contains(got, "of the agent") || !strings.Contains(got, "HADOOP_CONF_DIR=/etc/hadoop\n") {
		t.Errorf("the client's environment is %q, %v; want what is Hadoop's and nothing of the agent's", got, err)
	}
	f = newFetcher(t, func(c *Config) { c.Hadoop = "no-such-client" })
	if _, err := fetch("hdfs://namenode/a.txt"); err == nil || !strings.Contains(err.Error(), "needs Hadoop's client, which this agent does not have") {
		t.Errorf("Fetch without a client: %v", err)
	}
}

func TestHadoopsClientIsTheContainersUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to be somebody else")
	}
	program, _ := hadoopClient(t)
	sandbox := t.TempDir()
	if err := os.Chown(sandbox, 1234, 1234); err != nil {
		t.Fatal(err)
	}
	r := Request{URIs: []*mesosv1.CommandInfo_URI{uri("hdfs://namenode/whoami")}, Sandbox: sandbox, User: &User{UID: 1234, GID: 2345, Groups: []uint32{2345, 3456}}}
	if err := newFetcher(t, func(c *Config) { c.Hadoop = program }).Fetch(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(sandbox, "whoami")); string(b) != "1234\n2345\n2345 3456\n" {
		t.Errorf("the client was %q, %v; want user 1234 and its groups", b, err)
	}
}

func TestHadoopsClientEndsWithTheLaunch(t *testing.T) {
	program, _ := hadoopClient(t)
	r := Request{URIs: []*mesosv1.CommandInfo_URI{uri("hdfs://namenode/slow")}, Sandbox: t.TempDir()}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if err := newFetcher(t, func(c *Config) { c.Hadoop = program }).Fetch(ctx, r); err == nil || time.Since(begun) > 30*time.Second {
		t.Errorf("Fetch that is called off ended with %v after %s", err, time.Since(begun))
	}
	err := newFetcher(t, func(c *Config) { c.Hadoop, c.StallTimeout = program, 300*time.Millisecond }).Fetch(t.Context(), r)
	if err == nil || !strings.Contains(err.Error(), "nothing came for 300ms") {
		t.Errorf("Fetch from a client that stands still: %v", err)
	}
}
