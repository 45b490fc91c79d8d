package portmapping

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

// Handles of the queues at each end of a link.
var (
	limitHandle = netlink.MakeHandle(1, 0)
	limitClass  = netlink.MakeHandle(1, 1)
	flowHandle  = netlink.MakeHandle(0x10, 0)
)

// rate is a limit in bytes per second and bytes; the zero value is none.
type rate struct {
	rate, ceil, burst uint64
}

// rateOf is the limit that a container's cpus give it.
func rateOf(cpus float64, fixed, per, low, high, ceil, burst module.Size) rate {
	r := uint64(fixed)
	if r == 0 && per > 0 {
		r = max(uint64(float64(per)*cpus), uint64(low), 1)
		if high > 0 {
			r = min(r, uint64(high))
		}
	}
	if r == 0 {
		return rate{}
	}
	return rate{r, max(r, uint64(ceil)), max(uint64(burst), 1600)}
}

func cpusOf(c *containerv1.Container) float64 {
	var total float64
	for _, r := range c.GetResources() {
		if r.GetName() == "cpus" && r.GetType() == mesosv1.Value_SCALAR {
			if v := r.GetScalar().GetValue(); v > 0 && v < 1<<20 {
				total += v
			}
		}
	}
	return total
}

func egressOf(cfg *Config, c *containerv1.Container) rate {
	return rateOf(cpusOf(c), cfg.EgressRate, cfg.EgressPerCPU, cfg.EgressMin, cfg.EgressMax, cfg.EgressCeil, cfg.EgressBurst)
}

func ingressOf(cfg *Config, c *containerv1.Container) rate {
	return rateOf(cpusOf(c), cfg.IngressRate, cfg.IngressPerCPU, cfg.IngressMin, cfg.IngressMax, cfg.IngressCeil, cfg.IngressBurst)
}

// limit sets the queues at both ends of a link: what a container sends waits at its own end, where it slows the sender
// down, what it receives at the machine's.
func limit(cfg *Config, c *containerv1.Container, host netlink.Link, ns *namespace) error {
	eth, err := ns.net.LinkByName(inside)
	if err != nil {
		return fmt.Errorf("find %s: %w", inside, err)
	}
	if err := shape(ns.net, eth, egressOf(cfg, c), cfg.UniqueFlow); err != nil {
		return fmt.Errorf("egress: %w", err)
	}
	machine, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("reach the machine's network: %w", err)
	}
	defer machine.Close()
	if err := shape(machine, host, ingressOf(cfg, c), false); err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	return nil
}

// shape sets the queue of one interface. A fair queue lies below the limit if there is one.
func shape(h *netlink.Handle, link netlink.Link, r rate, fair bool) error {
	index := link.Attrs().Index
	have, err := h.QdiscList(link)
	if err != nil {
		return fmt.Errorf("list queues: %w", err)
	}
	var root netlink.Qdisc
	for _, q := range have {
		if q.Attrs().Parent == netlink.HANDLE_ROOT && (q.Attrs().Handle == limitHandle || q.Attrs().Handle == flowHandle) {
			root = q
		}
	}
	wanted := uint32(0)
	switch {
	case r.rate > 0:
		wanted = limitHandle
	case fair:
		wanted = flowHandle
	}
	if root != nil && root.Attrs().Handle != wanted {
		if err := h.QdiscDel(root); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove the old queue: %w", err)
		}
		root = nil
	}
	flowParent := uint32(netlink.HANDLE_ROOT)
	if r.rate > 0 {
		if root == nil {
			htb := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: index, Handle: limitHandle, Parent: netlink.HANDLE_ROOT})
			htb.Defcls = 1
			if err := h.QdiscAdd(htb); err != nil {
				return fmt.Errorf("add a rate limit (htb): %w", err)
			}
		}
		class := netlink.NewHtbClass(
			netlink.ClassAttrs{LinkIndex: index, Handle: limitClass, Parent: limitHandle},
			netlink.HtbClassAttrs{
				Rate: bits(r.rate), Ceil: bits(r.ceil), Quantum: 1 << 16,
				Buffer: uint32(min(r.burst, math.MaxInt32)), Cbuffer: uint32(min(r.burst, math.MaxInt32)),
			})
		if err := h.ClassReplace(class); err != nil {
			return fmt.Errorf("set the rate limit to %d bytes per second: %w", r.rate, err)
		}
		flowParent = limitClass
	}
	if !fair {
		return nil
	}
	flow := netlink.NewFqCodel(netlink.QdiscAttrs{LinkIndex: index, Handle: flowHandle, Parent: flowParent})
	if err := h.QdiscReplace(flow); errors.Is(err, unix.ENOENT) {
		return errors.New("egress_unique_flow_per_container: this kernel has no fq_codel (CONFIG_NET_SCH_FQ_CODEL)")
	} else if err != nil {
		return fmt.Errorf("add a fair queue (fq_codel): %w", err)
	}
	return nil
}

// bits is a rate as the library wants it.
func bits(bytes uint64) uint64 { return min(bytes, math.MaxUint64/8) * 8 }
