package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// Where the built-in network keeps what it knows of a container: README of isolators/cni.
const (
	cniRecords = "/run/mosaic/cni"
	cniLeases  = "/run/mosaic/cni-leases"
)

// needBridge skips a test where the built-in network or the image of the tests' registry cannot be made.
func needBridge(t *testing.T) {
	t.Helper()
	needRoot(t)
	if _, err := os.Stat(filepath.Join(bin, "cni", "bridge")); err != nil {
		t.Skip("needs the plugins of the built-in network: " + err.Error())
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft: " + err.Error())
	}
}

// imageTask is a task in an image, with the image's own command unless one is given.
func imageTask(o *mesosv1.Offer, id, image string, command *mesosv1.CommandInfo) *mesosv1.TaskInfo {
	if command == nil {
		command = &mesosv1.CommandInfo{Shell: proto.Bool(false)}
	}
	task := cluster.Task(o, id, 0.1, 64, command)
	task.Container = &mesosv1.ContainerInfo{
		Type:  mesosv1.ContainerInfo_MESOS.Enum(),
		Mesos: &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &image}}},
	}
	return task
}

// onBridge puts a task on the built-in network.
func onBridge(task *mesosv1.TaskInfo) *mesosv1.TaskInfo {
	task.Container.NetworkInfos = []*mesosv1.NetworkInfo{{Name: proto.String("mosaic")}}
	return task
}

// publish has a port of the machine lead to port 80 of the task.
func publish(task *mesosv1.TaskInfo, port uint64, o *mesosv1.Offer) {
	task.Container.NetworkInfos[0].PortMappings = []*mesosv1.NetworkInfo_PortMapping{
		{HostPort: proto.Uint32(uint32(port)), ContainerPort: proto.Uint32(80), Protocol: proto.String("tcp")},
	}
	task.Resources = append(task.Resources, &mesosv1.Resource{
		Name: proto.String("ports"), Type: mesosv1.Value_RANGES.Enum(), AllocationInfo: o.GetAllocationInfo(),
		Ranges: &mesosv1.Value_Ranges{Range: []*mesosv1.Value_Range{{Begin: &port, End: &port}}},
	})
}

// address is a container's id and its address in the status of its task.
func address(t *testing.T, s *mesosv1.TaskStatus) (container, ip string) {
	t.Helper()
	for _, n := range s.GetContainerStatus().GetNetworkInfos() {
		for _, a := range n.GetIpAddresses() {
			if ip == "" {
				ip = a.GetIpAddress()
			}
		}
	}
	container = s.GetContainerStatus().GetContainerId().GetValue()
	if container == "" || net.ParseIP(ip) == nil {
		t.Fatalf("status of task %s has container %q and address %q: %v", s.GetTaskId().GetValue(), container, ip, s)
	}
	return container, ip
}

