package linux_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/linux"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

func prepare(c *moduletest.Client, l *mesosv1.LinuxInfo) (*containerv1.Proposal, error) {
	r, err := c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{OperationId: "op", Container: &containerv1.Container{
		Id: "c", ContainerInfo: &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: l},
	}})
	return r.GetProposal(), err
}

func caps(names ...string) *mesosv1.CapabilityInfo {
	info := &mesosv1.CapabilityInfo{}
	for _, n := range names {
		info.Capabilities = append(info.Capabilities, mesosv1.CapabilityInfo_Capability(mesosv1.CapabilityInfo_Capability_value[n]))
	}
	return info
}

func TestCapabilitiesFollowMesos(t *testing.T) {
	const refused = "refused"
	for _, test := range []struct {
		name, config        string
		effective, bounding *mesosv1.CapabilityInfo
		want                string // effective | bounding
	}{
		{"nobody says anything", `{}`, nil, nil, ""},
		{"a task's effective set bounds it", `{}`, caps("NET_RAW"), nil, "CAP_NET_RAW | CAP_NET_RAW"},
		{"a task's both sets", `{}`, caps("NET_RAW"), caps("NET_RAW", "CHOWN"), "CAP_NET_RAW | CAP_NET_RAW CAP_CHOWN"},
		{"a task without any", `{}`, caps(), nil, " | "},
		{"outside its own bound", `{}`, caps("SYS_ADMIN"), caps("NET_RAW"), refused},
		{"the operator's default", `{"effective_capabilities":["net_raw"]}`, nil, nil, "CAP_NET_RAW | CAP_NET_RAW"},
		{"a task goes before the default", `{"effective_capabilities":["NET_RAW"]}`, caps("CHOWN"), nil, "CAP_CHOWN | CAP_CHOWN"},
		{"the operator's bound alone", `{"bounding_capabilities":["CAP_CHOWN","NET_RAW"]}`, nil, nil, " | CAP_CHOWN CAP_NET_RAW"},
		{"within the operator's bound", `{"bounding_capabilities":["CHOWN","NET_RAW"]}`, caps("CHOWN"), nil, "CAP_CHOWN | CAP_CHOWN CAP_NET_RAW"},
		{"outside the operator's bound", `{"bounding_capabilities":["CHOWN"]}`, caps("SYS_ADMIN"), nil, refused},
		{"a bound outside the operator's", `{"bounding_capabilities":["CHOWN"]}`, nil, caps("SYS_ADMIN"), refused},
		{"a narrower bound narrows the default", `{"effective_capabilities":["NET_RAW","CHOWN"],"bounding_capabilities":["CHOWN","NET_RAW"]}`, nil, caps("CHOWN"), "CAP_CHOWN | CAP_CHOWN"},
		{"none that exists", `{}`, caps("UNKNOWN"), nil, refused},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := moduletest.Start(t, linux.New(), test.config)
			p, err := prepare(c, &mesosv1.LinuxInfo{EffectiveCapabilities: test.effective, BoundingCapabilities: test.bounding})
			if test.want == refused {
				if status.Code(err) != codes.InvalidArgument {
					t.Errorf("Prepare = %v, %v; want InvalidArgument", p, err)
				}
				return
			}
			if err != nil {
				t.Fatalf("Prepare: %v", err)
			}
			got := ""
			if s := p.GetCapabilities(); s != nil {
				got = strings.Join(s.GetEffective(), " ") + " | " + strings.Join(s.GetBounding(), " ")
			}
			if got != test.want {
				t.Errorf("Prepare proposed %q, want %q", got, test.want)
			}
		})
	}
}

