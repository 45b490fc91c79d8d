package main

import (
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"

	"github.com/mosaic-cluster/mosaic/core/modulehost"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// finder is an isolator at a line of the composition that found amounts.
func finder(module string, line int, amounts map[string]float64) modulehost.Found {
	f := modulehost.Found{Module: "isolator(" + module + ")", Known: true, Range: hcl.Range{Filename: "site.hcl", Start: hcl.Pos{Line: line, Column: 1}}}
	for name, n := range amounts {
		f.Resources = append(f.Resources, &mesosv1.Resource{Name: &name, Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &n}})
	}
	return f
}

func TestResourcesThatIsolatorsFindAreOffered(t *testing.T) {
	two := finder("nvidia_gpu", 7, map[string]float64{"gpus": 2, "mig-1g.5gb": 3})
	none := finder("nvidia_gpu", 7, map[string]float64{"gpus": 0})
	none.Reason = "no GPUs: library not found"
	down := modulehost.Found{Module: "isolator(nvidia_gpu)"}
	other := finder("cgroups", 2, nil)
	for name, c := range map[string]struct {
		text  string
		found []modulehost.Found
		want  string
		wrong []string
	}{
		"nothing said":             {"", []modulehost.Found{other, two}, "gpus:2;mig-1g.5gb:3", nil},
		"others said":              {"cpus:4;mem:100", []modulehost.Found{two}, "cpus:4;mem:100;gpus:2;mig-1g.5gb:3", nil},
		"said with a last sign":    {"cpus:4;", []modulehost.Found{two}, "cpus:4;gpus:2;mig-1g.5gb:3", nil},
		"fewer":                    {"gpus:1", []modulehost.Found{two}, "gpus:1;mig-1g.5gb:3", nil},
		"reserved":                 {"gpus(ml):2; mig-1g.5gb : 0", []modulehost.Found{two}, "gpus(ml):2; mig-1g.5gb : 0", nil},
		"none wanted":              {"cpus:1;gpus:0", []modulehost.Found{two}, "cpus:1;gpus:0;mig-1g.5gb:3", nil},
		"JSON":                     {`[{"name":"cpus","type":"SCALAR","scalar":{"value":4}},{"name":"mig-1g.5gb","type":"SCALAR","scalar":{"value":1}}]`, []modulehost.Found{two}, `[{"name":"cpus","type":"SCALAR","scalar":{"value":4}},{"name":"mig-1g.5gb","type":"SCALAR","scalar":{"value":1}},{"name":"gpus","type":"SCALAR","scalar":{"value":2}}]`, nil},
		"none found":               {"cpus:1", []modulehost.Found{none}, "cpus:1", nil},
		"nobody finds":             {"cpus:1", []modulehost.Found{other}, "cpus:1", nil},
		"unreadable":               {"gpus:", []modulehost.Found{two}, "gpus:", nil},
		"more":                     {"gpus:4", []modulehost.Found{other, two}, "", []string{"site.hcl:7", "isolator(nvidia_gpu)", "gpus:4", "has 2"}},
		"more in two reservations": {"gpus(a):2;gpus(b):1", []modulehost.Found{two}, "", []string{"site.hcl:7", "gpus:3", "has 2"}},
		"asked and none found":     {"gpus:1", []modulehost.Found{none}, "", []string{"site.hcl:7", "has 0", "library not found"}},
		"asked and nobody guards":  {"gpus:1", []modulehost.Found{other}, "", []string{"gpus:1", `isolator "nvidia_gpu" {}`}},
		"asked of one not up yet":  {"gpus:1", []modulehost.Found{down}, "gpus:1", nil},
		"found twice":              {"", []modulehost.Found{two, finder("acme", 9, map[string]float64{"gpus": 1})}, "", []string{"site.hcl:9", "isolator(nvidia_gpu)", "site.hcl:7"}},
	} {
		got, err := withFound(c.text, c.found)
		if len(c.wrong) == 0 && (err != nil || got != c.want) {
			t.Errorf("%s: withFound(%q) = %q, %v; want %q", name, c.text, got, err, c.want)
		}
		for _, want := range c.wrong {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: withFound(%q) = %q, %v; want a refusal with %q", name, c.text, got, err, want)
			}
		}
	}
}
