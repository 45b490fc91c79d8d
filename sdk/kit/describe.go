package kit

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// Kinds are the kinds of modules with the service of each one's newest contract.
func Kinds() map[string]string {
	return map[string]string{
		"authenticator":      "mosaic.authenticator.v1.Authenticator",
		"authorizer":         "mosaic.authorizer.v1.Authorizer",
		"container_logger":   "mosaic.containerlogger.v1.ContainerLogger",
		"hook":               "mosaic.hook.v1.Hook",
		"isolator":           "mosaic.isolator.v1.Isolator",
		"qos_controller":     "mosaic.qoscontroller.v1.QoSController",
		"resource_estimator": "mosaic.resourceestimator.v1.ResourceEstimator",
		"resource_provider":  "mosaic.resourceprovider.v1.ResourceProvider",
		"secret_resolver":    "mosaic.secretresolver.v1.SecretResolver",
	}
}

// Powers are all that an isolator may declare.
func Powers() []string {
	return []string{
		"arguments", "capabilities", "cgroup", "devices", "environment", "helpers", "hostname", "masked_paths", "mounts",
		"namespaces", "no_new_privileges", "oom_score", "rlimits", "seccomp", "sysctls", "windows_job", "working_directory",
	}
}

// calls are those that a kind may declare.
func calls(kind string) []string {
	switch kind {
	case "isolator":
		return []string{"isolate", "update", "validate", "usage", "status", "watch"}
	case "hook":
		return []string{"decorate_environment", "decorate_labels", "decorate_status", "notify"}
	}
	return []string{"watch"}
}

