package containerizer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/containerizer/launcher"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// The table of mesos-behaviour: shell, value and arguments against entrypoint (E) and command (C) of the image.
func TestCommandLineFollowsMesossTable(t *testing.T) {
	const failure = "error"
	for _, x := range []struct {
		shell          bool
		value          string
		args           string
		none, c, e, ec string
	}{
		{false, "", "", failure, "c0 c1", "e0 e1", "e0 e1 c0 c1"},
		{false, "", "a0 a1", failure, "c0 a0 a1", "e0 e1 a0 a1", "e0 e1 a0 a1"},
		{false, "v", "", "v", "v", "v", "v"},
		{false, "v", "a0 a1", "v: a0 a1", "v: a0 a1", "v: a0 a1", "v: a0 a1"},
		{true, "", "", failure, failure, failure, failure},
		{true, "", "a0", failure, failure, failure, failure},
		{true, "v w", "", "/bin/sh -c v w", "/bin/sh -c v w", "/bin/sh -c v w", "/bin/sh -c v w"},
		{true, "v w", "a0", "/bin/sh -c v w", "/bin/sh -c v w", "/bin/sh -c v w", "/bin/sh -c v w"},
	} {
		for image, want := range map[*containerv1.ImageConfig]string{
			nil:                                x.none,
			{Cmd: []string{"c0", "c1"}}:        x.c,
			{Entrypoint: []string{"e0", "e1"}}: x.e,
			{Entrypoint: []string{"e0", "e1"}, Cmd: []string{"c0", "c1"}}: x.ec,
		} {
			command := &mesosv1.CommandInfo{Shell: &x.shell, Arguments: strings.Fields(x.args)}
			if x.value != "" {
				command.Value = &x.value
			}
			path, argv, err := commandLine(command, image)
			got := strings.Join(argv, " ")
			if path != "" {
				got = path + ": " + got
			}
			if err != nil {
				got = failure
			}
			if got != want {
				t.Errorf("commandLine(%v, %v) = %q, %v, want %q", command, image, got, err, want)
			}
		}
	}
}

func TestShellIsTheDefault(t *testing.T) {
	value := "echo hi"
	if path, got, err := commandLine(&mesosv1.CommandInfo{Value: &value}, nil); err != nil || path != "" || !slices.Equal(got, []string{"/bin/sh", "-c", "echo hi"}) {
		t.Errorf("commandLine without shell: got %q, %v, want the shell", got, err)
	}
}

func variable(name, value string) *mesosv1.Environment_Variable {
	return &mesosv1.Environment_Variable{Name: &name, Value: &value}
}

func TestEnvironmentPrecedence(t *testing.T) {
	secret := &mesosv1.Environment_Variable{Name: new("SECRET"), Type: mesosv1.Environment_Variable_SECRET.Enum(),
		Secret: &mesosv1.Secret{Type: mesosv1.Secret_REFERENCE.Enum(), Reference: &mesosv1.Secret_Reference{Name: new("db")}}}
	c := &Containerizer{cfg: Config{Secret: func(_ context.Context, s *mesosv1.Secret) ([]byte, error) {
		return []byte("resolved " + s.GetReference().GetName()), nil
	}}}
	spec := &containerv1.Container{
		Sandbox: "/host/sandbox", SandboxInContainer: "/mnt/mesos/sandbox", Rootfs: "/r",
		Environment: map[string]string{"ALL": "agent", "IMAGE": "agent", "PATH": "/agent", "MESOS_SANDBOX": "/host/sandbox", "MESOS_TASK_ID": "t"},
		ImageConfig: &containerv1.ImageConfig{Environment: []string{"ALL=image", "IMAGE=image", "MODULE=image", "PATH=/image", "MESOS_TASK_ID=forged", "EMPTY", "=x"}},
		Command: &mesosv1.CommandInfo{Environment: &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{
			variable("ALL", "command"), secret,
		}}},
	}
	got, err := c.environment(t.Context(), spec, &containerv1.Proposal{Environment: map[string]string{"ALL": "module", "MODULE": "module"}})
	want := []string{"ALL=command", "EMPTY=", "IMAGE=image", "MESOS_SANDBOX=/mnt/mesos/sandbox", "MESOS_TASK_ID=t", "MODULE=module", "PATH=/image", "SECRET=resolved db"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("environment: got %q, %v, want %q", got, err, want)
	}
	c.cfg.Secret = nil
	if _, err := c.environment(t.Context(), spec, nil); err == nil || !strings.Contains(err.Error(), "environment variable SECRET: secret db") {
		t.Errorf("environment without resolver: got %v, want the variable and the secret named", err)
	}
	if got, err := c.environment(t.Context(), &containerv1.Container{}, nil); err != nil || !slices.Equal(got, []string{"PATH=" + defaultPath}) {
		t.Errorf("environment of nothing: got %q, %v, want a PATH", got, err)
	}
}

