package mesos_test

import (
	"encoding/json"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"

	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

type generated interface {
	proto.Message
	MarshalVT() ([]byte, error)
	UnmarshalVT([]byte) error
	AppendJSON([]byte) []byte
}

// FuzzUnmarshalVT: no bytes make the generated decoders panic. What both they and the protobuf runtime
// take, both read as the same message; the generated encoder writes it so that it reads back, and the
// JSON encoder writes it as one line.
func FuzzUnmarshalVT(f *testing.F) {
	f.Add([]byte("\x0a\x03\x0a\x01f\x10\x05"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, fresh := range []func() generated{
			func() generated { return &schedulerv1.Call{} },
			func() generated { return &executorv1.Call{} },
			func() generated { return &masterv1.Call{} },
			func() generated { return &agentv1.Call{} },
		} {
			m := fresh()
			if m.UnmarshalVT(data) != nil {
				continue
			}
			name := m.ProtoReflect().Descriptor().FullName()
			// The generated decoder takes some bytes that the runtime refuses, such as numbers above 64 bits
			// (seed varint_above_64_bits). core/api/codec surveys the bytes strictly before it decodes.
			oracle := fresh()
			if proto.Unmarshal(data, oracle) != nil {
				continue
			}
			// The two keep an unknown field in different spellings when its tag was not the shortest
			// (seed overlong_tag_of_unknown_field), so that only what is known is compared.
			if got, want := known(t, m), known(t, oracle); !proto.Equal(got, want) {
				t.Fatalf("%s: UnmarshalVT(%x) = %v, proto.Unmarshal = %v", name, data, got, want)
			}
			out, err := m.MarshalVT()
			if err != nil {
				t.Fatalf("%s: MarshalVT of what %x holds: %v", name, data, err)
			}
			back := fresh()
			if err := back.UnmarshalVT(out); err != nil || !proto.Equal(known(t, m), known(t, back)) {
				t.Fatalf("%s: %x is written as %x and reads back as %v, %v; want %v", name, data, out, back, err, m)
			}
			text := m.AppendJSON(nil)
			for _, c := range text {
				if c == '\n' {
					t.Fatalf("%s: AppendJSON of %x = %q, more than a line", name, data, text)
				}
			}
			if !hasSpecialFloat(m) && !json.Valid(text) {
				t.Fatalf("%s: AppendJSON of %x = %q, not JSON", name, data, text)
			}
		}
	})
}

// known returns m without its unknown fields.
func known(t *testing.T, m proto.Message) proto.Message {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatalf("proto.Marshal: %v", err)
	}
	k := m.ProtoReflect().New().Interface()
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, k); err != nil {
		t.Fatalf("proto.Unmarshal of what proto.Marshal wrote: %v", err)
	}
	return k
}

// hasSpecialFloat reports whether m holds an infinity or NaN, which Mesos's JSON has bare words for.
func hasSpecialFloat(m proto.Message) bool {
	found := false
	err := protorange.Range(m.ProtoReflect(), func(p protopath.Values) error {
		if v, ok := p.Index(-1).Value.Interface().(float64); ok && (math.IsInf(v, 0) || math.IsNaN(v)) {
			found = true
		}
		return nil
	})
	return found || err != nil
}
