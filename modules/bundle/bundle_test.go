package bundle_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/modules/bundle"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// folder is where a module lives, by the house's rule.
func folder(kind, name string) string {
	flat := strings.ReplaceAll(name, "_", "")
	switch kind {
	case "isolator", "authorizer":
		return filepath.Join("..", "..", kind+"s", flat)
	case "resource_provider":
		return filepath.Join("..", "..", "resourceproviders", flat)
	}
	return filepath.Join("..", strings.ReplaceAll(kind, "_", "")+"s", flat)
}

func TestEveryModuleIsWhereItsNameSays(t *testing.T) {
	for key, build := range bundle.Modules() {
		d := moduletest.Dial(t, build()).Describe(t)
		kind, name := d.GetKind(), d.GetName()
		if kind+"/"+name != key {
			t.Errorf("%s describes itself as %s/%s", key, kind, name)
		}
		service := "mosaic." + strings.ReplaceAll(kind, "_", "") + ".v1."
		if len(d.GetServices()) != 1 || !strings.HasPrefix(d.GetServices()[0], service) {
			t.Errorf("%s serves %v, want one of %s", key, d.GetServices(), service)
		}
		if again := moduletest.Dial(t, build()).Describe(t); !proto.Equal(d, again) {
			t.Errorf("%s describes itself differently the second time", key)
		}
		if d.GetVersion() == "" || d.GetDoc() == "" {
			t.Errorf("%s has version %q and doc %q, want both", key, d.GetVersion(), d.GetDoc())
		}
		main := filepath.Join(folder(kind, name), "mosaic-"+strings.ReplaceAll(kind+"-"+name, "_", "-"), "main.go")
		if _, err := os.Stat(main); err != nil {
			t.Errorf("%s has no binary of its own: %v", key, err)
		}
		readme(t, key, folder(kind, name), d)
	}
}

// readme checks that a README has its parts, names every attribute, and that its examples name only what there is.
func readme(t *testing.T, key, dir string, d *modulev1.DescribeResponse) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Errorf("%s: %v", key, err)
		return
	}
	var parts []string
	for _, m := range regexp.MustCompile(`(?m)^## (.+)$`).FindAllSubmatch(text, -1) {
		parts = append(parts, string(m[1]))
	}
	if want := []string{"Description", "Configuration", "Examples", "Platforms", "Metrics", "Failures"}; !slices.Equal(parts, want) {
		t.Errorf("%s: README has %v, want %v", key, parts, want)
	}
	attributes := map[string]bool{}
	for _, a := range d.GetSchema().GetAttributes() {
		attributes[a.GetName()] = true
		if !strings.Contains(string(text), "`"+a.GetName()+"`") {
			t.Errorf("%s: README does not speak of `%s`", key, a.GetName())
		}
	}
	examples := regexp.MustCompile("(?s)```hcl\n(.*?)```").FindAllSubmatch(text, -1)
	if len(examples) == 0 {
		t.Errorf("%s: README has no example", key)
	}
	for _, e := range examples {
		file, diags := hclparse.NewParser().ParseHCL(e[1], key+"/README.md")
		if diags.HasErrors() {
			t.Errorf("%s: %v", key, diags)
			continue
		}
		for _, block := range file.Body.(*hclsyntax.Body).Blocks {
			if got := block.Type + "/" + strings.Join(block.Labels, "/"); got != key {
				t.Errorf("%s: an example is about %s", key, got)
			}
			for _, config := range block.Body.Blocks {
				checkBody(t, key, config.Body, d.GetSchema())
			}
		}
	}
}

