package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// column is one column of a table over rows of type T.
type column[T any] struct {
	name string
	wide bool // only with -o wide
	text func(T) string
}

// outputFlag adds -o to a command that lists things.
func outputFlag(cmd *cobra.Command, format *string) {
	*format = formats[0]
	cmd.Flags().VarP((*formatFlag)(format), "output", "o", "format: table, wide, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

// formats that commands print in, the default first.
var formats = []string{"table", "wide", "json", "yaml"}

// formatFlag takes nothing but formats, so that a mistake is told before the cluster is asked.
type formatFlag string

func (f *formatFlag) String() string { return string(*f) }
func (f *formatFlag) Type() string   { return "format" }

func (f *formatFlag) Set(s string) error {
	if !slices.Contains(formats, s) {
		return fmt.Errorf("got %q, want %s", s, strings.Join(formats, ", "))
	}
	*f = formatFlag(s)
	return nil
}

// printRows writes rows in the format asked for. JSON and YAML hold the rows whole, by their json tags.
func printRows[T any](w io.Writer, format string, rows []T, columns []column[T]) error {
	if rows == nil {
		rows = []T{} // an empty list, not null
	}
	switch format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(rows)
	case "yaml":
		return printYAML(w, rows)
	case "table", "wide":
		tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
		line := func(cell func(column[T]) string) {
			var cells []string
			for _, c := range columns {
				if !c.wide || format == "wide" {
					cells = append(cells, cell(c))
				}
			}
			fmt.Fprintln(tw, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
		}
		line(func(c column[T]) string { return c.name })
		for _, r := range rows {
			line(func(c column[T]) string {
				if s := c.text(r); s != "" {
					return s
				}
				return "-"
			})
		}
		return tw.Flush()
	}
	return &exitError{exitUsage, fmt.Errorf("output format: got %q, want table, wide, json or yaml", format)}
}

// printYAML writes v as YAML with the names and order of its JSON form.
func printYAML(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil { // JSON is YAML
		return err
	}
	blockStyle(&doc)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return enc.Close()
}

func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		blockStyle(c)
	}
}
