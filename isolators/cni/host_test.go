package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// apartVariable marks a test process that is in namespaces of its own.
const apartVariable = "MOSAIC_CNI_TEST_APART"

// TestMain runs the tests in a network and a mount namespace of their own, which stand for the host's: the plugins
// change rules, routes and settings. It also lets the test's executable be the module when a kit starts it as that.
func TestMain(m *testing.M) {
	if os.Getenv("MOSAIC_MODULE") != "" {
		module.Serve(New())
		return
	}
	if os.Geteuid() == 0 && os.Getenv(apartVariable) == "" {
		os.Exit(apart())
	}
	if os.Getenv(apartVariable) == "yes" {
		if err := furnishHost(); err != nil {
			fmt.Fprintln(os.Stderr, "make a host for the tests:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// apart runs this test again in namespaces of its own.
func apart() int {
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), apartVariable+"=yes")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	}
	// A machine that gives no namespaces: what needs them skips itself.
	fmt.Fprintln(os.Stderr, "no namespaces for the tests:", err)
	cmd = exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdout, os.Stderr, append(os.Environ(), apartVariable+"=no")
	if cmd.Run() != nil {
		return 1
	}
	return 0
}

// furnishHost makes the namespaces look like a host: mounts that stay inside, a loopback, a /run of its own.
func furnishHost() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "size=64m"); err != nil {
		return err
	}
	return onThread(raiseLoopback)
}

// needHost skips where no namespaces can be made.
func needHost(t testing.TB) {
	t.Helper()
	if os.Getenv(apartVariable) != "yes" {
		t.Skip("needs root and network namespaces")
	}
}

// builtPlugins is where `make build` puts the real plugins.
func builtPlugins(t testing.TB) string {
	t.Helper()
	needHost(t)
	dir, err := filepath.Abs("../../bin/cni")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bridge")); err != nil {
		t.Skip("the CNI plugins are not built: tools/install.sh cni")
	}
	return dir
}

// host is a module with the folders that it works in.
type host struct {
	*moduletest.Client
	*Isolator
	t       testing.TB
	config  map[string]any
	plugins string // a folder for scripts that stand for plugins
	confs   string
	run     string
}

// newHost starts a module. change completes its configuration.
func newHost(t testing.TB, change func(map[string]any)) *host {
	t.Helper()
	needHost(t)
	dir := t.TempDir()
	h := &host{t: t, plugins: filepath.Join(dir, "plugins"), confs: filepath.Join(dir, "confs"), run: filepath.Join(dir, "run")}
	for _, d := range []string{h.plugins, h.confs} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.config = map[string]any{
		"config_dir": h.confs, "plugins_dir": h.plugins, "run_dir": h.run, "plugin_timeout": int64(20 * time.Second),
		"check_on_recover": true,
	}
	if change != nil {
		change(h.config)
	}
	h.restart()
	return h
}

func (h *host) json() string {
	data, err := json.Marshal(h.config)
	if err != nil {
		h.t.Fatal(err)
	}
	return string(data)
}

// restart puts a new module in the place of the old one, which knows only what lies in folders.
func (h *host) restart() {
	h.t.Helper()
	h.Isolator = New()
	h.Client = moduletest.Start(h.t, h.Isolator, h.json())
}

// script writes a plugin that is a shell script. It finds the command in $CNI_COMMAND, its input in $in, and a file to
// write to in $log.
func (h *host) script(name, body string) {
	h.t.Helper()
	text := "#!/bin/sh\nin=$(cat)\nlog=" + h.log(name) + "\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $in\" >>$log\n" + body + "\n"
	if err := os.WriteFile(filepath.Join(h.plugins, name), []byte(text), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) log(plugin string) string { return filepath.Join(h.plugins, plugin+".log") }

// calls are the commands that a script was called with.
func (h *host) calls(plugin string) []string {
	data, err := os.ReadFile(h.log(plugin))
	if err != nil {
		return nil
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		command, _, _ := strings.Cut(line, " ")
		list = append(list, command)
	}
	return list
}

// input is what a script was given at its first call with a command.
func (h *host) input(plugin, command string) map[string]any {
	h.t.Helper()
	data, err := os.ReadFile(h.log(plugin))
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, command+" ") {
			doc := map[string]any{}
			if err := json.Unmarshal([]byte(line[strings.IndexByte(line, '{'):]), &doc); err != nil {
				h.t.Fatalf("input of %s: %v: %s", plugin, err, line)
			}
			return doc
		}
	}
	h.t.Fatalf("%s was not called with %s: %s", plugin, command, data)
	return nil
}

