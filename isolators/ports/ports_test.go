package ports_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/ports"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// TestMain lets the test's own executable be a program that listens.
func TestMain(m *testing.M) {
	if network := os.Getenv("PORTS_TEST_LISTEN"); network != "" {
		address := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"}[network]
		l, err := net.Listen(network, address)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(l.Addr().(*net.TCPAddr).Port)
		_, _ = bufio.NewReader(os.Stdin).ReadByte() // until the test ends it
		return
	}
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	build := func() module.Module { return ports.New() }
	isolatortest.Run(t, kit.InProcess(build))
	isolatortest.Run(t, kit.InProcess(build), isolatortest.Level(kit.Core),
		isolatortest.Config(`{"enforce_container_ports":true,"container_ports_watch_interval":10000000}`))
}

// harness is a module and a machine with containers.
type harness struct {
	*moduletest.Client
	t       *testing.T
	machine *kit.Machine
}

func start(t *testing.T, config string) *harness {
	return &harness{moduletest.Start(t, ports.New(), config), t, kit.NewMachine(t)}
}

// container makes a container's cgroup with a process in it and tells the module.
func (h *harness) container(id string, given ...[2]uint64) *isolatorv1.ContainerRecord {
	h.t.Helper()
	cgroup := filepath.Join(strings.Split(id, ".")...)
	pid, cgroups, err := h.machine.Start(cgroup)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := h.machine.End(cgroup, pid); err != nil {
			h.t.Errorf("end %s: %v", id, err)
		}
	})
	r := &isolatorv1.ContainerRecord{
		Container: &containerv1.Container{Id: id, Generation: 1, Resources: []*mesosv1.Resource{given2resource(given)}}, Pid: int32(pid), Cgroups: cgroups,
	}
	if _, err := h.Isolator.Isolate(h.t.Context(), &isolatorv1.IsolateRequest{OperationId: "i", Record: r}); err != nil {
		h.t.Fatalf("Isolate(%s): %v", id, err)
	}
	h.t.Cleanup(func() { // before the machine ends, so that the goroutine that looks does
		if _, err := h.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{Record: r}); err != nil {
			h.t.Errorf("Cleanup(%s): %v", id, err)
		}
	})
	return r
}

func given2resource(given [][2]uint64) *mesosv1.Resource {
	r := &mesosv1.Resource{Name: proto.String("ports"), Type: mesosv1.Value_RANGES.Enum(), Ranges: &mesosv1.Value_Ranges{}}
	for _, g := range given {
		r.Ranges.Range = append(r.Ranges.Range, &mesosv1.Value_Range{Begin: proto.Uint64(g[0]), End: proto.Uint64(g[1])})
	}
	return r
}

// listen starts a process in a container that listens on a port of the kernel's choice.
func (h *harness) listen(r *isolatorv1.ContainerRecord, network string) uint64 {
	h.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PORTS_TEST_LISTEN="+network)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	for _, dir := range r.GetCgroups() {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	port, err := strconv.ParseUint(strings.TrimSpace(line), 10, 16)
	switch {
	case err != nil && network == "tcp6":
		h.t.Skip("no IPv6 on this machine: " + line)
	case err != nil:
		h.t.Fatalf("the process in the container does not listen: %s", line)
	}
	return port
}

// metric waits for a look after which a series has a value.
func (h *harness) metric(name string, value float64) {
	h.t.Helper()
	h.Next(h.t, func(e *modulev1.WatchEvent) bool {
		if l := e.GetLimitation(); l != nil {
			h.t.Errorf("container %s was limited: %s", l.GetContainerId(), l.GetMessage())
		}
		for _, s := range e.GetMetrics().GetSamples() {
			if s.GetName() == name && s.GetValue() == value {
				return true
			}
		}
		return false
	})
}

func (h *harness) limited(id string, port uint64) {
	h.t.Helper()
	l := h.Next(h.t, func(e *modulev1.WatchEvent) bool { return e.GetLimitation() != nil }).GetLimitation()
	want := fmt.Sprintf("[%d-%d]", port, port)
	if l.GetContainerId() != id || l.GetReason() != "REASON_CONTAINER_LIMITATION" || !strings.Contains(l.GetMessage(), want) {
		h.t.Errorf("limitation of %q with %s: %s; want %s for a listener on %s", l.GetContainerId(), l.GetReason(), l.GetMessage(), id, want)
	}
	if len(l.GetResources()) != 1 || l.Resources[0].GetName() != "ports" || len(l.Resources[0].GetRanges().GetRange()) != 1 ||
		l.Resources[0].GetRanges().GetRange()[0].GetBegin() != port {
		h.t.Errorf("limitation with resources %v, want ports %s", l.GetResources(), want)
	}
}

const enforced = `{"enforce_container_ports":true,"container_ports_watch_interval":10000000}`

func TestAListenerOutsideTheAllocationEndsItsContainer(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			h := start(t, enforced)
			h.container("innocent", [2]uint64{31000, 31001})
			c := h.container("guilty", [2]uint64{1, 2})
			h.limited("guilty", h.listen(c, network))
		})
	}
}

