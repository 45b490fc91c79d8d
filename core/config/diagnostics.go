package config

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
)

// Severities.
const (
	Error   = "error"
	Warning = "warning"
)

// Diagnostic is one thing that is wrong, in a form for people and for machines.
type Diagnostic struct {
	Severity string `json:"severity"`
	Summary  string `json:"summary"`
	Detail   string `json:"detail,omitempty"`
	// Place, counted from 1; File is empty when it concerns no file.
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"`
	Column    int    `json:"column,omitempty"`
	EndLine   int    `json:"end_line,omitempty"`
	EndColumn int    `json:"end_column,omitempty"`
	// The line; empty when it may hold a secret.
	Source string `json:"source,omitempty"`
	// What to write instead, if one word may have been meant.
	Suggestion string `json:"suggestion,omitempty"`
}

// Diagnostics are an error that has everything that is wrong, in the order of the files.
type Diagnostics []Diagnostic

// Merge puts diagnostics of several checks into the order of the files; what two of them found is told once.
func Merge(lists ...Diagnostics) Diagnostics {
	out := slices.Concat(lists...)
	slices.SortStableFunc(out, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return slices.CompactFunc(out, func(a, b Diagnostic) bool {
		return a.File == b.File && a.Line == b.Line && a.Column == b.Column && (a == b || a.File != "" && a.Severity == b.Severity)
	})
}

// Error gives all of it, one paragraph each.
func (d Diagnostics) Error() string {
	texts := make([]string, len(d))
	for i, one := range d {
		texts[i] = one.String()
	}
	return strings.Join(texts, "\n")
}

// HasErrors says whether any of it is more than a warning.
func (d Diagnostics) HasErrors() bool {
	return slices.ContainsFunc(d, func(one Diagnostic) bool { return one.Severity == Error })
}

// String gives the place, what is wrong, the line with a mark below the place, and the detail.
func (d Diagnostic) String() string {
	var b strings.Builder
	if d.File != "" {
		b.WriteString(d.File)
		if d.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", d.Line, d.Column)
		}
		b.WriteString(": ")
	}
	fmt.Fprintf(&b, "%s: %s\n", d.Severity, d.Summary)
	if d.Source != "" {
		number := fmt.Sprintf("%4d", d.Line)
		fmt.Fprintf(&b, "%s | %s\n", number, d.Source)
		width := 1
		if d.EndLine == d.Line {
			width = max(1, d.EndColumn-d.Column)
		} else if n := len([]rune(d.Source)) - d.Column + 1; d.EndLine > d.Line && n > 0 {
			width = n
		}
		fmt.Fprintf(&b, "%s | %s%s\n", strings.Repeat(" ", len(number)), indent(d.Source, d.Column-1), strings.Repeat("^", width))
	}
	if d.Detail != "" {
		fmt.Fprintf(&b, "  %s\n", d.Detail)
	}
	return b.String()
}

// indent gives white space as wide as the first n characters of a line, tabs kept.
func indent(line string, n int) string {
	var b strings.Builder
	for _, r := range line {
		if n--; n < 0 {
			break
		}
		if r != '\t' {
			r = ' '
		}
		b.WriteRune(r)
	}
	return b.String()
}

var meant = regexp.MustCompile(`Did you mean (?:to use )?"([^"]+)"`)

// hider is what a diagnostic carries whose line must not be shown.
type hider interface{ HideSource() bool }

// maxSource bounds a quoted line.
const maxSource = 200

// FromHCL turns diagnostics of HCL, and of the module host, into ours. files has the text of each file by name.
func FromHCL(in hcl.Diagnostics, files map[string][]byte) Diagnostics {
	out := make(Diagnostics, 0, len(in))
	for _, diag := range in {
		d := Diagnostic{Severity: Error, Summary: diag.Summary, Detail: diag.Detail}
		if diag.Severity == hcl.DiagWarning {
			d.Severity = Warning
		}
		if m := meant.FindStringSubmatch(diag.Detail); m != nil {
			d.Suggestion = m[1]
		}
		if r := diag.Subject; r != nil && r.Filename != "" {
			d.File, d.Line, d.Column, d.EndLine, d.EndColumn = r.Filename, r.Start.Line, r.Start.Column, r.End.Line, r.End.Column
			if h, ok := diag.Extra.(hider); !ok || !h.HideSource() {
				d.Source = lineOf(files[r.Filename], r.Start.Line)
			}
		}
		out = append(out, d)
	}
	return Merge(out)
}

func lineOf(text []byte, line int) string {
	n := 0
	for l := range bytes.Lines(text) {
		if n++; n == line {
			l = bytes.TrimRight(l, "\r\n")
			if len(l) > maxSource {
				l = l[:maxSource]
			}
			return strings.ToValidUTF8(string(l), "\uFFFD")
		}
	}
	return ""
}

// suggest names what may have been meant in a complaint about an unknown name, where HCL itself has no idea.
func suggest(diag *hcl.Diagnostic, names []string, files map[string][]byte) *hcl.Diagnostic {
	unknown := strings.HasPrefix(diag.Summary, "Unsupported") || strings.HasPrefix(diag.Summary, "Extraneous")
	if !unknown || meant.MatchString(diag.Detail) || diag.Subject == nil {
		return diag
	}
	text := files[diag.Subject.Filename]
	if !diag.Subject.CanSliceBytes(text) {
		return diag
	}
	word := strings.Trim(string(diag.Subject.SliceBytes(text)), `"`)
	out := *diag
	if hint := didYouMean(word, names); hint != "" {
		out.Detail += hint
	} else {
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