func TestContainersOfImagesAreBoundedWithoutAsking(t *testing.T) {
	const fourteen = "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"
	const refused = "refused"
	for _, test := range []struct {
		name, config, user  string
		effective, bounding *mesosv1.CapabilityInfo
		want                string // bounding | effective and permitted | inheritable and ambient
	}{
		{"root", `{}`, "root", nil, nil, fourteen + " | " + fourteen + " | "},
		{"root by number", `{}`, "0", nil, nil, fourteen + " | " + fourteen + " | "},
		{"nobody named", `{}`, "", nil, nil, fourteen + " | " + fourteen + " | "},
		{"another user", `{}`, "nobody", nil, nil, fourteen + " |  | "},
		{"another user by number", `{}`, "10", nil, nil, fourteen + " |  | "},
		{"the operator's own set", `{"image_capabilities":["chown"]}`, "root", nil, nil, "CHOWN | CHOWN | "},
		{"none", `{"image_capabilities":[]}`, "root", nil, nil, " |  | "},
		{"all", `{"image_capabilities":["all"]}`, "root", nil, nil, "unbounded"},
		{"all that the operator allows", `{"image_capabilities":["ALL"],"bounding_capabilities":["SYS_ADMIN","CHOWN"]}`, "root", nil, nil, "SYS_ADMIN CHOWN | SYS_ADMIN CHOWN | "},
		{"within the operator's bound", `{"bounding_capabilities":["SYS_ADMIN","CHOWN"]}`, "root", nil, nil, "CHOWN | CHOWN | "},
		{"a task asks for more", `{}`, "root", caps("SYS_ADMIN"), nil, "SYS_ADMIN | SYS_ADMIN | SYS_ADMIN"},
		{"a task is bounded to more", `{}`, "root", nil, caps("SYS_ADMIN", "CHOWN"), "SYS_ADMIN CHOWN | SYS_ADMIN CHOWN | "},
		{"another user's task is", `{}`, "nobody", nil, caps("SYS_ADMIN"), "SYS_ADMIN |  | "},
		{"a task asks for none", `{}`, "root", caps(), nil, " |  | "},
		{"a task asks for one more within the operator's bound", `{"bounding_capabilities":["CHOWN","SYS_ADMIN","SYS_TIME"]}`, "root", caps("SYS_ADMIN"), nil, "CHOWN SYS_ADMIN | SYS_ADMIN | SYS_ADMIN"},
		{"a task asks beyond it", `{"bounding_capabilities":["CHOWN"]}`, "root", caps("SYS_ADMIN"), nil, refused},
		{"a task is bounded beyond it", `{"bounding_capabilities":["CHOWN"]}`, "root", nil, caps("SYS_ADMIN"), refused},
		{"the operator's default for all containers", `{"effective_capabilities":["SYS_TIME"]}`, "root", nil, nil, "SYS_TIME | SYS_TIME | SYS_TIME"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := moduletest.Start(t, linux.New(), test.config)
			r, err := c.Isolator.Prepare(t.Context(), &isolatorv1.PrepareRequest{OperationId: "op", Container: &containerv1.Container{
				Id: "c", Rootfs: "/images/c", User: test.user, ContainerInfo: &mesosv1.ContainerInfo{
					Type: mesosv1.ContainerInfo_MESOS.Enum(), LinuxInfo: &mesosv1.LinuxInfo{EffectiveCapabilities: test.effective, BoundingCapabilities: test.bounding},
				},
			}})
			if test.want == refused {
				if status.Code(err) != codes.InvalidArgument {
					t.Errorf("Prepare = %v, %v; want InvalidArgument", r, err)
				}
				return
			}
			if err != nil {
				t.Fatalf("Prepare: %v", err)
			}
			got := "unbounded"
			if s := r.GetProposal().GetCapabilities(); s != nil {
				if !slices.Equal(s.GetEffective(), s.GetPermitted()) || !slices.Equal(s.GetInheritable(), s.GetAmbient()) {
					t.Errorf("Prepare proposed %v, want effective as permitted, and inheritable as ambient", s)
				}
				got = strings.Join(s.GetBounding(), " ") + " | " + strings.Join(s.GetEffective(), " ") + " | " + strings.Join(s.GetAmbient(), " ")
				got = strings.ReplaceAll(got, "CAP_", "")
			}
			if got != test.want {
				t.Errorf("Prepare proposed %q, want %q", got, test.want)
			}
		})
	}
}

