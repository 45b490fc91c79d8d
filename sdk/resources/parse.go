package resources

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// maxText bounds what Parse reads. An agent's resources are hundreds of bytes; a megabyte
// leaves room for an agent with thousands of disks in JSON.
const maxText = 1 << 20

// Parse reads resources as flags and files write them, either
//
//	cpus:2;mem:1024;ports(eng):[31000-31999,33000-33999];disks:{a,b}
//
// or a JSON array of Resource messages. What names no role is reserved to defaultRole, and
// to nobody if that is "*" or "". Results are in the post-refinement format, valid, and
// merged where the same resource was named twice; what amounts to nothing is left out.
func Parse(text, defaultRole string) ([]*mesosv1.Resource, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("resources: %d bytes, at most %d are read", len(text), maxText)
	}
	text = strings.TrimSpace(text)
	var (
		rs  []*mesosv1.Resource
		err error
	)
	if strings.HasPrefix(text, "[") {
		rs, err = parseJSON(text, defaultRole)
	} else {
		rs, err = parseSimple(text, defaultRole)
	}
	if err != nil {
		return nil, fmt.Errorf("resources: %w", err)
	}
	kinds := make(map[string]mesosv1.Value_Type)
	for _, r := range rs {
		if err := Validate(r); err != nil {
			return nil, err
		}
		if kind, seen := kinds[r.GetName()]; seen && kind != r.GetType() {
			return nil, fmt.Errorf("resource %q: is both %v and %v", r.GetName(), kind, r.GetType())
		}
		kinds[r.GetName()] = r.GetType()
	}
	return New(rs...).Resources(), nil
}

// MustParse is Parse for tests and for texts that are part of the program. It panics if the
// text is wrong.
func MustParse(text string) Set {
	rs, err := Parse(text, "*")
	if err != nil {
		panic(err)
	}
	return New(rs...)
}

func parseJSON(text, defaultRole string) ([]*mesosv1.Resource, error) {
	var raw []json.RawMessage
	dec := json.NewDecoder(bytes.NewReader([]byte(text)))
	if err := dec.Decode(&raw); err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, errors.New("something follows the JSON array")
	}
	options := protojson.UnmarshalOptions{DiscardUnknown: true}
	out := make([]*mesosv1.Resource, 0, len(raw))
	for i, text := range raw {
		r := &mesosv1.Resource{}
		if err := options.Unmarshal(text, r); err != nil {
			return nil, fmt.Errorf("resource %d: %w", i, err)
		}
		if len(r.Reservations) == 0 && r.Role == nil && defaultRole != "" {
			r.Role = &defaultRole
		}
		out = append(out, r)
	}
	return out, nil
}

func parseSimple(text, defaultRole string) ([]*mesosv1.Resource, error) {
	var out []*mesosv1.Resource
	for _, token := range strings.Split(text, ";") {
		if token = strings.TrimSpace(token); token == "" {
			continue
		}
		name, value, found := strings.Cut(token, ":")
		if !found || strings.Contains(value, ":") {
			return nil, fmt.Errorf("%q: missing or extra ':'", token)
		}
		role := defaultRole
		if i := strings.IndexByte(name, '('); i >= 0 {
			rest := strings.TrimSpace(name[i+1:])
			if !strings.HasSuffix(rest, ")") || strings.ContainsAny(rest[:len(rest)-1], "()") {
				return nil, fmt.Errorf("%q: mismatched parentheses", token)
			}
			if role = strings.TrimSpace(rest[:len(rest)-1]); role == "" {
				return nil, fmt.Errorf("%q: no role within the parentheses", token)
			}
			name = name[:i]
		} else if strings.Contains(name, ")") {
			return nil, fmt.Errorf("%q: mismatched parentheses", token)
		}
		name = strings.TrimSpace(name)
		v, err := parseValue(value)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", token, err)
		}
		if v.GetType() == mesosv1.Value_TEXT {
			return nil, fmt.Errorf("%q: %q is neither a number, nor ranges, nor a set", token, v.GetText().GetValue())
		}
		if v.GetScalar().GetValue() < 0 {
			return nil, fmt.Errorf("%q: is negative", token)
		}
		r := &mesosv1.Resource{
			Name: &name, Type: v.Type,
			Scalar: v.Scalar, Ranges: v.Ranges, Set: v.Set,
		}
		if role != "" {
			r.Role = &role
		}
		out = append(out, r)
	}
	return out, nil
}

