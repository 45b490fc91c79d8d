package registry

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// DockerHub is the registry of names that say no other, unless the operator chose one.
const DockerHub = "docker.io"

// A Reference says where an image is: in which registry, under which name there, and as which tag or digest.
type Reference struct {
	Host       string // as in docker.io or localhost:5000
	Repository string // as in library/alpine
	Tag        string // "" where there is a digest alone
	Digest     string // as in sha256:...; goes before the tag
}

// Bounds of Docker's naming.
const (
	maxName = 255
	maxTag  = 128
)

// Parse reads a name as Docker does: `alpine`, `quay.io/a/b:1`, `localhost:5000/x@sha256:...`. What comes before the
// first slash is a registry if it has a dot or a colon or is localhost. Names without one are of the registry byDefault;
// Docker's own keeps names of one part under library.
//
// Source: github.com/distribution/distribution, docs on references (the grammar).
func Parse(name, byDefault string) (Reference, error) {
	r, err := parse(name, byDefault)
	if err != nil {
		return Reference{}, fmt.Errorf("image name %q: %w", clip(name), err)
	}
	return r, nil
}

func clip(name string) string {
	if len(name) > maxName {
		return name[:maxName] + "..."
	}
	return name
}

func parse(name, byDefault string) (Reference, error) {
	var r Reference
	rest, digest, ok := strings.Cut(name, "@")
	if ok {
		if err := checkDigest(digest); err != nil {
			return r, err
		}
		r.Digest = digest
	}
	if at := strings.LastIndexByte(rest, ':'); at > strings.LastIndexByte(rest, '/') && at >= 0 {
		r.Tag = rest[at+1:]
		rest = rest[:at]
		if !isTag(r.Tag) {
			return r, fmt.Errorf("tag %q: want up to %d letters, digits, and inside it dots, hyphens, underscores", clip(r.Tag), maxTag)
		}
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	first, below, ok := strings.Cut(rest, "/")
	if ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		r.Host, r.Repository = first, below
	} else {
		r.Host, r.Repository = byDefault, rest
	}
	switch r.Host {
	case "", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		r.Host = DockerHub
	}
	if r.Host == DockerHub && !strings.Contains(r.Repository, "/") && r.Repository != "" {
		r.Repository = "library/" + r.Repository
	}
	if !isHost(r.Host) {
		return r, fmt.Errorf("registry %q: want a host name and perhaps a port", clip(r.Host))
	}
	if len(r.Repository) > maxName {
		return r, fmt.Errorf("repository has %d characters, want at most %d", len(r.Repository), maxName)
	}
	for part := range strings.SplitSeq(r.Repository, "/") {
		if !isPart(part) {
			return r, fmt.Errorf("repository %q: want lower case letters and digits, and between them dots, hyphens, underscores", clip(r.Repository))
		}
	}
	return r, nil
}

// Name is the reference without tag and digest.
func (r Reference) Name() string { return r.Host + "/" + r.Repository }

// String spells the reference whole. A digest takes the tag's place: it says more.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest
	}
	return r.Name() + ":" + r.Tag
}

func checkDigest(d string) error {
	algorithm, value, _ := strings.Cut(d, ":")
	want := map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}[algorithm]
	if _, err := hex.DecodeString(value); err != nil || want == 0 || len(value) != want || strings.ToLower(value) != value {
		return errors.New("digest is malformed: want sha256: and 64 hex digits")
	}
	return nil
}

func isTag(s string) bool {
	if s == "" || len(s) > maxTag || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if !isAlnum(c) && !(c >= 'A' && c <= 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// isPart says whether s is one part of a repository's name: letters and digits with single separators between them,
// which are a dot, one or two underscores, or any number of hyphens.
func isPart(s string) bool {
	if s == "" || !isAlnum(s[0]) || !isAlnum(s[len(s)-1]) {
		return false
	}
	for rest := s; rest != ""; {
		if isAlnum(rest[0]) {
			rest = rest[1:]
			continue
		}
		n := len(rest) - len(strings.TrimLeft(rest, "._-"))
		sep := rest[:n]
		if sep == "" || sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
			return false
		}
		rest = rest[n:]
	}
	return true
}

func isHost(s string) bool {
	name, port, hasPort := s, "", false
	if strings.HasPrefix(s, "[") { // IPv6
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return false
		}
		for _, c := range []byte(s[1:end]) {
			if !strings.ContainsRune("0123456789abcdefABCDEF:.", rune(c)) {
				return false
			}
		}
		rest := s[end+1:]
		if rest == "" {
			return end > 1
		}
		name, port, hasPort = "v6", rest[1:], true
		if rest[0] != ':' {
			return false
		}
	} else if at := strings.IndexByte(s, ':'); at >= 0 {
		name, port, hasPort = s[:at], s[at+1:], true
	}
	if hasPort && (port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "") {
		return false
	}
	if name == "" || len(name) > maxName {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !isAlnum(c) && !(c >= 'A' && c <= 'Z') && c != '-' {
				return false
			}
		}
	}
	return true
}

func isAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
