package mesosjson

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// The bounds of a decoding, unless options say otherwise.
const (
	// DefaultMaxDepth is how deep objects and lists may nest. The deepest v1 message nests about 15
	// deep; what could go further are chains of container parents, of which Mesos allows 32.
	DefaultMaxDepth = 100
	// DefaultMaxBytes bounds the text. An ACCEPT that launches 10,000 tasks of 3 KiB each passes.
	DefaultMaxBytes = 32 << 20
	// DefaultMaxValues bounds how many values (objects, lists, words, numbers) the text holds, since a
	// message costs some hundred bytes of memory where its text `{}` costs two.
	DefaultMaxValues = 1 << 20
)

// An Error says what is wrong with a text and where.
type Error struct {
	Path   string // as in accept.operations[2].type; empty for the text as a whole
	Offset int    // in bytes, from 0
	Reason string // a clause without a full stop
}

// Error gives path, offset and reason in one line.
func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("%s at byte %d", e.Reason, e.Offset)
	}
	return fmt.Sprintf("%s: %s at byte %d", e.Path, e.Reason, e.Offset)
}

// An Option changes a bound of Unmarshal.
type Option func(*decoder)

// MaxDepth sets how deep objects and lists may nest.
func MaxDepth(n int) Option { return func(d *decoder) { d.maxDepth = n } }

// MaxBytes sets how long the text may be.
func MaxBytes(n int) Option { return func(d *decoder) { d.maxBytes = n } }

// MaxValues sets how many values the text may hold.
func MaxValues(n int) Option { return func(d *decoder) { d.maxValues = n } }

// Unmarshal replaces m with the message that data, one JSON object, describes.
//
// Forgiven, as Mesos does: unknown fields; null for unset; one value where a list is expected; numbers
// and bools as strings; Infinity, -Infinity and NaN, bare or as strings, for floats; base64 of either
// alphabet, padded or not; a field given twice (the last counts); a word that an enum does not know
// (counts as unset). Not forgiven: a number for an enum, a value of another kind, an integer out of
// range or with a fraction, a missing required field, text that is not UTF-8 or not JSON.
//
// Errors are *Error. m is then in an undefined state.
func Unmarshal(data []byte, m proto.Message, opts ...Option) error {
	d := &decoder{maxDepth: DefaultMaxDepth, maxBytes: DefaultMaxBytes, maxValues: DefaultMaxValues}
	for _, o := range opts {
		o(d)
	}
	d.scanner = scanner{data: data}
	if len(data) > d.maxBytes {
		return &Error{Offset: d.maxBytes, Reason: fmt.Sprintf("text of %d bytes is longer than the limit of %d", len(data), d.maxBytes)}
	}
	proto.Reset(m)
	err := d.document(m.ProtoReflect())
	if err != nil {
		return err
	}
	return nil
}

// decoder reads one text. Its methods return a *Error through the error interface, or nil.
type decoder struct {
	scanner
	maxDepth, maxBytes, maxValues int

	depth, values int
	path          []segment // where the scanner is, for errors
}

// A segment is one step of a path: a field or map key, or an index when name is empty.
type segment struct {
	name  string
	index int
}

