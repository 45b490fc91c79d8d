package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// A record is all that is known of a container's networks. It is the module's state, which the agent keeps, and it lies
// in the container's folder below run_dir too, where it is written before and after each ADD: what a crash interrupts
// is found there by the container's id alone.
type record struct {
	Operation  string       `json:"operation"` // id of the Prepare that made it
	Generation uint64       `json:"generation"`
	ID         string       `json:"id"`    // as plugins know the container
	Netns      string       `json:"netns"` // file that the namespace is mounted on
	Hostname   string       `json:"hostname"`
	Networks   []attachment `json:"networks,omitempty"`
	Files      []string     `json:"files,omitempty"` // in the container's folder, by the name they have in /etc
	Done       bool         `json:"done"`            // everything was made
}

// An attachment is one interface of a container.
type attachment struct {
	Network   string          `json:"network"`
	Interface string          `json:"interface"`
	Info      json.RawMessage `json:"info"`             // what was asked for, a mesos.v1.NetworkInfo
	Config    json.RawMessage `json:"config,omitempty"` // the network's configuration at that time
	BuiltIn   bool            `json:"built_in,omitempty"`
	Rules     string          `json:"rules,omitempty"`  // what makes the built-in network's rules
	Begun     bool            `json:"begun,omitempty"`  // an ADD may have run
	Result    json.RawMessage `json:"result,omitempty"` // its answer
	Gone      bool            `json:"gone,omitempty"`   // DEL succeeded
}

const (
	stateVersion = 1
	// maxState keeps below what the contract allows.
	maxState = 60 << 10
	// maxRecord bounds what is read back: networks times the most that a configuration and a result may be.
	maxRecord = 64 << 20
	// maxNetworks bounds the interfaces of one container. Nobody has asked for more than a handful.
	maxNetworks = 16
)

// state is the record as the agent keeps it. Configurations are left out where they do not fit: the copy in the
// container's folder has them, and the network is looked up by its name where that is lost.
func (r *record) state() ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil || len(data) <= maxState {
		return data, err
	}
	slim := *r
	slim.Networks = nil
	for _, a := range r.Networks {
		a.Config = nil
		slim.Networks = append(slim.Networks, a)
	}
	if data, err = json.Marshal(&slim); err == nil && len(data) > maxState {
		err = fmt.Errorf("what is to be kept of its networks is %d bytes, want at most %d", len(data), maxState)
	}
	return data, err
}

// parseRecord reads a record; what it cannot read is nil. Paths in it are checked by who uses them.
func parseRecord(data []byte) *record {
	if len(data) == 0 || len(data) > maxRecord {
		return nil
	}
	r := &record{}
	if json.Unmarshal(data, r) != nil || r.ID == "" || len(r.Networks) > maxNetworks {
		return nil
	}
	return r
}

// info is what was asked for.
func (a *attachment) info() *mesosv1.NetworkInfo {
	n := &mesosv1.NetworkInfo{}
	if (protojson.UnmarshalOptions{DiscardUnknown: true, AllowPartial: true}).Unmarshal(a.Info, n) != nil {
		n.Name = &a.Network
	}
	return n
}

// plainID is what plugins take as a container's name.
var plainID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,241}$`)

// pluginID is the name of a container for plugins, and of its folder: its id where that will do.
func pluginID(id string) string {
	if plainID.MatchString(id) && !strings.HasPrefix(id, hashed) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return hashed + hex.EncodeToString(sum[:20])
}

const hashed = "id-sha256-"

// folder is where a container's record, files and namespace are.
type folder string

func folderOf(runDir, id string) folder { return folder(filepath.Join(runDir, pluginID(id))) }

func (f folder) path(name string) string { return filepath.Join(string(f), name) }

func (f folder) netns() string { return f.path("netns") }

// load reads the record; nil if there is none.
func (f folder) load() (*record, error) {
	data, err := os.ReadFile(f.path("record.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := parseRecord(data)
	if r == nil {
		return nil, fmt.Errorf("record of networks in %s cannot be read", f)
	}
	return r, nil
}

// save writes the record so that a crash leaves the one before or this one. It does not outlive the machine, nor does
// what it tells of.
func (f folder) save(r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	next := f.path("record.json.new")
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return err
	}
	return os.Rename(next, f.path("record.json"))
}

// remove takes the folder away, the record last: while it is there what it names is still to be undone.
func (f folder) remove() error {
	entries, err := os.ReadDir(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "record.json" {
			if err := os.Remove(f.path(e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := os.Remove(f.path("record.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Remove(string(f))
}
