package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// Frameworks that were written for Mesos's Docker containerizer, in the JSON that they send. What a task looks like is
// taken from their public documentation and sources; none of their code runs here.

// dockerFramework is such a framework's connection.
type dockerFramework struct {
	*jsonStream
	ctx context.Context
}

func subscribeDocker(ctx context.Context, t *testing.T, c *cluster.Cluster, info object) *dockerFramework {
	t.Helper()
	s := &dockerFramework{subscribeJSON(ctx, t, c.Master, "", info), ctx}
	s.want(ctx, "SUBSCRIBED")
	return s
}

// launch launches a task with the next offer.
func (s *dockerFramework) launch(task object) {
	s.t.Helper()
	s.accept(func(agent any) object {
		task["agent_id"] = agent
		return object{"type": "LAUNCH", "launch": object{"task_infos": []any{task}}}
	})
}

// accept takes the next offer, of an agent, for an operation.
func (s *dockerFramework) accept(operation func(agent any) object) {
	s.t.Helper()
	offer := dig(s.want(s.ctx, "OFFERS"), "offers", "offers", "0")
	s.must(s.ctx, "ACCEPT", object{
		"offer_ids": []any{dig(offer, "id")}, "operations": []any{operation(dig(offer, "agent_id"))}, "filters": object{"refuse_seconds": 0},
	})
}

// status waits until the task is in a state, and returns what was said then.
func (s *dockerFramework) status(want string) any {
	s.t.Helper()
	for {
		status := dig(s.want(s.ctx, "UPDATE"), "update", "status")
		switch state := dig(status, "state"); state {
		case want:
			return status
		case "TASK_STAGING", "TASK_STARTING", "TASK_RUNNING", "TASK_KILLING":
		default:
			s.t.Fatalf("task ended: got %v, want %s", status, want)
		}
	}
}

func portsResource(ports ...uint64) object {
	var ranges []any
	for _, p := range ports {
		ranges = append(ranges, object{"begin": p, "end": p})
	}
	return object{"name": "ports", "type": "RANGES", "ranges": object{"range": ranges}}
}

// marathonEnv are the variables that Marathon gives each task.
func marathonEnv(task string, ports ...uint64) object {
	env := map[string]string{
		"MESOS_TASK_ID": task, "MARATHON_APP_ID": "/web", "MARATHON_APP_VERSION": "2016-02-01T10:00:00.000Z", "MARATHON_APP_DOCKER_IMAGE": "web",
		"MARATHON_APP_RESOURCE_CPUS": "0.1", "MARATHON_APP_RESOURCE_MEM": "64.0", "HOST": "127.0.0.1",
	}
	var all []string
	for n, p := range ports {
		env[fmt.Sprintf("PORT%d", n)] = fmt.Sprint(p)
		all = append(all, fmt.Sprint(p))
	}
	if len(ports) > 0 {
		env["PORT"], env["PORTS"] = all[0], strings.Join(all, ",")
	}
	var list []any
	for name, value := range env {
		list = append(list, object{"name": name, "value": value})
	}
	return object{"variables": list}
}

func parameters(pairs ...string) []any {
	var list []any
	for n := 0; n < len(pairs); n += 2 {
		list = append(list, object{"key": pairs[n], "value": pairs[n+1]})
	}
	return list
}

// marathonInfo is Marathon's FrameworkInfo.
func marathonInfo() object {
	return object{
		"user": "root", "name": "marathon", "failover_timeout": 604800.0, "checkpoint": true, "webui_url": "http://127.0.0.1:8080", "hostname": "127.0.0.1",
		"capabilities": []any{object{"type": "PARTITION_AWARE"}, object{"type": "TASK_KILLING_STATE"}},
	}
}

// inspectOf is the container of a TASK_RUNNING's data.
func inspectOf(t *testing.T, status any) any {
	t.Helper()
	text, _ := dig(status, "data").(string)
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatalf("data %q: %v", text, err)
	}
	var list []any
	if err := json.Unmarshal(data, &list); err != nil || len(list) != 1 {
		t.Fatalf("data: got %s, %v, want an array of one container", data, err)
	}
	return list[0]
}

