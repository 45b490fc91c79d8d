package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
)

// Machines that drop what they forward, as every one with Docker does, would drop what the built-in network's containers
// send and receive. A filter that drops has the last word, whatever other tables say. So each of the machine's own
// filters that may drop gets two rules at its top: what comes from the bridge may pass, and of what goes to it answers
// and connections to published ports. They come with the first container, go with the last, and are looked for at each
// launch, since whoever loads a firewall anew loses them.

// forwardMark is the comment that those rules bear.
const forwardMark = "bridge " + bridgeInterface

// forwardRules is how many there are in each filter.
const forwardRules = 2

// The bits of conntrack's states as nftables and the match of iptables have them.
//
// Source: include/uapi/linux/netfilter/nf_conntrack_common.h, xt_conntrack.h.
const (
	stateEstablished = 1 << 1
	stateRelated     = 1 << 2
	xtStateChanged   = 1 << 7 // XT_CONNTRACK_STATE_DNAT
)

// letThrough sees to the rules in every filter. c is nil where the kernel has no nftables.
func letThrough(ctx context.Context, c *nftables.Conn) error {
	if c != nil {
		chains, err := filters(c)
		if err != nil {
			return err
		}
		for _, ch := range chains {
			if err := letThroughChain(c, ch); err != nil {
				return fmt.Errorf("table %s, chain %s of this machine's filter takes no rule for %s, without which its packets may be dropped: %w",
					ch.Table.Name, ch.Name, bridgeInterface, err)
			}
		}
	}
	return letThroughLegacy(ctx)
}

// filters are the chains that may drop what is forwarded: those whose policy it is, and the one that iptables has, where
// a rule may come to say so.
func filters(c *nftables.Conn) ([]*nftables.Chain, error) {
	all, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("filters of this machine: %w", err)
	}
	return slices.DeleteFunc(all, func(ch *nftables.Chain) bool {
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Type != nftables.ChainTypeFilter {
			return true
		}
		if f := ch.Table.Family; f != nftables.TableFamilyIPv4 && f != nftables.TableFamilyINet {
			return true
		}
		return !isIptables(ch) && (ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop)
	}), nil
}

// isIptables says whether a chain is the one that the program iptables manages. It takes rules in its own form only.
func isIptables(ch *nftables.Chain) bool {
	return ch.Table.Family == nftables.TableFamilyIPv4 && ch.Table.Name == "filter" && ch.Name == "FORWARD"
}

// ours are the rules of a chain that are this module's.
func ours(c *nftables.Conn, ch *nftables.Chain) ([]*nftables.Rule, error) {
	rules, err := c.GetRules(ch.Table, ch)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(rules, func(r *nftables.Rule) bool {
		mark, ok := userdata.GetString(r.UserData, userdata.TypeComment)
		return !ok || mark != forwardMark
	}), nil
}

func letThroughChain(c *nftables.Conn, ch *nftables.Chain) error {
	there, err := ours(c, ch)
	if err != nil || len(there) == forwardRules {
		return err
	}
	for _, r := range there {
		if err := c.DelRule(&nftables.Rule{Table: ch.Table, Chain: ch, Handle: r.Handle}); err != nil {
			return err
		}
	}
	accept := []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}
	answers := concat(conntrackAny(), accept)
	if isIptables(ch) {
		answers = concat(xtConntrackAny(), accept)
	}
	mark := userdata.AppendString(nil, userdata.TypeComment, forwardMark)
	c.InsertRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: concat(to(bridgeInterface), answers), UserData: mark})
	c.InsertRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: concat(from(bridgeInterface), accept), UserData: mark})
	return c.Flush()
}

// conntrackAny is true of what belongs to a connection that was let through, and of connections whose destination was
// changed. Those two are bits of different words, which are joined.
func conntrackAny() []expr.Any {
	bits := func(key expr.CtKey, register uint32, mask uint32) []expr.Any {
		e := conntrackHas(key, mask)[:2]
		e[0].(*expr.Ct).Register = register
		b := e[1].(*expr.Bitwise)
		b.SourceRegister, b.DestRegister = register, register
		return e
	}
	return concat(
		bits(expr.CtKeySTATE, firstRegister, stateEstablished|stateRelated),
		bits(expr.CtKeySTATUS, secondRegister, statusDestinationChanged),
		[]expr.Any{&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: make([]byte, 8)}})
}

