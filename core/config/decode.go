package config

import (
	"fmt"
	"math"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// decoder collects all that is wrong.
type decoder struct {
	files map[string][]byte
	diags hcl.Diagnostics
}

func (d *decoder) fail(at hcl.Range, summary, detail string) {
	d.diags = append(d.diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: summary, Detail: detail, Subject: &at})
}

func (d *decoder) twice(at hcl.Range, what string, first hcl.Range) {
	d.fail(at, "Set twice", fmt.Sprintf("%s is already set at %s:%d:%d.", what, first.Filename, first.Start.Line, first.Start.Column))
}

// content splits a body by a schema, with a suggestion in each complaint about a name.
func (d *decoder) content(body hcl.Body, schema *hcl.BodySchema) *hcl.BodyContent {
	content, diags := body.Content(schema)
	var names []string
	for _, a := range schema.Attributes {
		names = append(names, a.Name)
	}
	for _, b := range schema.Blocks {
		names = append(names, b.Type)
	}
	for _, diag := range diags {
		d.diags = append(d.diags, suggest(diag, names, d.files))
	}
	return content
}

// body decodes a body of attributes into a struct, whose fields say in their tags what they take: name, oneof (comma
// separated), min, max, and form (address, path).
func (d *decoder) body(into any, body hcl.Body) {
	schema := &hcl.BodySchema{}
	t := reflect.TypeOf(into).Elem()
	for i := range t.NumField() {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: t.Field(i).Tag.Get("name")})
	}
	if content := d.content(body, schema); content != nil {
		d.attributes(into, content.Attributes)
	}
}

func (d *decoder) attributes(into any, attributes hcl.Attributes) {
	v := reflect.ValueOf(into).Elem()
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		a, ok := attributes[tag.Get("name")]
		if !ok {
			continue
		}
		value, diags := a.Expr.Value(nil)
		if diags.HasErrors() {
			d.diags = append(d.diags, diags...)
			continue
		}
		if value.IsNull() {
			continue // as unset
		}
		if err := assign(v.Field(i), value, tag); err != nil {
			d.fail(a.Expr.Range(), "Wrong value of "+a.Name, sentence(err))
		}
	}
}

// assign converts a value to the type of a field and checks it. A field that points to its value tells what was not said
// from what is zero.
func assign(field reflect.Value, v cty.Value, tag reflect.StructTag) error {
	if field.Kind() == reflect.Pointer {
		to := reflect.New(field.Type().Elem())
		if err := assign(to.Elem(), v, tag); err != nil {
			return err
		}
		field.Set(to)
		return nil
	}
	switch into := field.Addr().Interface().(type) {
	case *time.Duration:
		d, err := checkDuration(v, tag)
		if err != nil {
			return err
		}
		*into = d
	case *Bytes:
		n, err := toBytes(v)
		if err != nil {
			return err
		}
		*into = n
	case *string:
		s, err := toText(v)
		if err != nil {
			return err
		}
		if err := checkText(s, tag); err != nil {
			return err
		}
		*into = s
	case *[]string:
		list, err := toTexts(v)
		if err != nil {
			return err
		}
		for _, s := range list {
			if err := checkText(s, tag); err != nil {
				return err
			}
		}
		*into = list
	case *map[string]string:
		m, err := toMap(v)
		if err != nil {
			return err
		}
		*into = m
	case *map[string][]string:
		if t := v.Type(); !t.IsObjectType() && !t.IsMapType() || !v.IsWhollyKnown() {
			return fmt.Errorf("got %s, want a map of lists of texts", show(v))
		}
		m := make(map[string][]string)
		for k, e := range v.AsValueMap() {
			list, err := toTexts(e)
			if err != nil {
				return fmt.Errorf("%s: %w", k, err)
			}
			m[k] = list
		}
		*into = m
	case *bool:
		b, err := toBool(v)
		if err != nil {
			return err
		}
		*into = b
	case *int:
		n, err := toWhole(v)
		if err != nil {
			return err
		}
		if f := float64(n); f < numberBound(tag, "min", math.Inf(-1)) || f > numberBound(tag, "max", math.Inf(1)) {
			return outside(show(v), tag)
		}
		*into = int(n)
	case *float64:
		c, err := as(v, cty.Number, "a number")
		if err != nil {
			return err
		}
		f, _ := c.AsBigFloat().Float64()
		if f < numberBound(tag, "min", -math.MaxFloat64) || f > numberBound(tag, "max", math.MaxFloat64) {
			return outside(show(v), tag)
		}
		*into = f
	default:
		panic(fmt.Sprintf("settings have a field of type %s", field.Type()))
	}
	return nil
}

func as(v cty.Value, t cty.Type, want string) (cty.Value, error) {
	c, err := convert.Convert(v, t)
	if err != nil || c.IsNull() || !c.IsWhollyKnown() {
		return cty.NilVal, fmt.Errorf("got %s, want %s", show(v), want)
	}
	return c, nil
}

func toText(v cty.Value) (string, error) {
	if !v.Type().IsPrimitiveType() {
		return "", fmt.Errorf("got %s, want text", show(v))
	}
	c, err := as(v, cty.String, "text")
	if err != nil {
		return "", err
	}
	return c.AsString(), nil
}

