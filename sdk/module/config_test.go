package module_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

type settings struct {
	Name    string            `hcl:"name" doc:"Name." pattern:"[a-z]+"`
	Mode    string            `hcl:"mode,optional" doc:"How." oneof:"strict,lax"`
	Limit   int               `hcl:"limit,optional" doc:"Most." min:"1" max:"10"`
	Grace   time.Duration     `hcl:"grace,optional" doc:"Time." min:"1s"`
	Size    module.Size       `hcl:"size,optional" doc:"Bytes."`
	Share   float64           `hcl:"share,optional" doc:"Part."`
	On      bool              `hcl:"on,optional" doc:"Whether." deprecated:"Use mode."`
	Words   []string          `hcl:"words,optional" doc:"Words." conflicts:"labels"`
	Labels  map[string]string `hcl:"labels,optional" doc:"Labels."`
	Numbers []float64         `hcl:"numbers,optional" doc:"Numbers."`
	Secret  string            `hcl:"secret,optional" doc:"Secret." sensitive:"true"`
	Rules   []rule            `hcl:"rule,block" doc:"Rules."`
	Extra   *rule             `hcl:"extra,block" doc:"One more."`

	private int
}

type rule struct {
	Who  string `hcl:"who,label"`
	What int    `hcl:"what" doc:"What."`
}

func defaults() settings {
	return settings{Mode: "strict", Limit: 3, Grace: 2 * time.Second, Words: []string{"a"}, private: 7}
}

