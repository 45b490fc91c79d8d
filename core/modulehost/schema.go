package modulehost

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/dustin/go-humanize"
	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

const (
	// maxSchemaDepth bounds blocks within blocks.
	maxSchemaDepth = 16
	// maxConfig bounds the document that a module is sent.
	maxConfig = 4 << 20
)

// checkSchema refuses a schema that could not be decoded by: the module's fault, told at once and not when an operator
// first uses the attribute.
func checkSchema(s *modulev1.Schema, depth int) error {
	if depth > maxSchemaDepth {
		return fmt.Errorf("schema: blocks are nested more than %d deep", maxSchemaDepth)
	}
	if len(s.GetAttributes())+len(s.GetBlocks()) > maxItems {
		return errors.New("schema is too large")
	}
	names := make(map[string]bool)
	take := func(name string) error {
		if !identifier.MatchString(name) || names[name] {
			return fmt.Errorf("schema: name %q, want one in lower_snake_case that is not taken", cutText(name, 64))
		}
		names[name] = true
		return nil
	}
	for _, a := range s.GetAttributes() {
		if err := take(a.GetName()); err != nil {
			return err
		}
		if _, ok := modulev1.Attribute_Type_name[int32(a.GetType())]; !ok || a.GetType() == modulev1.Attribute_TYPE_UNSPECIFIED {
			return fmt.Errorf("schema: attribute %s has the unknown type %d", a.GetName(), a.GetType())
		}
		if a.GetDefaultJson() != "" && !json.Valid([]byte(a.GetDefaultJson())) {
			return fmt.Errorf("schema: default of %s is not JSON", a.GetName())
		}
		if a.GetPattern() != "" {
			if _, err := wholePattern(a.GetPattern()); err != nil {
				return fmt.Errorf("schema: pattern of %s: %w", a.GetName(), err)
			}
		}
	}
	for _, b := range s.GetBlocks() {
		if err := take(b.GetName()); err != nil {
			return err
		}
		if err := checkSchema(b.GetBody(), depth+1); err != nil {
			return err
		}
	}
	return nil
}

var identifier = regexp.MustCompile(`^[a-z][a-z0-9_]{0,127}$`)

func wholePattern(p string) (*regexp.Regexp, error) { return regexp.Compile(`\A(?:` + p + `)\z`) }

// places says where in the composition an attribute was set, by its path: limits[0].soft.
type places struct {
	byPath    map[string]hcl.Range
	sensitive map[hcl.Range]bool
}

// find gives the place of a path, or of the nearest thing around it, and whether its line may be shown.
func (p places) find(path string) (at hcl.Range, sensitive, ok bool) {
	for {
		if r, ok := p.byPath[path]; ok {
			return r, p.sensitive[r], true
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			r, ok := p.byPath[""]
			return r, false, ok
		}
		path = path[:i]
	}
}

// decodeConfig decodes a config body by a module's schema to one JSON document with the defaults filled in, and says
// where each attribute was set. The diagnostics have everything that is wrong, with place and suggestion; a value of a
// sensitive attribute is in none of them.
func decodeConfig(body hcl.Body, s *modulev1.Schema, cfg *ModuleConfig) ([]byte, places, hcl.Diagnostics) {
	d := &decoder{
		places: places{make(map[string]hcl.Range), make(map[hcl.Range]bool)},
		source: cfg.Source, id: cfg.id(), missing: *cfg.rangeOf("config"),
	}
	if body == nil {
		body = hcl.EmptyBody()
	} else if _, known := cfg.Ranges["config"]; !known {
		d.missing = body.MissingItemRange()
	}
	d.places.byPath[""] = d.missing
	doc := d.body(body, s, "")
	if d.diags.HasErrors() {
		return nil, d.places, d.diags
	}
	out, err := json.Marshal(doc)
	if err == nil && len(out) > maxConfig {
		err = fmt.Errorf("the document has %d bytes, want at most %d", len(out), maxConfig)
	}
	if err != nil {
		d.fail(d.missing, "Configuration cannot be passed on", err.Error())
		return nil, d.places, d.diags
	}
	return out, d.places, d.diags
}