func TestTheOldFieldOfCapabilitiesStillWorks(t *testing.T) {
	c := moduletest.Start(t, linux.New(), `{}`)
	l := &mesosv1.LinuxInfo{CapabilityInfo: caps("CHOWN")} // it is what is tested
	p, err := prepare(c, l)
	if err != nil || len(p.GetCapabilities().GetEffective()) != 1 {
		t.Errorf("Prepare = %v, %v; want one capability", p, err)
	}
	l.EffectiveCapabilities = caps("CHOWN")
	if _, err := prepare(c, l); status.Code(err) != codes.InvalidArgument {
		t.Errorf("Prepare with both fields = %v, want InvalidArgument", err)
	}
}

func seccomp(name string, unconfined bool) *mesosv1.LinuxInfo {
	s := &mesosv1.SeccompInfo{}
	if name != "" {
		s.ProfileName = &name
	}
	if unconfined {
		s.Unconfined = proto.Bool(true)
	}
	return &mesosv1.LinuxInfo{Seccomp: s}
}

func TestWhichSeccompProfileAContainerGets(t *testing.T) {
	folder := t.TempDir()
	profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}`
	for name, text := range map[string]string{"nomount.json": profile, "broken.json": `{"defaultAction":`, "maybe": `{"defaultAction":"SCMP_ACT_MAYBE","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	with := func(extra string) string { return fmt.Sprintf(`{"seccomp_profiles":%q%s}`, folder, extra) }
	for _, test := range []struct {
		name, config string
		asked        *mesosv1.LinuxInfo
		want         string // part of the filter in JSON, "" for none, or the code
	}{
		{"nobody says anything", `{}`, nil, ""},
		{"the operator's default", `{"seccomp_default":"default"}`, nil, "clone3"},
		{"unconfined", `{"seccomp_default":"default"}`, seccomp("", true), ""},
		{"by name", with(``), seccomp("nomount", false), `"mount"`},
		{"by the file's whole name", with(`,"seccomp_default":"default"`), seccomp("nomount.json", false), `"mount"`},
		{"built in without a folder", `{}`, seccomp("default", false), "clone3"},
		{"both", with(``), seccomp("nomount", true), codes.InvalidArgument.String()},
		{"unknown", with(``), seccomp("other", false), codes.InvalidArgument.String()},
		{"no folder", `{}`, seccomp("nomount", false), codes.InvalidArgument.String()},
		{"out of the folder", with(``), seccomp("../nomount.json", false), codes.InvalidArgument.String()},
		{"the folder itself", with(``), seccomp(".", false), codes.InvalidArgument.String()},
		{"broken", with(``), seccomp("broken", false), codes.FailedPrecondition.String()},
		{"an action that does not exist", with(``), seccomp("maybe", false), codes.FailedPrecondition.String()},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := moduletest.Start(t, linux.New(), test.config)
			p, err := prepare(c, test.asked)
			if err != nil {
				if status.Code(err).String() != test.want {
					t.Errorf("Prepare: %v, want %q", err, test.want)
				}
				return
			}
			s := p.GetSeccomp()
			if test.want == "" {
				if s != nil {
					t.Errorf("Prepare proposed a filter, want none")
				}
				return
			}
			if !strings.Contains(s.GetOciJson(), test.want) || !json.Valid([]byte(s.GetOciJson())) || len(s.GetBpf()) == 0 || len(s.GetBpf())%8 != 0 || len(s.GetDigest()) != 64 {
				t.Errorf("Prepare proposed %.200s with %d bytes of program, want a filter with %s", s.GetOciJson(), len(s.GetBpf()), test.want)
			}
		})
	}
}

