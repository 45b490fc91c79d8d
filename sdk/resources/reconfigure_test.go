package resources

import (
	"math"
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

func TestReconfigurationPolicies(t *testing.T) {
	agent := func(host, rs, as, region string) *mesosv1.AgentInfo {
		attributes, err := ParseAttributes(as)
		if err != nil {
			t.Fatal(err)
		}
		info := &mesosv1.AgentInfo{Hostname: &host, Port: ptr(int32(5051)), Resources: MustParse(rs).Resources(), Attributes: attributes}
		if region != "" {
			info.Domain = &mesosv1.DomainInfo{FaultDomain: &mesosv1.DomainInfo_FaultDomain{
				Region: &mesosv1.DomainInfo_FaultDomain_RegionInfo{Name: &region}, Zone: &mesosv1.DomainInfo_FaultDomain_ZoneInfo{Name: ptr("z")}}}
		}
		return info
	}
	const rs, as = "cpus:4;ports:[1-9]", "rack:r1;slots:[1-3];level:2"
	before := agent("h", rs, as, "")
	port := agent("h", rs, as, "")
	port.Port = ptr(int32(5052))
	for _, tt := range []struct {
		name            string
		now             *mesosv1.AgentInfo
		equal, additive string // what the error says; "" for none
	}{
		{"the same", agent("h", rs, as, ""), "", ""},
		{"attributes in another order", agent("h", rs, "level:2;rack:r1;slots:[1-3]", ""), "", ""},
		{"hostname", agent("i", rs, as, ""), "hostname", "hostname"},
		{"port", port, "port", "port"},
		{"more cpus", agent("h", "cpus:5;ports:[1-9]", as, ""), "resources", ""},
		{"a new resource", agent("h", rs+";mem:5", as, ""), "resources", ""},
		{"fewer cpus", agent("h", "cpus:3;ports:[1-9]", as, ""), "resources", "resources"},
		{"fewer ports", agent("h", "cpus:9;ports:[2-9]", as, ""), "resources", "resources"},
		{"a new attribute", agent("h", rs, as+";row:1", ""), "attributes", ""},
		{"an attribute less", agent("h", rs, "rack:r1;level:2", ""), "attributes", `"slots"`},
		{"another text", agent("h", rs, "rack:r2;slots:[1-3];level:2", ""), `"rack"`, `"rack"`},
		{"a larger range", agent("h", rs, "rack:r1;slots:[1-4];level:2", ""), `"slots"`, ""},
		{"a larger scalar", agent("h", rs, "rack:r1;slots:[1-3];level:3", ""), `"level"`, `"level"`},
		{"a domain", agent("h", rs, as, "west"), "domain", ""},
	} {
		for policy, want := range map[ReconfigurationPolicy]string{ReconfigureEqual: tt.equal, ReconfigureAdditive: tt.additive} {
			err := CheckReconfiguration(policy, before, tt.now)
			if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want) && !strings.HasPrefix(err.Error(), "attribute "+want)) {
				t.Errorf("%s, %s: %v, want %q", tt.name, policy, err, want)
			}
		}
	}
	if err := CheckReconfiguration(ReconfigureAdditive, agent("h", rs, as, "west"), agent("h", rs, as, "east")); err == nil {
		t.Error("another domain is additive")
	}
	if err := CheckReconfiguration("any", before, before); err == nil {
		t.Error("an unknown policy is accepted")
	}
}

func TestBytes(t *testing.T) {
	for text, want := range map[string]Bytes{"64MiB": 64 * MiB, "64MB": 64 * MiB, "1.5GiB": 1536 * MiB, "4096B": 4 * KiB, " 2 TiB ": 2 * TiB, "0B": 0, "8KB": 8 * KiB} {
		got, err := ParseBytes(text)
		if err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %v, %v, want %v", text, got, err, want)
		}
		if again, err := ParseBytes(got.String()); err != nil || again != got {
			t.Errorf("ParseBytes(%q) = %v, %v, want %v", got.String(), again, err, got)
		}
	}
	for _, text := range []string{"", "64", "MiB", "-1MiB", "x B", "1e30TiB", "0.1B", "NaNB", "1 PiB"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("ParseBytes(%q) = %v, want an error", text, got)
		}
	}
	if got := BytesOf(64); got != 64*MiB || got.Scalar() != 64 {
		t.Errorf("BytesOf(64) = %v, Scalar %v", got, got.Scalar())
	}
	for v, want := range map[float64]Bytes{-1: 0, math.Inf(1): math.MaxUint64, 1e300: math.MaxUint64} {
		if got := BytesOf(v); got != want {
			t.Errorf("BytesOf(%v) = %d, want %d", v, got, want)
		}
	}
	if got := BytesOf(math.NaN()); got != 0 {
		t.Errorf("BytesOf(NaN) = %d, want 0", got)
	}
}