// hidden marks a diagnostic whose line has the value of a sensitive attribute, for those who quote lines.
type hidden struct{}

// HideSource says that the line must not be shown.
func (hidden) HideSource() bool { return true }

type decoder struct {
	places  places
	source  []byte
	id      string
	missing hcl.Range
	diags   hcl.Diagnostics
}

func (d *decoder) fail(at hcl.Range, summary, detail string) {
	d.diags = append(d.diags, &hcl.Diagnostic{
		Severity: hcl.DiagError, Summary: d.id + ": " + summary, Detail: detail, Subject: &at,
	})
}

// failAt is fail for an attribute, whose line is not quoted if it is sensitive.
func (d *decoder) failAt(a *modulev1.Attribute, at hcl.Range, summary, detail string) {
	d.fail(at, summary, detail)
	if a.GetSensitive() {
		d.diags[len(d.diags)-1].Extra = hidden{}
	}
}

func (d *decoder) body(body hcl.Body, s *modulev1.Schema, path string) map[string]any {
	shape := &hcl.BodySchema{}
	var names []string
	for _, a := range s.GetAttributes() {
		shape.Attributes = append(shape.Attributes, hcl.AttributeSchema{Name: a.GetName()})
		names = append(names, a.GetName())
	}
	for _, b := range s.GetBlocks() {
		shape.Blocks = append(shape.Blocks, hcl.BlockHeaderSchema{Type: b.GetName(), LabelNames: b.GetLabels()})
		names = append(names, b.GetName())
	}
	content, diags := body.Content(shape)
	for _, diag := range diags {
		d.diags = append(d.diags, d.suggest(diag, names))
	}
	if content == nil {
		return nil
	}
	doc := make(map[string]any)
	for _, a := range s.GetAttributes() {
		set, ok := content.Attributes[a.GetName()]
		if !ok {
			d.absent(a, body, doc)
			continue
		}
		at := set.Range
		d.places.byPath[join(path, a.GetName())] = at
		if a.GetSensitive() {
			d.places.sensitive[at] = true
		}
		for _, other := range a.GetConflictsWith() {
			// Told once of the pair, at the one that stands later.
			if o, both := content.Attributes[other]; both && (o.Range.Start.Byte < at.Start.Byte) {
				d.failAt(a, at, "Attributes exclude each other",
					fmt.Sprintf("%s may not be set together with %s, set at %s.", a.GetName(), other, o.Range))
			}
		}
		if a.GetDeprecated() != "" {
			d.failAt(a, at, a.GetName()+" is deprecated", a.GetDeprecated())
			d.diags[len(d.diags)-1].Severity = hcl.DiagWarning
		}
		if v, ok := d.attribute(a, set); ok {
			doc[a.GetName()] = v
		}
	}
	for _, b := range s.GetBlocks() {
		d.blocks(b, content.Blocks.OfType(b.GetName()), body, path, doc)
	}
	return doc
}

func (d *decoder) absent(a *modulev1.Attribute, body hcl.Body, doc map[string]any) {
	switch {
	case a.GetRequired():
		at := body.MissingItemRange()
		if at.Filename == "" {
			at = d.missing // there is no config block
		}
		d.fail(at, "Missing attribute", fmt.Sprintf("%s must be set: %s.", a.GetName(), strings.TrimSuffix(a.GetDoc(), ".")))
	case a.GetDefaultJson() != "":
		doc[a.GetName()] = json.RawMessage(a.GetDefaultJson())
	default:
		doc[a.GetName()] = nil
	}
}

