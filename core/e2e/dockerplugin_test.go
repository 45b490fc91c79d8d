package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// volumePlugin is a volume plugin of Docker's, as a vendor's daemon beside the agent: it mounts what it keeps, and
// counts mounts by call, as the strictest do.
type volumePlugin struct {
	name    string
	sockets string // folder with its socket
	dir     string

	mu      sync.Mutex // guards what follows
	volumes map[string]map[string]string
	mounts  map[string]int
	most    map[string]int // the highest that mounts ever was
	calls   []string
}

// startVolumePlugin starts a plugin that ends with the test.
func startVolumePlugin(t *testing.T, name string) *volumePlugin {
	t.Helper()
	sockets, err := os.MkdirTemp("", "me2e-dv-") // a socket's path must stay short
	if err != nil {
		t.Fatal(err)
	}
	p := &volumePlugin{
		name: name, sockets: sockets, dir: t.TempDir(), volumes: map[string]map[string]string{}, mounts: map[string]int{}, most: map[string]int{},
	}
	l, err := net.Listen("unix", filepath.Join(sockets, name+".sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: p}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		<-ended
		p.mu.Lock()
		defer p.mu.Unlock()
		for name := range p.volumes {
			for unix.Unmount(p.at(name), unix.MNT_DETACH) == nil {
			}
		}
		if err := os.RemoveAll(sockets); err != nil {
			t.Error(err)
		}
	})
	return p
}

// composition is the isolator that finds this plugin, and no other.
func (p *volumePlugin) composition() string {
	return fmt.Sprintf("isolator \"docker_volume\" {\n  config {\n    sockets = %q\n    specs   = []\n  }\n}\n", p.sockets)
}

// volume is one of this plugin's volumes for a task.
func (p *volumePlugin) volume(name, place string, mode mesosv1.Volume_Mode) *mesosv1.Volume {
	return &mesosv1.Volume{Mode: &mode, ContainerPath: &place, Source: &mesosv1.Volume_Source{
		Type: mesosv1.Volume_Source_DOCKER_VOLUME.Enum(), DockerVolume: &mesosv1.Volume_Source_DockerVolume{Driver: &p.name, Name: &name},
	}}
}

// data is where a volume's files are, mounted or not.
func (p *volumePlugin) data(name string) string { return filepath.Join(p.dir, "data", name) }
func (p *volumePlugin) at(name string) string   { return filepath.Join(p.dir, "at", name) }

func (p *volumePlugin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Name, ID string
		Opts     map[string]string
	}
	if r.Method != http.MethodPost || json.NewDecoder(r.Body).Decode(&in) != nil {
		http.Error(w, "want POST with JSON", http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	method := strings.TrimPrefix(r.URL.Path, "/")
	p.calls = append(p.calls, method+" "+in.Name)
	w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.2+json")
	answer, err := p.answer(method, in.Name, in.Opts)
	if err != nil {
		answer = object{"Err": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(answer) // whoever asked may be dead by now
}

// answer needs mu held.
func (p *volumePlugin) answer(method, name string, options map[string]string) (object, error) {
	_, known := p.volumes[name]
	switch method {
	case "Plugin.Activate":
		return object{"Implements": []string{"VolumeDriver"}}, nil
	case "VolumeDriver.Capabilities":
		return object{"Capabilities": object{"Scope": "local"}}, nil
	case "VolumeDriver.Create":
		if known {
			return nil, fmt.Errorf("volume %s exists", name)
		}
		p.volumes[name] = options
		return object{}, os.MkdirAll(p.data(name), 0o777)
	}
	if !known {
		return nil, fmt.Errorf("no volume %s", name)
	}
	at := ""
	if p.mounts[name] > 0 {
		at = p.at(name)
	}
	switch method {
	case "VolumeDriver.Get":
		return object{"Volume": object{"Name": name, "Mountpoint": at}}, nil
	case "VolumeDriver.Path":
		return object{"Mountpoint": at}, nil
	case "VolumeDriver.Mount":
		if p.mounts[name] == 0 {
			if err := os.MkdirAll(p.at(name), 0o755); err != nil {
				return nil, err
			}
			if err := unix.Mount(p.data(name), p.at(name), "", unix.MS_BIND, ""); err != nil {
				return nil, os.NewSyscallError("mount", err)
			}
		}
		p.mounts[name]++
		p.most[name] = max(p.most[name], p.mounts[name])
		return object{"Mountpoint": p.at(name)}, nil
	case "VolumeDriver.Unmount":
		if p.mounts[name] == 0 {
			return nil, fmt.Errorf("volume %s is not mounted", name)
		}
		if p.mounts[name] == 1 {
			if err := unix.Unmount(p.at(name), 0); err != nil {
				return nil, os.NewSyscallError("unmount", err)
			}
		}
		p.mounts[name]--
		return object{}, nil
	}
	return nil, fmt.Errorf("unknown method %s", method)
}

// count is how often a volume is mounted now.
func (p *volumePlugin) count(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mounts[name]
}

// asked says how often the plugin got a call about a volume.
func (p *volumePlugin) asked(method, name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, c := range p.calls {
		if c == method+" "+name {
			n++
		}
	}
	return n
}

// held are the volumes that the plugin counts as mounted, and those that it counted more than once at any time, each in
// words; but are those that may be mounted.
func (p *volumePlugin) held(but []string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []string
	for name, n := range p.mounts {
		if n > 0 && !slices.Contains(but, name) {
			found = append(found, fmt.Sprintf("Docker volume %s, mounted %d times", name, n))
		}
		if p.most[name] > 1 {
			found = append(found, fmt.Sprintf("Docker volume %s, once mounted %d times at a time", name, p.most[name]))
		}
	}
	slices.Sort(found)
	return found
}