// answers is the body of a script that gives these addresses.
func answers(addresses ...string) string {
	var ips []string
	for _, a := range addresses {
		ips = append(ips, fmt.Sprintf(`{"address":%q,"interface":0}`, a))
	}
	return fmt.Sprintf(`[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[%s]}'
exit 0`, strings.Join(ips, ","))
}

// network writes a configuration.
func (h *host) network(name string, plugins ...string) {
	h.t.Helper()
	text := fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[%s]}`, name, strings.Join(plugins, ","))
	if err := os.WriteFile(filepath.Join(h.confs, name+".conflist"), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// asking is a container that asks for networks.
func asking(id string, infos ...*mesosv1.NetworkInfo) *containerv1.Container {
	return &containerv1.Container{
		Id: id, Generation: 1, Rootfs: "/rootfs",
		ContainerInfo: &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), NetworkInfos: infos},
	}
}

func named(name string) *mesosv1.NetworkInfo { return &mesosv1.NetworkInfo{Name: &name} }

func published(name string, host, container uint32) *mesosv1.NetworkInfo {
	return &mesosv1.NetworkInfo{Name: &name, PortMappings: []*mesosv1.NetworkInfo_PortMapping{
		{HostPort: &host, ContainerPort: &container, Protocol: proto.String("tcp")},
	}}
}

func (h *host) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	h.t.Cleanup(cancel)
	return ctx
}

// prepare sends Prepare.
func (h *host) prepare(c *containerv1.Container) (*isolatorv1.PrepareResponse, error) {
	return h.Client.Isolator.Prepare(h.context(), &isolatorv1.PrepareRequest{OperationId: "op-" + c.GetId(), Container: c})
}

// launch is a Prepare that succeeds; it gives the record that the agent would keep. The container is cleaned up with
// the test.
func (h *host) launch(c *containerv1.Container) *isolatorv1.ContainerRecord {
	h.t.Helper()
	h.t.Cleanup(func() {
		_, _ = h.Client.Isolator.Cleanup(h.context(), &isolatorv1.CleanupRequest{Record: &isolatorv1.ContainerRecord{Container: c}})
	})
	r, err := h.prepare(c)
	if err != nil {
		h.t.Fatalf("Prepare of container %s: %v", c.GetId(), err)
	}
	return &isolatorv1.ContainerRecord{Container: c, State: r.GetState(), StateVersion: r.GetStateVersion()}
}

// cleanup sends a Cleanup that succeeds.
func (h *host) cleanup(r *isolatorv1.ContainerRecord) {
	h.t.Helper()
	if _, err := h.Client.Isolator.Cleanup(h.context(), &isolatorv1.CleanupRequest{OperationId: "clean", Record: r}); err != nil {
		h.t.Fatalf("Cleanup of container %s: %v", r.GetContainer().GetId(), err)
	}
}

// infos are the networks that Status tells.
func (h *host) infos(r *isolatorv1.ContainerRecord) []*mesosv1.NetworkInfo {
	h.t.Helper()
	a, err := h.Client.Isolator.Status(h.context(), &isolatorv1.StatusRequest{Records: []*isolatorv1.ContainerRecord{r}})
	if err != nil {
		h.t.Fatalf("Status: %v", err)
	}
	return a.GetResults()[r.GetContainer().GetId()].GetStatus().GetNetworkInfos()
}

// address is the container's only one.
func (h *host) address(r *isolatorv1.ContainerRecord) string {
	h.t.Helper()
	infos := h.infos(r)
	if len(infos) != 1 || len(infos[0].GetIpAddresses()) != 1 {
		h.t.Fatalf("Status of container %s = %v, want one network with one address", r.GetContainer().GetId(), infos)
	}
	return infos[0].GetIpAddresses()[0].GetIpAddress()
}

// netns is the container's namespace.
func (h *host) netns(r *isolatorv1.ContainerRecord) string {
	return parseRecord(r.GetState()).Netns
}

// serve answers on a port within a container, until the test ends.
func (h *host) serve(r *isolatorv1.ContainerRecord, port int, answer string) {
	h.t.Helper()
	serveIn(h.t, h.netns(r), fmt.Sprintf(":%d", port), answer)
}

// serveIn answers at an address within a network namespace, until the test ends.
func serveIn(t testing.TB, netns, address, answer string) {
	t.Helper()
	var l net.Listener
	err := inNetns(netns, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatalf("listen in %s: %v", netns, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(answer))
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

// ask connects from within a container, or from the host, and returns what it is told.
func (h *host) ask(from *isolatorv1.ContainerRecord, address string) (string, error) {
	if from == nil {
		return askFrom("", address)
	}
	return askFrom(h.netns(from), address)
}

// deadline is when whoever has not answered will not.
func deadline() time.Time { return time.Now().Add(askPatience) }

// askPatience is how long an answer is waited for. A dropped packet costs a test all of it.
const askPatience = 3 * time.Second

// askFrom connects from within a network namespace, or from the host if it is "", and returns what it is told.
func askFrom(netns, address string) (string, error) {
	var answer []byte
	dial := func() error {
		c, err := net.DialTimeout("tcp", address, askPatience)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(deadline())
		buffer := make([]byte, 100)
		n, err := c.Read(buffer)
		answer = buffer[:n]
		return err
	}
	if netns == "" {
		err := dial()
		return string(answer), err
	}
	err := inNetns(netns, dial)
	return string(answer), err
}

// traces are what networks may leave on a host.
func (h *host) traces() []string {
	h.t.Helper()
	var list []string
	interfaces, err := net.Interfaces()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, i := range interfaces {
		if i.Name != "lo" && i.Name != bridgeInterface && !strings.HasPrefix(i.Name, "kept") {
			list = append(list, "interface "+i.Name)
		}
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		// Agents of this machine have theirs below the default folder, and they come here by propagation.
		at := strings.Fields(line)[4]
		if strings.Contains(line, " nsfs ") && !strings.HasPrefix(at, "/run/mosaic/") || strings.Contains(line, h.run) {
			list = append(list, "mount "+at)
		}
	}
	for _, pattern := range []string{h.run + "/*", leases + "/*/*.*"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			if !strings.Contains(filepath.Base(f), "last_reserved_ip") {
				list = append(list, "file "+f)
			}
		}
	}
	// Rules of containers name them, or their addresses; the plugins' own chains stay.
	for _, command := range [][]string{{"nft", "list", "ruleset"}, {"iptables-save"}, {"iptables-legacy-save"}} {
		if _, err := exec.LookPath(command[0]); err != nil {
			continue
		}
		out, err := exec.Command(command[0], command[1:]...).Output()
		if err != nil {
			continue
		}
		for line := range bytes.Lines(out) {
			text := strings.TrimSpace(string(line))
			if strings.Contains(text, "id: ") || strings.Contains(text, "dnat ") || strings.Contains(text, "CNI-DN-") || strings.Contains(text, "--to-destination") ||
				strings.Contains(text, forwardMark) || strings.HasPrefix(text, "table ip "+tableName+" ") || strings.Contains(text, " . ") {
				list = append(list, "rule "+text)
			}
		}
	}
	slices.Sort(list)
	return list
}

// leaks fails the test if there is more than before. What the kernel takes down by itself gets its time.
func (h *host) leaks(before []string) {
	h.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		var more []string
		for _, x := range h.traces() {
			if !slices.Contains(before, x) {
				more = append(more, x)
			}
		}
		if len(more) == 0 {
			return
		}
		if time.Now().After(deadline) {
			h.t.Errorf("left behind: %s", strings.Join(more, "\n"))
			return
		}
		time.Sleep(20 * time.Millisecond) // interfaces end in the kernel's own time, which nobody tells
	}
}