func TestAListenerOnAGivenPortIsLeftAlone(t *testing.T) {
	h := start(t, enforced)
	c := h.container("c")
	port := h.listen(c, "tcp4")
	h.limited("c", port)
	c.Container.Resources = []*mesosv1.Resource{given2resource([][2]uint64{{port, port}})}
	h2 := start(t, enforced) // Recover, as after a restart
	s, err := h2.Isolator.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&isolatorv1.RecoverRequest{Containers: []*isolatorv1.ContainerRecord{c}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	h2.metric("unallocated_listeners", 0)
	// Taken away again, it is no longer its own.
	c.Container.Resources = nil
	if _, err := h2.Isolator.Update(t.Context(), &isolatorv1.UpdateRequest{Record: c}); err != nil {
		t.Fatal(err)
	}
	h2.limited("c", port)
	if _, err := h2.Isolator.Cleanup(t.Context(), &isolatorv1.CleanupRequest{Record: c}); err != nil {
		t.Fatal(err)
	}
}

func TestWithoutEnforcementItIsOnlyReported(t *testing.T) {
	h := start(t, `{"container_ports_watch_interval":10000000}`)
	h.listen(h.container("c"), "tcp4")
	h.metric("unallocated_listeners", 1)
}

func TestTheNestedContainerThatListensIsTheOneThatEnds(t *testing.T) {
	h := start(t, enforced)
	root := h.container("r")
	nested := h.container("r.n")
	h.limited("r.n", h.listen(nested, "tcp4"))
	_ = root
}

func TestNestedContainersShareTheirRootsPorts(t *testing.T) {
	h := start(t, enforced)
	h.container("r", [2]uint64{1024, 65535})
	h.listen(h.container("r.n"), "tcp4")
	h.metric("unallocated_listeners", 0)
}

func TestOnlyPortsOfTheWatchedRangeCount(t *testing.T) {
	for _, config := range []string{
		`{"enforce_container_ports":true,"container_ports_watch_interval":10000000,"container_ports_isolated_range":"[1-1023]"}`,
		`{"enforce_container_ports":true,"container_ports_watch_interval":10000000,"check_agent_port_range_only":true,"agent_port_range":"1-1023"}`,
	} {
		h := start(t, config)
		h.listen(h.container("c"), "tcp4")
		h.metric("unallocated_listeners", 0)
	}
}

func TestThePortsThatTheAgentOffersAreWatchedWhereNoneAreSaid(t *testing.T) {
	const config = `{"enforce_container_ports":true,"container_ports_watch_interval":10000000,"check_agent_port_range_only":true}`
	for _, test := range []struct {
		begin, end uint64
		found      bool
	}{{1, 1023, false}, {1024, 65535, true}} {
		c := moduletest.Dial(t, ports.New())
		node := moduletest.Node()
		node.Ports = &mesosv1.Value_Ranges{Range: []*mesosv1.Value_Range{{Begin: &test.begin, End: &test.end}}}
		if r, err := c.Module.Configure(t.Context(), &modulev1.ConfigureRequest{ConfigJson: config, Node: node}); err != nil || len(r.GetErrors()) > 0 {
			t.Fatalf("Configure = %v, %v", r, err)
		}
		h := &harness{c, t, kit.NewMachine(t)}
		port := h.listen(h.container("c"), "tcp4")
		if test.found {
			h.limited("c", port)
		} else {
			h.metric("unallocated_listeners", 0)
		}
	}
}

func TestRangesThatMakeNoSenseAreRefused(t *testing.T) {
	for config, path := range map[string]string{
		`{"container_ports_isolated_range":"[5-1]"}`:                                          "container_ports_isolated_range",
		`{"container_ports_isolated_range":"[0-9]"}`:                                          "container_ports_isolated_range",
		`{"agent_port_range":"many"}`:                                                         "agent_port_range",
		`{"agent_port_range":"1-70000"}`:                                                      "agent_port_range",
		`{"check_agent_port_range_only":true,"container_ports_isolated_range":"[1024-2048]"}`: "container_ports_isolated_range",
	} {
		errs := moduletest.Dial(t, ports.New()).Configure(t, config)
		if len(errs) == 0 || errs[0].GetPath() != path {
			t.Errorf("Configure(%s) = %v, want an error for %s", config, errs, path)
		}
	}
}

func TestAContainerWithoutACgroupIsRefusedUnderEnforcement(t *testing.T) {
	c := moduletest.Start(t, ports.New(), enforced)
	_, err := c.Isolator.Isolate(t.Context(), &isolatorv1.IsolateRequest{Record: &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "c"}}})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Isolate without cgroups = %v, want FailedPrecondition", err)
	}
}

func TestTheLookIsShort(t *testing.T) {
	h := start(t, `{"container_ports_watch_interval":10000000}`)
	for n := range 20 {
		h.container(fmt.Sprintf("c%d", n))
	}
	h.listen(h.container("c"), "tcp4")
	e := h.Next(t, func(e *modulev1.WatchEvent) bool { return e.GetMetrics() != nil })
	for _, s := range e.GetMetrics().GetSamples() {
		if s.GetName() == "look_seconds" {
			t.Logf("a look at 21 containers took %.1f ms", s.GetValue()*1000)
			if s.GetValue() <= 0 || s.GetValue() > (5*time.Second).Seconds() {
				t.Errorf("look_seconds %v, want a short time", s.GetValue())
			}
		}
	}
}
