package resources

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

func ptr[T any](v T) *T { return &v }

func reservation(kind mesosv1.Resource_ReservationInfo_Type, role string) *mesosv1.Resource_ReservationInfo {
	return &mesosv1.Resource_ReservationInfo{Type: kind.Enum(), Role: &role}
}

const (
	static  = mesosv1.Resource_ReservationInfo_STATIC
	dynamic = mesosv1.Resource_ReservationInfo_DYNAMIC
)

// scalar makes a scalar with a stack of reservations, the first static, the others dynamic.
func scalar(name string, v float64, roles ...string) *mesosv1.Resource {
	r := &mesosv1.Resource{
		Name: &name, Type: mesosv1.Value_SCALAR.Enum(),
		Scalar: &mesosv1.Value_Scalar{Value: &v},
	}
	for i, role := range roles {
		kind := dynamic
		if i == 0 && strings.HasPrefix(role, "=") {
			kind, role = static, role[1:]
		}
		r.Reservations = append(r.Reservations, reservation(kind, role))
	}
	return r
}

func volume(size float64, role, id string, shared bool) *mesosv1.Resource {
	r := scalar("disk", size, role)
	r.Disk = &mesosv1.Resource_DiskInfo{
		Persistence: &mesosv1.Resource_DiskInfo_Persistence{Id: &id},
		Volume: &mesosv1.Volume{
			ContainerPath: ptr("data"), Mode: mesosv1.Volume_RW.Enum(),
		},
	}
	if shared {
		r.Shared = &mesosv1.Resource_SharedInfo{}
	}
	return r
}

func revocable(r *mesosv1.Resource) *mesosv1.Resource {
	r.Revocable = &mesosv1.Resource_RevocableInfo{}
	return r
}

func disk(r *mesosv1.Resource, kind mesosv1.Resource_DiskInfo_Source_Type, root string) *mesosv1.Resource {
	src := &mesosv1.Resource_DiskInfo_Source{Type: kind.Enum()}
	switch kind {
	case mesosv1.Resource_DiskInfo_Source_PATH:
		src.Path = &mesosv1.Resource_DiskInfo_Source_Path{Root: &root}
	case mesosv1.Resource_DiskInfo_Source_MOUNT:
		src.Mount = &mesosv1.Resource_DiskInfo_Source_Mount{Root: &root}
	}
	if r.Disk == nil {
		r.Disk = &mesosv1.Resource_DiskInfo{}
	}
	r.Disk.Source = src
	return r
}

func TestAddAndSubtractMergeWhatIsTheSame(t *testing.T) {
	mount := disk(scalar("disk", 100), mesosv1.Resource_DiskInfo_Source_MOUNT, "/d1")
	path := disk(scalar("disk", 100), mesosv1.Resource_DiskInfo_Source_PATH, "/p1")
	for _, tt := range []struct {
		name             string
		a, b, sum, minus Set // minus is a-b
	}{
		{"scalars", MustParse("cpus:1.5;mem:10"), MustParse("cpus:0.1"), MustParse("cpus:1.6;mem:10"), MustParse("cpus:1.4;mem:10")},
		{"a tenth ten times over is exact", MustParse("cpus:0.9"), MustParse("cpus:0.1"), MustParse("cpus:1"), MustParse("cpus:0.8")},
		{"ranges", MustParse("ports:[1-10]"), MustParse("ports:[5-6,20-20]"), MustParse("ports:[1-10,20-20]"), MustParse("ports:[1-4,7-10]")},
		{"sets", MustParse("disks:{a,b}"), MustParse("disks:{b,c}"), MustParse("disks:{a,b,c}"), MustParse("disks:{a}")},
		{"reservations stay apart", New(scalar("cpus", 1, "eng")), MustParse("cpus:1"), New(scalar("cpus", 1), scalar("cpus", 1, "eng")), New(scalar("cpus", 1, "eng"))},
		{"static and dynamic stay apart", New(scalar("cpus", 1, "=eng")), New(scalar("cpus", 1, "eng")), New(scalar("cpus", 1, "eng"), scalar("cpus", 1, "=eng")), New(scalar("cpus", 1, "=eng"))},
		{"revocable stays apart", MustParse("cpus:1"), New(revocable(scalar("cpus", 1))), New(scalar("cpus", 1), revocable(scalar("cpus", 1))), MustParse("cpus:1")},
		{"allocation stays apart", MustParse("cpus:1").Allocate("a"), MustParse("cpus:1").Allocate("b"), Sum(MustParse("cpus:1").Allocate("a"), MustParse("cpus:1").Allocate("b")), MustParse("cpus:1").Allocate("a")},
		{"mounted disks are whole", New(mount), New(disk(scalar("disk", 40), mesosv1.Resource_DiskInfo_Source_MOUNT, "/d1")), New(mount, disk(scalar("disk", 40), mesosv1.Resource_DiskInfo_Source_MOUNT, "/d1")), New(mount)},
		{"path disks are not", New(path), New(disk(scalar("disk", 40), mesosv1.Resource_DiskInfo_Source_PATH, "/p1")), New(disk(scalar("disk", 140), mesosv1.Resource_DiskInfo_Source_PATH, "/p1")), New(disk(scalar("disk", 60), mesosv1.Resource_DiskInfo_Source_PATH, "/p1"))},
		{"volumes are whole", New(volume(10, "eng", "v", false)), New(volume(4, "eng", "v", false)), New(volume(10, "eng", "v", false), volume(4, "eng", "v", false)), New(volume(10, "eng", "v", false))},
		{"more than there is leaves nothing", MustParse("cpus:1"), MustParse("cpus:2"), MustParse("cpus:3"), Set{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.a.Add(tt.b); !got.Equal(tt.sum) {
				t.Errorf("%s.Add(%s) = %s, want %s", tt.a, tt.b, got, tt.sum)
			}
			if got := tt.a.Subtract(tt.b); !got.Equal(tt.minus) {
				t.Errorf("%s.Subtract(%s) = %s, want %s", tt.a, tt.b, got, tt.minus)
			}
		})
	}
}

