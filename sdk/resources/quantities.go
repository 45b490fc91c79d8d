package resources

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Quantities are amounts of scalar resources by name, without reservations, volumes or
// anything else: {"cpus": 2, "mem": 1024}. Amounts are rounded to thousandths; a name that
// is missing counts as 0. Functions return new maps.
type Quantities map[string]float64

// Quantities adds up the scalars of a set by name.
func (s Set) Quantities() Quantities {
	q := make(Quantities, len(s.entries))
	for i := range s.entries {
		if e := &s.entries[i]; e.id.kind == mesosv1.Value_SCALAR {
			q[e.id.name] = round(q[e.id.name] + fromMilli(e.milli))
		}
	}
	return q
}

// QuantitiesOf reads the form that quotas and offer filters have on the wire. Undefined and
// negative amounts count as 0; an infinite one stays infinite.
func QuantitiesOf(m map[string]*mesosv1.Value_Scalar) Quantities {
	q := make(Quantities, len(m))
	for name, v := range m {
		if x := v.GetValue(); x > 0 {
			q[name] = round(x)
		} else {
			q[name] = 0
		}
	}
	return q
}

// ParseQuantities reads "cpus:2;mem:1024".
func ParseQuantities(text string) (Quantities, error) {
	rs, err := Parse(text, "*")
	if err != nil {
		return nil, err
	}
	return New(rs...).Quantities(), nil
}

// Scalars returns the quantities in the form of the wire.
func (q Quantities) Scalars() map[string]*mesosv1.Value_Scalar {
	out := make(map[string]*mesosv1.Value_Scalar, len(q))
	for name, v := range q {
		out[name] = &mesosv1.Value_Scalar{Value: &v}
	}
	return out
}

// Add returns the sums.
func (q Quantities) Add(o Quantities) Quantities {
	out := maps.Clone(q)
	if out == nil {
		out = Quantities{}
	}
	for name, v := range o {
		out[name] = round(out[name] + v)
	}
	return out
}

// Subtract returns the differences, none below 0.
func (q Quantities) Subtract(o Quantities) Quantities {
	out := make(Quantities, len(q))
	for name, v := range q {
		if d := round(v - o[name]); d > 0 {
			out[name] = d
		}
	}
	return out
}

// Contains says whether q has at least as much as o of everything that o names.
func (q Quantities) Contains(o Quantities) bool {
	for name, v := range o {
		if round(q[name]) < round(v) {
			return false
		}
	}
	return true
}

// Names returns the names with an amount above 0, in order.
func (q Quantities) Names() []string {
	names := make([]string, 0, len(q))
	for name, v := range q {
		if v > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// String returns "cpus:2; mem:1024", in the order of names.
func (q Quantities) String() string {
	var b strings.Builder
	for i, name := range q.Names() {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(name + ":" + formatScalar(q[name]))
	}
	return b.String()
}

func round(v float64) float64 {
	if math.IsInf(v, 0) {
		return v
	}
	return math.Round(v*1000) / 1000
}

func formatScalar(v float64) string { return strconv.FormatFloat(round(v), 'f', -1, 64) }
