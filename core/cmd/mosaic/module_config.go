package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/mosaic-cluster/mosaic/core/config"
	"github.com/mosaic-cluster/mosaic/core/modulehost"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// documentFromHCL takes the block of a module from a composition, has the module host check it, and gives the document
// that a module would get.
func documentFromHCL(ctx context.Context, file string, program kit.Program, d *modulev1.DescribeResponse) (string, error) {
	c, err := config.Load(file)
	if err != nil {
		return "", &exitError{exitFailed, fmt.Errorf("the configuration is refused:\n%w", err)}
	}
	for _, m := range moduleConfigs(c) {
		if m.Kind != d.GetKind() || m.Name != d.GetName() {
			continue
		}
		if m.Command, err = filepath.Abs(program.Path); err != nil {
			return "", err
		}
		m.Args, m.Checksum = program.Args, ""
		diags, err := checkBlock(ctx, m)
		if err != nil {
			return "", err
		}
		if diags.HasErrors() {
			return "", &exitError{exitFailed, fmt.Errorf("the configuration is refused:\n%w", config.FromHCL(diags, c.Files))}
		}
		body := m.Config
		if body == nil {
			body = hcl.EmptyBody()
		}
		doc, err := bodyDocument(body, d.GetSchema())
		if err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
		data, err := json.Marshal(doc)
		return string(data), err
	}
	return "", &exitError{exitUsage, fmt.Errorf("%s has no block %s %q, which is what the module is", file, d.GetKind(), d.GetName())}
}

// checkBlock says what is wrong with a module's block, by what the module says of itself.
func checkBlock(ctx context.Context, m modulehost.ModuleConfig) (hcl.Diagnostics, error) {
	dir, err := os.MkdirTemp("", "mosaic-schema-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the schema: %w", err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	opts := modulehost.Options{Version: version, CacheDir: dir}
	if _, err := modulehost.Describe(ctx, describeOptions(opts), m); err != nil {
		return nil, err
	}
	return modulehost.Validate(opts, []modulehost.ModuleConfig{m}), nil
}

// bodyDocument converts a body that has been checked against its schema.
func bodyDocument(body hcl.Body, s *modulev1.Schema) (map[string]any, error) {
	shape := &hcl.BodySchema{}
	for _, a := range s.GetAttributes() {
		shape.Attributes = append(shape.Attributes, hcl.AttributeSchema{Name: a.GetName()})
	}
	for _, b := range s.GetBlocks() {
		shape.Blocks = append(shape.Blocks, hcl.BlockHeaderSchema{Type: b.GetName(), LabelNames: b.GetLabels()})
	}
	content, diags := body.Content(shape)
	if diags.HasErrors() {
		return nil, diags
	}
	doc := map[string]any{}
	for _, a := range s.GetAttributes() {
		doc[a.GetName()] = nil
		if a.GetDefaultJson() != "" {
			doc[a.GetName()] = json.RawMessage(a.GetDefaultJson())
		}
		set, ok := content.Attributes[a.GetName()]
		if !ok {
			continue
		}
		v, diags := set.Expr.Value(nil)
		if diags.HasErrors() {
			return nil, diags
		}
		if v.IsNull() {
			continue
		}
		value, err := attributeDocument(a, v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.GetName(), err)
		}
		doc[a.GetName()] = value
	}
	for _, b := range s.GetBlocks() {
		list := []any{}
		for _, block := range content.Blocks.OfType(b.GetName()) {
			one, err := bodyDocument(block.Body, b.GetBody())
			if err != nil {
				return nil, fmt.Errorf("%s: %w", b.GetName(), err)
			}
			for i, label := range b.GetLabels() {
				one[label] = block.Labels[i]
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
	return doc, nil
}

// attributeDocument gives a value as the document has it.
func attributeDocument(a *modulev1.Attribute, v cty.Value) (any, error) {
	want := v.Type()
	switch a.GetType() {
	case modulev1.Attribute_DURATION:
		d, err := time.ParseDuration(v.AsString())
		return int64(d), err
	case modulev1.Attribute_SIZE:
		if v.Type() == cty.String {
			return humanize.ParseBytes(v.AsString())
		}
	case modulev1.Attribute_STRING:
		want = cty.String
	case modulev1.Attribute_BOOL:
		want = cty.Bool
	case modulev1.Attribute_NUMBER, modulev1.Attribute_INTEGER:
		want = cty.Number
	case modulev1.Attribute_STRING_LIST:
		want = cty.List(cty.String)
	case modulev1.Attribute_NUMBER_LIST:
		want = cty.List(cty.Number)
	case modulev1.Attribute_STRING_MAP:
		want = cty.Map(cty.String)
	}
	c, err := convert.Convert(v, want)
	if err != nil {
		return nil, err
	}
	data, err := ctyjson.Marshal(c, want)
	return json.RawMessage(data), err
}
