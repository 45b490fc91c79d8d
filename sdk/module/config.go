package module

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// Size is an amount of bytes; operators write "64MiB".
type Size uint64

// Configurer is what a *Config offers to the server.
type Configurer interface {
	// Schema describes the configuration for the host.
	Schema() (*modulev1.Schema, error)
	// Check reads a document; take makes it the current configuration, and undo the one before. Errors say which
	// attributes are wrong.
	Check(document string) (take func() (undo func()), errs []*modulev1.AttributeError)
}

// AttributeError says that one attribute is wrong. The host shows it with file and line.
type AttributeError struct {
	Path       string // as "limits[0].soft"; empty for the whole
	Message    string // "got X, want Y"
	Suggestion string // optional
}

func (e *AttributeError) Error() string {
	if e.Path == "" {
		return e.Message
	}
	return e.Path + ": " + e.Message
}

// Wrong returns an AttributeError.
func Wrong(path, format string, args ...any) error {
	return &AttributeError{Path: path, Message: fmt.Sprintf(format, args...)}
}

// Config holds a module's configuration of type T, a struct:
//
//	type Settings struct {
//		Limit   int               `hcl:"limit,optional" doc:"Most open files." min:"1"`
//		Grace   time.Duration     `hcl:"grace,optional" doc:"Time to end."`
//		Mode    string            `hcl:"mode,optional" doc:"How." oneof:"strict,lax"`
//		Rules   []Rule            `hcl:"rule,block" doc:"What applies to whom."`
//	}
//
// Attributes are bool, string, integers, float64, time.Duration, Size, []string, []float64 and map[string]string; blocks
// are structs, pointers to structs (at most one) or slices of structs; a field tagged `hcl:"name,label"` takes the
// block's label. Further tags: pattern, min, max, sensitive:"true", deprecated, conflicts.
type Config[T any] struct {
	defaults T
	validate func(*T) error
	current  atomic.Pointer[T]
}

// NewConfig returns a configuration with its defaults. validate, if not nil, checks what a schema cannot say; its
// errors are AttributeErrors, several joined with errors.Join.
func NewConfig[T any](defaults T, validate func(*T) error) *Config[T] {
	c := &Config[T]{defaults: defaults, validate: validate}
	c.current.Store(&defaults)
	return c
}

// Get returns the current configuration. A call uses one value throughout, since a reload replaces it as a whole.
func (c *Config[T]) Get() *T { return c.current.Load() }

// Schema derives the schema from T's tags and the defaults.
func (c *Config[T]) Schema() (*modulev1.Schema, error) {
	return schemaOf(reflect.ValueOf(c.defaults))
}

// Check reads and validates a document.
func (c *Config[T]) Check(document string) (func() func(), []*modulev1.AttributeError) {
	v := c.defaults
	if strings.TrimSpace(document) == "" {
		document = "{}"
	}
	var errs []error
	decodeBody(json.RawMessage(document), reflect.ValueOf(&v).Elem(), "", &errs)
	if len(errs) == 0 && c.validate != nil {
		if err := c.validate(&v); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return nil, attributeErrors(errors.Join(errs...))
	}
	return func() func() {
		before := c.current.Swap(&v)
		return func() { c.current.Store(before) }
	}, nil
}

// attributeErrors flattens joined errors. An error of another kind concerns the whole body, if any is an AttributeError.
func attributeErrors(err error) []*modulev1.AttributeError {
	var list []*modulev1.AttributeError
	var walk func(error)
	walk = func(err error) {
		var joined interface{ Unwrap() []error }
		if errors.As(err, &joined) {
			for _, e := range joined.Unwrap() {
				walk(e)
			}
			return
		}
		var a *AttributeError
		if err == nil {
			return
		}
		if !errors.As(err, &a) {
			a = &AttributeError{Message: err.Error()}
		}
		// A message may quote a document with anything in it, and only valid text can be sent.
		valid := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
		list = append(list, &modulev1.AttributeError{Path: valid(a.Path), Message: valid(a.Message), Suggestion: valid(a.Suggestion)})
	}
	walk(err)
	return list
}

// field is one tagged field of a configuration struct.
type field struct {
	name, kind string // kind is "", optional, block or label
	tag        reflect.StructTag
	index      int
}

func fieldsOf(t reflect.Type) []field {
	var list []field
	for i := range t.NumField() {
		tag, ok := t.Field(i).Tag.Lookup("hcl")
		if !ok {
			continue
		}
		name, kind, _ := strings.Cut(tag, ",")
		list = append(list, field{name, kind, t.Field(i).Tag, i})
	}
	return list
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	sizeType     = reflect.TypeFor[Size]()
)

// attributeType is the schema's type for a Go type, or TYPE_UNSPECIFIED.
func attributeType(t reflect.Type) modulev1.Attribute_Type {
	switch {
	case t == durationType:
		return modulev1.Attribute_DURATION
	case t == sizeType:
		return modulev1.Attribute_SIZE
	}
	switch t.Kind() {
	case reflect.String:
		return modulev1.Attribute_STRING
	case reflect.Bool:
		return modulev1.Attribute_BOOL
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64, reflect.Uint:
		return modulev1.Attribute_INTEGER
	case reflect.Float64:
		return modulev1.Attribute_NUMBER
	case reflect.Slice:
		switch t.Elem().Kind() {
		case reflect.String:
			return modulev1.Attribute_STRING_LIST
		case reflect.Float64:
			return modulev1.Attribute_NUMBER_LIST
		}
	case reflect.Map:
		if t.Key().Kind() == reflect.String && t.Elem().Kind() == reflect.String {
			return modulev1.Attribute_STRING_MAP
		}
	}
	return modulev1.Attribute_TYPE_UNSPECIFIED
}