func TestContainsComparesAllButAmountsExactly(t *testing.T) {
	labelled := scalar("cpus", 1, "eng")
	labelled.Reservations[0].Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: ptr("a")}, {Key: ptr("b"), Value: ptr("c")}}}
	relabelled := scalar("cpus", 1, "eng")
	relabelled.Reservations[0].Labels = &mesosv1.Labels{Labels: []*mesosv1.Label{{Key: ptr("b"), Value: ptr("c")}, {Key: ptr("a")}}}
	provided := scalar("disk", 5)
	provided.ProviderId = &mesosv1.ResourceProviderID{Value: ptr("rp")}
	otherPath := volume(10, "eng", "v", false)
	otherPath.Disk.Volume.ContainerPath = ptr("elsewhere")
	otherPath.Disk.Persistence.Principal = ptr("somebody")
	for _, tt := range []struct {
		name string
		a, b Set
		want bool
	}{
		{"itself", MustParse("cpus:1;ports:[1-2]"), MustParse("ports:[1-2];cpus:1"), true},
		{"nothing", MustParse("cpus:1"), Set{}, true},
		{"less", MustParse("cpus:1;mem:5;ports:[1-9];s:{a,b}"), MustParse("mem:4.999;ports:[3-4,9-9];s:{b}"), true},
		{"a thousandth more", MustParse("mem:5"), MustParse("mem:5.001"), false},
		{"a range half outside", MustParse("ports:[1-9]"), MustParse("ports:[9-10]"), false},
		{"an item more", MustParse("s:{a}"), MustParse("s:{a,b}"), false},
		{"another name", MustParse("cpus:9"), MustParse("mem:1"), false},
		{"reserved in unreserved", MustParse("cpus:9"), New(scalar("cpus", 1, "eng")), false},
		{"another principal", New(labelled), New(scalar("cpus", 1, "eng")), false},
		{"labels in another order", New(labelled), New(relabelled), true},
		{"another provider", MustParse("disk:5"), New(provided), false},
		{"another allocation", MustParse("cpus:5").Allocate("a"), MustParse("cpus:1"), false},
		{"a part of a volume", New(volume(10, "eng", "v", false)), New(volume(4, "eng", "v", false)), false},
		{"a volume mounted elsewhere", New(volume(10, "eng", "v", false)), New(otherPath), true},
		{"a volume twice", New(volume(10, "eng", "v", false)), New(volume(10, "eng", "v", false), volume(10, "eng", "v", false)), false},
		{"two copies of two", New(volume(10, "eng", "v", true), volume(10, "eng", "v", true)), New(volume(10, "eng", "v", true), volume(10, "eng", "v", true)), true},
		{"two copies of one", New(volume(10, "eng", "v", true)), New(volume(10, "eng", "v", true), volume(10, "eng", "v", true)), false},
	} {
		if got := tt.a.Contains(tt.b); got != tt.want {
			t.Errorf("%s: %s.Contains(%s) = %v, want %v", tt.name, tt.a, tt.b, got, tt.want)
		}
	}
}