func TestMarathonsTaskOnABridgeNetworkLivesAsItDidWithADaemon(t *testing.T) {
	needBridge(t)
	image := imageRegistry(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	s := subscribeDocker(ctx, t, c, marathonInfo())
	const id = "web.5ae7f1c8-c7c5-11e5-8c0a-56847afe9799"
	tcp := freePort(t)
	udp := tcp + 40
	s.launch(object{
		"name": "web", "task_id": object{"value": id},
		"resources": []any{scalar("cpus", 0.1), scalar("mem", 64), portsResource(tcp, udp)},
		"command":   object{"shell": false, "environment": marathonEnv(id, tcp, udp), "arguments": []any{"-p", "8080"}},
		"container": object{
			"type": "DOCKER",
			"docker": object{
				"image": image, "network": "BRIDGE", "privileged": false, "force_pull_image": true,
				"port_mappings": []any{
					object{"host_port": tcp, "container_port": 8080, "protocol": "tcp"},
					object{"host_port": udp, "container_port": 5353, "protocol": "udp"},
				},
				"parameters": parameters("hostname", "web.example", "init", "true", "dns", "192.0.2.53", "dns-search", "example", "add-host", "db:192.0.2.7",
					"ulimit", "nofile=512:1024", "label", "team=a", "log-driver", "syslog", "stop-signal", "SIGQUIT"),
			},
		},
		"labels": object{"labels": []any{object{"key": "owner", "value": "b"}}},
		"health_check": object{
			"type": "COMMAND", "command": object{"value": "wget -q -O /dev/null http://127.0.0.1:8080/"},
			"delay_seconds": 0.0, "interval_seconds": 0.2, "grace_period_seconds": 30.0,
		},
		"discovery": object{"visibility": "FRAMEWORK", "name": "web", "ports": object{"ports": []any{object{"number": tcp, "name": "http", "protocol": "tcp"}}}},
	})
	running := s.status("TASK_RUNNING")
	container := inspectOf(t, running)
	ip, _ := dig(container, "NetworkSettings", "IPAddress").(string)
	if net.ParseIP(ip) == nil || dig(running, "container_status", "network_infos", "0", "ip_addresses", "0", "ip_address") != ip {
		t.Errorf("address: got %q in the data, and %v, want the same in both", ip, dig(running, "container_status"))
	}
	if dig(running, "labels", "labels", "0", "key") != "Docker.NetworkSettings.IPAddress" || dig(running, "labels", "labels", "0", "value") != ip {
		t.Errorf("labels: got %v, want the address", dig(running, "labels"))
	}
	for path, want := range map[string]any{
		"State/Running": true, "Config/Image": image, "Config/Hostname": "web.example", "HostConfig/NetworkMode": "bridge", "Config/Labels/team": "a",
	} {
		if got := dig(container, strings.Split(path, "/")...); got != want {
			t.Errorf("%s: got %v, want %v", path, got, want)
		}
	}
	for name, want := range map[string]uint64{"8080/tcp": tcp, "5353/udp": udp} {
		if got := dig(container, "NetworkSettings", "Ports", name, "0", "HostPort"); got != fmt.Sprint(want) {
			t.Errorf("port %s: got %v, want %d", name, got, want)
		}
	}
	if healthy := s.status("TASK_RUNNING"); dig(healthy, "healthy") != true {
		t.Errorf("second status: got %v, want it to be healthy", healthy)
	}
	name, _ := dig(running, "container_status", "container_id", "value").(string)
	ends := hostEnds(t, name)
	serves := func(when string) {
		t.Helper()
		var page string
		eventually(t, when+": the page by the published port", 10*time.Second, func() bool {
			var err error
			page, err = get(fmt.Sprintf("http://127.0.0.1:%d/", tcp))
			return err == nil
		})
		if page != registryPage {
			t.Errorf("%s: got page %q, want %q", when, page, registryPage)
		}
	}
	serves("at first")
	if list := ruleset(t); !strings.Contains(list, fmt.Sprint(udp)) {
		t.Errorf("the published port %d of udp has no rule:\n%s", udp, list)
	}
	inside := mosaic(t, c, 0, "task", "exec", id, "--", "/bin/cat", "/proc/1/comm", "/etc/resolv.conf", "/etc/hosts", "/proc/self/limits").Stdout
	for _, want := range []string{"init\n", "nameserver 192.0.2.53\n", "search example\n", ip + "\tweb.example web\n", "192.0.2.7\tdb\n"} {
		if !strings.Contains(inside, want) {
			t.Errorf("inside: got %s\nwant %q in it", inside, want)
		}
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
	serves("after the agent's restart")
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	s.must(ctx, "KILL", object{"task_id": dig(running, "task_id"), "agent_id": dig(running, "agent_id")})
	if killed := s.status("TASK_KILLED"); dig(killed, "message") != "Container exited with status 131" {
		t.Errorf("message of the end: got %v, want that of its own signal, by its init", dig(killed, "message"))
	}
	var left []string
	eventually(t, "nothing of the container to be left", 20*time.Second, func() bool {
		left = traces(t, name, ip, ends)
		return len(left) == 0
	})
}

func TestMarathonsTaskOnTheHostsNetworkSeesItsSandboxAndVolumes(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "given"), []byte("given\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := subscribeDocker(ctx, t, c, marathonInfo())
	const id = "job.0d1b7f6e-c7c6-11e5-8c0a-56847afe9799"
	port := freePort(t)
	s.launch(object{
		"name": "job", "task_id": object{"value": id},
		"resources": []any{scalar("cpus", 0.1), scalar("mem", 64), portsResource(port)},
		"command": object{"environment": marathonEnv(id, port), "value": `cat /shared/given && echo $MARATHON_APP_ID $PORT0 $MESOS_SANDBOX $SERVED_BY &&
				! echo x 2>/dev/null > /shared/new && echo made > /kept/made && cat $MESOS_SANDBOX/kept/made && echo $MESOS_CONTAINER_NAME`},
		"container": object{
			"type": "DOCKER",
			"volumes": []any{
				object{"container_path": "/shared", "host_path": shared, "mode": "RO"},
				object{"container_path": "/kept", "host_path": "kept", "mode": "RW"},
			},
			"docker": object{"image": image, "network": "HOST", "parameters": parameters("name", "job", "rm", "true")},
		},
	})
	running := s.status("TASK_RUNNING")
	if container := inspectOf(t, running); dig(container, "HostConfig", "NetworkMode") != "host" || dig(container, "NetworkSettings", "IPAddress") != "" {
		t.Errorf("data: got %v, want the host's network and no address", container)
	}
	if end := s.status("TASK_FINISHED"); dig(end, "message") != "Container exited with status 0" {
		t.Errorf("end: got %v, want the message of Mesos's Docker executor", end)
	}
	name, _ := dig(running, "container_status", "container_id", "value").(string)
	want := fmt.Sprintf("given\n/web %d /mnt/mesos/sandbox busybox\nmade\nmesos-%s\n", port, name)
	if got := mosaic(t, c, 0, "task", "logs", id).Stdout; got != want {
		t.Errorf("output: got %q, want %q", got, want)
	}
}

func TestMarathonsTaskOnANamedNetworkAnswersByUDP(t *testing.T) {
	needBridge(t)
	image := imageRegistry(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	program := helper(t, c, "udpecho")
	s := subscribeDocker(ctx, t, c, marathonInfo())
	const id = "dns.1f0d3a52-c7c7-11e5-8c0a-56847afe9799"
	port := freePort(t)
	s.launch(object{
		"name": "dns", "task_id": object{"value": id},
		"resources": []any{scalar("cpus", 0.1), scalar("mem", 64), portsResource(port)},
		"command":   object{"shell": false, "environment": marathonEnv(id, port)},
		"container": object{
			"type":          "DOCKER",
			"volumes":       []any{object{"container_path": "/opt/udpecho", "host_path": program, "mode": "RO"}},
			"network_infos": []any{object{"name": "mosaic", "labels": object{"labels": []any{object{"key": "a", "value": "b"}}}}},
			"docker": object{
				"image": image, "network": "USER", "parameters": parameters("entrypoint", "/opt/udpecho"),
				"port_mappings": []any{object{"host_port": port, "container_port": 53, "protocol": "udp"}},
			},
		},
	})
	running := s.status("TASK_RUNNING")
	container := inspectOf(t, running)
	ip, _ := dig(container, "NetworkSettings", "Networks", "mosaic", "IPAddress").(string)
	if dig(container, "HostConfig", "NetworkMode") != "mosaic" || net.ParseIP(ip) == nil {
		t.Errorf("data: got %v, want an address on the network mosaic", container)
	}
	for _, at := range []string{net.JoinHostPort(ip, "53"), fmt.Sprintf("127.0.0.1:%d", port)} {
		conn, err := net.Dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		b := make([]byte, 100)
		eventually(t, "an answer of "+at, 10*time.Second, func() bool {
			if _, err := conn.Write([]byte("hello")); err != nil {
				return false
			}
			if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			n, err := conn.Read(b)
			return err == nil && string(b[:n]) == "hello"
		})
	}
	s.must(ctx, "KILL", object{"task_id": dig(running, "task_id"), "agent_id": dig(running, "agent_id")})
	s.status("TASK_KILLED")
}

// Aurora runs an executor of its own, thermos, in the container: the ContainerInfo is the executor's, its program is
// fetched into the sandbox, and a folder of the machine holds what an observer reads.
func TestAurorasExecutorRunsInADockerContainer(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	observed := t.TempDir()
	program := helper(t, c, "httpexecutor")
	s := subscribeDocker(ctx, t, c, object{
		"user": "root", "name": "Aurora", "failover_timeout": 1814400.0, "checkpoint": true, "principal": "aurora",
		"capabilities": []any{object{"type": "PARTITION_AWARE"}},
	})
	const id = "www-data-prod-hello-0-1a2b3c4d"
	s.launch(object{
		"name": "www-data/prod/hello", "task_id": object{"value": id},
		"resources": []any{scalar("cpus", 0.1), scalar("mem", 64)},
		"data":      base64.StdEncoding.EncodeToString([]byte("finish")),
		"executor": object{
			"executor_id": object{"value": "thermos-" + id}, "name": "aurora.task", "source": "www-data.prod.hello.0",
			"resources": []any{scalar("cpus", 0.01), scalar("mem", 32)},
			"command": object{
				"value": "echo seen >/var/run/thermos/seen && cd ${MESOS_SANDBOX=.} && ./httpexecutor",
				"uris":  []any{object{"value": "file://" + program, "executable": true}},
			},
			"container": object{
				"type":    "DOCKER",
				"docker":  object{"image": image, "parameters": parameters("cap-drop", "NET_RAW", "read-only", "true")},
				"volumes": []any{object{"container_path": "/var/run/thermos", "host_path": observed, "mode": "RW"}},
			},
		},
	})
	if running := s.status("TASK_RUNNING"); dig(running, "source") != "SOURCE_EXECUTOR" {
		t.Errorf("TASK_RUNNING: got %v, want the executor's", running)
	}
	s.status("TASK_FINISHED")
	if _, err := os.Stat(filepath.Join(observed, "seen")); err != nil {
		t.Errorf("what the observer reads: %v", err)
	}
}

func TestDockerTaskThatCannotBeGivenFailsWithTheReason(t *testing.T) {
	needRoot(t)
	image := imageRegistry(t)
	c := start(t, cluster.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := subscribeDocker(ctx, t, c, marathonInfo())
	for n, x := range []struct {
		docker object
		why    string
	}{
		{object{"image": image, "network": "BRIDGE", "port_mappings": []any{object{"host_port": 0, "container_port": 80}}}, "host port 0"},
		{object{"image": image, "network": "BRIDGE", "port_mappings": []any{object{"host_port": 80, "container_port": 80}}}, "host port 80"},
		{object{"image": image, "privileged": true}, "privileged"},
		{object{"image": image, "network": "USER"}, "network_infos[0].name"},
		{object{"image": image, "parameters": parameters("volumes-from", "other")}, `parameter volumes-from="other"`},
		{object{"image": image, "parameters": parameters("device", "/dev/kmsg")}, `parameter device="/dev/kmsg"`},
		{object{"image": image + "x"}, image + "x"},
	} {
		id := fmt.Sprintf("refused-%d", n)
		s.launch(object{
			"name": id, "task_id": object{"value": id}, "resources": []any{scalar("cpus", 0.1), scalar("mem", 64)},
			"command": object{"value": "true"}, "container": object{"type": "DOCKER", "docker": x.docker},
		})
		end := s.status("TASK_FAILED")
		message, _ := dig(end, "message").(string)
		if !strings.Contains(message, x.why) || dig(end, "reason") != "REASON_CONTAINER_LAUNCH_FAILED" {
			t.Errorf("%v: got %v, want it to fail for %q", x.docker, end, x.why)
		}
	}
}

func TestTaskGroupsTakeNoDockerContainers(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	s := subscribeDocker(ctx, t, c, marathonInfo())
	s.accept(func(agent any) object {
		return object{"type": "LAUNCH_GROUP", "launch_group": object{
			"executor": object{"type": "DEFAULT", "executor_id": object{"value": "pod"}, "framework_id": object{"value": s.framework},
				"resources": []any{scalar("cpus", 0.1), scalar("mem", 32), scalar("disk", 1)}},
			"task_group": object{"tasks": []any{object{
				"name": "member", "task_id": object{"value": "member"}, "agent_id": agent,
				"resources": []any{scalar("cpus", 0.1), scalar("mem", 32)}, "command": object{"value": "true"},
				"container": object{"type": "DOCKER", "docker": object{"image": "busybox"}},
			}}},
		}}
	})
	end := s.status("TASK_ERROR")
	if message, _ := dig(end, "message").(string); !strings.Contains(message, "Docker ContainerInfo is not supported on the task") {
		t.Errorf("message: got %v, want Mesos's", end)
	}
}
