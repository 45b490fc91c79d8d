package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// What `mosaic run` says of a task's container: its image, network, ports, volumes, GPUs and working directory.

// bridgeNetwork is the network that agents have by that name unless an operator names another.
const bridgeNetwork = "mosaic"

// containerFlags are the flags of a task's container.
type containerFlags struct {
	image   string
	network string
	publish []string
	volumes []string
	gpus    int
	workdir string
	// Flags that mean what they mean to docker run.
	parameters []*mesosv1.Parameter
}

func (o *containerFlags) imageFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "", "run in an image: a name in a registry, an OCI layout, an image archive or a root filesystem folder")
	f.StringVar(&o.network, "network", "", "network: host (default), bridge, none, or the name of one that the agents have")
	_ = cmd.RegisterFlagCompletionFunc("network", completeNetworks)
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "port of the task on its own network: PORT for any of the machine's, or HOSTPORT:PORT[/udp] (repeatable)")
	f.StringArrayVar(&o.volumes, "volume", nil, "folder or file of the machine to see in the task: PATH:PLACE[:ro] (repeatable)")
	f.IntVar(&o.gpus, "gpus", 0, "GPUs to reserve")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory in the image (default: the image's)")
}

// checkContainer says what is wrong with these flags.
func (o *containerFlags) checkContainer() error {
	switch {
	case o.gpus < 0:
		return fmt.Errorf("--gpus: got %d, want 0 or more", o.gpus)
	case o.workdir != "" && o.image == "":
		return errors.New("--workdir is for tasks with --image; others begin in their sandbox")
	case o.workdir != "" && !path.IsAbs(o.workdir):
		return fmt.Errorf("--workdir: got %q, want an absolute path in the image", o.workdir)
	case len(o.parameters) > 0 && o.image == "":
		return fmt.Errorf("--%s is for tasks with --image", o.parameters[0].GetKey())
	case o.network == "none" && o.image == "":
		return errors.New("--network none is for tasks with --image")
	case len(o.publish) > 0 && (o.network == "host" || o.network == "none"):
		return fmt.Errorf("--publish: network %s has no ports to lead to; want --network bridge or another", o.network)
	}
	if _, err := o.published(); err != nil {
		return err
	}
	_, err := o.mounted()
	return err
}

// published are the ports to publish; without a host port, any will do.
func (o *containerFlags) published() ([]*mesosv1.NetworkInfo_PortMapping, error) {
	var list []*mesosv1.NetworkInfo_PortMapping
	for _, text := range o.publish {
		ports, protocol, ok := strings.Cut(text, "/")
		if !ok {
			protocol = "tcp"
		}
		host, inside, both := strings.Cut(ports, ":")
		if !both {
			host, inside = "", ports
		}
		m := &mesosv1.NetworkInfo_PortMapping{Protocol: &protocol}
		wrong := protocol != "tcp" && protocol != "udp"
		if n, err := strconv.ParseUint(inside, 10, 16); err == nil && n > 0 {
			m.ContainerPort = proto.Uint32(uint32(n))
		} else {
			wrong = true
		}
		if n, err := strconv.ParseUint(host, 10, 16); err == nil && n > 0 {
			m.HostPort = proto.Uint32(uint32(n))
		} else if both {
			wrong = true
		}
		if wrong {
			return nil, fmt.Errorf("--publish: got %q, want PORT, or HOSTPORT:PORT, with /udp where it is that", text)
		}
		list = append(list, m)
	}
	return list, nil
}

