package modulehost

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// readStdio reads the stream over which servers made with go-plugin send what the module prints, so that it never
// blocks on a full pipe. Modules without it answer at once that they do not know it.
func (l *life) readStdio(ctx context.Context) {
	desc := &grpc.StreamDesc{StreamName: "StreamStdio", ServerStreams: true}
	s, err := l.conn.NewStream(ctx, desc, "/plugin.GRPCStdio/StreamStdio", grpc.ForceCodecV2(rawCodec{}))
	if err != nil || s.SendMsg(&rawMessage{}) != nil || s.CloseSend() != nil {
		return
	}
	r, w := io.Pipe()
	l.streams.Go(func() { l.module.pump.read(r) })
	defer w.Close()
	for {
		var m rawMessage
		if err := s.RecvMsg(&m); err != nil {
			return
		}
		if _, err := w.Write(stdioData(m.data)); err != nil {
			return
		}
	}
}

// stdioData takes the bytes out of a plugin.StdioData: channel = 1, data = 2.
func stdioData(b []byte) []byte {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		b = b[n:]
		if number == 2 && kind == protowire.BytesType {
			data, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return nil
			}
			return data
		}
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return nil
		}
		b = b[n:]
	}
	return nil
}

// rawMessage is a message by its bytes: go-plugin keeps the type of this one to itself.
type rawMessage struct{ data []byte }

type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*rawMessage)
	if !ok {
		return nil, fmt.Errorf("got %T, want *rawMessage", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(m.data)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*rawMessage)
	if !ok {
		return fmt.Errorf("got %T, want *rawMessage", v)
	}
	m.data = data.Materialize()
	return nil
}
