package modulehost

import (
	"testing"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Linux says -1 for "no fixed limit" of connections, and a container's whole statistics must not go for it.
func TestOnlyTheLimitOfConnectionsMayBeMinusOne(t *testing.T) {
	for _, test := range []struct {
		name string
		tcp  *mesosv1.TcpStatistics
		ok   bool
	}{
		{"no limit", &mesosv1.TcpStatistics{MaxConn: proto.Int64(-1), CurrEstab: proto.Int64(2)}, true},
		{"another limit", &mesosv1.TcpStatistics{MaxConn: proto.Int64(-2)}, false},
		{"another number", &mesosv1.TcpStatistics{CurrEstab: proto.Int64(-1)}, false},
	} {
		s := &mesosv1.ResourceStatistics{Timestamp: proto.Float64(1), NetSnmpStatistics: &mesosv1.SNMPStatistics{TcpStats: test.tcp}}
		if err := checkNumbers(s); err == nil != test.ok {
			t.Errorf("checkNumbers of %s = %v, want it taken: %t", test.name, err, test.ok)
		}
	}
}
