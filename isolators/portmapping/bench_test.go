package portmapping_test

import (
	"context"
	"os"
	"testing"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// BenchmarkLaunch furnishes and takes back one container's network beside one that stays.
func BenchmarkLaunch(b *testing.B) {
	m := newMachine(b, `{"ephemeral_ports_per_container":64,"egress_rate_limit_per_container":100000000}`)
	m.container("stays")
	r := &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "c"}}
	var cleanup float64
	for b.Loop() {
		b.StopTimer()
		r.Pid = int32(sleeper(b))
		b.StartTimer()
		if _, err := m.client.Isolator.Isolate(b.Context(), &isolatorv1.IsolateRequest{Record: r}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		begin := b.Elapsed()
		b.StartTimer()
		if _, err := m.client.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{Record: r}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		cleanup += (b.Elapsed() - begin).Seconds() * 1000
		b.StartTimer()
	}
	b.ReportMetric(cleanup/float64(b.N), "ms/cleanup")
}

// BenchmarkUsage measures one container.
func BenchmarkUsage(b *testing.B) {
	m := newMachine(b, `{"ephemeral_ports_per_container":64,"network_enable_socket_statistics_summary":true,"network_enable_snmp_statistics":true}`)
	r := m.container("c")
	for b.Loop() {
		m.usage(r)
	}
}

// BenchmarkThroughput sends from a container to the outside.
func BenchmarkThroughput(b *testing.B) {
	m := newMachine(b, `{"ephemeral_ports_per_container":64}`)
	r := m.container("c")
	var total float64
	for b.Loop() {
		total += transfer(b, int(r.Pid), m.outside, outsideIP+":5000", 500_000_000)
	}
	b.ReportMetric(total/float64(b.N)/1e6, "MB/s")
}

// BenchmarkThroughputOfTheMachine sends the same way without one.
func BenchmarkThroughputOfTheMachine(b *testing.B) {
	m := newMachine(b, `{}`)
	var total float64
	for b.Loop() {
		total += transfer(b, os.Getpid(), m.outside, outsideIP+":5000", 500_000_000)
	}
	b.ReportMetric(total/float64(b.N)/1e6, "MB/s")
}
