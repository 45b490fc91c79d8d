package resources

import (
	"cmp"
	"math"
	"slices"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// Range is an interval of numbers, both ends included.
type Range struct{ Begin, End uint64 }

// Ranges are intervals in ascending order that neither overlap nor touch. Functions return
// new ones and leave their operands alone.
type Ranges []Range

// NewRanges puts intervals in order and joins those that overlap or touch. Intervals that
// end before they begin are left out.
func NewRanges(rs ...Range) Ranges { return normalise(slices.Clone(rs)) }

func newRanges(v *mesosv1.Value_Ranges) Ranges {
	rs := make(Ranges, 0, len(v.GetRange()))
	for _, r := range v.GetRange() {
		rs = append(rs, Range{r.GetBegin(), r.GetEnd()})
	}
	return normalise(rs)
}

// normalise works in place.
func normalise(rs []Range) Ranges {
	rs = slices.DeleteFunc(rs, func(r Range) bool { return r.Begin > r.End })
	if !slices.IsSortedFunc(rs, compareBegin) {
		slices.SortFunc(rs, compareBegin)
	}
	n := 0
	for _, r := range rs {
		if n > 0 && (rs[n-1].End == math.MaxUint64 || r.Begin <= rs[n-1].End+1) {
			rs[n-1].End = max(rs[n-1].End, r.End)
			continue
		}
		rs[n] = r
		n++
	}
	return rs[:n]
}

func compareBegin(a, b Range) int { return cmp.Compare(a.Begin, b.Begin) }

// Value returns the ranges as a message.
func (rs Ranges) Value() *mesosv1.Value_Ranges {
	out := &mesosv1.Value_Ranges{Range: make([]*mesosv1.Value_Range, len(rs))}
	for i := range rs {
		r := rs[i]
		out.Range[i] = &mesosv1.Value_Range{Begin: &r.Begin, End: &r.End}
	}
	return out
}

// Union returns the numbers in either.
func (rs Ranges) Union(o Ranges) Ranges {
	out := make([]Range, 0, len(rs)+len(o))
	return normalise(append(append(out, rs...), o...))
}

// Subtract returns the numbers in rs and not in o.
func (rs Ranges) Subtract(o Ranges) Ranges {
	out := make(Ranges, 0, len(rs)+len(o))
	j := 0
	for _, r := range rs {
		for j < len(o) && o[j].End < r.Begin {
			j++
		}
		for k := j; k < len(o) && o[k].Begin <= r.End; k++ {
			if o[k].Begin > r.Begin {
				out = append(out, Range{r.Begin, o[k].Begin - 1})
			}
			if o[k].End >= r.End {
				r.Begin, r.End = 1, 0
				break
			}
			r.Begin = o[k].End + 1
		}
		if r.Begin <= r.End {
			out = append(out, r)
		}
	}
	return out
}

// Intersect returns the numbers in both.
func (rs Ranges) Intersect(o Ranges) Ranges {
	var out Ranges
	for i, j := 0, 0; i < len(rs) && j < len(o); {
		if lo, hi := max(rs[i].Begin, o[j].Begin), min(rs[i].End, o[j].End); lo <= hi {
			out = append(out, Range{lo, hi})
		}
		if rs[i].End < o[j].End {
			i++
		} else {
			j++
		}
	}
	return out
}

// Contains says whether every number of o is in rs.
func (rs Ranges) Contains(o Ranges) bool {
	i := 0
	for _, r := range o {
		for i < len(rs) && rs[i].End < r.Begin {
			i++
		}
		if i == len(rs) || rs[i].Begin > r.Begin || rs[i].End < r.End {
			return false
		}
	}
	return true
}

// Count is how many numbers there are, at most the largest uint64.
func (rs Ranges) Count() uint64 {
	var n uint64
	for _, r := range rs {
		c := r.End - r.Begin
		if c == math.MaxUint64 || n+c+1 < n {
			return math.MaxUint64
		}
		n += c + 1
	}
	return n
}

func newItems(items []string) []string {
	out := slices.Clone(items)
	slices.Sort(out)
	return slices.Compact(out)
}

func unionItems(a, b []string) []string {
	return newItems(append(append(make([]string, 0, len(a)+len(b)), a...), b...))
}

func subtractItems(a, b []string) []string {
	out := make([]string, 0, len(a))
	for _, s := range a {
		if _, found := slices.BinarySearch(b, s); !found {
			out = append(out, s)
		}
	}
	return out
}

func containsItems(a, b []string) bool {
	for _, s := range b {
		if _, found := slices.BinarySearch(a, s); !found {
			return false
		}
	}
	return true
}
