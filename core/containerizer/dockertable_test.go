package containerizer

import (
	"os"
	"regexp"
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// dockerRunOptions are the long options of `docker run` (Docker 28), each with a value that people give it.
var dockerRunOptions = map[string]string{
	"add-host": "db:10.0.0.1", "annotation": "a=b", "attach": "stdout", "blkio-weight": "10", "blkio-weight-device": "/dev/sda:10", "cap-add": "KILL",
	"cap-drop": "KILL", "cgroup-parent": "/x", "cgroupns": "private", "cidfile": "/f", "cpu-count": "1", "cpu-percent": "1", "cpu-period": "100000",
	"cpu-quota": "1000", "cpu-rt-period": "1", "cpu-rt-runtime": "1", "cpu-shares": "10", "cpus": "1", "cpuset-cpus": "0", "cpuset-mems": "0",
	"detach": "true", "detach-keys": "ctrl-c", "device": "/dev/fuse", "device-cgroup-rule": "c 1:1 r", "device-read-bps": "/dev/sda:1m",
	"device-read-iops": "/dev/sda:1", "device-write-bps": "/dev/sda:1m", "device-write-iops": "/dev/sda:1", "disable-content-trust": "true",
	"dns": "10.0.0.1", "dns-option": "ndots:1", "dns-search": "a.example", "domainname": "a", "entrypoint": "/x", "env": "A=b", "env-file": "f",
	"expose": "80", "gpus": "all", "group-add": "1", "health-cmd": "x", "health-interval": "1s", "health-retries": "1", "health-start-interval": "1s",
	"health-start-period": "1s", "health-timeout": "1s", "hostname": "h", "init": "true", "interactive": "true", "io-maxbandwidth": "1m", "io-maxiops": "1",
	"ip": "10.0.0.1", "ip6": "2001:db8::1", "ipc": "host", "isolation": "default", "kernel-memory": "1m", "label": "a=b", "label-file": "f", "link": "a",
	"link-local-ip": "169.254.0.1", "log-driver": "syslog", "log-opt": "a=b", "mac-address": "02:00:00:00:00:01", "memory": "1g",
	"memory-reservation": "1g", "memory-swap": "1g", "memory-swappiness": "10", "mount": "type=tmpfs,target=/t", "name": "n", "network": "blue",
	"network-alias": "a", "no-healthcheck": "true", "oom-kill-disable": "false", "oom-score-adj": "1", "pid": "host", "pids-limit": "10",
	"platform": "linux", "privileged": "false", "publish": "31000:80", "publish-all": "false", "pull": "always", "quiet": "true", "read-only": "true",
	"restart": "no", "rm": "true", "runtime": "runc", "security-opt": "no-new-privileges", "shm-size": "1m", "sig-proxy": "true", "stop-signal": "SIGINT",
	"stop-timeout": "10", "storage-opt": "size=1g", "sysctl": "net.core.somaxconn=1", "tmpfs": "/t", "tty": "true", "ulimit": "nofile=10",
	"use-api-socket": "false", "user": "u", "userns": "host", "uts": "host", "volume": "/a:/b", "volume-driver": "d", "volumes-from": "x", "workdir": "/w",
}

var optionRE = regexp.MustCompile("`([a-z0-9-]+)`")

func TestEveryOptionOfDockerRunIsInTheTableAndIsWhatItSays(t *testing.T) {
	b, err := os.ReadFile("../../docs/containers.md")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || !strings.HasPrefix(cells[1], " given ") && !strings.HasPrefix(cells[1], " taken ") && !strings.HasPrefix(cells[1], " refused:") {
			continue
		}
		class := strings.Fields(cells[1])
		for _, m := range optionRE.FindAllStringSubmatch(cells[2], -1) {
			if said[m[1]] != "" {
				t.Errorf("%s is in the table twice", m[1])
			}
			said[m[1]] = strings.TrimSuffix(strings.Join(class[:min(2, len(class))], " "), ":")
		}
	}
	for key := range said {
		if dockerRunOptions[key] == "" {
			t.Errorf("the table has %s, which docker run has not", key)
		}
	}
	for key, value := range dockerRunOptions {
		text := `docker { image: "i" }`
		if key == "publish" || key == "ip" || key == "ip6" {
			text = `docker { image: "i" network: BRIDGE }`
		}
		spec := dockerSpec(t, text)
		spec.ContainerInfo.Docker.Parameters = []*mesosv1.Parameter{{Key: &key, Value: &value}}
		wish, err := asDocker(spec, DockerConfig{Devices: []string{"/dev/fuse"}}, fakeMachine)
		want := ""
		switch {
		case err != nil:
			want = "refused"
		case len(wish.unheeded) > 0:
			want = "taken without"
		}
		got := said[key]
		switch {
		case got == "":
			t.Errorf("%s is not in the table", key)
		case want == "refused" && !strings.HasPrefix(got, "refused"), want == "" && got != "given" && got != "taken where":
			t.Errorf("%s=%s: the table says %q, and it is %q (%v)", key, value, got, want, err)
		case want == "taken without" && got != want:
			t.Errorf("%s=%s: the table says %q, and it is %q", key, value, got, want)
		}
	}
}