// xtConntrackAny is the same as iptables says it: --ctstate RELATED,ESTABLISHED,DNAT.
func xtConntrackAny() []expr.Any {
	info := &xt.ConntrackMtinfo3{}
	info.MatchFlags = uint16(xt.ConntrackState)
	info.StateMask = stateEstablished | stateRelated | xtStateChanged
	return []expr.Any{&expr.Match{Name: "conntrack", Rev: 3, Info: info}}
}

// letThroughNoMore takes the rules back wherever they are.
func letThroughNoMore(ctx context.Context, c *nftables.Conn) error {
	if c != nil {
		all, err := c.ListChains()
		if err != nil {
			return fmt.Errorf("filters of this machine: %w", err)
		}
		for _, ch := range all {
			if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward {
				continue
			}
			list, err := ours(c, ch)
			if err != nil {
				return fmt.Errorf("table %s, chain %s of this machine's filter: %w", ch.Table.Name, ch.Name, err)
			}
			for _, r := range list {
				if err := c.DelRule(&nftables.Rule{Table: ch.Table, Chain: ch, Handle: r.Handle}); err != nil {
					return err
				}
			}
			if err := c.Flush(); err != nil {
				return fmt.Errorf("remove rules from table %s, chain %s of this machine's filter: %w", ch.Table.Name, ch.Name, err)
			}
		}
	}
	return letThroughLegacyNoMore(ctx)
}

// hasLegacyFilter says whether the kernel's filter of the older kind is in use.
func hasLegacyFilter() bool {
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	return err == nil && slices.Contains(strings.Fields(string(names)), "filter")
}

// legacyProgram is how the older filter's programs' names begin, "" if they are not here. The kernel cannot be asked
// without them.
func legacyProgram(ctx context.Context) string {
	const legacy = "iptables-legacy"
	if _, err := exec.LookPath(legacy + "-save"); err == nil {
		return legacy
	}
	version, err := exec.CommandContext(ctx, "iptables", "--version").Output()
	if err == nil && !bytes.Contains(version, []byte("nf_tables")) {
		return "iptables"
	}
	return ""
}

func letThroughLegacy(ctx context.Context) error {
	if !hasLegacyFilter() {
		return nil
	}
	program := legacyProgram(ctx)
	if program == "" {
		return errors.New("this machine filters by legacy iptables, and the program iptables-legacy is not here: whether packets of " +
			bridgeInterface + " may pass cannot be seen to")
	}
	there, err := legacyRules(ctx, program)
	if err != nil || len(there) == forwardRules {
		return err
	}
	mark := ` -m comment --comment "` + forwardMark + `" -j ACCEPT`
	return restoreLegacy(ctx, program, append(withdrawn(there),
		"-I FORWARD 1 -o "+bridgeInterface+" -m conntrack --ctstate RELATED,ESTABLISHED,DNAT"+mark,
		"-I FORWARD 1 -i "+bridgeInterface+mark))
}

func letThroughLegacyNoMore(ctx context.Context) error {
	if !hasLegacyFilter() {
		return nil
	}
	program := legacyProgram(ctx)
	if program == "" {
		return nil // nothing was put there without it
	}
	there, err := legacyRules(ctx, program)
	if err != nil || len(there) == 0 {
		return err
	}
	return restoreLegacy(ctx, program, withdrawn(there))
}

// legacyRules are those of FORWARD that are this module's, as the program writes them down.
func legacyRules(ctx context.Context, program string) ([]string, error) {
	saved, err := exec.CommandContext(ctx, program+"-save", "-t", "filter").Output()
	if err != nil {
		return nil, fmt.Errorf("%s-save: %w", program, err)
	}
	var list []string
	for line := range strings.Lines(string(saved)) {
		if rest, ok := strings.CutPrefix(line, "-A "); ok && strings.Contains(line, `"`+forwardMark+`"`) {
			list = append(list, strings.TrimSpace(rest))
		}
	}
	return list, nil
}

// withdrawn are the commands that take rules back.
func withdrawn(rules []string) []string {
	var list []string
	for _, r := range rules {
		list = append(list, "-D "+r)
	}
	return list
}

func restoreLegacy(ctx context.Context, program string, commands []string) error {
	restore := exec.CommandContext(ctx, program+"-restore", "--wait=5", "--noflush")
	restore.Stdin = strings.NewReader("*filter\n" + strings.Join(commands, "\n") + "\nCOMMIT\n")
	var complaint bytes.Buffer
	restore.Stderr = &complaint
	if err := restore.Run(); err != nil {
		return fmt.Errorf("%s-restore: %w: %s", program, err, bytes.TrimSpace(complaint.Bytes()))
	}
	return nil
}
