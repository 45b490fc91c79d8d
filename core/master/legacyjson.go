package master

import (
	"strconv"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	"github.com/mosaic-cluster/mosaic/sdk/resources"
)

// The helpers below append one member and a comma; mesosjson.CloseObject turns the last comma into the
// closing bracket.

func key(b []byte, name string) []byte {
	b = mesosjson.AppendString(b, name)
	return append(b, ':')
}

func text(b []byte, name, value string) []byte {
	return append(mesosjson.AppendString(key(b, name), value), ',')
}

func number(b []byte, name string, value float64) []byte {
	return append(mesosjson.AppendDouble(key(b, name), value), ',')
}

func integer(b []byte, name string, value int64) []byte {
	return append(strconv.AppendInt(key(b, name), value, 10), ',')
}

func boolean(b []byte, name string, value bool) []byte {
	return append(strconv.AppendBool(key(b, name), value), ',')
}

// object appends a member that body fills.
func object(b []byte, name string, body func([]byte) []byte) []byte {
	b = append(key(b, name), '{')
	return append(mesosjson.CloseObject(body(b)), ',')
}

// list appends a member whose elements body appends, each with a comma behind it.
func list(b []byte, name string, body func([]byte) []byte) []byte {
	return append(array(key(b, name), body), ',')
}

// array appends a list without a name.
func array(b []byte, body func([]byte) []byte) []byte {
	b = body(append(b, '['))
	if b[len(b)-1] == ',' {
		b = b[:len(b)-1]
	}
	return append(b, ']')
}

func texts(b []byte, name string, values []string) []byte {
	return list(b, name, func(b []byte) []byte {
		for _, v := range values {
			b = append(mesosjson.AppendString(b, v), ',')
		}
		return b
	})
}

// message appends a member that is a message in the v1 form.
func message(b []byte, name string, m mesosjson.Appender) []byte {
	return append(m.AppendJSON(key(b, name)), ',')
}

// summary appends resources as older endpoints sum them up: cpus, gpus, mem and disk always, the rest if
// there is any, revocable ones under names of their own.
func summary(b []byte, name string, set resources.Set) []byte {
	return object(b, name, func(b []byte) []byte {
		b = summaryPart(b, set.NonRevocable(), "", true)
		return summaryPart(b, set.Revocable(), "_revocable", false)
	})
}

func summaryPart(b []byte, set resources.Set, suffix string, always bool) []byte {
	kinds := make(map[string]mesosv1.Value_Type)
	if always {
		for _, n := range []string{"cpus", "gpus", "mem", "disk"} {
			kinds[n] = mesosv1.Value_SCALAR
		}
	}
	entries := set.Entries()
	for i := range entries {
		kinds[entries[i].Name()] = entries[i].Type()
	}
	for _, n := range sortedKeys(kinds) {
		switch kinds[n] {
		case mesosv1.Value_RANGES:
			b = text(b, n+suffix, set.Ranges(n).String())
		case mesosv1.Value_SET:
			b = text(b, n+suffix, "{"+join(set.Items(n))+"}")
		default:
			b = number(b, n+suffix, set.Scalar(n))
		}
	}
	return b
}

func join(items []string) string {
	var b []byte
	for i, s := range items {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, s...)
	}
	return string(b)
}

// reserved appends reservations by role.
func reserved(b []byte, name string, total resources.Set) []byte {
	byRole := total.Reservations()
	return object(b, name, func(b []byte) []byte {
		for _, role := range sortedKeys(byRole) {
			b = summary(b, role, byRole[role])
		}
		return b
	})
}

// quantities appends scalars above zero.
func quantities(b []byte, name string, q resources.Quantities) []byte {
	return object(b, name, func(b []byte) []byte {
		for _, n := range q.Names() {
			b = number(b, n, q[n])
		}
		return b
	})
}

func appendFlags(b []byte, flags map[string]string) []byte {
	return object(b, "flags", func(b []byte) []byte {
		for _, n := range sortedKeys(flags) {
			b = text(b, n, flags[n])
		}
		return b
	})
}

func labels(b []byte, name string, l *mesosv1.Labels) []byte {
	if l == nil {
		return b
	}
	return list(b, name, func(b []byte) []byte {
		for _, x := range l.GetLabels() {
			b = append(x.AppendJSON(b), ',')
		}
		return b
	})
}

func attributes(b []byte, name string, attrs []*mesosv1.Attribute) []byte {
	return object(b, name, func(b []byte) []byte {
		for _, a := range attrs {
			switch a.GetType() {
			case mesosv1.Value_SCALAR:
				b = number(b, a.GetName(), a.GetScalar().GetValue())
			case mesosv1.Value_TEXT:
				b = text(b, a.GetName(), a.GetText().GetValue())
			case mesosv1.Value_RANGES:
				b = text(b, a.GetName(), rangesText(a.GetRanges()))
			case mesosv1.Value_SET:
				b = text(b, a.GetName(), "{"+join(a.GetSet().GetItem())+"}")
			}
		}
		return b
	})
}

func rangesText(r *mesosv1.Value_Ranges) string {
	var list []resources.Range
	for _, x := range r.GetRange() {
		list = append(list, resources.Range{Begin: x.GetBegin(), End: x.GetEnd()})
	}
	return resources.NewRanges(list...).String()
}
