package resources

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is an amount of memory or disk. On the wire mem and disk are scalars in MiB, though
// Mesos writes MB: BytesOf and Scalar convert.
type Bytes uint64

// Units of Bytes.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var byteUnits = []struct {
	name string
	unit Bytes
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}

// BytesOf returns the bytes of a scalar in MiB, rounded to the nearest byte. What is not above
// 0 is none; what is too large is the most there can be.
func BytesOf(mebibytes float64) Bytes {
	switch v := math.Round(mebibytes * float64(MiB)); {
	case !(v > 0):
		return 0
	case v >= math.MaxUint64:
		return math.MaxUint64
	default:
		return Bytes(v)
	}
}

// Scalar returns the amount in MiB, as mem and disk have it.
func (b Bytes) Scalar() float64 { return float64(b) / float64(MiB) }

// String returns the amount in the largest unit in which it is whole: "64MiB", "1500B".
func (b Bytes) String() string {
	for _, u := range byteUnits {
		if b >= u.unit && b%u.unit == 0 {
			return strconv.FormatUint(uint64(b/u.unit), 10) + u.name
		}
	}
	return "0B"
}

// ParseBytes reads "64MiB", "1.5GiB", "4096B" and also Mesos's "64MB", by which it means MiB.
func ParseBytes(text string) (Bytes, error) {
	trimmed := strings.TrimSpace(text)
	for _, u := range byteUnits {
		for _, name := range []string{u.name, strings.Replace(u.name, "iB", "B", 1)} {
			number, found := strings.CutSuffix(trimmed, name)
			if !found {
				continue
			}
			v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
			if err != nil {
				break // "64MB" ends in "B" too: a shorter unit cannot fit either
			}
			if v = v * float64(u.unit); !(v >= 0) || v >= math.MaxUint64 || v != math.Trunc(v) {
				return 0, fmt.Errorf("size %q: is not a whole number of bytes that fits 64 bits", text)
			}
			return Bytes(v), nil
		}
	}
	return 0, fmt.Errorf("size %q: want a number and one of B, KiB, MiB, GiB, TiB", text)
}