func (d *decoder) blocks(b *modulev1.Block, found hcl.Blocks, body hcl.Body, path string, doc map[string]any) {
	at := body.MissingItemRange()
	if at.Filename == "" {
		at = d.missing
	}
	if len(found) > 0 {
		at = found[len(found)-1].DefRange
	}
	if n := uint32(len(found)); n < b.GetMinItems() {
		d.fail(at, "Missing block", fmt.Sprintf("got %d %s blocks, want at least %d.", n, b.GetName(), b.GetMinItems()))
	} else if b.GetMaxItems() > 0 && n > b.GetMaxItems() {
		d.fail(at, "Too many blocks", fmt.Sprintf("got %d %s blocks, want at most %d.", n, b.GetName(), b.GetMaxItems()))
		return
	}
	list := []any{}
	seen := make(map[string]hcl.Range)
	for i, block := range found {
		here := join(path, b.GetName())
		if b.GetMaxItems() != 1 {
			here = fmt.Sprintf("%s[%d]", here, i)
		}
		d.places.byPath[here] = block.DefRange
		if len(block.Labels) > 0 {
			key := strings.Join(block.Labels, "\x00")
			if first, twice := seen[key]; twice {
				d.fail(block.DefRange, "Block twice", fmt.Sprintf("%s %q is already at %s.", b.GetName(), strings.Join(block.Labels, " "), first))
			}
			seen[key] = block.DefRange
		}
		one := d.body(block.Body, b.GetBody(), here)
		for j, label := range b.GetLabels() {
			if one != nil && j < len(block.Labels) {
				one[label] = block.Labels[j]
			}
		}
		list = append(list, one)
	}
	switch {
	case b.GetMaxItems() != 1:
		doc[b.GetName()] = list
	case len(list) == 1:
		doc[b.GetName()] = list[0]
	default:
		doc[b.GetName()] = nil
	}
}

// attribute gives the JSON value of one attribute that is set.
func (d *decoder) attribute(a *modulev1.Attribute, set *hcl.Attribute) (any, bool) {
	v, diags := set.Expr.Value(nil)
	if diags.HasErrors() {
		for _, diag := range diags {
			if a.GetSensitive() {
				diag.Extra = hidden{}
			}
			d.diags = append(d.diags, diag)
		}
		return nil, false
	}
	at := set.Expr.Range()
	if v.IsNull() {
		// As unset; null is how one form of the composition says so.
		if a.GetRequired() {
			d.failAt(a, at, "Missing attribute", a.GetName()+" must be set, got null.")
			return nil, false
		}
		if a.GetDefaultJson() != "" {
			return json.RawMessage(a.GetDefaultJson()), true
		}
		return nil, true
	}
	out, number, err := value(a, v)
	if err != nil {
		text := err.Error()
		if a.GetSensitive() {
			text = "the value is not valid (it is sensitive and not shown), want " + wanted(a)
		}
		d.failAt(a, at, "Wrong value of "+a.GetName(), text+".")
		return nil, false
	}
	if number != nil {
		if a.Min != nil && *number < *a.Min || a.Max != nil && *number > *a.Max {
			d.failAt(a, at, "Wrong value of "+a.GetName(), fmt.Sprintf("%swant %s.", got(a, v), bounds(a)))
			return nil, false
		}
	}
	for _, s := range texts(out) {
		if len(a.GetOneOf()) > 0 && !slices.Contains(a.GetOneOf(), s) {
			text := fmt.Sprintf("%swant one of %s.", got(a, v), quoted(a.GetOneOf()))
			if !a.GetSensitive() {
				text += didYouMean(s, a.GetOneOf())
			}
			d.failAt(a, at, "Wrong value of "+a.GetName(), text)
			return nil, false
		}
		if a.GetPattern() != "" {
			if re, err := wholePattern(a.GetPattern()); err != nil || !re.MatchString(s) {
				d.failAt(a, at, "Wrong value of "+a.GetName(), fmt.Sprintf("%swant text that matches %s.", got(a, v), a.GetPattern()))
				return nil, false
			}
		}
	}
	return out, true
}