func TestSharedVolumesCountTheirCopies(t *testing.T) {
	one := New(volume(10, "eng", "v", true))
	two := one.Add(one)
	if two.Len() != 1 || two.Entries()[0].Copies() != 2 {
		t.Fatalf("Add of a shared volume to itself = %s, want one entry with two copies", two)
	}
	if got := two.Subtract(one); !got.Equal(one) {
		t.Errorf("two copies less one = %s, want %s", got, one)
	}
	if got := one.Subtract(one); !got.Empty() {
		t.Errorf("one copy less one = %s, want nothing", got)
	}
}

func TestOperandsAreNeverChanged(t *testing.T) {
	a := MustParse("cpus:4;ports:[1-9];s:{a,b}")
	b := MustParse("cpus:1;ports:[4-5];s:{b}")
	before, beforeB := a.String(), b.String()
	a.Add(b)
	a.Subtract(b)
	b.Subtract(a)
	a.Allocate("x").Add(b)
	a.Filter(func(e *Entry) bool { return e.Name() != "cpus" })
	msgs := a.Resources()
	msgs[0].Name = ptr("changed")
	*msgs[0].Scalar.Value = 77
	if a.String() != before || b.String() != beforeB {
		t.Errorf("operands became %s and %s, want %s and %s", a, b, before, beforeB)
	}
}

func TestMalformedMessagesAreLeftOutWithoutPanic(t *testing.T) {
	nan := scalar("cpus", 1)
	*nan.Scalar.Value = nanValue()
	got := New(nil, &mesosv1.Resource{}, nan, scalar("cpus", -1), scalar("cpus", 0),
		&mesosv1.Resource{Name: ptr("x"), Type: mesosv1.Value_SCALAR.Enum()},
		&mesosv1.Resource{Name: ptr("x"), Type: mesosv1.Value_RANGES.Enum(), Ranges: &mesosv1.Value_Ranges{
			Range: []*mesosv1.Value_Range{{Begin: ptr(uint64(9)), End: ptr(uint64(1))}}}},
		&mesosv1.Resource{Name: ptr("x"), Type: mesosv1.Value_Type(99).Enum()})
	if !got.Empty() {
		t.Errorf("New of malformed messages = %s, want nothing", got)
	}
	if huge := New(scalar("cpus", 1e300)).Add(New(scalar("cpus", 1e300))); huge.Milli("cpus") <= 0 {
		t.Errorf("sum of two huge scalars = %d, want it capped, not overflown", huge.Milli("cpus"))
	}
}

func nanValue() float64 { zero := 0.0; return zero / zero }

func TestFiltersChooseEntries(t *testing.T) {
	s := New(scalar("cpus", 1), scalar("cpus", 2, "=eng"), scalar("cpus", 4, "=eng", "eng/dev"),
		revocable(scalar("cpus", 8)), volume(10, "eng", "v", false), volume(10, "eng", "w", true)).
		Add(MustParse("ports:[1-2]"))
	for _, tt := range []struct {
		name string
		got  Set
		want string
	}{
		{"Unreserved", s.Unreserved(), "cpus:1; cpus{REV}:8; ports:[1-2]"},
		{"ReservedTo(eng)", s.ReservedTo("eng").Named("cpus"), "cpus(reservations: [(STATIC,eng)]):2"},
		{"AllocatableTo(eng/dev)", s.AllocatableTo("eng/dev").Named("cpus").NonRevocable(), "cpus:1; cpus(reservations: [(STATIC,eng)]):2; cpus(reservations: [(STATIC,eng),(DYNAMIC,eng/dev)]):4"},
		{"AllocatableTo(engine)", s.AllocatableTo("engine").Named("cpus").NonRevocable(), "cpus:1"},
		{"Revocable", s.Revocable(), "cpus{REV}:8"},
		{"PersistentVolumes", s.PersistentVolumes(), "disk(reservations: [(DYNAMIC,eng)])[v:data]:10; disk(reservations: [(DYNAMIC,eng)])[w:data]<SHARED>:10"},
		{"Shared", s.Shared(), "disk(reservations: [(DYNAMIC,eng)])[w:data]<SHARED>:10"},
		{"Allocate, Unallocate", s.Named("ports").Allocate("a").Unallocate(), "ports:[1-2]"},
		{"Allocate", s.Named("ports").Allocate("a"), "ports(allocated: a):[1-2]"},
	} {
		if tt.got.String() != tt.want {
			t.Errorf("%s = %s, want %s", tt.name, tt.got, tt.want)
		}
	}
	if got := s.Scalar("cpus"); got != 15 {
		t.Errorf("Scalar(cpus) = %v, want 15", got)
	}
	if got := s.Reservations(); len(got) != 2 || got["eng/dev"].Scalar("cpus") != 4 {
		t.Errorf("Reservations() = %v, want eng and eng/dev", got)
	}
	if got := s.Quantities().String(); got != "cpus:15; disk:20" {
		t.Errorf("Quantities() = %s, want cpus:15; disk:20", got)
	}
}

