package kit

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// Document gives a configuration document for a schema: the defaults, and for what must be set a value that the schema
// allows. A module may refuse it all the same, since a schema cannot say everything.
func Document(s *modulev1.Schema) string { return encode(document(s)) }

func encode(doc map[string]any) string {
	data, err := json.Marshal(doc)
	if err != nil {
		return "{}" // nothing in a document of ours fails to encode but a default that is no JSON, which its own case tells
	}
	return string(data)
}

func document(s *modulev1.Schema) map[string]any {
	doc := map[string]any{}
	for _, a := range s.GetAttributes() {
		switch {
		case a.GetRequired():
			doc[a.GetName()] = plausible(a)
		case a.GetDefaultJson() != "" && json.Valid([]byte(a.GetDefaultJson())):
			doc[a.GetName()] = json.RawMessage(a.GetDefaultJson())
		default:
			doc[a.GetName()] = nil
		}
	}
	for _, b := range s.GetBlocks() {
		switch {
		case b.GetMaxItems() == 1 && b.GetMinItems() == 0:
			doc[b.GetName()] = nil
		case b.GetMaxItems() == 1:
			doc[b.GetName()] = blockDocument(b)
		default:
			list := []any{}
			for range b.GetMinItems() {
				list = append(list, blockDocument(b))
			}
			doc[b.GetName()] = list
		}
	}
	return doc
}

func blockDocument(b *modulev1.Block) map[string]any {
	doc := document(b.GetBody())
	for _, l := range b.GetLabels() {
		doc[l] = "sample"
	}
	return doc
}

// plausible is a value that the attribute's type and bounds allow.
func plausible(a *modulev1.Attribute) any {
	number := func(otherwise float64) float64 {
		v := otherwise
		if a.Min != nil {
			v = max(v, math.Ceil(a.GetMin()))
		}
		if a.Max != nil {
			v = min(v, math.Floor(a.GetMax()))
		}
		return v
	}
	switch a.GetType() {
	case modulev1.Attribute_STRING:
		if len(a.GetOneOf()) > 0 {
			return a.GetOneOf()[0]
		}
		return "sample"
	case modulev1.Attribute_NUMBER:
		return number(1)
	case modulev1.Attribute_INTEGER:
		return int64(number(1))
	case modulev1.Attribute_BOOL:
		return false
	case modulev1.Attribute_DURATION:
		return int64(number(float64(time.Second)))
	case modulev1.Attribute_SIZE:
		return int64(number(1 << 20))
	case modulev1.Attribute_STRING_LIST:
		if len(a.GetOneOf()) > 0 {
			return a.GetOneOf()[:1]
		}
		return []string{}
	case modulev1.Attribute_STRING_MAP:
		return map[string]string{}
	case modulev1.Attribute_NUMBER_LIST:
		return []float64{}
	default:
		return "sample"
	}
}

// mistake is a document with one thing wrong.
type mistake struct {
	path string // where
	what string
	doc  string
}

// mistakes gives, for each attribute of a schema, documents in which it has a value of another type, or one that is
// not among those listed.
func mistakes(s *modulev1.Schema) []mistake {
	return mistakesIn(s, "", func(doc map[string]any) map[string]any { return doc })
}

// mistakesIn gives those of one body; around puts the body into a whole document.
func mistakesIn(s *modulev1.Schema, path string, around func(map[string]any) map[string]any) []mistake {
	var list []mistake
	add := func(a *modulev1.Attribute, what string, value any) {
		doc := document(s)
		doc[a.GetName()] = value
		list = append(list, mistake{joined(path, a.GetName()), what, encode(around(doc))})
	}
	for _, a := range s.GetAttributes() {
		switch a.GetType() {
		case modulev1.Attribute_STRING:
			add(a, "a number for text", 5)
			if len(a.GetOneOf()) > 0 {
				add(a, "text that is not in its list", "none of these")
			}
		case modulev1.Attribute_BOOL:
			add(a, "text for a bool", "maybe")
		case modulev1.Attribute_INTEGER, modulev1.Attribute_DURATION, modulev1.Attribute_SIZE:
			add(a, "text for a number", "plenty")
			add(a, "a fraction for a whole number", 1.5)
		case modulev1.Attribute_NUMBER:
			add(a, "text for a number", "plenty")
		case modulev1.Attribute_STRING_LIST, modulev1.Attribute_NUMBER_LIST:
			add(a, "an object for a list", map[string]any{"a": true})
		case modulev1.Attribute_STRING_MAP:
			add(a, "a list for a map", []any{1})
		}
		if a.GetRequired() {
			add(a, "nothing, though it must be set", nil)
		}
	}
	for _, b := range s.GetBlocks() {
		here := joined(path, b.GetName())
		if b.GetMaxItems() != 1 {
			here += "[0]"
		}
		list = append(list, mistakesIn(b.GetBody(), here, func(body map[string]any) map[string]any {
			for _, l := range b.GetLabels() {
				body[l] = "sample"
			}
			doc := document(s)
			doc[b.GetName()] = body
			if b.GetMaxItems() != 1 {
				doc[b.GetName()] = []any{body}
			}
			return around(doc)
		})...)
	}
	return list
}

// flips gives documents that differ from the first in one bool each: configurations that a module probably takes.
func flips(s *modulev1.Schema, first string) []string {
	var list []string
	for _, a := range s.GetAttributes() {
		if a.GetType() != modulev1.Attribute_BOOL {
			continue
		}
		doc := map[string]any{}
		if json.Unmarshal([]byte(first), &doc) != nil {
			return nil
		}
		was, _ := doc[a.GetName()].(bool)
		doc[a.GetName()] = !was
		list = append(list, encode(doc))
	}
	return list
}

func joined(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// covers says whether an error's path tells of a place: the place itself or something in it.
func covers(told, place string) bool {
	rest, ok := strings.CutPrefix(told, place)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

func paths(errs []*modulev1.AttributeError) string {
	if len(errs) == 0 {
		return "no error"
	}
	var list []string
	for _, e := range errs {
		list = append(list, fmt.Sprintf("%q (%s)", cut(e.GetPath(), 80), cut(e.GetMessage(), 80)))
	}
	return strings.Join(list, ", ")
}
