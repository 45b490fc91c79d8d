package mesosjson_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// TestForgivenTextIsRead: want is the message as AppendJSON then writes it.
func TestForgivenTextIsRead(t *testing.T) {
	for _, c := range []struct {
		what, text string
		into       interface {
			proto.Message
			mesosjson.Appender
		}
		want string
	}{
		{"unknown fields", `{"x":{"y":[1,{"z":null}],"w":Infinity},"type":"REVIVE","q":-1.5e3}`, &schedulerv1.Call{}, `{"type":"REVIVE"}`},
		{"null", `{"type":null,"framework_id":null}`, &schedulerv1.Call{}, `{}`},
		{"null in a list", `{"roles":["a",null,"b"]}`, &schedulerv1.Call_Revive{}, `{"roles":["a","b"]}`},
		{"null in a map", `{"container_id":{"value":"c"},"limits":{"a":null}}`, &agentv1.Call_LaunchContainer{}, `{"container_id":{"value":"c"}}`},
		{"one value for a list", `{"roles":"a"}`, &schedulerv1.Call_Revive{}, `{"roles":["a"]}`},
		{"one message for a list", `{"offer_ids":{"value":"o"}}`, &schedulerv1.Call_Decline{}, `{"offer_ids":[{"value":"o"}]}`},
		{"numbers as strings", `{"begin":"1","end":"18446744073709551615"}`, &mesosv1.Value_Range{}, `{"begin":1,"end":18446744073709551615}`},
		{"whole floats for integers", `{"begin":1.0,"end":1e3}`, &mesosv1.Value_Range{}, `{"begin":1,"end":1000}`},
		{"integers for floats", `{"value":3}`, &mesosv1.Value_Scalar{}, `{"value":3.0}`},
		{"floats as strings", `{"value":"0.5"}`, &mesosv1.Value_Scalar{}, `{"value":0.5}`},
		{"Infinity as a string", `{"value":"Infinity"}`, &mesosv1.Value_Scalar{}, `{"value":Infinity}`},
		{"Infinity bare", `{"value":-Infinity}`, &mesosv1.Value_Scalar{}, `{"value":-Infinity}`},
		{"NaN bare", `{"value":NaN}`, &mesosv1.Value_Scalar{}, `{"value":NaN}`},
		{"bools as strings", `{"show_nested":"true","show_standalone":"false"}`, &agentv1.Call_GetContainers{}, `{"show_nested":true,"show_standalone":false}`},
		{"an unknown word for an enum", `{"type":"LATER"}`, &schedulerv1.Call{}, `{}`},
		{"an unknown word in a list of messages", `{"user":"u","name":"n","role":"r","capabilities":[{"type":"LATER"},{"type":"MULTI_ROLE"}]}`, &mesosv1.FrameworkInfo{},
			`{"user":"u","name":"n","failover_timeout":0.0,"checkpoint":false,"role":"r","capabilities":[{},{"type":"MULTI_ROLE"}]}`},
		{"base64 with padding", `{"data":"+/8="}`, &executorv1.Call_Message{}, `{"data":"+/8="}`},
		{"base64 without padding", `{"data":"+/8"}`, &executorv1.Call_Message{}, `{"data":"+/8="}`},
		{"base64 of the other alphabet", `{"data":"-_8"}`, &executorv1.Call_Message{}, `{"data":"+/8="}`},
		{"no bytes", `{"data":""}`, &executorv1.Call_Message{}, `{"data":""}`},
		{"a field twice", `{"value":1,"value":2}`, &mesosv1.Value_Scalar{}, `{"value":2.0}`},
		{"a message twice is not merged", `{"filters":{"refuse_seconds":1},"filters":{}}`, &schedulerv1.Call_Decline{}, `{"filters":{"refuse_seconds":5.0}}`},
		{"a list twice is not joined", `{"roles":["a"],"roles":["b"]}`, &schedulerv1.Call_Revive{}, `{"roles":["b"]}`},
		{"the last of a oneof", `{"attribute_name":"a","pseudoattribute_type":"ZONE"}`, &schedulerv1.AttributeConstraint_Selector{}, `{"pseudoattribute_type":"ZONE"}`},
		{"a duration as an object", `{"agent_id":{"value":"a"},"max_grace_period":{"seconds":600}}`, &masterv1.Call_DrainAgent{},
			`{"agent_id":{"value":"a"},"max_grace_period":{"seconds":600,"nanos":0},"mark_gone":false}`},
		{"escapes", `{"value":"\u00e9\ud83d\ude00\ud800\/\b\f\n\r\t\"\\"}`, &mesosv1.TaskID{}, "{\"value\":\"é😀\uFFFD/" + `\b\f\n\r\t\"\\"}`},
		{"white space", " \t\r\n{ \"value\" : \"v\" } \n", &mesosv1.TaskID{}, `{"value":"v"}`},
		{"what stood in the message before is gone", `{"value":"v"}`, &mesosv1.ContainerID{Parent: &mesosv1.ContainerID{}}, `{"value":"v"}`},
	} {
		if err := mesosjson.Unmarshal([]byte(c.text), c.into); err != nil {
			t.Errorf("%s: Unmarshal(%s): %v", c.what, c.text, err)
			continue
		}
		if got := string(c.into.AppendJSON(nil)); got != c.want {
			t.Errorf("%s: Unmarshal(%s) = %s, want %s", c.what, c.text, got, c.want)
		}
	}
}