var (
	namePattern     = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
	platformPattern = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9]+$`)
)

// checkDescription says what is wrong with a description.
func checkDescription(d *modulev1.DescribeResponse) []string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	service, known := Kinds()[d.GetKind()]
	if !known {
		say("kind: got %q, want one of the contract's", d.GetKind())
	} else if !slices.Contains(d.GetServices(), service) {
		say("services: got %q, want %s among them", d.GetServices(), service)
	}
	if !namePattern.MatchString(d.GetName()) {
		say("name: got %q, want lower_snake_case of at most 63 characters", d.GetName())
	}
	if d.GetVersion() == "" {
		say("version: got none, and operators ask for it")
	}
	if d.GetDoc() == "" || strings.Contains(d.GetDoc(), "\n") {
		say("doc: got %q, want one line for people", d.GetDoc())
	}
	for _, p := range d.GetPowers() {
		if !slices.Contains(Powers(), p) {
			say("powers: got %q, want one of the contract's", p)
		}
	}
	for _, c := range d.GetCalls() {
		if known && !slices.Contains(calls(d.GetKind()), c) {
			say("calls: got %q, want one of %s", c, strings.Join(calls(d.GetKind()), ", "))
		}
	}
	for _, p := range d.GetPlatforms() {
		if !platformPattern.MatchString(p) {
			say("platforms: got %q, want GOOS/GOARCH such as linux/amd64", p)
		}
	}
	if slices.Contains(d.GetAfter(), d.GetName()) {
		say("after: it names itself")
	}
	if d.GetMinStateVersion() > d.GetMaxStateVersion() || d.GetMaxStateVersion() > 0 && d.GetMinStateVersion() == 0 {
		say("state versions: got %d to %d, want 1 or more and the oldest first, or both 0", d.GetMinStateVersion(), d.GetMaxStateVersion())
	}
	for what, list := range map[string][]string{"services": d.GetServices(), "calls": d.GetCalls(), "powers": d.GetPowers(), "after": d.GetAfter()} {
		if sorted := slices.Sorted(slices.Values(list)); len(slices.Compact(sorted)) != len(list) {
			say("%s: got %q, want each once", what, list)
		}
	}
	return wrong
}

// maxDepth is how deep blocks may be nested; the host refuses more.
const maxDepth = 8

// checkSchema says what is wrong with a schema.
func checkSchema(s *modulev1.Schema, at string, depth int) []string {
	if depth > maxDepth {
		return []string{fmt.Sprintf("%s: blocks are nested more than %d deep", at, maxDepth)}
	}
	var wrong []string
	names := map[string]bool{}
	take := func(name, what string) {
		if !namePattern.MatchString(name) {
			wrong = append(wrong, fmt.Sprintf("%s%s: got the name %q, want lower_snake_case", at, what, name))
		}
		if names[name] {
			wrong = append(wrong, fmt.Sprintf("%s%s is there twice", at, name))
		}
		names[name] = true
	}
	for _, a := range s.GetAttributes() {
		take(a.GetName(), "attribute")
		for _, w := range checkAttribute(s, a) {
			wrong = append(wrong, fmt.Sprintf("%s%s: %s", at, a.GetName(), w))
		}
	}
	for _, b := range s.GetBlocks() {
		take(b.GetName(), "block")
		if b.GetBody() == nil {
			wrong = append(wrong, fmt.Sprintf("%s%s: got no body", at, b.GetName()))
		}
		if b.GetMaxItems() > 0 && b.GetMinItems() > b.GetMaxItems() {
			wrong = append(wrong, fmt.Sprintf("%s%s: at least %d and at most %d", at, b.GetName(), b.GetMinItems(), b.GetMaxItems()))
		}
		for _, l := range b.GetLabels() {
			for _, a := range b.GetBody().GetAttributes() {
				if a.GetName() == l {
					wrong = append(wrong, fmt.Sprintf("%s%s: %s is a label and an attribute", at, b.GetName(), l))
				}
			}
		}
		wrong = append(wrong, checkSchema(b.GetBody(), at+b.GetName()+".", depth+1)...)
	}
	return wrong
}

func checkAttribute(s *modulev1.Schema, a *modulev1.Attribute) []string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if _, known := modulev1.Attribute_Type_name[int32(a.GetType())]; !known || a.GetType() == modulev1.Attribute_TYPE_UNSPECIFIED {
		say("got type %d, want one of the contract's", a.GetType())
	}
	if a.GetDoc() == "" || strings.Contains(a.GetDoc(), "\n") {
		say("got doc %q, want one line for people", a.GetDoc())
	}
	textual := a.GetType() == modulev1.Attribute_STRING || a.GetType() == modulev1.Attribute_STRING_LIST
	if (len(a.GetOneOf()) > 0 || a.GetPattern() != "") && !textual {
		say("one_of and pattern are for text, the type is %s", a.GetType())
	}
	if a.GetPattern() != "" {
		if _, err := regexp.Compile(`\A(?:` + a.GetPattern() + `)\z`); err != nil {
			say("pattern: %v", err)
		}
	}
	for _, bound := range []*float64{a.Min, a.Max} {
		if bound != nil && math.IsNaN(*bound) {
			say("a bound is no number")
		}
	}
	if a.Min != nil && a.Max != nil && *a.Min > *a.Max {
		say("min %v is above max %v", *a.Min, *a.Max)
	}
	for _, other := range a.GetConflictsWith() {
		if other == a.GetName() || !slices.ContainsFunc(s.GetAttributes(), func(o *modulev1.Attribute) bool { return o.GetName() == other }) {
			say("conflicts_with names %q, which is no other attribute of this body", other)
		}
	}
	if a.GetDefaultJson() != "" {
		if a.GetRequired() {
			say("it is required and has a default")
		}
		wrong = append(wrong, checkDefault(a)...)
	}
	return wrong
}

// checkDefault holds a default against the attribute's own type and constraints.
func checkDefault(a *modulev1.Attribute) []string {
	var v any
	if err := json.Unmarshal([]byte(a.GetDefaultJson()), &v); err != nil {
		return []string{fmt.Sprintf("default_json %q is no JSON", cut(a.GetDefaultJson(), 80))}
	}
	ok := v == nil
	switch a.GetType() {
	case modulev1.Attribute_STRING:
		text, is := v.(string)
		ok = ok || is && (len(a.GetOneOf()) == 0 || text == "" || slices.Contains(a.GetOneOf(), text))
	case modulev1.Attribute_BOOL:
		_, is := v.(bool)
		ok = ok || is
	case modulev1.Attribute_NUMBER, modulev1.Attribute_INTEGER, modulev1.Attribute_DURATION, modulev1.Attribute_SIZE:
		f, is := v.(float64)
		whole := a.GetType() == modulev1.Attribute_NUMBER || f == math.Trunc(f)
		ok = ok || is && whole && (a.Min == nil || f >= *a.Min) && (a.Max == nil || f <= *a.Max)
	case modulev1.Attribute_STRING_LIST, modulev1.Attribute_NUMBER_LIST:
		_, is := v.([]any)
		ok = ok || is
	case modulev1.Attribute_STRING_MAP:
		_, is := v.(map[string]any)
		ok = ok || is
	default:
		ok = true
	}
	if !ok {
		return []string{fmt.Sprintf("default_json %s is no value of the attribute", cut(a.GetDefaultJson(), 80))}
	}
	return nil
}
