package module_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// TestMain serves a module when a test has started this binary as one.
func TestMain(m *testing.M) {
	switch os.Getenv("MOSAIC_TEST_MAIN") {
	case "":
		os.Exit(m.Run())
	case "serve":
		module.Serve(talkative())
	case "main":
		module.Main(map[string]func() module.Module{"isolator/sample": func() module.Module { return talkative() }})
	}
}

// talkative prints in every call, and logs.
func talkative() *sample {
	log := module.NewLogger()
	return &sample{prepare: func(context.Context) error {
		fmt.Println("printed by a careless library")
		log.Info("prepared", "container", "c")
		return nil
	}}
}

// remote is the client that go-plugin wants.
type remote struct{ plugin.NetRPCUnsupportedPlugin }

func (remote) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return errors.New("not here") }

func (remote) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// locked is a buffer that a process may write while a test reads.
type locked struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs this binary as a module under go-plugin's own client.
func start(t *testing.T, mode string, args ...string) (*grpc.ClientConn, *locked) {
	t.Helper()
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), "MOSAIC_TEST_MAIN="+mode)
	log := &locked{}
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "MOSAIC_MODULE", MagicCookieValue: "mosaic.module.v1"},
		Plugins:          map[string]plugin.Plugin{"module": remote{}},
		Cmd:              c,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Logger:           hclog.NewNullLogger(),
		Stderr:           log,
		StartTimeout:     20 * time.Second,
	})
	t.Cleanup(client.Kill)
	protocol, err := client.Client()
	if err != nil {
		t.Fatalf("start the module: %v\n%s", err, log)
	}
	conn, err := protocol.Dispense("module")
	if err != nil {
		t.Fatalf("connect to the module: %v", err)
	}
	return conn.(*grpc.ClientConn), log
}

// eventually waits for a process to do what nobody can be told of.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Errorf("waited for 20 s: %s", what)
}

func TestAHostOfGoPluginTalksToTheProcess(t *testing.T) {
	for mode, args := range map[string][]string{"serve": nil, "main": {"isolator/sample"}} {
		conn, log := start(t, mode, args...)
		d, err := modulev1.NewModuleClient(conn).Describe(timeout(t), &modulev1.DescribeRequest{})
		if err != nil || d.GetName() != "sample" {
			t.Fatalf("%s: Describe = %v, %v", mode, d, err)
		}
		for range 3 {
			if _, err := isolatorv1.NewIsolatorClient(conn).Prepare(timeout(t), &isolatorv1.PrepareRequest{}); err != nil {
				t.Fatalf("%s: Prepare: %v", mode, err)
			}
		}
		eventually(t, "what is printed and logged is on the error stream", func() bool {
			text := log.String()
			return strings.Count(text, "printed by a careless library") == 3 && strings.Contains(text, `"msg":"prepared"`)
		})
	}
}

func TestTheProcessEndsWithItsHost(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0])
	c.Env = append(os.Environ(), "MOSAIC_TEST_MAIN=serve", "MOSAIC_MODULE=mosaic.module.v1", "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_UNIX_SOCKET_DIR="+t.TempDir())
	input, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "1|1|unix|") || !strings.Contains(line, "|grpc|") {
		t.Errorf("handshake %q, %v; want 1|1|unix|ADDRESS|grpc|", line, err)
	}
	input.Close()
	if err := c.Wait(); err != nil {
		t.Errorf("after the end of its input: %v, want exit code 0", err)
	}
}

func TestByHandItSaysWhatItIs(t *testing.T) {
	for name, test := range map[string]struct {
		mode string
		args []string
		want string
	}{
		"a module":               {"serve", nil, `isolator "sample"`},
		"a bundle":               {"main", nil, "isolator/sample"},
		"a bundle without such":  {"main", []string{"isolator/other"}, "isolator/sample"},
		"a module of the bundle": {"main", []string{"isolator/sample"}, "not run by hand"},
	} {
		c := exec.Command(os.Args[0], test.args...)
		c.Env = append(os.Environ(), "MOSAIC_TEST_MAIN="+test.mode)
		out, err := c.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), test.want) {
			t.Errorf("%s: %v with %q, want exit code 2 and %q", name, err, out, test.want)
		}
	}
}

func TestALostErrorStreamDoesNotKillTheProcess(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0])
	c.Env = append(os.Environ(), "MOSAIC_TEST_MAIN=serve", "MOSAIC_MODULE=mosaic.module.v1", "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_UNIX_SOCKET_DIR="+t.TempDir())
	input, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	reading, writing, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = writing
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	writing.Close()
	reading.Close() // from here on, each log line is a broken pipe
	out := bufio.NewReader(output)
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix:"+strings.Split(line, "|")[3], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 3 { // each prints and logs
		if _, err := isolatorv1.NewIsolatorClient(conn).Prepare(ctx, &isolatorv1.PrepareRequest{}); err != nil {
			t.Fatalf("Prepare %d with nobody to read the log: %v", i, err)
		}
	}
	input.Close()
	rest, err := io.ReadAll(out)
	if err != nil || len(rest) != 0 {
		t.Errorf("standard output has more than the handshake: %q, %v", rest, err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("after the end of its input: %v, want exit code 0", err)
	}
}
