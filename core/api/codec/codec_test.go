package codec_test

import (
	"math"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

func TestBothMediaTypesCarryTheSameMessage(t *testing.T) {
	want := &schedulerv1.Call{
		FrameworkId: &mesosv1.FrameworkID{Value: proto.String("f")},
		Type:        schedulerv1.Call_DECLINE.Enum(),
		Decline:     &schedulerv1.Call_Decline{Filters: &mesosv1.Filters{RefuseSeconds: proto.Float64(math.Inf(1))}},
	}
	for _, mt := range []codec.Type{codec.JSON, codec.Protobuf} {
		b, err := codec.Append(mt, []byte("before"), want)
		if err != nil || !strings.HasPrefix(string(b), "before") {
			t.Fatalf("Append(%v) = %q, %v", mt, b, err)
		}
		got := &schedulerv1.Call{Type: schedulerv1.Call_KILL.Enum(), Kill: &schedulerv1.Call_Kill{}}
		if err := codec.Unmarshal(mt, b[len("before"):], got); err != nil || !proto.Equal(got, want) {
			t.Errorf("Unmarshal(%v) = %v, %v; want %v", mt, got, err, want)
		}
	}
}

func TestHeadersChooseTheMediaType(t *testing.T) {
	for _, c := range []struct {
		accept []string
		want   codec.Type
		ok     bool
	}{
		{nil, codec.JSON, true},
		{[]string{"application/json"}, codec.JSON, true},
		{[]string{"application/x-protobuf"}, codec.Protobuf, true},
		{[]string{"APPLICATION/X-PROTOBUF"}, codec.Protobuf, true},
		{[]string{"application/x-protobuf, application/json"}, codec.JSON, true},
		{[]string{"application/x-protobuf", "application/json"}, codec.JSON, true},
		{[]string{"text/html, */*;q=0.1"}, codec.JSON, true},
		{[]string{"application/*"}, codec.JSON, true},
		{[]string{"application/json;q=0, */*"}, codec.Protobuf, true},
		{[]string{"*/*, application/json; q=0.0"}, codec.Protobuf, true},
		{[]string{"text/html"}, 0, false},
		{[]string{""}, 0, false},
		{[]string{"application/recordio"}, 0, false},
		{[]string{"*/*;q=0"}, 0, false},
	} {
		got, ok := codec.FromAccept(c.accept)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("FromAccept(%q) = %v, %v; want %v, %v", c.accept, got, ok, c.want, c.ok)
		}
	}
	for header, want := range map[string]string{
		"application/json":                "application/json",
		"application/x-protobuf":          "application/x-protobuf",
		"application/json; charset=utf-8": "application/json",
		"Application/JSON":                "application/json",
		"text/plain":                      "",
		"application/json; ;":             "",
		"application/protobuf":            "",
		"":                                "",
		"/":                               "",
	} {
		got, ok := codec.FromContentType(header)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("FromContentType(%q) = %v, %v; want %q", header, got, ok, want)
		}
	}
	for header, want := range map[string]bool{"gzip": true, "deflate, GZIP;q=0.5": true, "*": true, "gzip;q=0": false, "br": false, "": false} {
		if got := codec.AcceptsGzip([]string{header}); got != want {
			t.Errorf("AcceptsGzip(%q) = %v, want %v", header, got, want)
		}
	}
}

func TestUnknownEnumNumbersCountAsUnset(t *testing.T) {
	// Numbers of some later version: a call's type, a capability's type.
	later := &schedulerv1.Call{
		Type: schedulerv1.Call_Type(99).Enum(),
		Subscribe: &schedulerv1.Call_Subscribe{FrameworkInfo: &mesosv1.FrameworkInfo{
			User: proto.String("u"), Name: proto.String("n"),
			Capabilities: []*mesosv1.FrameworkInfo_Capability{
				{Type: mesosv1.FrameworkInfo_Capability_Type(77).Enum()},
				{Type: mesosv1.FrameworkInfo_Capability_MULTI_ROLE.Enum()},
			},
		}},
	}
	data, err := later.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	var got schedulerv1.Call
	if err := codec.Unmarshal(codec.Protobuf, data, &got); err != nil {
		t.Fatal(err)
	}
	if got.Type != nil {
		t.Errorf("type = %v, want it unset", got.GetType())
	}
	caps := got.GetSubscribe().GetFrameworkInfo().GetCapabilities()
	if len(caps) != 2 || caps[0].Type != nil || caps[1].GetType() != mesosv1.FrameworkInfo_Capability_MULTI_ROLE {
		t.Errorf("capabilities = %v, want the first without a type, the second MULTI_ROLE", caps)
	}

	required := &mesosv1.Resource{Name: proto.String("cpus"), Type: mesosv1.Value_Type(42).Enum()}
	if data, err = required.MarshalVT(); err != nil {
		t.Fatal(err)
	}
	if err := codec.Unmarshal(codec.Protobuf, data, &mesosv1.Resource{}); err == nil || !strings.Contains(err.Error(), "mesos.v1.Resource.type") {
		t.Errorf("Unmarshal of a required enum with an unknown number: %v, want an error that names it", err)
	}
}

