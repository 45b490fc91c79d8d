package resources

import (
	"strings"
	"testing"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

func TestParseReadsFlagsAndJSON(t *testing.T) {
	for _, tt := range []struct{ text, role, want string }{
		{"cpus:2;mem:1024", "*", "cpus:2; mem:1024"},
		{" cpus : 0.5 ; ports(eng) : [ 1-2, 5-9 ] ;", "*", "cpus:0.5; ports(reservations: [(STATIC,eng)]):[1-2, 5-9]"},
		{"disks:{b,a}", "ops", "disks(reservations: [(STATIC,ops)]):{a, b}"},
		{"cpus(*):1;cpus:2", "ops", "cpus:1; cpus(reservations: [(STATIC,ops)]):2"},
		{"cpus:1;cpus:2", "*", "cpus:3"},
		{"cpus:0;mem:1", "*", "mem:1"},
		{"", "*", ""},
		{`[{"name":"cpus","type":"SCALAR","scalar":{"value":2},"role":"eng"},
		   {"name":"ports","type":"RANGES","ranges":{"range":[{"begin":1,"end":5}]},"unknown":1}]`, "*",
			"cpus(reservations: [(STATIC,eng)]):2; ports:[1-5]"},
		{`[{"name":"cpus","type":"SCALAR","scalar":{"value":2},"reservations":[{"type":"DYNAMIC","role":"a","principal":"p"},{"type":"DYNAMIC","role":"a/b"}]}]`, "x",
			"cpus(reservations: [(DYNAMIC,a,p),(DYNAMIC,a/b)]):2"},
	} {
		rs, err := Parse(tt.text, tt.role)
		if err != nil {
			t.Errorf("Parse(%q, %q): %v", tt.text, tt.role, err)
			continue
		}
		if got := New(rs...).String(); got != tt.want {
			t.Errorf("Parse(%q, %q) = %s, want %s", tt.text, tt.role, got, tt.want)
		}
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"cpus":                          "missing or extra ':'",
		"cpus:1:2":                      "missing or extra ':'",
		"cpus(eng:1":                    "mismatched parentheses",
		"cpus):1":                       "mismatched parentheses",
		"cpus():1":                      "no role",
		"cpus(a//b):1":                  "two slashes",
		"cpus:":                         "no value",
		"cpus:many":                     "neither a number",
		"cpus:NaN":                      "not a finite number",
		"cpus:-1":                       "negative",
		"gpus:0.5":                      "whole number",
		"ports:[5-1]":                   "ends before it begins",
		"ports:[5]":                     "BEGIN-END",
		"ports:[1-2":                    "do not end",
		"disks:{a,a}":                   "twice",
		":1":                            "empty name",
		"x:1;x:{a}":                     "is both",
		`[{"name":"cpus"}]`:             "type",
		`[1]`:                           "resource 0",
		`[{]`:                           "invalid",
		"s:{a,b};" + largeText(maxText): "at most",
	} {
		_, err := Parse(text, "*")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.40q) = %v, want an error that says %q", text, err, want)
		}
	}
}

func largeText(n int) string { return strings.Repeat("x", n) }

func TestParseAttributes(t *testing.T) {
	as, err := ParseAttributes("rack:row 3:left; level:10.5;\nslots:[1-3]")
	if err != nil {
		t.Fatalf("ParseAttributes: %v", err)
	}
	if len(as) != 3 || as[0].GetText().GetValue() != "row 3:left" || as[1].GetScalar().GetValue() != 10.5 ||
		as[2].GetRanges().GetRange()[0].GetEnd() != 3 {
		t.Errorf("ParseAttributes = %v, want text, scalar, ranges", as)
	}
	for _, bad := range []string{"rack", ":x", "a:", "a:{b}"} {
		if got, err := ParseAttributes(bad); err == nil {
			t.Errorf("ParseAttributes(%q) = %v, want an error", bad, got)
		}
	}
}

