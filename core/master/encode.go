package master

import (
	"context"

	"google.golang.org/protobuf/encoding/protowire"

	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
)

// wireMessage is a message with both encodings.
type wireMessage interface {
	AppendJSON([]byte) []byte
	MarshalVT() ([]byte, error)
}

// format is an encoding of the operator API.
type format int

const (
	formatProtobuf format = iota
	formatJSON
)

// OperatorEncoded returns the body of the answer to a read, encoded in JSON or protobuf. It is false for
// calls that are not among the large reads, for which OperatorCall serves. Bodies are put together from
// the encoded forms that objects keep, and kept themselves until the view changes: polling costs nothing
// while nothing happens. The body must not be changed.
func (m *Master) OperatorEncoded(_ context.Context, _ string, call *masterv1.Call, json bool) (body []byte, ok bool, err error) {
	v := m.view.Load()
	f := formatProtobuf
	if json {
		f = formatJSON
	}
	switch call.GetType() {
	case masterv1.Call_GET_STATE:
		body, err = v.bodies.state[f].get(func() ([]byte, error) { return v.encodeState(f) })
	case masterv1.Call_GET_TASKS:
		body, err = v.bodies.tasks[f].get(func() ([]byte, error) {
			tasks, err := v.encodeTasks(f)
			return f.response(masterv1.Response_GET_TASKS, "get_tasks", 13, tasks), err
		})
	default:
		return nil, false, nil
	}
	return body, true, err
}

// bodies are answers that were asked for in this view, by format.
type bodies struct {
	state, tasks [2]encoded
}

// encodeState encodes the answer to GET_STATE.
func (v *view) encodeState(f format) ([]byte, error) {
	tasks, err := v.encodeTasks(f)
	if err != nil {
		return nil, err
	}
	executors, err := f.encode(v.getExecutors())
	if err != nil {
		return nil, err
	}
	frameworks, err := f.encode(v.getFrameworks())
	if err != nil {
		return nil, err
	}
	agents, err := f.encode(v.getAgents())
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, len(tasks)+len(executors)+len(frameworks)+len(agents)+256)
	if f == formatJSON {
		b = append(b, `{"get_tasks":`...)
		b = append(b, tasks...)
		b = append(b, `,"get_executors":`...)
		b = append(b, executors...)
		b = append(b, `,"get_frameworks":`...)
		b = append(b, frameworks...)
		b = append(b, `,"get_agents":`...)
		b = append(b, agents...)
		b = append(b, '}')
	} else {
		for i, part := range [][]byte{tasks, executors, frameworks, agents} {
			b = protowire.AppendTag(b, protowire.Number(i+1), protowire.BytesType)
			b = protowire.AppendBytes(b, part)
		}
	}
	return f.response(masterv1.Response_GET_STATE, "get_state", 9, b), nil
}

// encode encodes a message.
func (f format) encode(m wireMessage) ([]byte, error) {
	if f == formatJSON {
		return m.AppendJSON(nil), nil
	}
	return m.MarshalVT()
}

// response wraps an encoded body in a Response.
func (f format) response(t masterv1.Response_Type, name string, number protowire.Number, body []byte) []byte {
	b := make([]byte, 0, len(body)+64)
	if f == formatJSON {
		b = append(b, `{"type":"`...)
		b = append(b, t.String()...)
		b = append(b, `","`...)
		b = append(b, name...)
		b = append(b, `":`...)
		b = append(b, body...)
		return append(b, '}')
	}
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(t))
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendBytes(b, body)
}

// taskLists are the lists of a GetTasks, in the order in which each format writes them.
var taskLists = [2][3]struct {
	kind   taskKind
	number protowire.Number
	name   string
}{
	formatProtobuf: {{taskActive, 2, "tasks"}, {taskCompleted, 3, "completed_tasks"}, {taskUnreachable, 5, "unreachable_tasks"}},
	formatJSON:     {{taskActive, 2, "tasks"}, {taskUnreachable, 5, "unreachable_tasks"}, {taskCompleted, 3, "completed_tasks"}},
}

// encodeTasks encodes a GetTasks from the forms that the tasks keep.
func (v *view) encodeTasks(f format) ([]byte, error) {
	var forms [3][][]byte // by kind
	size := 2
	for e := range v.tasks.all() {
		data, err := e.encoded[f].get(func() ([]byte, error) {
			if f == formatJSON {
				return append(e.proto.AppendJSON(nil), ','), nil
			}
			data, err := e.proto.MarshalVT()
			if err != nil {
				return nil, err
			}
			for _, l := range taskLists[f] {
				if l.kind == e.kind {
					b := protowire.AppendTag(make([]byte, 0, len(data)+8), l.number, protowire.BytesType)
					return protowire.AppendBytes(b, data), nil
				}
			}
			return nil, nil
		})
		if err != nil {
			return nil, err
		}
		forms[e.kind] = append(forms[e.kind], data)
		size += len(data)
	}
	b := make([]byte, 0, size+64)
	if f == formatJSON {
		b = append(b, '{')
	}
	for _, l := range taskLists[f] {
		if len(forms[l.kind]) == 0 {
			continue
		}
		if f == formatJSON {
			if b[len(b)-1] != '{' {
				b = append(b, ',')
			}
			b = append(b, '"')
			b = append(b, l.name...)
			b = append(b, `":[`...)
		}
		for _, data := range forms[l.kind] {
			b = append(b, data...)
		}
		if f == formatJSON {
			b[len(b)-1] = ']'
		}
	}
	if f == formatJSON {
		b = append(b, '}')
	}
	return b, nil
}
