package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// A wish is what a container asks for: no networks and not own means those of the host, or of the container that it is
// nested in.
type wish struct {
	own      bool // a namespace of its own
	networks []*mesosv1.NetworkInfo
	hostname string
}

// wishOf reads what a container asks for. bridge is the name of the network that docker's mode BRIDGE means.
func wishOf(c *containerv1.Container, bridge string) (*wish, error) {
	info := c.GetContainerInfo()
	w := &wish{hostname: info.GetHostname()}
	if c.GetClass() == containerv1.Container_DEBUG {
		return &wish{}, nil // it is there to see what its parent sees
	}
	if err := checkHostname(w.hostname); err != nil {
		return nil, err
	}
	if info != nil && info.GetType() == mesosv1.ContainerInfo_DOCKER {
		if err := w.docker(info, bridge); err != nil {
			return nil, err
		}
	} else {
		for _, n := range info.GetNetworkInfos() {
			switch {
			case n.GetName() != "":
				w.networks = append(w.networks, n)
			case len(n.GetPortMappings()) > 0:
				return nil, module.InvalidArgument("network_infos: port_mappings without the name of a network, want one: ports of the host's network are used as they are")
			}
		}
	}
	w.own = w.own || len(w.networks) > 0
	if len(w.networks) > maxNetworks {
		return nil, module.InvalidArgument("network_infos: got %d networks, want at most %d", len(w.networks), maxNetworks)
	}
	seen := map[string]bool{}
	for _, n := range w.networks {
		if seen[n.GetName()] {
			return nil, module.InvalidArgument("network_infos: network %q is named twice", n.GetName())
		}
		seen[n.GetName()] = true
		if err := checkInfo(n); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// docker reads the network modes of containers that were written for that daemon.
func (w *wish) docker(info *mesosv1.ContainerInfo, bridge string) error {
	d := info.GetDocker()
	var first *mesosv1.NetworkInfo
	if len(info.GetNetworkInfos()) > 0 {
		first = proto.CloneOf(info.GetNetworkInfos()[0])
	} else {
		first = &mesosv1.NetworkInfo{}
	}
	switch d.GetNetwork() {
	case mesosv1.ContainerInfo_DockerInfo_BRIDGE:
		first.Name = &bridge
	case mesosv1.ContainerInfo_DockerInfo_USER:
		if first.GetName() == "" {
			return module.InvalidArgument("docker.network USER: no name of a network in network_infos")
		}
	default:
		if len(d.GetPortMappings()) > 0 {
			return module.InvalidArgument("docker.port_mappings: got network %s, want BRIDGE or USER", d.GetNetwork())
		}
		w.own = d.GetNetwork() == mesosv1.ContainerInfo_DockerInfo_NONE
		return nil
	}
	for _, m := range d.GetPortMappings() {
		first.PortMappings = append(first.PortMappings, &mesosv1.NetworkInfo_PortMapping{
			HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: m.Protocol,
		})
	}
	w.networks = append(w.networks, first)
	w.own = true
	return nil
}

const (
	// maxHostname is what the kernel takes.
	maxHostname = 64
	// maxPorts bounds the ports that one container publishes: each is several rules.
	maxPorts = 1000
)

func checkHostname(name string) error {
	if name == "" {
		return nil
	}
	if len(name) > maxHostname {
		return module.InvalidArgument("hostname: got %d characters, want at most %d", len(name), maxHostname)
	}
	for _, r := range name {
		if r > 0x7e || !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", r) {
			return module.InvalidArgument("hostname: got %q, want letters, digits, dots and hyphens", name)
		}
	}
	return nil
}

func checkInfo(n *mesosv1.NetworkInfo) error {
	for _, a := range n.GetIpAddresses() {
		if a.GetIpAddress() == "" {
			continue
		}
		if _, err := parseAddress(a.GetIpAddress()); err != nil {
			return module.InvalidArgument("network %s: ip_addresses: %v", n.GetName(), err)
		}
	}
	if len(n.GetPortMappings()) > maxPorts {
		return module.InvalidArgument("network %s: got %d port_mappings, want at most %d", n.GetName(), len(n.GetPortMappings()), maxPorts)
	}
	for _, m := range n.GetPortMappings() {
		if m.GetHostPort() == 0 || m.GetHostPort() > 65535 || m.GetContainerPort() == 0 || m.GetContainerPort() > 65535 {
			return module.InvalidArgument("network %s: port_mappings: got %d to %d, want ports from 1 to 65535",
				n.GetName(), m.GetHostPort(), m.GetContainerPort())
		}
		switch strings.ToLower(m.GetProtocol()) {
		case "", "tcp", "udp", "sctp":
		default:
			return module.InvalidArgument("network %s: port_mappings: got protocol %.20q, want tcp, udp or sctp", n.GetName(), m.GetProtocol())
		}
	}
	return nil
}

// parseAddress reads an address that may have a prefix length.
func parseAddress(text string) (netip.Addr, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr(), nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, fmt.Errorf("got %.80q, want an address", text)
	}
	return a.WithZone(""), nil
}

// portMapper is Mesos's own plugin for port mappings. It finds them in the arguments and declares no capability.
const portMapper = "mesos-cni-port-mapper"

// can says why a network cannot give what is asked of it.
func (n *network) can(info *mesosv1.NetworkInfo) error {
	if len(info.GetPortMappings()) > 0 && !n.has("portMappings") && !n.uses(portMapper) && n.rules != byKernel {
		if n.builtIn {
			return module.FailedPrecondition("network %s publishes no ports: nothing makes rules for it", n.Name)
		}
		return module.FailedPrecondition("network %s publishes no ports: none of its plugins declares the capability portMappings", n.Name)
	}
	return nil
}

func (n *network) uses(plugin string) bool {
	for _, p := range n.Plugins {
		if pluginType(p) == plugin {
			return true
		}
	}
	return false
}

// wanted is what plugins are told of a wish: Mesos's own argument, those that plugins of others read, and what goes to
// those that declare the capability.
func wanted(info *mesosv1.NetworkInfo) (arguments, capability map[string]any, err error) {
	doc, err := (protojson.MarshalOptions{UseProtoNames: true, AllowPartial: true}).Marshal(info)
	if err != nil {
		return nil, nil, err
	}
	common := map[string]any{}
	arguments = map[string]any{
		"org.apache.mesos": map[string]any{"network_info": json.RawMessage(doc)},
		"cni":              common,
	}
	capability = map[string]any{}
	if labels := info.GetLabels().GetLabels(); len(labels) > 0 {
		list := make([]map[string]string, len(labels))
		for i, l := range labels {
			list[i] = map[string]string{"key": l.GetKey(), "value": l.GetValue()}
		}
		common["labels"] = list
	}
	if ips := requested(info); len(ips) > 0 {
		common["ips"], capability["ips"] = ips, ips
	}
	if len(common) == 0 {
		delete(arguments, "cni")
	}
	var ports []map[string]any
	for _, m := range info.GetPortMappings() {
		protocol := strings.ToLower(m.GetProtocol())
		if protocol == "" {
			protocol = "tcp"
		}
		ports = append(ports, map[string]any{"hostPort": m.GetHostPort(), "containerPort": m.GetContainerPort(), "protocol": protocol})
	}
	if len(ports) > 0 {
		capability["portMappings"] = ports
	}
	return arguments, capability, nil
}

// requested are the addresses that a container asks to have.
func requested(info *mesosv1.NetworkInfo) []string {
	var list []string
	for _, a := range info.GetIpAddresses() {
		if a.GetIpAddress() != "" {
			list = append(list, a.GetIpAddress())
		}
	}
	return list
}
