package cni

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// hostnameOf is the name of a container that asks for none: the last part of its id, as far as a host can be called so.
func hostnameOf(id string) string {
	if dot := strings.LastIndexByte(id, '.'); dot >= 0 {
		id = id[dot+1:]
	}
	clean := strings.Map(func(r rune) rune {
		if r < 0x7f && checkHostname(string(r)) == nil {
			return r
		}
		return '-'
	}, id)
	const label = 63 // RFC 1035
	if len(clean) > label {
		clean = clean[:label]
	}
	if clean = strings.Trim(clean, "-."); clean == "" {
		return "container"
	}
	return clean
}

// writeFiles writes what a container sees in /etc, and returns the names.
func writeFiles(f folder, r *record, cfg *Config) ([]string, error) {
	resolv, err := resolvConf(r, cfg)
	if err != nil {
		return nil, err
	}
	var written []string
	for _, x := range []struct {
		name string
		text []byte
	}{{"hosts", hosts(r)}, {"hostname", []byte(r.Hostname + "\n")}, {"resolv.conf", resolv}} {
		if err := os.WriteFile(f.path(x.name), x.text, 0o644); err != nil {
			return nil, err
		}
		if err := os.Chmod(f.path(x.name), 0o644); err != nil { // whatever the umask
			return nil, err
		}
		written = append(written, x.name)
	}
	return written, nil
}

// hosts gives the container's name its addresses: the first of each version in each network.
func hosts(r *record) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n" +
		"ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	names := r.Hostname
	if short, _, ok := strings.Cut(r.Hostname, "."); ok && short != "" {
		names += " " + short
	}
	any := false
	for _, a := range r.Networks {
		seen := map[bool]bool{}
		for _, ip := range addresses(a.Result) {
			if !seen[ip.Is4()] {
				seen[ip.Is4()], any = true, true
				fmt.Fprintf(&b, "%s\t%s\n", ip, names)
			}
		}
	}
	if !any {
		fmt.Fprintf(&b, "127.0.1.1\t%s\n", names) // so that the container finds itself
	}
	return b.Bytes()
}

// resolvConf is what the networks say about names, or the configuration, or else the host's own, without servers that
// only the host reaches.
func resolvConf(r *record, cfg *Config) ([]byte, error) {
	var servers, search, options []string
	domain := ""
	for _, a := range r.Networks {
		result := parseResult(a.Result)
		if result == nil {
			continue
		}
		servers = append(servers, result.DNS.Nameservers...)
		search = append(search, result.DNS.Search...)
		options = append(options, result.DNS.Options...)
		if domain == "" {
			domain = result.DNS.Domain
		}
	}
	if len(servers) == 0 {
		servers = cfg.Nameservers
		search, options = append(search, cfg.Search...), append(options, cfg.Options...)
	}
	if len(servers) == 0 {
		return hostResolvConf("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
	}
	var b bytes.Buffer
	line := func(key string, values ...string) {
		for i, v := range values {
			values[i] = strings.Join(strings.Fields(v), "") // plugins choose them: one word each
		}
		if text := strings.TrimSpace(strings.Join(values, " ")); text != "" {
			fmt.Fprintf(&b, "%s %s\n", key, text)
		}
	}
	line("domain", domain)
	line("search", search...)
	for _, s := range servers {
		line("nameserver", s)
	}
	line("options", options...)
	return b.Bytes(), nil
}

// hostResolvConf reads the host's file. Where all its servers are on its loopback, a resolver runs there, which another
// file tells the servers of.
func hostResolvConf(first, behind string) ([]byte, error) {
	data, err := os.ReadFile(first)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	text, reachable, hidden := withoutLoopback(data)
	if reachable == 0 && hidden > 0 {
		if other, err := os.ReadFile(behind); err == nil {
			if better, n, _ := withoutLoopback(other); n > 0 {
				return better, nil
			}
		}
	}
	return text, nil
}

func withoutLoopback(data []byte) (text []byte, reachable, hidden int) {
	var b bytes.Buffer
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) >= 2 && fields[0] == "nameserver" {
			if a, err := netip.ParseAddr(fields[1]); err == nil && a.Unmap().IsLoopback() {
				hidden++
				continue
			}
			reachable++
		}
		b.WriteString(s.Text() + "\n")
	}
	return b.Bytes(), reachable, hidden
}

// mounts shows the files to the container. On the host's own root only what is there is covered: mounting on the rest
// would make files on the host.
func mounts(f folder, r *record, c *containerv1.Container) []*containerv1.Mount {
	var list []*containerv1.Mount
	for _, name := range r.Files {
		place := "/etc/" + name
		if c.GetRootfs() == "" {
			if st, err := os.Stat(place); err != nil || !st.Mode().IsRegular() {
				continue
			}
		}
		list = append(list, &containerv1.Mount{
			Destination: place, Source: f.path(name), Type: "bind", Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"},
		})
	}
	return list
}
