package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/mosaic-cluster/mosaic/core/agent"
	"github.com/mosaic-cluster/mosaic/core/modulehost"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// gpus is the one resource that nobody may have without an isolator that guards it: whoever is told to have one GPU would
// have all of the machine's.
const gpus = "gpus"

// foundPatience is how long an agent that will not start waits for the reason why a machine has not what it should have.
const foundPatience = time.Second

// offeredResources is withFound for the isolators of a host.
func offeredResources(ctx context.Context, text string, host *modulehost.Host) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, foundPatience)
	defer cancel()
	for {
		found := host.Found()
		offered, err := withFound(text, found)
		told := slices.ContainsFunc(found, func(f modulehost.Found) bool { return len(f.Resources) > 0 && f.Reason != "" })
		if err == nil || told {
			return offered, err
		}
		select { // a module says how it is a moment after it came up
		case <-ctx.Done():
			return offered, err
		case <-time.After(foundPatience / 50):
		}
	}
}

// withFound completes an agent's resources, as its operator wrote them, with what isolators found: those of a name that
// the operator did not write. Of a name that he did, the machine must have as much.
//
// Errors: a *modulehost.CompositionError with the places of the isolators' blocks.
func withFound(text string, found []modulehost.Found) (string, error) {
	written, err := writtenNames(text)
	if err != nil {
		return text, nil //nolint:nilerr // the agent itself refuses what it cannot read, with the reason
	}
	set, err := resources.Parse(text, "*")
	if err != nil {
		return text, nil //nolint:nilerr // likewise
	}
	amounts := resources.New(set...)
	var diags hcl.Diagnostics
	fail := func(f modulehost.Found, summary, detail string) {
		diags = append(diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: f.Module + ": " + summary, Detail: detail, Subject: f.Range.Ptr()})
	}
	by := map[string]modulehost.Found{}
	add := map[string]float64{}
	unknown := false
	for _, f := range found {
		unknown = unknown || !f.Known
		for _, r := range f.Resources {
			name, n := r.GetName(), r.GetScalar().GetValue()
			if first, twice := by[name]; twice {
				fail(f, "Found by two isolators", fmt.Sprintf("It found %s, and so did %s at %s: one of them must go.", name, first.Module, first.Range))
				continue
			}
			by[name] = f
			switch asked := amounts.Scalar(name); {
			case !slices.Contains(written, name):
				if n > 0 {
					add[name] = n
				}
			case asked > n:
				fail(f, "Less than the agent's resources say", fmt.Sprintf("Got %s:%v in the resources of this agent, and the machine has %v%s.", name, asked, n, reasonOf(f)))
			}
		}
	}
	if asked := amounts.Scalar(gpus); asked > 0 && by[gpus].Module == "" && !unknown {
		return "", fmt.Errorf("resources: got %s:%v, and no isolator of the composition guards GPUs: name one, as isolator \"nvidia_gpu\" {}, or take them out; each task would have all GPUs of the machine", gpus, asked)
	}
	if diags.HasErrors() {
		return "", &modulehost.CompositionError{Diagnostics: diags}
	}
	return appendAmounts(text, add)
}

func reasonOf(f modulehost.Found) string {
	if f.Reason == "" {
		return ""
	}
	return " (" + f.Reason + ")"
}

// writtenNames are the names in a text of resources, those with an amount of 0 too, which say that there are none.
func writtenNames(text string) ([]string, error) {
	var names []string
	if text = strings.TrimSpace(text); strings.HasPrefix(text, "[") {
		var list []struct{ Name string }
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return nil, err
		}
		for _, r := range list {
			names = append(names, r.Name)
		}
		return names, nil
	}
	for part := range strings.SplitSeq(text, ";") {
		if end := strings.IndexAny(part, ":({["); end > 0 {
			part = part[:end]
		}
		names = append(names, strings.TrimSpace(part))
	}
	return names, nil
}

// appendAmounts adds amounts to a text of resources, in its own form.
func appendAmounts(text string, add map[string]float64) (string, error) {
	text = strings.TrimSpace(text)
	isJSON := strings.HasPrefix(text, "[")
	var list []json.RawMessage
	if isJSON {
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return "", fmt.Errorf("resources: %w", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(add)) {
		amount := strconv.FormatFloat(add[name], 'f', -1, 64)
		if !isJSON {
			text = strings.TrimPrefix(strings.TrimSuffix(text, ";")+";"+name+":"+amount, ";")
			continue
		}
		quoted, err := json.Marshal(name)
		if err != nil {
			return "", fmt.Errorf("resources: %w", err)
		}
		list = append(list, fmt.Appendf(nil, `{"name":%s,"type":"SCALAR","scalar":{"value":%s}}`, quoted, amount))
	}
	if isJSON && len(add) > 0 {
		joined, err := json.Marshal(list)
		return string(joined), err
	}
	return text, nil
}

// offeredPorts are the ports that an agent with these resources offers, as modules are told of them. What cannot be read
// the agent itself refuses, with the reason.
func offeredPorts(text string) *mesosv1.Value_Ranges {
	for _, t := range []string{text, agent.DefaultPorts} {
		list, err := resources.Parse(t, "*")
		if err != nil {
			return nil
		}
		offered := &mesosv1.Value_Ranges{}
		written := false
		for _, r := range list {
			if r.GetName() == "ports" {
				offered.Range, written = append(offered.Range, r.GetRanges().GetRange()...), true
			}
		}
		if written {
			return offered
		}
	}
	return nil
}