// chain returns a container id nested n deep, in its binary form.
func chain(n int) []byte {
	leaf := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "c")
	b := leaf
	for range n {
		b = protowire.AppendBytes(protowire.AppendTag(append([]byte(nil), leaf...), 2, protowire.BytesType), b)
	}
	return b
}

func TestProtobufBeyondTheBoundsIsRefused(t *testing.T) {
	if err := codec.Unmarshal(codec.Protobuf, chain(50), &mesosv1.ContainerID{}); err != nil {
		t.Errorf("50 levels: %v", err)
	}
	for _, c := range []struct {
		what string
		data []byte
		into codec.Message
		want string
	}{
		{"depth", chain(5000), &mesosv1.ContainerID{}, "nested deeper than 100 levels"},
		{"empty messages", []byte("\x22" + varint(4<<20) + strings.Repeat("\x12\x00", 2<<20)), &schedulerv1.Call{}, "more than 1048576 values"},
		{"missing required field", nil, &mesosv1.ContainerID{}, "required"},
		{"invalid UTF-8", []byte("\x0a\x02\xff\xfe"), &mesosv1.ContainerID{}, "mesos.v1.ContainerID.value is not valid UTF-8"},
		{"truncated varint", []byte("\x10\xff"), &schedulerv1.Call{}, "malformed"},
		{"number above 64 bits", []byte("\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x64"), &schedulerv1.Call{}, "malformed"},
		{"length past the end", []byte("\x1a\xff\xff\xff\xff\x0f"), &schedulerv1.Call{}, "malformed"},
		{"groups", []byte(strings.Repeat("\x0b", 1<<20)), &schedulerv1.Call{}, "malformed"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := codec.Unmarshal(codec.Protobuf, c.data, c.into)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
		if spent := after.TotalAlloc - before.TotalAlloc; spent > 1<<20 {
			t.Errorf("%s: allocated %d bytes to refuse %d", c.what, spent, len(c.data))
		}
	}
}

func varint(n uint64) string { return string(protowire.AppendVarint(nil, n)) }

// FuzzUnmarshalProtobuf: what is taken, the protobuf runtime takes too and reads as the same message,
// but for enum numbers that nobody knows; and it can be written as JSON and read back.
func FuzzUnmarshalProtobuf(f *testing.F) {
	f.Add([]byte("\x0a\x03\x0a\x01f\x10\x05"))
	f.Add([]byte("\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x64"))
	f.Add([]byte("\x10\x63"))
	f.Add(chain(150))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, pair := range [][3]codec.Message{
			{&schedulerv1.Call{}, &schedulerv1.Call{}, &schedulerv1.Call{}},
			{&masterv1.Call{}, &masterv1.Call{}, &masterv1.Call{}},
			{&agentv1.Call{}, &agentv1.Call{}, &agentv1.Call{}},
		} {
			m, oracle, back := pair[0], pair[1], pair[2]
			if codec.Unmarshal(codec.Protobuf, data, m) != nil {
				continue
			}
			if err := proto.Unmarshal(data, oracle); err != nil {
				t.Fatalf("taken %x, proto.Unmarshal: %v", data, err)
			}
			// AppendJSON leaves out enum numbers without a name, and fields without one.
			text, want := m.AppendJSON(nil), oracle.AppendJSON(nil)
			if string(text) != string(want) {
				t.Fatalf("%x is read as %s, proto.Unmarshal reads %s", data, text, want)
			}
			if err := codec.Unmarshal(codec.JSON, text, back); err != nil || string(back.AppendJSON(nil)) != string(text) {
				t.Fatalf("%x: written %s, reads back as %s, %v", data, text, back.AppendJSON(nil), err)
			}
		}
	})
}
