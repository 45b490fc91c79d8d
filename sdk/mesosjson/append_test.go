package mesosjson_test

import (
	"encoding/json"
	"math"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// TestMessagesAreWrittenAsMesosWritesThem holds each convention with a message that shows it.
func TestMessagesAreWrittenAsMesosWritesThem(t *testing.T) {
	for _, c := range []struct {
		convention string
		message    mesosjson.Appender
		want       string
	}{
		{
			"no field set", &schedulerv1.Event{}, `{}`,
		},
		{
			"no field declared", &schedulerv1.AttributeConstraint_Predicate_Exists{}, `{}`,
		},
		{
			"enums are words",
			&schedulerv1.Event{Type: schedulerv1.Event_HEARTBEAT.Enum()},
			`{"type":"HEARTBEAT"}`,
		},
		{
			"an enum number without a name is left out",
			&schedulerv1.Event{Type: schedulerv1.Event_Type(99).Enum()},
			`{}`,
		},
		{
			"bytes are base64",
			&schedulerv1.Event_Message{
				AgentId:    &mesosv1.AgentID{Value: proto.String("a")},
				ExecutorId: &mesosv1.ExecutorID{Value: proto.String("e")},
				Data:       []byte{0xfb, 0xff, 0},
			},
			`{"agent_id":{"value":"a"},"executor_id":{"value":"e"},"data":"+/8A"}`,
		},
		{
			"64-bit integers are numbers",
			&mesosv1.TimeInfo{Nanoseconds: proto.Int64(math.MinInt64)},
			`{"nanoseconds":-9223372036854775808}`,
		},
		{
			"unsigned 64-bit integers are numbers",
			&mesosv1.Value_Range{Begin: proto.Uint64(0), End: proto.Uint64(math.MaxUint64)},
			`{"begin":0,"end":18446744073709551615}`,
		},
		{
			"floats have a decimal point",
			&schedulerv1.Event_Subscribed{
				FrameworkId:              &mesosv1.FrameworkID{Value: proto.String("f")},
				HeartbeatIntervalSeconds: proto.Float64(15),
			},
			`{"framework_id":{"value":"f"},"heartbeat_interval_seconds":15.0}`,
		},
		{
			"infinity is a bare word",
			&mesosv1.Value_Scalar{Value: proto.Float64(math.Inf(1))},
			`{"value":Infinity}`,
		},
		{
			"required fields are written, set or not",
			&mesosv1.Value_Scalar{},
			`{"value":0.0}`,
		},
		{
			"a required message is written, set or not",
			&mesosv1.Parameters{Parameter: []*mesosv1.Parameter{{}}},
			`{"parameter":[{"key":"","value":""}]}`,
		},
		{
			"an unset field with a default is written, unless it is deprecated (role)",
			&mesosv1.FrameworkInfo{User: proto.String("u"), Name: proto.String("n")},
			`{"user":"u","name":"n","failover_timeout":0.0,"checkpoint":false}`,
		},
		{
			"a deprecated field that is set is written",
			&mesosv1.FrameworkInfo{User: proto.String("u"), Name: proto.String("n"), Role: proto.String("r")},
			`{"user":"u","name":"n","failover_timeout":0.0,"checkpoint":false,"role":"r"}`,
		},
		{
			"a default that is an enum is a word",
			&mesosv1.Environment_Variable{Name: proto.String("A"), Value: proto.String("b")},
			`{"name":"A","type":"VALUE","value":"b"}`,
		},
		{
			"empty lists are left out",
			&schedulerv1.Call_Accept{OfferIds: []*mesosv1.OfferID{}},
			`{}`,
		},
		{
			"lists of messages",
			&schedulerv1.Call_Accept{OfferIds: []*mesosv1.OfferID{{Value: proto.String("1")}, {Value: proto.String("2")}}},
			`{"offer_ids":[{"value":"1"},{"value":"2"}]}`,
		},
		{
			"maps are objects with sorted keys",
			&agentv1.Call_LaunchContainer{
				ContainerId: &mesosv1.ContainerID{Value: proto.String("c")},
				Limits: map[string]*mesosv1.Value_Scalar{
					"mem":  {Value: proto.Float64(64)},
					"cpus": {Value: proto.Float64(math.Inf(1))},
				},
			},
			`{"container_id":{"value":"c"},"limits":{"cpus":{"value":Infinity},"mem":{"value":64.0}}}`,
		},
		{
			"google.protobuf.Duration is a plain message",
			&masterv1.Call_DrainAgent{
				AgentId:        &mesosv1.AgentID{Value: proto.String("a")},
				MaxGracePeriod: durationpb.New(600e9),
			},
			`{"agent_id":{"value":"a"},"max_grace_period":{"seconds":600,"nanos":0},"mark_gone":false}`,
		},
		{
			"one member of a oneof",
			&schedulerv1.AttributeConstraint_Selector{
				Selector: &schedulerv1.AttributeConstraint_Selector_PseudoattributeType_{
					PseudoattributeType: schedulerv1.AttributeConstraint_Selector_ZONE,
				},
			},
			`{"pseudoattribute_type":"ZONE"}`,
		},
		{
			"nothing in a record is a line feed, and nothing is not UTF-8",
			&schedulerv1.Event_Error{Message: proto.String("a\n\"b\"\\\x01\x7f\xff\u2028é/")},
			`{"message":"a\n\"b\"\\\u0001` + "\x7f\uFFFD\u2028é/" + `"}`,
		},
		{
			"a nil message counts as one without fields", (*mesosv1.Value_Scalar)(nil), `{"value":0.0}`,
		},
	} {
		if got := string(c.message.AppendJSON(nil)); got != c.want {
			t.Errorf("%s: AppendJSON = %s, want %s", c.convention, got, c.want)
		}
	}
}

func TestDoublesAreWrittenShortWithAPoint(t *testing.T) {
	for _, c := range []struct {
		v    float64
		want string
	}{
		{0, "0.0"}, {math.Copysign(0, -1), "-0.0"}, {1, "1.0"}, {-3, "-3.0"}, {0.1, "0.1"},
		{0.30000000000000004, "0.30000000000000004"}, {1e15, "1000000000000000.0"},
		{1 << 53, "9007199254740992.0"}, {123456789012345680000, "123456789012345680000.0"},
		{1e21, "1.0e+21"}, {1.5e300, "1.5e+300"}, {1e-6, "0.000001"}, {1e-7, "1.0e-07"}, {-2.5e-9, "-2.5e-09"},
		{math.MaxFloat64, "1.7976931348623157e+308"}, {math.SmallestNonzeroFloat64, "5.0e-324"},
		{math.Inf(1), "Infinity"}, {math.Inf(-1), "-Infinity"}, {math.NaN(), "NaN"},
	} {
		if got := string(mesosjson.AppendDouble(nil, c.v)); got != c.want {
			t.Errorf("AppendDouble(%g) = %s, want %s", c.v, got, c.want)
		}
	}
}

func TestEncodingJSONGetsMesossConventions(t *testing.T) {
	m := &mesosv1.Filters{RefuseSeconds: proto.Float64(2)}
	got, err := json.Marshal(map[string]any{"filters": m})
	if want := `{"filters":{"refuse_seconds":2.0}}`; err != nil || string(got) != want {
		t.Errorf("json.Marshal = %s, %v; want %s", got, err, want)
	}
	var back mesosv1.Filters
	if err := json.Unmarshal([]byte(`{"refuse_seconds":"3","junk":[]}`), &back); err != nil || back.GetRefuseSeconds() != 3 {
		t.Errorf("json.Unmarshal = %v, %v; want 3", back.GetRefuseSeconds(), err)
	}
}

// FuzzAppendString: whatever the string, what is written is one line of valid JSON that reads back as
// the string with its invalid bytes replaced.
func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "a", "\x00\x1f\"\\", "\xff\xc0\x80", "\xed\xa0\x80", "\U0010ffff\u2028"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b := mesosjson.AppendString(nil, s)
		if !utf8.Valid(b) {
			t.Fatalf("AppendString(%q) = %q, not UTF-8", s, b)
		}
		var back string
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("AppendString(%q) = %s: %v", s, b, err)
		}
		if want := string([]rune(s)); back != want {
			t.Fatalf("AppendString(%q) reads back as %q, want %q", s, back, want)
		}
	})
}
