package cni

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// measure reads what went through a namespace's interfaces, all but the loopback, as seen from inside, and the
// protocols' counters.
func measure(netns string) (*mesosv1.ResourceStatistics, error) {
	var dev, snmp []byte
	err := inNetns(netns, func() (err error) {
		if dev, err = os.ReadFile("/proc/thread-self/net/dev"); err != nil {
			return err
		}
		snmp, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	if err != nil {
		return nil, err
	}
	now := float64(time.Now().UnixNano()) / 1e9
	s := &mesosv1.ResourceStatistics{Timestamp: &now, NetSnmpStatistics: parseSNMP(snmp)}
	addInterfaces(s, dev)
	return s, nil
}

// addInterfaces sums up /proc/net/dev: after two lines of headings, name, colon, eight numbers received, eight sent.
func addInterfaces(s *mesosv1.ResourceStatistics, dev []byte) {
	fields := []struct {
		column int
		to     **uint64
	}{
		{0, &s.NetRxBytes}, {1, &s.NetRxPackets}, {2, &s.NetRxErrors}, {3, &s.NetRxDropped},
		{8, &s.NetTxBytes}, {9, &s.NetTxPackets}, {10, &s.NetTxErrors}, {11, &s.NetTxDropped},
	}
	for _, f := range fields {
		*f.to = new(uint64)
	}
	for line := range bytes.Lines(dev) {
		name, rest, ok := strings.Cut(string(line), ":")
		values := strings.Fields(rest)
		if !ok || strings.TrimSpace(name) == "lo" || len(values) < 12 {
			continue
		}
		for _, f := range fields {
			n, err := strconv.ParseUint(values[f.column], 10, 64)
			if err == nil {
				**f.to += n
			}
		}
	}
}

// parseSNMP reads /proc/net/snmp: for each protocol a line of names and one of numbers. The names are those of the
// fields.
func parseSNMP(data []byte) *mesosv1.SNMPStatistics {
	s := &mesosv1.SNMPStatistics{}
	var heads []string
	protocol := ""
	for line := range bytes.Lines(data) {
		name, rest, ok := strings.Cut(string(line), ":")
		if !ok {
			continue
		}
		if name != protocol {
			protocol, heads = name, strings.Fields(rest)
			continue
		}
		var m protoreflect.Message
		switch name {
		case "Ip":
			s.IpStats = &mesosv1.IpStatistics{}
			m = s.IpStats.ProtoReflect()
		case "Icmp":
			s.IcmpStats = &mesosv1.IcmpStatistics{}
			m = s.IcmpStats.ProtoReflect()
		case "Tcp":
			s.TcpStats = &mesosv1.TcpStatistics{}
			m = s.TcpStats.ProtoReflect()
		case "Udp":
			s.UdpStats = &mesosv1.UdpStatistics{}
			m = s.UdpStats.ProtoReflect()
		default:
			continue
		}
		for i, text := range strings.Fields(rest) {
			if i >= len(heads) {
				break
			}
			f := m.Descriptor().Fields().ByName(protoreflect.Name(heads[i]))
			if v, err := strconv.ParseInt(text, 10, 64); err == nil && f != nil && f.Kind() == protoreflect.Int64Kind {
				m.Set(f, protoreflect.ValueOfInt64(v))
			}
		}
	}
	return s
}
