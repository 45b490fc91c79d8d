package modulehost

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"
	hcljson "github.com/hashicorp/hcl/v2/json"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

func decode(t *testing.T, text string) (map[string]any, hcl.Diagnostics) {
	t.Helper()
	c := parseConfig(t, text)
	doc, _, diags := decodeConfig(c.Config, testSchema(), &c)
	if diags.HasErrors() {
		return nil, diags
	}
	var out map[string]any
	if err := json.Unmarshal(doc, &out); err != nil {
		t.Fatalf("document %s: %v", doc, err)
	}
	return out, diags
}

func TestAConfigBecomesOneDocumentWithDefaults(t *testing.T) {
	got, diags := decode(t, `
policy   = "strict"
ratio    = 0.5
enabled  = true
interval = "1m30s"
cache    = "64MiB"
names    = ["a", "b"]
labels   = { x = "1" }
weights  = [1, 2.5]
extra    = { deep = [1, "two", null] }
limit "nofile" { soft = 1024 }
limit "core" { soft = 0 }
`)
	if diags.HasErrors() {
		t.Fatalf("decode: %v", diags)
	}
	want := map[string]any{
		"policy": "strict", "ratio": 0.5, "count": 3.0, "enabled": true, "interval": 90e9, "cache": float64(64 << 20),
		"names": []any{"a", "b"}, "labels": map[string]any{"x": "1"}, "weights": []any{1.0, 2.5},
		"extra": map[string]any{"deep": []any{1.0, "two", nil}}, "token": nil, "token_file": nil, "old": nil, "store": nil,
		"limit": []any{map[string]any{"resource": "nofile", "soft": 1024.0}, map[string]any{"resource": "core", "soft": 0.0}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("document differs (-want +got):\n%s", diff)
	}
}

func TestTheJSONFormOfAConfigGivesTheSameDocument(t *testing.T) {
	native, diags := decode(t, "policy = \"strict\"\ninterval = \"2s\"\nlimit \"nofile\" { soft = 5 }\nstore { path = \"/x\" }\n")
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	text := `{"policy": "strict", "interval": "2s", "limit": {"nofile": {"soft": 5}}, "store": {"path": "/x"}}`
	f, diags := hcljson.Parse([]byte(text), "site.json")
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	c := testConfig("good")
	c.Config, c.Source = f.Body, []byte(text)
	doc, _, diags := decodeConfig(c.Config, testSchema(), &c)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	var got map[string]any
	if err := json.Unmarshal(doc, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(native, got); diff != "" {
		t.Errorf("JSON differs from HCL (-hcl +json):\n%s", diff)
	}
}

func TestEachWrongAttributeIsToldAtItsPlace(t *testing.T) {
	for _, c := range []struct {
		text string
		line int
		want string
	}{
		{"polcy = \"strict\"", 1, `Did you mean "policy"?`},
		{"\nwholly_unknown = 1", 2, "Known here: policy, ratio"},
		{"\n\npolicy = \"strct\"", 3, `got "strct", want one of "strict", "lenient". Did you mean "strict"?`},
		{"ratio = 1.5", 1, "got 1.5, want 0 to 1."},
		{"ratio = \"half\"", 1, `got "half", want a number.`},
		{"count = 1.5", 1, "want a whole number."},
		{"count = 99999999999999999999", 1, "want a whole number."},
		{"enabled = \"maybe\"", 1, "want true or false."},
		{"interval = 15", 1, `got 15, want a duration such as "15s"`},
		{"interval = \"0s\"", 1, "want at least 1ms."},
		{"cache = \"big\"", 1, "want a size such as"},
		{"cache = -1.5", 1, "want a size such as"},
		{"names = [\"a\", \"B\"]", 1, "want text that matches [a-z]+."},
		{"names = \"a\"", 1, "want a list of texts."},
		{"names = [\"a\", null]", 1, "got null in the list"},
		{"labels = [1]", 1, "want a map of texts."},
		{"weights = [\"x\"]", 1, "want a list of numbers."},
		{"policy = [\"strict\"]", 1, "want text."},
		{"policy = undefined_thing", 1, "ariables not allowed"},
		{"token = \"tok-1\"\ntoken_file = \"/x\"", 2, "token_file may not be set together with token"},
		{"limit \"a\" {}", 1, "soft must be set: Soft limit."},
		{"limit \"a\" { soft = null }", 1, "soft must be set, got null."},
		{"limit { soft = 1 }", 1, "resource"},
		{"limit \"a\" { soft = 1 }\nlimit \"b\" { soft = 1 }\nlimit \"c\" { soft = 1 }", 3, "got 3 limit blocks, want at most 2."},
		{"limit \"a\" { soft = 1 }\nlimit \"a\" { soft = 2 }", 2, `limit "a" is already at`},
		{"limit \"a\" {\n  sft = 1\n  soft = 1\n}", 2, `Did you mean "soft"?`},
		{"store {}\nstore {}", 2, "want at most 1."},
		{"stor {}", 1, `Did you mean "store"?`},
	} {
		_, diags := decode(t, c.text)
		found := false
		for _, d := range diags {
			found = found || d.Subject != nil && d.Subject.Start.Line == c.line && d.Subject.Filename == "site.hcl" &&
				strings.Contains(d.Summary+": "+d.Detail, c.want) && strings.HasPrefix(d.Summary, "isolator(test): ")
		}
		if !diags.HasErrors() || c.want != "ariables not allowed" && !found {
			t.Errorf("decode(%q) = %v, want an error at line %d that says %q", c.text, diags, c.line, c.want)
		}
	}
}

func TestAllThatIsWrongInAConfigIsToldAtOnce(t *testing.T) {
	_, diags := decode(t, "polcy = 1\nratio = 2\ninterval = \"x\"\nlimit \"a\" {}\n")
	if len(diags) != 4 {
		t.Errorf("decode with four mistakes told %d:\n%v", len(diags), diags)
	}
}

func TestDeprecatedAttributesWarn(t *testing.T) {
	_, diags := decode(t, `old = "x"`)
	if diags.HasErrors() || len(diags) != 1 || diags[0].Severity != hcl.DiagWarning || diags[0].Detail != "use policy" {
		t.Errorf("decode of a deprecated attribute = %v, want a warning with what to use", diags)
	}
}

func TestASensitiveValueIsNeverShown(t *testing.T) {
	for _, text := range []string{
		`token = "hunter2"`,
		"token_file = \"/x\"\ntoken = \"hunter2\"",
		`token = ["hunter2"]`,
		`token = "${hunter2}"`,
	} {
		_, diags := decode(t, text)
		if !diags.HasErrors() {
			t.Fatalf("decode(%s): no error", text)
		}
		for _, d := range diags {
			if strings.Contains(d.Detail, "hunter2") && !strings.Contains(text, "${") {
				t.Errorf("decode(%s) = %v, want the value hidden", text, d)
			}
			h, ok := d.Extra.(interface{ HideSource() bool })
			if d.Subject.Start.Line == len(strings.Split(text, "\n")) && (!ok || !h.HideSource()) {
				t.Errorf("decode(%s) = %v, want its line marked as not to be shown", text, d)
			}
		}
	}
}

func TestWhatTheModuleRefusesIsToldAtTheAttribute(t *testing.T) {
	c := parseConfig(t, "\nlimit \"unlucky\" {\n  soft = 13\n}\n")
	_, err := Start(t.Context(), testOptions(t), []ModuleConfig{c})
	var composition *CompositionError
	if !errors.As(err, &composition) {
		t.Fatalf("Start = %v, want a *CompositionError", err)
	}
	d := composition.Diagnostics[0]
	if d.Subject.Start.Line != 3 || d.Summary != "isolator(test) refuses limit[0].soft" || d.Detail != `got 13, want a lucky number Did you mean "7"?` {
		t.Errorf("Start = %s at %s: %s", d.Summary, d.Subject, d.Detail)
	}
}

func TestASchemaThatCannotBeDecodedByIsTheModulesFault(t *testing.T) {
	deep := &modulev1.Schema{}
	for range maxSchemaDepth + 2 {
		deep = &modulev1.Schema{Blocks: []*modulev1.Block{{Name: "b", Body: deep}}}
	}
	attribute := func(a *modulev1.Attribute) *modulev1.Schema {
		return &modulev1.Schema{Attributes: []*modulev1.Attribute{a}}
	}
	text := modulev1.Attribute_STRING
	for name, s := range map[string]*modulev1.Schema{
		"too deep":       deep,
		"no type":        attribute(&modulev1.Attribute{Name: "a"}),
		"unknown type":   attribute(&modulev1.Attribute{Name: "a", Type: 99}),
		"bad name":       attribute(&modulev1.Attribute{Name: "A b", Type: text}),
		"bad default":    attribute(&modulev1.Attribute{Name: "a", Type: text, DefaultJson: "{"}),
		"bad pattern":    attribute(&modulev1.Attribute{Name: "a", Type: text, Pattern: "("}),
		"name twice":     {Attributes: []*modulev1.Attribute{{Name: "a", Type: text}, {Name: "a", Type: text}}},
		"block and name": {Attributes: []*modulev1.Attribute{{Name: "a", Type: text}}, Blocks: []*modulev1.Block{{Name: "a"}}},
	} {
		if err := checkSchema(s, 0); err == nil {
			t.Errorf("checkSchema(%s) = nil, want an error", name)
		}
	}
	if err := checkSchema(testSchema(), 0); err != nil {
		t.Errorf("checkSchema of a right one: %v", err)
	}
}
