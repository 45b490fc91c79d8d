package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

func newImage() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "List the images of an agent, pull one, remove those that nobody uses", Args: cobra.NoArgs}
	cmd.AddCommand(newImageList(), newImagePull(), newImagePrune())
	return cmd
}

var imageColumns = []column[operator.Image]{
	{"IMAGE", false, func(i operator.Image) string { return i.Name }},
	{"SIZE", false, func(i operator.Image) string { return humanize.IBytes(uint64(max(i.Size, 0))) }},
	{"LAYERS", true, func(i operator.Image) string { return strconv.Itoa(i.Layers) }},
	{"PULLED", false, func(i operator.Image) string { return age(i.Pulled) }},
	{"USED BY", false, func(i operator.Image) string {
		if len(i.UsedBy) == 0 {
			return "-"
		}
		return fmt.Sprintf("%d", len(i.UsedBy))
	}},
	{"DIGEST", true, func(i operator.Image) string { return i.Digest }},
	{"CONTAINERS", true, func(i operator.Image) string { return strings.Join(i.UsedBy, " ") }},
}

func newImageList() *cobra.Command {
	var agent, format string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the images that an agent has", Args: cobra.NoArgs,
		Example: "  mosaic image ls --agent 10.0.0.7:5051 -o wide",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := imagesOf(cmd.Context(), agent)
			if err != nil {
				return err
			}
			return printRows(cmd.OutOrStdout(), format, list, imageColumns)
		},
	}
	agentFlag(cmd, &agent)
	outputFlag(cmd, &format)
	return cmd
}

func imagesOf(ctx context.Context, agent string) ([]operator.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	list, err := operator.NewAgent(agent).Images(ctx)
	return list, hint(err, agent, "agent")
}

func newImagePull() *cobra.Command {
	var agent, format string
	var cached bool
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Bring an image to an agent before containers ask for it", Args: cobra.ExactArgs(1),
		Long: `Pull has an agent bring an image to its disk, and shows how far it is. What the name
means is asked of the registry even if the agent has an image of that name, but for --cached.

An image of a private registry is pulled as the agent's Docker configuration says.`,
		Example: "  mosaic image pull --agent 10.0.0.7:5051 alpine:3.22",
		RunE: func(cmd *cobra.Command, args []string) error {
			show := newPullView(cmd.OutOrStdout(), format)
			err := operator.NewAgent(agent).PullImage(cmd.Context(), operator.PullRequest{Name: args[0], Fresh: !cached}, show.tell)
			show.end()
			if err != nil {
				return hint(fmt.Errorf("pull %s: %w", args[0], err), agent, "agent")
			}
			return nil
		},
	}
	agentFlag(cmd, &agent)
	cmd.Flags().BoolVar(&cached, "cached", false, "do nothing if the agent has an image of that name")
	outputFlag(cmd, &format)
	return cmd
}

func newImagePrune() *cobra.Command {
	var agent, format string
	var excluded []string
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove the images of an agent that no container runs from", Args: cobra.NoArgs,
		Example: "  mosaic image prune --exclude alpine:3.22",
		RunE: func(cmd *cobra.Command, _ []string) error {
			before, err := imagesOf(cmd.Context(), agent)
			if err != nil {
				return err
			}
			if err := operator.NewAgent(agent).PruneImages(cmd.Context(), excluded...); err != nil {
				return hint(err, agent, "agent")
			}
			after, err := imagesOf(cmd.Context(), agent)
			if err != nil {
				return err
			}
			gone := slices.DeleteFunc(before, func(i operator.Image) bool {
				return slices.ContainsFunc(after, func(j operator.Image) bool { return i.Name == j.Name })
			})
			return printRows(cmd.OutOrStdout(), format, gone, imageColumns[:2])
		},
	}
	agentFlag(cmd, &agent)
	cmd.Flags().StringArrayVar(&excluded, "exclude", nil, "image to keep, by name; may be repeated (default: what the agent's operator excluded)")
	outputFlag(cmd, &format)
	return cmd
}