// value converts a value to what JSON gets, and gives its number where it has one.
func value(a *modulev1.Attribute, v cty.Value) (out any, number *float64, err error) {
	as := func(want cty.Type) (cty.Value, error) {
		c, err := convert.Convert(v, want)
		if err == nil && !c.IsWhollyKnown() {
			err = errors.New("unknown")
		}
		if err != nil || c.IsNull() {
			return cty.NilVal, fmt.Errorf("got %s, want %s", show(v), wanted(a))
		}
		return c, nil
	}
	switch a.GetType() {
	case modulev1.Attribute_STRING:
		if !v.Type().IsPrimitiveType() {
			return nil, nil, fmt.Errorf("got %s, want text", show(v))
		}
		c, err := as(cty.String)
		if err != nil {
			return nil, nil, err
		}
		return c.AsString(), nil, nil
	case modulev1.Attribute_BOOL:
		c, err := as(cty.Bool)
		if err != nil {
			return nil, nil, err
		}
		return c.True(), nil, nil
	case modulev1.Attribute_NUMBER:
		c, err := as(cty.Number)
		if err != nil {
			return nil, nil, err
		}
		f, _ := c.AsBigFloat().Float64()
		if math.IsInf(f, 0) {
			return nil, nil, fmt.Errorf("got %s, want %s", show(v), wanted(a))
		}
		return f, &f, nil
	case modulev1.Attribute_INTEGER:
		c, err := as(cty.Number)
		if err != nil {
			return nil, nil, err
		}
		return integer(a, v, c)
	case modulev1.Attribute_DURATION:
		return duration(a, v)
	case modulev1.Attribute_SIZE:
		return size(a, v)
	case modulev1.Attribute_STRING_LIST:
		c, err := as(cty.List(cty.String))
		if err != nil {
			return nil, nil, err
		}
		list := []string{}
		for _, e := range c.AsValueSlice() {
			if e.IsNull() {
				return nil, nil, fmt.Errorf("got null in the list, want %s", wanted(a))
			}
			list = append(list, e.AsString())
		}
		return list, nil, nil
	case modulev1.Attribute_NUMBER_LIST:
		c, err := as(cty.List(cty.Number))
		if err != nil {
			return nil, nil, err
		}
		list := []float64{}
		for _, e := range c.AsValueSlice() {
			if e.IsNull() {
				return nil, nil, fmt.Errorf("got null in the list, want %s", wanted(a))
			}
			f, _ := e.AsBigFloat().Float64()
			list = append(list, f)
		}
		return list, nil, nil
	case modulev1.Attribute_STRING_MAP:
		c, err := as(cty.Map(cty.String))
		if err != nil {
			return nil, nil, err
		}
		m := map[string]string{}
		for k, e := range c.AsValueMap() {
			if e.IsNull() {
				return nil, nil, fmt.Errorf("got null for %q, want %s", k, wanted(a))
			}
			m[k] = e.AsString()
		}
		return m, nil, nil
	default: // ANY
		raw, err := ctyjson.Marshal(v, v.Type())
		if err != nil {
			return nil, nil, fmt.Errorf("got a value that JSON cannot hold: %w", err)
		}
		return json.RawMessage(raw), nil, nil
	}
}

func integer(a *modulev1.Attribute, v, n cty.Value) (any, *float64, error) {
	i, accuracy := n.AsBigFloat().Int64()
	if accuracy != 0 {
		return nil, nil, fmt.Errorf("got %s, want %s", show(v), wanted(a))
	}
	f := float64(i)
	return i, &f, nil
}

func duration(a *modulev1.Attribute, v cty.Value) (any, *float64, error) {
	if v.Type() == cty.String {
		if dur, err := time.ParseDuration(v.AsString()); err == nil {
			f := float64(dur)
			return int64(dur), &f, nil
		}
	}
	return nil, nil, fmt.Errorf("got %s, want %s", show(v), wanted(a))
}

