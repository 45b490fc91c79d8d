package cni

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// sweepRules removes what plugins left of a container in the nat table of iptables: a DEL that is killed between the
// interface and its rules is not completed by the next, which finds no address any more to find the rules by. The
// plugins write a container's id into a comment of each rule, or into one of the rule that leads to its chain.
func (i *Isolator) sweepRules(ctx context.Context, id string) error {
	out, err := exec.CommandContext(ctx, "iptables-save", "-t", "nat").Output()
	if err != nil {
		return fmt.Errorf("look for rules of a container: %w", err)
	}
	script := sweepScript(string(out), id)
	if script == "" {
		return nil
	}
	restore := exec.CommandContext(ctx, "iptables-restore", "--wait=5", "--noflush")
	restore.Stdin = strings.NewReader(script)
	var complaint bytes.Buffer
	restore.Stderr = &complaint
	if err := restore.Run(); err != nil {
		return fmt.Errorf("remove rules of a container: %w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	return nil
}

// sweepScript is what iptables-restore is told so that nothing of a container is left of a table; empty if nothing is.
func sweepScript(table, id string) string {
	var drop, chains []string
	add := func(chain string) {
		if isContainersChain(chain) && !slices.Contains(chains, chain) {
			chains = append(chains, chain)
		}
	}
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		rest, ok := strings.CutPrefix(line, "-A ")
		if !ok || !strings.Contains(line, `id: \"`+id+`\"`) {
			continue
		}
		chain, _, _ := strings.Cut(rest, " ")
		if isContainersChain(chain) {
			add(chain)
			continue // goes with its chain
		}
		drop = append(drop, "-D "+rest)
		if _, target, ok := strings.Cut(rest, " -j "); ok {
			target, _, _ = strings.Cut(target, " ")
			add(target)
		}
	}
	if len(drop) == 0 && len(chains) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("*nat\n")
	for _, d := range drop {
		b.WriteString(d + "\n")
	}
	for _, c := range chains {
		b.WriteString("-F " + c + "\n")
	}
	for _, c := range chains {
		b.WriteString("-X " + c + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// isContainersChain says whether a chain is one that the plugins make for each container, and not one of their own.
func isContainersChain(chain string) bool {
	for _, prefix := range []string{"CNI-SN-", "CNI-DN-", "CNI-"} {
		if tail, ok := strings.CutPrefix(chain, prefix); ok {
			return len(tail) >= 16 && strings.Trim(tail, "0123456789abcdef") == ""
		}
	}
	return false
}