// mounted are the volumes.
func (o *containerFlags) mounted() ([]*mesosv1.Volume, error) {
	var list []*mesosv1.Volume
	for _, text := range o.volumes {
		parts := strings.Split(text, ":")
		v := &mesosv1.Volume{Mode: mesosv1.Volume_RW.Enum()}
		if len(parts) == 3 && parts[2] == "ro" {
			v.Mode, parts = mesosv1.Volume_RO.Enum(), parts[:2]
		}
		if len(parts) == 2 && parts[0] != "" && !strings.Contains(parts[0], "/") {
			return nil, fmt.Errorf("--volume: got %q, and no driver keeps volumes by name here: want PATH:PLACE, both absolute", text)
		}
		if len(parts) != 2 || !path.IsAbs(parts[0]) || parts[1] == "" || o.image != "" && !path.IsAbs(parts[1]) {
			return nil, fmt.Errorf("--volume: got %q, want PATH:PLACE or PATH:PLACE:ro, both absolute", text)
		}
		v.ContainerPath = &parts[1]
		v.Source = &mesosv1.Volume_Source{Type: mesosv1.Volume_Source_HOST_PATH.Enum(), HostPath: &mesosv1.Volume_Source_HostPath{Path: &parts[0]}}
		list = append(list, v)
	}
	return list, nil
}

// imageName is the image as agents are told it: what lies on this machine by its absolute path, with the name or digest that
// may follow that of a layout or an archive.
func (o *containerFlags) imageName() (string, error) {
	_, err := os.Stat(o.image)
	if err == nil {
		return filepath.Abs(o.image)
	}
	if !strings.HasPrefix(o.image, "/") && !strings.HasPrefix(o.image, ".") {
		return o.image, nil
	}
	for n, c := range o.image {
		if c != ':' && c != '@' {
			continue
		}
		if _, err := os.Stat(o.image[:n]); err == nil {
			path, err := filepath.Abs(o.image[:n])
			return path + o.image[n:], err
		}
	}
	return "", fmt.Errorf("image: %w", err)
}

// container gives a task the container of the flags, nothing where they say nothing. The task's command is there.
func (o *runOptions) container(t *mesosv1.TaskInfo) error {
	info := &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum()}
	var err error
	if info.Volumes, err = o.mounted(); err != nil {
		return err
	}
	ports, err := o.published()
	if err != nil {
		return err
	}
	switch {
	case o.network == "bridge" || o.network == "" && len(ports) > 0:
		info.NetworkInfos = []*mesosv1.NetworkInfo{{Name: proto.String(bridgeNetwork), PortMappings: ports}}
	case o.network != "" && o.network != "host" && o.network != "none":
		info.NetworkInfos = []*mesosv1.NetworkInfo{{Name: &o.network, PortMappings: ports}}
	}
	if o.tty {
		info.TtyInfo = o.terminalInfo()
	}
	if o.image != "" {
		image, err := o.imageName()
		if err != nil {
			return err
		}
		if o.workdir != "" || o.network == "none" || len(o.parameters) > 0 {
			o.dockerContainer(t, info, image)
		} else {
			info.Mesos = &mesosv1.ContainerInfo_MesosInfo{Image: &mesosv1.Image{
				Type: mesosv1.Image_DOCKER.Enum(), Docker: &mesosv1.Image_Docker{Name: &image},
			}}
		}
	}
	if !proto.Equal(info, &mesosv1.ContainerInfo{Type: info.Type}) {
		t.Container = info
	}
	return nil
}

// dockerContainer makes info one of type DOCKER, which can say what the other cannot. The command stays what it is: it
// takes the place of the image's entrypoint, and runs as the user of the flags.
func (o *runOptions) dockerContainer(t *mesosv1.TaskInfo, info *mesosv1.ContainerInfo, image string) {
	info.Type = mesosv1.ContainerInfo_DOCKER.Enum()
	info.Docker = &mesosv1.ContainerInfo_DockerInfo{Image: &image, Network: mesosv1.ContainerInfo_DockerInfo_HOST.Enum()}
	parameter := func(key, value string) {
		info.Docker.Parameters = append(info.Docker.Parameters, &mesosv1.Parameter{Key: &key, Value: &value})
	}
	switch {
	case o.network == "none":
		info.Docker.Network = mesosv1.ContainerInfo_DockerInfo_NONE.Enum()
	case len(info.NetworkInfos) > 0:
		info.Docker.Network = mesosv1.ContainerInfo_DockerInfo_USER.Enum()
	}
	if o.workdir != "" {
		parameter("workdir", o.workdir)
	}
	parameter("user", o.user)
	info.Docker.Parameters = append(info.Docker.Parameters, o.parameters...)
	given := slices.ContainsFunc(o.parameters, func(p *mesosv1.Parameter) bool { return p.GetKey() == "entrypoint" })
	if c := t.GetCommand(); given && !c.GetShell() {
		c.Value, c.Arguments = nil, o.argv
	} else if !c.GetShell() && c.Value != nil {
		parameter("entrypoint", c.GetValue())
		c.Value, c.Arguments = nil, o.argv[1:]
	}
}