func schemaOf(v reflect.Value) (*modulev1.Schema, error) {
	s := &modulev1.Schema{}
	for _, f := range fieldsOf(v.Type()) {
		fv := v.Field(f.index)
		switch f.kind {
		case "label":
		case "block":
			b, err := blockOf(f, fv.Type())
			if err != nil {
				return nil, err
			}
			s.Blocks = append(s.Blocks, b)
		case "", "optional":
			a, err := attributeOf(f, fv)
			if err != nil {
				return nil, err
			}
			s.Attributes = append(s.Attributes, a)
		default:
			return nil, fmt.Errorf("field %s: unknown tag %q", f.name, f.kind)
		}
	}
	return s, nil
}

func attributeOf(f field, v reflect.Value) (*modulev1.Attribute, error) {
	a := &modulev1.Attribute{
		Name: f.name, Type: attributeType(v.Type()), Required: f.kind == "", Doc: f.tag.Get("doc"), Pattern: f.tag.Get("pattern"),
		Sensitive: f.tag.Get("sensitive") == "true", Deprecated: f.tag.Get("deprecated"),
	}
	if a.Type == modulev1.Attribute_TYPE_UNSPECIFIED {
		return nil, fmt.Errorf("attribute %s: type %s has no place in a schema", f.name, v.Type())
	}
	if s := f.tag.Get("oneof"); s != "" {
		a.OneOf = strings.Split(s, ",")
	}
	if s := f.tag.Get("conflicts"); s != "" {
		a.ConflictsWith = strings.Split(s, ",")
	}
	for tag, bound := range map[string]**float64{"min": &a.Min, "max": &a.Max} {
		text := f.tag.Get(tag)
		if text == "" {
			continue
		}
		n, err := bound64(text, v.Type())
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %s: %w", f.name, tag, err)
		}
		*bound = &n
	}
	if f.kind == "optional" && !v.IsZero() {
		data, err := json.Marshal(v.Interface())
		if err != nil {
			return nil, fmt.Errorf("attribute %s: default: %w", f.name, err)
		}
		a.DefaultJson = string(data)
	}
	return a, nil
}

// bound64 reads a bound in the unit of the document: nanoseconds for durations.
func bound64(text string, t reflect.Type) (float64, error) {
	if t == durationType {
		d, err := time.ParseDuration(text)
		return float64(d), err
	}
	return strconv.ParseFloat(text, 64)
}

func blockOf(f field, t reflect.Type) (*modulev1.Block, error) {
	b := &modulev1.Block{Name: f.name, Doc: f.tag.Get("doc")}
	switch t.Kind() {
	case reflect.Slice:
		t = t.Elem()
	case reflect.Pointer:
		b.MaxItems = 1
		t = t.Elem()
	default:
		b.MinItems, b.MaxItems = 1, 1
	}
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("block %s: got %s, want a struct", f.name, t)
	}
	for _, inner := range fieldsOf(t) {
		if inner.kind == "label" {
			b.Labels = append(b.Labels, inner.name)
		}
	}
	body, err := schemaOf(reflect.New(t).Elem())
	if err != nil {
		return nil, fmt.Errorf("block %s: %w", f.name, err)
	}
	b.Body = body
	return b, nil
}

// decodeBody reads one JSON object into a struct. The host has checked it against the schema; a module that is
// configured by something else must not crash for it.
func decodeBody(data json.RawMessage, v reflect.Value, path string, errs *[]error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		*errs = append(*errs, Wrong(path, "got %.40s, want an object", data))
		return
	}
	known := map[string]bool{}
	for _, f := range fieldsOf(v.Type()) {
		known[f.name] = true
		value, ok := members[f.name]
		if !ok || bytes.Equal(value, []byte("null")) {
			if f.kind == "" {
				*errs = append(*errs, Wrong(join(path, f.name), "missing, and it is required"))
			}
			continue
		}
		if f.kind == "block" {
			decodeBlock(value, v.Field(f.index), join(path, f.name), errs)
			continue
		}
		target := reflect.New(v.Field(f.index).Type())
		if err := json.Unmarshal(value, target.Interface()); err != nil {
			got := fmt.Sprintf("%.40s", value)
			if f.tag.Get("sensitive") == "true" {
				got = "something else"
			}
			*errs = append(*errs, Wrong(join(path, f.name), "got %s, want %s", got, words(v.Field(f.index).Type())))
			continue
		}
		v.Field(f.index).Set(target.Elem())
		if one := f.tag.Get("oneof"); one != "" && target.Elem().Kind() == reflect.String {
			if !slices.Contains(strings.Split(one, ","), target.Elem().String()) {
				*errs = append(*errs, Wrong(join(path, f.name), "got %q, want one of %s", target.Elem().String(), one))
			}
		}
	}
	for name := range members {
		if !known[name] {
			*errs = append(*errs, Wrong(join(path, name), "no such attribute"))
		}
	}
}

func decodeBlock(data json.RawMessage, v reflect.Value, path string, errs *[]error) {
	switch v.Kind() {
	case reflect.Slice:
		var items []json.RawMessage
		if err := json.Unmarshal(data, &items); err != nil {
			*errs = append(*errs, Wrong(path, "got %.40s, want a list of blocks", data))
			return
		}
		list := reflect.MakeSlice(v.Type(), len(items), len(items))
		for i, item := range items {
			decodeBody(item, list.Index(i), fmt.Sprintf("%s[%d]", path, i), errs)
		}
		v.Set(list)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		decodeBody(data, v.Elem(), path, errs)
	default:
		decodeBody(data, v, path, errs)
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// words says what a type looks like in a configuration.
func words(t reflect.Type) string {
	return strings.ToLower(strings.ReplaceAll(attributeType(t).String(), "_", " "))
}
