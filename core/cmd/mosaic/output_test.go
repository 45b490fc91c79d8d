package main

import (
	"bytes"
	"net"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestRowsInEachFormat stops the clock, so that ages are the same each time.
func TestRowsInEachFormat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rows := []taskRow{
			{
				ID: "web-1", Name: "web", State: "TASK_RUNNING", FrameworkID: "f-1", Framework: "marathon", AgentID: "a-1", Hostname: "alpha",
				CPUs: 0.5, MemMB: 64, ContainerID: "c-1", Addresses: []string{"10.88.0.2"}, Ports: []string{"31000:80/tcp"}, Updated: time.Now().Add(-90 * time.Second),
			},
			{ID: "a-rather-long-id", Name: "old", State: "TASK_LOST", FrameworkID: "f-1", AgentID: "a-2", CPUs: 2, MemMB: 1024.5, Message: `odd: "quoted"`},
		}
		for format, want := range map[string]string{
			"table": `
TASK               STATE          FRAMEWORK   HOST    CPUS   MEM         SINCE
web-1              TASK_RUNNING   marathon    alpha   0.5    64 MB       90s
a-rather-long-id   TASK_LOST      -           -       2      1024.5 MB   -
`,
			"wide": `
TASK               STATE          FRAMEWORK   HOST    CPUS   MEM         SINCE   HEALTH   FRAMEWORK ID   ADDRESS     PORTS          CONTAINER   MESSAGE
web-1              TASK_RUNNING   marathon    alpha   0.5    64 MB       90s     -        f-1            10.88.0.2   31000:80/tcp   c-1         -
a-rather-long-id   TASK_LOST      -           -       2      1024.5 MB   -       -        f-1            -           -              -           odd: "quoted"
`,
			"json": `
[
  {
    "id": "web-1",
    "name": "web",
    "state": "TASK_RUNNING",
    "framework_id": "f-1",
    "framework": "marathon",
    "agent_id": "a-1",
    "hostname": "alpha",
    "cpus": 0.5,
    "mem_mb": 64,
    "container_id": "c-1",
    "addresses": [
      "10.88.0.2"
    ],
    "ports": [
      "31000:80/tcp"
    ],
    "updated": "1999-12-31T23:58:30Z"
  },
  {
    "id": "a-rather-long-id",
    "name": "old",
    "state": "TASK_LOST",
    "framework_id": "f-1",
    "framework": "",
    "agent_id": "a-2",
    "hostname": "",
    "cpus": 2,
    "mem_mb": 1024.5,
    "message": "odd: \"quoted\""
  }
]
`,
			"yaml": `
- id: web-1
  name: web
  state: TASK_RUNNING
  framework_id: f-1
  framework: marathon
  agent_id: a-1
  hostname: alpha
  cpus: 0.5
  mem_mb: 64
  container_id: c-1
  addresses:
    - 10.88.0.2
  ports:
    - 31000:80/tcp
  updated: "1999-12-31T23:58:30Z"
- id: a-rather-long-id
  name: old
  state: TASK_LOST
  framework_id: f-1
  framework: ""
  agent_id: a-2
  hostname: ""
  cpus: 2
  mem_mb: 1024.5
  message: 'odd: "quoted"'
`,
		} {
			for i := range rows {
				rows[i].Updated = rows[i].Updated.UTC()
			}
			var out bytes.Buffer
			if err := printRows(&out, format, rows, taskColumns); err != nil || "\n"+out.String() != want {
				t.Errorf("%s = %v\n%s\nwant\n%s", format, err, out.String(), want)
			}
		}
	})
}

func TestNoRowsAreAnEmptyListAndAHeading(t *testing.T) {
	for format, want := range map[string]string{
		"json": "[]\n", "table": "TASK   STATE   FRAMEWORK   HOST   CPUS   MEM   SINCE\n",
	} {
		var out bytes.Buffer
		if err := printRows(&out, format, []taskRow(nil), taskColumns); err != nil || out.String() != want {
			t.Errorf("%s = %q, %v; want %q", format, out.String(), err, want)
		}
	}
}

