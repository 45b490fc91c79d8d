package api_test

import (
	"testing"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// BenchmarkAccept is what decoding costs an ACCEPT with one task, of the 500 µs that all before staging has.
func BenchmarkAccept(b *testing.B) {
	for _, mt := range []codec.Type{codec.JSON, codec.Protobuf} {
		b.Run(mt.String(), func(b *testing.B) {
			data, err := codec.Append(mt, nil, acceptCall())
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if err := codec.Unmarshal(mt, data, &schedulerv1.Call{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