// pathString spells the path, without its middle when it is long.
func (d *decoder) pathString() string {
	var b strings.Builder
	for i, s := range d.path {
		if i >= maxPathEnd && i < len(d.path)-maxPathEnd {
			if i == maxPathEnd {
				b.WriteString("...")
			}
			continue
		}
		if s.name == "" {
			fmt.Fprintf(&b, "[%d]", s.index)
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		name := s.name
		if len(name) > maxNameInError {
			name = name[:maxNameInError] + "..."
		}
		b.WriteString(strings.ToValidUTF8(name, "\uFFFD"))
	}
	return b.String()
}

// maxPathEnd is how many steps of a long path an error gives from either end.
const maxPathEnd = 10

// maxNameInError bounds how much of a client's text an error repeats.
const maxNameInError = 64

func (d *decoder) errorAt(offset int, format string, args ...any) error {
	return &Error{Path: d.pathString(), Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

func (d *decoder) push(name string, index int) { d.path = append(d.path, segment{name, index}) }
func (d *decoder) pop()                        { d.path = d.path[:len(d.path)-1] }

// enter counts a value and one level of nesting; leave ends the level.
func (d *decoder) enter(offset int) error {
	d.depth++
	if d.depth > d.maxDepth {
		return d.errorAt(offset, "nested deeper than %d levels", d.maxDepth)
	}
	return nil
}

func (d *decoder) leave() { d.depth-- }

// token is scanner.token with the place added to its error and the values counted.
func (d *decoder) token() (token, error) {
	t, reason := d.scan()
	if reason != "" {
		return t, d.errorAt(d.pos, "%s", reason)
	}
	switch t.kind {
	case '}', ']', ',', ':', endOfText:
	default:
		if d.values++; d.values > d.maxValues {
			return t, d.errorAt(t.offset, "more than %d values", d.maxValues)
		}
	}
	return t, nil
}

func (d *decoder) document(m protoreflect.Message) error {
	t, err := d.token()
	if err != nil {
		return err
	}
	if t.kind != '{' {
		return d.errorAt(t.offset, "got %s, want an object", t.describe())
	}
	if err := d.message(m, t.offset); err != nil {
		return err
	}
	t, err = d.token()
	if err != nil {
		return err
	}
	if t.kind != endOfText {
		return d.errorAt(t.offset, "got %s after the end of the object", t.describe())
	}
	return nil
}

// members calls member for each member of the object whose { has been read. member must consume the
// value, whose first token it is given.
func (d *decoder) members(open int, member func(key string, value token) error) error {
	if err := d.enter(open); err != nil {
		return err
	}
	defer d.leave()
	for first := true; ; first = false {
		t, err := d.token()
		if err != nil {
			return err
		}
		if t.kind == '}' && first {
			return nil
		}
		if t.kind != '"' {
			return d.errorAt(t.offset, "got %s, want a member name", t.describe())
		}
		key := t.text
		colon, err := d.token()
		if err != nil {
			return err
		}
		if colon.kind != ':' {
			return d.errorAt(colon.offset, "got %s, want ':' after a member name", colon.describe())
		}
		d.push(key, 0)
		v, err := d.token()
		if err != nil {
			return err
		}
		if err := member(key, v); err != nil {
			return err
		}
		d.pop()
		t, err = d.token()
		if err != nil {
			return err
		}
		switch t.kind {
		case '}':
			return nil
		case ',':
		default:
			return d.errorAt(t.offset, "got %s, want ',' or '}'", t.describe())
		}
	}
}

// elements calls element for each element of the list whose [ has been read.
func (d *decoder) elements(open int, element func(value token) error) error {
	if err := d.enter(open); err != nil {
		return err
	}
	defer d.leave()
	for i := 0; ; i++ {
		d.push("", i)
		t, err := d.token()
		if err != nil {
			return err
		}
		if t.kind == ']' && i == 0 {
			d.pop()
			return nil
		}
		if err := element(t); err != nil {
			return err
		}
		d.pop()
		t, err = d.token()
		if err != nil {
			return err
		}
		switch t.kind {
		case ']':
			return nil
		case ',':
		default:
			return d.errorAt(t.offset, "got %s, want ',' or ']'", t.describe())
		}
	}
}

// skip consumes the value that begins with t.
func (d *decoder) skip(t token) error {
	switch t.kind {
	case '{':
		return d.members(t.offset, func(_ string, v token) error { return d.skip(v) })
	case '[':
		return d.elements(t.offset, d.skip)
	case '"', wordToken, numberToken:
		return nil
	}
	return d.errorAt(t.offset, "got %s, want a value", t.describe())
}

// message reads the members of the object whose { has been read, at offset open, into m.
func (d *decoder) message(m protoreflect.Message, open int) error {
	desc := m.Descriptor()
	fields := desc.Fields()
	err := d.members(open, func(key string, v token) error {
		f := fields.ByName(protoreflect.Name(key))
		if f == nil {
			return d.skip(v)
		}
		// The last of several members of one name counts, alone.
		m.Clear(f)
		if v.isNull() {
			return nil
		}
		switch {
		case f.IsMap():
			return d.mapField(m.Mutable(f).Map(), f, v)
		case f.IsList():
			return d.listField(m.Mutable(f).List(), f, v)
		}
		value, set, err := d.value(f, v, func() protoreflect.Value { return m.NewField(f) })
		if err != nil || !set {
			return err
		}
		m.Set(f, value)
		return nil
	})
	if err != nil {
		return err
	}
	required := desc.RequiredNumbers()
	for i := range required.Len() {
		f := fields.ByNumber(required.Get(i))
		if !m.Has(f) {
			d.push(string(f.Name()), 0)
			return d.errorAt(open, "missing required field")
		}
	}
	return nil
}

func (d *decoder) listField(list protoreflect.List, f protoreflect.FieldDescriptor, v token) error {
	one := func(v token) error {
		if v.isNull() {
			return nil
		}
		value, set, err := d.value(f, v, list.NewElement)
		if err != nil || !set {
			return err
		}
		list.Append(value)
		return nil
	}
	if v.kind == '[' {
		return d.elements(v.offset, one)
	}
	return one(v)
}

func (d *decoder) mapField(m protoreflect.Map, f protoreflect.FieldDescriptor, v token) error {
	if v.kind != '{' {
		return d.errorAt(v.offset, "got %s, want an object", v.describe())
	}
	if f.MapKey().Kind() != protoreflect.StringKind {
		return d.errorAt(v.offset, "maps with keys of kind %v are not supported", f.MapKey().Kind())
	}
	return d.members(v.offset, func(key string, v token) error {
		k := protoreflect.ValueOfString(key).MapKey()
		m.Clear(k)
		if v.isNull() {
			return nil
		}
		value, set, err := d.value(f.MapValue(), v, m.NewValue)
		if err != nil || !set {
			return err
		}
		m.Set(k, value)
		return nil
	})
}

// value reads one value for f, whose first token is v. fresh makes an empty message for f to be read
// into. set is false when the value counts as unset.
func (d *decoder) value(f protoreflect.FieldDescriptor, v token, fresh func() protoreflect.Value) (value protoreflect.Value, set bool, err error) {
	switch f.Kind() {
	case protoreflect.MessageKind:
		if v.kind != '{' {
			return value, false, d.errorAt(v.offset, "got %s, want an object", v.describe())
		}
		value = fresh()
		return value, true, d.message(value.Message(), v.offset)
	case protoreflect.EnumKind:
		if v.kind != '"' {
			return value, false, d.errorAt(v.offset, "got %s, want the name of an enum value", v.describe())
		}
		e := f.Enum().Values().ByName(protoreflect.Name(v.text))
		if e == nil {
			return value, false, nil
		}
		return protoreflect.ValueOfEnum(e.Number()), true, nil
	}
	value, reason := scalar(f.Kind(), v)
	if reason != "" {
		return value, false, d.errorAt(v.offset, "%s", reason)
	}
	return value, true, nil
}

// scalar converts v to a scalar of kind k, or says why not.
func scalar(k protoreflect.Kind, v token) (value protoreflect.Value, reason string) {
	switch k {
	case protoreflect.StringKind:
		if v.kind != '"' {
			return value, fmt.Sprintf("got %s, want a string", v.describe())
		}
		return protoreflect.ValueOfString(v.text), ""
	case protoreflect.BytesKind:
		if v.kind != '"' {
			return value, fmt.Sprintf("got %s, want a base64 string", v.describe())
		}
		raw, ok := decodeBase64(v.text)
		if !ok {
			return value, "string is not base64"
		}
		return protoreflect.ValueOfBytes(raw), ""
	case protoreflect.BoolKind:
		if (v.kind == wordToken || v.kind == '"') && (v.text == "true" || v.text == "false") {
			return protoreflect.ValueOfBool(v.text == "true"), ""
		}
		return value, fmt.Sprintf("got %s, want true or false", v.describe())
	}

	text := v.text
	switch v.kind {
	case numberToken:
	case '"':
		// A number in quotes obeys the grammar of one without.
		if !isNumber(text) && !isFloatWord(text) {
			return value, "string is not a number"
		}
	case wordToken:
		if !isFloatWord(text) {
			return value, fmt.Sprintf("got %s, want a number", v.describe())
		}
	default:
		return value, fmt.Sprintf("got %s, want a number", v.describe())
	}
	switch k {
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		bits := 64
		if k == protoreflect.FloatKind {
			bits = 32
		}
		n, err := strconv.ParseFloat(text, bits)
		if err != nil {
			return value, "number is out of range"
		}
		if bits == 32 {
			return protoreflect.ValueOfFloat32(float32(n)), ""
		}
		return protoreflect.ValueOfFloat64(n), ""
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		n, reason := parseInt(text, 32)
		return protoreflect.ValueOfInt32(int32(n)), reason
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		n, reason := parseInt(text, 64)
		return protoreflect.ValueOfInt64(n), reason
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		n, reason := parseUint(text, 32)
		return protoreflect.ValueOfUint32(uint32(n)), reason
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		n, reason := parseUint(text, 64)
		return protoreflect.ValueOfUint64(n), reason
	}
	return value, fmt.Sprintf("fields of kind %v are not supported", k)
}

func isFloatWord(s string) bool { return s == "Infinity" || s == "-Infinity" || s == "NaN" }

// parseInt and parseUint also take 15.0 and 1e3: clients in languages with one number type write those.
func parseInt(s string, bits int) (int64, string) {
	if n, err := strconv.ParseInt(s, 10, bits); err == nil {
		return n, ""
	}
	f, reason := wholeFloat(s)
	if reason != "" {
		return 0, reason
	}
	// The float limits are exact powers of two, so that the conversions cannot overflow.
	if limit := math.Ldexp(1, bits-1); f < -limit || f >= limit {
		return 0, "integer is out of range"
	}
	return int64(f), ""
}

func parseUint(s string, bits int) (uint64, string) {
	if n, err := strconv.ParseUint(s, 10, bits); err == nil {
		return n, ""
	}
	f, reason := wholeFloat(s)
	if reason != "" {
		return 0, reason
	}
	if f < 0 || f >= math.Ldexp(1, bits) {
		return 0, "integer is out of range"
	}
	return uint64(f), ""
}

func wholeFloat(s string) (float64, string) {
	f, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || math.IsInf(f, 0) || math.IsNaN(f):
		return 0, "integer is out of range"
	case f != math.Trunc(f):
		return 0, "got a fraction, want an integer"
	case !strings.ContainsAny(s, ".eE"):
		// It was spelled as an integer and ParseInt refused it.
		if f != 0 {
			return 0, "integer is out of range"
		}
	}
	return f, ""
}

// decodeBase64 takes either alphabet, with or without padding.
func decodeBase64(s string) ([]byte, bool) {
	s = strings.TrimRight(s, "=")
	e := base64.RawStdEncoding
	if strings.ContainsAny(s, "-_") {
		e = base64.RawURLEncoding
	}
	raw, err := e.DecodeString(s)
	if err != nil {
		return nil, false
	}
	return raw, true
}