// ParseAttributes reads "rack:r1;zone:west;level:10;slots:[1-3]": text, numbers and ranges.
func ParseAttributes(text string) ([]*mesosv1.Attribute, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("attributes: %d bytes, at most %d are read", len(text), maxText)
	}
	var out []*mesosv1.Attribute
	for _, token := range strings.FieldsFunc(text, func(r rune) bool { return r == ';' || r == '\n' }) {
		if token = strings.TrimSpace(token); token == "" {
			continue
		}
		name, value, found := strings.Cut(token, ":")
		if name = strings.TrimSpace(name); !found || name == "" {
			return nil, fmt.Errorf("attribute %q: want NAME:VALUE", token)
		}
		v, err := parseValue(value)
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", token, err)
		}
		if v.GetType() == mesosv1.Value_SET {
			return nil, fmt.Errorf("attribute %q: cannot be a set", token)
		}
		out = append(out, &mesosv1.Attribute{
			Name: &name, Type: v.Type,
			Scalar: v.Scalar, Ranges: v.Ranges, Text: v.Text,
		})
	}
	return out, nil
}

// parseValue tells by its form what a value is: [..] ranges, {..} a set, a number, or text.
func parseValue(text string) (*mesosv1.Value, error) {
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return nil, errors.New("no value")
	case text[0] == '[':
		if text[len(text)-1] != ']' {
			return nil, errors.New("ranges do not end in ']'")
		}
		rs, err := parseRanges(text[1 : len(text)-1])
		if err != nil {
			return nil, err
		}
		return &mesosv1.Value{Type: mesosv1.Value_RANGES.Enum(), Ranges: rs.Value()}, nil
	case text[0] == '{':
		if text[len(text)-1] != '}' {
			return nil, errors.New("set does not end in '}'")
		}
		items := []string{}
		for _, item := range strings.Split(text[1:len(text)-1], ",") {
			if item = strings.TrimSpace(item); item == "" {
				continue
			}
			if strings.ContainsAny(item, "{}[]") {
				return nil, fmt.Errorf("item %q: holds a bracket", item)
			}
			if slices.Contains(items, item) {
				return nil, fmt.Errorf("item %q: twice in the set", item)
			}
			items = append(items, item)
		}
		return &mesosv1.Value{Type: mesosv1.Value_SET.Enum(), Set: &mesosv1.Value_Set{Item: items}}, nil
	case strings.ContainsAny(text, "[]{}"):
		return nil, errors.New("a bracket where none can be")
	}
	if v, err := strconv.ParseFloat(text, 64); err == nil {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, errors.New("is not a finite number")
		}
		return &mesosv1.Value{Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: &v}}, nil
	}
	return &mesosv1.Value{Type: mesosv1.Value_TEXT.Enum(), Text: &mesosv1.Value_Text{Value: &text}}, nil
}

func parseRanges(text string) (Ranges, error) {
	var out []Range
	for _, part := range strings.Split(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		from, to, found := strings.Cut(part, "-")
		if !found {
			return nil, fmt.Errorf("range %q: want BEGIN-END", part)
		}
		begin, err := strconv.ParseUint(strings.TrimSpace(from), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("range %q: %w", part, err)
		}
		end, err := strconv.ParseUint(strings.TrimSpace(to), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("range %q: %w", part, err)
		}
		if begin > end {
			return nil, fmt.Errorf("range %q: ends before it begins", part)
		}
		out = append(out, Range{begin, end})
	}
	return normalise(out), nil
}
