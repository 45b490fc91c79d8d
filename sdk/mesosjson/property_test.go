package mesosjson_test

import (
	"math"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"pgregory.net/rapid"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// randomMessages are the messages that, between them, hold every message of the v1 API.
var randomMessages = map[string]func() proto.Message{
	"scheduler call":    func() proto.Message { return &schedulerv1.Call{} },
	"scheduler event":   func() proto.Message { return &schedulerv1.Event{} },
	"executor call":     func() proto.Message { return &executorv1.Call{} },
	"executor event":    func() proto.Message { return &executorv1.Event{} },
	"operator call":     func() proto.Message { return &masterv1.Call{} },
	"operator response": func() proto.Message { return &masterv1.Response{} },
	"operator event":    func() proto.Message { return &masterv1.Event{} },
	"agent call":        func() proto.Message { return &agentv1.Call{} },
	"agent response":    func() proto.Message { return &agentv1.Response{} },
}

// TestWhatIsWrittenReadsBack: a message, written and read, is the message with its written defaults set.
func TestWhatIsWrittenReadsBack(t *testing.T) {
	for name, fresh := range randomMessages {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				m := fresh()
				fill(t, m.ProtoReflect(), 0, fillOptions{infinities: true, durations: true})
				text := m.(mesosjson.Appender).AppendJSON(nil)
				back := fresh()
				if err := mesosjson.Unmarshal(text, back); err != nil {
					t.Fatalf("Unmarshal(%s): %v", text, err)
				}
				setWrittenDefaults(m.ProtoReflect())
				if !proto.Equal(m, back) {
					t.Fatalf("%s reads back as %v, want %v", text, back, m)
				}
			})
		})
	}
}

// TestProtojsonReadsWhatIsWritten, where the conventions agree: no infinities, no durations.
func TestProtojsonReadsWhatIsWritten(t *testing.T) {
	for name, fresh := range randomMessages {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				m := fresh()
				fill(t, m.ProtoReflect(), 0, fillOptions{})
				text := m.(mesosjson.Appender).AppendJSON(nil)
				back := fresh()
				if err := protojson.Unmarshal(text, back); err != nil {
					t.Fatalf("protojson.Unmarshal(%s): %v", text, err)
				}
				setWrittenDefaults(m.ProtoReflect())
				if !proto.Equal(m, back) {
					t.Fatalf("protojson reads %s as %v, want %v", text, back, m)
				}
			})
		})
	}
}

// TestWhatProtojsonWritesIsRead: its strings for 64-bit integers and infinities are among what we forgive.
func TestWhatProtojsonWritesIsRead(t *testing.T) {
	for name, fresh := range randomMessages {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				m := fresh()
				fill(t, m.ProtoReflect(), 0, fillOptions{infinities: true})
				text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
				if err != nil {
					t.Fatalf("protojson.Marshal(%v): %v", m, err)
				}
				back := fresh()
				if err := mesosjson.Unmarshal(text, back); err != nil {
					t.Fatalf("Unmarshal(%s): %v", text, err)
				}
				if !proto.Equal(m, back) {
					t.Fatalf("%s reads as %v, want %v", text, back, m)
				}
			})
		})
	}
}

type fillOptions struct {
	infinities bool // floats that JSON proper has no spelling for
	durations  bool // google.protobuf.Duration, which protojson spells otherwise
}

// maxFillDepth keeps messages of a size that a failure can be read from.
const maxFillDepth = 6

// fill sets random fields of m: all that are required, few of the others the deeper it is.
func fill(t *rapid.T, m protoreflect.Message, depth int, o fillOptions) {
	fields := m.Descriptor().Fields()
	implicit := m.Descriptor().FullName() == "google.protobuf.Duration"
	for i := range fields.Len() {
		f := fields.Get(i)
		isMessage := f.Kind() == protoreflect.MessageKind || f.IsMap()
		required := f.Cardinality() == protoreflect.Required || implicit
		if !required {
			if isMessage && depth >= maxFillDepth || rapid.IntRange(0, 3+2*depth).Draw(t, "set") != 0 {
				continue
			}
			if !o.durations && !f.IsMap() && f.Kind() == protoreflect.MessageKind && f.Message().FullName() == "google.protobuf.Duration" {
				continue
			}
		}
		switch {
		case f.IsMap():
			mp := m.Mutable(f).Map()
			for range rapid.IntRange(1, 3).Draw(t, "entries") {
				key := protoreflect.ValueOfString(rapid.String().Draw(t, "key")).MapKey()
				v := mp.NewValue()
				if f.MapValue().Kind() == protoreflect.MessageKind {
					fill(t, v.Message(), depth+1, o)
				} else {
					v = randomScalar(t, f.MapValue(), o)
				}
				mp.Set(key, v)
			}
		case f.IsList():
			list := m.Mutable(f).List()
			for range rapid.IntRange(1, 3).Draw(t, "elements") {
				v := list.NewElement()
				if isMessage {
					fill(t, v.Message(), depth+1, o)
				} else {
					v = randomScalar(t, f, o)
				}
				list.Append(v)
			}
		case isMessage:
			fill(t, m.Mutable(f).Message(), depth+1, o)
		default:
			m.Set(f, randomScalar(t, f, o))
		}
	}
}

func randomScalar(t *rapid.T, f protoreflect.FieldDescriptor, o fillOptions) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, "bool"))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(rapid.String().Draw(t, "string"))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
	case protoreflect.EnumKind:
		values := f.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(rapid.IntRange(0, values.Len()-1).Draw(t, "enum")).Number())
	case protoreflect.DoubleKind:
		if o.infinities && rapid.IntRange(0, 9).Draw(t, "special") == 0 {
			return protoreflect.ValueOfFloat64(rapid.SampledFrom([]float64{math.Inf(1), math.Inf(-1), math.NaN()}).Draw(t, "infinity"))
		}
		return protoreflect.ValueOfFloat64(rapid.Float64().Draw(t, "double"))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(t, "int32"))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(t, "int64"))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, "uint32"))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(rapid.Uint64().Draw(t, "uint64"))
	}
	t.Fatalf("no random value for kind %v of %s", f.Kind(), f.FullName())
	return protoreflect.Value{}
}

// setWrittenDefaults sets what AppendJSON writes though it is unset: declared defaults that are not
// deprecated.
func setWrittenDefaults(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		deprecated := false
		if o, ok := f.Options().(*descriptorpb.FieldOptions); ok {
			deprecated = o.GetDeprecated()
		}
		switch {
		case !m.Has(f):
			if f.HasDefault() && !deprecated {
				m.Set(f, f.Default())
			}
		case f.IsMap():
			if f.MapValue().Kind() == protoreflect.MessageKind {
				m.Get(f).Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					setWrittenDefaults(v.Message())
					return true
				})
			}
		case f.IsList():
			if f.Kind() == protoreflect.MessageKind {
				for j := range m.Get(f).List().Len() {
					setWrittenDefaults(m.Get(f).List().Get(j).Message())
				}
			}
		case f.Kind() == protoreflect.MessageKind:
			setWrittenDefaults(m.Mutable(f).Message())
		}
	}
}