// genSet draws sets of few names, roles and kinds, so that they often meet.
func genSet() *rapid.Generator[Set] {
	entry := rapid.Custom(func(t *rapid.T) *mesosv1.Resource {
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			var rs []Range
			for range rapid.IntRange(1, 4).Draw(t, "ranges") {
				begin := rapid.Uint64Range(0, 40).Draw(t, "begin")
				rs = append(rs, Range{begin, begin + rapid.Uint64Range(0, 9).Draw(t, "length")})
			}
			return &mesosv1.Resource{Name: ptr("ports"), Type: mesosv1.Value_RANGES.Enum(), Ranges: NewRanges(rs...).Value()}
		case 1:
			items := rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), rapid.ID).Draw(t, "items")
			return &mesosv1.Resource{Name: ptr("disks"), Type: mesosv1.Value_SET.Enum(), Set: &mesosv1.Value_Set{Item: items}}
		case 2:
			return volume(float64(rapid.IntRange(1, 2).Draw(t, "size")), "eng",
				rapid.SampledFrom([]string{"v", "w"}).Draw(t, "id"), rapid.Bool().Draw(t, "shared"))
		default:
			r := scalar(rapid.SampledFrom([]string{"cpus", "mem"}).Draw(t, "name"), float64(rapid.IntRange(0, 5000).Draw(t, "milli"))/1000,
				rapid.SampledFrom([][]string{nil, {"eng"}, {"=eng"}, {"=eng", "eng/dev"}}).Draw(t, "roles")...)
			if rapid.Bool().Draw(t, "revocable") {
				revocable(r)
			}
			return r
		}
	})
	return rapid.Custom(func(t *rapid.T) Set {
		s := New(rapid.SliceOfN(entry, 0, 6).Draw(t, "entries")...)
		if rapid.Bool().Draw(t, "allocated") {
			s = s.Allocate(rapid.SampledFrom([]string{"x", "y"}).Draw(t, "role"))
		}
		return s
	})
}

// disjoint takes from b what ranges and items it has in common with a: those are sets, so
// that adding them is not undone by subtracting.
func disjoint(a, b Set) Set {
	return b.Filter(func(e *Entry) bool {
		return e.Type() == mesosv1.Value_SCALAR || !a.Intersects(Set{[]Entry{*e}}) && a.Subtract(Set{[]Entry{*e}}).Equal(a)
	})
}

func TestAlgebraHoldsForRandomSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := genSet().Draw(t, "a"), genSet().Draw(t, "b"), genSet().Draw(t, "c")
		if x, y := a.Add(b), b.Add(a); !x.Equal(y) {
			t.Fatalf("a+b = %s, b+a = %s", x, y)
		}
		if x, y := a.Add(b).Add(c), a.Add(b.Add(c)); !x.Equal(y) {
			t.Fatalf("(a+b)+c = %s, a+(b+c) = %s", x, y)
		}
		if x := Sum(a, b, c); !x.Equal(a.Add(b).Add(c)) {
			t.Fatalf("Sum = %s, want %s", x, a.Add(b).Add(c))
		}
		if !a.Add(b).Contains(a) || !a.Add(b).Contains(b) {
			t.Fatalf("%s does not contain its parts %s and %s", a.Add(b), a, b)
		}
		d := disjoint(a, b)
		if x := a.Add(d).Subtract(d); !x.Equal(a) {
			t.Fatalf("(a+d)-d = %s, want %s; d = %s", x, a, d)
		}
		if x := a.Subtract(a); !x.Empty() {
			t.Fatalf("a-a = %s", x)
		}
		if a.Contains(b) {
			if x := a.Subtract(b).Add(b); !x.Equal(a) {
				t.Fatalf("(a-b)+b = %s, want %s", x, a)
			}
		}
		if x := New(a.Resources()...); a.Filter(func(e *Entry) bool { return e.Copies() == 1 }).Equal(a) && !x.Equal(a) {
			t.Fatalf("through messages %s became %s", a, x)
		}
		if x := a.Unallocate().Allocate("z").Unallocate(); !x.Equal(a.Unallocate()) {
			t.Fatalf("allocating and unallocating %s = %s", a, x)
		}
	})
}