func checkBody(t *testing.T, key string, body *hclsyntax.Body, s *modulev1.Schema) {
	t.Helper()
	for name := range body.Attributes {
		if !slices.ContainsFunc(s.GetAttributes(), func(a *modulev1.Attribute) bool { return a.GetName() == name }) {
			t.Errorf("%s: an example sets %s, which does not exist", key, name)
		}
	}
	for _, block := range body.Blocks {
		n := slices.IndexFunc(s.GetBlocks(), func(b *modulev1.Block) bool { return b.GetName() == block.Type })
		if n < 0 {
			t.Errorf("%s: an example has the block %s, which does not exist", key, block.Type)
			continue
		}
		if got, want := len(block.Labels), len(s.Blocks[n].GetLabels()); got != want {
			t.Errorf("%s: block %s with %d labels, want %d", key, block.Type, got, want)
		}
		checkBody(t, key, block.Body, s.Blocks[n].GetBody())
	}
}

func TestEveryIsolatorCanBeAskedTwiceAndForWhatItNeverSaw(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	full := &containerv1.Container{
		Id: "c", Generation: 1, TaskId: "t", Cgroup: "mosaic/c", Limits: map[string]float64{"mem": 256},
		ContainerInfo: &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{}, RlimitInfo: &mesosv1.RLimitInfo{}},
		Resources:     []*mesosv1.Resource{{Name: proto.String("mem"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: proto.Float64(128)}}},
	}
	long := strings.Repeat("x", 1<<20)
	strange := []*containerv1.Container{
		nil, {}, {Id: long, Cgroup: "../../" + long, ContainerInfo: &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_DOCKER.Enum()}},
		{Id: "c", Resources: []*mesosv1.Resource{{Name: &long, Type: mesosv1.Value_SET.Enum()}, {Name: proto.String("cpus"), Type: mesosv1.Value_SCALAR.Enum()}}, Limits: map[string]float64{"": -1}},
	}
	for key, build := range bundle.Modules() {
		if !strings.HasPrefix(key, "isolator/") {
			continue
		}
		c := moduletest.Start(t, build(), `{}`)
		calls := c.Describe(t).GetCalls()
		first, err := c.Isolator.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: "1", Container: full})
		if err != nil {
			t.Errorf("%s: Prepare: %v", key, err)
		}
		again, err := c.Isolator.Prepare(ctx, &isolatorv1.PrepareRequest{OperationId: "1", Container: full})
		if err != nil || !proto.Equal(first, again) {
			t.Errorf("%s: Prepare again = %v, %v; want %v", key, again, err, first)
		}
		record := &isolatorv1.ContainerRecord{Container: full, Cgroups: map[string]string{"memory": "/no/such", "cpu": "relative", "": "/a/../b"}}
		for range 2 {
			if _, err := c.Isolator.Cleanup(ctx, &isolatorv1.CleanupRequest{OperationId: "2", Record: record}); err != nil {
				t.Errorf("%s: Cleanup: %v, want success", key, err)
			}
		}
		for _, container := range strange { // an answer or a refusal, and the module lives
			r := &isolatorv1.ContainerRecord{Container: container}
			_, _ = c.Isolator.Prepare(ctx, &isolatorv1.PrepareRequest{Container: container})
			if _, err := c.Isolator.Cleanup(ctx, &isolatorv1.CleanupRequest{Record: r}); err != nil {
				t.Errorf("%s: Cleanup of %.40v: %v, want success", key, container, err)
			}
			if slices.Contains(calls, "usage") {
				if _, err := c.Isolator.Usage(ctx, &isolatorv1.UsageRequest{Records: []*isolatorv1.ContainerRecord{r, nil, record}}); err != nil {
					t.Errorf("%s: Usage: %v, want an answer", key, err)
				}
			}
			if slices.Contains(calls, "status") {
				if _, err := c.Isolator.Status(ctx, &isolatorv1.StatusRequest{Records: []*isolatorv1.ContainerRecord{r, nil, record}}); err != nil {
					t.Errorf("%s: Status: %v, want an answer", key, err)
				}
			}
		}
		s, err := c.Isolator.Recover(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&isolatorv1.RecoverRequest{Containers: []*isolatorv1.ContainerRecord{nil, record}}); err != nil {
			t.Errorf("%s: Recover: %v", key, err)
		}
		if _, err := s.CloseAndRecv(); err != nil {
			t.Errorf("%s: Recover: %v, want success", key, err)
		}
	}
}