func TestAFilterDependsOnTheCapabilities(t *testing.T) {
	c := moduletest.Start(t, linux.New(), `{"seccomp_default":"default"}`)
	digests := map[string]bool{}
	for _, l := range []*mesosv1.LinuxInfo{nil, {EffectiveCapabilities: caps()}, {EffectiveCapabilities: caps("SYS_ADMIN")}, {EffectiveCapabilities: caps()}} {
		p, err := prepare(c, l)
		if err != nil {
			t.Fatal(err)
		}
		digests[p.GetSeccomp().GetDigest()] = true
	}
	if len(digests) != 3 {
		t.Errorf("got %d filters for three sets of capabilities, want 3", len(digests))
	}
}

func TestManyLaunchesAtOnceGetTheSameFilter(t *testing.T) {
	c := moduletest.Start(t, linux.New(), `{"seccomp_default":"default"}`)
	var wg sync.WaitGroup
	results := make([]string, 32)
	for n := range results {
		wg.Go(func() {
			if p, err := prepare(c, &mesosv1.LinuxInfo{EffectiveCapabilities: caps()}); err == nil {
				results[n] = p.GetSeccomp().GetDigest()
			}
		})
	}
	wg.Wait()
	for n, digest := range results {
		if digest == "" || digest != results[0] {
			t.Errorf("launch %d got filter %q, want %q", n, digest, results[0])
		}
	}
}

func TestTheOperatorsPathsAndPrivileges(t *testing.T) {
	c := moduletest.Start(t, linux.New(), `{"no_new_privileges":true,"masked_paths":["/proc/kcore"],"readonly_paths":["/proc/sys"]}`)
	p, err := prepare(c, nil)
	if err != nil || !p.GetNoNewPrivileges() || len(p.GetMaskedPaths()) != 1 || len(p.GetReadonlyPaths()) != 1 {
		t.Errorf("Prepare = %v, %v; want no_new_privileges and both paths", p, err)
	}
}

func TestWrongConfigurationIsToldByAttribute(t *testing.T) {
	for config, path := range map[string]string{
		`{"effective_capabilities":["NET_RAW","SUPERUSER"]}`:                           "effective_capabilities[1]",
		`{"bounding_capabilities":["UNKNOWN"]}`:                                        "bounding_capabilities[0]",
		`{"effective_capabilities":["NET_RAW"],"bounding_capabilities":["CHOWN"]}`:     "effective_capabilities",
		`{"image_capabilities":["CHOWN","all"]}`:                                       "image_capabilities[1]",
		`{"image_capabilities":["SYS_ADMIN"],"bounding_capabilities":["CHOWN"]}`:       "image_capabilities",
		`{"masked_paths":["proc/kcore"]}`:                                              "masked_paths[0]",
		`{"readonly_paths":["/proc/../etc"]}`:                                          "readonly_paths[0]",
		`{"seccomp_default":"strict"}`:                                                 "seccomp_default",
		`{"seccomp_default":"/etc/passwd","seccomp_profiles":"/etc"}`:                  "seccomp_default",
		`{"seccomp":"default"}`:                                                        "seccomp",
		`{"no_new_privileges":"yes"}`:                                                  "no_new_privileges",
		`{"effective_capabilities":[],"seccomp_default":"a\u0000b","masked_paths":[]}`: "seccomp_default",
	} {
		errs := moduletest.Dial(t, linux.New()).Configure(t, config)
		if len(errs) != 1 || errs[0].GetPath() != path {
			t.Errorf("Configure(%s) = %v, want one error at %s", config, errs, path)
		}
	}
}

func TestCleanupOfAnUnknownContainerSucceeds(t *testing.T) {
	c := moduletest.Start(t, linux.New(), `{}`)
	for range 2 {
		if _, err := c.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{Record: &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "never-seen"}}}); err != nil {
			t.Errorf("Cleanup of an unknown container: %v, want success", err)
		}
	}
}
