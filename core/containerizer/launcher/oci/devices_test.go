package oci

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestWhatIsAllowedAroundTakesThePlaceOfAll(t *testing.T) {
	n := func(n int64) *int64 { return &n }
	all := specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"}
	none := specs.LinuxDeviceCgroup{Access: "rwm"}
	one := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: n(1), Minor: n(3), Access: "rwm"}
	nodes := specs.LinuxDeviceCgroup{Allow: true, Type: "b", Access: "m"}
	gpu := specs.LinuxDeviceCgroup{Type: "c", Major: n(195), Access: "rw"}
	for _, test := range []struct {
		list        string
		rules, want []specs.LinuxDeviceCgroup
	}{
		{"a *:* rwm\n", []specs.LinuxDeviceCgroup{all}, []specs.LinuxDeviceCgroup{all}},
		{"", []specs.LinuxDeviceCgroup{all}, []specs.LinuxDeviceCgroup{none}},
		{"c 1:3 rwm\nb *:* m\n", []specs.LinuxDeviceCgroup{all, gpu}, []specs.LinuxDeviceCgroup{none, one, nodes, gpu}},
		{"c 1:3 rwm\n", []specs.LinuxDeviceCgroup{none, gpu}, []specs.LinuxDeviceCgroup{none, gpu}},
	} {
		around, err := parseDevices(strings.NewReader(test.list))
		if err != nil {
			t.Errorf("parseDevices(%q): %v", test.list, err)
			continue
		}
		if diff := cmp.Diff(test.want, within(around, test.rules)); diff != "" {
			t.Errorf("below %q, within(%v) (-want +got):\n%s", test.list, test.rules, diff)
		}
	}
}

func TestListsOfDevicesThatMakeNoSenseAreRefused(t *testing.T) {
	for _, list := range []string{"c 1:3", "x 1:3 rwm", "c 1 rwm", "c 1:x rwm", "c 99999999999999999999:1 rwm", strings.Repeat("c 1:3 rwm\n", maxDeviceRules+1)} {
		if rules, err := parseDevices(strings.NewReader(list)); err == nil {
			t.Errorf("parseDevices(%.40q) = %d rules, want an error", list, len(rules))
		}
	}
}
