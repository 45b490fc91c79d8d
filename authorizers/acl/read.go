package acl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"

	"github.com/mosaic-cluster/mosaic/sdk/module"
)

// maxFile bounds a file of lists: ten times the largest that makes sense, and well below a message of the contract.
const maxFile = 4 << 20

// wrongName is a list or field that there is none of.
type wrongName struct{ got, want string }

func (e *wrongName) Error() string {
	if e.want == "" {
		return fmt.Sprintf("there is no list %q", e.got)
	}
	return fmt.Sprintf("there is no list %q; is it %q?", e.got, e.want)
}

func blockError(n int, err error) error {
	a := &module.AttributeError{Path: fmt.Sprintf("acl[%d]", n), Message: err.Error()}
	var name *wrongName
	if errors.As(err, &name) {
		a.Message, a.Suggestion = fmt.Sprintf("there is no list %q", name.got), name.want
	}
	return a
}

func fileError(name string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return module.Wrong("file", "%s does not exist", name)
	}
	return module.Wrong("file", "%v", err)
}

// find is the list of a name.
func (p *policy) find(name string) (list, error) {
	if l, ok := p.lists[name]; ok {
		return l, nil
	}
	best, distance := "", 6 // further away it is another word
	for _, candidate := range slices.Sorted(maps.Keys(p.lists)) {
		if d := levenshtein.Distance(name, candidate, nil); d < distance {
			best, distance = candidate, d
		}
	}
	return list{}, &wrongName{name, best}
}

func (p *policy) add(l list, e entry) error {
	if l.object == nothing && !e.objects.any && !e.objects.none {
		return fmt.Errorf("%s has no objects with names: got %s %q, want ANY or NONE", l.name, l.field, e.objects.values)
	}
	for _, v := range e.objects.values {
		if l.object != roles && strings.HasSuffix(v, "/%") {
			return fmt.Errorf("%s: got %q, but only roles have others below them", l.name, v)
		}
	}
	p.entries[l.name] = append(p.entries[l.name], e)
	return nil
}

// words is an entity in the short form: names, or one ANY or NONE.
func words(values []string, unset entity) (entity, error) {
	if len(values) == 0 {
		return unset, nil
	}
	if len(values) == 1 && (values[0] == "ANY" || values[0] == "NONE") {
		return entity{any: values[0] == "ANY", none: values[0] == "NONE"}, nil
	}
	if slices.Contains(values, "ANY") || slices.Contains(values, "NONE") {
		return entity{}, fmt.Errorf("got %q, want ANY or NONE alone, or names", values)
	}
	return entity{values: values}, nil
}

func (p *policy) addBlock(b List) error {
	l, err := p.find(b.Name)
	if err != nil {
		return err
	}
	var e entry
	if e.subjects, err = words(b.Principals, entity{any: true}); err != nil {
		return fmt.Errorf("principals: %w", err)
	}
	if e.objects, err = words(b.Objects, entity{any: true}); err != nil {
		return fmt.Errorf("objects: %w", err)
	}
	return p.add(l, e)
}

// addFile reads a file: JSON as Mesos has it if it begins with a brace, else HCL with the blocks of the module's own
// configuration.
func (p *policy) addFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxFile {
		return fmt.Errorf("%s: more than %d bytes", name, maxFile)
	}
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		if err := p.addJSON(text); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	return p.addHCL(text, name)
}

// document is a file in HCL.
type document struct {
	Permissive *bool  `hcl:"permissive,optional"`
	Lists      []List `hcl:"acl,block"`
}

func (p *policy) addHCL(text []byte, name string) error {
	parsed, diags := hclparse.NewParser().ParseHCL(text, name)
	if diags.HasErrors() {
		return diags
	}
	var d document
	if diags := gohcl.DecodeBody(parsed.Body, nil, &d); diags.HasErrors() {
		return diags
	}
	if d.Permissive != nil {
		p.permissive = *d.Permissive
	}
	for n, b := range d.Lists {
		if err := p.addBlock(b); err != nil {
			return fmt.Errorf("%s: acl %d (%s): %w", name, n+1, b.Name, err)
		}
	}
	return nil
}

// addJSON reads Mesos's ACLs message. Unlike Mesos it takes no list that it does not know: who wrote it believes
// something is forbidden.
func (p *policy) addJSON(text []byte) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return fmt.Errorf("not a JSON object: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if name == "permissive" {
			if err := json.Unmarshal(members[name], &p.permissive); err != nil {
				return fmt.Errorf("permissive: got %.40s, want true or false", members[name])
			}
			continue
		}
		l, err := p.find(name)
		if err != nil {
			return err
		}
		var lists []map[string]json.RawMessage
		if err := json.Unmarshal(members[name], &lists); err != nil {
			return fmt.Errorf("%s: got %.40s, want a list of objects", name, members[name])
		}
		for n, item := range lists {
			if err := p.addItem(l, item); err != nil {
				return fmt.Errorf("%s[%d]: %w", name, n, err)
			}
		}
	}
	return nil
}

func (p *policy) addItem(l list, item map[string]json.RawMessage) error {
	var e entry
	for name, target := range map[string]*entity{"principals": &e.subjects, l.field: &e.objects} {
		text, ok := item[name]
		if !ok {
			return fmt.Errorf("%s is missing", name)
		}
		read, err := jsonEntity(text)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		*target = read
	}
	for name := range item {
		if name != "principals" && name != l.field {
			return fmt.Errorf("got %q, want principals and %s", name, l.field)
		}
	}
	return p.add(l, e)
}

// jsonEntity reads Mesos's Entity: {"type": "ANY"} or {"values": [...]}; values mean nothing beside ANY and NONE.
func jsonEntity(text json.RawMessage) (entity, error) {
	var read struct {
		Type   string   `json:"type"`
		Values []string `json:"values"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&read); err != nil {
		return entity{}, fmt.Errorf("got %.40s, want an object with type and values", text)
	}
	switch read.Type {
	case "ANY":
		return entity{any: true}, nil
	case "NONE":
		return entity{none: true}, nil
	case "", "SOME":
		return entity{values: read.Values}, nil
	}
	return entity{}, fmt.Errorf("type: got %q, want SOME, ANY or NONE", read.Type)
}
