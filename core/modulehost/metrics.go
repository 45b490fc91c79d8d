package modulehost

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// maxSeries is how many series of its own a module may have, by its contract.
const maxSeries = 200

// metrics has what the host measures of each module, and the modules' own series. It is one collector, whose own
// series come and go with the modules.
type metrics struct {
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	restarts *prometheus.Desc
	breaker  *prometheus.CounterVec
	up       *prometheus.Desc
	memory   *prometheus.Desc
	owed     *prometheus.Desc

	mu      sync.Mutex // guards modules and own
	modules []*module
	own     map[*module][]series
}

// series is one checked sample of a module.
type series struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value float64
	label []string
}

func newMetrics() *metrics {
	labels := []string{"kind", "module"}
	return &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mosaic_module_calls_total", Help: "Calls to modules, by the code of their outcome.",
		}, append(labels, "call", "code")),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mosaic_module_call_seconds", Help: "Time of calls to modules, waiting for the module included.",
			Buckets: []float64{0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1, 5, 15, 60},
		}, append(labels, "call")),
		breaker: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mosaic_module_breaker_trips_total", Help: "Restarts because too many calls missed their deadline or had no valid answer.",
		}, labels),
		restarts: prometheus.NewDesc("mosaic_module_restarts_total", "Starts of a module after its first.", labels, nil),
		up:       prometheus.NewDesc("mosaic_module_up", "1 while the module takes calls.", labels, nil),
		memory:   prometheus.NewDesc("mosaic_module_memory_bytes", "Resident memory of the module's first process.", labels, nil),
		owed:     prometheus.NewDesc("mosaic_module_cleanups_owed", "Cleanups that have not succeeded yet.", labels, nil),
		own:      make(map[*module][]series),
	}
}

func (s *metrics) add(m *module) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.modules = append(s.modules, m)
}

func (s *metrics) observe(m *module, call string, code codes.Code, took time.Duration) {
	s.calls.WithLabelValues(m.cfg.Kind, m.cfg.Name, call, code.String()).Inc()
	s.seconds.WithLabelValues(m.cfg.Kind, m.cfg.Name, call).Observe(took.Seconds())
}

func (s *metrics) tripped(m *module) { s.breaker.WithLabelValues(m.cfg.Kind, m.cfg.Name).Inc() }

// Describe says nothing: the modules' own series are not known beforehand. Part of prometheus.Collector.
func (s *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect gives everything. Part of prometheus.Collector.
func (s *metrics) Collect(out chan<- prometheus.Metric) {
	s.calls.Collect(out)
	s.seconds.Collect(out)
	s.breaker.Collect(out)
	s.mu.Lock()
	modules := slices.Clone(s.modules)
	own := maps.Clone(s.own)
	s.mu.Unlock()
	for _, m := range modules {
		gauge := func(d *prometheus.Desc, t prometheus.ValueType, v float64) {
			out <- prometheus.MustNewConstMetric(d, t, v, m.cfg.Kind, m.cfg.Name)
		}
		m.mu.Lock()
		restarts, up, pid := m.restarts, m.life != nil, m.pid
		m.mu.Unlock()
		gauge(s.restarts, prometheus.CounterValue, float64(restarts))
		gauge(s.up, prometheus.GaugeValue, map[bool]float64{true: 1}[up])
		gauge(s.owed, prometheus.GaugeValue, float64(m.owed.Load()))
		if bytes := residentMemory(pid); bytes > 0 {
			gauge(s.memory, prometheus.GaugeValue, float64(bytes))
		}
		for _, one := range own[m] {
			out <- prometheus.MustNewConstMetric(one.desc, one.kind, one.value, one.label...)
		}
	}
}

var (
	metricName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,127}$`)
	labelName  = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
)

// take replaces a module's own series. Names and labels that Prometheus would refuse, samples that contradict others,
// and what is above maxSeries are left out: one module must not spoil the whole page.
func (s *metrics) take(m *module, in *modulev1.Metrics) {
	prefix := "mosaic_" + m.cfg.Kind + "_" + m.cfg.Name + "_"
	type shape struct {
		labels  string
		counter bool
	}
	shapes := make(map[string]shape)
	seen := make(map[string]bool)
	var list []series
	left := 0
	for _, sample := range in.GetSamples() {
		names := slices.Sorted(maps.Keys(sample.GetLabels()))
		key := shape{strings.Join(names, ","), sample.GetCounter()}
		values := make([]string, len(names))
		id := sample.GetName()
		ok := len(list) < maxSeries && metricName.MatchString(sample.GetName()) && len(names) <= 10
		for i, n := range names {
			values[i] = cutText(strings.ToValidUTF8(sample.GetLabels()[n], "\uFFFD"), 256)
			ok = ok && labelName.MatchString(n)
			id += "\x00" + values[i]
		}
		if was, known := shapes[sample.GetName()]; !ok || known && was != key || seen[id] {
			left++
			continue
		}
		shapes[sample.GetName()], seen[id] = key, true
		kind := prometheus.GaugeValue
		if sample.GetCounter() {
			kind = prometheus.CounterValue
		}
		desc := prometheus.NewDesc(prefix+sample.GetName(), fmt.Sprintf("Of the module %s itself.", m.cfg.id()), names, nil)
		list = append(list, series{desc, kind, sample.GetValue(), values})
	}
	if left > 0 {
		m.log.Debug("left out series of the module", "series", left)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own[m] = list
}

// residentMemory reads the resident set of a process; 0 if it is gone.
func residentMemory(pid int) uint64 {
	if pid == 0 {
		return 0
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(data)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
