package main

import (
	"errors"
	"strconv"
	"strings"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

func upper(s string) string { return strings.ToUpper(s) }

func asNet[T error](err error, target *T) bool { return errors.As(err, target) }

// scalar sums a scalar resource by name.
func scalar(list []*mesosv1.Resource, name string) float64 {
	var sum float64
	for _, r := range list {
		if r.GetName() == name {
			sum += r.GetScalar().GetValue()
		}
	}
	return sum
}

// number prints an amount without needless digits.
func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// age prints how long ago t was, as short as it can be said.
func age(t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return ""
	}
	d := time.Since(t)
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + "h"
	}
	return strconv.Itoa(int(d.Hours()/24)) + "d"
}
