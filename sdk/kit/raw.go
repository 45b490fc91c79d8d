package kit

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// raw is a message as bytes, right or wrong.
type raw []byte

// rawCodec sends bytes as they are, under the name of protobuf.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.(raw)
	if !ok {
		return nil, fmt.Errorf("send %T: want bytes", v)
	}
	return b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*raw)
	if !ok {
		return fmt.Errorf("receive into %T: want bytes", v)
	}
	*b = bytes.Clone(data)
	return nil
}

// wrongMessages are no protobuf messages at all: a varint without end, a length beyond the message, a group that is
// never closed, a wire type that does not exist, a text that is cut short.
func wrongMessages() [][]byte {
	return [][]byte{
		bytes.Repeat([]byte{0xff}, 11), {0x0a, 0xff, 0xff, 0xff, 0xff, 0x07}, {0x0b}, {0x0f, 0x01},
		{0x0a, 0x05, 'a', 'b'},
	}
}

// unaryCalls are the calls of a service that take one message and give one.
func unaryCalls(service string) []string {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil // a version that this kit does not know
	}
	s, ok := d.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil
	}
	var calls []string
	for i := range s.Methods().Len() {
		if m := s.Methods().Get(i); !m.IsStreamingClient() && !m.IsStreamingServer() {
			calls = append(calls, string(m.Name()))
		}
	}
	return calls
}