func TestValidateRole(t *testing.T) {
	for _, good := range []string{"*", "eng", "eng/dev", "e.n-g_1", "a/b/c"} {
		if err := ValidateRole(good); err != nil {
			t.Errorf("ValidateRole(%q) = %v, want nil", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "-x", "/a", "a/", "a//b", "a/./b", "a/..", "a/*", "a b", "a\tb", "a\bb", "a/-b"} {
		if err := ValidateRole(bad); err == nil {
			t.Errorf("ValidateRole(%q) = nil, want an error", bad)
		}
	}
}

func TestValidateRefusesWhatCannotBe(t *testing.T) {
	both := scalar("cpus", 1, "eng")
	both.Role = ptr("eng")
	mixed := scalar("cpus", 1)
	mixed.Ranges = &mesosv1.Value_Ranges{}
	overlap := &mesosv1.Resource{Name: ptr("ports"), Type: mesosv1.Value_RANGES.Enum(), Ranges: &mesosv1.Value_Ranges{
		Range: []*mesosv1.Value_Range{{Begin: ptr(uint64(1)), End: ptr(uint64(5))}, {Begin: ptr(uint64(5)), End: ptr(uint64(6))}}}}
	starDynamic := scalar("cpus", 1)
	starDynamic.Reservation = &mesosv1.Resource_ReservationInfo{}
	diskOnCPU := scalar("cpus", 1)
	diskOnCPU.Disk = &mesosv1.Resource_DiskInfo{}
	sharedCPU := scalar("cpus", 1)
	sharedCPU.Shared = &mesosv1.Resource_SharedInfo{}
	unreserved := volume(1, "eng", "v", false)
	unreserved.Reservations = nil
	for name, r := range map[string]*mesosv1.Resource{
		"nil": nil, "both formats": both, "two values": mixed, "overlap": overlap,
		"static on top":       {Name: ptr("cpus"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: ptr(1.0)}, Reservations: []*mesosv1.Resource_ReservationInfo{reservation(dynamic, "a"), reservation(static, "a/b")}},
		"no refinement":       scalar("cpus", 1, "a", "b"),
		"reserved to *":       scalar("cpus", 1, "*"),
		"dynamic *":           starDynamic,
		"disk on cpus":        diskOnCPU,
		"shared cpus":         sharedCPU,
		"unreserved volume":   unreserved,
		"revocable volume":    revocable(volume(1, "eng", "v", false)),
		"volume id .. ":       volume(1, "eng", "..", false),
		"volume id a/b":       volume(1, "eng", "a/b", false),
		"half a gpu":          scalar("gpus", 0.5),
		"unknown source type": disk(scalar("disk", 1), mesosv1.Resource_DiskInfo_Source_UNKNOWN, ""),
	} {
		if err := Validate(r); err == nil {
			t.Errorf("%s: Validate(%v) = nil, want an error", name, r)
		}
	}
	for _, r := range []*mesosv1.Resource{scalar("cpus", 1, "=a", "a/b"), volume(1, "eng", "v", true), scalar("gpus", 2), scalar("cpus", 0)} {
		if err := Validate(r); err != nil {
			t.Errorf("Validate(%v) = %v, want nil", r, err)
		}
	}
}

func TestFormatsConvertBackAndForth(t *testing.T) {
	plain, reserved, refined := scalar("cpus", 1), scalar("cpus", 2, "eng"), scalar("cpus", 3, "=eng", "eng/dev")
	reserved.Reservations[0].Principal = ptr("ann")
	old, err := ToPreRefinement([]*mesosv1.Resource{plain, reserved, scalar("mem", 1, "=eng")})
	if err != nil {
		t.Fatal(err)
	}
	if old[0].Role == nil || *old[0].Role != "*" || old[0].Reservation != nil {
		t.Errorf("unreserved in the old format = %v, want role \"*\"", old[0])
	}
	if old[1].GetRole() != "eng" || old[1].Reservation.GetPrincipal() != "ann" || old[1].Reservation.Role != nil || len(old[1].Reservations) != 0 {
		t.Errorf("dynamic reservation in the old format = %v, want role and reservation", old[1])
	}
	if old[2].GetRole() != "eng" || old[2].Reservation != nil {
		t.Errorf("static reservation in the old format = %v, want role only", old[2])
	}
	if back := New(ToPostRefinement(old)...); !back.Equal(New(plain, reserved, scalar("mem", 1, "=eng"))) {
		t.Errorf("back in the new format = %s", back)
	}
	if _, err := ToPreRefinement([]*mesosv1.Resource{refined}); err == nil {
		t.Error("ToPreRefinement of a refined reservation succeeded")
	}
	both := ToEndpoint([]*mesosv1.Resource{plain, reserved, refined})
	if both[0].GetRole() != "*" || both[1].GetRole() != "eng" || len(both[1].Reservations) != 1 || both[2].Role != nil || len(both[2].Reservations) != 2 {
		t.Errorf("ToEndpoint = %v", both)
	}
	if plain.Role != nil || len(reserved.Reservations) != 1 {
		t.Error("conversion changed the messages it was given")
	}
}

func operation(kind mesosv1.Offer_Operation_Type, rs ...*mesosv1.Resource) *mesosv1.Offer_Operation {
	op := &mesosv1.Offer_Operation{Type: kind.Enum()}
	switch kind {
	case mesosv1.Offer_Operation_RESERVE:
		op.Reserve = &mesosv1.Offer_Operation_Reserve{Resources: rs}
	case mesosv1.Offer_Operation_UNRESERVE:
		op.Unreserve = &mesosv1.Offer_Operation_Unreserve{Resources: rs}
	case mesosv1.Offer_Operation_CREATE:
		op.Create = &mesosv1.Offer_Operation_Create{Volumes: rs}
	case mesosv1.Offer_Operation_DESTROY:
		op.Destroy = &mesosv1.Offer_Operation_Destroy{Volumes: rs}
	case mesosv1.Offer_Operation_GROW_VOLUME:
		op.GrowVolume = &mesosv1.Offer_Operation_GrowVolume{Volume: rs[0], Addition: rs[1]}
	case mesosv1.Offer_Operation_SHRINK_VOLUME:
		op.ShrinkVolume = &mesosv1.Offer_Operation_ShrinkVolume{Volume: rs[0], Subtract: rs[1].Scalar}
	}
	return op
}

func TestOperationsConvertAndUndoEachOther(t *testing.T) {
	const (
		reserve, unreserve = mesosv1.Offer_Operation_RESERVE, mesosv1.Offer_Operation_UNRESERVE
		create, destroy    = mesosv1.Offer_Operation_CREATE, mesosv1.Offer_Operation_DESTROY
		grow, shrink       = mesosv1.Offer_Operation_GROW_VOLUME, mesosv1.Offer_Operation_SHRINK_VOLUME
	)
	at := MustParse("cpus:4;disk:100")
	for _, step := range []struct {
		op   *mesosv1.Offer_Operation
		want string
	}{
		{operation(reserve, scalar("cpus", 1, "eng"), scalar("disk", 60, "eng")), "cpus:3; disk:40; cpus(reservations: [(DYNAMIC,eng)]):1; disk(reservations: [(DYNAMIC,eng)]):60"},
		{operation(reserve, scalar("cpus", 1, "eng", "eng/dev")), "cpus:3; disk:40; disk(reservations: [(DYNAMIC,eng)]):60; cpus(reservations: [(DYNAMIC,eng),(DYNAMIC,eng/dev)]):1"},
		{operation(create, volume(20, "eng", "v", false)), "cpus:3; disk:40; disk(reservations: [(DYNAMIC,eng)]):40; cpus(reservations: [(DYNAMIC,eng),(DYNAMIC,eng/dev)]):1; disk(reservations: [(DYNAMIC,eng)])[v:data]:20"},
		{operation(grow, volume(20, "eng", "v", false), scalar("disk", 5, "eng")), "cpus:3; disk:40; disk(reservations: [(DYNAMIC,eng)]):35; cpus(reservations: [(DYNAMIC,eng),(DYNAMIC,eng/dev)]):1; disk(reservations: [(DYNAMIC,eng)])[v:data]:25"},
		{operation(shrink, volume(25, "eng", "v", false), scalar("disk", 15)), "cpus:3; disk:40; disk(reservations: [(DYNAMIC,eng)]):50; cpus(reservations: [(DYNAMIC,eng),(DYNAMIC,eng/dev)]):1; disk(reservations: [(DYNAMIC,eng)])[v:data]:10"},
		{operation(destroy, volume(10, "eng", "v", false)), "cpus:3; disk:40; disk(reservations: [(DYNAMIC,eng)]):60; cpus(reservations: [(DYNAMIC,eng),(DYNAMIC,eng/dev)]):1"},
		{operation(unreserve, scalar("cpus", 1, "eng", "eng/dev")), "cpus:3; disk:40; disk(reservations: [(DYNAMIC,eng)]):60; cpus(reservations: [(DYNAMIC,eng)]):1"},
		{operation(unreserve, scalar("cpus", 1, "eng"), scalar("disk", 60, "eng")), "cpus:4; disk:100"},
	} {
		next, err := at.ApplyOperation(step.op)
		if err != nil {
			t.Fatalf("%v on %s: %v", step.op.GetType(), at, err)
		}
		if next.String() != step.want {
			t.Fatalf("%v on %s = %s, want %s", step.op.GetType(), at, next, step.want)
		}
		at = next
	}
	if !at.Equal(MustParse("cpus:4;disk:100")) {
		t.Errorf("after undoing all: %s", at)
	}
}

func TestOperationsRefuse(t *testing.T) {
	have := New(scalar("cpus", 4), scalar("disk", 100, "eng"), volume(10, "eng", "v", false), volume(10, "eng", "s", true),
		scalar("mem", 5, "=eng"))
	for name, op := range map[string]*mesosv1.Offer_Operation{
		"reserve more":          operation(mesosv1.Offer_Operation_RESERVE, scalar("cpus", 5, "eng")),
		"reserve nothing":       operation(mesosv1.Offer_Operation_RESERVE, scalar("cpus", 1)),
		"unreserve static":      operation(mesosv1.Offer_Operation_UNRESERVE, scalar("mem", 5, "=eng")),
		"unreserve volume":      operation(mesosv1.Offer_Operation_UNRESERVE, volume(10, "eng", "v", false)),
		"create no volume":      operation(mesosv1.Offer_Operation_CREATE, scalar("disk", 5, "eng")),
		"create too large":      operation(mesosv1.Offer_Operation_CREATE, volume(101, "eng", "w", false)),
		"destroy another":       operation(mesosv1.Offer_Operation_DESTROY, volume(10, "eng", "w", false)),
		"grow by unreserved":    operation(mesosv1.Offer_Operation_GROW_VOLUME, volume(10, "eng", "v", false), scalar("disk", 1)),
		"grow shared":           operation(mesosv1.Offer_Operation_GROW_VOLUME, volume(10, "eng", "s", true), scalar("disk", 1, "eng")),
		"shrink to nothing":     operation(mesosv1.Offer_Operation_SHRINK_VOLUME, volume(10, "eng", "v", false), scalar("disk", 10)),
		"create disk":           {Type: mesosv1.Offer_Operation_CREATE_DISK.Enum()},
		"unknown":               {},
		"grow without anything": {Type: mesosv1.Offer_Operation_GROW_VOLUME.Enum()},
	} {
		if got, err := have.ApplyOperation(op); err == nil {
			t.Errorf("%s: = %s, want an error", name, got)
		}
	}
}

func TestReserveWithSourceReplacesReservations(t *testing.T) {
	op := operation(mesosv1.Offer_Operation_RESERVE, scalar("cpus", 2, "ops"))
	op.Reserve.Source = []*mesosv1.Resource{scalar("cpus", 2, "eng")}
	got, err := New(scalar("cpus", 3, "eng")).ApplyOperation(op)
	if want := New(scalar("cpus", 1, "eng"), scalar("cpus", 2, "ops")); err != nil || !got.Equal(want) {
		t.Errorf("= %s, %v, want %s", got, err, want)
	}
	op.Reserve.Source[0] = scalar("cpus", 1, "eng")
	if got, err := New(scalar("cpus", 3, "eng")).ApplyOperation(op); err == nil {
		t.Errorf("source of another amount: = %s, want an error", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"cpus:1;ports(a):[1-2];d:{a}", `[{"name":"cpus","type":"SCALAR","scalar":{"value":1}}]`, "a:[0-18446744073709551615]", "[[[[", "x:1e999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rs, err := Parse(text, "*")
		if err != nil {
			return
		}
		for _, r := range rs {
			if err := Validate(r); err != nil {
				t.Errorf("Parse(%q) made an invalid resource: %v", text, err)
			}
		}
	})
}