// takePorts takes the host ports of mappings out of what is offered, the lowest where any will do, and returns those
// resources with the mappings completed; false if they are not all there. Both arguments stay as they are.
func takePorts(offered []*mesosv1.Resource, mappings []*mesosv1.NetworkInfo_PortMapping) ([]*mesosv1.Resource, []*mesosv1.NetworkInfo_PortMapping, bool) {
	type piece struct {
		of          *mesosv1.Resource
		free, taken resources.Ranges
	}
	var pieces []*piece
	for _, res := range offered {
		if res.GetName() == "ports" && res.GetType() == mesosv1.Value_RANGES && res.Revocable == nil {
			p := &piece{of: res}
			for _, r := range res.GetRanges().GetRange() {
				p.free = p.free.Union(resources.NewRanges(resources.Range{Begin: r.GetBegin(), End: r.GetEnd()}))
			}
			pieces = append(pieces, p)
		}
	}
	take := func(port uint64) bool {
		one := resources.NewRanges(resources.Range{Begin: port, End: port})
		for _, p := range pieces {
			if p.free.Contains(one) {
				p.free, p.taken = p.free.Subtract(one), p.taken.Union(one)
				return true
			}
		}
		return false
	}
	given := map[string]bool{} // a port of both protocols is one
	var done []*mesosv1.NetworkInfo_PortMapping
	for _, m := range mappings {
		m = m.CloneVT()
		done = append(done, m)
		if m.HostPort == nil {
			continue
		}
		key := strconv.Itoa(int(m.GetHostPort()))
		if !given[key] && !take(uint64(m.GetHostPort())) {
			return nil, nil, false
		}
		given[key] = true
	}
	for _, m := range done {
		if m.HostPort != nil {
			continue
		}
		i := slices.IndexFunc(pieces, func(p *piece) bool { return p.free.Count() > 0 })
		if i < 0 {
			return nil, nil, false
		}
		port := pieces[i].free[0].Begin
		take(port)
		m.HostPort = proto.Uint32(uint32(port))
	}
	var taken []*mesosv1.Resource
	for _, p := range pieces {
		if p.taken.Count() > 0 {
			part := p.of.CloneVT()
			part.Ranges = p.taken.Value()
			taken = append(taken, part)
		}
	}
	return taken, done, true
}

// addPorts adds to a part of an offer the ports that the task publishes; false if they are not there.
func (r *runner) addPorts(parts [][]*mesosv1.Resource, offer *mesosv1.Offer) bool {
	if len(r.publish) == 0 {
		return true
	}
	network := r.tasks[0].info.GetContainer().GetNetworkInfos()[0]
	taken, done, ok := takePorts(offer.GetResources(), network.GetPortMappings())
	if !ok {
		return false
	}
	for i, m := range done {
		if network.PortMappings[i].HostPort == nil {
			fmt.Fprintf(r.err, "mosaic: port %d of %s leads to port %d of the task\n", m.GetHostPort(), cmp.Or(offer.GetHostname(), "the machine"), m.GetContainerPort())
		}
	}
	network.PortMappings = done
	parts[0] = append(parts[0], taken...)
	return true
}
