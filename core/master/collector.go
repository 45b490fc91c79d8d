package master

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Collector gives the master's metrics, but those of single frameworks, to Prometheus, under the names of /metrics/snapshot with
// underscores, as mosaic_master_tasks_running. All are untyped: what is a counter may become a gauge in
// the eyes of Mesos's documentation, and tools by now rely on the names only.
func (m *Master) Collector() prometheus.Collector { return &collector{m} }

type collector struct{ master *Master }

// Describe says nothing: some metrics appear on first use.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect reads the newest view.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	values := c.master.view.Load().snapshot(c.master.cfg.Now())
	for _, name := range sortedKeys(values) {
		desc := prometheus.NewDesc(metricName(name), "Metric "+name+" of /metrics/snapshot.", nil, nil)
		out <- prometheus.MustNewConstMetric(desc, prometheus.UntypedValue, values[name])
	}
}

// metricName is a name of /metrics/snapshot as Prometheus allows it.
func metricName(name string) string {
	return "mosaic_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r >= 'A' && r <= 'Z':
			return r
		}
		return '_'
	}, name)
}