// toTexts takes a list, or a lone text as a list of one.
func toTexts(v cty.Value) ([]string, error) {
	if v.Type() == cty.String {
		return []string{v.AsString()}, nil
	}
	c, err := as(v, cty.List(cty.String), "a list of texts")
	if err != nil {
		return nil, err
	}
	list := []string{}
	for _, e := range c.AsValueSlice() {
		if e.IsNull() {
			return nil, fmt.Errorf("got null in the list, want a list of texts")
		}
		list = append(list, e.AsString())
	}
	return list, nil
}

func toMap(v cty.Value) (map[string]string, error) {
	c, err := as(v, cty.Map(cty.String), "a map of texts")
	if err != nil {
		return nil, err
	}
	m := make(map[string]string)
	for k, e := range c.AsValueMap() {
		if e.IsNull() {
			return nil, fmt.Errorf("got null for %q, want a map of texts", k)
		}
		m[k] = e.AsString()
	}
	return m, nil
}

func toBool(v cty.Value) (bool, error) {
	c, err := as(v, cty.Bool, "true or false")
	if err != nil {
		return false, err
	}
	return c.True(), nil
}

func toWhole(v cty.Value) (int64, error) {
	c, err := as(v, cty.Number, "a whole number")
	if err != nil {
		return 0, err
	}
	n, accuracy := c.AsBigFloat().Int64()
	if accuracy != 0 {
		return 0, fmt.Errorf("got %s, want a whole number", show(v))
	}
	return n, nil
}

func toDuration(v cty.Value) (time.Duration, error) {
	if v.Type() == cty.String {
		if dur, err := time.ParseDuration(v.AsString()); err == nil {
			return dur, nil
		}
	}
	return 0, fmt.Errorf(`got %s, want a duration such as "15s" or "1m30s"`, show(v))
}

// toBytes takes "64MiB" (binary), "64MB" (decimal), or a number of bytes.
func toBytes(v cty.Value) (Bytes, error) {
	switch v.Type() {
	case cty.String:
		if n, err := humanize.ParseBytes(v.AsString()); err == nil && n <= math.MaxInt64 {
			return Bytes(n), nil
		}
	case cty.Number:
		if n, err := toWhole(v); err == nil && n >= 0 {
			return Bytes(n), nil
		}
	}
	return 0, fmt.Errorf(`got %s, want a size such as "64MiB", or a number of bytes`, show(v))
}

func checkText(s string, tag reflect.StructTag) error {
	if list := tag.Get("oneof"); list != "" {
		known := strings.Split(list, ",")
		if !slices.Contains(known, s) {
			return fmt.Errorf("got %q, want one of %s.%s", s, strings.Join(known, ", "), didYouMean(s, known))
		}
	}
	switch tag.Get("form") {
	case "address":
		host, port, err := net.SplitHostPort(s)
		if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || host == "" && n == 0 {
			return fmt.Errorf("got %q, want HOST:PORT", s)
		}
	case "path":
		if !filepath.IsAbs(s) {
			return fmt.Errorf("got %q, want an absolute path", s)
		}
	}
	return nil
}

// checkDuration is toDuration within the bounds of a tag.
func checkDuration(v cty.Value, tag reflect.StructTag) (time.Duration, error) {
	d, err := toDuration(v)
	if err != nil {
		return 0, err
	}
	low, high := durationBound(tag, "min", math.MinInt64), durationBound(tag, "max", math.MaxInt64)
	if d < low || d > high {
		return 0, outside(show(v), tag)
	}
	return d, nil
}

func durationBound(tag reflect.StructTag, key string, none time.Duration) time.Duration {
	text, ok := tag.Lookup(key)
	if !ok {
		return none
	}
	dur, err := time.ParseDuration(text)
	if err != nil {
		panic(fmt.Sprintf("settings have the bound %s %q", key, text))
	}
	return dur
}

func numberBound(tag reflect.StructTag, key string, none float64) float64 {
	text, ok := tag.Lookup(key)
	if !ok {
		return none
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		panic(fmt.Sprintf("settings have the bound %s %q", key, text))
	}
	return f
}

func outside(got string, tag reflect.StructTag) error {
	low, hasLow := tag.Lookup("min")
	high, hasHigh := tag.Lookup("max")
	switch {
	case hasLow && hasHigh:
		return fmt.Errorf("got %s, want %s to %s", got, low, high)
	case hasLow:
		return fmt.Errorf("got %s, want at least %s", got, low)
	default:
		return fmt.Errorf("got %s, want at most %s", got, high)
	}
}

func show(v cty.Value) string {
	if !v.IsKnown() || v.IsNull() {
		return "no value"
	}
	switch v.Type() {
	case cty.String:
		s := v.AsString()
		if len(s) > 80 {
			s = s[:80] + "..."
		}
		return strconv.Quote(s)
	case cty.Number:
		return v.AsBigFloat().Text('g', 17)
	case cty.Bool:
		return strconv.FormatBool(v.True())
	default:
		return "a value of type " + v.Type().FriendlyName()
	}
}

// sentence makes an error one for the operator.
func sentence(err error) string {
	s := err.Error()
	s = strings.ToUpper(s[:1]) + s[1:]
	if strings.HasSuffix(s, "?") {
		return s
	}
	return s + "."
}

// text makes a value of a text, to be shown.
func text(s string) cty.Value { return cty.StringVal(s) }

// fieldNames gives the names of the attributes of a settings struct.
func fieldNames(settings any) []string {
	t := reflect.TypeOf(settings)
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("name")
	}
	return names
}
