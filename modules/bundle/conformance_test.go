package bundle_test

import (
	"os"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/modules/bundle"
	"github.com/mosaic-cluster/mosaic/sdk/authorizer/authorizertest"
	"github.com/mosaic-cluster/mosaic/sdk/isolator/isolatortest"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// TestMain lets the test's own executable be mosaic-modules when a kit starts it as that.
func TestMain(m *testing.M) {
	if os.Getenv("MOSAIC_MODULE") != "" {
		module.Main(bundle.Modules())
		return
	}
	os.Exit(m.Run())
}

// configs are for modules whose settings the kit cannot find out by itself, and others under which they do more.
func configs() map[string][]string {
	return map[string][]string{
		"authorizer/acl": {"", `{"permissive":false,"json":"{\"permissive\":false,\"run_tasks\":[` +
			`{\"principals\":{\"values\":[\"alice\"]},\"users\":{\"values\":[\"www\"]}},{\"principals\":{\"type\":\"ANY\"},\"users\":{\"type\":\"NONE\"}}],` +
			`\"register_frameworks\":[{\"principals\":{\"type\":\"ANY\"},\"roles\":{\"values\":[\"eng/%\",\"web\"]}}]}"}`},
		"isolator/cgroups": {"", `{"cpu_hard_limit":true,"limit_swap":true,"revocable_cpu_low_priority":true,"pids_limit":100}`},
		"isolator/linux": {"", `{"effective_capabilities":["NET_RAW"],"bounding_capabilities":["NET_RAW","CHOWN"],"seccomp_default":"default",` +
			`"no_new_privileges":true,"masked_paths":["/proc/kcore"],"readonly_paths":["/proc/sys"]}`},
		"isolator/ports":           {"", `{"enforce_container_ports":true,"container_ports_watch_interval":10000000}`},
		"isolator/rlimits":         {"", `{"limit":[{"type":"nofile","soft":10,"hard":20},{"type":"core","soft":0,"hard":-1}]}`},
		"qos_controller/load":      {`{"load_threshold_5min":4}`},
		"resource_estimator/fixed": {`{"resources":"cpus:2;mem:1024"}`},
	}
}

// completions are for isolators whose containers need something special. The kit applies no proposal, so that its
// processes have the machine's network; port_mapping refuses those that do not have their own.
func completions() map[string]func(*containerv1.Container) {
	return map[string]func(*containerv1.Container){
		"isolator/port_mapping": func(c *containerv1.Container) {
			c.ContainerInfo = &mesosv1.ContainerInfo{
				Type: mesosv1.ContainerInfo_MESOS.Enum(), NetworkInfos: []*mesosv1.NetworkInfo{{Name: proto.String("other")}},
			}
		},
	}
}

func TestModulesConformInProcess(t *testing.T) {
	for name, build := range bundle.Modules() {
		t.Run(name, func(t *testing.T) { conform(t, name, kit.Core, kit.InProcess(build)) })
	}
}

func TestModulesConformAsProcesses(t *testing.T) {
	var wg sync.WaitGroup // all at once, since most of the time of the full level is spent waiting for a heartbeat
	for name := range bundle.Modules() {
		wg.Go(func() {
			t.Run(name, func(t *testing.T) {
				conform(t, name, kit.Full, kit.Program{Path: os.Args[0], Args: []string{name}}.Dial)
			})
		})
	}
	wg.Wait()
}

// conform runs the kit of a module's kind under each of its configurations; kinds without a kit of their own have the
// cases of every kind.
func conform(t *testing.T, name string, level kit.Level, dial kit.Dial) {
	list := configs()[name]
	if list == nil {
		list = []string{""}
	}
	for n, config := range list {
		if n > 0 {
			level = kit.Core // what the settings change shows there
		}
		t.Run("config"+string(rune('0'+n)), func(t *testing.T) {
			switch kind, _, _ := strings.Cut(name, "/"); kind {
			case "isolator":
				options := []isolatortest.Option{isolatortest.Level(level), isolatortest.Config(config)}
				if complete := completions()[name]; complete != nil {
					options = append(options, isolatortest.Container(complete))
				}
				isolatortest.Run(t, dial, options...)
			case "authorizer":
				authorizertest.Run(t, dial, authorizertest.Level(level), authorizertest.Config(config),
					authorizertest.Subjects([]string{"alice", "bob"}, []string{"www", "web", "eng/a"}))
			default:
				s := kit.Subject{Dial: dial, Config: config}
				kit.Run(kit.InTest(t), level, s.Cases())
			}
		})
	}
}