// TestRefusedTextNamesPathAndOffset: want is the whole error.
func TestRefusedTextNamesPathAndOffset(t *testing.T) {
	for _, c := range []struct {
		text string
		into proto.Message
		want string
	}{
		{``, &schedulerv1.Call{}, "got end of text, want an object at byte 0"},
		{`[]`, &schedulerv1.Call{}, "got a list, want an object at byte 0"},
		{`{`, &schedulerv1.Call{}, "got end of text, want a member name at byte 1"},
		{`{}x`, &schedulerv1.Call{}, "unexpected character at byte 2"},
		{`{}{}`, &schedulerv1.Call{}, "got an object after the end of the object at byte 2"},
		{`{"type":"KILL",}`, &schedulerv1.Call{}, "got '}', want a member name at byte 15"},
		{`{"type" "KILL"}`, &schedulerv1.Call{}, "got a string, want ':' after a member name at byte 8"},
		{`{"type":1}`, &schedulerv1.Call{}, "type: got a number, want the name of an enum value at byte 8"},
		{`{"subscribe":{"framework_info":{"user":"u"}}}`, &schedulerv1.Call{}, "subscribe.framework_info.name: missing required field at byte 31"},
		{`{"kill":{}}`, &schedulerv1.Call{}, "kill.task_id: missing required field at byte 8"},
		{`{"accept":{"operations":[{},{"launch":{"task_infos":[{"name":3}]}}]}}`, &schedulerv1.Call{},
			"accept.operations[1].launch.task_infos[0].name: got a number, want a string at byte 61"},
		{`{"name":"cpus","type":"LATER"}`, &mesosv1.Resource{}, "type: missing required field at byte 0"},
		{`{"roles":[["a"]]}`, &schedulerv1.Call_Revive{}, "roles[0]: got a list, want a string at byte 10"},
		{`{"subscribe":"x"}`, &schedulerv1.Call{}, "subscribe: got a string, want an object at byte 13"},
		{`{"begin":-1,"end":1}`, &mesosv1.Value_Range{}, "begin: integer is out of range at byte 9"},
		{`{"begin":18446744073709551616}`, &mesosv1.Value_Range{}, "begin: integer is out of range at byte 9"},
		{`{"begin":1.5}`, &mesosv1.Value_Range{}, "begin: got a fraction, want an integer at byte 9"},
		{`{"begin":"0x1"}`, &mesosv1.Value_Range{}, "begin: string is not a number at byte 9"},
		{`{"begin":"1_0"}`, &mesosv1.Value_Range{}, "begin: string is not a number at byte 9"},
		{`{"begin":Infinity}`, &mesosv1.Value_Range{}, "begin: integer is out of range at byte 9"},
		{`{"begin":true}`, &mesosv1.Value_Range{}, "begin: got true, want a number at byte 9"},
		{`{"value":1e400}`, &mesosv1.Value_Scalar{}, "value: number is out of range at byte 9"},
		{`{"value":01}`, &mesosv1.Value_Scalar{}, "got a number, want ',' or '}' at byte 10"},
		{`{"show_nested":1}`, &agentv1.Call_GetContainers{}, "show_nested: got a number, want true or false at byte 15"},
		{`{"data":"a!"}`, &executorv1.Call_Message{}, "data: string is not base64 at byte 8"},
		{"{\"value\":\"\xff\"}", &mesosv1.TaskID{}, "value: string is not valid UTF-8 at byte 10"},
		{"{\"value\":\"a\nb\"}", &mesosv1.TaskID{}, "value: control character in a string at byte 11"},
		{`{"value":"a`, &mesosv1.TaskID{}, "value: string without an end at byte 11"},
		{`{"value":"\x"}`, &mesosv1.TaskID{}, "value: malformed escape in a string at byte 10"},
		{`{"value":"\u12g4"}`, &mesosv1.TaskID{}, "value: malformed escape in a string at byte 10"},
		{`{"limits":[],"container_id":{"value":"c"}}`, &agentv1.Call_LaunchContainer{}, "limits: got a list, want an object at byte 10"},
	} {
		err := mesosjson.Unmarshal([]byte(c.text), c.into)
		var e *mesosjson.Error
		if !errors.As(err, &e) || err.Error() != c.want {
			t.Errorf("Unmarshal(%s): %v, want %s", c.text, err, c.want)
		}
	}
}