// size reads "64MiB" (binary), "64MB" (decimal), or a number of bytes.
func size(a *modulev1.Attribute, v cty.Value) (any, *float64, error) {
	switch v.Type() {
	case cty.Number:
		return integer(a, v, v)
	case cty.String:
		if n, err := humanize.ParseBytes(v.AsString()); err == nil && n <= math.MaxInt64 {
			f := float64(n)
			return int64(n), &f, nil
		}
	}
	return nil, nil, fmt.Errorf("got %s, want %s", show(v), wanted(a))
}

func wanted(a *modulev1.Attribute) string {
	switch a.GetType() {
	case modulev1.Attribute_STRING:
		return "text"
	case modulev1.Attribute_NUMBER:
		return "a number"
	case modulev1.Attribute_INTEGER:
		return "a whole number"
	case modulev1.Attribute_BOOL:
		return "true or false"
	case modulev1.Attribute_DURATION:
		return `a duration such as "15s" or "1m30s"`
	case modulev1.Attribute_SIZE:
		return `a size such as "64MiB", or a number of bytes`
	case modulev1.Attribute_STRING_LIST:
		return "a list of texts"
	case modulev1.Attribute_STRING_MAP:
		return "a map of texts"
	case modulev1.Attribute_NUMBER_LIST:
		return "a list of numbers"
	default:
		return "a value"
	}
}

func show(v cty.Value) string {
	if !v.IsKnown() {
		return "an unknown value"
	}
	switch v.Type() {
	case cty.String:
		return strconv.Quote(cutText(v.AsString(), 80))
	case cty.Number:
		return v.AsBigFloat().Text('g', 17)
	case cty.Bool:
		return strconv.FormatBool(v.True())
	default:
		return "a value of type " + v.Type().FriendlyName()
	}
}

func got(a *modulev1.Attribute, v cty.Value) string {
	if a.GetSensitive() {
		return "the value is sensitive and not shown, "
	}
	return "got " + show(v) + ", "
}

func bounds(a *modulev1.Attribute) string {
	format := func(f float64) string {
		switch a.GetType() {
		case modulev1.Attribute_DURATION:
			return time.Duration(f).String()
		case modulev1.Attribute_SIZE:
			return humanize.IBytes(uint64(max(f, 0)))
		default:
			return strconv.FormatFloat(f, 'g', -1, 64)
		}
	}
	switch {
	case a.Min != nil && a.Max != nil:
		return format(*a.Min) + " to " + format(*a.Max)
	case a.Min != nil:
		return "at least " + format(*a.Min)
	default:
		return "at most " + format(*a.Max)
	}
}

// texts gives the texts that enumerations and patterns are held against.
func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []string:
		return v
	}
	return nil
}

func quoted(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strconv.Quote(s)
	}
	return strings.Join(out, ", ")
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// suggest names what may have been meant in a complaint about an unknown name, where HCL itself has no idea.
func (d *decoder) suggest(diag *hcl.Diagnostic, names []string) *hcl.Diagnostic {
	out := *diag
	out.Summary = d.id + ": " + diag.Summary
	if strings.Contains(diag.Detail, "Did you mean") || diag.Subject == nil || !diag.Subject.CanSliceBytes(d.source) {
		return &out
	}
	if !strings.HasPrefix(diag.Summary, "Unsupported") && !strings.HasPrefix(diag.Summary, "Extraneous") {
		return &out
	}
	word := strings.Trim(string(diag.Subject.SliceBytes(d.source)), `"`)
	if hint := didYouMean(word, names); hint != "" {
		out.Detail += hint
	} else if len(names) > 0 {
		out.Detail += " Known here: " + strings.Join(names, ", ") + "."
	}
	return &out
}

// didYouMean gives " Did you mean ...?" for the nearest of the known words, or nothing when none is near.
func didYouMean(word string, known []string) string {
	best, distance := "", max(2, len(word)/3)+1
	for _, k := range known {
		if n := levenshtein.Distance(word, k, nil); n < distance {
			best, distance = k, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" Did you mean %q?", best)
}
