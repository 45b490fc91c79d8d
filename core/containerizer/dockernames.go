package containerizer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// How a container finds others by their names is in files that belong to its network: those of an isolator, or the
// machine's. A container of type DOCKER may ask for more than they say; then it gets files of its own, made of those,
// which lie with what is staged for it and go with that.

// dockerNames is what a container asks for.
type dockerNames struct {
	servers, search, options []string // in place of the network's, where there are any
	hosts                    []string // lines to add
}

const (
	resolvFile = "/etc/resolv.conf"
	hostsFile  = "/etc/hosts"
	// maxNamesFile bounds a file of names that is taken over; lists that block advertisements have some megabytes.
	maxNamesFile = 16 << 20
)

// noHosts is the file of a container whose network brings none.
const noHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

// parameter takes an option of `docker run` that is about names, and says whether key is one.
func (n *dockerNames) parameter(key, value string) (known bool, err error) {
	switch key {
	case "dns":
		if a, err := netip.ParseAddr(value); err != nil || a.Zone() != "" {
			return true, errors.New("want the address of a name server")
		}
		n.servers = append(n.servers, value)
	case "dns-search":
		if !oneWord(value) {
			return true, errors.New("want one domain, or a dot for none")
		}
		n.search = append(n.search, value)
	case "dns-option", "dns-opt":
		if !oneWord(value) {
			return true, errors.New("want one option of resolv.conf, such as ndots:2")
		}
		n.options = append(n.options, value)
	case "add-host":
		name, address, ok := cutHost(value)
		if !ok || !oneWord(name) {
			return true, errors.New("want NAME:ADDRESS")
		}
		if address == "host-gateway" {
			return true, errors.New("want an address: networks here do not say by which one their containers reach this machine")
		}
		if _, err := netip.ParseAddr(address); err != nil {
			return true, errors.New("want NAME:ADDRESS")
		}
		n.hosts = append(n.hosts, address+"\t"+name)
	default:
		return false, nil
	}
	return true, nil
}

// cutHost takes NAME:ADDRESS apart, or NAME=ADDRESS; an address of version 6 may stand in brackets.
func cutHost(text string) (name, address string, ok bool) {
	at := strings.IndexAny(text, ":=")
	if at < 0 {
		return "", "", false
	}
	name, address = text[:at], text[at+1:]
	if strings.HasPrefix(address, "[") && strings.HasSuffix(address, "]") {
		address = address[1 : len(address)-1]
	}
	return name, address, true
}

// oneWord says whether text is one word that stands in a line as it is.
func oneWord(text string) bool {
	return text != "" && len(text) <= 255 && !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == '#' || r == 0x7f })
}

// resolv is the file that have becomes.
func (n *dockerNames) resolv(have []byte) []byte {
	var b bytes.Buffer
	for line := range strings.Lines(string(have)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case word == "nameserver" && len(n.servers) > 0:
		case (word == "search" || word == "domain") && len(n.search) > 0:
		case word == "options" && len(n.options) > 0:
		default:
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	for _, s := range n.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(n.search) > 0 && !slices.Contains(n.search, ".") {
		fmt.Fprintf(&b, "search %s\n", strings.Join(n.search, " "))
	}
	if len(n.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(n.options, " "))
	}
	return b.Bytes()
}

// withHosts is the file of hosts that have becomes.
func (n *dockerNames) withHosts(have []byte) []byte {
	if len(have) == 0 {
		have = []byte(noHosts)
	}
	b := bytes.NewBuffer(bytes.Clone(have))
	if have[len(have)-1] != '\n' {
		b.WriteByte('\n')
	}
	for _, line := range n.hosts {
		b.WriteString(line + "\n")
	}
	return b.Bytes()
}

// giveNames gives a container files of its own for the names that it asks for, in place of those it would see.
func (c *Containerizer) giveNames(ct *container, merged *containerv1.Spec) error {
	n := &ct.docker.names
	if len(n.servers)+len(n.search)+len(n.options) > 0 {
		if err := c.giveFile(ct.id, resolvFile, merged, n.resolv); err != nil {
			return fmt.Errorf("container.docker: parameter dns: %w", err)
		}
	}
	if len(n.hosts) > 0 {
		if err := c.giveFile(ct.id, hostsFile, merged, n.withHosts); err != nil {
			return fmt.Errorf("container.docker: parameter add-host: %w", err)
		}
	}
	return nil
}

// giveFile replaces what a container would see at place by what change makes of it.
func (c *Containerizer) giveFile(id, place string, merged *containerv1.Spec, change func([]byte) []byte) error {
	list := merged.GetMerged().GetMounts()
	at := slices.IndexFunc(list, func(m *containerv1.Mount) bool { return m.GetDestination() == place })
	mount := &containerv1.Mount{Destination: place, Type: "bind", Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"}}
	var have []byte
	if at >= 0 {
		if list[at].GetType() != "bind" {
			return fmt.Errorf("%s mounts something else than a file at %s", merged.GetOwners()["mounts."+place], place)
		}
		mount = proto.CloneOf(list[at])
		var err error
		if have, err = readNames(mount.GetSource()); err != nil {
			return err
		}
	}
	mount.Source = filepath.Join(c.stagedDir(id), filepath.Base(place))
	if err := os.MkdirAll(filepath.Dir(mount.Source), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(mount.Source, change(have), 0o644); err != nil {
		return err
	}
	if err := os.Chmod(mount.Source, 0o644); err != nil { // whatever the umask
		return err
	}
	merged.Owners["mounts."+place] = dockerOwner
	if at >= 0 {
		merged.Merged.Mounts = slices.Clone(list)
		merged.Merged.Mounts[at] = mount
	} else {
		merged.Merged.Mounts = append(merged.Merged.Mounts, mount)
	}
	return nil
}

func readNames(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxNamesFile+1))
	if err == nil && len(b) > maxNamesFile {
		err = fmt.Errorf("%s has more than %d bytes", name, maxNamesFile)
	}
	return b, err
}