func TestTextBeyondTheBoundsIsRefused(t *testing.T) {
	deep := func(n int) string {
		return strings.Repeat(`{"value":"p","parent":`, n) + `{"value":"c"}` + strings.Repeat(`}`, n)
	}
	for _, c := range []struct {
		what, text, want string
		opts             []mesosjson.Option
	}{
		{"depth of a message", deep(1 << 20), "nested deeper than 100 levels", nil},
		{"depth of what is unknown", `{"x":` + strings.Repeat("[", 1<<20), "nested deeper than 100 levels", nil},
		{"depth given", `{"x":[[1]]}`, "nested deeper than 2 levels", []mesosjson.Option{mesosjson.MaxDepth(2)}},
		{"length", strings.Repeat(" ", mesosjson.DefaultMaxBytes+1), "longer than the limit", nil},
		{"length given", `{"value":"c"}`, "longer than the limit of 5", []mesosjson.Option{mesosjson.MaxBytes(5)}},
		{"values", `{"x":[` + strings.Repeat("1,", mesosjson.DefaultMaxValues) + `1]}`, "more than 1048576 values", nil},
		{"values given", `{"x":[1,2,3]}`, "more than 4 values", []mesosjson.Option{mesosjson.MaxValues(4)}},
	} {
		err := mesosjson.Unmarshal([]byte(c.text), &mesosv1.ContainerID{}, c.opts...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Unmarshal: %v, want %q", c.what, err, c.want)
		}
		if err != nil && len(err.Error()) > 2<<10 {
			t.Errorf("%s: the error has %d bytes", c.what, len(err.Error()))
		}
	}
	var id mesosv1.ContainerID
	if err := mesosjson.Unmarshal([]byte(deep(50)), &id); err != nil {
		t.Errorf("Unmarshal of 50 levels: %v", err)
	}
}

