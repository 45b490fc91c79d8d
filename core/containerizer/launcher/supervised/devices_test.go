package supervised

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func TestWhatIsAllowedAroundTakesThePlaceOfAll(t *testing.T) {
	n := func(n int64) *int64 { return &n }
	all := &containerv1.DeviceRule{Allow: true, Type: "a", Access: "rwm"}
	none := &containerv1.DeviceRule{Type: "a", Access: "rwm"}
	one := &containerv1.DeviceRule{Allow: true, Type: "c", Major: n(1), Minor: n(3), Access: "rwm"}
	nodes := &containerv1.DeviceRule{Allow: true, Type: "b", Access: "m"}
	gpu := &containerv1.DeviceRule{Type: "c", Major: n(195), Access: "rw"}
	for _, test := range []struct {
		list        string
		rules, want []*containerv1.DeviceRule
	}{
		{"a *:* rwm\n", []*containerv1.DeviceRule{all}, []*containerv1.DeviceRule{all}},
		{"", []*containerv1.DeviceRule{all}, []*containerv1.DeviceRule{none}},
		{"c 1:3 rwm\nb *:* m\n", []*containerv1.DeviceRule{all, gpu}, []*containerv1.DeviceRule{none, one, nodes, gpu}},
		{"c 1:3 rwm\n", []*containerv1.DeviceRule{none, gpu}, []*containerv1.DeviceRule{none, gpu}},
	} {
		around, err := parseDevices(strings.NewReader(test.list))
		if err != nil {
			t.Errorf("parseDevices(%q): %v", test.list, err)
			continue
		}
		if diff := cmp.Diff(test.want, DevicesWithin(around, test.rules), protocmp.Transform()); diff != "" {
			t.Errorf("below %q, DevicesWithin(%v) (-want +got):\n%s", test.list, test.rules, diff)
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