// stateAddresses are the addresses of each task in /state of the master.
func stateAddresses(t *testing.T, c *cluster.Cluster) map[string]string {
	t.Helper()
	resp, err := http.Get("http://" + c.Master + "/state")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var state struct {
		Frameworks []struct {
			Tasks []struct {
				ID       string
				Statuses []struct {
					ContainerStatus struct {
						NetworkInfos []struct {
							IPAddresses []struct {
								IPAddress string `json:"ip_address"`
							} `json:"ip_addresses"`
						} `json:"network_infos"`
					} `json:"container_status"`
				}
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&state); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, f := range state.Frameworks {
		for _, task := range f.Tasks {
			for _, s := range task.Statuses {
				for _, n := range s.ContainerStatus.NetworkInfos {
					for _, a := range n.IPAddresses {
						found[task.ID] = a.IPAddress
					}
				}
			}
		}
	}
	return found
}

// get fetches a page, each time by a connection of its own.
func get(url string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

var hostEnd = regexp.MustCompile(`\bveth[0-9a-f]+\b`)

// traces are what a container has on the machine for its network, each in words: its record, mounts that name it, its
// lease, rules for its address, and the interfaces that its record named, which are given where the record is gone.
func traces(t *testing.T, container, ip string, interfaces []string) []string {
	t.Helper()
	var found []string
	if _, err := os.Stat(filepath.Join(cniRecords, container)); err == nil {
		found = append(found, "record "+filepath.Join(cniRecords, container))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, container) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	leases, err := filepath.Glob(cniLeases + "/*/" + ip)
	if err != nil {
		t.Fatal(err)
	}
	for _, lease := range leases {
		// Another container may have been given the address since.
		if data, err := os.ReadFile(lease); err == nil && strings.Contains(string(data), container) {
			found = append(found, "lease "+lease)
		}
	}
	for line := range strings.Lines(ruleset(t)) {
		if strings.Contains(line, container) {
			found = append(found, "rule "+strings.TrimSpace(line))
		}
	}
	for _, name := range interfaces {
		if _, err := net.InterfaceByName(name); err == nil {
			found = append(found, "interface "+name)
		}
	}
	return found
}

// ruleset is all that the machine does with packets, as nft lists it; those of iptables are among them.
func ruleset(t *testing.T) string {
	t.Helper()
	list, err := exec.CommandContext(t.Context(), "nft", "list", "ruleset").Output()
	if err != nil {
		t.Fatalf("nft list ruleset: %v", err)
	}
	return string(list)
}

// hostEnds are the interfaces of the machine that belong to a container that runs.
func hostEnds(t *testing.T, container string) []string {
	t.Helper()
	record, err := os.ReadFile(filepath.Join(cniRecords, container, "record.json"))
	if err != nil {
		t.Fatal(err)
	}
	return hostEnd.FindAllString(string(record), -1)
}

func TestNetworksOfContainersOutliveTheAgentAndEndWithThem(t *testing.T) {
	needBridge(t)
	image := imageRegistry(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	f, err := cluster.Subscribe(ctx, c.Master, "web", "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Disconnect()
	o, err := f.Offer(ctx, 0.2, 128)
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	first, second := onBridge(imageTask(o, "first", image, nil)), onBridge(imageTask(o, "second", image, nil))
	publish(first, port, o)
	if err := f.Launch(ctx, o, first, second); err != nil {
		t.Fatal(err)
	}
	tasks := []string{"first", "second"}
	running, err := f.State(ctx, tasks, mesosv1.TaskState_TASK_RUNNING, mesosv1.TaskState_TASK_FAILED)
	if err != nil {
		t.Fatal(err)
	}
	containers, ips, ends := map[string]string{}, map[string]string{}, map[string][]string{}
	for _, id := range tasks {
		s := running[id].Status
		if s.GetState() != mesosv1.TaskState_TASK_RUNNING {
			t.Fatalf("task %s: %s %s", id, s.GetState(), s.GetMessage())
		}
		containers[id], ips[id] = address(t, s)
		ends[id] = hostEnds(t, containers[id])
		// What is looked for in the end is there now, or its absence would show nothing.
		seen := strings.Join(traces(t, containers[id], ips[id], ends[id]), "\n")
		wanted := []string{"record ", "mount ", "lease ", "interface "}
		if id == "first" {
			wanted = append(wanted, "rule ") // of the port that it publishes
		}
		for _, want := range wanted {
			if !strings.Contains("\n"+seen, "\n"+want) {
				t.Errorf("task %s runs and has no %s on this machine:\n%s", id, want, seen)
			}
		}
	}
	if ips["first"] == ips["second"] {
		t.Errorf("both containers have the address %s", ips["first"])
	}
	check := func(when string) {
		t.Helper()
		known := stateAddresses(t, c)
		for _, id := range tasks {
			if known[id] != ips[id] {
				t.Errorf("%s: /state says task %s has %q, its status %q", when, id, known[id], ips[id])
			}
		}
		for _, at := range []string{ips["first"], ips["second"], fmt.Sprintf("127.0.0.1:%d", port)} {
			var page string
			eventually(t, when+": a page of "+at, 10*time.Second, func() bool {
				var err error
				page, err = get("http://" + at + "/")
				return err == nil
			})
			if page != registryPage {
				t.Errorf("%s: %s serves %q, want %q", when, at, page, registryPage)
			}
		}
	}
	check("before")

	// Half a request is sent, to the container and to the port that it publishes, and the other half when another agent
	// is there.
	var open []net.Conn
	for _, at := range []string{net.JoinHostPort(ips["first"], "80"), fmt.Sprintf("127.0.0.1:%d", port)} {
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n"); err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	if err := c.KillAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitAgentRecovered(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for _, conn := range open {
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "\r\n"); err != nil {
			t.Fatalf("go on with the connection to %s: %v", conn.RemoteAddr(), err)
		}
		if answer, err := io.ReadAll(bufio.NewReader(conn)); err != nil || !strings.HasSuffix(string(answer), registryPage) {
			t.Errorf("the connection to %s went on with %q, %v; want the page", conn.RemoteAddr(), answer, err)
		}
	}
	check("after the agent's restart")

	for _, id := range tasks {
		agent := running[id].Status.GetAgentId()
		if err := f.Client().Kill(ctx, &mesosv1.TaskID{Value: &id}, agent); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.State(ctx, tasks, mesosv1.TaskState_TASK_KILLED, mesosv1.TaskState_TASK_FAILED); err != nil {
		t.Fatal(err)
	}
	for _, id := range tasks {
		var left []string
		deadline := time.Now().Add(20 * time.Second)
		for {
			// The network goes after the last status.
			if left = traces(t, containers[id], ips[id], ends[id]); len(left) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("task %s was killed and left:\n%s", id, strings.Join(left, "\n"))
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	if list := ruleset(t); strings.Contains(list, fmt.Sprintf("tcp . %d ", port)) {
		t.Errorf("the published port %d has a rule still:\n%s", port, list)
	}
}

// freePort is a port of those that agents of tests offer that nobody listens on.
func freePort(t *testing.T) uint64 {
	t.Helper()
	for port := 31000 + os.Getpid()%900; port < 32000; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l.Close()
		return uint64(port)
	}
	t.Fatal("no port from 31000 to 32000 is free")
	return 0
}
