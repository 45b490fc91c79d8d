package portmapping_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/portmapping"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

const (
	machineIP = "10.99.0.2"
	outsideIP = "10.99.0.1"
	private   = "MOSAIC_TEST_OWN_NETWORK" // set in the process that has a network namespace of its own
)

// TestMain runs the tests in a network namespace of their own, which is the machine of the tests.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == asModule {
		serveModule()
		return
	}
	if os.Getenv(private) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), private+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the signal at the parent's death is one at its thread's
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case errors.Is(err, syscall.EPERM): // no namespaces to be had: what needs one skips
		os.Exit(m.Run())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// machine is the test's network namespace with an uplink to an outside.
type machine struct {
	t       testing.TB
	outside int // pid in the namespace at the other end
	client  *moduletest.Client
}

// sleeper starts a process in a new network namespace.
func sleeper(t testing.TB) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// within calls f on a thread in the network namespace of a process. Sockets stay in the one they were made in.
func within(t testing.TB, pid int, f func() error) {
	t.Helper()
	if err := inside(pid, f); err != nil {
		t.Fatal(err)
	}
}

func inside(pid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		own, err := netns.GetFromPath("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer own.Close()
		ns, err := netns.GetFromPid(pid)
		if err != nil {
			done <- err
			return
		}
		err = errors.Join(netns.Set(ns), ns.Close())
		if err == nil {
			err = f()
		}
		done <- errors.Join(err, netns.Set(own))
	}()
	return <-done
}

func newMachine(t testing.TB, config string) *machine {
	t.Helper()
	if os.Getenv(private) == "" {
		t.Skip("network namespaces cannot be made here")
	}
	m := &machine{t: t, outside: sleeper(t)}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	up := func(name, address string) {
		t.Helper()
		l, err := netlink.LinkByName(name)
		must(err)
		if address != "" {
			a, err := netlink.ParseAddr(address + "/24")
			must(err)
			must(netlink.AddrAdd(l, a))
		}
		must(netlink.LinkSetUp(l))
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "out0", PeerNamespace: netlink.NsPid(m.outside)}
	must(netlink.LinkAdd(veth))
	t.Cleanup(func() {
		m.nothingLeft()
		_ = netlink.LinkDel(veth)
	})
	within(t, m.outside, func() error { up("out0", outsideIP); up("lo", ""); return nil })
	up("lo", "")
	up("up0", machineIP)
	must(defaultRoute())
	m.client = moduletest.Start(t, portmapping.New(), config)
	return m
}

// defaultRoute leads from the machine to the outside.
func defaultRoute() error {
	return netlink.RouteReplace(&netlink.Route{Gw: net.ParseIP(outsideIP), Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}})
}

// nothingLeft fails the test for what the module left on the machine, and removes it for the next test.
func (m *machine) nothingLeft() {
	m.t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "mo") {
			m.t.Errorf("interface %s is left", l.Attrs().Name)
			_ = netlink.LinkDel(l)
			continue
		}
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			m.t.Error(err)
		}
		for _, q := range qdiscs {
			if q.Type() == "clsact" {
				m.t.Errorf("filters are left at %s", l.Attrs().Name)
				_ = netlink.QdiscDel(q)
			}
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	for _, r := range routes {
		if r.Dst != nil && r.Dst.IP.IsLinkLocalUnicast() {
			m.t.Errorf("route %s is left", r)
		}
	}
	if err != nil {
		m.t.Error(err)
	}
}

func ports(ranges ...[2]uint64) *mesosv1.Resource {
	r := &mesosv1.Resource{Name: proto.String("ports"), Type: mesosv1.Value_RANGES.Enum(), Ranges: &mesosv1.Value_Ranges{}}
	for _, g := range ranges {
		r.Ranges.Range = append(r.Ranges.Range, &mesosv1.Value_Range{Begin: proto.Uint64(g[0]), End: proto.Uint64(g[1])})
	}
	return r
}

func cpus(v float64) *mesosv1.Resource {
	return &mesosv1.Resource{Name: proto.String("cpus"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &v}}
}

// container launches a container, as far as its network is concerned.
func (m *machine) container(id string, resources ...*mesosv1.Resource) *isolatorv1.ContainerRecord {
	m.t.Helper()
	r := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: id, Generation: 1, Resources: resources}}
	answer, err := m.client.Isolator.Prepare(m.t.Context(), &isolatorv1.PrepareRequest{OperationId: "p", Container: r.Container})
	if err != nil {
		m.t.Fatalf("Prepare(%s): %v", id, err)
	}
	list := answer.GetProposal().GetNamespaces()
	if len(list) != 1 || list[0].GetType() != containerv1.Namespace_NETWORK || list[0].GetPath() != "" {
		m.t.Fatalf("Prepare(%s) proposed %v, want a new network namespace", id, list)
	}
	r.Pid = int32(sleeper(m.t))
	m.t.Cleanup(func() { m.cleanup(r) })
	if _, err := m.client.Isolator.Isolate(m.t.Context(), &isolatorv1.IsolateRequest{OperationId: "i", Record: r}); err != nil {
		m.t.Fatalf("Isolate(%s): %v", id, err)
	}
	return r
}

func (m *machine) cleanup(r *isolatorv1.ContainerRecord) {
	m.t.Helper()
	for range 2 {
		if _, err := m.client.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{OperationId: "c", Record: r}); err != nil {
			m.t.Errorf("Cleanup(%s): %v", r.GetContainer().GetId(), err)
		}
	}
}

func (m *machine) update(r *isolatorv1.ContainerRecord, resources ...*mesosv1.Resource) error {
	r.Container.Resources = resources
	_, err := m.client.Isolator.Update(m.t.Context(), &isolatorv1.UpdateRequest{OperationId: "u", Record: r})
	return err
}

func (m *machine) usage(r *isolatorv1.ContainerRecord) *mesosv1.ResourceStatistics {
	m.t.Helper()
	u, err := m.client.Isolator.Usage(m.t.Context(), &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{r}})
	if err != nil {
		m.t.Fatalf("Usage: %v", err)
	}
	result := u.GetResults()[r.GetContainer().GetId()]
	if result.GetStatistics() == nil {
		m.t.Fatalf("Usage of %s: %v, want statistics", r.GetContainer().GetId(), result)
	}
	return result.GetStatistics()
}

// listen listens in the namespace of a process, and answers every connection with a name.
func listen(t testing.TB, pid int, address, name string) net.Listener {
	t.Helper()
	var l net.Listener
	within(t, pid, func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	})
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(name))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-served
	})
	return l
}

// ask connects from the namespace of a process and returns what the other side says.
func ask(pid int, address string) (string, error) {
	text := ""
	err := inside(pid, func() error {
		c, err := net.DialTimeout("tcp4", address, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		buf := make([]byte, 64)
		n, err := c.Read(buf)
		text = string(buf[:n])
		return err
	})
	return text, err
}

func wantAnswer(t testing.TB, who string, pid int, address, want string) {
	t.Helper()
	if got, err := ask(pid, address); got != want {
		t.Errorf("%s asks %s: got %q, %v; want %q", who, address, got, err, want)
	}
}

func wantNoAnswer(t testing.TB, who string, pid int, address string) {
	t.Helper()
	if got, err := ask(pid, address); err == nil {
		t.Errorf("%s asks %s: got %q, want no answer", who, address, got)
	}
}

// localPort is a socket option: the port to send from.
func localPort(port int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var bindErr error
		if err := c.Control(func(fd uintptr) { bindErr = unix.Bind(int(fd), &unix.SockaddrInet4{Port: port}) }); err != nil {
			return err
		}
		return bindErr
	}
}
