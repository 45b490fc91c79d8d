package isolator_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/isolator"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// everything declares every power there is.
var everything = []string{
	"arguments", "capabilities", "cgroup", "devices", "environment", "helpers", "hostname", "masked_paths", "mounts", "namespaces",
	"no_new_privileges", "oom_score", "rlimits", "seccomp", "sysctls", "windows_job", "working_directory",
}

func TestAnswersThatAnAgentRefusesAreTold(t *testing.T) {
	for want, p := range map[string]*containerv1.Proposal{
		"no name of a variable":          {Environment: map[string]string{"A=B": "c"}},
		"mounts[0].destination":          {Mounts: []*containerv1.Mount{{Destination: "data", Type: "tmpfs"}}},
		"/data is there twice":           {Mounts: []*containerv1.Mount{{Destination: "/data", Type: "tmpfs"}, {Destination: "/data/", Type: "tmpfs"}}},
		"mounts[0].type is empty":        {Mounts: []*containerv1.Mount{{Destination: "/data"}}},
		"mounts[0].source":               {Mounts: []*containerv1.Mount{{Destination: "/data", Type: "none", Options: []string{"rbind"}, Source: "x"}}},
		"namespaces[0].type is not set":  {Namespaces: []*containerv1.Namespace{{}}},
		"PID is there twice":             {Namespaces: []*containerv1.Namespace{{Type: containerv1.Namespace_PID}, {Type: containerv1.Namespace_PID}}},
		"namespaces[0].path":             {Namespaces: []*containerv1.Namespace{{Type: containerv1.Namespace_NETWORK, Path: "run/x"}}},
		`devices[0]: type "x"`:           {Devices: []*containerv1.Device{{Path: "/dev/x", Type: "x"}}},
		"soft at most hard":              {Rlimits: []*containerv1.Rlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}}},
		"want RLIMIT_":                   {Rlimits: []*containerv1.Rlimit{{Type: "CORE"}}},
		"masked_paths":                   {MaskedPaths: []string{"proc"}},
		"readonly_paths":                 {ReadonlyPaths: []string{"proc"}},
		"working_directory":              {WorkingDirectory: "tmp"},
		"oom_score_adj is 1001":          {OomScoreAdj: proto.Int32(1001)},
		"cgroup.cpu_shares is 1":         {Cgroup: &containerv1.CgroupResources{CpuShares: proto.Uint64(1)}},
		"cgroup.cpu_quota_us is 10":      {Cgroup: &containerv1.CgroupResources{CpuQuotaUs: proto.Int64(10)}},
		"cgroup.memory_limit_bytes is -": {Cgroup: &containerv1.CgroupResources{MemoryLimitBytes: proto.Int64(-2)}},
		"arguments: a text":              {Arguments: []string{strings.Repeat("x", 1<<20)}},
		"hostname: a text":               {Hostname: "a\x00b"},
		"arguments has 5000":             {Arguments: slices.Repeat([]string{"x"}, 5000)},
	} {
		d := &modulev1.DescribeResponse{Powers: everything}
		if got := strings.Join(isolator.CheckPrepare(d, &isolatorv1.PrepareResponse{Proposal: p}), "\n"); !strings.Contains(got, want) {
			t.Errorf("CheckPrepare(%.200v) = %.200q, want it to tell of %q", p, got, want)
		}
		if got := strings.Join(isolator.CheckUpdate(d, &isolatorv1.UpdateResponse{Proposal: p}), "\n"); !strings.Contains(got, want) {
			t.Errorf("CheckUpdate(%.200v) = %.200q, want it to tell of %q", p, got, want)
		}
	}
}

func TestStateAndHelpersMustBeAsDeclared(t *testing.T) {
	d := &modulev1.DescribeResponse{MinStateVersion: 2, MaxStateVersion: 3}
	for _, test := range []struct {
		r    *isolatorv1.PrepareResponse
		want string
	}{
		{&isolatorv1.PrepareResponse{}, ""},
		{&isolatorv1.PrepareResponse{State: []byte("x"), StateVersion: 2}, ""},
		{&isolatorv1.PrepareResponse{State: []byte("x"), StateVersion: 1}, "state_version is 1"},
		{&isolatorv1.PrepareResponse{State: make([]byte, isolator.MaxState+1), StateVersion: 2}, "want at most"},
		{&isolatorv1.PrepareResponse{Helpers: []*containerv1.Helper{{Name: "fuse", Argv: []string{"fuse"}}}}, "helpers, a power that Describe does not declare"},
		{&isolatorv1.PrepareResponse{Helpers: []*containerv1.Helper{{Name: "fuse"}}}, "got no argv"},
	} {
		got := strings.Join(isolator.CheckPrepare(d, test.r), "\n")
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("CheckPrepare(%.100v) = %q, want %q", test.r, got, test.want)
		}
	}
}

func TestEachFieldOfAProposalIsAPower(t *testing.T) {
	fields := (&containerv1.Proposal{}).ProtoReflect().Descriptor().Fields()
	names := map[string]bool{"helpers": true}
	for i := range fields.Len() {
		switch name := string(fields.Get(i).Name()); name {
		case "readonly_paths":
			names["masked_paths"] = true
		case "oom_score_adj":
			names["oom_score"] = true
		default:
			names[name] = true
		}
	}
	for _, p := range everything {
		if !names[p] {
			t.Errorf("the power %s has no field", p)
		}
		delete(names, p)
	}
	if len(names) > 0 {
		t.Errorf("fields without a power: %v", names)
	}
	p := &containerv1.Proposal{ReadonlyPaths: []string{"/a"}, OomScoreAdj: proto.Int32(1), Hostname: "x"}
	if got, want := isolator.UsedPowers(p, true), []string{"helpers", "hostname", "masked_paths", "oom_score"}; !slices.Equal(got, want) {
		t.Errorf("UsedPowers = %q, want %q", got, want)
	}
}