func TestRangesAgreeWithSetsOfNumbers(t *testing.T) {
	gen := rapid.Custom(func(t *rapid.T) Ranges {
		var rs []Range
		for range rapid.IntRange(0, 5).Draw(t, "n") {
			b := rapid.Uint64Range(0, 60).Draw(t, "begin")
			rs = append(rs, Range{b, min(63, b+rapid.Uint64Range(0, 20).Draw(t, "len"))})
		}
		return NewRanges(rs...)
	})
	bits := func(rs Ranges) (m uint64) {
		for _, r := range rs {
			for i := r.Begin; i <= r.End; i++ {
				m |= 1 << i
			}
		}
		return m
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := gen.Draw(t, "a"), gen.Draw(t, "b")
		for _, tt := range []struct {
			name string
			got  Ranges
			want uint64
		}{
			{"Union", a.Union(b), bits(a) | bits(b)},
			{"Subtract", a.Subtract(b), bits(a) &^ bits(b)},
			{"Intersect", a.Intersect(b), bits(a) & bits(b)},
		} {
			if bits(tt.got) != tt.want {
				t.Fatalf("%v.%s(%v) = %v, want %b", a, tt.name, b, tt.got, tt.want)
			}
			for i := 1; i < len(tt.got); i++ {
				if tt.got[i].Begin <= tt.got[i-1].End+1 {
					t.Fatalf("%s: %v is not normalised", tt.name, tt.got)
				}
			}
		}
		if got, want := a.Contains(b), bits(b)&^bits(a) == 0; got != want {
			t.Fatalf("%v.Contains(%v) = %v, want %v", a, b, got, want)
		}
	})
	whole := NewRanges(Range{0, ^uint64(0)})
	if got := whole.Subtract(NewRanges(Range{5, ^uint64(0)})); fmt.Sprint(got) != "[0-4]" {
		t.Errorf("subtracting the upper end = %v, want [0-4]", got)
	}
	if got := whole.Count(); got != ^uint64(0) {
		t.Errorf("Count of all numbers = %d, want the largest uint64", got)
	}
}

func BenchmarkAdd(b *testing.B) {
	x, y := MustParse("cpus:8;mem:4096;disk:1000;ports:[31000-32000]"), MustParse("cpus:1;mem:128;disk:10;ports:[33000-33010]")
	b.ReportAllocs()
	for b.Loop() {
		x.Add(y)
	}
}

func BenchmarkContains(b *testing.B) {
	x, y := MustParse("cpus:8;mem:4096;disk:1000;ports:[31000-32000]"), MustParse("cpus:1;mem:128;disk:10;ports:[31500-31600]")
	b.ReportAllocs()
	for b.Loop() {
		x.Contains(y)
	}
}

func BenchmarkNew(b *testing.B) {
	rs := MustParse("cpus:8;mem:4096;disk:1000;ports:[31000-32000]").Resources()
	b.ReportAllocs()
	for b.Loop() {
		New(rs...)
	}
}

func TestLimitKeepsWhatMayBeKept(t *testing.T) {
	mount := disk(scalar("disk", 100), mesosv1.Resource_DiskInfo_Source_MOUNT, "/d1")
	s := New(scalar("cpus", 4), scalar("mem", 10), mount).Add(MustParse("ports:[1-2]"))
	room := map[string]int64{"cpus": 1500, "mem": 20000, "disk": 99000}
	got := s.Limit(func(e *Entry) int64 { return room[e.Name()] })
	if want := MustParse("cpus:1.5;mem:10;ports:[1-2]"); !got.Equal(want) {
		t.Errorf("Limit = %s, want %s", got, want)
	}
	room["disk"], room["cpus"] = 100000, 0
	if got, want := s.Limit(func(e *Entry) int64 { return room[e.Name()] }), s.Filter(func(e *Entry) bool { return e.Name() != "cpus" }); !got.Equal(want) {
		t.Errorf("Limit = %s, want %s", got, want)
	}
}