func TestListsShowTheCluster(t *testing.T) {
	master := fakeMaster(t, state())
	agent := fakeAgent(t, `[{"kind":"isolator","name":"cgroups","state":"up","required":true,"pid":7,"restarts":2,"memory_bytes":9437184,"cleanups_owed":0,"granted":["cgroup"]}]`, "", "")
	for _, test := range []struct {
		args string
		want string
	}{
		{"task ls --master M -o yaml", `
- id: web-1
  name: web
  state: TASK_RUNNING
  framework_id: f-1
  framework: marathon
  agent_id: agent-a
  hostname: alpha
  cpus: 0.5
  mem_mb: 64
  container_id: container-web-1
  updated: "2026-01-02T03:04:05Z"
`},
		{"node ls --master M -o yaml", `
- id: agent-a
  hostname: alpha
  address: alpha:5051
  active: true
  state: active
  tasks: 1
  total:
    cpus: 4
    disk: 1000
    mem: 4096
  allocated:
    cpus: 0.5
    mem: 64
  attributes:
    rack: a1
  registered: "2026-01-02T03:04:05Z"
  version: 1.11.0
- id: agent-b
  hostname: beta
  address: beta:5051
  active: false
  state: inactive
  tasks: 0
  total:
    cpus: 4
    disk: 1000
    mem: 4096
  allocated:
    cpus: 0.5
    mem: 64
  attributes:
    rack: a1
  registered: "2026-01-02T03:04:05Z"
  version: 1.11.0
`},
		{"framework ls --master M -o yaml", `
- id: f-1
  name: marathon
  user: nobody
  roles:
    - web
    - batch
  state: active
  tasks: 1
  allocated:
    cpus: 0.5
  registered: "2026-01-02T03:04:05Z"
`},
		{"module ls --agent A", `
KIND       NAME      STATE   RESTARTS   PID   MEMORY   SINCE   REASON
isolator   cgroups   up      2          7     9 MiB    -       -
`},
	} {
		args := strings.Fields(strings.NewReplacer(" M", " "+master, " A", " "+agent).Replace(test.args))
		out, _, err := execute(t, args...)
		if err != nil || "\n"+out != test.want {
			t.Errorf("mosaic %s = %v\n%s\nwant\n%s", test.args, err, out, test.want)
		}
	}
	for args, want := range map[string][]string{
		"task ls --all":         {"old-1", "TASK_FAILED", "web-1"},
		"task ls --all -o wide": {"Command exited with status 1"},
		"node ls -o wide":       {"rack=a1", "alpha:5051", "0.5/4", "64/4096 MB", "0/1000 MB", "inactive"},
		"framework ls --all":    {"mosaic run", "completed", "web,batch"},
	} {
		out, _, err := execute(t, append(strings.Fields(args), "--master", master)...)
		for _, w := range want {
			if err != nil || !strings.Contains(out, w) {
				t.Errorf("mosaic %s = %v\n%s\nwant %q", args, err, out, w)
			}
		}
	}
}

func TestVersionInEachFormat(t *testing.T) {
	for format, want := range map[string]string{
		"table": "mosaic " + version + " (v1 API of Apache Mesos 1.11.0)\n",
		"json":  `{"mesos_api":"1.11.0","version":"` + version + `"}` + "\n",
		"yaml":  "mesos_api: 1.11.0\nversion: " + version + "\n",
	} {
		if out, _, err := execute(t, "version", "-o", format); err != nil || out != want {
			t.Errorf("version -o %s = %q, %v; want %q", format, out, err, want)
		}
	}
}

func TestLogsOfATaskAreReadToTheEnd(t *testing.T) {
	const content = "more than five bytes\n"
	agent := fakeAgent(t, "", "/frameworks/f-1/executors/web-1/runs/latest/stdout", content)
	host, port, err := net.SplitHostPort(agent)
	if err != nil {
		t.Fatal(err)
	}
	s := state()
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range s.GetAgents.GetAgents() {
		a.AgentInfo.Hostname, a.AgentInfo.Port = &host, ptr(int32(n))
	}
	master := fakeMaster(t, s)
	for name, test := range map[string]struct {
		args []string
		want string
		err  string
	}{
		"by its id":         {[]string{"web-1"}, content, ""},
		"by its beginning":  {[]string{"we"}, content, ""},
		"no such file":      {[]string{"--stderr", "web-1"}, "", ""}, // nothing was written yet
		"no such task":      {[]string{"nobody"}, "", `no task "nobody"`},
		"of another":        {[]string{"web-1", "--framework", "f-9"}, "", `no task "web-1"`},
		"could be several":  {[]string{""}, content, ""}, // one of the two lives
		"a task of the end": {[]string{"old"}, "", ""},
	} {
		out, _, err := execute(t, append([]string{"task", "logs", "--master", master}, test.args...)...)
		if out != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: %q, %v; want %q, %q", name, out, err, test.want, test.err)
		}
	}
}
