package portmapping

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// Usage measures containers: what passed their links, what waits in their queues, and how their connections do.
func (i *Isolator) Usage(ctx context.Context, r *isolatorv1.UsageRequest) (*isolatorv1.UsageResponse, error) {
	results := map[string]*isolatorv1.UsageResult{}
	for _, rec := range r.GetRecords() {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		id := rec.GetContainer().GetId()
		if !mine(rec.GetContainer()) || rec.GetPid() <= 0 || id == "" {
			continue
		}
		s, err := i.measure(rec)
		if err != nil {
			results[id] = &isolatorv1.UsageResult{Error: err.Error()}
			continue
		}
		results[id] = &isolatorv1.UsageResult{Statistics: s}
	}
	return &isolatorv1.UsageResponse{Results: results}, nil
}

func (i *Isolator) measure(rec *isolatorv1.ContainerRecord) (*mesosv1.ResourceStatistics, error) {
	cfg, c := i.config.Get(), rec.GetContainer()
	host, err := netlink.LinkByName(linkName(c.GetId()))
	if err != nil {
		return nil, fmt.Errorf("find the container's link: %w", err)
	}
	s := &mesosv1.ResourceStatistics{Timestamp: proto.Float64(float64(time.Now().UnixMicro()) / 1e6)}
	if n := host.Attrs().Statistics; n != nil { // what the machine's end receives, the container sent
		s.NetTxPackets, s.NetTxBytes, s.NetTxErrors, s.NetTxDropped = &n.RxPackets, &n.RxBytes, &n.RxErrors, &n.RxDropped
		s.NetRxPackets, s.NetRxBytes, s.NetRxErrors, s.NetRxDropped = &n.TxPackets, &n.TxBytes, &n.TxErrors, &n.TxDropped
	}
	if r := egressOf(cfg, c); r.rate > 0 {
		s.NetTxRateLimit, s.NetTxBurstRateLimit, s.NetTxBurstSize = &r.rate, &r.ceil, &r.burst
	}
	if r := ingressOf(cfg, c); r.rate > 0 {
		s.NetRxRateLimit, s.NetRxBurstRateLimit, s.NetRxBurstSize = &r.rate, &r.ceil, &r.burst
	}
	ns, err := openNamespace(rec.GetPid())
	if err != nil {
		return nil, err
	}
	defer ns.close()
	eth, err := ns.net.LinkByName(inside)
	if err != nil || !bytes.Equal(eth.Attrs().HardwareAddr, linkAddress()) || eth.Attrs().ParentIndex != host.Attrs().Index {
		return nil, fmt.Errorf("process %d is not in the container's network namespace", rec.GetPid())
	}
	s.NetTrafficControlStatistics = queues(ns.net, eth)
	err = ns.do(func() error {
		data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
		if r, ok := portRange(string(data)); err == nil && ok {
			s.NetEphemeralPorts = &mesosv1.Value_Range{Begin: &r.Begin, End: &r.End}
		}
		if cfg.SNMP {
			// That of the thread, which is in the container's namespace.
			if data, err := os.ReadFile("/proc/thread-self/net/snmp"); err == nil {
				s.NetSnmpStatistics = parseSNMP(string(data))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if cfg.Summary || cfg.Details {
		if err := connections(ns, s, cfg); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// queues gives the figures of an interface's queues under Mesos's names.
func queues(h *netlink.Handle, link netlink.Link) []*mesosv1.TrafficControlStatistics {
	list, err := h.QdiscList(link)
	if err != nil {
		return nil
	}
	var all []*mesosv1.TrafficControlStatistics
	for _, q := range list {
		name := map[uint32]string{limitHandle: "bw_limit", flowHandle: "bloat_reduction"}[q.Attrs().Handle]
		st := q.Attrs().Statistics
		if name == "" || st == nil {
			continue
		}
		t := &mesosv1.TrafficControlStatistics{Id: &name}
		if st.Basic != nil {
			t.Bytes, t.Packets = proto.Uint64(st.Basic.Bytes), proto.Uint64(uint64(st.Basic.Packets))
		}
		if st.Queue != nil {
			t.Backlog, t.Drops = proto.Uint64(uint64(st.Queue.Backlog)), proto.Uint64(uint64(st.Queue.Drops))
			t.Overlimits, t.Qlen = proto.Uint64(uint64(st.Queue.Overlimits)), proto.Uint64(uint64(st.Queue.Qlen))
			t.Requeues = proto.Uint64(uint64(st.Queue.Requeues))
		}
		if st.RateEst != nil {
			t.Ratebps, t.Ratepps = proto.Uint64(uint64(st.RateEst.Bps)), proto.Uint64(uint64(st.RateEst.Pps))
		}
		all = append(all, t)
	}
	return all
}

// connections counts a container's connections and sums up their round trip times.
func connections(ns *namespace, s *mesosv1.ResourceStatistics, cfg *Config) error {
	list, err := ns.net.SocketDiagTCPInfo(netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	active, waiting := 0, 0
	var rtts []uint32
	for _, d := range list {
		if d.InetDiagMsg == nil {
			continue
		}
		switch d.InetDiagMsg.State {
		case netlink.TCP_TIME_WAIT:
			waiting++
		case netlink.TCP_ESTABLISHED:
			active++
			if d.TCPInfo != nil && d.TCPInfo.Rtt > 0 && !d.InetDiagMsg.ID.Destination.IsLoopback() {
				rtts = append(rtts, d.TCPInfo.Rtt)
			}
		}
	}
	if cfg.Summary {
		s.NetTcpActiveConnections, s.NetTcpTimeWaitConnections = proto.Float64(float64(active)), proto.Float64(float64(waiting))
	}
	if cfg.Details && len(rtts) > 0 {
		slices.Sort(rtts)
		at := func(p int) *float64 { return proto.Float64(float64(rtts[min(len(rtts)*p/100, len(rtts)-1)])) }
		s.NetTcpRttMicrosecsP50, s.NetTcpRttMicrosecsP90 = at(50), at(90)
		s.NetTcpRttMicrosecsP95, s.NetTcpRttMicrosecsP99 = at(95), at(99)
	}
	return nil
}

// parseSNMP reads /proc/net/snmp: for each protocol a line of names and a line of figures. Mesos's messages have the
// kernel's names; figures without a field are left out.
func parseSNMP(text string) *mesosv1.SNMPStatistics {
	s := &mesosv1.SNMPStatistics{}
	parts := map[string]func() protoreflect.Message{
		"Ip": func() protoreflect.Message { s.IpStats = &mesosv1.IpStatistics{}; return s.IpStats.ProtoReflect() },
		"Icmp": func() protoreflect.Message {
			s.IcmpStats = &mesosv1.IcmpStatistics{}
			return s.IcmpStats.ProtoReflect()
		},
		"Tcp": func() protoreflect.Message { s.TcpStats = &mesosv1.TcpStatistics{}; return s.TcpStats.ProtoReflect() },
		"Udp": func() protoreflect.Message { s.UdpStats = &mesosv1.UdpStatistics{}; return s.UdpStats.ProtoReflect() },
	}
	lines := strings.Split(text, "\n")
	for n := 0; n+1 < len(lines); n += 2 {
		names, values := strings.Fields(lines[n]), strings.Fields(lines[n+1])
		if len(names) == 0 || len(names) != len(values) || names[0] != values[0] {
			continue
		}
		part := parts[strings.TrimSuffix(names[0], ":")]
		if part == nil {
			continue
		}
		m := part()
		for k := 1; k < len(names); k++ {
			f := m.Descriptor().Fields().ByName(protoreflect.Name(names[k]))
			v, err := strconv.ParseInt(values[k], 10, 64)
			if f != nil && err == nil && f.Kind() == protoreflect.Int64Kind {
				m.Set(f, protoreflect.ValueOfInt64(v))
			}
		}
	}
	return s
}