func TestASchemaSaysEverythingTheTagsSay(t *testing.T) {
	s, err := module.NewConfig(defaults(), nil).Schema()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, a := range s.GetAttributes() {
		text := fmt.Sprint(a.GetType(), " ", a.GetDefaultJson())
		for word, on := range map[string]bool{" required": a.GetRequired(), " sensitive": a.GetSensitive(), " deprecated": a.GetDeprecated() != ""} {
			if on {
				text += word
			}
		}
		if a.Min != nil {
			text += fmt.Sprint(" min ", a.GetMin())
		}
		if a.Max != nil {
			text += fmt.Sprint(" max ", a.GetMax())
		}
		for _, list := range [][]string{a.GetOneOf(), a.GetConflictsWith()} {
			if len(list) > 0 {
				text += fmt.Sprint(" ", list)
			}
		}
		got[a.GetName()] = text + a.GetPattern()
		if a.GetDoc() == "" {
			t.Errorf("attribute %s has no doc", a.GetName())
		}
	}
	for name, want := range map[string]string{
		"name": "STRING  required[a-z]+", "mode": `STRING "strict" [strict lax]`, "limit": "INTEGER 3 min 1 max 10", "grace": "DURATION 2000000000 min 1e+09",
		"size": "SIZE ", "share": "NUMBER ", "on": "BOOL  deprecated", "words": `STRING_LIST ["a"] [labels]`, "labels": "STRING_MAP ", "numbers": "NUMBER_LIST ", "secret": "STRING  sensitive",
	} {
		if got[name] != want {
			t.Errorf("attribute %s is %q, want %q", name, got[name], want)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("further attributes %v, want none", got)
	}
	if len(s.GetBlocks()) != 2 || s.Blocks[0].GetMaxItems() != 0 || s.Blocks[1].GetMaxItems() != 1 || len(s.Blocks[0].GetLabels()) != 1 || len(s.Blocks[0].GetBody().GetAttributes()) != 1 {
		t.Errorf("blocks %s, want rule without bound and extra at most once, each with a label and an attribute", protojson.Format(s))
	}
}

func TestATypeWithoutAPlaceInASchemaIsAnError(t *testing.T) {
	if s, err := module.NewConfig(struct {
		C chan int `hcl:"c,optional"`
	}{}, nil).Schema(); err == nil {
		t.Errorf("Schema = %v, want an error", s)
	}
	if s, err := module.NewConfig(struct {
		N int `hcl:"n,optional" min:"few"`
	}{}, nil).Schema(); err == nil {
		t.Errorf("Schema = %v, want an error", s)
	}
}

func TestADocumentReplacesDefaultsAndIsTakenAsAWhole(t *testing.T) {
	c := module.NewConfig(defaults(), nil)
	take, errs := c.Check(`{"name":"x","grace":5000000000,"size":1024,"words":[],"rule":[{"who":"a","what":1},{"who":"b","what":2}],"extra":{"who":"c","what":3},"mode":null}`)
	if len(errs) > 0 {
		t.Fatalf("Check: %v", errs)
	}
	if c.Get().Name != "" {
		t.Error("Check alone changed the configuration")
	}
	take()
	got := c.Get()
	if got.Name != "x" || got.Grace != 5*time.Second || got.Size != 1024 || len(got.Words) != 0 || got.Mode != "strict" || got.Limit != 3 || got.private != 7 ||
		len(got.Rules) != 2 || got.Rules[1] != (rule{"b", 2}) || got.Extra == nil || got.Extra.Who != "c" {
		t.Errorf("configuration %+v, want the document over the defaults", got)
	}
	if take, errs = c.Check(`{"name":"y"}`); len(errs) > 0 {
		t.Fatalf("Check: %v", errs)
	}
	take()
	if again := c.Get(); len(again.Rules) != 0 || again.Grace != 2*time.Second || len(again.Words) != 1 {
		t.Errorf("configuration %+v, want nothing of the one before", again)
	}
}

func TestMistakesAreToldByAttribute(t *testing.T) {
	validate := func(s *settings) error {
		if s.Name == "both" {
			return errors.Join(module.Wrong("name", "one"), fmt.Errorf("wrapped: %w", &module.AttributeError{Path: "limit", Message: "two", Suggestion: "3"}))
		}
		return nil
	}
	for document, want := range map[string]string{ // paths
		`{}`:                         "name",
		`{"name":1}`:                 "name",
		`{"name":"x","grace":"5s"}`:  "grace",
		`{"name":"x","size":-1}`:     "size",
		`{"name":"x","mode":"soft"}`: "mode",
		`{"name":"x","typo":1}`:      "typo",
		`{"name":"x","rule":[{"who":"a","what":1},{"who":"a"}]}`: "rule[1].what",
		`{"name":"x","rule":{"who":"a"}}`:                        "rule",
		`{"name":"x","extra":[]}`:                                "extra",
		`{"name":"both"}`:                                        "name limit",
		`[]`:                                                     "",
		`{"name":"x"`:                                            "",
		`{"name":"x","limit":99999999999999999999}`:              "limit",
		`{"name":"x","rule":` + strings.Repeat("[", 50_000):      "",
		`{"name":"x","extra":{"who":"a","what":1,"constructor":{}}}`:   "extra.constructor",
		`{"name":"x","labels":{"a":1}}`:                                "labels",
		"{\"name\":\"x\",\"mode\":\"strict,lax\"}":                     "mode",
		`{"name":"x","numbers":["1"]}`:                                 "numbers",
		`{"name":"x","words":{"a":"b"},"labels":{},"share":"a third"}`: "share words",
	} {
		_, errs := module.NewConfig(defaults(), validate).Check(document)
		var paths []string
		for _, e := range errs {
			paths = append(paths, e.GetPath())
		}
		if len(errs) == 0 || !sameWords(strings.Join(paths, " "), want) {
			t.Errorf("Check(%.60s) = %v, want errors at %q", document, errs, want)
		}
	}
	_, errs := module.NewConfig(defaults(), validate).Check(`{"name":"both"}`)
	if len(errs) != 2 || errs[1].GetSuggestion() != "3" {
		t.Errorf("Check = %v, want the suggestion too", errs)
	}
}

func TestSensitiveValuesAreNotInMessages(t *testing.T) {
	_, errs := module.NewConfig(defaults(), nil).Check(`{"name":"x","secret":["hunter2"]}`)
	if len(errs) != 1 || errs[0].GetPath() != "secret" || strings.Contains(errs[0].GetMessage(), "hunter2") {
		t.Errorf("Check = %v, want one error at secret without the value", errs)
	}
}

func sameWords(a, b string) bool {
	as, bs := strings.Fields(a), strings.Fields(b)
	if len(as) != len(bs) {
		return false
	}
	for _, w := range as {
		if !strings.Contains(" "+b+" ", " "+w+" ") {
			return false
		}
	}
	return true
}

func FuzzDocumentsNeverPanic(f *testing.F) {
	for _, seed := range []string{`{}`, `{"name":"x","rule":[{}]}`, `{"name":null,"extra":{"what":1e99}}`, "\xff", `{"grace":1.5}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, document string) {
		take, errs := module.NewConfig(defaults(), nil).Check(document)
		if (take == nil) == (len(errs) == 0) {
			t.Errorf("Check(%q): take %v with errors %v, want one of them", document, take != nil, errs)
		}
		for _, e := range errs {
			if _, err := protojson.Marshal((*modulev1.AttributeError)(e)); err != nil {
				t.Errorf("Check(%q): the error cannot be sent: %v", document, err)
			}
		}
	})
}