func TestMergeKeepsOrderAndOwners(t *testing.T) {
	n := uint64(5)
	spec, err := merge([]answer{
		{module: "a", proposal: &containerv1.Proposal{
			Mounts: []*containerv1.Mount{{Destination: "/a"}}, MaskedPaths: []string{"/proc/kcore"},
			Cgroup: &containerv1.CgroupResources{CpuShares: &n, DeviceRules: []*containerv1.DeviceRule{{Type: "a"}}, Files: map[string]string{"x": "1"}},
		}},
		{module: "none"},
		{module: "b", proposal: &containerv1.Proposal{
			Mounts: []*containerv1.Mount{{Destination: "/a/b"}}, MaskedPaths: []string{"/proc/kcore", "/proc/keys"},
			Cgroup:          &containerv1.CgroupResources{CpusetCpus: "0-1", DeviceRules: []*containerv1.DeviceRule{{Type: "c"}}, Files: map[string]string{"y": "1"}},
			NoNewPrivileges: new(false), Arguments: []string{"x"},
		}},
	})
	if err != nil {
		t.Fatalf("merge: %v", err)
	}
	m := spec.GetMerged()
	if len(m.GetMounts()) != 2 || m.GetMounts()[1].GetDestination() != "/a/b" || !slices.Equal(m.GetMaskedPaths(), []string{"/proc/kcore", "/proc/keys"}) ||
		len(m.GetCgroup().GetDeviceRules()) != 2 || m.GetCgroup().GetDeviceRules()[1].GetType() != "c" || len(m.GetCgroup().GetFiles()) != 2 {
		t.Errorf("merged: got %v, want lists joined in order", m)
	}
	for field, want := range map[string]string{
		"cgroup.cpu_shares": "a", "cgroup.cpuset_cpus": "b", "cgroup.files.x": "a", "mounts./a/b": "b", "masked_paths./proc/kcore": "a",
		"no_new_privileges": "b", "arguments": "b", "cgroup.device_rules": "a",
	} {
		if got := spec.GetOwners()[field]; got != want {
			t.Errorf("owner of %s: got %q, want %q", field, got, want)
		}
	}
}

func TestEveryFieldSetTwiceIsAConflict(t *testing.T) {
	for field, p := range map[string]*containerv1.Proposal{
		"environment.PATH":      {Environment: map[string]string{"PATH": "x"}},
		"mounts./data":          {Mounts: []*containerv1.Mount{{Destination: "/data"}}},
		"namespaces.PID":        {Namespaces: []*containerv1.Namespace{{Type: containerv1.Namespace_PID}}},
		"cgroup.cpu_shares":     {Cgroup: &containerv1.CgroupResources{CpuShares: new(uint64(1))}},
		"cgroup.files.x":        {Cgroup: &containerv1.CgroupResources{Files: map[string]string{"x": "1"}}},
		"devices./dev/fuse":     {Devices: []*containerv1.Device{{Path: "/dev/fuse"}}},
		"rlimits.RLIMIT_NOFILE": {Rlimits: []*containerv1.Rlimit{{Type: "RLIMIT_NOFILE"}}},
		"capabilities":          {Capabilities: &containerv1.Capabilities{}},
		"seccomp":               {Seccomp: &containerv1.Seccomp{}},
		"sysctls.a.b":           {Sysctls: map[string]string{"a.b": "1"}},
		"arguments":             {Arguments: []string{"x"}},
		"working_directory":     {WorkingDirectory: "/"},
		"no_new_privileges":     {NoNewPrivileges: new(true)},
		"oom_score_adj":         {OomScoreAdj: new(int32(1))},
		"hostname":              {Hostname: "x"},
		"windows_job":           {WindowsJob: &containerv1.WindowsJob{}},
	} {
		_, err := merge([]answer{{module: "a", proposal: p}, {module: "b", proposal: p, where: "agent.hcl:7"}})
		if want := "isolator(a) and isolator(b) (agent.hcl:7) both set " + field + ": drop one of them, or withhold the power with `allow`"; err == nil || err.Error() != want {
			t.Errorf("merge: got %v, want %s", err, want)
		}
	}
	fields := (&containerv1.Proposal{}).ProtoReflect().Descriptor().Fields().Len()
	if fields != 17 {
		t.Errorf("Proposal: got %d fields, want the 17 that merge knows; teach it the new ones", fields)
	}
}