func TestFloatsSurviveTheRoundTripToTheLastBit(t *testing.T) {
	for _, v := range []float64{0.1, 1.0 / 3, math.MaxFloat64, math.SmallestNonzeroFloat64, 1e21, 1e-7, 123456789.125, math.Inf(-1)} {
		m := &mesosv1.Value_Scalar{Value: proto.Float64(v)}
		var back mesosv1.Value_Scalar
		if err := mesosjson.Unmarshal(m.AppendJSON(nil), &back); err != nil || back.GetValue() != v {
			t.Errorf("%g comes back as %g, %v", v, back.GetValue(), err)
		}
	}
}

// killers are texts that have broken decoders before.
func killers() []string {
	return []string{
		``, `{`, `}`, `null`, `"`, `{"`, `{"type"`, `{"type":`, `{"type":"`, `{"type":"\`, `{"type":"\u`, `{"type":"\ud83d\u"}`,
		strings.Repeat(`{"subscribe":`, 5000), strings.Repeat(`[`, 100000), `{"x":` + strings.Repeat(`[`, 100000),
		`{"accept":{"operations":[` + strings.Repeat(`{},`, 5000) + `{}]}}`,
		"{\"type\":\"\xff\xfe\"}", "\xef\xbb\xbf{}", "{\"\x00\":1}", `{"\u0000":1}`, "{\"\xc0\x80\":1}",
		`{"acknowledge":{"uuid":"===="}}`, `{"acknowledge":{"uuid":"` + strings.Repeat("A", 10000) + `"}}`,
		`{"decline":{"filters":{"refuse_seconds":1e999999999}}}`, `{"decline":{"filters":{"refuse_seconds":` + strings.Repeat("9", 10000) + `}}}`,
		`{"decline":{"filters":{"refuse_seconds":-Infinity}}}`, `{"decline":{"filters":{"refuse_seconds":-Inf}}}`, `{"type":-}`, `{"type":1e}`, `{"type":.5}`, `{"type":+1}`,
		`{"subscribe":{"framework_info":{"user":"u","name":"n","offer_filters":{"a":{"min_allocatable_resources":{"quantities":[{"quantities":{"cpus":{"value":"Infinity"}}}]}}}}}}`,
		fmt.Sprintf(`{"type":"%s"}`, strings.Repeat(`\u0041`, 10000)), `{"type":"SUBSCRIBE","type":null,"type":"KILL"}`, `{"a":1}{"b":2}`, `{"a":1} garbage`,
	}
}

// FuzzUnmarshal: no text makes the decoder panic, hang or take much memory, and a message that was read
// is written as a text that reads back as the same message.
func FuzzUnmarshal(f *testing.F) {
	for _, k := range killers() {
		f.Add([]byte(k))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		type message interface {
			proto.Message
			mesosjson.Appender
		}
		for _, pair := range [][2]message{
			{&schedulerv1.Call{}, &schedulerv1.Call{}},
			{&executorv1.Call{}, &executorv1.Call{}},
			{&masterv1.Call{}, &masterv1.Call{}},
			{&agentv1.Call{}, &agentv1.Call{}},
			{&schedulerv1.Event{}, &schedulerv1.Event{}},
		} {
			first, second := pair[0], pair[1]
			if err := mesosjson.Unmarshal(data, first); err != nil {
				var e *mesosjson.Error
				if !errors.As(err, &e) || e.Offset < 0 || e.Offset > len(data) {
					t.Fatalf("Unmarshal(%q): error %#v", data, err)
				}
				continue
			}
			text := first.AppendJSON(nil)
			// What defaults add can pass the bound on values; the other bounds hold for both.
			if err := mesosjson.Unmarshal(text, second, mesosjson.MaxBytes(len(text)), mesosjson.MaxValues(len(text))); err != nil {
				t.Fatalf("Unmarshal(%q) then AppendJSON = %s, which does not read: %v", data, text, err)
			}
			if again := second.AppendJSON(nil); string(again) != string(text) {
				t.Fatalf("Unmarshal(%q): written %s, then %s", data, text, again)
			}
		}
	})
}