// pullView shows how far a pull is: bars that move on a terminal, a line for each change of state elsewhere, and with
// -o json each state whole, one a line.
type pullView struct {
	w      io.Writer
	json   bool
	width  int // of the terminal; 0: none
	lines  int // drawn last, to be drawn over
	states map[string]string
}

func newPullView(w io.Writer, format string) *pullView {
	v := &pullView{w: w, json: format == "json", states: map[string]string{}}
	if f, ok := w.(interface{ Fd() uintptr }); ok && term.IsTerminal(int(f.Fd())) {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			v.width = width
		}
	}
	return v
}

func (v *pullView) tell(p operator.Pull) {
	switch {
	case v.json:
		_ = json.NewEncoder(v.w).Encode(p) // who does not listen misses nothing that lasts
	case v.width > 0:
		v.draw(p)
	default:
		v.note(p)
	}
}

// end leaves the cursor below what was drawn.
func (v *pullView) end() { v.lines = 0 }

// maxBars bounds the layers shown on a terminal: moving up further than the screen is high does not work.
const maxBars = 12

func (v *pullView) draw(p operator.Pull) {
	var b strings.Builder
	if v.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", v.lines)
	}
	rows := pullRows(p, v.width)
	for _, r := range rows {
		b.WriteString(r + "\n")
	}
	v.lines = len(rows)
	_, _ = io.WriteString(v.w, b.String())
}

// pullRows are the lines of a picture of a pull, none wider than the terminal.
func pullRows(p operator.Pull, width int) []string {
	rows := []string{clipTo(fmt.Sprintf("%s: %s%s", p.Name, p.State, because(p.Error)), width)}
	shown := p.Layers
	if len(shown) > maxBars { // those that something happens to
		shown = slices.DeleteFunc(slices.Clone(shown), func(l operator.Layer) bool { return l.State == operator.PullDone || l.State == operator.PullWaiting })
		shown = shown[:min(len(shown), maxBars)]
	}
	for _, l := range shown {
		rows = append(rows, clipTo(fmt.Sprintf("  %s %-11s %s %s", shortDigest(l.Digest), l.State, bar(l.Done, l.Total, 24), pullSize(l)), width))
	}
	if n := len(p.Layers) - len(shown); n > 0 {
		rows = append(rows, clipTo(fmt.Sprintf("  and %d more layers", n), width))
	}
	return rows
}

func because(text string) string {
	if text == "" {
		return ""
	}
	return ": " + strings.ReplaceAll(text, "\n", " ")
}

func clipTo(s string, width int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f { // a registry's text moves no cursor
			return '?'
		}
		return r
	}, s)
	if r := []rune(s); width > 0 && len(r) >= width {
		return string(r[:width-1])
	}
	return s
}

func shortDigest(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex[:min(len(hex), 12)]
}

func bar(done, total int64, width int) string {
	full := 0
	if total > 0 {
		full = int(min(done, total) * int64(width) / total)
	}
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "]"
}

func pullSize(l operator.Layer) string {
	return humanize.IBytes(uint64(max(l.Done, 0))) + " of " + humanize.IBytes(uint64(max(l.Total, 0)))
}

// note writes a line for each change.
func (v *pullView) note(p operator.Pull) {
	if now := p.State + p.Error; v.states[""] != now {
		v.states[""] = now
		digest := ""
		if p.State == operator.PullDone && p.Digest != "" {
			digest = " " + p.Digest + " in " + time.Since(p.Started).Round(time.Millisecond).String()
		}
		fmt.Fprintln(v.w, clipTo(fmt.Sprintf("%s: %s%s%s", p.Name, p.State, digest, because(p.Error)), 0))
	}
	for _, l := range p.Layers {
		if l.State == operator.PullWaiting || v.states[l.Digest] == l.State {
			continue
		}
		v.states[l.Digest] = l.State
		fmt.Fprintln(v.w, clipTo(fmt.Sprintf("  %s %s %s", shortDigest(l.Digest), l.State, humanize.IBytes(uint64(max(l.Total, 0)))), 0))
	}
}
