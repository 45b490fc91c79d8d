package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// furniture is what containers of a test get beside their image: every kind of volume there is, with a file in each whose
// content is the kind's name.
type furniture struct {
	image   string // its page lies at /www/index.html
	machine string // folder of the machine
	secrets string // folder of the resolver
	plugin  *volumePlugin
}

// furnish makes what the volumes are made of.
func furnish(t *testing.T) *furniture {
	t.Helper()
	f := &furniture{image: imageRegistry(t), machine: t.TempDir(), secrets: t.TempDir(), plugin: startVolumePlugin(t, "stub")}
	for name, text := range map[string]string{filepath.Join(f.machine, "file"): "machine", filepath.Join(f.secrets, "referred"): "referred"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// composition has a module of each kind that an agent has, and all isolators that have something to do with volumes.
func (f *furniture) composition() string {
	return fmt.Sprintf(`
agent {
  oversubscribed_resources_interval = "1s"
}
isolator "cgroups" {}
isolator "rlimits" {}
isolator "namespaces" {}
isolator "linux" {}
isolator "volumes" {}
isolator "disk" {}
%s
isolator "cni" {
  config {
    plugins_dir    = %q
    default_bridge = true
  }
}
secret_resolver "file" {
  config {
    folder = %q
  }
}
container_logger "file" {}
resource_estimator "fixed" {
  config {
    resources = "cpus:1"
  }
}
qos_controller "load" {
  config {
    load_threshold_5min = 1000000
  }
}
`, f.plugin.composition(), filepath.Join(bin, "cni"), f.secrets)
}

// persistent are a reservation for a role and a persistent volume of it, to be made and to be given to a task.
func persistent(role, id, place string, shared bool) (reserved, volume *mesosv1.Resource) {
	reserved = &mesosv1.Resource{
		Name: proto.String("disk"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: proto.Float64(32)},
		Reservations: []*mesosv1.Resource_ReservationInfo{{Type: mesosv1.Resource_ReservationInfo_DYNAMIC.Enum(), Role: &role}},
	}
	volume = proto.CloneOf(reserved)
	volume.Disk = &mesosv1.Resource_DiskInfo{
		Persistence: &mesosv1.Resource_DiskInfo_Persistence{Id: &id},
		Volume:      &mesosv1.Volume{ContainerPath: &place, Mode: mesosv1.Volume_RW.Enum()},
	}
	if shared {
		volume.Shared = &mesosv1.Resource_SharedInfo{}
	}
	return reserved, volume
}

// makeVolumes are the operations that make persistent volumes.
func makeVolumes(reserved []*mesosv1.Resource, volumes []*mesosv1.Resource) []*mesosv1.Offer_Operation {
	return []*mesosv1.Offer_Operation{
		{Type: mesosv1.Offer_Operation_RESERVE.Enum(), Reserve: &mesosv1.Offer_Operation_Reserve{Resources: reserved}},
		{Type: mesosv1.Offer_Operation_CREATE.Enum(), Create: &mesosv1.Offer_Operation_Create{Volumes: volumes}},
	}
}

// launching is the operation that launches tasks.
func launching(tasks ...*mesosv1.TaskInfo) *mesosv1.Offer_Operation {
	return &mesosv1.Offer_Operation{Type: mesosv1.Offer_Operation_LAUNCH.Enum(), Launch: &mesosv1.Offer_Operation_Launch{TaskInfos: tasks}}
}

// persistentOf is the persistent volume of that id among what is offered; nil if it is not.
func persistentOf(o *mesosv1.Offer, id string) *mesosv1.Resource {
	for _, r := range o.GetResources() {
		if r.GetDisk().GetPersistence().GetId() == id {
			return r
		}
	}
	return nil
}

// hostVolume is a folder of the machine with a way of propagation.
func hostVolume(path, place string, mode mesosv1.Volume_Mode, how mesosv1.MountPropagation_Mode) *mesosv1.Volume {
	host := &mesosv1.Volume_Source_HostPath{Path: &path}
	if how != mesosv1.MountPropagation_UNKNOWN {
		host.MountPropagation = &mesosv1.MountPropagation{Mode: &how}
	}
	return &mesosv1.Volume{Mode: &mode, ContainerPath: &place, Source: &mesosv1.Volume_Source{Type: mesosv1.Volume_Source_HOST_PATH.Enum(), HostPath: host}}
}

// sandboxVolume is a path of a sandbox.
func sandboxVolume(whose mesosv1.Volume_Source_SandboxPath_Type, path, place string, mode mesosv1.Volume_Mode) *mesosv1.Volume {
	return &mesosv1.Volume{Mode: &mode, ContainerPath: &place, Source: &mesosv1.Volume_Source{
		Type: mesosv1.Volume_Source_SANDBOX_PATH.Enum(), SandboxPath: &mesosv1.Volume_Source_SandboxPath{Type: &whose, Path: &path},
	}}
}

// imageVolume is an image as a folder.
func imageVolume(image, place string) *mesosv1.Volume {
	return &mesosv1.Volume{Mode: mesosv1.Volume_RO.Enum(), ContainerPath: &place, Image: &mesosv1.Image{
		Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &image},
	}}
}

func secretOf(value string) *mesosv1.Secret {
	return &mesosv1.Secret{Type: mesosv1.Secret_VALUE.Enum(), Value: &mesosv1.Secret_Value{Data: []byte(value)}}
}

func secretNamed(name string) *mesosv1.Secret {
	return &mesosv1.Secret{Type: mesosv1.Secret_REFERENCE.Enum(), Reference: &mesosv1.Secret_Reference{Name: &name}}
}

// secretVariable is a variable of the environment.
func secretVariable(name string, s *mesosv1.Secret) *mesosv1.Environment_Variable {
	return &mesosv1.Environment_Variable{Name: &name, Type: mesosv1.Environment_Variable_SECRET.Enum(), Secret: s}
}

// volumes are one of each kind but the persistent, with the machine's shown below /www; docker is the name of the Docker
// volume.
func (f *furniture) volumes(docker string) []*mesosv1.Volume {
	const ro, rw = mesosv1.Volume_RO, mesosv1.Volume_RW
	return []*mesosv1.Volume{
		hostVolume(f.machine, "/www/machine", ro, mesosv1.MountPropagation_UNKNOWN),
		sandboxVolume(mesosv1.Volume_Source_SandboxPath_SELF, "own", "/www/own", rw),
		imageVolume(f.image, "/www/image"),
		secretVolume("/www/secret/value", secretOf("value")),
		secretVolume("/www/secret/referred", secretNamed("referred")),
		f.plugin.volume(docker, "/www/docker", rw),
	}
}

// pages are what the web server of a furnished task serves, by path. The task itself wrote those that it can write, and
// named them after itself.
func pages(id string) map[string]string {
	return map[string]string{
		"/":                         registryPage,
		"/machine/file":             "machine",
		"/own/file":                 id,
		"/image/www/index.html":     registryPage,
		"/secret/value":             "value",
		"/secret/referred":          "referred",
		"/docker/file":              id,
		"/persistent/file":          id,
		"/persistent/of-the-secret": "referred",
	}
}

// writePages is the command of a task that serves its pages on port 80, and echoes on port 81 what is sent there.
func writePages(id string) *mesosv1.CommandInfo {
	command := cluster.Shell(fmt.Sprintf(`
for d in own docker persistent; do echo -n %s >/www/$d/file || exit 41; done
echo -n "$REFERRED" >/www/persistent/of-the-secret
busybox nc -ll -p 81 -e /bin/busybox cat &
exec busybox httpd -f -p 80 -h /www`, id))
	command.Environment = &mesosv1.Environment{Variables: []*mesosv1.Environment_Variable{secretVariable("REFERRED", secretNamed("referred"))}}
	return command
}

// serves says what is wrong with the pages of a furnished task at an address; "" if nothing is.
func serves(at, id string) string {
	var wrong []string
	for path, want := range pages(id) {
		if page, err := get("http://" + at + path); err != nil || page != want {
			wrong = append(wrong, fmt.Sprintf("%s is %.60q, %v; want %q", path, page, err, want))
		}
	}
	slices.Sort(wrong)
	return strings.Join(wrong, "\n")
}

// furnishedTask is a task with an image, a network, every kind of volume and secrets. volume is its persistent one, which
// is to be shown below /www.
func (f *furniture) task(o *mesosv1.Offer, id, docker string, volume *mesosv1.Resource, command *mesosv1.CommandInfo) *mesosv1.TaskInfo {
	task := onBridge(imageTask(o, id, f.image, command))
	task.Container.Volumes = f.volumes(docker)
	if volume != nil {
		volume = proto.CloneOf(volume)
		volume.AllocationInfo = o.GetAllocationInfo()
		task.Resources = append(task.Resources, volume)
	}
	return task
}

// subscribeShared connects a framework of one role that may share volumes.
func subscribeShared(ctx context.Context, t *testing.T, master, name, role string) *cluster.Framework {
	t.Helper()
	var capabilities []*mesosv1.FrameworkInfo_Capability
	for _, c := range []mesosv1.FrameworkInfo_Capability_Type{
		mesosv1.FrameworkInfo_Capability_MULTI_ROLE, mesosv1.FrameworkInfo_Capability_PARTITION_AWARE,
		mesosv1.FrameworkInfo_Capability_RESERVATION_REFINEMENT, mesosv1.FrameworkInfo_Capability_SHARED_RESOURCES,
	} {
		capabilities = append(capabilities, &mesosv1.FrameworkInfo_Capability{Type: &c})
	}
	f, err := cluster.SubscribeAs(ctx, master, &mesosv1.FrameworkInfo{
		Name: &name, User: proto.String("root"), Roles: []string{role}, Checkpoint: proto.Bool(true), FailoverTimeout: proto.Float64(600), Capabilities: capabilities,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Disconnect)
	return f
}
