package fetcher

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Stores that Hadoop's client knows, HDFS before all, are read by that client, as in Mesos: `hadoop fs -cat URI` as the
// container's user. Which of the schemes it can really read is a matter of its own configuration.
var hadoopSchemes = []string{
	"hdfs", "webhdfs", "swebhdfs", "hftp", "viewfs", "s3", "s3n", "s3a", "gs", "abfs", "abfss", "wasb", "wasbs", "maprfs",
}

const (
	hadoopProgram = "hadoop"
	// maxComplaint bounds what is kept of the client's stderr, its end: before it come pages of warnings.
	maxComplaint = 4 << 10
	// hadoopDelay is how long a client that was killed may keep its output open through children of its own.
	hadoopDelay = 5 * time.Second
)

// hadoopEnvironment are the beginnings of those variables of the agent that the client is given: where Java and its
// configuration are, and Kerberos's tickets. All else is the agent's business.
var hadoopEnvironment = []string{"PATH=", "HOME=", "LANG=", "JAVA_", "HADOOP_", "HDFS_", "KRB5", "AWS_", "GOOGLE_"}

// hadoop is a client that prints a file.
type hadoop struct {
	cmd    *exec.Cmd
	out    *os.File
	stderr *tail
	ended  error // set when all is read
}

// openHadoop starts the client. It runs as the container's user, whose rights in the store then count.
func (f *Fetcher) openHadoop(ctx context.Context, uri string, user *User) (io.ReadCloser, int64, error) {
	program, err := exec.LookPath(cmp.Or(f.cfg.Hadoop, hadoopProgram))
	if err != nil {
		scheme, _, _ := strings.Cut(uri, ":")
		return nil, 0, fmt.Errorf("scheme %q needs Hadoop's client, which this agent does not have (fetcher_hadoop): %w; "+
			"the store's http(s) address (WebHDFS, a signed URL) needs none", scheme, err)
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, 0, err
	}
	defer in.Close()
	h := &hadoop{cmd: exec.CommandContext(ctx, program, "fs", "-cat", uri), out: out, stderr: &tail{}}
	h.cmd.Dir = "/"
	h.cmd.Stdout, h.cmd.Stderr = in, h.stderr
	h.cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return !slices.ContainsFunc(hadoopEnvironment, func(prefix string) bool { return strings.HasPrefix(kv, prefix) })
	})
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if user != nil && os.Geteuid() == 0 {
		h.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user.UID, Gid: user.GID, Groups: user.Groups}
	}
	// The client is a script that starts Java: both are to end, and whoever has left them is not waited for.
	h.cmd.Cancel = func() error {
		return errors.Join(syscall.Kill(-h.cmd.Process.Pid, syscall.SIGKILL), out.Close())
	}
	h.cmd.WaitDelay = hadoopDelay
	if err := h.cmd.Start(); err != nil {
		return nil, 0, errors.Join(err, out.Close())
	}
	return h, -1, nil
}

// Read reads the file. At its end the client must have ended well.
func (h *hadoop) Read(b []byte) (int, error) {
	if h.ended != nil {
		return 0, h.ended
	}
	n, err := h.out.Read(b)
	if errors.Is(err, io.EOF) {
		if wait := h.cmd.Wait(); wait != nil {
			err = fmt.Errorf("the client of Hadoop: %w: %s", wait, h.stderr)
		}
	}
	h.ended = err
	return n, err
}

// Close ends the client if it is not at its end.
func (h *hadoop) Close() error {
	if h.cmd.ProcessState == nil {
		_ = h.cmd.Cancel()
		_ = h.cmd.Wait() // that it was killed is known
	}
	return h.out.Close()
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.b = append(t.b, b...)
	if len(t.b) > maxComplaint {
		t.b = append(t.b[:0], t.b[len(t.b)-maxComplaint:]...)
	}
	return len(b), nil
}

// String is the last of what the client said, which is its reason.
func (t *tail) String() string {
	b := bytes.TrimSpace(t.b)
	if at := bytes.LastIndexByte(b, '\n'); at >= 0 {
		b = b[at+1:]
	}
	return strings.ToValidUTF8(string(b), "?")
}