func TestWhatNobodyTakesCareOfIsNotIgnored(t *testing.T) {
	mesos := mesosv1.ContainerInfo_MESOS.Enum()
	for want, info := range map[string]*mesosv1.ContainerInfo{
		"volume at /data: no isolator":   {Type: mesos, Volumes: []*mesosv1.Volume{{ContainerPath: new("/data"), Mode: mesosv1.Volume_RW.Enum()}}},
		`network "blue": no isolator`:    {Type: mesos, NetworkInfos: []*mesosv1.NetworkInfo{{Name: new("blue")}}},
		"capabilities: no isolator":      {Type: mesos, LinuxInfo: &mesosv1.LinuxInfo{BoundingCapabilities: &mesosv1.CapabilityInfo{}}},
		"a seccomp profile: no isolator": {Type: mesos, LinuxInfo: &mesosv1.LinuxInfo{Seccomp: &mesosv1.SeccompInfo{ProfileName: new("strict")}}},
		"ipc namespace: no isolator":     {Type: mesos, LinuxInfo: &mesosv1.LinuxInfo{IpcMode: mesosv1.LinuxInfo_PRIVATE.Enum()}},
		"resource limits: no isolator":   {Type: mesos, RlimitInfo: &mesosv1.RLimitInfo{Rlimits: []*mesosv1.RLimitInfo_RLimit{{}}}},
		"a hostname: no isolator":        {Type: mesos, Hostname: new("x")},
		"type DOCKER":                    {Type: mesosv1.ContainerInfo_DOCKER.Enum()},
		"it pulls nothing from registries": {Type: mesos, Mesos: &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{
			Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: new("alpine")}}}},
		"image of type APPC": {Type: mesos, Mesos: &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{
			Type: mesosv1.Image_APPC.Enum(), Appc: &mesosv1.Image_Appc{Name: new("x")}}}},
	} {
		m := newMachine(t)
		c, _ := startAgent(t, m, t.TempDir())
		spec := testContainer(t, "c1")
		spec.ContainerInfo = info
		if _, err := c.Launch(t.Context(), spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Launch: got %v, want %s", err, want)
		}
		stopAgent(t, c)
	}
	for _, name := range []string{"/images/x", "file:///images/x"} {
		got, err := imageName(&containerv1.Container{ContainerInfo: &mesosv1.ContainerInfo{Type: mesos, Mesos: &mesosv1.ContainerInfo_MesosInfo{
			Image: &mesosv1.Image{Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &name}}}}})
		if err != nil || got != "/images/x" {
			t.Errorf("imageName(%s) = %q, %v, want /images/x", name, got, err)
		}
	}
}

func TestUsersAreLookedUpInTheImageFirst(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"passwd": "root:x:0:0::/:/bin/sh\napp:x:1234:1300::/:/bin/sh\n",
		"group":  "root:x:0:\napp:x:1300:\nextra:x:1400:app,other\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := &Containerizer{cfg: Config{SwitchUser: true}}
	for name, want := range map[string]launcher.User{
		"app": {UID: 1234, GID: 1300, Groups: []uint32{1400}}, "1234": {UID: 1234, GID: 1300, Groups: []uint32{1400}},
		"4321": {UID: 4321, GID: 4321}, "root": {}, "": {}, "nobody": {UID: 65534, GID: 65534},
	} {
		got, err := c.identify(name, root)
		if err != nil || got.UID != want.UID || got.GID != want.GID || !slices.Equal(got.Groups, want.Groups) {
			t.Errorf("identify(%q) = %v, %v, want %v", name, got, err, want)
		}
	}
	if _, err := c.identify("no-such-user", root); err == nil || !strings.Contains(err.Error(), `user "no-such-user"`) {
		t.Errorf("identify: got %v, want the user named", err)
	}
	// A passwd that leads out of the image is resolved inside it, and a pipe is not waited for.
	if err := os.Remove(filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/../../../../etc/shadow-of-the-image", filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if got, err := lookup("app", root); err == nil {
		t.Errorf("lookup through a link out of the image: got %v, want nobody of that name", got)
	}
	for _, bad := range []string{"4294967295", "-5"} {
		if got, err := c.identify(bad, root); err == nil {
			t.Errorf("identify(%s): got %v, want a refusal", bad, got)
		}
	}
	c.cfg.SwitchUser = false
	if got, err := c.identify("app", root); err != nil || got.UID != uint32(os.Geteuid()) {
		t.Errorf("identify without user switching: got %v, %v, want the agent's user", got, err)
	}
}

func TestSandboxIsMadeWithoutFollowingAnything(t *testing.T) {
	c := &Containerizer{}
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	sandbox := filepath.Join(dir, "a/b/sandbox")
	if err := c.makeSandbox(&containerv1.Container{Sandbox: sandbox}, launcher.User{}); err != nil {
		t.Fatalf("makeSandbox: %v", err)
	}
	if info, err := os.Stat(sandbox); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("sandbox: got %v, %v, want mode 0750", info.Mode(), err)
	}
	if err := os.Remove(filepath.Join(sandbox, "stdout")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(sandbox, "stdout")); err != nil {
		t.Fatal(err)
	}
	if err := c.makeSandbox(&containerv1.Container{Sandbox: sandbox}, launcher.User{}); err == nil {
		t.Error("makeSandbox over a link: got no error, want one")
	}
	if _, err := os.Lstat(outside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("outside: got %v, want nothing there", err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := c.makeSandbox(&containerv1.Container{Sandbox: filepath.Join(dir, "link")}, launcher.User{}); err == nil {
		t.Error("makeSandbox at a link: got no error, want one")
	}
}
